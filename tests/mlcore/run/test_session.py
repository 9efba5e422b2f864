"""One call of a training script, with a whole small app: folders, resuming, groups of runs, and what they leave."""

import gc
import json
import os
import random
import shlex
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.base.signals import EXIT_INTERRUPTED, EXIT_TIME_IS_UP, deferred
from mlcore.base.version import code_version
from mlcore.cli.parse import parse
from mlcore.run import preflight, session
from mlcore.run.session import run
from mlcore.training.checkpoint import CheckpointError, load_checkpoint
from mlcore.training.memory import checkpoint_bytes
from mlcore.training.trainer import Trainer
from tests.mlcore.run import toy
from tests.mlcore.run.toy import toy_app

Call = Callable[..., int]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the toy with these arguments in `tmp_path`; the folder of runs is `runs`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> int:
        app = toy_app(tmp_path)
        return run(app, parse(app, [str(argument) for argument in arguments]))

    return call


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return values


def weights(folder: Path, name: str = "latest_model.pth") -> torch.Tensor:
    tensor: torch.Tensor = load_checkpoint(folder / "checkpoints" / name)["model"]["weight"]
    return tensor


def interrupted_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process in the training step of this number, once."""
    advance, done = Trainer._advance, [0]

    def advancing(self: Trainer, window: Any) -> bool:
        done[0] += 1
        if done[0] == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(self, window)

    monkeypatch.setattr(Trainer, "_advance", advancing)


def test_a_run_leaves_its_folder_with_everything_in_it(call: Call, tmp_path: Path) -> None:
    assert call() == 0
    (folder,) = (tmp_path / "runs/line").iterdir()
    record, summary = read(folder / "run.json"), read(folder / "summary.json")
    assert record["status"] == summary["status"] == "finished"
    assert record["code"] == code_version(Path(toy.__file__).parent)  # of the app's code, wherever the core's is
    assert list(summary["results_of_best_checkpoint"]) == ["val", "test"]
    assert summary["results_of_best_checkpoint"]["test"]["n"] == 6
    assert (folder / "finished.txt").read_text() == "finished"
    assert {"report.html", "summary.md", "config.yaml", "metrics.csv", "train.log"} <= {
        p.name for p in folder.iterdir()
    }
    assert "a toy" in (folder / "summary.md").read_text("utf-8")


def test_the_end_of_a_run_says_how_to_use_it(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("--train.epochs", "3", "--output_dir", "my run") == 0
    said, report = capsys.readouterr().out, Path("my run/summary.md").read_text("utf-8")
    commands = [line.strip() for line in said.partition("report: ")[2].splitlines() if "my run" in line]
    for command in commands[1:]:
        assert f"    {command}\n" in report  # the same in the head of the report
    assert "validation loss" in said.partition("report: ")[2]
    assert "| train.epochs | 3 | " in report.replace("\\_", "_")
    (on,) = [command for command in commands if " train toy " in command]
    arguments = shlex.split(on.partition(" train toy ")[2])
    assert call(*arguments) == 0  # the command works as it stands
    assert read(tmp_path / "my run/summary.json")["progress"]["epoch"] == 6


def test_a_run_goes_where_it_is_told(call: Call, tmp_path: Path) -> None:
    assert call("--output_dir", tmp_path / "mine", "--line.has_test", "false") == 0
    assert not (tmp_path / "runs").exists()
    assert list(read(tmp_path / "mine/summary.json")["results_of_best_checkpoint"]) == ["val"]


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        assert call() == EXIT_INTERRUPTED
    (folder,) = (tmp_path / "runs/line").iterdir()
    assert read(folder / "run.json")["status"] == "interrupted"
    assert not (folder / "summary.json").exists()
    assert call() == 0  # the same command
    assert [path.name for path in (tmp_path / "runs/line").iterdir()] == [folder.name]
    assert call("--output_dir", tmp_path / "whole") == 0
    assert torch.equal(weights(folder), weights(tmp_path / "whole"))


def test_the_checkpoint_that_a_run_goes_on_from_does_not_stay_in_memory(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_after(3, monkeypatch)
    assert call("--output_dir", tmp_path / "run") == EXIT_INTERRUPTED
    read_from, alive = list[weakref.ref[torch.Tensor]](), list[bool]()
    take_over, fit = Trainer.load_state_dict, Trainer.fit

    def taking_over(self: Trainer, state: Any, *, source: Path | str) -> None:
        read_from.append(weakref.ref(state["model"]["weight"]))
        take_over(self, state, source=source)

    def fitting(self: Trainer) -> Any:
        gc.collect()
        alive.extend(tensor() is not None for tensor in read_from)
        return fit(self)

    monkeypatch.setattr(Trainer, "load_state_dict", taking_over)
    monkeypatch.setattr(Trainer, "fit", fitting)
    assert call("--output_dir", tmp_path / "run") == 0
    assert alive == [False]


def test_what_does_not_fit_is_refused_before_a_file_of_the_run_is_touched(call: Call, tmp_path: Path) -> None:
    assert call("--output_dir", tmp_path / "run") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir() if path.name not in LIVE}
    with pytest.raises(CheckpointError, match="class_names"):
        call("--output_dir", tmp_path / "run", "line.classes=[up, down]", "--epochs", "3")
    with pytest.raises(UserError, match=r"finished \(train.lr 0.1 -> 0.2\).*nothing"):
        call("--output_dir", tmp_path / "run", "--lr", "0.2")
    with pytest.raises(UserError, match="already holds a run"):
        call("--output_dir", tmp_path / "run", "--resume", "never")
    assert before == {path: path.stat().st_mtime_ns for path in before}


LIVE = ("run.lock", "train.log")


def test_a_failed_run_says_why_and_a_folder_without_a_run_goes_again(call: Call, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        call("line.broken_seed=42", "--seed", "42")
    assert not (tmp_path / "runs").exists()


def test_the_rate_finder_leaves_runs_alone(call: Call, tmp_path: Path) -> None:
    assert call("--lr_find") == 0
    (folder,) = (tmp_path / "runs/line/lr_find").iterdir()
    assert (folder / "lr_finder.png").is_file()
    assert not (folder / "checkpoints").exists()


def test_a_dry_run_keeps_nothing(call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--dry_run") == 0
    told = capsys.readouterr().out
    assert "dry run passed" in told
    assert "planned peak memory of cpu: " in told
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


def test_a_damaged_best_checkpoint_is_set_aside_and_said(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate, folder = session.evaluate_best, tmp_path / "run"
    best = folder / "checkpoints/best_model.pth"

    def damaging(*args: Any, **more: Any) -> Any:
        with best.open("r+b") as file:
            file.seek(best.stat().st_size // 2)
            file.write(b"damage")
        return evaluate(*args, **more)

    monkeypatch.setattr(session, "evaluate_best", damaging)
    assert call("--output_dir", folder) == 0
    summary, report = (folder / "summary.md").read_text("utf-8"), (folder / "report.html").read_text("utf-8")
    for text in (summary, report, (folder / "train.log").read_text("utf-8")):
        assert "damaged, the checksum" in text
        assert "It is set aside" in text
    assert "last weights at step 8 of 8" in summary
    assert not best.exists()
    assert best.with_name("best_model.pth.damaged").is_file()
    assert read(folder / "summary.json")["results_of_best_checkpoint"]["val"]["n"] == 8


# ------------------------------------------------------------------------------------------------------ runs of runs


def test_a_group_trains_each_run_and_aggregates_them(call: Call, tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert call("--line.seeds", "3", "--output_dir", job) == 0
    rows = [line.split(",") for line in (job / "seeds.csv").read_text().splitlines()]
    assert [name for name, _ in rows] == ["seed_0", "seed_1", "seed_2"]
    each = [read(job / f"seeds/{name}/summary.json")["results_of_best_checkpoint"]["val"]["loss"] for name, _ in rows]
    assert [float(loss) for _, loss in rows] == each
    assert len(set(each)) == 3  # each has a seed of its own
    assert read(job / "summary.json")["results_of_best_checkpoint"]["val"]["loss"] == sum(each) / 3
    assert read(job / "run.json")["status"] == "finished"
    assert not (job / "checkpoints").exists()


def test_a_run_of_a_group_is_what_it_is_alone(call: Call, tmp_path: Path) -> None:
    assert call("--line.seeds", "2", "--output_dir", tmp_path / "job") == 0
    assert call("--seed", "1", "--output_dir", tmp_path / "alone") == 0
    assert torch.equal(weights(tmp_path / "job/seeds/seed_1"), weights(tmp_path / "alone"))


def test_what_is_drawn_by_the_way_while_a_run_is_built_is_no_part_of_it(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points, drawn = toy.points, [0.0]

    def importing(*args: Any, **kwargs: Any) -> Any:  # as some library does that is imported here
        drawn.extend([random.random(), np.random.random()])
        return points(*args, **kwargs)

    assert call("--output_dir", tmp_path / "without") == 0
    monkeypatch.setattr(toy, "points", importing)
    assert call("--output_dir", tmp_path / "with") == 0
    assert len(drawn) > 1
    states = [
        load_checkpoint(tmp_path / name / "checkpoints/latest_model.pth")["rng"][0] for name in ("without", "with")
    ]
    assert states[0]["python"] == states[1]["python"]
    assert torch.equal(states[0]["numpy"], states[1]["numpy"])
    assert states[0]["numpy_position"] == states[1]["numpy_position"]


def test_an_interrupted_group_goes_on_in_the_run_where_it_was(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, whole = tmp_path / "job", tmp_path / "whole"
    with monkeypatch.context() as patch:
        interrupted_after(11, patch)  # in the second run, of 8 steps each
        assert call("--line.seeds", "3", "--output_dir", job) == EXIT_INTERRUPTED
    statuses = [read(path)["status"] for path in sorted(job.glob("seeds/*/run.json"))]
    assert statuses == ["finished", "interrupted"]
    assert read(job / "run.json")["status"] == "interrupted"
    assert not (job / "seeds.csv").exists()
    first = (job / "seeds/seed_0/summary.json").stat().st_mtime_ns
    assert call("--line.seeds", "3", "--output_dir", job) == 0
    assert (job / "seeds/seed_0/summary.json").stat().st_mtime_ns == first
    assert call("--line.seeds", "3", "--output_dir", whole) == 0
    assert (job / "seeds.csv").read_text() == (whole / "seeds.csv").read_text()
    assert all(torch.equal(weights(job / f"seeds/seed_{k}"), weights(whole / f"seeds/seed_{k}")) for k in range(3))


def test_a_group_whose_first_run_cannot_start_leaves_nothing(call: Call, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        call("--line.seeds", "2", "line.broken_seed=0")
    assert not (tmp_path / "runs").exists()


def test_a_group_whose_later_run_fails_keeps_what_is_finished(call: Call, tmp_path: Path) -> None:
    job = tmp_path / "job"
    with pytest.raises(RuntimeError, match="broken"):
        call("--line.seeds", "2", "line.broken_seed=1", "--output_dir", job)
    assert read(job / "run.json")["status"] == "failed"
    assert read(job / "run.json")["reason"] == "RuntimeError: this seed is broken"
    assert read(job / "seeds/seed_0/run.json")["status"] == "finished"
    assert not (job / "seeds/seed_1").exists()


def test_a_run_and_its_variants_are_compared_in_its_own_report(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert call("--line.steeper", "--output_dir", folder) == 0
    summary = read(folder / "summary.json")
    alone = read(folder / "variants/steeper/summary.json")["results_of_best_checkpoint"]
    assert summary["variants"] == {"steeper": alone}
    assert (folder / "variants.png").is_file()
    assert "Compared with its variants" in (folder / "report.html").read_text("utf-8")
    assert (folder / "checkpoints/best_model.pth").is_file()
    assert call("--output_dir", tmp_path / "plain") == 0
    assert torch.equal(weights(folder), weights(tmp_path / "plain"))


def test_a_failed_variant_costs_the_run_nothing(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> str:
        raise UserError("no such variant")

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(session, "_train_member", fail)
        with pytest.raises(UserError, match="no such variant"):
            call("--line.steeper", "--output_dir", folder)
    assert read(folder / "summary.json")["status"] == "finished"
    assert (folder / "report.html").is_file()
    assert read(folder / "run.json")["status"] == "failed"
    assert call("--line.steeper", "--output_dir", folder) == 0  # the same command trains what is missing
    assert list(read(folder / "summary.json")["variants"]) == ["steeper"]


# ---------------------------------------------------------------------------------------------------------- signals


def hit(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hit_before(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process whenever `owner.name` is called."""
    real = getattr(owner, name)

    def hitting(*args: Any, **more: Any) -> Any:
        hit()
        return real(*args, **more)

    monkeypatch.setattr(owner, name, hitting)


