"""A run goes on only with the classes and frozen encoders that it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from mlcore.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from mlcore.training.task import Task, check_metadata

FROZEN = {"digest": None, "sizes": (1, 2), "folder": Path("x"), "rate": 0.1}
METADATA = {"class_names": ("a", "b"), "frozen_weights": FROZEN}
KEPT: dict[str, Any] = {
    "class_names": ["a", "b"],
    "frozen_weights": {**FROZEN, "sizes": [1, 2], "folder": "x"},
}  # as a file has them


class Told:
    """A task of which only the metadata matter."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata


def check(kept: Mapping[str, Any], found: Mapping[str, Any], path: Path) -> None:
    save_checkpoint(path, {"task": kept})
    check_metadata(cast(Task, Told(found)), load_checkpoint(path), source=path)


def test_the_same_metadata_are_accepted_whatever_a_file_makes_of_their_types(tmp_path: Path) -> None:
    check(KEPT, METADATA, tmp_path / "state.pth")


def test_what_does_not_name_classes_or_frozen_weights_may_change(tmp_path: Path) -> None:
    check({**KEPT, "threshold": 0.5}, {**METADATA, "threshold": 0.6}, tmp_path / "state.pth")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"class_names": ("b", "a")}, "class_names"),
        ({"frozen_weights": {**FROZEN, "digest": "0f"}}, "frozen_weights.digest"),
        ({"frozen_weights": {**FROZEN, "sizes": (1, 3)}}, "frozen_weights.sizes"),
        ({"frozen_weights": {**FROZEN, "more": 1}}, "frozen_weights.more"),
    ],
)
def test_other_metadata_are_refused_by_name(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=rf"state\.pth: was trained with other .*\({named} "):
        check(KEPT, {**METADATA, **changed}, tmp_path / "state.pth")


def test_metadata_as_earlier_versions_had_them_are_accepted(tmp_path: Path) -> None:
    task = Told({**METADATA, "frozen_weights": {**FROZEN, "digest": "new form"}})
    task.former_metadata = lambda: METADATA  # type: ignore[attr-defined]
    for kept in (KEPT, {**KEPT, "frozen_weights": {**KEPT["frozen_weights"], "digest": "new form"}}):
        check_metadata(cast(Task, task), {"task": kept}, source=tmp_path)
    with pytest.raises(CheckpointError, match=r"\(frozen_weights\.digest "):
        check_metadata(
            cast(Task, task),
            {"task": {**KEPT, "frozen_weights": {**KEPT["frozen_weights"], "digest": "other"}}},
            source=tmp_path,
        )
