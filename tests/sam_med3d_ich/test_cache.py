"""Entries are found again, made anew when anything they depend on changes, and whole whoever writes them."""

import json
import logging
import multiprocessing
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data import cache as cache_module
from quartet.apps.sam_med3d_ich.data.cache import Cache, open_entry
from quartet.apps.sam_med3d_ich.data.case import Case, load_case
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing, prepare, prepare_mask
from quartet.apps.sam_med3d_ich.data.volume import write_nifti

SETTINGS = Preprocessing(spacing=(2.0, 2.0, 2.0))


def make_case(folder: Path, name: str, *, seed: int = 0, bleed: bool = True) -> Case:
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    array = np.random.default_rng(seed).normal(30, 30, size=(20, 16, 9)).astype(np.float32)
    mask: NDArray[np.uint8] = np.zeros(array.shape, dtype=np.uint8)
    mask[4:7, 5:9, 3:5] = mask[15, 12, 7] = 1
    write_nifti(folder / f"{name}.nii.gz", array, like_affine=affine)
    if bleed:
        write_nifti(folder / f"{name}_mask.nii", mask, like_affine=affine)
    return Case(
        name=name,
        image=folder / f"{name}.nii.gz",
        mask=folder / f"{name}_mask.nii" if bleed else None,
        ich=int(bleed),
        patient_id=name,
        origin=f"train.csv, line {name}",
    )


def test_an_entry_is_what_preprocessing_gives(tmp_path: Path) -> None:
    case = make_case(tmp_path, "2")
    cached = Cache(tmp_path / "cache", SETTINGS).read(case)
    volume, mask = load_case(case)
    prepared = prepare(volume, SETTINGS)
    np.testing.assert_array_equal(cached.image, prepared.image)
    np.testing.assert_array_equal(cached.mask, prepare_mask(mask, prepared.grid))
    np.testing.assert_array_equal(cached.grid.affine, prepared.grid.affine)
    assert cached.background == prepared.background
    assert len(cached.boxes) == cached.components.max() == 2
    assert cached.metadata.shape == volume.array.shape
    assert cached.metadata.volume_ml == pytest.approx(mask.sum() * volume.voxel_ml)
    assert sum(cached.metadata.histogram) == volume.array.size
    assert sum(cached.metadata.lesion_histogram) == mask.sum()


def test_arrays_are_mapped_not_read_and_cannot_be_written(tmp_path: Path) -> None:
    cached = Cache(tmp_path / "cache", SETTINGS).read(make_case(tmp_path, "2"))
    for array in (cached.image, cached.components):
        assert isinstance(array.base, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0, 0] = 1


def test_a_case_without_a_mask_has_no_components(tmp_path: Path) -> None:
    cached = Cache(tmp_path / "cache", SETTINGS).read(make_case(tmp_path, "2", bleed=False))
    assert cached.boxes.shape == (0, 3, 2)
    assert not cached.mask.any()
    assert cached.metadata.lesions_ml == ()


def test_the_second_reading_prepares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [make_case(tmp_path, str(number), seed=number) for number in range(3)]
    cache = Cache(tmp_path / "cache", SETTINGS)
    assert cache.fill(cases) == 3
    monkeypatch.setattr(cache_module, "load_case", lambda *_, **__: pytest.fail("read an image again"))
    again = pickle.loads(pickle.dumps(cache))
    assert again.fill(cases) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_whatever_an_entry_depends_on_gives_another_one(tmp_path: Path) -> None:
    case = make_case(tmp_path, "2")
    folder = tmp_path / "cache"
    entries = {Cache(folder, SETTINGS).entry(case)}
    for settings in (
        replace(SETTINGS, spacing=None),
        replace(SETTINGS, window=(75, 215)),
        replace(SETTINGS, normalize="zscore"),
    ):
        entries.add(Cache(folder, settings).entry(case))
    entries.add(Cache(folder, SETTINGS, array_spacing=(1, 1, 2)).entry(case))
    entries.add(Cache(folder, SETTINGS).entry(replace(case, ich=0)))
    entries.add(Cache(folder, SETTINGS).entry(replace(case, mask=None)))
    assert case.mask is not None
    for path in (case.image, case.mask):
        os.utime(path, ns=(1, 10**9))
        entries.add(Cache(folder, SETTINGS).entry(case))
    assert len(entries) == 9
    same = replace(case, origin="other.csv, line 3", patient_id="other")
    assert Cache(folder, SETTINGS).entry(same) in entries


