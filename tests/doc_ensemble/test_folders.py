"""Folders of classes, alone or below train/, val/ and test/."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.folders import find_pages, read_class_folder, read_folders

BLANK = Image.fromarray(np.full((20, 16), 255, np.uint8))


def put(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        more = [BLANK] * 2 if path.suffix == ".tif" else []
        BLANK.save(path, **({"save_all": True, "append_images": more} if more else {}))


def test_splits(tmp_path: Path) -> None:
    put(tmp_path, "train/b/1.png", "train/a/deep/2.png", "train/a/1.png", "val/b/3.png", "test/a/4.png")
    found = read_folders(tmp_path)
    assert found.classes == ("a", "b")
    assert [(page.path.name, page.label) for page in found.train] == [("1.png", 0), ("2.png", 0), ("1.png", 1)]
    assert found.val is not None
    assert found.test is not None
    assert [page.label for page in found.val] == [1]
    assert [page.label for page in found.test] == [0]


def test_one_folder_to_be_split_and_numbered_classes(tmp_path: Path) -> None:
    put(tmp_path, "10/a.png", "9/b.png", "2/c.tif", ".hidden/d.png", "9/.e.png")
    (tmp_path / "9/notes.txt").write_text("not a page", encoding="utf-8")
    found = read_folders(tmp_path)
    assert found.classes == ("2", "9", "10")
    assert found.val is None
    assert found.test is None
    assert [(page.label, page.number) for page in found.train] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert len({page.bundle for page in found.train}) == 3


def test_unknown_class_in_validation(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "val/c/1.png")
    with pytest.raises(UserError, match=r"val, folder c: unknown class 'c'; the 2 classes of training are a, b"):
        read_folders(tmp_path)


def test_a_class_may_be_empty_in_validation_only(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png")
    (tmp_path / "val/b").mkdir()
    assert [page.label for page in read_folders(tmp_path).val or ()] == [0]
    (tmp_path / "train/c").mkdir()
    with pytest.raises(UserError, match="folder c: no pages in it"):
        read_folders(tmp_path)


def test_what_is_no_data_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_folders(tmp_path / "none")
    with pytest.raises(UserError, match="no folders in it; expected one for each class"):
        read_class_folder(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="no pages in its folders"):
        read_class_folder(tmp_path, classes=("a",))


def test_damaged_files_of_several_pages_are_all_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png")
    for name in ("x.tif", "y.tif"):
        (tmp_path / "a" / name).write_bytes(b"")
    with pytest.raises(UserError) as caught:
        find_pages(tmp_path)
    assert all(f"{name}: empty file" in str(caught.value) for name in ("x.tif", "y.tif"))


def test_pages_outside_of_classes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a/1.png", "loose.png")
    with caplog.at_level(logging.WARNING):
        pages, _ = read_class_folder(tmp_path)
    assert len(pages) == 1
    assert "1 pages lie outside" in caplog.text
