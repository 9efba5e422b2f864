"""Runs of the app small enough for tests, made once, and the scripts run inside the test's process."""

import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.scripts import Ended, run_script

TINY = shlex.split("""
--d_model 16 --num_heads 2 --num_latents 4 --num_cross_attention_layers 1 --num_self_attention_layers 1 --epochs 1
--batch_size 8 --num_workers 0 --num_threads 1 --no_tensorboard
""")


Script = Callable[..., Ended]


def run(name: str, *arguments: str | Path) -> Ended:
    """Run a script of the app in this process."""
    return run_script(f"apps/perceiver/{name}.py", *arguments)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """`script("train", "--lr", "1e-3")` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture(scope="session")
def tiny() -> Sequence[str]:
    """Flags of a model and a training that take a second."""
    return TINY


def _train(folder: Path, *arguments: str | Path) -> Path:
    ended = run("train", *TINY, "--output_dir", folder, *arguments)
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="session")
def series_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on generated series of 4 channels and 3 classes, 5 to 12 long."""
    data = "--dataset synthetic --num_samples 60 --seq_len_range 5 12 --feature_dim 4 --num_classes 3 --lr 1e-2"
    return _train(tmp_path_factory.mktemp("series") / "run", *shlex.split(data))


def _pictures(root: Path, rng: np.random.Generator) -> None:
    for label, low in (("dark", 0), ("light", 128)):
        (root / label).mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(low, low + 128, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 images, 16 x 16, in two classes."""
    root = tmp_path_factory.mktemp("images") / "photos"
    _pictures(root, np.random.default_rng(0))
    return root


@pytest.fixture(scope="session")
def image_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A run on those images, with a conv stem."""
    data: list[str | Path] = [
        "--dataset",
        "image_folder",
        "--data_dir",
        pictures,
        "--patch_size",
        "8",
        "--val_fraction",
        "0.3",
    ]
    data += ["--stem", "conv", "--stem_channels", "32"]
    return _train(tmp_path_factory.mktemp("image_run") / "run", *data)


@pytest.fixture(autouse=True)
def _loggers_as_they_were() -> Iterator[None]:
    """Scripts direct the loggers to their own streams, which are gone after the test."""
    yield
    for logger in map(logging.getLogger, ("mlcore", "quartet")):
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
