"""The generated set: complete, reproducible, in the layout of own data."""

from pathlib import Path

import numpy as np
import pytest

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.folders import read_folders
from quartet.apps.doc_ensemble.data.generated import TYPES, draw_page, write_generated
from quartet.apps.doc_ensemble.data.pages import page_size, read_page
from quartet.apps.doc_ensemble.data.statistics import page_statistics, statistics_sections

pytestmark = pytest.mark.pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "generated"
    write_generated(path, train=36, val=17, test=0, seed=3)
    return path


def test_layout(folder: Path) -> None:
    found = read_folders(folder)
    assert found.classes == TYPES
    assert len(TYPES) == 17
    assert found.val is not None
    assert found.test is None
    assert (len(found.train), len(found.val)) == (36, 17)
    assert {page.label for page in found.train} == {page.label for page in found.val} == set(range(17))
    sizes = {page_size(page.path) for page in found.train}
    assert {height for height, _ in sizes} == {256}
    assert len({width for _, width in sizes}) > 15
    assert not list(folder.parent.glob(".*"))


def test_pages_are_grey_paper_with_ink(folder: Path) -> None:
    for page in read_folders(folder).train:
        image = read_page(page.path, max_pixels=10**6).astype(int)
        assert (np.ptp(image, axis=2) == 0).all()
        assert image.std() > 8, page.path


def test_pages_of_a_type_vary(folder: Path) -> None:
    for name in TYPES:
        pages = [np.asarray(draw_page(name, np.random.default_rng(seed)).resize((24, 32))) for seed in range(2)]
        assert np.abs(pages[0].astype(int) - pages[1]).mean() > 3, name


def test_same_arguments_same_files_and_nothing_is_written_again(folder: Path, tmp_path: Path) -> None:
    write_generated(tmp_path / "again", train=36, val=17, test=0, seed=3)
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_generated(folder, train=36, val=17, test=0, seed=3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_few_pages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val needs at least 17 pages"):
        write_generated(tmp_path / "few", train=17, val=5, test=0, seed=0)


def test_statistics_of_a_set(folder: Path, tmp_path: Path) -> None:
    found = read_folders(folder)
    parts = {"train": page_statistics(found.train, classes=17), "val": page_statistics(found.val or (), classes=17)}
    assert parts["train"].counts.sum() == 36
    assert parts["val"].counts.tolist() == [1] * 17
    table, _ = statistics_sections(parts, classes=TYPES, path=tmp_path / "data.png")
    assert {row[0]: row[1:] for row in table.rows}["pages"] == ["36", "17"]  # type: ignore[union-attr]
    assert (tmp_path / "data.png").stat().st_size > 10_000
