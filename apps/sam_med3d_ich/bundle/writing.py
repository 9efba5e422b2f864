"""The files of a MONAI bundle (https://docs.monai.io/en/stable/mb_specification.html) beside its program."""

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder, write_json, write_text
from mlcore.base.version import VERSION

__all__ = ["write_bundle"]

_README = """\
# Intracerebral haemorrhage in head CT

Masks of bleeds, made by a SAM-Med3D that was fine-tuned with quartet {version}. In this folder, with MONAI {monai}:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir DIR --output_dir DIR

segments all .nii and .nii.gz files of a folder. The preprocessing and the network are those of the run; nothing of
quartet is needed. No medical device.
"""


def write_bundle(about: Mapping[str, Any], folder: Path) -> None:
    """Write configurations, code and words; the program is `models/model.pt2`.

    Args:
        about: What `describe` gave, with the run's decision.
        folder: Of the bundle.

    Raises:
        UserError: The model wants clicks, which a bundle cannot ask for.
    """
    if about["prompted"]:
        raise UserError("a model that was trained with clicks cannot be a MONAI bundle, which has nobody to click")
    here, scripts = Path(__file__).parent, ensure_folder(folder / "scripts")
    shutil.copyfile(here / "ich.py", scripts / "ich.py")
    write_text(scripts / "__init__.py", "")
    write_text(ensure_folder(folder / "docs") / "README.md", _README.format(version=VERSION, monai=version("monai")))
    write_json(ensure_folder(folder / "configs") / "metadata.json", _metadata(about))
    write_json(folder / "configs" / "inference.json", _inference(about))


def _inference(about: Mapping[str, Any]) -> dict[str, Any]:
    """How MONAI puts it together."""
    side, settings, point = about["model"]["shape"]["image_size"], about["preprocessing"], _point(about)
    windows = {"sw_batch_size": about["inference"]["windows_per_batch"], "overlap": about["inference"]["overlap"]}
    return {
        "imports": ["$import glob", "$import torch", "$import scripts.ich as ich"],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/data'",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii') + glob.glob(@dataset_dir + '/*.nii.gz'))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "scripts.ich.Network", "path": "$@bundle_root + '/models/model.pt2'"},
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "scripts.ich.ToGrid", "keys": "image", "side": side, **settings},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': path} for path in @datalist]",
            "transform": "@preprocessing",
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [side] * 3, "mode": "gaussian", **windows},
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "scripts.ich.FromGrid", "keys": "pred", "image_key": "image", **point},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "mask",
                    "output_dtype": "uint8",
                    "resample": False,
                    "separate_folder": False,
                },
            ],
        },
        "run": ["$ich.run(@dataset, @inferer, @network, @postprocessing, @device)"],
    }


def _point(about: Mapping[str, Any]) -> dict[str, float]:
    """From where on voxels are inside, and how small parts may be."""
    chosen = about["decision"] or about["inference"]
    return {name: chosen[name] for name in ("threshold", "min_volume_ml")}


def _metadata(about: Mapping[str, Any]) -> dict[str, Any]:
    side = about["model"]["shape"]["image_size"]
    window = {"num_channels": 1, "spatial_shape": [side] * 3, "dtype": "float32", "is_patch_data": True}
    image = {"type": "image", "format": "hounsfield", "modality": "CT", "value_range": [-1024, 3071], **window}
    mask = {"type": "image", "format": "segmentation", "value_range": [0, 1], **window}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
        "meta_schema_20240725.json",
        "version": VERSION,
        "changelog": {VERSION: "exported by quartet"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "scipy")},
        "name": "Intracerebral haemorrhage",
        "task": "Segmentation of intracerebral haemorrhage in head CT",
        "description": "SAM-Med3D, fine-tuned; sliding windows without clicks",
        "authors": "whoever trained the run",
        "copyright": "whoever trained the run",
        "intended_use": "research; no medical device",
        "network_data_format": {
            "inputs": {"image": {**image, "channel_def": {"0": "image"}}},
            "outputs": {"pred": {**mask, "channel_def": {"0": "haemorrhage"}}},
        },
    }
