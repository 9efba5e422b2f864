"""One command line for the runs of every app: scripts give the same flags, and what is advised can be parsed."""

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlcore.cli.apps import app_names, load_app
from mlcore.cli.parse import parse
from mlcore.run.next_steps import next_steps
from mlcore.use import command, verbs
from tests.scripts import REPOSITORY, run_script

PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "predict": command.predict_parser,
    "export": command.export_parser,
    "serve": command.serve_parser,
    "evaluate": verbs.evaluate_parser,
    "card": verbs.card_parser,
    "push": verbs.push_parser,
}
SCRIPTS = {"predict": "predict", "export": "export", "test": "evaluate", "inference": "evaluate"}
# What scripts call otherwise than the commands, or have from the command's positional arguments.
OWN_NAMES = {
    "predict": {"--set", "--overwrite", "--network"},
    "export": {"--output", "--format"},
    "evaluate": {"--data", "--split", "--operating_point", "--output", "--num_workers", "--device"},
}


class ParsedError(Exception):
    """Carries the parser that a script made."""


def flags(parser: argparse.ArgumentParser) -> dict[str, tuple[object, ...]]:
    return {
        action.option_strings[-1]: (action.default, action.choices, action.type, action.nargs, action.help)
        for action in parser._actions
        if action.option_strings and action.option_strings[-1] != "--help"
    }


@pytest.mark.parametrize("app", app_names())
def test_scripts_of_every_app_have_the_commands_flags(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise ParsedError(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    found = 0
    for script, verb in SCRIPTS.items():
        path = f"apps/{app}/{script}.py"
        if not (REPOSITORY / path).is_file() or "mlcore.use" not in (REPOSITORY / path).read_text("utf-8"):
            continue
        with pytest.raises(ParsedError) as made:
            run_script(path)
        own, expected = flags(made.value.args[0]), flags(PARSERS[verb]())
        common = {name: about for name, about in expected.items() if name not in OWN_NAMES[verb]}
        assert {name: about for name, about in own.items() if name in common} == common, path
        assert "--model_path" in own
        found += 1
    assert found


@pytest.mark.parametrize("app", app_names())
def test_what_a_run_advises_can_be_parsed(app: str, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "best_model.pth").touch()
    (run / "config.yaml").write_text("{}")
    train: Any = SimpleNamespace(epochs=3, max_steps=None)
    steps = dict(next_steps(run, app=load_app(app), train=train, demo=True))
    verbs_seen = []
    for what, line in steps.items():
        words = shlex.split(line)
        if words[1:3] == ["-m", "webbrowser"]:
            continue
        words = words[words.index("quartet") + 1 :] if "quartet" in words else words[1:]
        verb, *arguments = words
        verbs_seen.append(verb)
        assert str(run) in " ".join(arguments), what
        if verb in PARSERS:
            given = PARSERS[verb]().parse_args(arguments)
            assert given.run in (str(run), [str(run)])  # several runs are averaged
        elif verb == "train":
            assert parse(load_app(app), arguments[1:]).config.train.epochs == 6
        else:
            assert verb == "compare"
    known = load_app(app)
    assert {"evaluate", "predict", "train", "compare"} <= set(verbs_seen)
    assert ("export" in verbs_seen) == (known.use is not None)
