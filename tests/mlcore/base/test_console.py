"""How long things will take, and what a log may show."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlcore.base.console import Pace, format_duration, guard_terminal, setup_logging
from mlcore.trackers.console import ConsoleTracker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_eta_counts_the_steps_of_this_process_only() -> None:
    clock = Clock()
    pace = Pace(1000, done=900, clock=clock)
    assert pace.eta_s is None, "nothing is known before the first step"
    clock.now += 20.0
    pace.update(910)
    assert pace.per_second == pytest.approx(0.5)
    assert pace.eta_s == pytest.approx(180.0), "90 steps at two seconds, right after a resume"


def test_durations_read_well() -> None:
    assert [format_duration(s) for s in (None, 0.4, 59.6, 3725)] == ["?", "0:00:00", "0:01:00", "1:02:05"]


def test_what_the_terminal_need_not_say_is_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(log_file=tmp_path / "train.log")
    try:
        logging.getLogger("mlcore.x").debug("why")
        logging.getLogger("quartet.apps.x").info("what")
    finally:
        setup_logging(is_main=False)
    assert [line.split()[1] for line in (tmp_path / "train.log").read_text("utf-8").splitlines()] == ["why", "what"]
    assert capsys.readouterr().out.split()[1:] == ["what"]


def test_logs_hold_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123")
    setup_logging(log_file=tmp_path / "train.log")
    try:
        logging.getLogger("mlcore.x").info("using key %s", "0123456789abcdef0123")
    finally:
        setup_logging(is_main=False)
    assert (tmp_path / "train.log").read_text("utf-8").strip().endswith("using key ***")


def test_an_app_of_another_package_reaches_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(log_file=tmp_path / "train.log", package="elsewhere")
    try:
        logging.getLogger("elsewhere.app.build").info("theirs")
        logging.getLogger("mlcore.x").info("ours")
        logging.getLogger("quartet.apps.x").info("nobody's")
    finally:
        setup_logging(is_main=False, package="elsewhere")
    assert [line.split()[1] for line in (tmp_path / "train.log").read_text("utf-8").splitlines()] == ["theirs", "ours"]
    assert capsys.readouterr().out.split()[1::2] == ["theirs", "ours"]
    assert all(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("elsewhere").handlers)


def test_setting_up_again_takes_the_place_of_what_was_set_up(tmp_path: Path) -> None:
    for name in ("first.log", "second.log"):
        setup_logging(log_file=tmp_path / name, package="elsewhere")
    try:
        logging.getLogger("elsewhere").info("once")
    finally:
        setup_logging(is_main=False, package="elsewhere")
    assert (tmp_path / "first.log").read_text("utf-8") == ""
    assert len((tmp_path / "second.log").read_text("utf-8").splitlines()) == 1


def test_logs_show_control_characters_and_keep_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(log_file=tmp_path / "train.log")
    try:
        logging.getLogger("mlcore.x").info("%s: two problems\n  줄 하나\n  line 2", Path("a\x1b]0;x\x07\u202e.png"))
    finally:
        setup_logging(is_main=False)
    told = "a\\x1b]0;x\\x07\\u202e.png: two problems\n  줄 하나\n  line 2\n"
    assert (tmp_path / "train.log").read_text("utf-8").endswith(told)
    assert capsys.readouterr().out.endswith(told)


def test_the_terminal_shows_neither_secrets_nor_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_TOKEN", "secret-value-1")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    guard_terminal()
    guard_terminal()
    print("a", "name\x1b[2J", "secret-value-1")
    sys.stdout.writelines(["secret-value-1\n", "\r50%"])
    print(f"{os.sep}\r\u202e", file=sys.stderr)
    assert tuple(capsys.readouterr()) == ("a name\\x1b[2J ***\n***\n\r50%", f"{os.sep}\\r\\u202e\n")
    logging.getLogger("some.library").warning("about secret-value-1")
    assert "secret-value-1" not in capsys.readouterr().err


def test_a_traceback_shows_neither_secrets_nor_control_characters() -> None:
    code = (
        "from mlcore.cli.main import guarded\ndef main(): raise RuntimeError('x\\x1b[1m ' + sys.argv[2])\nguarded(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", "--hub_token", 'se"cret\nvalue-12'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "RuntimeError: x\\x1b[1m ***" in done.stderr
    assert "value-12" not in done.stderr + done.stdout


class Screen(io.StringIO):
    """A terminal that keeps what stands on it."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        shown = []
        for line in self.getvalue().split("\n"):
            cells = ""
            for text in line.split("\r"):
                cells = text + cells[len(text) :]
            shown.append(cells.rstrip())
        return shown


def test_on_a_terminal_rows_of_training_are_one_live_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    guard_terminal()
    setup_logging(log_file=tmp_path / "train.log")
    tracker, figures = ConsoleTracker(), {f"train/metric_{n}": 0.5 for n in range(20)}
    try:
        for step in (1, 20):
            tracker.log(step, {**figures, "train/epoch": step / 10, "perf/eta_s": 80.0})
        assert [line[10:] for line in screen.lines] == ["step 20  epoch 2  ETA 0:01:20  metric_0 0.5"]
        tracker.log(20, {"val/loss": 0.25, **{f"val/metric_{n}": 0.5 for n in range(20)}})
        tracker.log(30, figures)
        print("a word of another", file=sys.stderr)
        logging.getLogger("mlcore.x").info("done %s", "x" * 100)
    finally:
        setup_logging(is_main=False)
    first, *rest = screen.lines
    assert first[10:] == "step 20  val  loss 0.25  metric_0 0.5"
    assert rest == ["a word of another", f"{rest[1][:8]}  done {'x' * 100}", ""]
    written = (tmp_path / "train.log").read_text("utf-8").splitlines()
    assert len(written) == 5  # all rows, and whole
    assert all("metric_19 0.5" in line for line in written[:4])


def test_in_a_pipe_rows_are_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    guard_terminal()
    setup_logging()
    try:
        ConsoleTracker().log(3, {f"train/metric_{n}": 0.5 for n in range(20)})
    finally:
        setup_logging(is_main=False)
    out = capsys.readouterr().out
    assert "\r" not in out
    assert out.count("\n") == 1
    assert "metric_19 0.5" in out
