"""The target grid: the same for every stored order, geometrically exact both ways, and no lesion gets lost on it."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from quartet.apps.sam_med3d_ich.data.preprocess import (
    EVERYWHERE,
    WINDOWS,
    Grid,
    Preprocessing,
    prepare,
    prepare_mask,
    to_native,
)
from quartet.apps.sam_med3d_ich.data.volume import Volume

PLAIN = Preprocessing(spacing=None, window=None, normalize="none")


def volume(shape: Sequence[int], spacing: Sequence[float], *, seed: int = 0) -> Volume:
    array = np.random.default_rng(seed).normal(30, 60, size=shape).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -11.0, 7.0, 3.5
    return Volume(array=array, affine=affine)


def stored_otherwise(array: NDArray[np.generic], order: Sequence[int], flips: Sequence[int]) -> NDArray[np.generic]:
    return np.flip(array.transpose(order), [axis for axis in range(3) if flips[axis]])


def moved(original: Volume, order: Sequence[int], flips: Sequence[int]) -> Volume:
    """The same volume in the same place, stored along other axes."""
    array = stored_otherwise(original.array, order, flips)
    matrix = np.zeros((4, 4))  # new index -> old index
    matrix[3, 3] = 1
    for new, old in enumerate(order):
        matrix[old, new] = -1 if flips[new] else 1
        matrix[old, 3] = array.shape[new] - 1 if flips[new] else 0
    return Volume(array=array, affine=original.affine @ matrix)


ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product([0, 1], repeat=3)))


@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5)])
def test_every_stored_order_gives_the_same_bits_and_the_same_voxels_back(
    spacing: tuple[float, float, float] | None,
) -> None:
    original = volume((13, 10, 7), (0.8, 1.3, 2.9))
    settings = Preprocessing(spacing=spacing)
    expected = prepare(original, settings)
    mask = (original.array > 130).astype(np.uint8)
    expected_mask = prepare_mask(mask, expected.grid)
    assert expected_mask.any()
    back = to_native(expected.image, expected.grid)
    assert len(ORDERS) == 48
    for order, flips in ORDERS:
        copy = moved(original, order, flips)
        prepared = prepare(copy, settings)
        np.testing.assert_array_equal(prepared.image, expected.image)
        assert prepared.background == expected.background
        np.testing.assert_allclose(prepared.grid.affine, expected.grid.affine, atol=1e-9)
        copied_mask = prepare_mask(stored_otherwise(mask, order, flips).astype(np.uint8), prepared.grid)
        np.testing.assert_array_equal(copied_mask, expected_mask)
        np.testing.assert_array_equal(
            to_native(prepared.image, prepared.grid), stored_otherwise(back, order, flips), strict=True
        )


def test_a_tilted_copy_keeps_its_voxels() -> None:
    original = volume((9, 8, 7), (1.0, 1.0, 1.0))
    angle = np.radians(12)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    tilted = Volume(array=original.array, affine=tilt @ original.affine)
    np.testing.assert_array_equal(prepare(tilted, PLAIN).image, original.array)


@pytest.mark.parametrize("shape", [(13, 10, 7), (1, 9, 30), (2, 3, 1), (16, 16, 16)])
@pytest.mark.parametrize("spacing", [(0.45, 0.45, 5.0), (1.5, 1.5, 1.5), (3.1, 2.2, 0.7)])
def test_shapes_and_constants_survive_the_round_trip(shape: tuple[int, int, int], spacing: tuple[float, ...]) -> None:
    stored = moved(volume(shape, spacing), (2, 0, 1), (0, 1, 1))
    grid = prepare(stored, Preprocessing(spacing=(1.5, 1.5, 1.5), normalize="none", window=None)).grid
    assert all(side >= 1 for side in grid.shape)
    for value in (0.1, 1 / 3, 1.0):
        constant = np.full(grid.shape, value, dtype=np.float32)
        back = to_native(constant, grid)
        assert back.shape == stored.array.shape
        np.testing.assert_array_equal(back, np.float32(value))
    same = prepare(Volume(array=np.full(shape, 37.1, dtype=np.float32), affine=stored.affine), PLAIN)
    np.testing.assert_array_equal(same.image, np.float32(37.1))


@pytest.mark.parametrize("stored_spacing", [(0.45, 0.5, 5.0), (2.0, 0.9, 1.1)])
def test_a_smooth_function_of_the_world_survives_the_round_trip(stored_spacing: tuple[float, float, float]) -> None:
    """Its samples on the target grid lie where the grid's affine says, and come back to the voxels they came from."""
    wave = np.array([0.05, -0.04, 0.03])
    shape = tuple(round(60 / side) for side in stored_spacing)
    flat = volume(shape, stored_spacing)
    stored = moved(flat, (1, 2, 0), (1, 0, 1))
    world = _positions(stored.array.shape, stored.affine)
    smooth = np.sin(world @ wave).astype(np.float32)
    stored = Volume(array=smooth, affine=stored.affine)
    prepared = prepare(stored, Preprocessing(spacing=(1.5, 1.5, 1.5), window=None, normalize="none"))
    there = np.sin(_positions(prepared.grid.shape, prepared.grid.affine) @ wave)
    inside = tuple(slice(4, -4) for _ in range(3))
    np.testing.assert_allclose(prepared.image[inside], there[inside], atol=0.01)
    back = to_native(torch.from_numpy(there.astype(np.float32)), prepared.grid)
    away = np.array([max(1, round(6 / side)) for side in stored.spacing])
    deep = tuple(slice(edge, -edge) for edge in away)
    np.testing.assert_allclose(back[deep], smooth[deep], atol=0.003)


