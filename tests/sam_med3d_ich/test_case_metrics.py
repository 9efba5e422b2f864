"""Figures of a case against plain references, and the policy for empty masks."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, CaseMetrics, case_metrics, lesions_by_size, summarise
from quartet.apps.sam_med3d_ich.case_report import size_sections

SPACING = (0.5, 0.75, 5.0)
AFFINE = np.diag([*SPACING, 1.0])
KEYS = {
    "score", "dice", "dice_lesion", "iou", "hd95", "hd95_undefined", "volume_error_ml", "volume_abs_error_ml",
    "lesion_sensitivity", "false_positives", "specificity", "auroc",
}  # fmt: skip


def _affine(spacing: Sequence[float]) -> NDArray[np.float64]:
    return np.diag([*spacing, 1.0])


def _surface(mask: NDArray[Any]) -> NDArray[np.float64]:
    """Voxels with one of six neighbours outside, found one by one."""
    inside = {tuple(int(i) for i in voxel) for voxel in np.argwhere(mask)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    edge = [v for v in inside if any(tuple(a + b for a, b in zip(v, s, strict=True)) not in inside for s in steps)]
    return np.array(sorted(edge), dtype=np.float64)


def _brute_force_hd95(first: NDArray[Any], second: NDArray[Any], spacing: Sequence[float]) -> float:
    a, b = _surface(first) * spacing, _surface(second) * spacing
    distance = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    return max(float(np.percentile(distance.min(axis=1), 95)), float(np.percentile(distance.min(axis=0), 95)))


def _ball(shape: tuple[int, int, int], centre: Sequence[float], radius: float) -> NDArray[np.uint8]:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (((grid - np.asarray(centre)) ** 2).sum(axis=-1) <= radius**2).astype(np.uint8)


def _empty() -> NDArray[np.uint8]:
    return np.zeros((8, 9, 7), dtype=np.uint8)


def _one(*voxels: tuple[int, int, int]) -> NDArray[np.uint8]:
    mask = _empty()
    for voxel in voxels:
        mask[voxel] = 1
    return mask


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING, (3.0, 0.4, 1.1)])
def test_hd95_is_that_of_all_pairs_of_surface_voxels(seed: int, spacing: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    shape = (14, 12, 9)
    target = _ball(shape, rng.uniform(2, 8, 3), rng.uniform(1, 5))
    predicted = _ball(shape, rng.uniform(0, 9, 3), rng.uniform(1, 5)) | (rng.random(shape) < 0.01)
    result = case_metrics(predicted.astype(np.uint8), target=target, affine=_affine(spacing))
    assert result.hd95_mm == pytest.approx(_brute_force_hd95(predicted, target, spacing), rel=1e-12)


def test_hd95_of_large_surfaces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    target, predicted = _ball((14, 12, 9), (6, 5, 4), 4), (rng.random((14, 12, 9)) < 0.5).astype(np.uint8)
    few = case_metrics(predicted, target=target, affine=AFFINE).hd95_mm
    monkeypatch.setattr("quartet.apps.sam_med3d_ich.case_metrics._MANY", 0)
    assert case_metrics(predicted, target=target, affine=AFFINE).hd95_mm == pytest.approx(few, rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI calls itself so
@pytest.mark.parametrize("seed", range(4))
def test_hd95_is_that_of_monai(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, predicted = (_ball((16, 15, 9), rng.uniform(1, 8, 3), rng.uniform(2, 6)) for _ in range(2))
    pair = [torch.from_numpy(mask)[None, None] for mask in (predicted, target)]
    expected = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=SPACING)
    assert case_metrics(predicted, target=target, affine=AFFINE).hd95_mm == pytest.approx(float(expected), rel=1e-6)


def test_a_mask_that_fills_the_volume_has_its_surface_at_the_border() -> None:
    full, middle = np.ones((6, 6, 6), dtype=np.uint8), _ball((6, 6, 6), (2, 3, 3), 1)
    result = case_metrics(full, target=middle, affine=AFFINE)
    assert result.hd95_mm == pytest.approx(_brute_force_hd95(full, middle, SPACING))


def _sheared(seed: int) -> NDArray[np.float64]:
    """A turned, flipped and tilted grid, as of a gantry at an angle."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0.45, 0.02, 0], [0, 0.5, 5 * math.tan(math.radians(20))], [0, 0, 5]])
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    return affine


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_tilted_gantry_is_measured_in_the_world(seed: int, many: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if many:
        monkeypatch.setattr("quartet.apps.sam_med3d_ich.case_metrics._MANY", 0)
    rng, affine, shape = np.random.default_rng(seed), _sheared(seed), (14, 12, 9)
    target, predicted = (_ball(shape, rng.uniform(3, 8, 3), rng.uniform(2, 5)) for _ in range(2))
    result = case_metrics(predicted, target=target, affine=affine)
    first, second = (_surface(mask) @ affine[:3, :3].T + affine[:3, 3] for mask in (predicted, target))
    apart = np.sqrt(((first[:, None] - second[None]) ** 2).sum(axis=2))  # of all pairs, mm
    expected = max(np.percentile(apart.min(axis=1), 95), np.percentile(apart.min(axis=0), 95))
    assert result.hd95_mm == pytest.approx(expected, rel=1e-9)
    one, two, three = affine[:3, :3].T
    voxel_ml = abs(float(np.dot(one, np.cross(two, three)))) / 1000
    assert result.volume_ml == pytest.approx(target.sum() * voxel_ml, rel=1e-9)
    assert result.predicted_ml == pytest.approx(predicted.sum() * voxel_ml, rel=1e-9)


def test_distance_is_measured_in_mm_along_each_axis() -> None:
    for axis, step in itertools.product(range(3), (1, 3)):
        other = [2, 2, 2]
        other[axis] += step
        result = case_metrics(_one((2, 2, 2)), target=_one((other[0], other[1], other[2])), affine=AFFINE)
        assert result.hd95_mm == pytest.approx(step * SPACING[axis])
        assert (result.dice, result.iou, result.found, result.false_positives) == (0.0, 0.0, 0.0, 1.0)


def test_overlap_and_volume() -> None:
    target, predicted = _empty(), _empty()
    target[1:5, 1:5, 1:3] = 1  # 32 voxels
    predicted[3:7, 1:5, 1:4] = 1  # 48, of which 16 are right
    result = case_metrics(predicted, target=target, affine=_affine((1.0, 2.0, 5.0)))
    assert result.dice == pytest.approx(2 * 16 / 80)
    assert result.iou == pytest.approx(16 / 64)
    assert result.volume_ml == pytest.approx(0.32)
    assert result.predicted_ml == pytest.approx(0.48)
    assert result.volume_error_ml == pytest.approx(0.16)


def test_the_other_way_round_changes_only_the_sign_of_the_error_and_what_is_counted() -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.random((10, 10, 6)) < share for share in (0.05, 0.1))
    one, two = (
        case_metrics(first, target=second, affine=AFFINE),
        case_metrics(second, target=first, affine=AFFINE),
    )
    assert (one.dice, one.iou, one.hd95_mm) == (two.dice, two.iou, two.hd95_mm)
    assert one.volume_error_ml == -two.volume_error_ml
    assert one.lesions - one.found == two.false_positives


