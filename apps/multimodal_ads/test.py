"""Evaluate a trained ad classifier on any labelled table: `quartet evaluate` under the names that its flags have here.

    python apps/multimodal_ads/test.py --model_path <run>/checkpoint_best.ckpt --csv test.csv

writes results.json (AUROC with confidence interval, average precision, F1 and the rest at the threshold that the run
chose on its validation data), test_predictions.json, test_report.md (wrong ones first, most confident first, with
thumbnails) and report.html to the folder test_<table>/ of the run, or to --output_dir.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcore.cli.main import guarded
from mlcore.use.verbs import evaluate_script
from quartet.apps.multimodal_ads.app import APP

_FLAGS: Mapping[str, Mapping[str, Any]] = {
    "csv": {"type": Path, "required": True, "help": "table: columns local_image_path, label, text_info"},
    "base_dir": {"help": "folder that image paths are relative to (default: the table's)"},
    "threshold": {"help": "probability from which a sample is an ad (default: chosen on validation)"},
    "device": {"default": "auto", "help": "auto, cpu, cuda or cuda:N (default: auto)"},
}

if __name__ == "__main__":
    guarded(lambda: evaluate_script(APP, __doc__ or "", flags=_FLAGS, called="test_"))
