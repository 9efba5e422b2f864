"""Models small enough for tests, filled so that no part of them is silent, and the real reference where it is there."""

import functools
import locale
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from tests.scripts import run_script

TINY = EncoderShape(
    image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, window=3, global_blocks=(1,), out_channels=48
)
RELEASED = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "sam_med3d"

MakeModel = Callable[..., IchModel]


@pytest.fixture(autouse=True, scope="module")
def _locale_as_it_was() -> Iterator[None]:
    """Tests write DICOM files with ITK, which changes the process to the C locale."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def fill(model: nn.Module, *, seed: int = 0, scale: float = 0.2) -> None:
    """Random values in every parameter; fresh models have zeros in tables and biases, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale
            is_norm = name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(1 + noise if is_norm else noise)
        for buffer in model.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=generator))


@pytest.fixture
def tiny_shape() -> EncoderShape:
    """An encoder of 4^3 tokens whose windows of 3 do not divide the grid."""
    return TINY


@pytest.fixture
def tiny_model() -> MakeModel:
    """`tiny_model(seed=1, prompted=True)`: a model of crops of 16^3 with random weights, in evaluation mode."""

    def make(*, seed: int = 0, shape: EncoderShape = TINY, **options: Any) -> IchModel:
        model = IchModel(shape, visual_tokens=8, **options)
        fill(model, seed=seed)
        return model.eval()

    return make


@pytest.fixture
def filled() -> Callable[..., None]:
    """`filled(model, seed=0, scale=0.2)` sets every parameter and buffer to random values."""
    return fill


SMALL = ["--demo", "--num_train", "3", "--num_val", "2", "--max_steps", "2", "--num_workers", "0", "--num_threads", "1"]
SMALL += ["--spacing", "6", "6", "6", "--overlap", "0", "--no_tensorboard", "--eval_every", "1", "--batch_size", "2"]
PROMPTED = ["--prompt_mode", "clicks", "--num_clicks", "2", "--refine_masks"]


@pytest.fixture(scope="session")
def small() -> Sequence[str]:
    """Flags of a training of seconds."""
    return SMALL


@pytest.fixture(scope="session")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the generated heads that `trained` is trained with: images, masks, train.csv, val.csv."""
    return tmp_path_factory.mktemp("heads") / "phantoms"


@pytest.fixture(scope="session")
def folders(heads: Path) -> Sequence[str]:
    """Flags that name them and their cache."""
    return ["--phantom_dir", str(heads), "--cache_dir", str(heads.parent / "cache")]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, folders: Sequence[str]) -> Callable[[str], Path]:
    """`trained("plain")`, "clicks" or "score" (rule of the decision): the folder of a run of two steps."""

    @functools.cache
    def train(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "run"
        more = {"clicks": PROMPTED, "score": ["--decision_rule", "score"]}.get(name, [])
        ended = run_script("apps/sam_med3d_ich/train.py", *SMALL, *folders, *more, "--output_dir", folder)
        assert not ended.code, ended.out + ended.err
        return folder

    return train


@pytest.fixture(scope="session")
def released() -> Path:
    """Folder with the metadata of the released model; tests that need it are skipped where it is absent."""
    if not (RELEASED / "expected.npz").is_file():
        pytest.skip(f"reference outputs of the released model not found at {RELEASED}")
    return RELEASED
