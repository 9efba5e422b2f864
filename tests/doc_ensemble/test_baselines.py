"""Plain models of pages and of their texts beside the network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mlcore.metrics.arrays import FloatArray
from quartet.apps.doc_ensemble.baselines import baselines
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.data.table import read_table


def write(folder: Path, count: int, *, text: bool) -> Path:
    """A table of bright and dark pages, with a word for each kind where there is text."""
    rng = np.random.default_rng(0)
    rows = ["image,label,text,scanner" if text else "image,label"]
    for number in range(count):
        name, bright = f"{number}.png", number % 2
        Image.fromarray((rng.integers(0, 60, (32, 24)) + 150 * bright).astype(np.uint8)).save(folder / name)
        rows.append(
            f"{name},{'ad' if bright else 'letter'}" + (f",{'sale' if bright else 'dear'} sir,A" if text else "")
        )
    (folder / "pages.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "pages.csv"


def parts(pages: list[Page]) -> dict[str, list[Page]]:
    return {"train": pages[:20], "val": pages[20:]}


def test_pages_and_their_texts_are_told_apart(tmp_path: Path) -> None:
    pages, classes = read_table(write(tmp_path, 30, text=True))
    assert pages[0].more == (("scanner", "A"),)
    found = baselines(parts(pages), classes=len(classes), max_pixels=10_000)
    assert [one.name.split(":")[0] for one in found] == ["pages", "texts"]
    for one in found:
        rows = one.predict()["val"]
        assert rows["label"].tolist() == [page.label for page in pages[20:]]
        assert rows["probabilities"].argmax(dim=1).tolist() == rows["label"].tolist()


def test_without_texts_there_are_pages_alone(tmp_path: Path) -> None:
    pages, classes = read_table(write(tmp_path, 30, text=False))
    assert pages[0].more == ()
    assert len(baselines(parts(pages), classes=len(classes), max_pixels=10_000)) == 1


def test_a_network_stands_beside_its_own_start(tmp_path: Path) -> None:
    pages, classes = read_table(write(tmp_path, 30, text=False))

    def brightness(pages: Sequence[Page]) -> FloatArray:
        return np.array([[np.asarray(Image.open(page.path)).mean()] for page in pages])

    *_, found = baselines(parts(pages), classes=len(classes), max_pixels=10_000, published=brightness)
    rows = found.predict()["val"]
    assert "published weights" in found.name
    assert rows["probabilities"].argmax(dim=1).tolist() == rows["label"].tolist()
