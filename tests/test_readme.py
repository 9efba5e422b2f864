"""The first page: both languages say the same, its pictures are there and small, and how they are cut."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from scripts.pictures import GAP, PICTURES, cut_out

ENGLISH, KOREAN = "README.md", "README.ko.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HANGUL = re.compile("[가-힣]")
MOST = 400_000  # bytes of all pictures


class Readme(NamedTuple):
    """What must be the same in every language, and what must not."""

    blocks: list[tuple[str, list[str]]]
    headings: list[int]
    links: list[str]
    pictures: list[str]
    code: list[str]
    rows: list[int]
    prose: str


def commands(language: str, block: str) -> Iterator[str]:
    """Lines of a block without what is said beside them: comments, or the second column of a tree."""
    for line in block.splitlines():
        yield re.split(r"\s+# " if language else r"(?<=[^\s│├└─])\s{2,}", line.rstrip())[0]


def read(path: Path) -> Readme:
    text = path.read_text("utf-8")
    blocks = [(match[1], list(commands(match[1], match[2]))) for match in BLOCK.finditer(text)]
    prose = BLOCK.sub("", text)
    return Readme(
        blocks,
        headings=[len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)],
        links=[link for link in re.findall(r"\]\(([^)]+)\)", prose) if link not in {ENGLISH, KOREAN}],
        pictures=re.findall(r'<img src="([^"]+)"', prose),
        code=sorted(re.findall(r"`([^`\n]+)`", prose)),
        rows=[line.count("|") for line in prose.splitlines() if line.startswith("|")],
        prose=prose,
    )


@pytest.mark.parametrize("part", ["blocks", "headings", "links", "pictures", "code", "rows"])
def test_both_languages_have_the_same(part: str, repository: Path) -> None:
    english, korean = (getattr(read(repository / name), part) for name in (ENGLISH, KOREAN))
    assert english
    assert korean == english


def test_each_language_leads_to_the_other_and_is_one(repository: Path) -> None:
    english, korean = (read(repository / name).prose for name in (ENGLISH, KOREAN))
    assert f"]({KOREAN})" in english.partition("\n## ")[0]
    assert f"]({ENGLISH})" in korean.partition("\n## ")[0]
    assert set(HANGUL.findall(english)) == set("한국어")
    whole = [part for part in korean.split("\n\n") if part.strip() and part != "# Quartet"]
    assert [part for part in whole if not HANGUL.search(part)] == []


@pytest.mark.parametrize("name", [ENGLISH, KOREAN])
def test_links_and_pictures_are_there(name: str, repository: Path) -> None:
    page = read(repository / name)
    assert [link for link in (*page.links, *page.pictures) if not (repository / link).exists()] == []
    alts = re.findall(r'<img [^>]*alt="([^"]+)"', page.prose)
    assert len(alts) == len(page.pictures) == len(PICTURES)
    assert all(bool(HANGUL.search(alt)) == (name == KOREAN) for alt in alts)
    files = [repository / picture for picture in page.pictures]
    assert sorted(file.stem for file in files) == sorted(PICTURES)
    assert sum(file.stat().st_size for file in files) < MOST


def test_parts_of_a_picture_are_put_together() -> None:
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    pixels[:20, :30], pixels[20:, 30:] = (255, 0, 0), (0, 0, 255)
    rows = [[(0, 0, 30, 20), (30, 20, 60, 40)], [(50, 30, 70, 50)], [(60, 0, 90, 40)]]
    joined = np.asarray(cut_out(Image.fromarray(pixels), rows))
    second = joined[20 + GAP :]
    assert joined.shape == (20 + GAP + 10, 60, 3)
    assert (joined[:20, :30] == (255, 0, 0)).all()
    assert (joined[:20, 30:] == (0, 0, 255)).all()
    assert (second[:, :10] == (0, 0, 255)).all(), "what is beyond the picture is left out"
    assert (second[:, 10:] == (255, 0, 0)).all(), "the colour of the corner"
