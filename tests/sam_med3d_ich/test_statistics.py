"""The figures are those of the stored volumes, come from the cache, and can be reported and drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mlcore.base.console import setup_logging
from mlcore.report.page import Picture, RunReport, Table, write_report
from quartet.apps.sam_med3d_ich.build import told_of_units
from quartet.apps.sam_med3d_ich.data import cache as cache_module
from quartet.apps.sam_med3d_ich.data.cache import Cache
from quartet.apps.sam_med3d_ich.data.case import Case
from quartet.apps.sam_med3d_ich.data.metadata import HU_EDGES, CaseMetadata, case_metadata, not_hu
from quartet.apps.sam_med3d_ich.data.preprocess import WINDOWS, Preprocessing
from quartet.apps.sam_med3d_ich.data.statistics import DatasetStatistics, dataset_statistics, statistics_sections
from quartet.apps.sam_med3d_ich.data.volume import Volume, read_volume, write_nifti

pytestmark = pytest.mark.pictures


def make_cases(folder: Path, *, bleeds: int, others: int) -> list[Case]:
    """Heads of 2 x 2 x 5 mm voxels (0.02 mL); bleed k has lesions of 8 (k + 1) and 1 voxels at 70 HU."""
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    cases = []
    for number in range(bleeds + others):
        array = np.random.default_rng(number).normal(30, 5, size=(20, 20, 10 + number)).astype(np.float32)
        array[:4] = -1000
        mask: NDArray[np.uint8] = np.zeros(array.shape, dtype=np.uint8)
        has_bleed = number < bleeds
        if has_bleed:
            mask[6:8, 6:8, 2 : 4 + 2 * number] = mask[15, 15, 8] = 1
            array[mask > 0] = 70
            write_nifti(folder / f"{number}_mask.nii", mask, like_affine=affine)
        write_nifti(folder / f"{number}.nii", array, like_affine=affine)
        cases.append(
            Case(
                name=str(number),
                image=folder / f"{number}.nii",
                mask=folder / f"{number}_mask.nii" if has_bleed else None,
                ich=int(has_bleed),
                patient_id=str(number // 2),
                origin=f"train.csv, line {number + 2}",
            )
        )
    return cases


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetStatistics]:
    folder = tmp_path_factory.mktemp("cases")
    cache = Cache(folder / "cache", Preprocessing())
    return {
        "train": dataset_statistics(make_cases(folder / "train", bleeds=3, others=1), cache=cache),
        "val": dataset_statistics(make_cases(folder / "val", bleeds=0, others=2), cache=cache),
    }


BRAIN, TISSUE = WINDOWS["brain"], 35.0


@pytest.mark.parametrize(
    ("air", "blood", "window", "told"),
    [
        (-1000, 70, BRAIN, []),
        (-1000, 70, None, []),
        (24, 1094, BRAIN, ["lowest value is 24,", "median inside its mask is 1070, outside the window of 0 to 80 HU"]),
        (24, 1094, None, []),
        (0, 70, BRAIN, ["lowest value is 0,"]),
        (-1000, 150, BRAIN, ["median inside its mask is 150"]),
        (-1000, 150, (75.0, 215.0), []),
    ],
)
def test_values_that_are_no_hu_are_noticed(
    air: float, blood: float, window: tuple[float, float] | None, told: list[str]
) -> None:
    mask: NDArray[np.uint8] = np.zeros((8, 8, 8), dtype=np.uint8)
    mask[2:5, 2:5, 2:5] = 1
    array = np.where(mask > 0, blood, TISSUE).astype(np.float32)
    array[:, :, 0] = air
    remarks = not_hu(case_metadata(Volume(array, np.eye(4)), mask), window)
    assert len(remarks) == len(told)
    assert all(part in remark for part, remark in zip(told, remarks, strict=True))


def test_cases_that_are_no_hu_are_in_the_report(tmp_path: Path) -> None:
    cases = make_cases(tmp_path / "data", bleeds=2, others=0)
    raw = read_volume(cases[1].image)
    write_nifti(cases[1].image, raw.array + 1024, like_affine=raw.affine)
    for window, count in ((BRAIN, 2), (None, 0)):
        cache = Cache(tmp_path / "cache", Preprocessing(window=window))
        part = dataset_statistics(cases, cache=cache)
        assert [name for name, _ in part.not_hu] == ["1"] * count
        assert dict(part.rows())["perhaps not HU"] == ("1 case" if count else "none")
        tables = {s.title: s for s in statistics_sections({"train": part}, tmp_path) if isinstance(s, Table)}
        assert ("Perhaps not HU" in tables) == bool(count)
    rows = statistics_sections(
        {"train": dataset_statistics(cases, cache=Cache(tmp_path / "c", Preprocessing()))}, tmp_path
    )
    page = write_report(tmp_path, report=RunReport("data", sections=rows)).read_text(encoding="utf-8")
    assert "its lowest value is 24, air is -1000 HU" in page


def test_histograms_count_every_voxel_in_its_bin() -> None:
    rng = np.random.default_rng(0)
    array = rng.uniform(-1500, 2500, size=(12, 13, 14)).astype(np.float32)
    array[0, 0, :4] = [-1024, -4, 0, 1999.5]
    mask = (rng.random(array.shape) > 0.8).astype(np.uint8)
    metadata = case_metadata(Volume(array=array, affine=np.eye(4)), mask)
    inside = array.clip(HU_EDGES[0], HU_EDGES[-1])
    np.testing.assert_array_equal(metadata.histogram, np.histogram(inside, bins=HU_EDGES)[0])
    np.testing.assert_array_equal(metadata.lesion_histogram, np.histogram(inside[mask > 0], bins=HU_EDGES)[0])
    assert (np.diff(HU_EDGES)[(HU_EDGES[:-1] >= 0) & (HU_EDGES[:-1] < 80)] == 4).all()
    assert CaseMetadata.from_dict(metadata.to_dict()) == metadata


def test_the_figures_of_known_cases(parts: dict[str, DatasetStatistics]) -> None:
    train = parts["train"]
    np.testing.assert_allclose(sorted(train.lesions_ml), [0.02, 0.02, 0.02, 0.16, 0.32, 0.48])
    np.testing.assert_allclose(train.bleeds_ml, [0.18, 0.34, 0.50])
    np.testing.assert_array_equal(train.spacing, [[2, 2, 5]] * 4)
    assert train.voxel_counts.sum() == sum(400 * (10 + number) for number in range(4))
    assert train.lesion_counts.sum() == 8 + 16 + 24 + 3
    rows = dict(train.rows())
    assert rows["cases"] == "4 of 2 patients"
    assert rows["with a bleed"] == "3 (75%), without 1"
    assert rows["voxels"] == "20 x 20 x (10 to 13)"
    assert rows["spacing"] == "2 x 2 x 5 mm"
    assert rows["values"].startswith("-1000 to ")
    assert rows["HU inside the mask"] == "median 70 (quartiles 70 to 70)"
    assert rows["lesions per bleed"] == "2.0 (1 to 2)"
    assert rows["volume per bleed"] == "median 0.34 mL (0.18 to 0.5)"
    assert rows["lesions below 1 mL"] == "6 of 6"
    assert dict(parts["val"].rows())["lesion volume"] == "none"


def test_a_second_look_reads_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = make_cases(tmp_path, bleeds=1, others=1)
    cache = Cache(tmp_path / "cache", Preprocessing())
    first = dataset_statistics(cases, cache=cache)
    monkeypatch.setattr(cache_module, "load_case", lambda *_, **__: pytest.fail("read an image again"))
    assert dataset_statistics(cases, cache=cache).rows() == first.rows()


def test_the_table_and_the_picture_go_into_a_report(tmp_path: Path, parts: dict[str, DatasetStatistics]) -> None:
    table, shown = statistics_sections(parts, tmp_path)
    assert isinstance(table, Table)
    assert isinstance(shown, Picture)
    assert list(table.columns) == ["", "train", "val"]
    with Image.open(shown.path) as image:
        assert image.size == (1584, 921)
        assert len(np.unique(np.asarray(image))) > 20
    write_report(tmp_path, report=RunReport(title="Bleeds", sections=[table, shown]))
    assert "3 (75%), without 1" in (tmp_path / "report.html").read_text("utf-8")
    assert "](<statistics.png>)" in (tmp_path / "summary.md").read_text(
        "utf-8"
    )  # a run's folder needs nothing outside it


def test_a_set_without_lesions_can_be_drawn(tmp_path: Path, parts: dict[str, DatasetStatistics]) -> None:
    statistics_sections({"val": parts["val"]}, tmp_path)
    assert (tmp_path / "statistics.png").stat().st_size > 10_000


def test_cases_that_are_no_hu_are_warned_of(
    parts: dict[str, DatasetStatistics], capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging()
    remarks = tuple((f"case{number}", "its lowest value is 0, air is -1000 HU") for number in range(12))
    (note,) = told_of_units({"train": replace(parts["train"], not_hu=remarks), "val": parts["val"]})
    assert note.startswith("12 cases of the train data may not be in HU, as --window needs it: case0, case1, ")
    printed = capsys.readouterr().out
    assert printed.count("perhaps not in HU") == 10
    assert note in printed
