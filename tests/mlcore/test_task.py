"""A run goes on only with the classes and frozen encoders that it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from mlcore.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mlcore.task import Task, check_facts

FACTS = {"class_names": ("a", "b"), "weights": None, "model": {"sizes": (1, 2), "folder": Path("x"), "rate": 0.1}}
NOTED = {**FACTS, "model": {"sizes": [1, 2], "folder": "x", "rate": 0.1}}  # as a file has them


class Told:
    """A task of which only the metadata matter."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = facts

    def metadata(self) -> dict[str, Any]:
        return dict(self.facts)


def check(noted: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    save_checkpoint(path, {"task": noted})
    keys = ("class_names", "weights", "model", "more")
    check_facts(cast(Task, Told(found)), load_checkpoint(path), keys=keys, source=path)


def test_the_same_facts_are_accepted_whatever_a_file_makes_of_their_types(tmp_path: Path) -> None:
    check(NOTED, FACTS, tmp_path / "state.pth")


def test_what_is_no_part_of_the_identity_may_change(tmp_path: Path) -> None:
    check({**NOTED, "threshold": 0.5}, {**FACTS, "threshold": 0.6}, tmp_path / "state.pth")


@pytest.mark.parametrize(
    ("key", "value"),
    [("weights", "0f"), ("class_names", ("b", "a")), ("model.sizes", (1, 3)), ("more", 1)],
)
def test_other_facts_are_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    section, _, name = key.rpartition(".")
    changed = {
        **FACTS,
        **({section: {**cast(dict[str, Any], FACTS[section]), name: value}} if section else {key: value}),
    }
    with pytest.raises(CheckpointError, match=rf"state\.pth: was trained with other .*\({key} "):
        check(NOTED, changed, tmp_path / "state.pth")
