"""What docs/SETTINGS.md says of commands, files and names is true."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import fastjsonschema
import pytest

from mlcore.cli.apps import app_names, load_app
from mlcore.cli.main import run_app
from mlcore.config.compose import Request, compose, group_choices
from mlcore.config.dump import to_schema
from mlcore.config.text import read_document
from quartet.apps.perceiver.app import APP
from scripts.flag_tables import insert_continued_table
from tests.docs_page import Page, commands

PAGE = Page("SETTINGS")


def output(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        run_app(APP, lambda _: 1, argv=arguments)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_every_command_of_the_table_prints_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(r"^\| `train\.py ([^`]+)` \|", PAGE.text(), re.MULTILINE)
    texts = [output(capsys, shlex.split(arguments)) for arguments in found]
    assert len(set(texts)) == len(found) == 6


def test_the_file_of_ones_own_is_read_back(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ((_, *arguments),) = (PAGE.as_python(command) for block in PAGE.blocks("bash") for command in commands(block.text))
    (tmp_path / "mine.yaml").write_text(output(capsys, arguments))
    read = compose(APP.config_cls, APP.config_dir, Request(files=[tmp_path / "mine.yaml"]))
    asked = compose(APP.config_cls, APP.config_dir, Request(overrides=[("dataset", "synthetic")]))
    assert read.config == asked.config


def test_the_file_for_editors_fits_the_schema_and_the_app(tmp_path: Path) -> None:
    (block,) = PAGE.blocks("yaml")
    (tmp_path / "mine.yaml").write_text(block.text)
    schema = to_schema(APP.config_cls, group_choices(APP.config_dir))
    fastjsonschema.compile(json.loads(json.dumps(schema)))(read_document(tmp_path / "mine.yaml").values)
    request = Request(files=[tmp_path / "mine.yaml"])
    assert compose(APP.config_cls, APP.config_dir, request, environ={}).config.train.lr == 1e-3


def test_the_recipe_for_bash_completes_what_it_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(output(capsys, ["--completion", "bash"]))
    code = f"source {tmp_path / 'script'}; complete -p perceiver"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("perceiver"), done.stderr


def test_the_table_of_what_continued_runs_do_is_of_these_settings() -> None:
    page = PAGE.path
    assert insert_continued_table(page, [load_app(name) for name in app_names()]) == page.read_text("utf-8"), (
        "run scripts/flag_tables.py"
    )


def test_links_lead_somewhere() -> None:
    assert PAGE.broken_links() == set()
