"""What a watched process tells: where it is, what it holds, which samples it sees; and how its phases are told."""

import contextlib
import json
import os
import signal
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from mlcore.chaos.bench import Variant
from mlcore.chaos.child import PHASES, Child, phase_of
from mlcore.chaos.command import chaos
from mlcore.chaos.inside import digest
from mlcore.chaos.soak import census, growth

SESSION = (
    '  File "/x/mlcore/run/session.py", line 80 in _act\n  File "<frozen runpy>", line 198 in _run_module_as_main\n'
)


def frames(*names: str) -> str:
    return "Current thread 0x1 (most recent call first):\n" + "".join(
        f'  File "/x/mlcore/{name.partition(":")[0]}", line 1 in {name.partition(":")[2]}\n' for name in names
    )


@pytest.mark.parametrize(
    ("stack", "phase"),
    [
        ("", "imports"),
        (frames("cli/parse.py:parse"), "imports"),
        (frames("images.py:write", "perceiver/build.py:build", "run/session.py:_train"), "cache write"),
        (frames("training/engine.py:run_window", "training/trainer.py:fit"), "step"),
        (frames("data/loader.py:epoch", "training/trainer.py:_windows", "training/trainer.py:fit"), "step"),
        (frames("training/evaluator.py:run", "training/trainer.py:_evaluate", "training/trainer.py:fit"), "evaluation"),
        (frames("training/trainer.py:_save", "training/trainer.py:fit"), "epoch boundary"),
        (frames("training/evaluator.py:run", "run/session.py:_evaluate_and_report"), "final evaluation"),
        (frames("run/session.py:_train_group"), "fold switch"),
    ],
)
def test_a_stack_tells_the_phase(stack: str, phase: str) -> None:
    assert phase_of(stack + SESSION if stack else "") == phase
    assert phase in PHASES


def test_a_later_run_of_a_group_that_is_built_is_a_switch() -> None:
    stack = frames("doc/build.py:build", "run/session.py:_train", "run/session.py:_train_group")
    assert phase_of(stack) == "cache write"
    assert phase_of(stack, later=True) == "fold switch"


WATCHED = """
import os, signal, sys, time
from dataclasses import dataclass
from mlcore.chaos import inside

@dataclass(frozen=True)
class App:
    build: object = None

inside.observed(App())
ballast = [object()]

def run_window():
    while not os.path.exists("stop"):
        time.sleep(0.001)

def fit():
    run_window()

fit()
"""


@pytest.fixture
def watched(tmp_path: Path) -> Child:
    """A process that is in a step until a file `stop` is there."""
    (tmp_path / "watched.py").write_text(textwrap.dedent(WATCHED))
    return Child(["-m", "watched"], place=tmp_path)


def test_a_process_tells_where_it_is_and_what_it_has(watched: Child) -> None:
    assert watched.until(lambda: watched.phase() == "step", timeout=60)
    assert 'watched.py", line ' in watched.stack()
    (watched.place / "run").mkdir()
    (watched.place / "run" / "metrics.csv").write_text("step,loss\n7,0.5\n")
    counted = census(watched)
    assert counted is not None
    assert counted["step"] == 7
    assert counted["objects"] > 1000
    assert counted["memory_kib"] > 1000
    (watched.place / "stop").touch()
    assert watched.wait() == 0


def test_a_process_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    started = "subprocess.Popen(['sleep', '600'], start_new_session=True)"
    code = f"import subprocess; p = {started}; print(p.pid, flush=True); p.wait()"
    child = Child(["-c", code], place=tmp_path)
    assert child.until(lambda: child.said.endswith("\n"), timeout=60)
    child.kill()
    assert child.process.returncode == -signal.SIGKILL
    started_by_it = psutil.Process(int(child.said)) if psutil.pid_exists(int(child.said)) else None
    if started_by_it is not None:  # the signal is sent, but the system may not have ended it yet
        with contextlib.suppress(psutil.TimeoutExpired):
            started_by_it.wait(30)
        assert not started_by_it.is_running() or started_by_it.status() == psutil.STATUS_ZOMBIE


