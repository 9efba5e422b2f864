"""Our processors give the pixels of transformers' own, whatever way they take."""

import numpy as np
import pytest
import torch

from quartet.apps.multimodal_ads.vision.processors import HubProcessor
from quartet.apps.multimodal_ads.vision.published import PUBLISHED


@pytest.mark.parametrize(
    "name", ["google/siglip2-base-patch16-224", "google/siglip2-base-patch16-naflex", "google/vit-base-patch16-224"]
)
@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_are_bit_for_bit_those_of_the_library(name: str, resample: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(300, 410), (300, 410), (224, 224), (40, 50), (1, 90), (1, 1)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    processor = HubProcessor(PUBLISHED[name].kind, {**PUBLISHED[name].processor, "resample": resample})
    library = processor._processor(images=images, return_tensors="pt", input_data_format="channels_last")
    ours = processor(images)
    assert ours.keys() == dict(library).keys()
    for key, value in ours.items():
        assert torch.equal(value, library[key].to(value.dtype)), key


def test_pictures_are_left_alone_where_the_settings_say_so() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    processor = HubProcessor("vit", {"do_resize": False, "image_mean": [0.0] * 3, "image_std": [1.0] * 3})
    (pixels,) = processor([image])["pixel_values"]
    assert torch.allclose(pixels, torch.from_numpy(image).permute(2, 0, 1) / 255)
