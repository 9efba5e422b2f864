"""Copies are found, also scaled or compressed anew; pictures that only look alike to a hash are not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from apps.multimodal_ads.data import duplicates
from apps.multimodal_ads.data.duplicates import Fingerprints, check_duplicates, duplicate_groups, fingerprints
from apps.multimodal_ads.data.generated_pictures import draw_picture
from apps.multimodal_ads.data.split import stratified_split
from apps.multimodal_ads.data.table import AdRow
from mlcore.errors import UserError

LIMIT = 10**8


def drawn(number: int) -> Image.Image:
    return draw_picture(np.random.default_rng(number), priced=bool(number % 2))


def save(path: Path, image: Image.Image, *, label: int = 0, **options: Any) -> AdRow:
    image.save(path, **options)
    return AdRow(path, label, "", f"{path.parent.name}.csv, line {path.stem}")


def groups_of(rows: list[AdRow]) -> list[int]:
    return duplicate_groups(fingerprints(rows, max_pixels=LIMIT)).tolist()


COPIES = {
    "same bytes": lambda image: image,
    "smaller": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3)),
    "larger": lambda image: image.resize((image.width * 3, image.height * 3)),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.12),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("kind", [*COPIES, "compressed"])
def test_copies_are_found(tmp_path: Path, kind: str) -> None:
    rows = [save(tmp_path / f"{n}.png", drawn(n)) for n in range(12)]
    for n in range(12):
        if kind == "compressed":
            rows.append(save(tmp_path / f"{n}_copy.jpg", drawn(n), quality=40))
        else:
            rows.append(save(tmp_path / f"{n}_copy.png", COPIES[kind](drawn(n))))
    groups = groups_of(rows)
    assert groups[:12] == groups[12:]
    assert len(set(groups)) == 12


def test_different_drawings_are_different(tmp_path: Path) -> None:
    assert len(set(groups_of([save(tmp_path / f"{n}.jpg", drawn(n)) for n in range(150)]))) == 150


def page(lines: list[int]) -> Image.Image:
    """A nearly blank page with a few lines of text, at multiples of 14 pixels."""
    array = np.full((300, 220), 255, dtype=np.uint8)
    for line in lines:
        array[30 + 14 * line : 34 + 14 * line, 20:200] = 40
    return Image.fromarray(array)


def test_nearly_blank_pages_are_no_copies(tmp_path: Path) -> None:
    lines = [[n for n in range(7) if kind >> n & 1] for kind in range(1, 61)]
    rows = [save(tmp_path / f"{n}.png", page(chosen)) for n, chosen in enumerate(lines)]
    rows += [save(tmp_path / f"white{n}.png", Image.new("L", (200 + n, 300), 255 - n)) for n in range(5)]
    assert len(set(groups_of(rows))) == 65


def test_blank_pages_with_the_same_bytes_are_copies(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.png", Image.new("L", (200, 300), 255)) for n in range(3)]
    assert len(set(groups_of(rows))) == 1


def test_pairs_are_those_of_all_against_all() -> None:
    """The search by parts of the hash misses no pair."""
    rng = np.random.default_rng(1)
    count = 400
    hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
    for n in range(200, count):  # up to eight bits away from another
        flips = [np.uint64(1 << int(bit)) for bit in rng.choice(64, size=rng.integers(0, 9), replace=False)]
        hashes[n] = np.bitwise_xor.reduce([hashes[n - 200], *flips])
    small: Any = np.ones((count, 576), dtype=np.float32) / 24
    prints = Fingerprints(tuple(map(str, range(count))), hashes, small)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 6
    expected = {(a, b) for a, b in np.argwhere(near).tolist() if a < b}
    found = {tuple(sorted(pair)) for pairs in duplicates._near_pairs(prints) for pair in pairs.tolist()}
    assert found == expected
    assert 100 < len(expected) < 190


def test_across_splits_is_an_error_and_may_be_allowed(tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
    train = [save(tmp_path / f"train/{n}.png", drawn(n), label=n % 2) for n in range(6)]
    val = [save(tmp_path / f"val/{n}.png", drawn(n + 20)) for n in range(4)]
    assert check_duplicates({"train": train, "val": val}, allow=False, max_pixels=LIMIT) == []
    val.append(save(tmp_path / "val/9.jpg", drawn(3), label=0, quality=60))
    with pytest.raises(UserError) as caught:
        check_duplicates({"train": train, "val": val}, allow=False, max_pixels=LIMIT)
    message = str(caught.value)
    assert message.startswith("pictures in more than one of train, val, perhaps scaled or compressed anew: 1\n")
    assert "train.csv, line 3 (3.png) = val.csv, line 9 (9.jpg)" in message
    assert "data.allow_duplicates=true" in message
    notes = check_duplicates({"train": train, "val": val}, allow=True, max_pixels=LIMIT)
    assert len(notes) == 2
    assert "different labels" in notes[1]


def test_copies_inside_a_split_are_fine(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.png", drawn(n // 2)) for n in range(8)]
    assert check_duplicates({"train": rows, "val": []}, allow=False, max_pixels=LIMIT) == []


def test_groups_for_the_split(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.jpg", drawn(n // 2), label=n // 2 % 2, quality=50 + 40 * (n % 2)) for n in range(40)]
    groups = groups_of(rows)
    parts = stratified_split(rows, val_fraction=0.3, test_fraction=0.2, seed=0, groups=groups)
    splits = dict(zip(("train", "val", "test"), parts, strict=True))
    assert check_duplicates(splits, allow=False, max_pixels=LIMIT) == []


def test_images_that_cannot_be_read_are_named_together(tmp_path: Path) -> None:
    rows = [save(tmp_path / f"{n}.png", drawn(n)) for n in range(4)]
    rows[1].image.write_bytes(b"")
    rows[3].image.write_bytes(b"no picture")
    with pytest.raises(UserError) as caught:
        fingerprints(rows, max_pixels=LIMIT)
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 4 images cannot be used:"
    assert "line 1: " in lines[0]
    assert "empty file" in lines[0]
    assert "not an image" in lines[1]


def test_none_at_all() -> None:
    assert check_duplicates({"train": [], "val": []}, allow=False, max_pixels=LIMIT) == []
