"""Evaluate a trained Perceiver on the validation, test or training part of its data.

    python apps/perceiver/inference.py --model_path checkpoints/best_model.pth
    python apps/perceiver/inference.py --model_path checkpoints/best_model.pth --analyze --output_dir results/
    python apps/perceiver/inference.py --model_path checkpoints/best_model.pth --split test --data_dir DIR

Takes seconds to minutes, as one evaluation in training does, and gives the same figures. Writes confusion_matrix.png,
confidence_histogram.png, confidence_analysis.png and results.json; with --analyze also class_performance.png,
reliability.png, class_metrics.csv, predictions.csv (most confident mistakes first) and report.html.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file

_SETTINGS = "Any setting of the run's sections data and run can be changed: --data_dir DIR, data_dir=DIR, device=cpu."


def main() -> int:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=_SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --model_path FILE [flags] [--setting VALUE | setting=VALUE ...]",
    )
    add = parser.add_argument
    add("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    add("--split", choices=["val", "test", "train"], default="val", help="part of the data (default: val)")
    add("--analyze", action="store_true", help="also figures per class, every prediction, and a report")
    add("--output_dir", type=Path, help="folder of the results (default: evaluation_<split>/ in the run folder)")
    add("--batch_size", type=int, help="samples per batch (default: that of the run's evaluations)")
    given, settings = parser.parse_known_args()

    from quartet.apps.perceiver.evaluation import evaluate  # after parsing: torch takes seconds to import

    return evaluate(
        given.model_path,
        part=given.split,
        settings=settings,
        output_dir=given.output_dir,
        batch_size=given.batch_size,
        analyze=given.analyze,
    )


if __name__ == "__main__":
    guarded(main)
