"""Evaluate a trained Perceiver on a part of its data: `quartet evaluate` under the names that its flags have here.

    python apps/perceiver/inference.py --model_path checkpoints/best_model.pth
    python apps/perceiver/inference.py --model_path checkpoints/best_model.pth --output_dir results/
    python apps/perceiver/inference.py --model_path checkpoints/best_model.pth --split test --data_dir DIR

Takes seconds to minutes, as one evaluation in training does, and gives the same figures. Writes confusion_matrix.png,
confidence_histogram.png, confidence_analysis.png, class_performance.png, reliability.png, class_metrics.csv,
results.json, predictions.csv (most confident mistakes first) and report.html.
"""

from collections.abc import Mapping
from typing import Any

from mlcore.cli.main import guarded
from mlcore.use.verbs import evaluate_script
from quartet.apps.perceiver.app import APP

_FLAGS: Mapping[str, Mapping[str, Any]] = {
    "split": {"choices": ["val", "test", "train"], "default": "val", "help": "part of the data (default: val)"},
    "analyze": {"action": "store_true", "help": "is always done; for commands of earlier versions"},
}

if __name__ == "__main__":
    guarded(lambda: evaluate_script(APP, __doc__ or "", flags=_FLAGS))
