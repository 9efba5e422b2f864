"""Generated sets are written once, whole or not at all."""

import json
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from mlcore.data.generated import write_once


def write(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part/a.txt").write_text("a", encoding="utf-8")


def fail(folder: Path) -> None:
    write(folder)
    raise KeyboardInterrupt


def test_the_same_request_is_not_written_again(tmp_path: Path) -> None:
    write_once(tmp_path / "new/set", {"pages": 3, "seed": 0}, write)
    assert (tmp_path / "new/set/part/a.txt").read_text(encoding="utf-8") == "a"
    write_once(tmp_path / "new/set", {"seed": 0, "pages": 3}, fail)


def test_another_request_replaces_the_set(tmp_path: Path) -> None:
    write_once(tmp_path / "set", {"seed": 0}, write)
    write_once(tmp_path / "set", {"seed": 1}, lambda folder: (folder / "b.txt").touch())
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["b.txt", "generated.json"]
    assert json.loads((tmp_path / "set/generated.json").read_text(encoding="utf-8")) == {"seed": 1}


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_once(tmp_path, {"seed": 0}, write)
    assert (tmp_path / "part/a.txt").is_file()


@pytest.mark.parametrize("stamp", [None, "[]", "{", ""])
def test_what_was_not_generated_stays(tmp_path: Path, stamp: str | None) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    if stamp is not None:
        (tmp_path / "generated.json").write_text(stamp, encoding="utf-8")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds something that was not generated"):
        write_once(tmp_path, {"seed": 0}, write)
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_writer_leaves_no_half_set(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_once(tmp_path / "set", {"seed": 0}, fail)
    assert not list(tmp_path.iterdir())


def test_a_killed_writer_leaves_the_set_that_was_there(tmp_path: Path) -> None:
    write_once(tmp_path / "set", {"seed": 0}, write)
    with pytest.raises(KeyboardInterrupt):
        write_once(tmp_path / "set", {"seed": 1}, fail)
    assert json.loads((tmp_path / "set/generated.json").read_text(encoding="utf-8")) == {"seed": 0}
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_another_process_that_was_quicker_wins(tmp_path: Path) -> None:
    def late(folder: Path) -> None:
        write_once(tmp_path / "set", {"seed": 0}, write)
        (folder / "late.txt").touch()

    write_once(tmp_path / "set", {"seed": 0}, late)
    assert not (tmp_path / "set/late.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
