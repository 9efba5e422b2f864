"""Pictures of cases, read back: what is drawn, where, in which colour, of which slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image as reader
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich import overlays
from quartet.apps.sam_med3d_ich.overlays import best_median_worst, plot_overlay
from quartet.apps.sam_med3d_ich.scene import CONTOUR, MISSED, RIGHT, WRONG

pytestmark = pytest.mark.pictures

BRAIN = (40.0, 80.0)
CORONAL, SAGITTAL, ENLARGED, BARE = (1, 0), (1, 1), (1, 2), (1, 3)  # row and column of the picture
SIX = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


def _mask(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice]) -> NDArray[np.uint8]:
    mask = np.zeros(shape, dtype=np.uint8)
    for box in boxes:
        mask[box] = 1
    return mask


def _runs(inside: NDArray[np.bool_]) -> list[slice]:
    """Where `inside` holds, as slices."""
    steps = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    return [slice(int(start), int(end)) for start, end in steps.reshape(-1, 2)]


def _tile(path: Path, place: tuple[int, int]) -> NDArray[np.float64]:
    """One of the 2 x 4 pictures ``[H, W, 3]`` of a volume that is mostly black."""
    page = np.asarray(reader.imread(path), dtype=np.float64)[..., :3]
    black = page.max(axis=2) < 0.02
    rows, columns = _runs(black.mean(axis=1) > 0.4), _runs(black.mean(axis=0) > 0.4)
    assert (len(rows), len(columns)) == (2, 4)
    return page[rows[place[0]], columns[place[1]]]


def _where(tile: NDArray[np.float64], color: Sequence[float], *, tolerance: float = 0.06) -> NDArray[np.intp]:
    """Rows and columns ``[N, 2]`` of the pixels of that colour."""
    return np.argwhere(np.abs(tile - np.asarray(color)).max(axis=2) < tolerance)


def _filled(color: str, opacity: float = 0.45) -> NDArray[np.float64]:
    """A translucent colour over black."""
    return np.asarray(to_rgb(color)) * opacity


def _draw(predicted: NDArray[Any], target: NDArray[Any] | None, path: Path, **changed: Any) -> Path:
    affine = np.diag([*changed.pop("spacing", (2.0, 2.0, 5.0)), 1.0])
    settings: dict[str, Any] = {"affine": affine, "title": "a case", "window": BRAIN}
    volume = changed.pop("volume", np.zeros(predicted.shape, dtype=np.float32))
    return plot_overlay(volume, predicted=predicted, target=target, path=path, **settings | changed)


def test_right_is_left_and_front_and_head_are_up(tmp_path: Path) -> None:
    shape = (32, 40, 12)  # a bleed on the right, at the front, high up
    bleed = _mask(shape, (slice(24, 29), slice(30, 36), slice(9, 11)))
    path = _draw(bleed, bleed, tmp_path / "case.png")
    for place in (CORONAL, SAGITTAL, (0, 2)):
        tile = _tile(path, place)
        row, column = _where(tile, _filled(RIGHT)).mean(axis=0)
        assert column < 0.45 * tile.shape[1]
        assert row < 0.45 * tile.shape[0]


def test_a_cube_in_mm_is_drawn_as_a_square_of_the_same_size_in_every_view(tmp_path: Path) -> None:
    shape = (40, 40, 16)  # 80 mm each way
    cube = _mask(shape, (slice(10, 20), slice(15, 25), slice(5, 9)))  # 20 mm each way
    path = _draw(cube, cube, tmp_path / "case.png")
    sides = []
    for place in (CORONAL, SAGITTAL, (0, 1)):
        tile = _tile(path, place)
        inside = _where(tile, _filled(RIGHT))
        sides.extend((np.ptp(inside, axis=0) + 1) / tile.shape[:2])
    assert sides == pytest.approx([20 / 80] * 6, abs=0.015)


def test_missed_and_wrong_voxels_have_their_own_colours_where_they_are(tmp_path: Path) -> None:
    shape = (32, 32, 8)
    target = _mask(shape, (slice(10, 20), slice(12, 20), slice(2, 6)))
    predicted = _mask(shape, (slice(15, 25), slice(12, 20), slice(2, 6)))
    tile = _tile(_draw(predicted, target, tmp_path / "case.png"), (0, 1))
    columns = {color: _where(tile, _filled(color))[:, 1] for color in (WRONG, RIGHT, MISSED)}
    assert columns[WRONG].max() < columns[RIGHT].min()  # high x is the patient's right, on the left
    assert columns[RIGHT].max() < columns[MISSED].min()
    # The outline is that of the target: it runs round what is right and missed.
    line = _where(tile, to_rgb(CONTOUR), tolerance=0.12)[:, 1]
    assert line.min() == pytest.approx(columns[RIGHT].min(), abs=4)
    assert line.max() == pytest.approx(columns[MISSED].max(), abs=4)


def test_a_perfect_mask_shows_no_error_and_the_bare_picture_no_colour(tmp_path: Path) -> None:
    mask = _mask((32, 32, 8), (slice(10, 20), slice(12, 20), slice(2, 6)))
    path = _draw(mask, mask, tmp_path / "case.png")
    for place in ((0, 1), CORONAL, SAGITTAL, ENLARGED):
        tile = _tile(path, place)
        assert len(_where(tile, _filled(RIGHT)))
        assert not len(_where(tile, _filled(WRONG)))
        assert not len(_where(tile, _filled(MISSED)))
    bare = _tile(path, BARE)
    assert float(np.ptp(bare, axis=2).max()) < 0.06  # greys only


def test_a_case_that_nobody_marked_shows_the_prediction_without_outline(tmp_path: Path) -> None:
    mask = _mask((32, 32, 8), (slice(10, 20), slice(12, 20), slice(2, 6)))
    tile = _tile(_draw(mask, None, tmp_path / "case.png"), ENLARGED)
    assert len(_where(tile, _filled(RIGHT)))
    assert not len(_where(tile, to_rgb(CONTOUR), tolerance=0.12))


def test_a_single_voxel_is_outlined_and_enlarged(tmp_path: Path) -> None:
    target = _mask((128, 128, 6), (slice(30, 31), slice(40, 41), slice(3, 4)))
    path = _draw(np.zeros_like(target), target, tmp_path / "case.png", spacing=(0.5, 0.5, 5.0))
    tile = _tile(path, ENLARGED)
    missed = _where(tile, _filled(MISSED))
    assert np.ptp(missed, axis=0) / tile.shape[:2] == pytest.approx(0.5 / 30, abs=0.008)
    assert missed.mean(axis=0) / tile.shape[:2] == pytest.approx(0.5, abs=0.01)
    assert len(_where(tile, to_rgb(CONTOUR), tolerance=0.12))


def _slices_shown(path: Path, tiles: Sequence[tuple[int, int]]) -> list[int]:
    """Slice numbers from the greys of `_numbered`."""
    return [round(grey * 20) for grey in _greys(path, tiles)]


def _greys(path: Path, tiles: Sequence[tuple[int, int]]) -> list[float]:
    """Read off the middle of each picture, a third from the left."""
    page = np.asarray(reader.imread(path), dtype=np.float64)[..., :3]
    height, width = page.shape[0] // 2, page.shape[1] // 4
    spots = [page[row * height + height // 2 + 20, column * width + width // 3] for row, column in tiles]
    assert all(np.ptp(spot) < 0.01 for spot in spots)
    return [float(spot.mean()) for spot in spots]


def _numbered(shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Slice z has the grey z / 20 under the window of level 10 and width 20."""
    return np.broadcast_to(np.arange(shape[2], dtype=np.float32), shape)


