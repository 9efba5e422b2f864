"""Run folders: which one is continued, and that only one process writes to it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlcore.base.errors import UserError
from mlcore.config.difference import config_differences
from mlcore.config.section import Section, field
from mlcore.run.folder import RunRecord, choose_run_folder, finished_run, is_locked, reason_of

CONFIG: dict[str, Any] = {"train": {"lr": 0.1}, "run": {"seed": 0, "num_workers": 2, "resume": "auto"}}


class Train(Section):
    """Training."""

    lr: float = field(0.5, "Rate")
    ema: float | None = field(None, "A newer setting, which records of older runs do not have")


class Run(Section):
    """Run."""

    seed: int = field(0, "Seed")
    num_workers: int = field(2, "Workers")
    resume: str = field("auto", "Resume")


class Settings(Section):
    """All."""

    train: Train = field(Train(), "Training")
    run: Run = field(Run(), "Run")


def settings(**values: dict[str, Any]) -> Settings:
    """`CONFIG` with other values, as the app has it."""
    return Settings.model_validate({key: {**CONFIG[key], **values.get(key, {})} for key in CONFIG})


def run(folder: Path, *, status: str | None, config: dict[str, Any] = CONFIG) -> Path:
    """A folder as a run leaves it; None leaves it as a killed process does."""
    record = RunRecord(folder)
    record.start(config)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "latest_model.pth").write_bytes(b"x")
    if status is None:
        record._lock.release()  # the kernel releases a dead process's lock
    else:
        record.close(status=status)
    return folder


@pytest.mark.parametrize("status", [None, "interrupted", "time is up", "failed"])
def test_auto_continues_an_unfinished_run_of_the_same_settings(status: str | None, tmp_path: Path) -> None:
    folder = run(tmp_path / "20260101-000000", status=status)
    chosen = choose_run_folder(tmp_path, config=settings())
    assert chosen.path == folder
    assert chosen.resume


@pytest.mark.parametrize("status", ["finished", "stopped early"])
def test_auto_starts_anew_after_a_finished_run(status: str, tmp_path: Path) -> None:
    folder = run(tmp_path / "20260101-000000", status=status)
    chosen = choose_run_folder(tmp_path, config=settings())
    assert chosen.path != folder
    assert not chosen.resume


def test_auto_passes_over_other_settings_but_not_over_other_workers(tmp_path: Path) -> None:
    folder = run(tmp_path / "20260101-000000", status="interrupted")
    assert choose_run_folder(tmp_path, config=settings(train={"lr": 0.2})).path != folder
    assert choose_run_folder(tmp_path, config=settings(run={"num_workers": 0})).path == folder


def test_a_run_of_an_older_version_had_the_defaults_of_what_it_did_not_know(tmp_path: Path) -> None:
    folder = run(tmp_path / "20260101-000000", status="interrupted", config={**CONFIG, "gone": {"setting": 3}})
    assert choose_run_folder(tmp_path, config=settings()).path == folder
    assert choose_run_folder(tmp_path, config=settings(train={"ema": 0.9})).path != folder
    ended = run(tmp_path / "job", status="finished")
    assert finished_run(ended, settings())
    assert not finished_run(ended, settings(train={"ema": 0.9}))


def test_auto_passes_over_a_run_that_is_still_going(tmp_path: Path) -> None:
    folder = tmp_path / "20260101-000000"
    run(folder, status="interrupted")
    record = RunRecord(folder)
    assert is_locked(folder)
    assert choose_run_folder(tmp_path, config=settings()).path != folder
    with pytest.raises(UserError, match="another process"):
        RunRecord(folder)
    record.close(status="finished")
    assert not is_locked(folder)


def test_explicit_folder_is_continued_unless_told_never(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", status="finished")
    assert choose_run_folder(tmp_path, config=settings(), output_dir=folder).resume
    with pytest.raises(UserError, match="already holds a run"):
        choose_run_folder(tmp_path, config=settings(), output_dir=folder, resume="never")
    assert not choose_run_folder(tmp_path, config=settings(), output_dir=tmp_path / "new").resume


def test_resume_takes_a_run_folder_or_its_latest_checkpoint(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", status="finished")
    latest = folder / "checkpoints" / "latest_model.pth"
    for target in (folder, folder / "checkpoints", latest):
        chosen = choose_run_folder(tmp_path, config=settings(), resume=str(target))
        assert (chosen.path, chosen.checkpoint, chosen.resume) == (folder, None, True)
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(UserError, match="checkpoint"):
            choose_run_folder(tmp_path, config=settings(), resume=str(wrong))


def test_an_older_checkpoint_starts_a_branch_and_leaves_its_run_alone(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", status="finished")
    best = folder / "checkpoints" / "best_model.pth"
    best.write_bytes(b"older")
    chosen = choose_run_folder(tmp_path, config=settings(), resume=str(best))
    assert chosen.path.parent == tmp_path
    assert chosen.path != folder
    assert chosen.checkpoint == best


def test_record_says_how_a_run_ended(tmp_path: Path) -> None:
    folder = run(tmp_path / "mine", status="interrupted")
    record = json.loads((folder / "run.json").read_text("utf-8"))
    assert record["status"] == "interrupted"
    assert record["config"] == CONFIG


def test_record_says_why_a_run_failed_until_it_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    for error, reason in (
        (UserError("a.csv, line 2: no such file"), "a.csv, line 2: no such file"),
        (KeyError("0123456789abcdef0123"), "KeyError: '***'"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ):
        record = RunRecord(tmp_path / "mine")
        record.start(CONFIG)
        assert "reason" not in json.loads((record.folder / "run.json").read_text("utf-8"))
        record.close(status="failed", reason=reason_of(error))
        assert json.loads((record.folder / "run.json").read_text("utf-8"))["reason"] == reason


def test_differences_name_key_and_both_values() -> None:
    assert config_differences(CONFIG, {**CONFIG, "train": {"lr": 0.2}}) == ["train.lr 0.1 -> 0.2"]


def test_a_new_folder_whose_run_never_started_goes_again(tmp_path: Path) -> None:
    RunRecord(tmp_path / "new").close(status="failed")
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine.txt").touch()
    RunRecord(tmp_path / "old").close(status="failed")
    assert (tmp_path / "old" / "mine.txt").exists()


def test_a_run_from_a_given_checkpoint_is_a_new_one_wherever_that_lies(tmp_path: Path) -> None:
    folder = run(tmp_path / "20260101-000000", status="interrupted")
    latest = folder / "checkpoints" / "latest_model.pth"
    chosen = choose_run_folder(tmp_path, config=settings(), resume="s3://models/latest_model.pth", start=latest)
    assert chosen.path != folder
    assert (chosen.checkpoint, chosen.resume) == (latest, True)
    assert (
        choose_run_folder(tmp_path, config=settings(), output_dir=tmp_path / "own", start=latest).path
        == tmp_path / "own"
    )


def test_the_end_is_noted_once_while_the_folder_is_still_held(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "run")
    record.start(CONFIG)
    record.end(status="finished")
    noted = (record.folder / "run.json").read_bytes()
    assert json.loads(noted)["status"] == "finished"
    assert is_locked(record.folder)
    record.close(status="failed")
    assert (record.folder / "run.json").read_bytes() == noted
    assert not is_locked(record.folder)


@pytest.mark.parametrize("stored", [False, True])
def test_a_branch_in_a_folder_of_its_own_goes_on_there(stored: bool, tmp_path: Path) -> None:
    """Begun again from the checkpoint that the command names, it would lose what it has done since."""
    begun = run(tmp_path / "mine", status="interrupted") / "checkpoints" / "best_model.pth"
    begun.write_bytes(b"older")
    own = tmp_path / "branch"
    source: dict[str, Any] = {"resume": str(begun), "start": begun if stored else None}
    first = choose_run_folder(tmp_path, config=settings(), output_dir=own, **source)
    assert (first.path, first.checkpoint, first.resume) == (own, begun, True)
    run(own, status="interrupted")
    again = choose_run_folder(tmp_path, config=settings(), output_dir=own, **source)
    assert (again.path, again.checkpoint, again.resume) == (own, None, True)
