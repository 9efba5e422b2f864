"""Sweeps: every job a process with its own folder; finished ones are skipped, others taken up again."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    from mlcore.cli.main import run_app
    from mlcore.cli.app import App
    from mlcore.config.section import Section, field
    from mlcore.config.sections import RunConfig, TrainConfig

    class ToyConfig(Section):
        run: RunConfig = field(RunConfig(), "Run")
        train: TrainConfig = field(TrainConfig(), "Training")
        hub_token: str | None = field(None, "Token")

    def act(invocation):
        config = invocation.config
        folder = Path(config.run.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "starts").open("a") as file:
            file.write(f"{config.train.lr} {config.train.batch_size} {invocation.action}\\n")
        if config.hub_token is not None:
            (folder / "length").write_text(str(len(config.hub_token)))
        if config.train.epochs in (75, 76) and not Path("mended").exists():
            return config.train.epochs
        if config.train.epochs == 13 and not Path("mended").exists():
            return 3
        if config.train.epochs == 99 and not Path("mended").exists():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
            Path("ready").write_text(str(os.getpid()))
            signal.pause()
        return 0

    toy = App(
        name="toy",
        title="Toy",
        description="toy",
        config_cls=ToyConfig,
        config_dir=Path("configs"),
        build=None,
        run_name=None,
        own_data="",
    )
    run_app(toy, act)
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "default.yaml").touch()
    return tmp_path


def start(workplace: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "script.py", *arguments],
        cwd=workplace,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sweep(workplace: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = start(workplace, "-m", *arguments, **environment)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def states(workplace: Path) -> list[dict[str, Any]]:
    (file,) = workplace.glob("outputs/toy/multirun/*/sweep.json")
    jobs: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))["jobs"]
    return jobs


def starts(workplace: Path) -> list[str]:
    files = sorted(workplace.glob("outputs/toy/multirun/*/*/starts"))
    return [line for file in files for line in file.read_text("utf-8").splitlines()]


def test_two_by_two_gives_four_runs_and_a_table(workplace: Path) -> None:
    code, out, err = sweep(workplace, "lr=1.0,2.0", "--batch_size", "4,8", "--dry_run")
    assert (code, err) == (0, "")
    assert starts(workplace) == [f"{lr} {size} dry_run" for lr in ("1.0", "2.0") for size in (4, 8)]
    folders = sorted(path.parent.name for path in workplace.glob("outputs/toy/multirun/*/*/starts"))
    assert folders[1] == "2-lr=1.0,batch_size=8"
    assert out.count("finished") == 4


def test_secrets_reach_the_jobs_and_neither_names_nor_files_nor_the_terminal(workplace: Path) -> None:
    for _ in range(2):  # the second time from what the first has written
        code, out, err = sweep(workplace, "hub_token=first-secret,other-secret-1", "lr=1,2", "epochs=13")
        assert (code, err) == (1, "")
        assert "secret" not in out
    assert sorted(int(path.read_text()) for path in workplace.rglob("length")) == [12, 12, 14, 14]
    names = [path for path in workplace.rglob("*") if "secret" in path.name]
    files = [path for path in (workplace / "outputs").rglob("*") if path.is_file() and b"secret" in path.read_bytes()]
    assert (names, files) == ([], [])
    assert [job["overrides"][0] for job in states(workplace)] == ["hub_token=***"] * 4


def test_the_same_sweep_again_skips_finished_jobs_and_tries_failed_ones(workplace: Path) -> None:
    arguments = ("epochs=1,13,2", "lr=1.0")
    code, out, _ = sweep(workplace, *arguments)
    assert code == 1
    assert [job["status"] for job in states(workplace)] == ["finished", "failed", "finished"]
    assert "exit code 3" in out
    (workplace / "mended").touch()
    code, out, _ = sweep(workplace, *arguments)
    assert code == 0
    assert len(starts(workplace)) == 4  # only the failed one ran again
    assert out.count(" -> ") == 1


def test_a_stopped_sweep_stops_its_job_and_goes_on_later_in_the_same_folder(workplace: Path) -> None:
    arguments = ("epochs=99,1", "lr=1.0")
    process = start(workplace, "-m", *arguments)
    wait_for(workplace / "ready", process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert [(job["status"], job["exit_code"]) for job in states(workplace)] == [("interrupted", 75), ("pending", None)]
    (workplace / "mended").touch()
    assert sweep(workplace, *arguments)[0] == 0
    assert [job["status"] for job in states(workplace)] == ["finished", "finished"]
    assert len(list(workplace.glob("outputs/toy/multirun/*/*/starts"))) == 2


@pytest.mark.parametrize(("epochs", "code"), [("76,1", 76), ("75,76", 75), ("13,76", 76)])
def test_a_sweep_tells_that_a_job_is_to_go_on(workplace: Path, epochs: str, code: int) -> None:
    arguments = (f"epochs={epochs}", "lr=1.0")
    assert sweep(workplace, *arguments)[0] == code
    assert "interrupted" in [job["status"] for job in states(workplace)]
    assert len(starts(workplace)) == 2, "the other job has had its turn"
    (workplace / "mended").touch()
    assert sweep(workplace, *arguments)[0] == 0


def test_a_job_that_outlives_its_killed_sweep_is_not_started_twice(workplace: Path) -> None:
    arguments = ("epochs=99,1", "lr=1.0")
    process = start(workplace, "-m", *arguments)
    job = int(wait_for(workplace / "ready", process))
    process.kill()
    process.wait(timeout=60)
    code, _, err = sweep(workplace, *arguments)
    os.kill(job, signal.SIGKILL)
    process.communicate(timeout=60)
    assert (code, "still running" in err) == (2, True)
    (workplace / "mended").touch()
    assert sweep(workplace, *arguments)[0] == 0


def test_a_mistake_in_any_job_is_told_before_the_first_starts(workplace: Path) -> None:
    code, _, err = sweep(workplace, "lr=1.0,x")
    assert code == 2
    assert "train.lr = x" in err
    assert not (workplace / "outputs").exists()


def test_a_given_folder_holds_one_sweep(workplace: Path) -> None:
    assert sweep(workplace, "lr=1.0,2.0", "output_dir=mine")[0] == 0
    assert (workplace / "mine" / "2-lr=2.0" / "starts").exists()
    code, _, err = sweep(workplace, "lr=1.0,3.0", "output_dir=mine")
    assert (code, "belongs to another sweep" in err) == (2, True)


def test_sweeps_are_not_run_by_every_rank(workplace: Path) -> None:
    code, _, err = sweep(workplace, "lr=1.0,2.0", WORLD_SIZE="2")
    assert (code, "cannot run under torchrun" in err) == (2, True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    """Content of a file that a job writes once it is up; polls the process, so that a crash does not hang the test."""
    while not (path.exists() and path.read_text("utf-8")):
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(process.communicate())
    return path.read_text("utf-8")


def test_a_sweep_goes_where_the_app_has_its_runs(workplace: Path) -> None:
    script = workplace / "script.py"
    script.write_text(script.read_text("utf-8").replace('description="toy"', 'description="toy", root=Path("runs")'))
    code, _, err = sweep(workplace, "lr=1.0,2.0")
    assert code == 0, err
    assert len(list(workplace.glob("runs/multirun/*/*/starts"))) == 2
    assert not (workplace / "outputs").exists()
