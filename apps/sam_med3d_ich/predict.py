"""Segment volumes with a trained model: `quartet predict` under the names that its flags have here.

    python apps/sam_med3d_ich/predict.py --model_path checkpoints/best_model.pth scan.nii.gz
    python apps/sam_med3d_ich/predict.py --model_path checkpoints/best_model.pth --output_dir masks/ scans/ dicom/
    python apps/sam_med3d_ich/predict.py --model_path best_model.pth --csv val.csv --mask_dir masks --output_dir check/
    python apps/sam_med3d_ich/predict.py --model_path best_model.pth scan.nii.gz --clicks 210,130,14 195,128,14,0

Reads .nii, .nii.gz, .npy, .npz, .pkl and folders of DICOM files. Writes a mask of the input's shape and affine for
each, and predictions.csv: input, mask, millilitres, ich_score, remark, problem; with --mask_dir also the validation
table that training would give (cases.csv). Seconds a volume.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcore.cli.main import guarded
from mlcore.use.command import predict_script
from quartet.apps.sam_med3d_ich.app import APP

_FLAGS: Mapping[str, Mapping[str, Any]] = {
    "array_spacing": {"nargs": 3, "metavar": "MM"},
    "clicks": {"nargs": "+", "metavar": "X,Y,Z[,0]"},
    "probability_map": {"action": "store_true"},
    "overlays": {"action": "store_true"},
}

if __name__ == "__main__":
    guarded(
        lambda: predict_script(APP, __doc__ or "", on_bad="on_bad_input", output_dir=Path("predictions"), flags=_FLAGS)
    )
