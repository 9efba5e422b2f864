"""Classify pages with a trained model, or with several whose probabilities are averaged.

    python apps/doc_ensemble/predict.py --model_path <run>/checkpoints/best_model.pth scan.png bundle.pdf folder/
    python apps/doc_ensemble/predict.py --model_path a.pth --model_path b.pth --csv pages.csv --output predictions.csv

takes images, all pages of TIFF and PDF files, folders of them, or a table with the column image. Writes predictions.csv
(--output), a row for each in the order given: image (as the table names it), class, probability, p_<class> for every
class, and problem: why a page cannot be read, or a row names none or one that was there before. Such pages do not stop
the others, but make the exit code 1, or 2 where none is left. Thumbnails with their classes go to predictions_pages/
beside the table.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Parse the command line and classify."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="images, TIFF and PDF files, and folders of them")
    add(
        "--model_path",
        type=stored_file,
        action="append",
        required=True,
        help="checkpoint: a file, a run folder (its best), or s3://bucket/key; several times: models are averaged",
    )
    add("--csv", type=Path, help="a table (column image) instead of inputs")
    add("--base_dir", type=Path, help="with --csv: folder that its paths are relative to (default: the table's)")
    add("--output", type=Path, default=Path("predictions.csv"), help="the table (default: predictions.csv)")
    add("--thumbnails", type=int, default=240, help="pages that are shown in pictures; 0: none (default: 240)")
    add("--batch_size", type=int, default=32, help="pages that go through a model together (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    given = parser.parse_args()

    from quartet.apps.doc_ensemble.prediction import (  # after parsing: torch takes seconds to import
        PredictRequest,
        predict,
    )

    return predict(PredictRequest(**vars(given)))


if __name__ == "__main__":
    guarded(main)
