"""The generated set: complete, reproducible, and such that neither picture nor text decides."""

from pathlib import Path

import numpy as np
import pytest

from mlcore.data.images import read_image
from quartet.apps.multimodal_ads.data.generated import write_generated
from quartet.apps.multimodal_ads.data.generated_texts import write_texts
from quartet.apps.multimodal_ads.data.table import AdRow, read_table

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("set") / "generated"
    write_generated(path, train=120, validation=40, test=40, seed=3)
    return path


def rows_of(folder: Path) -> dict[str, list[AdRow]]:
    return {split: read_table(folder / f"{split}.csv", base_dir=None) for split in SPLITS}


def test_layout(folder: Path) -> None:
    rows = rows_of(folder)
    assert {split: len(part) for split, part in rows.items()} == {"train": 120, "val": 40, "test": 40}
    images = [row.image for part in rows.values() for row in part]
    assert len(set(images)) == len(list((folder / "images").iterdir())) == 200
    sizes = {read_image(path, max_pixels=10**6).shape[:2] for path in images}
    assert len(sizes) > 2
    assert all(96 <= side <= 160 for size in sizes for side in size)
    assert not list(folder.parent.glob(".*"))


def test_no_text_is_there_twice(folder: Path) -> None:
    texts = [row.text for part in rows_of(folder).values() for row in part]
    given = [text for text in texts if text]
    assert len(set(given)) == len(given)
    assert 0 < len(texts) - len(given) < 30
    assert any("할인" in text or "특" in text for text in given)


def test_labels_are_balanced(folder: Path) -> None:
    for part in rows_of(folder).values():
        assert 0.3 < np.mean([row.label for row in part]) < 0.7


def test_same_arguments_same_files_and_nothing_is_written_again(folder: Path, tmp_path: Path) -> None:
    write_generated(tmp_path / "again", train=120, validation=40, test=40, seed=3)
    for path in sorted(folder.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    write_generated(folder, train=120, validation=40, test=40, seed=3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_texts_sell_or_not() -> None:
    """Words of selling are in the ones and hardly in the others."""
    selling = [bool(n % 2) for n in range(600)]
    texts = write_texts(np.random.default_rng(0), selling)
    words = (
        "sale",
        "%",
        "$",
        " off",
        "free",
        "offer",
        "order",
        "shop",
        "price",
        "할인",
        "만원",
        "무료",
        "사면",
        "구매",
        "세일",
    )
    sold = np.array([any(word in text.lower() for word in words) for text in texts])
    assert sold[1::2].mean() > 0.95
    assert sold[::2].mean() < 0.05