def test_a_perfect_mask() -> None:
    mask = _ball((12, 12, 12), (5, 6, 7), 3)
    result = case_metrics(mask.astype(bool), target=mask, affine=AFFINE)
    assert (result.dice, result.iou, result.hd95_mm, result.volume_error_ml) == (1.0, 1.0, 0.0, 0.0)
    assert (result.lesions, result.found, result.false_positives) == (1.0, 1.0, 0.0)


def test_policy_for_empty_masks() -> None:
    something = _one((1, 1, 1), (5, 5, 5))
    silent = case_metrics(_empty(), target=_empty(), affine=AFFINE)
    missed = case_metrics(_empty(), target=something, affine=AFFINE)
    alarm = case_metrics(something, target=_empty(), affine=AFFINE)
    assert all(math.isnan(value) for value in (silent.dice, silent.iou, silent.hd95_mm))
    assert (silent.lesions, silent.false_positives) == (0, 0)
    assert (missed.dice, missed.iou, missed.lesions, missed.found, missed.false_positives) == (0.0, 0.0, 2, 0, 0)
    assert (alarm.dice, alarm.iou, alarm.lesions, alarm.found, alarm.false_positives) == (0.0, 0.0, 0, 0, 2)
    assert math.isnan(missed.hd95_mm)
    assert math.isnan(alarm.hd95_mm)


def test_lesions_join_at_corners_and_one_voxel_of_overlap_finds_one() -> None:
    target = _one((0, 0, 0), (1, 1, 1), (4, 4, 4), (7, 8, 6))  # the first two share a corner
    predicted = _one((1, 1, 1), (7, 7, 5), (7, 8, 6), (4, 0, 0), (4, 0, 2))
    result = case_metrics(predicted, target=target, affine=AFFINE)
    assert (result.lesions, result.found, result.false_positives) == (3.0, 2.0, 2.0)