def test_points_go_where_the_affines_say() -> None:
    stored = moved(volume((20, 11, 9), (0.5, 0.7, 4.0)), (1, 2, 0), (0, 1, 1))
    grid = prepare(stored, Preprocessing()).grid
    points = np.array([[0.0, 0.0, 0.0], [3.0, 7.0, 12.0]])
    there = grid.from_native(points)
    homogeneous = np.c_[points, np.ones(2)] @ stored.affine.T
    np.testing.assert_allclose(np.c_[there, np.ones(2)] @ grid.affine.T, homogeneous, atol=1e-9)
    corners = np.array([[-0.5, -0.5, -0.5], np.array(stored.array.shape) - 0.5])
    faces = np.sort(grid.from_native(corners), axis=0)
    np.testing.assert_allclose(faces, [[-0.5] * 3, np.array(grid.shape) - 0.5], atol=1e-9)


def test_a_grid_survives_json() -> None:
    grid = prepare(moved(volume((5, 6, 7), (1, 2, 3)), (2, 0, 1), (1, 0, 0)), Preprocessing()).grid
    again = Grid.from_dict(grid.to_dict())
    np.testing.assert_array_equal(again.affine, grid.affine)
    assert (again.native_shape, again.axes, again.shape) == (grid.native_shape, grid.axes, grid.shape)
    np.testing.assert_allclose(grid.spacing, 1.5, rtol=0.35)


def test_the_spacing_of_the_file_can_be_kept() -> None:
    stored = volume((5, 6, 7), (1, 2, 3))
    prepared = prepare(stored, PLAIN)
    np.testing.assert_array_equal(prepared.image, stored.array)
    assert prepared.grid.spacing == stored.spacing


def test_windows_clip_in_hu() -> None:
    stored = volume((8, 8, 8), (1, 1, 1))
    prepared = prepare(stored, Preprocessing(spacing=None, window=WINDOWS["brain"], normalize="none"))
    np.testing.assert_array_equal(prepared.image, stored.array.clip(0, 80))
    assert prepared.background == 0
    custom = prepare(stored, Preprocessing(spacing=None, window=(75, 215), normalize="none"))
    assert custom.background == custom.image.min() == np.float32(-32.5)


def test_normalisation() -> None:
    stored = volume((16, 16, 16), (1, 1, 1))
    everything = prepare(stored, Preprocessing(spacing=None, normalize="zscore"))
    assert abs(everything.image.mean()) < 1e-5
    assert abs(everything.image.std() - 1) < 1e-5
    tissue = prepare(stored, Preprocessing(spacing=None, normalize="zscore_positive"))
    air = stored.array <= 0
    assert abs(tissue.image[~air].mean()) < 1e-5
    assert abs(tissue.image[~air].std() - 1) < 1e-5
    np.testing.assert_array_equal(tissue.image[air], np.float32(tissue.background))
    released = prepare(stored, Preprocessing(spacing=None, window=None, normalize="zscore_positive"))
    positive = stored.array[stored.array > 0].astype(np.float64)
    np.testing.assert_allclose(released.image, (stored.array - positive.mean()) / positive.std(), atol=1e-5)
    assert released.background == released.image.min()


@pytest.mark.parametrize("normalize", ["zscore", "zscore_positive", "none"])
def test_a_volume_that_the_window_flattens_stays_finite(normalize: str) -> None:
    """All air: nothing above the window's lowest value, deviation 0."""
    array = np.full((6, 6, 6), -1000, dtype=np.float32)
    array[0, 0, 0] = -990
    prepared = prepare(Volume(array=array, affine=np.eye(4)), Preprocessing(normalize=normalize))
    np.testing.assert_array_equal(prepared.image, np.float32(prepared.background))
    assert np.isfinite(prepared.background)


