"""Known pictures are not read again, changed ones are; no file on the disk can make a fingerprint wrong."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.data import fingerprints as module
from mlcore.data.fingerprints import Fingerprints, Numbered, cache_file, fingerprints

LIMIT = 10**8


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three pictures with contrast and a blank one."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    found = [tmp_path / "pictures" / f"{n}.png" for n in range(4)]
    for path in found[:3]:
        Image.fromarray(rng.integers(0, 256, (30, 40), dtype=np.uint8)).save(path)
    Image.new("L", (30, 40), 200).save(found[3])
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where they are kept; the folder is not there yet."""
    return cache_file(tmp_path / "kept", tmp_path / "pictures")


def assert_equal(one: Fingerprints, other: Fingerprints) -> None:
    assert one.digests == other.digests
    np.testing.assert_array_equal(one.hashes, other.hashes)
    np.testing.assert_array_equal(one.small, other.small)


def spoil(path: Path) -> None:
    """Replace the content by what is no picture; size and time of change stay."""
    state = path.stat()
    path.write_bytes(bytes(state.st_size))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def touch(path: Path) -> None:
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))


def test_small_copies_have_mean_0_and_length_1(paths: list[Path]) -> None:
    small = fingerprints(paths, max_pixels=LIMIT).small
    assert small.dtype == np.float16
    small = small.astype(np.float32)
    np.testing.assert_allclose(small.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(small, axis=1), [1, 1, 1, 0], rtol=1e-3)


def test_what_is_known_is_not_read(paths: list[Path], cache: Path) -> None:
    first = fingerprints(paths, max_pixels=LIMIT, cache=cache)
    assert_equal(first, fingerprints(paths, max_pixels=LIMIT))
    for path in paths:
        spoil(path)
    assert_equal(first, fingerprints(paths, max_pixels=LIMIT, cache=cache))
    part = fingerprints([paths[2], paths[0], paths[2]], max_pixels=LIMIT, cache=cache)
    assert part.digests == tuple(first.digests[n] for n in (2, 0, 2))
    with pytest.raises(UserError, match="4 of 4 images cannot be used"):
        fingerprints(paths, max_pixels=LIMIT)


class Books:
    """Each file holds pages, which are pictures in the order of their numbers; notes what is read."""

    def __init__(self) -> None:
        self.read: list[tuple[str, int]] = []

    def __call__(self, path: Path, number: int, *, max_pixels: int) -> np.ndarray:
        assert max_pixels == LIMIT
        self.read.append((path.name, number))
        if number == 7:
            raise UserError(f"{path}: no page 8")
        return np.random.default_rng([path.name == "b.pdf" and number == 0, number]).integers(
            0, 256, (20, 30, 3), dtype=np.uint8
        )


def test_pages_of_one_file_are_pictures_of_their_own(tmp_path: Path, cache: Path) -> None:
    paths = [tmp_path / name for name in ("a.pdf", "a.pdf", "b.pdf", "b.pdf")]
    for path in paths:
        path.write_bytes(path.name.encode())
    books = Books()
    prints = fingerprints(paths, max_pixels=LIMIT, pages=Numbered([0, 1, 0, 1], books), cache=cache)
    assert sorted(books.read) == [("a.pdf", 0), ("a.pdf", 1), ("b.pdf", 0), ("b.pdf", 1)]
    assert len(set(prints.digests)) == 3
    assert prints.digests[1] == prints.digests[3]  # of the same pixels, in files of other bytes
    again = fingerprints(paths[::-1], max_pixels=LIMIT, pages=Numbered([1, 0, 1, 0], books), cache=cache)
    assert again.digests == prints.digests[::-1]
    assert len(books.read) == 4
    with pytest.raises(UserError, match=r"1 of 2 images cannot be used:\n.*a\.pdf: no page 8"):
        fingerprints(paths[:2], max_pixels=LIMIT, pages=Numbered([0, 7], books), cache=cache)
    paths[0].write_bytes(b"changed")
    fingerprints(paths, max_pixels=LIMIT, pages=Numbered([0, 1, 0, 1], books), cache=cache)
    assert sorted(books.read[5:]) == [("a.pdf", 0), ("a.pdf", 1)]


def test_a_file_and_its_first_page_are_kept_apart(paths: list[Path], cache: Path) -> None:
    whole = fingerprints(paths[:1], max_pixels=LIMIT, cache=cache)
    page = fingerprints(paths[:1], max_pixels=LIMIT, pages=Numbered([0], Books()), cache=cache)
    assert whole.digests != page.digests
    assert_equal(whole, fingerprints(paths[:1], max_pixels=LIMIT, cache=cache))