def test_slices_with_the_largest_bleed_the_largest_error_and_neighbours_are_shown(tmp_path: Path) -> None:
    shape = (30, 30, 20)
    target = _mask(shape, (slice(4, 7), slice(4, 7), slice(3, 8)), (slice(4, 9), slice(4, 9), slice(5, 6)))
    predicted = target.copy()
    predicted[20:28, 2:4, 15] = 1
    changes: dict[str, Any] = {"volume": _numbered(shape), "window": (10.0, 20.0)}
    path = _draw(predicted, target, tmp_path / "thick.png", **changes)
    assert _slices_shown(path, SIX[:4]) == [4, 5, 6, 15]
    path = _draw(predicted, target, tmp_path / "thin.png", **changes, spacing=(1.0, 1.0, 2.5))
    assert _slices_shown(path, SIX[:4]) == [3, 5, 7, 15]  # neighbours are 5 mm away, whatever the slice thickness


def test_a_healthy_case_shows_six_slices_around_the_middle(tmp_path: Path) -> None:
    empty = np.zeros((30, 30, 20), dtype=np.uint8)
    path = _draw(empty, empty, tmp_path / "case.png", volume=_numbered(empty.shape), window=(10.0, 20.0))
    assert _slices_shown(path, SIX) == [8, 9, 10, 11, 12, 13]


