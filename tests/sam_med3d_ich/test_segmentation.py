"""Whole volumes of any size and storage order through the model, with and without clicks."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.crops import starts
from quartet.apps.sam_med3d_ich.data.preprocess import EVERYWHERE, Preprocessing, prepare
from quartet.apps.sam_med3d_ich.data.volume import Volume, read_volume, write_nifti
from quartet.apps.sam_med3d_ich.model.ich import Answer, IchModel
from quartet.apps.sam_med3d_ich.segmentation import Click, Segmentation, Segmenter, _click_windows, clicks_from_mask

MakeModel = Callable[..., IchModel]
SIDE = 16  # of the tiny model's windows
SHAPES = [(5, 9, 7), (16, 16, 16), (17, 23, 19), (31, 12, 8)]
ORDERS = [
    pytest.param(order, flips, id="".join("xyz"[i] + "-"[:f] for i, f in zip(order, flips, strict=True)))
    for order, flips in [
        ((0, 1, 2), (1, 0, 0)),
        ((0, 1, 2), (0, 0, 1)),
        ((1, 0, 2), (0, 1, 0)),
        ((2, 1, 0), (1, 0, 0)),
        ((1, 2, 0), (1, 1, 1)),
    ]
]


def volume(shape: Sequence[int], spacing: Sequence[float] = (1.5, 1.5, 1.5), *, seed: int = 0) -> Volume:
    """Smooth noise in HU."""
    noise = np.random.default_rng(seed).normal(0, 1, size=shape)
    array = (40 + 120 * ndimage.gaussian_filter(noise, 1.5)).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -11.0, 7.0, 3.5
    return Volume(array=array, affine=affine)


def to_old(shape: Sequence[int], order: Sequence[int], flips: Sequence[int]) -> NDArray[np.float64]:
    """[4, 4]: voxel index of a copy stored along other axes, of this shape, to that of the original."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for new, old in enumerate(order):
        matrix[old, new] = -1 if flips[new] else 1
        matrix[old, 3] = shape[new] - 1 if flips[new] else 0
    return matrix


def stored_otherwise(array: NDArray[np.generic], order: Sequence[int], flips: Sequence[int]) -> NDArray[np.generic]:
    return np.flip(array.transpose(order), [axis for axis in range(3) if flips[axis]])


def moved(original: Volume, order: Sequence[int], flips: Sequence[int]) -> Volume:
    """The same volume in the same place, stored along other axes."""
    array = stored_otherwise(original.array, order, flips)
    return Volume(array=array, affine=original.affine @ to_old(array.shape, order, flips))


@pytest.fixture
def segmenter(tiny_model: MakeModel) -> Segmenter:
    """A model that says yes and no about equally often."""
    return Segmenter(model=tiny_model(seed=1, prompted=True), preprocessing=Preprocessing(), overlap=0.25)


def well_formed(found: Segmentation, like: Volume, *, threshold: float = 0.5) -> bool:
    return (
        found.probability.shape == found.mask.shape == like.array.shape
        and found.probability.dtype == np.float32
        and found.mask.dtype == np.uint8
        and bool((found.probability >= 0).all() and (found.probability <= 1).all())
        and np.array_equal(found.mask, found.probability >= threshold)
        and 0 <= found.ich_score <= 1
    )