def test_relative_and_absolute_paths_are_the_same(
    paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(paths[0].parent)
    first = fingerprints([Path(path.name) for path in paths], max_pixels=LIMIT, cache=cache)
    spoil(paths[0])
    assert_equal(first, fingerprints(paths, max_pixels=LIMIT, cache=cache))


def test_a_changed_picture_is_read_again(paths: list[Path], cache: Path) -> None:
    first = fingerprints(paths, max_pixels=LIMIT, cache=cache)
    Image.open(paths[1]).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(paths[0])  # perhaps of the same size
    touch(paths[0])
    again = fingerprints(paths, max_pixels=LIMIT, cache=cache)
    assert again.digests[1:] == first.digests[1:]
    assert again.digests[0] not in first.digests
    assert again.hashes[0] != first.hashes[0]
    spoil(paths[0])
    assert_equal(again, fingerprints(paths, max_pixels=LIMIT, cache=cache))


def test_a_known_picture_may_be_too_large_now(paths: list[Path], cache: Path) -> None:
    fingerprints(paths, max_pixels=1200, cache=cache)
    with pytest.raises(UserError, match=r"40 x 30 pixels .* more than the limit"):
        fingerprints(paths, max_pixels=1199, cache=cache)


def test_a_picture_that_is_gone_is_an_error_and_forgotten(paths: list[Path], cache: Path) -> None:
    first = fingerprints(paths, max_pixels=LIMIT, cache=cache)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"1 of 4 images cannot be used:\n  row 0: .*0\.png: .*No such file"):
        fingerprints(paths, max_pixels=LIMIT, origins=[f"row {n}" for n in range(4)], cache=cache)
    touch(paths[1])
    assert fingerprints(paths[1:], max_pixels=LIMIT, cache=cache).digests == first.digests[1:]
    with zipfile.ZipFile(cache) as archive:
        kept = json.loads(archive.read("index.json"))["pictures"]
    assert sorted(row[0] for row in kept) == [str(path) for path in paths[1:]]


def test_what_was_read_before_an_error_is_kept(paths: list[Path], cache: Path) -> None:
    whole = paths[2].read_bytes()
    paths[2].write_bytes(b"broken")
    with pytest.raises(UserError, match="1 of 4 images"):
        fingerprints(paths, max_pixels=LIMIT, cache=cache)
    spoil(paths[0])
    paths[2].write_bytes(whole)
    assert len(fingerprints(paths, max_pixels=LIMIT, cache=cache).digests) == 4


def test_what_was_read_before_an_interruption_is_kept(
    paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_at = module._look_at

    def interrupted(place: Any, **settings: Any) -> object:
        if place.path == paths[2]:
            raise KeyboardInterrupt
        return look_at(place, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_look_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fingerprints(paths, max_pixels=LIMIT, cache=cache)
    spoil(paths[0])
    spoil(paths[1])
    assert len(fingerprints(paths, max_pixels=LIMIT, cache=cache).digests) == 4


def test_it_is_saved_along_the_way(paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_S", -1.0)
    sizes = []
    write = module._write
    monkeypatch.setattr(module, "_write", lambda file, entries: (sizes.append(len(entries)), write(file, entries)))
    fingerprints(paths, max_pixels=LIMIT, cache=cache)
    assert sizes == [1, 2, 3, 4]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_damaged_file_changes_nothing(paths: list[Path], cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fingerprints(paths[:1], max_pixels=LIMIT, cache=cache)
    whole = cache.read_bytes()
    damaged = [b"", b"no zip", *(whole[:length] for length in range(1, len(whole), 97))]
    for place in range(0, len(whole), 3):
        damaged.append(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
    (known,) = map(repr, module._read(cache).items())
    for content in damaged:
        cache.write_bytes(content)
        assert set(map(repr, module._read(cache).items())) <= {known}
    assert "the pictures are read again" in caplog.text
    cache.write_bytes(whole[: len(whole) // 2])
    assert_equal(fingerprints(paths[:1], max_pixels=LIMIT, cache=cache), first)
    spoil(paths[0])  # the file is whole again
    assert_equal(fingerprints(paths[:1], max_pixels=LIMIT, cache=cache), first)


@pytest.mark.parametrize(
    "index",
    [None, [], {}, {"recipe": module._RECIPE}, {"recipe": module._RECIPE, "pictures": [["a", 1, 2, 3, "d", 4]] * 2},
     {"recipe": module._RECIPE, "pictures": [["a", 1, 2, 3, "d", "many"]]}, {"recipe": "another", "pictures": []}],
)  # fmt: skip
def test_a_file_of_another_kind_is_not_used(paths: list[Path], cache: Path, index: object) -> None:
    cache.parent.mkdir()
    with zipfile.ZipFile(cache, "w") as archive:
        archive.writestr("index.json", json.dumps(index))
        archive.writestr("copies", bytes(2304))
    assert_equal(fingerprints(paths, max_pixels=LIMIT, cache=cache), fingerprints(paths, max_pixels=LIMIT))


def test_a_new_recipe_reads_again(paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints(paths, max_pixels=LIMIT, cache=cache)
    spoil(paths[0])
    monkeypatch.setattr(module, "_RECIPE", "another version of Pillow")
    with pytest.raises(UserError, match="not an image"):
        fingerprints(paths, max_pixels=LIMIT, cache=cache)


def test_a_disk_that_takes_nothing_is_a_warning(
    paths: list[Path], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert_equal(fingerprints(paths, max_pixels=LIMIT, cache=cache), fingerprints(paths, max_pixels=LIMIT))
    assert "fingerprints of pictures are not kept" in caplog.text


def test_nothing_is_written_where_all_is_known(paths: list[Path], cache: Path) -> None:
    fingerprints(paths, max_pixels=LIMIT, cache=cache)
    cache.chmod(0o400)
    before = cache.stat().st_mtime_ns, cache.stat().st_ino
    fingerprints(paths[1:], max_pixels=LIMIT, cache=cache)
    assert (cache.stat().st_mtime_ns, cache.stat().st_ino) == before


def test_none_at_all(cache: Path) -> None:
    prints = fingerprints([], max_pixels=LIMIT, cache=cache)
    assert (prints.digests, prints.hashes.shape, prints.small.shape) == ((), (0,), (0, 2304))
    assert not cache.parent.exists()


def test_each_data_set_has_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (cache_file(tmp_path / "kept", tmp_path / name) for name in "ab")
    assert first != second
    assert first == cache_file(tmp_path / "kept", Path("a"))