def test_the_window_sets_the_greys(tmp_path: Path) -> None:
    empty = np.zeros((16, 16, 6), dtype=np.uint8)
    volume = np.broadcast_to(np.array([-1000, 0, 20, 40, 80, 1500], dtype=np.float32), empty.shape)
    path = _draw(empty, None, tmp_path / "case.png", volume=volume)
    assert _greys(path, SIX) == pytest.approx([0, 0, 0.25, 0.5, 1, 1], abs=0.01)


def test_any_volume_and_title_can_be_drawn_twice_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(0, 1, (7, 5, 1)).astype(np.float32)
    mask = (rng.random(volume.shape) < 0.3).astype(np.uint8)
    first, second = (
        _draw(mask, 1 - mask, tmp_path / name, volume=volume, window=None, title="$x_1$ " + "long " * 40)
        for name in ("a.png", "b.png")
    )
    assert first.read_bytes() == second.read_bytes()
    flat = np.zeros_like(volume)
    assert _draw(mask, mask, tmp_path / "c.png", volume=flat, window=None).stat().st_size > 0


def test_captions_give_the_volume_of_a_tilted_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(overlays, "_heading", lambda figure, title, figures: told.append(figures))
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    affine[1, 2] = 5 * math.tan(math.radians(20))
    mask = _mask((24, 24, 8), (slice(0, 20), slice(0, 10), slice(1, 5)))  # 800 voxels of 1.25 mm3
    _draw(mask, mask, tmp_path / "case.png", affine=affine)
    _draw(mask * 0, mask * 0, tmp_path / "case.png", affine=affine)
    assert told[0].startswith("marked 1.00 mL · predicted 1.00 mL · Dice 1.000 · ")
    assert told[1].startswith("nothing marked · predicted 0.00 mL · window")


def test_masks_of_another_shape_are_an_error(tmp_path: Path) -> None:
    mask = np.zeros((8, 8, 8), dtype=np.uint8)
    with pytest.raises(UserError, match=r"target \(8, 8, 7\)"):
        _draw(mask, mask[..., :7], tmp_path / "case.png")
    with pytest.raises(UserError, match=r"predicted \(8, 8\)"):
        _draw(mask[0], None, tmp_path / "case.png")
    assert not list(tmp_path.iterdir())


def test_best_median_and_worst_are_chosen_among_cases_with_a_lesion() -> None:
    dice = [1.0, 0.2, 0.9, 0.5, 0.0, 0.7]
    lesion = [False, True, True, True, False, True]
    assert best_median_worst(dice, lesion=lesion, names="abcdef") == {"best": 2, "median": 3, "worst": 1}
    assert best_median_worst(dice, lesion=[False] * 6, names="abcdef") == {"best": 0, "median": 3, "worst": 4}


def test_the_choice_does_not_depend_on_the_order_and_names_no_case_twice() -> None:
    names, dice = ["c", "a", "d", "b"], [0.5, 0.5, 0.5, 0.5]
    picked = best_median_worst(dice, lesion=[True] * 4, names=names)
    assert {word: names[index] for word, index in picked.items()} == {"best": "d", "median": "b", "worst": "a"}
    assert best_median_worst([0.3, 0.8], lesion=[True, True], names="ab") == {"best": 1, "worst": 0}
    assert best_median_worst([0.3], lesion=[True], names="a") == {"best": 0}
    assert best_median_worst([], lesion=[], names="") == {}
    assert best_median_worst([math.nan, 0.4], lesion=[True, False], names="ab") == {"best": 1}