INSTANTS = [
    (session, "configure_torch"),
    (session, "_choose_folder"),
    (session, "RunRecord"),
    (session, "copy_of"),
    (toy, "points"),
    (preflight, "build_trainer"),
    (preflight, "unsuitable"),
    (session, "_tracker"),
    (session.OpenRun, "begin"),
    (session, "evaluate_best"),
    (session, "pages_of_run"),
    (session.OpenRun, "write"),
]


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """What a run that nothing interrupts ends with."""
    app = toy_app(tmp_path_factory.mktemp("left_alone"))
    assert run(app, parse(app, [])) == 0
    (folder,) = (app.runs_folder / "line").iterdir()
    return weights(folder)


@pytest.mark.parametrize(("owner", "name"), INSTANTS, ids=[name for _, name in INSTANTS])
def test_a_signal_at_any_stage_is_an_interruption(
    owner: Any, name: str, call: Call, left_alone: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs/line"
    with monkeypatch.context() as patch:
        hit_before(owner, name, patch)
        hit_before(session.OpenRun, "close", patch)  # the second one, which changes nothing
        assert call() == EXIT_INTERRUPTED
    assert all(read(path)["status"] == "interrupted" for path in runs.glob("*/run.json"))
    assert call() == 0
    (folder,) = runs.iterdir()
    assert read(folder / "run.json")["status"] == "finished"
    assert torch.equal(weights(folder), left_alone)


def test_what_is_finished_stays_finished(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an interruption the same command would make another run."""
    hit_before(session.OpenRun, "close", monkeypatch)
    assert call() == 0
    (folder,) = (tmp_path / "runs/line").iterdir()
    assert read(folder / "run.json")["status"] == "finished"


@pytest.mark.parametrize("action", ["--dry_run", "--lr_find", "--test"])
def test_what_is_no_run_is_interrupted_too(action: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((session, "build_trainer"), (session, "check_system"), (preflight, "build_trainer")):
        hit_before(owner, name, monkeypatch)
    assert call(action) == EXIT_INTERRUPTED


def test_a_connection_that_breaks_after_a_signal_is_an_interruption(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        with deferred():
            hit()
            raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(session, "evaluate_best", broken)
    assert call() == EXIT_INTERRUPTED
    (folder,) = (tmp_path / "runs/line").iterdir()
    assert read(folder / "run.json")["status"] == "interrupted"


def test_the_time_limit_has_an_exit_code_and_judges_nothing(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(3):
        assert call("--max_hours", "1e-9", "--output_dir", folder) == EXIT_TIME_IS_UP
        assert read(folder / "run.json")["status"] == "time is up"
        assert not (folder / "summary.json").exists()  # nobody has looked at test data
        assert not any("val/loss" in line for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert call("--output_dir", folder) == 0
    assert call("--output_dir", tmp_path / "whole") == 0
    pieces, whole = (load_checkpoint(path / "checkpoints/latest_model.pth") for path in (folder, tmp_path / "whole"))
    assert torch.equal(pieces["model"]["weight"], whole["model"]["weight"])
    assert {**pieces["progress"], "seconds": 0} == {**whole["progress"], "seconds": 0}


def test_the_time_limit_is_one_for_all_runs_of_a_group(call: Call, tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert call("--line.seeds", "2", "--max_hours", "1e-9", "--output_dir", job) == EXIT_TIME_IS_UP
    assert [path.parent.name for path in job.glob("seeds/*/run.json")] == ["seed_0"]
    assert call("--line.seeds", "2", "--output_dir", job) == 0
    assert read(job / "run.json")["status"] == "finished"


# ------------------------------------------------------------------------------------------------------- the start


WARM = ["scheduler.name=warmup_linear", "scheduler.warmup_steps=50"]


def test_what_is_given_for_a_run_of_this_length_is_refused_and_a_look_at_a_file_is_not(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="the warm-up takes 50 steps, the run only 8"):
        call(*WARM)
    assert not (tmp_path / "runs").exists()
    (tmp_path / "mine.yaml").write_text("scheduler: {name: warmup_linear, warmup_steps: 50}\n")
    with pytest.raises(UserError, match="the warm-up takes 50 steps"):
        call("--config", tmp_path / "mine.yaml")
    assert call("--config", tmp_path / "mine.yaml", "--epochs", "1") == 0
    assert "the warm-up takes 50 steps, the run only 4" in capsys.readouterr().out


def test_a_run_that_goes_on_goes_on_without_a_bucket(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(_: str) -> None:
        raise UserError("nobody answers")

    monkeypatch.setattr(preflight, "check_bucket", dead)
    monkeypatch.setattr(session, "copy_of", lambda *_, **__: None)
    arguments = ("--output_dir", tmp_path / "run", "--upload_to", "models")
    for action in (("--dry_run",), ()):
        with pytest.raises(UserError, match="nobody answers"):
            call(*arguments, *action)
        assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        interrupted_after(3, patch)
        assert call("--output_dir", tmp_path / "run") == EXIT_INTERRUPTED
    assert call(*arguments, "--dry_run") == 0
    assert call(*arguments) == 0
    assert capsys.readouterr().out.count("nobody answers") == 2


def test_a_checkpoint_has_the_size_that_space_is_asked_for(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large model, whose names and counters are nothing beside its tensors."""
    sizes = list[int]()
    measure = checkpoint_bytes
    monkeypatch.setattr(preflight, "checkpoint_bytes", lambda trainer: sizes.append(measure(trainer)) or sizes[-1])
    monkeypatch.setattr(toy.Line, "__init__", wide)
    for optimizer in ("sgd", "adamw"):
        run = tmp_path / optimizer
        assert call("--output_dir", run, "--optimizer", optimizer, "--ema_decay", "0.9", "--lr", "1e-6") == 0
        assert sizes[-1] == pytest.approx((run / "checkpoints/latest_model.pth").stat().st_size, rel=0.05)
    monkeypatch.setattr(preflight, "free_bytes", lambda _: sizes[-1])
    with pytest.raises(UserError, match=r"3 checkpoints of .* and one being written need"):
        call("--output_dir", tmp_path / "full")
    assert not (tmp_path / "full").exists()


def wide(line: toy.Line, config: toy.LineConfig) -> None:
    line.model = torch.nn.Sequential(torch.nn.Linear(1, 300_000, bias=False), torch.nn.AdaptiveAvgPool1d(1))
    line.metadata = {"class_names": list(config.classes)}


def test_a_signal_before_the_first_checkpoint_says_that_nothing_was_saved(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        hit_before(toy, "points", patch)
        assert call() == EXIT_INTERRUPTED
    assert "interrupted: nothing was saved yet, and the same command starts anew" in capsys.readouterr().out
    hit_before(session, "configure_torch", monkeypatch)
    assert call() == EXIT_INTERRUPTED


def test_a_run_folder_is_not_resumed_into_another(call: Call, tmp_path: Path) -> None:
    assert call("--output_dir", tmp_path / "run") == 0
    with pytest.raises(UserError, match=r"goes on in that folder, not in .*leave out --output_dir"):
        call("--resume", tmp_path / "run", "--output_dir", tmp_path / "another")
    assert call("--resume", tmp_path / "run", "--output_dir", tmp_path / "run") == 0