@pytest.mark.parametrize("damage", ["cut image", "empty components", "no components", "half json", "other shape"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    case = make_case(tmp_path, "2")
    cache = Cache(tmp_path / "cache", SETTINGS)
    before = np.array(cache.read(case).image)
    entry = cache.entry(case)
    metadata = (entry / "entry.json").read_text("utf-8")
    if damage == "cut image":
        os.truncate(entry / "image.npy", 600)
    elif damage == "empty components":
        os.truncate(entry / "components.npy", 0)
    elif damage == "no components":
        (entry / "components.npy").unlink()
    elif damage == "half json":
        (entry / "entry.json").write_text(metadata[: len(metadata) // 2])
    else:
        np.save(entry / "image.npy", np.zeros((2, 2, 2), dtype=np.float32))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(cache.read(case).image, before)
    assert "damaged" in caplog.text
    assert (entry / "entry.json").read_text("utf-8") == metadata
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_an_open_map_outlives_the_entry(tmp_path: Path) -> None:
    """Another run may repair or clean up the cache while this one trains."""
    case = make_case(tmp_path, "2")
    cache = Cache(tmp_path / "cache", SETTINGS)
    cached = cache.read(case)
    before = cached.image.sum()
    cache_module._discard(cache.entry(case))
    assert not cache.entry(case).exists()
    assert cached.image.sum() == before
    assert cache.read(case).image.sum() == before


def test_whoever_is_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes the same entry while this one prepares it."""
    case = make_case(tmp_path, "2")
    cache = Cache(tmp_path / "cache", SETTINGS)
    real = cache_module.load_case
    inodes = []

    def slow(*arguments: object, **options: object) -> object:
        monkeypatch.setattr(cache_module, "load_case", real)
        cache.read(case)
        inodes.append((cache.entry(case) / "image.npy").stat().st_ino)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "load_case", slow)
    cached = cache.read(case)
    assert cached.image.size
    assert [(cache.entry(case) / "image.npy").stat().st_ino] == inodes
    assert len(list((tmp_path / "cache").iterdir())) == 1


def _fill(folder: Path, cases: list[Case], rank: int) -> None:
    Cache(folder, SETTINGS).fill(cases, rank=rank, world_size=3)


def test_three_processes_fill_one_cache(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, str(number), seed=number) for number in range(4)]
    folder = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_fill, args=(folder, cases, rank)) for rank in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert Cache(folder, SETTINGS).fill(cases) == 0
    assert len(list(folder.iterdir())) == 4


def test_bad_cases_are_told_together(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, str(number), seed=number) for number in range(3)]
    cases[1].image.write_bytes(b"no volume")
    cases[2].image.unlink()
    cache = Cache(tmp_path / "cache", SETTINGS)
    with pytest.raises(UserError, match=r"(?s)1\.nii\.gz.*train\.csv, line 1.*2\.nii\.gz.*train\.csv, line 2"):
        cache.fill(cases)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing half-made


def test_ranks_report_problems_in_table_order(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, str(number), seed=number) for number in range(4)]
    for case in (cases[0], cases[3]):
        case.image.unlink()
    cache = Cache(tmp_path / "cache", SETTINGS)
    told = []
    for rank in range(2):
        with pytest.raises(UserError, match=r"(?s)line 0.*line 3") as caught:
            cache.fill(cases, rank=rank, world_size=2)
        told.append(str(caught.value))
    assert told[0] == told[1]


def test_progress_tells_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [make_case(tmp_path, str(number), seed=number) for number in range(3)]
    monkeypatch.setattr(cache_module, "_LOG_EVERY_S", -1.0)
    with caplog.at_level(logging.INFO):
        Cache(tmp_path / "cache", SETTINGS).fill(cases)
    assert "prepared 1 of 3 cases, 0:0" in caplog.text
    assert "prepared 3 of 3 cases, 0:00:00 left" in caplog.text


def test_leftovers_of_killed_processes_go_when_they_are_old(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    old, young = folder / ".aa.1.partial", folder / ".bb.2.partial"
    for partial in (old, young):
        partial.mkdir(parents=True)
        (partial / "image.npy").write_bytes(b"half")
    long_ago = time.time() - 24 * 3600
    os.utime(old, (long_ago, long_ago))
    Cache(folder, SETTINGS).fill([make_case(tmp_path, "2")])
    assert not old.exists()
    assert young.exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlcore.base.files.free_bytes", lambda _: 100)
    with pytest.raises(UserError, match="no space left"):
        Cache(tmp_path / "cache", SETTINGS).read(make_case(tmp_path, "2", bleed=False))
    assert list((tmp_path / "cache").iterdir()) == []


def test_entries_open_without_their_sources(tmp_path: Path) -> None:
    case = make_case(tmp_path, "2")
    cache = Cache(tmp_path / "cache", SETTINGS)
    cache.read(case)
    entry = cache.entry(case)
    case.image.unlink()
    assert open_entry(entry).image.ndim == 3
    assert json.loads((entry / "entry.json").read_text("utf-8"))["case"] == "2"
