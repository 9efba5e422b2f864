"""Score images with a trained ad classifier.

    python apps/multimodal_ads/predict.py --model_path <run>/checkpoint_best.ckpt image.jpg folder/ --text "50 % off"
    python apps/multimodal_ads/predict.py --model_path <run>/checkpoint_best.ckpt --csv table.csv

writes predictions.csv (--output), a row for each in the order given: image (as the table names it), probability of an
ad, predicted class at the threshold that the run chose on its validation data, the picture's share in the gated fusion,
and problem: why an image cannot be read, or why a row names none or one that was there before. Such rows do not stop
the others, but make the exit code 1, or 2 where none is left. Texts come from --text or the table's column text_info
(no labels are needed), which prepare.py --ocr fills; a model of texts warns where there are none.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Parse the command line and score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="images, and folders of images")
    add("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    add("--csv", type=Path, help="a table (local_image_path, text_info) instead of inputs")
    add("--base_dir", type=Path, help="with --csv: folder that image paths are relative to (default: the table's)")
    add("--text", default="", help="text of the inputs, the same for all (default: none)")
    add("--output", type=Path, default=Path("predictions.csv"), help="the table (default: predictions.csv)")
    add("--threshold", type=float, help="probability from which an image is an ad (default: chosen on validation)")
    add("--batch_size", type=int, default=32, help="images that go through the model together (default: 32)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    given = parser.parse_args()

    from quartet.apps.multimodal_ads.prediction import (  # after parsing: torch takes seconds to import
        PredictRequest,
        predict,
    )

    return predict(PredictRequest(**vars(given)))


if __name__ == "__main__":
    guarded(main)