# ------------------------------------------------------------------------------------------------------ without clicks


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (1.1, 2.3, 3.1)])
def test_any_size_gives_a_mask_of_that_size(
    segmenter: Segmenter, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    given = volume(shape, spacing)
    found = segmenter(given)
    assert well_formed(found, given)
    assert 0 < found.mask.mean() < 1
    again = segmenter(given, prepared=prepare(given, segmenter.preprocessing))
    assert np.array_equal(again.probability, found.probability)
    assert again.ich_score == found.ich_score


@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_the_mask_is_what_reaches_the_threshold(tiny_model: MakeModel, threshold: float) -> None:
    given = volume((17, 16, 9))
    found = Segmenter(model=tiny_model(seed=1), preprocessing=Preprocessing(), threshold=threshold)(given)
    assert well_formed(found, given, threshold=threshold)


def test_windows_may_go_through_together(tiny_model: MakeModel) -> None:
    given, model = volume((30, 20, 18)), tiny_model(seed=1)
    one, many = (
        Segmenter(model=model, preprocessing=Preprocessing(), windows_per_batch=count)(given) for count in (1, 5)
    )
    np.testing.assert_allclose(one.probability, many.probability, atol=1e-4)
    assert one.ich_score == pytest.approx(many.ich_score, abs=1e-4)


def answer(segmenter: Segmenter, window: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Mask logits and image score of one window."""
    with torch.inference_mode():
        said = segmenter.model(torch.from_numpy(np.ascontiguousarray(window))[None, None])
    return said.masks[0, 0].numpy(), float(torch.sigmoid(said.ich))


@pytest.mark.parametrize("shape", [(SIDE, SIDE, SIDE), (10, 6, 12)])
def test_a_small_volume_is_one_window_with_air_around_it(segmenter: Segmenter, shape: tuple[int, int, int]) -> None:
    given = volume(shape)
    ready = prepare(given, segmenter.preprocessing)
    assert abs(ready.background) > 0.1
    window = np.full((SIDE,) * 3, ready.background, dtype=np.float32)
    inside = tuple(slice((SIDE - n) // 2, (SIDE - n) // 2 + n) for n in shape)
    window[inside] = ready.image
    logits, score = answer(segmenter, window)
    found = segmenter(given)
    np.testing.assert_allclose(found.probability, torch.from_numpy(logits[inside]).sigmoid().numpy(), atol=1e-5)
    assert found.ich_score == pytest.approx(score, abs=1e-6)


def test_the_window_whose_middle_is_nearest_decides(tiny_model: MakeModel) -> None:
    given = volume((24, SIDE, SIDE))
    segmenter = Segmenter(model=tiny_model(seed=1), preprocessing=Preprocessing(), overlap=0.5)
    image = prepare(given, segmenter.preprocessing).image
    (left, first), (right, second) = answer(segmenter, image[:16]), answer(segmenter, image[8:])
    found = segmenter(given)
    expected, other = (torch.from_numpy(logits).sigmoid().numpy() for logits in (left, right))
    np.testing.assert_allclose(found.probability[:8], expected[:8], atol=1e-5)  # one window only
    np.testing.assert_allclose(found.probability[16:], other[8:], atol=1e-5)
    axis = (slice(6, 10), slice(6, 10))  # at 8 the left window is in its middle and the right one begins
    assert np.abs(expected[8][axis] - other[0][axis]).max() > 0.1
    np.testing.assert_allclose(found.probability[8][axis], expected[8][axis], atol=5e-3)
    np.testing.assert_allclose(found.probability[15][axis], other[7][axis], atol=5e-3)
    assert found.ich_score == pytest.approx(max(first, second), abs=1e-6)


@pytest.mark.parametrize(("order", "flips"), ORDERS)
@pytest.mark.parametrize("clicked", [False, True])
def test_storage_order_does_not_matter(
    segmenter: Segmenter, order: tuple[int, int, int], flips: tuple[int, int, int], clicked: bool
) -> None:
    original = volume((21, 14, 9), (1.1, 1.9, 3.2))
    copy = moved(original, order, flips)
    there: list[Click] | None = None
    here: list[Click] | None = None
    if clicked:
        there = [Click((3.0, 4.0, 5.0)), Click((19.0, 12.0, 2.0)), Click((4.0, 9.0, 1.0), inside=False)]
        to_new = np.linalg.inv(to_old(copy.array.shape, order, flips))
        here = [Click(tuple((to_new @ [*c.voxel, 1])[:3].tolist()), inside=c.inside) for c in there]
    expected, found = segmenter(original, clicks=there), segmenter(copy, clicks=here)
    assert expected.mask.any()
    np.testing.assert_allclose(
        found.probability, stored_otherwise(expected.probability, order, flips), atol=0 if not clicked else 1e-4
    )
    assert found.ich_score == pytest.approx(expected.ich_score, abs=0 if not clicked else 1e-5)
    if not clicked:
        assert np.array_equal(found.mask, stored_otherwise(expected.mask, order, flips))


# --------------------------------------------------------------------------------------------------------- with clicks


def test_no_clicks_at_all_find_nothing(segmenter: Segmenter) -> None:
    given = volume((20, 18, 17))
    found = segmenter(given, clicks=[])
    assert well_formed(found, given)
    assert not found.mask.any()
    assert found.ich_score == 0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_clicks_anywhere_give_a_mask_of_that_size(segmenter: Segmenter, shape: tuple[int, int, int]) -> None:
    given = volume(shape, (1.1, 2.3, 3.1))
    corners = [Click(tuple(map(float, corner))) for corner in itertools.product(*((0, n - 1) for n in shape))]
    found = segmenter(given, clicks=corners)
    assert well_formed(found, given)
    assert found.mask.any()


def test_only_windows_with_a_click_can_hold_anything(segmenter: Segmenter) -> None:
    given = volume((60, 20, 20))
    found = segmenter(given, clicks=[Click((50.0, 10.0, 10.0))])
    assert not found.mask[:40].any()
    assert found.mask[42:58].any()


def test_clicks_decide(segmenter: Segmenter) -> None:
    given = volume((SIDE, SIDE, SIDE))
    answers = [
        segmenter(given, clicks=[Click((8.0, 8.0, 8.0), inside=inside), *more]).probability
        for inside, more in ((True, []), (False, []), (True, [Click((2.0, 3.0, 12.0))]))
    ]
    for first, second in itertools.combinations(answers, 2):
        assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(50, 40, 37), (9, 40, 17), (7, 6, 5)])
@pytest.mark.parametrize("spacing", [(0.7, 1.5, 3.1), (0.51, 0.44, 2.51)])
def test_windows_cover_all_clicks(shape: tuple[int, int, int], spacing: tuple[float, float, float], seed: int) -> None:
    ready = prepare(volume(shape, spacing), Preprocessing())
    rng = np.random.default_rng(seed)
    voxels = [tuple(float(rng.integers(n)) for n in shape) for _ in range(1 + 6 * seed)]
    faces = itertools.product(*((-0.5, n - 0.5) for n in shape))  # the outermost points of the volume
    clicks = [Click(voxel, inside=bool(rng.integers(2))) for voxel in (*voxels, *faces)]
    targets = ready.grid.from_native(np.array([click.voxel for click in clicks]))
    allowed = starts(ready.grid.shape, size=SIDE)
    seen = set()
    windows = list(itertools.islice(_click_windows(ready, clicks, side=SIDE), len(clicks) + 1))
    assert len(windows) <= len(clicks)
    for corner, inside in windows:
        assert ((corner >= allowed[:, 0]) & (corner <= allowed[:, 1])).all()
        assert inside
        for position, label in inside:
            assert all(-0.5 <= value <= SIDE - 0.5 for value in position)
            matches = [i for i, p in enumerate(targets) if np.allclose(p, np.add(corner, position), atol=1e-9)]
            assert matches
            assert label in {clicks[i].inside for i in matches}
            seen |= set(matches)
    assert seen == set(range(len(clicks)))


@pytest.mark.parametrize("voxel", [(25.0, 3.0, 3.0), (-1.0, 3.0, 3.0), (3.0, 3.0, 17.0), (3.0, float("nan"), 3.0)])
def test_a_click_outside_the_volume_is_an_error(segmenter: Segmenter, voxel: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="a click lies outside the volume of 20 x 18 x 17 voxels"):
        segmenter(volume((20, 18, 17)), clicks=[Click((3.0, 3.0, 3.0)), Click(voxel)])


def test_each_lesion_gets_one_click_deep_inside() -> None:
    mask = np.zeros((30, 20, 20), dtype=np.uint8)
    mask[0, 0, 0] = 1
    mask[3:8, 2:7, 2:7] = 1
    mask[8, 7, 7] = 1  # touches by a corner: the same lesion
    ring = np.zeros((11, 11), dtype=np.uint8)
    ring[1:10, 1:10] = 1
    ring[4:7, 4:7] = 0
    mask[15:26, 5:16, 10] = ring  # its centre of mass is outside
    labels, count = ndimage.label(mask, structure=EVERYWHERE)
    clicks = clicks_from_mask(mask, np.eye(4))
    voxels = [tuple(int(value) for value in click.voxel) for click in clicks]
    assert count == 3
    assert sorted(int(labels[voxel]) for voxel in voxels) == [1, 2, 3]
    assert all(click.inside for click in clicks)
    assert (0, 0, 0) in voxels
    assert (5, 4, 4) in voxels


def test_clicks_do_not_depend_on_the_storage() -> None:
    mask = np.zeros((20, 12, 10), dtype=np.uint8)
    mask[2:6, 2:6, 2:6] = 1  # of even size: several voxels are equally deep
    mask[12:18, 4:8, 3:7] = 1
    stored = np.ascontiguousarray(mask[::-1].transpose(1, 0, 2))
    affine = np.array([[0.0, -1, 0, 19], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # index (j, 19 - i, k) is (i, j, k)
    here = [click.voxel for click in clicks_from_mask(mask, np.eye(4))]
    there = [click.voxel for click in clicks_from_mask(stored, affine)]
    assert [(19 - i, j, k) for j, i, k in there] == here
    assert all(stored[tuple(int(value) for value in voxel)] for voxel in there)


def test_an_empty_mask_gives_no_clicks() -> None:
    assert clicks_from_mask(np.zeros((4, 4, 4), dtype=np.uint8), np.eye(4)) == []


# ------------------------------------------------------------------------------------------------------------ real data


@pytest.fixture
def scan(real_data: Path) -> Path:
    """A CT of a real head or body, anisotropic."""
    files = sorted((real_data / "sts_ct").glob("*_ct.nii.gz"))
    if not files:
        pytest.skip(f"no CT volumes under {real_data / 'sts_ct'}")
    return files[0]


def test_a_real_scan_keeps_its_place_through_a_file(tiny_model: MakeModel, scan: Path, tmp_path: Path) -> None:
    given = read_volume(scan)
    segmenter = Segmenter(
        model=tiny_model(seed=1), preprocessing=Preprocessing(spacing=(6.0, 6.0, 6.0)), overlap=0.0, windows_per_batch=8
    )
    found = segmenter(given)
    assert well_formed(found, given)
    assert found.mask.any()
    path = tmp_path / "mask.nii.gz"
    write_nifti(path, found.mask, like_affine=given.affine)
    back = read_volume(path)
    assert np.array_equal(back.array, found.mask)
    np.testing.assert_allclose(back.affine, given.affine, atol=1e-4)
    order, flips = (1, 2, 0), (1, 0, 1)
    copy = segmenter(moved(given, order, flips))
    assert np.array_equal(copy.mask, stored_otherwise(found.mask, order, flips))


class Pointwise:
    """A model that is the same from all sides: each voxel's logit is its own value."""

    side, device = SIDE, torch.device("cpu")

    def __call__(self, image: torch.Tensor) -> Answer:
        return Answer(2 * image - 0.5, image.mean(dim=(1, 2, 3, 4)))

    def after_clicks(self, image: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor) -> Answer:
        """Inside a sphere about the clicks."""
        place = torch.stack(torch.meshgrid(*[torch.arange(SIDE)] * 3, indexing="ij"), dim=-1).reshape(-1, 3)
        near = torch.cdist(place.float(), positions[0]).amin(dim=1).reshape(1, 1, SIDE, SIDE, SIDE)
        return Answer(3 - near, labels.sum(dim=1).float())


@pytest.mark.parametrize("clicks", [None, [Click((3.0, 9.0, 5.0)), Click((15.0, 2.0, 6.0))]])
def test_mirrored_views_of_a_symmetric_model_change_nothing(clicks: Sequence[Click] | None) -> None:
    given = volume((17, 16, 9))
    plain = Segmenter(model=Pointwise(), preprocessing=Preprocessing(), overlap=0.25)
    found = replace(plain, flips=(0, 1, 2))(given, clicks=clicks)
    expected = plain(given, clicks=clicks)
    assert expected.mask.any()
    np.testing.assert_allclose(found.probability, expected.probability, atol=1e-5)
    assert found.ich_score == pytest.approx(expected.ich_score, abs=0.05 if clicks is None else 1e-6)
