"""The model is the released one: its names, its shapes, and its outputs for weights that a rule makes."""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from quartet.apps.sam_med3d_ich.model.sam import PRESETS, SamMed3D

_NORM_WEIGHTS = tuple(
    f"{name}.weight" for name in ("neck.1", "neck.3", "output_upscaling.1", "mask_downscaling.1", "mask_downscaling.4")
)
_POINTS = (torch.tensor([[[40.0, 52.0, 60.0], [80.0, 20.0, 100.0]]]), torch.tensor([[1, 0]]))


def rule(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The values that the reference outputs were made with."""
    x = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape, dtype=np.float32)
    if key.endswith("positional_encoding_gaussian_matrix"):
        return x
    if ".norm" in key or key.endswith(_NORM_WEIGHTS):
        return 1 + np.float32(0.1) * x if key.endswith("weight") else np.float32(0.1) * x
    return np.float32(0.3 if "rel_pos_" in key or key.endswith("qkv.bias") else 0.03) * x


def difference(value: Tensor, expected: NDArray[np.float32]) -> float:
    """Norm of the difference over the norm of what is expected."""
    assert tuple(value.shape) == expected.shape
    there = torch.from_numpy(expected).double()
    return float((value.detach().double() - there).norm() / there.norm().clamp_min(1e-30))


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shapes(released: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released checkpoint."""
    text = (released / "state_dict.json").read_text(encoding="utf-8")
    return {key: tuple(shape) for key, shape in json.loads(text).items()}


@pytest.fixture(scope="module")
def model(shapes: Mapping[str, tuple[int, ...]]) -> SamMed3D:
    """The released architecture, filled by the rule under the released names."""
    made = SamMed3D(PRESETS["vit_b_ori"])
    made.load_state_dict({key: torch.from_numpy(rule(key, shape)) for key, shape in shapes.items()}, strict=True)
    return made.eval()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    """Image and mask prompt."""
    generator = np.random.Generator(np.random.PCG64(12345))
    image = generator.standard_normal((1, 1, 128, 128, 128), dtype=np.float32)
    mask = generator.standard_normal((1, 1, 32, 32, 32), dtype=np.float32)
    return torch.from_numpy(image), torch.from_numpy(mask)


@pytest.fixture(scope="module")
def embedding(model: SamMed3D, inputs: tuple[Tensor, Tensor], two_threads: None) -> Tensor:
    with torch.no_grad():
        value: Tensor = model.image_encoder(inputs[0])
    return value


@pytest.fixture(scope="module")
def expected(released: Path) -> Mapping[str, NDArray[np.float32]]:
    with np.load(released / "expected.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def test_names_and_shapes_are_those_of_the_released_checkpoint(shapes: Mapping[str, tuple[int, ...]]) -> None:
    with torch.device("meta"):
        ours = SamMed3D(PRESETS["vit_b_ori"]).state_dict()
    assert len(shapes) == 324
    assert {key: tuple(value.shape) for key, value in ours.items()} == shapes


def test_image_embedding(expected: Mapping[str, NDArray[np.float32]], embedding: Tensor) -> None:
    assert difference(embedding, expected["image_embedding"]) < 1e-5


def test_position_encoding_of_the_grid(expected: Mapping[str, NDArray[np.float32]], model: SamMed3D) -> None:
    assert difference(model.prompt_encoder.dense_pe(), expected["dense_pe"]) < 1e-5


@pytest.mark.parametrize("prompt", ["points", "points_mask", "mask"])
def test_prompts_and_masks(
    expected: Mapping[str, NDArray[np.float32]],
    model: SamMed3D,
    inputs: tuple[Tensor, Tensor],
    embedding: Tensor,
    prompt: str,
) -> None:
    points = _POINTS if "points" in prompt else None
    mask = inputs[1] if "mask" in prompt else None
    with torch.no_grad():
        sparse = torch.zeros(1, 0, 384) if points is None else model.prompt_encoder.points(*points)
        dense = model.prompt_encoder.mask(mask, batch=1)
        if mask is None:  # constant, of which one voxel is stored
            assert torch.equal(dense, dense[..., :1, :1, :1].expand_as(dense))
            dense = dense[..., :1, :1, :1]
        found = {"sparse": sparse, "dense": dense}
        for word, multimask in (("single", False), ("multi", True)):
            logits, iou = model.decode(embedding, points=points, mask=mask, multimask=multimask)
            found |= {f"low_res_masks_{word}": logits, f"iou_{word}": iou}
    wanted = {key.partition("/")[2]: array for key, array in expected.items() if key.startswith(f"{prompt}/")}
    assert wanted.keys() == found.keys()
    assert {name: value for name, array in wanted.items() if (value := difference(found[name], array)) >= 1e-4} == {}
