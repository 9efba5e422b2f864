"""Image processors of transformers, made from published settings without importing what these name."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import Siglip2ImageProcessor, SiglipImageProcessor, ViTImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.hub import read_json

__all__ = ["HubProcessor", "processor_settings"]

_CLASSES = {"siglip2": SiglipImageProcessor, "siglip2_naflex": Siglip2ImageProcessor, "vit": ViTImageProcessor}
_SWITCHES = {"do_resize", "do_rescale", "do_normalize"}
_NUMBERS = {"resample", "rescale_factor", "patch_size", "max_num_patches"}
_TRIPLES = {"image_mean", "image_std"}


def processor_settings(folder: Path) -> dict[str, Any]:
    """What decides about pixels in a folder's `preprocessor_config.json`; names of classes and the like are left out.

    Raises:
        UserError: The file is missing, or a value is not of its kind.
    """
    path = folder / "preprocessor_config.json"
    with reading(path, "the settings of an image processor"):
        return _settings(path)


def _settings(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for key, value in read_json(path).items():
        if key == "size":
            settings[key] = _size(value, path)
        elif key in _SWITCHES:
            settings[key] = bool(value)
        elif key in _NUMBERS and isinstance(value, int | float):
            settings[key] = value
        elif key in _TRIPLES and isinstance(value, list) and len(value) == 3:
            settings[key] = [float(number) for number in value]
        elif key in _NUMBERS | _TRIPLES:
            raise UserError(f"{path}: {key} is {value!r}; expected {'a number' if key in _NUMBERS else '3 numbers'}")
    return settings


def _size(value: object, path: Path) -> dict[str, int]:
    if isinstance(value, int):
        return {"height": value, "width": value}
    if isinstance(value, dict) and all(isinstance(value.get(key), int) for key in ("height", "width")):
        return {"height": value["height"], "width": value["width"]}
    raise UserError(f"{path}: size is {value!r}; expected a number of pixels or a height and a width")


class HubProcessor:
    """An image processor of transformers.

    Args:
        kind: "siglip2", "siglip2_naflex" or "vit".
        settings: Its constructor's arguments, as `processor_settings` gives them.
    """

    def __init__(self, kind: str, settings: Mapping[str, Any]) -> None:
        self._processor = _CLASSES[kind](**settings)
        self._described = f"{kind} {json.dumps(dict(settings), sort_keys=True)} transformers {transformers.__version__}"

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """See `Processor`."""
        batch = self._processor(
            images=[self._resized(image) for image in images],
            return_tensors="pt",
            do_resize=False,
            input_data_format="channels_first",
        )
        pixels: dict[str, Tensor] = dict(batch)
        if "pixel_attention_mask" in pixels:
            pixels["pixel_attention_mask"] = pixels["pixel_attention_mask"].bool()
        return pixels

    def fingerprint(self) -> str:
        """See `Processor`."""
        return self._described

    @property
    def settings(self) -> dict[str, Any]:
        """See `Processor`."""
        own: Any = self._processor
        names = sorted(_SWITCHES | _NUMBERS | _TRIPLES)
        found = {name: getattr(own, name) for name in names if getattr(own, name, None) is not None}
        found |= {"resample": int(own.resample)} | {name: list(found[name]) for name in _TRIPLES & found.keys()}
        sides = {side: getattr(own.size, side, None) for side in ("height", "width")}
        return {**found, "size": sides} if all(sides.values()) else found

    def _resized(self, image: NDArray[np.uint8]) -> Tensor:
        """[3, h, w]: the processor's own resizing, without the copy to planes that it makes of the large image before.

        The pixels are the same; large images take a sixth of the time.
        """
        own: Any = self._processor
        planes = torch.from_numpy(image).permute(2, 0, 1)
        if not own.do_resize:
            return planes
        size = own.size
        if isinstance(own, Siglip2ImageProcessor):
            height, width, _ = image.shape
            new = get_image_size_for_max_num_patches(height, width, own.patch_size, own.max_num_patches)
            size = SizeDict(height=new[0], width=new[1])
        resized: Tensor = own.resize(planes, size, own.resample)
        return resized
