"""Copies are found, also scaled or compressed anew; pictures that only look alike to a hash are not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from mlcore.base.errors import UserError
from mlcore.data import duplicates
from mlcore.data.duplicates import duplicate_groups, report_duplicates
from mlcore.data.fingerprints import Fingerprints, fingerprints

LIMIT = 10**8


def drawn(number: int) -> Image.Image:
    """Soft patches of random colours, other ones for each number."""
    patches = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((240, 180), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    image.save(path, **options)
    return path


def groups_of(paths: list[Path]) -> list[int]:
    return duplicate_groups(fingerprints(paths, max_pixels=LIMIT))


def check(splits: dict[str, list[Path]], *, allow: bool = False, memos: Sequence[Path] = ()) -> list[str]:
    """Pictures called by their paths, all letters but `memos`."""
    groups = groups_of([path for paths in splits.values() for path in paths])
    pictures = {name: [(str(path), path in memos) for path in paths] for name, paths in splits.items()}
    return report_duplicates(groups, pictures, allow=allow)


COPIES = {
    "same bytes": lambda image: image,
    "smaller": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3)),
    "larger": lambda image: image.resize((image.width * 3, image.height * 3)),
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.12),
    "grey": lambda image: image.convert("L"),
}


@pytest.mark.parametrize("kind", [*COPIES, "compressed"])
def test_copies_are_found(tmp_path: Path, kind: str) -> None:
    paths = [save(tmp_path / f"{n}.png", drawn(n)) for n in range(12)]
    for n in range(12):
        if kind == "compressed":
            paths.append(save(tmp_path / f"{n}_copy.jpg", drawn(n), quality=40))
        else:
            paths.append(save(tmp_path / f"{n}_copy.png", COPIES[kind](drawn(n))))
    groups = groups_of(paths)
    assert groups[:12] == groups[12:]
    assert len(set(groups)) == 12


def test_different_pictures_are_different(tmp_path: Path) -> None:
    assert len(set(groups_of([save(tmp_path / f"{n}.jpg", drawn(n)) for n in range(60)]))) == 60


def page(lines: list[int]) -> Image.Image:
    """A nearly blank page with a few lines of text, at multiples of 14 pixels."""
    array = np.full((300, 220), 255, dtype=np.uint8)
    for line in lines:
        array[30 + 14 * line : 34 + 14 * line, 20:200] = 40
    return Image.fromarray(array)


def test_nearly_blank_pages_are_no_copies(tmp_path: Path) -> None:
    lines = [[n for n in range(7) if kind >> n & 1] for kind in range(1, 61)]
    paths = [save(tmp_path / f"{n}.png", page(chosen)) for n, chosen in enumerate(lines)]
    paths += [save(tmp_path / f"white{n}.png", Image.new("L", (200 + n, 300), 255 - n)) for n in range(5)]
    assert len(set(groups_of(paths))) == 65


def test_blank_pages_with_the_same_bytes_are_copies(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", Image.new("L", (200, 300), 255)) for n in range(3)]
    assert len(set(groups_of(paths))) == 1


def test_a_text_that_differs_in_one_place_is_another() -> None:
    rng = np.random.default_rng(0)
    hashes = np.zeros(3, dtype=np.uint64)
    copies = np.repeat(rng.standard_normal((1, 2304)), 3, axis=0)
    copies[1, 500] += 0.7  # in deviations
    copies[2] += 0.05 * rng.standard_normal(2304)
    copies -= copies.mean(axis=1, keepdims=True)
    small = (copies / np.linalg.norm(copies, axis=1, keepdims=True)).astype(np.float16)
    prints = Fingerprints(("a", "b", "c"), hashes, small)
    assert duplicate_groups(prints) == [0, 0, 0]
    assert duplicate_groups(prints, text=True) == [0, 1, 0]


def test_pairs_are_those_of_all_against_all() -> None:
    """The search by parts of the hash misses no pair."""
    rng = np.random.default_rng(1)
    count = 400
    hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
    for n in range(200, count):  # up to eight bits away from another
        flips = [np.uint64(1 << int(bit)) for bit in rng.choice(64, size=rng.integers(0, 9), replace=False)]
        hashes[n] = np.bitwise_xor.reduce([hashes[n - 200], *flips])
    small: Any = np.ones((count, 2304), dtype=np.float16) / 48
    prints = Fingerprints(tuple(map(str, range(count))), hashes, small)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 6
    expected = {(a, b) for a, b in np.argwhere(near).tolist() if a < b}
    found = [tuple(sorted(pair)) for pairs in duplicates._near_pairs(prints) for pair in pairs.tolist()]
    assert set(found) == expected
    assert len(found) == len(expected)  # none is looked at twice
    assert 100 < len(expected) < 190


def test_across_splits_is_an_error_and_may_be_allowed(tmp_path: Path) -> None:
    splits = {
        "train": [save(tmp_path / f"train/{n}.png", drawn(n)) for n in range(6)],
        "val": [save(tmp_path / f"val/{n}.png", drawn(n + 20)) for n in range(4)],
    }
    assert check(splits) == []
    splits["val"].append(save(tmp_path / "val/9.jpg", drawn(3), quality=60))
    with pytest.raises(UserError) as caught:
        check(splits)
    title, pair, way_out = str(caught.value).splitlines()
    assert title == "pictures in more than one of train, val, perhaps scaled or compressed anew: 1"
    assert pair == f"  {tmp_path / 'train/3.png'} = {tmp_path / 'val/9.jpg'}"
    assert way_out == "The figures would be too good: remove them, or allow it with data.allow_duplicates=true"
    assert check(splits, allow=True) == [f"{title}\n{pair}"]


def test_copies_inside_a_split_are_fine(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", drawn(n // 2)) for n in range(8)]
    assert check({"train": paths, "val": []}) == []


def test_copies_with_different_labels_are_told(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", drawn(n // 6)) for n in range(12)]
    (note,) = check({"train": paths}, memos=paths[5:])
    assert note == (
        "pictures that are there several times, with different labels: 1\n"
        f"  {paths[0]} = {paths[1]} = {paths[2]} = {paths[3]} and 2 more"
    )


def test_none_at_all() -> None:
    assert check({"train": [], "val": []}) == []


def test_units_join_what_shares_a_key_in_any_grouping() -> None:
    assert duplicates.joined([0, 1, 2, 3]) == [0, 1, 2, 3]
    files, copies = ["a", "a", "b", "c", "d"], [0, 1, 1, 2, 3]
    units = duplicates.joined(files, copies)
    assert units[0] == units[1] == units[2]  # b through a copy
    assert len(set(units)) == 3
    assert duplicates.joined([], []) == []
