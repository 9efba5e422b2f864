"""Real runs of each app, killed and signalled at instants of every phase: what they end with is the whole run."""

import json
import os
import sys
from pathlib import Path

import pytest

from mlcore.cli.apps import app_names
from quartet import command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="runs are watched through Linux's /proc"),
]


@pytest.mark.parametrize("app", app_names())
def test_a_run_that_is_killed_or_signalled_at_any_instant_ends_as_one_left_alone(
    app: str, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (repository / "libs", repository))))
    kills = os.environ.get("KILLS", "4")
    arguments = ["--kills", kills, "--tries", "2", "--faults", "kill", "signals", "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        command.main(["chaos", app, *arguments])
    assert ended.value.code == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "chaos.json").read_text("utf-8"))
    assert [row["passed"] for row in found["faults"]] == [int(kills), 2]
