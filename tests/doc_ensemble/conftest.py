"""Drawn pages and tiny runs, shared by the tests of the app."""

import contextlib
import io
import runpy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.doc_ensemble.data.generated import write_generated

APP = Path(__file__).resolve().parents[2] / "apps" / "doc_ensemble"
TINY = shlex.split("""
model.model_name=test_resnet model.name=tiny --no_pretrained model.image_size=[64,48] --in_channels 1 --epochs 1
--batch_size 16 --num_workers 0 --num_threads 1 --device cpu --no_tensorboard --warmup_steps 1 --augmentation.name light
""")

Run = Callable[..., tuple[int, str]]


def run_script(name: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a script of the app in this process; its exit code and what it said."""
    said = io.StringIO()
    before = sys.argv
    sys.argv = [str(APP / f"{name}.py"), *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0), said.getvalue()
    finally:
        sys.argv = before
    raise AssertionError(f"{name}.py did not exit")


@pytest.fixture(scope="session")
def run() -> Run:
    return run_script


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
