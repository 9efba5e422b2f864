"""Turn NIfTI folders and DICOM series into the tables and masks that training reads.

    python apps/sam_med3d_ich/prepare.py --input dataset --output prepared --val_fraction 0.2
    python apps/sam_med3d_ich/prepare.py --input nnUNet_raw/Dataset042_Bleeds --output prepared --link
    python apps/sam_med3d_ich/prepare.py --input dicom --label_dir masks --output prepared --series largest

The input folder holds images/ and labels/, or imagesTr/ and labelsTr/ (nnU-Net), or the images themselves: NIfTI files,
or one folder of DICOM files for each case. A label map is named like its image (with or without _0000) or like its
folder. Writes images/, masks/, train.csv, val.csv (and test.csv where asked for) into a new folder, which appears
complete or not at all. All scans of a patient go to one split; a hundred CTs take about a minute.
"""

import argparse
from pathlib import Path

from mlcore.cli.main import guarded


def main() -> int:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="FOLDER", help="images and labels, see above")
    add("--output", type=Path, required=True, metavar="FOLDER", help="new folder")
    add("--label_dir", type=Path, metavar="FOLDER", help="label maps (default: labelsTr or labels in the input)")
    add("--image_suffix", metavar="TEXT", help="image names end in this, such as _ct (default: _0000 or nothing)")
    add("--label_suffix", default="", metavar="TEXT", help="label names end in this, such as _mask (default: nothing)")
    add("--labels", type=int, nargs="+", metavar="N", help="label values that are target (default: all above 0)")
    add("--unlabelled_are_negative", action="store_true", help="a case without label map has no bleed (ich 0)")
    add("--series", default="error", metavar="CHOICE", help="several DICOM series in a folder: each, largest, or a UID")
    straight = "resample tilted grids to right angles, and unevenly spaced DICOM slices to even ones"
    add("--orthogonal", action="store_true", help=straight)
    add("--link", action="store_true", help="refer to the NIfTI images where they are, copy nothing")
    add("--patient_regex", metavar="REGEX", help="its one group is the patient in a case's name (default: whole name)")
    add("--val_fraction", type=float, default=0.2, metavar="F", help="share for validation (default: 0.2)")
    add("--test_fraction", type=float, default=0.0, metavar="F", help="share for test.csv (default: 0)")
    add("--val_cases", type=int, metavar="N", help="cases for validation, instead of a share")
    add("--test_cases", type=int, metavar="N", help="cases for test.csv, instead of a share")
    add("--train_cases", type=int, metavar="N", help="cases for training (default: all that are left)")
    add("--seed", type=int, default=0, help="names the draw of the split (default: 0)")
    given = vars(parser.parse_args())

    from quartet.apps.sam_med3d_ich.data.split import (
        SplitSizes,  # after parsing: what reads images takes a second to import
    )
    from quartet.apps.sam_med3d_ich.preparation import Preparation, run

    sizes = ("val_fraction", "test_fraction", "val_cases", "test_cases", "train_cases")
    drawn = SplitSizes(**{name: given.pop(name) for name in sizes})
    source, output = given.pop("input"), given.pop("output")
    given["labels"] = tuple(given["labels"]) if given["labels"] else None
    return run(source, output, Preparation(sizes=drawn, **given))


if __name__ == "__main__":
    guarded(main)
