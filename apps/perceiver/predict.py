"""Classify new data with a trained Perceiver.

    python apps/perceiver/predict.py --model_path checkpoints/best_model.pth photos/ one_more.jpg
    python apps/perceiver/predict.py --model_path checkpoints/best_model.pth new.ts --output predictions.csv
    python apps/perceiver/predict.py --model_path checkpoints/best_model.pth new.npz --on_bad_sample skip

The checkpoint knows what it was trained on: a model of images takes image files and folders of them (pictures of
another size are resized), a model of sequences .ts and .npz files, with or without labels, and folders of them. Writes
a CSV file, complete or not at all, in the order given: input, class, probability, p_<class> for every class, problem.
With --on_bad_sample skip, what is missing or cannot be used is a row with the reason in place of a class.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Parse the command line and predict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("inputs", type=Path, nargs="+", metavar="INPUT", help="files and folders, see above")
    add("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    add("--output", type=Path, default=Path("predictions.csv"), help="file to write (default: predictions.csv)")
    add("--on_bad_sample", choices=["error", "skip"], default="error", help="skip: go on, a row says why")
    add("--on_missing", choices=["error", "mask", "interpolate"], help="gaps in sequences (default: as in training)")
    add("--batch_size", type=int, help="samples per batch (default: that of the run's evaluations)")
    add("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda or cuda:N (default: auto)")
    given = parser.parse_args()

    from quartet.apps.perceiver.prediction import predict  # after parsing: torch takes seconds to import

    return predict(
        given.model_path,
        given.inputs,
        output=given.output,
        on_bad_sample=given.on_bad_sample,
        on_missing=given.on_missing,
        batch_size=given.batch_size,
        device=given.device,
    )


if __name__ == "__main__":
    guarded(main)
