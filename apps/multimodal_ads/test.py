"""Evaluate a trained ad classifier on any labelled table.

    python apps/multimodal_ads/test.py --model_path <run>/checkpoint_best.ckpt --csv test.csv

writes results.json (AUROC with confidence interval, average precision, F1 and the rest at the threshold that the run
chose on its validation data), test_predictions.json and test_report.md (wrong ones first, most confident first, with
thumbnails) to the folder test_<table>/ of the run, or to --output_dir.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Parse the command line and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    add("--csv", type=Path, required=True, help="table: columns local_image_path, label, text_info")
    add("--base_dir", type=Path, help="folder that image paths are relative to (default: the table's)")
    add("--output_dir", type=Path, help="where results go (default: test_<table>/ in the run folder)")
    add("--threshold", help="probability from which a sample is an ad (default: chosen on validation)")
    add("--batch_size", type=int, default=32, help="samples that go through the model together (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    given = parser.parse_args()

    from quartet.apps.multimodal_ads.testing import evaluate  # after parsing: torch takes seconds to import

    return evaluate(**vars(given))


if __name__ == "__main__":
    guarded(main)
