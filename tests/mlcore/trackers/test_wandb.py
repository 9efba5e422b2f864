"""Each session is a process of its own, as in life: W&B delivers through a service that ends with the process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcore.trackers.wandb import read_wandb_file
from tests.mlcore.trackers.written import read_csv, read_wandb_history

RUN = "testrun1"
PRIVATE = "do-not-tell-anyone"

SESSION = """
import logging, os, pathlib, signal, sys
from mlcore.trackers import wandb
from mlcore.trackers.base import Trackers
from mlcore.trackers.table import TableTracker, read_history

folder, start, stop, mode, end = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:6]
wandb._START_SECONDS = 2.0  # the service on this machine needs a fraction of it
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
trackers = Trackers(
    {
        "table": lambda: TableTracker(folder, resume_step=start - 1),
        "W&B": lambda: wandb.WandbTracker(
            folder, project="p", name="n", mode=mode, run_id="testrun1", history=read_history(folder),
            config={"learning_rate": 1e-3, "wandb": {"api_key": "do-not-tell-anyone"}},
        ),
    },
    state={"wandb_run_id": "testrun1"},
)
for step in range(start, stop):
    trackers.log(step, {"train/loss": 1 / (step + 3), "train/lr": 1e-3 * 0.9**step})
    if step % 3 == 2:
        trackers.log(step, {"val/accuracy": step / 7})
assert trackers.state() == {"wandb_run_id": "testrun1"}
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
trackers.close(status="finished")
print("training ended normally")
"""


def session(
    folder: Path,
    start: int,
    stop: int,
    *,
    mode: str = "offline",
    end: str = "close",
    cwd: Path | None = None,
    **env: str,
) -> str:
    """Run one session and return everything it wrote to the terminal."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(folder), str(start), str(stop), mode, end, "--hub_token", PRIVATE],
        env={**clean, "HOME": str(folder), **env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0), done.stderr
    return done.stdout + done.stderr


def test_the_offline_history_equals_the_table(tmp_path: Path) -> None:
    assert session(tmp_path, 0, 30) == "training ended normally\n"
    rows = read_csv(tmp_path / "metrics.csv")
    assert len(rows) == 30
    assert read_wandb_history(tmp_path, RUN) == dict(rows)
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"learning_rate" in content
    assert PRIVATE.encode() not in content
    whole = read_wandb_file(file)
    for length in range(7, len(content), 97):  # a file cut anywhere gives its whole rows
        file.write_bytes(content[:length])
        rows_before = read_wandb_file(file)
        assert rows_before == whole[: len(rows_before)]


def test_killed_and_resumed_sessions_merge_to_the_table_without_duplicates(tmp_path: Path) -> None:
    session(tmp_path, 0, 9, end="kill")
    session(tmp_path, 6, 11, end="kill")  # from a checkpoint at step 5
    session(tmp_path, 9, 14)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    steps = [step for file in files for step, _ in read_wandb_file(file)]
    assert len(files) == 3
    assert steps == list(range(14))
    assert read_wandb_history(tmp_path, RUN) == dict(read_csv(tmp_path / "metrics.csv"))


TWO = """
import pathlib, sys
from mlcore.trackers.wandb import WandbTracker

folder = pathlib.Path(sys.argv[1])
outer = WandbTracker(folder / "outer", project="p", entity="team", name="outer", mode="offline", config={})
inner = WandbTracker(folder / "inner", project="p", entity="team", name="inner", mode="offline", config={})
assert outer.state() != inner.state()
assert outer._run.settings.entity == "team"
for tracker, value in ((inner, 1.0), (outer, 2.0)):
    tracker.log(0, {"train/loss": value})
    tracker.close(status="finished")
    print(tracker.state()["wandb_run_id"])
"""


def test_a_run_inside_another_is_a_run_of_its_own(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", TWO, str(tmp_path)],
        env={**clean, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for name, run, value in zip(("inner", "outer"), done.stdout.split(), (1.0, 2.0), strict=True):
        assert read_wandb_history(tmp_path / name, run) == {0: {"train/loss": value}}


@pytest.mark.slow
def test_rows_that_no_session_delivered_are_filled_in(tmp_path: Path) -> None:
    session(tmp_path, 0, 5)
    for file in tmp_path.glob("wandb/offline-run-*/*.wandb"):
        file.write_bytes(file.read_bytes()[:-200])  # lost with the power: the end of the file
    assert len(read_wandb_history(tmp_path, RUN)) < 5
    session(tmp_path, 5, 8)
    assert read_wandb_history(tmp_path, RUN) == dict(read_csv(tmp_path / "metrics.csv"))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_with_a_dead_server_training_ends_normally_with_one_warning(tmp_path: Path) -> None:
    output = session(tmp_path, 0, 5, mode="online", WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="0" * 40)
    [warning, end] = output.splitlines()[::-1]
    assert warning.startswith("WARNING W&B cannot start, training goes on without it: ")
    assert end == "training ended normally"
    assert len(read_csv(tmp_path / "metrics.csv")) == 5


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
def test_settings_that_lie_in_the_current_folder_lead_nowhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "here" / name).mkdir(parents=True)
    (tmp_path / "here" / name / "settings").write_text("[default]\nbase_url = http://evil.example\nentity = evil\n")
    output = session(Path("run"), 0, 1, cwd=tmp_path / "here", HOME=str(tmp_path), WANDB_API_KEY="0" * 40)
    assert f"W&B: {tmp_path / 'here' / name / 'settings'} is not read" in output
    [file] = tmp_path.glob("here/run/wandb/offline-run-*/*.wandb")
    assert b"evil" not in file.read_bytes()
    assert not list(tmp_path.glob(f"here/{name}/*run*"))


@pytest.mark.slow
def test_a_server_that_never_answers_is_a_dead_server(tmp_path: Path, silent_server: str) -> None:
    output = session(tmp_path, 0, 5, mode="online", WANDB_BASE_URL=silent_server, WANDB_API_KEY="0" * 40)
    assert output.count("WARNING") == 1
    assert output.startswith("training ended normally\n")


@pytest.mark.slow
def test_without_a_key_the_run_is_logged_offline(tmp_path: Path) -> None:
    output = session(tmp_path, 0, 5, mode="online")
    assert output.count("INFO W&B: no key found") == 1
    assert "WARNING" not in output
    assert read_wandb_history(tmp_path, RUN) == dict(read_csv(tmp_path / "metrics.csv"))