def test_one_prediction_over_two_lesions_finds_both() -> None:
    predicted = _empty()
    predicted[1:7, 2, 2] = 1
    result = case_metrics(predicted, target=_one((1, 2, 2), (6, 2, 2)), affine=AFFINE)
    assert (result.lesions, result.found, result.false_positives) == (2.0, 2.0, 0.0)


def test_lesions_are_counted_by_size() -> None:
    target = np.zeros((40, 40, 40), dtype=np.uint8)
    target[:2, :5, :10] = 1  # 0.1 mL of 1 mm voxels
    target[10, 10, 10] = 1
    target[20:, 20:, 20:] = 1  # 8 mL
    predicted = np.zeros_like(target)
    predicted[10, 10, 10] = predicted[39, 39, 39] = predicted[30, 0, 0] = 1
    counts = lesions_by_size(predicted, target=target, affine=np.eye(4))
    assert counts.tolist() == [[1, 1, 1, 0, 0], [1, 0, 1, 0, 0]]
    enlarged = lesions_by_size(predicted, target=target, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    assert enlarged.tolist() == [[1, 1, 0, 0, 1], [1, 0, 0, 0, 1]], "0.8 and 64 mL"
    assert not lesions_by_size(predicted, target=np.zeros_like(target), affine=np.eye(4)).any()
    (table,) = size_sections(counts, title="Validation")
    assert table.rows[0] == ["below 0.1 mL", 1, 1, 1.0, "0.207 to 1.000"]  # type: ignore[union-attr]
    assert table.rows[1][:4] == ["0.1 to 1 mL", 1, 0, 0.0]  # type: ignore[union-attr]
    assert not size_sections(np.zeros_like(counts), title="Validation")


def test_thirty_voxels_in_a_clinical_volume() -> None:
    target = np.zeros((512, 512, 30), dtype=np.uint8)
    target[200:205, 100:103, 11:13] = 1
    predicted = np.zeros_like(target)
    predicted[204, 102, 12] = predicted[500, 500, 29] = 1
    result = case_metrics(predicted, target=target, affine=_affine((0.45, 0.45, 5.0)))
    assert result.volume_ml == pytest.approx(30 * 0.45**2 * 5 / 1000)
    assert (result.lesions, result.found, result.false_positives) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("predicted", "spacing", "told"),
    [
        (np.zeros((8, 9, 6), dtype=np.uint8), SPACING, "differ in shape"),
        (np.zeros((8, 9), dtype=np.uint8), SPACING, r"expected \[X, Y, Z\]"),
        (np.full((8, 9, 7), 0.5), SPACING, "threshold first"),
        (np.zeros((8, 9, 7), dtype=np.uint8), (1.0, 1.0), "affine"),
        (np.zeros((8, 9, 7), dtype=np.uint8), (1.0, 0.0, 1.0), "affine"),
        (np.zeros((8, 9, 7), dtype=np.uint8), (1.0, math.nan, 1.0), "affine"),
    ],
)
def test_what_cannot_be_measured_is_an_error(predicted: NDArray[Any], spacing: Sequence[float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        case_metrics(predicted, target=_empty(), affine=_affine(spacing))


def test_rows_survive_a_tensor() -> None:
    case = case_metrics(_one((1, 1, 1)), target=_one((1, 1, 1), (4, 4, 4)), affine=AFFINE)
    rows = torch.tensor([case.to_row(), case_metrics(_one((1, 1, 1)), target=_empty(), affine=AFFINE).to_row()])
    assert rows.shape == (2, len(FIELDS))
    back = [CaseMetrics.from_row(row) for row in rows]
    assert back[0].to_row() == pytest.approx(case.to_row(), rel=1e-6)
    assert math.isnan(back[1].hd95_mm)
    assert back[1].false_positives == 1.0
    with pytest.raises(TypeError):
        CaseMetrics.from_row([1.0, 2.0])


def _case(**values: float) -> CaseMetrics:
    return CaseMetrics(**(dict.fromkeys(FIELDS, 0.0) | values))


def test_summary_of_a_data_set() -> None:
    rows = [
        _case(dice=0.9, iou=0.8, hd95_mm=2.0, volume_ml=10, predicted_ml=12, volume_error_ml=2, lesions=1, found=1),
        _case(dice=0.0, iou=0.0, hd95_mm=math.nan, volume_ml=4, volume_error_ml=-4, lesions=3),
        _case(dice=math.nan, iou=math.nan, hd95_mm=math.nan),
        _case(dice=0.0, hd95_mm=math.nan, predicted_ml=1, volume_error_ml=1, false_positives=2),
    ]
    result = summarise(rows, ich_scores=[0.9, 0.2, 0.1, 0.4], ich_labels=[1, 1, 0, 0])
    assert set(result) == KEYS
    assert repr(result["hd95_undefined"]) == "1"  # a count
    assert result == pytest.approx(
        {
            "score": 0.45 * (1 + 1 / 4 + 1 / 2) / 3,
            "dice": 0.45,
            "dice_lesion": 0.45,
            "iou": 0.4,
            "hd95": 2.0,
            "hd95_undefined": 1,
            "volume_error_ml": -0.25,
            "volume_abs_error_ml": 7 / 4,
            "lesion_sensitivity": 1 / 4,
            "false_positives": 0.5,
            "specificity": 0.5,
            "auroc": 0.75,
        }
    )


def _planted(found: Sequence[int], *, alarms: int) -> dict[str, float]:
    """Two bleeds of 64 voxels, of which so many are found, and seven healthy heads, so many of them with an alarm."""
    bleed, rows = _empty(), []
    bleed[1:5, 1:5, 1:5] = 1
    for size in found:
        predicted = np.zeros_like(bleed)
        predicted[tuple(np.argwhere(bleed)[:size].T)] = 1
        rows.append(case_metrics(predicted, target=bleed, affine=AFFINE))
    for healthy in range(7):
        predicted = _one((1, 1, 1)) if healthy < alarms else _empty()
        rows.append(case_metrics(predicted, target=_empty(), affine=AFFINE))
    labels = [1] * 2 + [0] * 7
    return summarise(rows, ich_scores=[0.5] * 9, ich_labels=labels)


def test_silence_never_wins() -> None:
    silent = _planted([0, 0], alarms=0)
    assert (silent["score"], silent["dice"], silent["dice_lesion"], silent["lesion_sensitivity"]) == (0, 0, 0, 0)
    assert math.isnan(silent["hd95"])  # not a perfect 0
    assert silent["hd95_undefined"] == 2
    for alarms in range(8):
        for found in ([1, 0], [14, 14], [64, 64]):
            assert _planted(found, alarms=alarms)["score"] > silent["score"]
    # Nearly silent, as an overconfident model is, against one that finds a third and errs in some heads.
    assert _planted([14, 14], alarms=4)["score"] > _planted([1, 1], alarms=0)["score"]


def test_the_score_rewards_lesions_found_and_healthy_heads_left_alone() -> None:
    assert _planted([64, 64], alarms=0)["score"] == 1
    scores = [_planted([30, 30], alarms=alarms)["score"] for alarms in range(8)]
    assert scores == sorted(set(scores), reverse=True)
    both, one = _planted([30, 30], alarms=2), _planted([64, 0], alarms=2)
    assert both["score"] > one["score"]


@pytest.mark.parametrize("label", [0, 1])
def test_undefined_figures_are_nan_and_null_in_json(label: int, tmp_path: Path) -> None:
    nothing = dict.fromkeys(("dice", "iou", "hd95_mm"), math.nan)
    row = _case(**nothing) if label == 0 else _case(hd95_mm=math.nan, volume_ml=1, lesions=1)
    result = summarise([row], ich_scores=torch.tensor([0.3]), ich_labels=torch.tensor([label]))
    overlap = {"score", "dice", "dice_lesion", "iou", "hd95"}
    undefined = {*overlap, "lesion_sensitivity", "auroc"} if label == 0 else {"hd95", "specificity", "auroc"}
    assert {key for key, value in result.items() if math.isnan(value)} == undefined
    write_json(tmp_path / "summary.json", result)
    assert {
        key for key, value in json.loads((tmp_path / "summary.json").read_text("utf-8")).items() if value is None
    } == (undefined)


def test_a_summary_needs_cases_and_one_score_and_label_for_each() -> None:
    with pytest.raises(UserError, match="empty"):
        summarise([], ich_scores=[], ich_labels=[])
    with pytest.raises(UserError, match="ich_scores has 1 rows"):
        summarise([_case(), _case()], ich_scores=[0.1], ich_labels=[0, 1])
    with pytest.raises(UserError, match="ich_labels has 1 rows"):
        summarise([_case(), _case()], ich_scores=[0.1, 0.2], ich_labels=[1])
