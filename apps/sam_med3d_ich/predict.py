"""Segment volumes with a trained model: masks, volumes in mL, haemorrhage scores.

    python apps/sam_med3d_ich/predict.py --model_path checkpoints/best_model.pth scan.nii.gz
    python apps/sam_med3d_ich/predict.py --model_path checkpoints/best_model.pth --output_dir masks/ scans/
    python apps/sam_med3d_ich/predict.py --model_path best_model.pth --csv val.csv --mask_dir masks --output_dir check/
    python apps/sam_med3d_ich/predict.py --model_path best_model.pth scan.nii.gz --clicks 210,130,14 195,128,14,0

Reads .nii, .nii.gz, .npy, .npz and .pkl. Writes a mask of the input's shape and affine for each, and predictions.csv;
with --csv and --mask_dir also the validation table that training would give (cases.csv). Seconds a volume.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded
from mlcore.remote.s3 import stored_file


def main() -> int:
    """Parse the command line and segment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("inputs", nargs="*", type=Path, help="volumes, and folders of volumes")
    add("--model_path", type=stored_file, required=True, help="checkpoint: a file, or s3://bucket/key")
    add("--output_dir", type=Path, default=Path("predictions"), help="where masks and tables go (default: predictions)")
    add("--csv", type=Path, help="a table of cases (path,ich,patient_id) instead of inputs")
    add("--mask_dir", type=Path, help="with --csv: the true masks, to compare with")
    spacing = "voxel size of arrays that carry none (mm; default: that of the run)"
    add("--array_spacing", type=float, nargs=3, metavar="MM", help=spacing)
    add("--clicks", nargs="+", default=[], metavar="X,Y,Z[,0]", help="voxel indices inside the target (,0: outside it)")
    add("--threshold", type=float, help="probability from which a voxel is in the mask (default: that of the run)")
    add("--probability_map", action="store_true", help="also write {name}_probability.nii.gz")
    add("--overlays", action="store_true", help="also write a picture of each case")
    add(
        "--on_bad_input",
        choices=["error", "skip"],
        default="error",
        help="stop at bad files, or leave them out",
    )
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    given = parser.parse_args()

    from quartet.apps.sam_med3d_ich.prediction import Request, predict  # after parsing: torch takes seconds to import

    given.array_spacing = None if given.array_spacing is None else tuple(given.array_spacing)
    return predict(Request(**vars(given)))


if __name__ == "__main__":
    guarded(main)
