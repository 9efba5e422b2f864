"""Crops cover every component, hold what they must, and pad what lies outside."""

import numpy as np
import pytest

from quartet.apps.sam_med3d_ich.data.crops import cover, cut, label_components, place, starts


def boxes_of(*boxes: tuple[tuple[int, int], ...]) -> np.ndarray:
    return np.array(boxes, dtype=np.int64).reshape(-1, 3, 2)


def test_components_touch_at_corners() -> None:
    mask = np.zeros((6, 6, 6), dtype=np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    mask[4:6, 5, 2] = 1
    components, boxes = label_components(mask)
    assert components.dtype == np.uint8
    np.testing.assert_array_equal(components > 0, mask > 0)
    np.testing.assert_array_equal(boxes, boxes_of(((0, 2), (0, 2), (0, 2)), ((4, 6), (5, 6), (2, 3))))
    assert label_components(np.zeros_like(mask))[1].shape == (0, 3, 2)


def test_more_components_than_a_byte_holds() -> None:
    mask = np.zeros((20, 20, 10), dtype=np.uint8)
    mask[::2, ::2, ::2] = 1
    components, boxes = label_components(mask)
    assert len(boxes) == components.max() == 500


def test_a_cover_has_every_component_once_and_its_boxes_fit() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 90, size=(80, 3))
    boxes = np.stack([low, low + rng.integers(1, 9, size=(80, 3))], axis=-1)
    targets = cover(boxes, size=32)
    members = sorted(number for target in targets for number in target.components)
    assert members == list(range(1, 81))
    assert len(targets) < 60  # it does group
    for target in targets:
        inside = boxes[np.array(target.components) - 1]
        np.testing.assert_array_equal(target.box[:, 0], inside[:, :, 0].min(axis=0))
        np.testing.assert_array_equal(target.box[:, 1], inside[:, :, 1].max(axis=0))
        assert (target.box[:, 1] - target.box[:, 0]).max() <= 32


def test_a_component_larger_than_the_crop_stands_alone() -> None:
    boxes = boxes_of(((0, 40), (3, 8), (3, 8)), ((5, 6), (4, 5), (9, 10)), ((7, 8), (4, 5), (9, 10)))
    assert sorted(target.components for target in cover(boxes, size=16)) == [(1,), (2, 3)]
    assert cover(boxes[:0], size=16) == []


@pytest.mark.parametrize("shape", [(40, 33, 50), (10, 40, 16), (7, 7, 7)])
def test_a_placed_crop_holds_its_box_and_reaches_every_place_it_may(shape: tuple[int, int, int]) -> None:
    size, rng = 16, np.random.default_rng(0)
    allowed = starts(shape, size=size)
    box = np.array([(side // 2, side // 2 + 3) for side in shape])
    drawn = np.array([place(box, shape, size=size, rng=rng) for _ in range(600)])
    assert (drawn <= box[:, 0]).all()
    assert (drawn + size >= box[:, 1]).all()
    assert (drawn >= allowed[:, 0]).all()
    assert (drawn <= allowed[:, 1]).all()
    for axis, side in enumerate(shape):
        first = max(allowed[axis, 0], box[axis, 1] - size)
        last = min(allowed[axis, 1], box[axis, 0])
        assert set(drawn[:, axis].tolist()) == set(range(first, last + 1))
        if side <= size:
            assert (first, last) == (-((size - side) // 2),) * 2


def test_boxes_at_the_faces_can_be_placed() -> None:
    rng = np.random.default_rng(0)
    for box, start in ((((0, 16),) * 3, 0), (((24, 40),) * 3, 24)):
        np.testing.assert_array_equal(place(np.array(box), (40, 40, 40), size=16, rng=rng), start)


def test_cutting_pads_beyond_the_volume() -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    np.testing.assert_array_equal(cut(array, (1, 2, 3), (2, 3, 4), fill=9), array[1:3, 2:5, 3:7])
    padded = np.pad(array, 4, constant_values=-2)
    for start in np.random.default_rng(1).integers(-4, 5, size=(50, 3)):
        piece = cut(array, start, (4, 4, 4), fill=-2)
        np.testing.assert_array_equal(piece, padded[tuple(slice(s + 4, s + 8) for s in start)])
    np.testing.assert_array_equal(cut(array, (20, 0, 0), (2, 2, 2), fill=3), np.full((2, 2, 2), 3))


def test_a_cut_is_a_copy() -> None:
    array = np.zeros((4, 4, 4), dtype=np.float32)
    cut(array, (0, 0, 0), (4, 4, 4), fill=0)[...] = 1
    assert not array.any()
