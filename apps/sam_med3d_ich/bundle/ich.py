"""What this bundle does besides MONAI's own parts: onto the network's grid and back, and the network itself."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.spatial.array import Orientation
from monai.transforms.transform import MapTransform
from scipy import ndimage
from torch.nn import functional

EVERYWHERE = np.ones((3, 3, 3), dtype=np.uint8)  # voxels that share a corner are connected


class Network(torch.nn.Module):
    """The exported program of a window; its second output, the score of a haemorrhage, is left out."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.program = torch.export.load(path).module()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image [B, 1, S, S, S] to mask logits of the same shape."""
        logits: torch.Tensor = self.program(image)[0]
        return logits


class ToGrid(MapTransform):
    """Window, normalise and resample volumes [1, X, Y, Z] in HU, axes R, A, S; narrower ones are filled up to a window.

    Args:
        keys: Of the volumes.
        spacing: Voxel size in mm along R, A, S; None keeps that of each file.
        window: Level and width in HU; None leaves values as they are.
        normalize: "zscore", "zscore_positive" (over voxels above the window's lowest value) or "none".
        side: Voxels along each side of a window.
    """

    def __init__(self, keys: Any, spacing: Any, window: Any, normalize: str, side: int) -> None:
        super().__init__(keys)
        self.spacing, self.window, self.normalize, self.side = spacing, window, normalize, side

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        found = dict(data)
        for key in map(str, self.keys):
            volume = found[key]
            image, shape, low = self._prepared(volume[0].numpy(), np.linalg.norm(volume.affine[:3, :3].numpy(), axis=0))
            found[f"{key}_place"] = {"volume": volume, "shape": shape, "low": low}
            found[key] = torch.from_numpy(image)[None]
        return found

    def _prepared(self, array: Any, sizes: Any) -> tuple[Any, tuple[int, ...], list[int]]:
        """The image, its shape on the grid, and where that begins in what was filled up."""
        array = np.ascontiguousarray(array, dtype=np.float32)
        lowest, floor = float(array.min()), 0.0
        if self.window is not None:
            level, width = self.window
            lowest = floor = level - width / 2
            array = array.clip(lowest, level + width / 2)
        mean, std = 0.0, 1.0
        if self.normalize != "none":
            chosen = array[array > floor] if self.normalize == "zscore_positive" else array
            mean, std = (
                (float(chosen.mean(dtype=np.float64)), float(chosen.std(dtype=np.float64)))
                if chosen.size
                else (floor, 1.0)
            )
            std = std if std > 1e-6 else 1.0
        shape = array.shape
        if self.spacing is not None:
            sides = zip(array.shape, sizes.tolist(), self.spacing, strict=True)
            shape = tuple(max(1, round(n * size / wanted)) for n, size, wanted in sides)
        sigma = [max(0.0, (n / m - 1) / 2) for n, m in zip(array.shape, shape, strict=True)]
        smooth = ndimage.gaussian_filter(array, sigma, mode="nearest") if any(sigma) else array
        image = (resized(smooth, shape) - np.float32(mean)) / np.float32(std)
        background = (np.float32(lowest) - np.float32(mean)) / np.float32(std)
        missing = [max(0, self.side - n) for n in shape]
        low = [m // 2 for m in missing]
        ends = [(first, m - first) for first, m in zip(low, missing, strict=True)]
        return np.pad(image, ends, constant_values=background), shape, low


class FromGrid(MapTransform):
    """Logits on the grid to a mask [1, X, Y, Z] that lies as the volume was stored.

    Args:
        keys: Of the logits.
        image_key: Of the volume.
        threshold: Probability from which a voxel is inside.
        min_volume_ml: Smaller connected parts are left out.
    """

    def __init__(self, keys: Any, image_key: str, threshold: float, min_volume_ml: float) -> None:
        super().__init__(keys)
        self.image_key, self.threshold, self.min_volume_ml = image_key, threshold, min_volume_ml

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:  # noqa: D102
        found = dict(data)
        place = found[f"{self.image_key}_place"]
        for key in map(str, self.keys):
            inner = tuple(slice(first, first + n) for first, n in zip(place["low"], place["shape"], strict=True))
            chance = torch.sigmoid(torch.as_tensor(found[key])[0][inner].float()).numpy()
            volume = place["volume"]
            native = np.clip(resized(chance, volume.shape[1:]), chance.min(), chance.max())
            mask = native >= self.threshold
            if self.min_volume_ml > 0:
                parts, count = ndimage.label(mask, structure=EVERYWHERE)
                voxel_ml = abs(float(np.linalg.det(volume.affine[:3, :3].numpy()))) / 1000
                mask &= (np.bincount(parts.ravel(), minlength=count + 1) * voxel_ml >= self.min_volume_ml)[parts]
            canonical = MetaTensor(
                torch.from_numpy(mask.astype(np.uint8))[None], affine=volume.affine, meta=volume.meta
            )
            stored = "".join(nibabel.aff2axcodes(volume.meta["original_affine"]))  # type: ignore[no-untyped-call]
            found[key] = Orientation(axcodes=stored)(canonical)
        return found


def resized(array: Any, shape: Any) -> Any:
    """Trilinear; both grids cover the same extent."""
    if tuple(array.shape) == tuple(shape):
        return array
    given = torch.from_numpy(np.ascontiguousarray(array))[None, None]
    return functional.interpolate(given, size=tuple(shape), mode="trilinear", align_corners=False)[0, 0].numpy()


def run(
    dataset: Iterable[dict[str, Any]],
    inferer: Callable[..., torch.Tensor],
    network: torch.nn.Module,
    postprocessing: Callable[..., Any],
    device: torch.device,
) -> None:
    """Segment one volume after another."""
    for item in dataset:
        with torch.inference_mode():
            item["pred"] = inferer(item["image"][None].to(device), network)[0].cpu()
        postprocessing(item)