def test_air_at_the_edge_stays_air_when_the_grid_gets_coarser() -> None:
    array = np.full((40, 40, 40), -1000, dtype=np.float32)
    array[15:25, 15:25, 15:25] = 40
    prepared = prepare(Volume(array=array, affine=np.eye(4)), Preprocessing(spacing=(3, 3, 3), window=None))
    np.testing.assert_allclose(prepared.image[[0, -1]], prepared.background, rtol=1e-6)


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (4.0, 4.0, 4.0), (0.3, 7.0, 1.0)])
def test_no_component_vanishes(spacing: tuple[float, float, float]) -> None:
    """Sparse single voxels and small clumps, far enough from each other not to merge on a coarse grid."""
    stored = moved(volume((64, 60, 24), (0.45, 0.45, 2.5)), (2, 0, 1), (1, 1, 0))
    grid = prepare(stored, Preprocessing(spacing=spacing)).grid
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mask = np.zeros(stored.array.shape, dtype=np.uint8)
        corner = rng.integers(0, np.array(mask.shape) - 2)
        mask[tuple(slice(c, c + s) for c, s in zip(corner, rng.integers(1, 3, size=3), strict=True))] = 1
        prepared = prepare_mask(mask, grid)
        assert ndimage.label(prepared, structure=EVERYWHERE)[1] == 1
        centre = grid.from_native(np.argwhere(mask).mean(axis=0)[None])[0]
        assert np.abs(np.argwhere(prepared).mean(axis=0) - centre).max() <= 1.0
    corners = np.zeros(stored.array.shape, dtype=np.uint8)
    corners[np.ix_([0, -1], [0, -1], [0, -1])] = 1
    assert ndimage.label(prepare_mask(corners, grid), structure=EVERYWHERE)[1] == 8
    assert prepare_mask(np.zeros_like(corners), grid).sum() == 0


def test_masks_keep_their_volume() -> None:
    stored = volume((60, 60, 20), (0.5, 0.5, 2.0))
    grid = prepare(stored, Preprocessing(spacing=(1, 1, 1))).grid
    mask = np.zeros(stored.array.shape, dtype=np.uint8)
    mask[10:50, 12:40, 4:16] = 1
    prepared = prepare_mask(mask, grid)
    voxel_ml = abs(np.linalg.det(grid.affine[:3, :3])) / 1000
    assert prepared.sum() * voxel_ml == pytest.approx(mask.sum() * stored.voxel_ml, rel=1e-6)
    assert set(np.unique(prepared)) == {0, 1}


def _ball(shape: Sequence[int], spacing: Sequence[float], centre: NDArray[np.float64], radius: float) -> Any:
    index = np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij"), axis=-1)
    return ((((index - centre) * spacing) ** 2).sum(axis=-1) <= radius**2).astype(np.uint8)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((64, 60, 20), (0.75, 0.75, 3.0)), ((48, 48, 48), (0.75,) * 3), ((80, 80, 16), (0.375, 0.375, 3.0))],
    ids=["2 x 2", "2 x 2 x 2", "4 x 4"],
)
def test_masks_stay_where_their_images_are_when_voxels_are_left_out(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    """Every second centre of the target grid lies on a face of the stored one."""
    stored = volume(shape, spacing)
    grid = prepare(stored, Preprocessing()).grid
    rng, shifts, volumes = np.random.default_rng(0), [], []
    for _ in range(40):
        radius = rng.uniform(5, 9)
        middle = rng.uniform(0.45, 0.55, 3) * np.array(shape)
        mask = _ball(shape, spacing, middle, radius)
        prepared = prepare_mask(mask, grid)
        there, here = (
            np.argwhere(one).mean(axis=0) @ affine[:3, :3].T
            for one, affine in ((prepared, grid.affine), (mask, stored.affine))
        )
        shifts.append(there + grid.affine[:3, 3] - here - stored.affine[:3, 3])  # mm
        ml = abs(np.linalg.det(grid.affine[:3, :3])) / 1000
        volumes.append(prepared.sum() * ml / (mask.sum() * stored.voxel_ml))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.04  # -0.375 and -0.19 if the upper one of two is always taken
    assert np.abs(shifts)[:, :2].max() < 0.25
    assert np.mean(volumes) == pytest.approx(1, abs=0.02)


def test_flat_faces_between_voxels_move_neither_way() -> None:
    stored = volume((40, 40, 40), (0.75,) * 3)
    grid = prepare(stored, Preprocessing()).grid
    mask = np.zeros(stored.array.shape, dtype=np.uint8)
    mask[11:27, 10:28, 9:29] = 1  # cut in the middle of target voxels along the first and the last axis
    prepared = prepare_mask(mask, grid)
    assert prepared.sum() == mask.sum() / 8
    centre = np.argwhere(prepared).mean(axis=0)
    np.testing.assert_allclose(2 * centre + 0.5, np.argwhere(mask).mean(axis=0), atol=0.1)
    assert ndimage.label(prepared, structure=EVERYWHERE)[1] == 1


def test_other_factors_take_the_one_nearest_voxel() -> None:
    stored = volume((48, 45, 16), (2.0, 1.0, 5.0))
    grid = prepare(stored, Preprocessing(spacing=(3.0, 3.0, 3.0))).grid
    mask = (np.random.default_rng(0).random(stored.array.shape) < 0.5).astype(np.uint8)
    nearest = [((np.arange(m) + 0.5) * n / m).astype(int) for n, m in zip(mask.shape, grid.shape, strict=True)]
    np.testing.assert_array_equal(prepare_mask(mask, grid), mask[np.ix_(*nearest)])


def _positions(shape: Sequence[int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """World position of every voxel, [X, Y, Z, 3]."""
    index = np.stack(np.meshgrid(*[np.arange(side) for side in shape], indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]