def test_a_file_that_is_begun_tells_of_a_half_written_checkpoint(watched: Child) -> None:
    folder = watched.place / "run" / "folds" / "fold_1" / "checkpoints"
    folder.mkdir(parents=True)
    assert not watched.half_written()
    (folder / ".step_00000003.pth.1234abcd.partial").touch()
    assert watched.phase() == "half-written checkpoint"
    watched.kill()


def test_a_digest_changes_with_any_bit_and_with_the_shape() -> None:
    batch = {"x": torch.zeros(2, 3), "name": ["a", "b"]}
    others = [
        {"x": torch.zeros(3, 2), "name": ["a", "b"]},
        {"x": torch.zeros(2, 3, dtype=torch.int32), "name": ["a", "b"]},
        {"x": -torch.zeros(2, 3), "name": ["a", "b"]},
        {"x": torch.zeros(2, 3), "name": ["b", "a"]},
        {"y": torch.zeros(2, 3), "name": ["a", "b"]},
    ]
    assert digest(batch) == digest({"x": torch.zeros(2, 3), "name": ["a", "b"]})
    assert digest(batch) not in map(digest, others)
    assert len(set(map(digest, others))) == len(others)


def test_growth_is_found_and_a_full_cache_is_none() -> None:
    flat = [{"memory_kib": 1000 + min(k, 5), "handles": 8, "threads": 2, "objects": 500} for k in range(40)]
    assert growth(flat) is None
    assert growth([*flat[:-1], {**flat[-1], "handles": 9}]) is None, "a file that was open just then"
    growing = [{**row, "objects": row["objects"] + number} for number, row in enumerate(flat)]
    assert str(growth(growing)).startswith("objects grew from 514 to 534")
    assert "too short" in str(growth(flat[:3]))


# A run that counts to 60 in a file, as a training with checkpoints does, and is slow enough to be killed.
RUN = """
import json, os, pathlib, sys, time
folder = pathlib.Path("run")
folder.mkdir(exist_ok=True)
count = folder / "metrics.jsonl"
done = len(count.read_text().splitlines()) if count.exists() else 0
(folder / "argv").write_text(" ".join(sys.argv[1:]))
{flaw}
for step in range(done, 60):
    with count.open("a") as file:
        file.write(json.dumps({{"step": step}}) + "\\n")
    time.sleep(0.01)
"""


@pytest.mark.parametrize("flaw", ["", "done -= done > 0"], ids=["exact", "a row twice"])
def test_kills_tell_a_run_that_goes_on_exactly_from_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flaw: str
) -> None:
    (tmp_path / "counts.py").write_text(RUN.format(flaw=flaw))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("mlcore.chaos.kills.VARIANTS", (Variant("plain"),))
    app: Any = SimpleNamespace(name="counts", title="Counting", rehearsal=("--small",))
    arguments = ["--faults", "kill", "--kills", "8", "--output", str(tmp_path / "out"), "--", "--more"]
    code = chaos(arguments, app=app, command=["-m", "counts"], prog="quartet chaos counts")
    (row,) = json.loads((tmp_path / "out" / "chaos.json").read_text("utf-8"))["faults"]
    assert code == bool(flaw)
    assert row["tries"] == 8
    assert (row["passed"] == 8) == (not flaw)
    assert bool(flaw) == any("metrics.jsonl[" in problem for problem in row["problems"])
    given = (tmp_path / "out" / "whole_1" / "run" / "argv").read_text()
    assert given.startswith("--small --more ")
    shown = capsys.readouterr().out + (tmp_path / "out" / "report.html").read_text("utf-8")
    assert shown.count(f"{row['passed']} of 8 as they should be") == 2, "on the terminal and on the page"
