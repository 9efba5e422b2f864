"""A run that is killed goes on to the same bits, whatever its series are read from."""

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.perceiver.test_long_tables import rows, save
from tests.perceiver.test_resume_after_kill import assert_a_kill_changes_nothing
from tests.perceiver.test_stored_arrays import arrays, store
from tests.perceiver.test_tasks import SETTINGS


def stamped(folder: Path) -> None:
    lines = [f"({k},{k % 5}),({k + 1 + k % 3},{k % 3}):(0,1),({k % 7 + 1},2):{'ab'[k % 2]}" for k in range(40)]
    header = "@timeStamps true\n@univariate false\n@dimensions 2\n@classLabel true a b\n@data\n"
    (folder / "T_TRAIN.ts").write_text(header + "\n".join(lines), "utf-8")


KINDS: Mapping[str, tuple[Callable[[Path], object], str]] = {
    "long": (
        lambda folder: save(folder / "t.parquet", rows(40)),
        "--dataset long --train_path t.parquet --id_column unit --time_column at --position fourier",
    ),
    "folder": (
        lambda folder: store(folder / "own", arrays(40)),
        "--dataset custom --train_path own --on_missing mask --on_bad_sample skip --series_patch 2",
    ),
    "ts": (stamped, "--dataset ts --train_path T_TRAIN.ts --on_missing interpolate"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_bit_identical(
    kind: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, flags = KINDS[kind]
    write(tmp_path)
    settings = SETTINGS.replace("--dataset custom --train_path train.npz", flags).replace("--epochs 4", "--epochs 8")
    command = [sys.executable, str(repository / "apps" / "perceiver" / "train.py"), *shlex.split(settings)]
    assert_a_kill_changes_nothing(command, tmp_path, after=15)
