"""Drawn pages and tiny runs, shared by the tests of the app."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from quartet.apps.doc_ensemble.data.generated import write_generated
from tests.scripts import run_script

TINY = shlex.split("""
model.model_name=test_resnet model.name=tiny --no_pretrained model.image_size=[64,48] --in_channels 1 --epochs 1
--batch_size 16 --num_workers 0 --num_threads 1 --device cpu --no_tensorboard --warmup_steps 1 --augmentation.name light
""")

Run = Callable[..., tuple[int, str]]


def run_of_app(name: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a script of the app in this process; its exit code and what it said."""
    ended = run_script(f"apps/doc_ensemble/{name}.py", *arguments)
    return ended.code, ended.out + ended.err


@pytest.fixture(scope="session")
def run() -> Run:
    return run_of_app


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings of a run that takes a second or two."""
    return list(TINY)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn pages of 17 types in train/, val/ and test/: 102, 34 and 34."""
    folder = tmp_path_factory.mktemp("pages") / "set"
    write_generated(folder, train=102, val=34, test=34, seed=1)
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, run: Run, tiny: list[str], pages: Path) -> tuple[Path, str]:
    """A run on the drawn pages, and what it said."""
    folder = tmp_path_factory.mktemp("run") / "plain"
    code, said = run("run_experiment", *tiny, "--data_dir", pages, "--output_dir", folder)
    assert code == 0, said
    return folder, said
