"""The point of a segmenter is what trying all pairs gives, in the figures of the app, and is used afterwards."""

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlcore.report.page import Picture, Table, Text
from mlcore.run.decision import read_decision, write_decision
from mlcore.run.restore import load_run_checkpoint
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, case_metrics, summarise
from quartet.apps.sam_med3d_ich.choosing import Chooser, froc_points, grid_of_case
from quartet.apps.sam_med3d_ich.config import MaskDecisionConfig, SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.preprocess import Preprocessing
from quartet.apps.sam_med3d_ich.losses import dice_cross_entropy
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.restore import restored
from quartet.apps.sam_med3d_ich.segmentation import Segmentation, Segmenter
from quartet.apps.sam_med3d_ich.task import IchTask

pytestmark = pytest.mark.pictures

MakeModel = Callable[..., IchModel]
AFFINE = np.diag([1.0, 2.0, 2.5, 1.0])
VOXEL_ML = 0.005


def case(seed: int, *, bleed: bool = True) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A probability map with islands of noise, and the true mask."""
    rng = np.random.default_rng(seed)
    target = np.zeros((12, 10, 8), dtype=np.uint8)
    if bleed:
        target[2:6, 2:6, 1:4] = 1
        target[8:10, 7:9, 5:7] = 1
    noise = rng.random(target.shape) ** 3
    return np.clip(0.6 * target + noise, 0, 1).astype(np.float32), target


def segmenter(model: IchModel, **options: Any) -> Segmenter:
    return Segmenter(model=model, preprocessing=Preprocessing(spacing=None), **options)


def segmenter_of(checkpoint: Path) -> Segmenter:
    read = load_run_checkpoint(checkpoint, app="sam_med3d_ich", config_cls=SamMed3DConfig)
    return restored(read, device=torch.device("cpu")).segmenter


@pytest.mark.parametrize("bleed", [True, False])
def test_figures_on_the_grid_are_those_of_the_masks_themselves(tiny_model: MakeModel, bleed: bool) -> None:
    probability, target = case(0, bleed=bleed)
    thresholds, volumes = (0.1, 0.4, 0.7, 0.999), (0.0, 0.005, 0.02, 5.0)
    grid = grid_of_case(probability, target=target, voxel_ml=VOXEL_ML, thresholds=thresholds, volumes=volumes)
    model = tiny_model()
    for place, threshold in enumerate(thresholds):
        for size, volume in enumerate(volumes):
            mask = segmenter(model, threshold=threshold, min_volume_ml=volume).mask(probability, VOXEL_ML)
            expected = dict(zip(FIELDS, case_metrics(mask, target=target, affine=AFFINE).to_row(), strict=True))
            found = dict(zip(FIELDS, grid[place, size], strict=True))
            del expected["hd95_mm"], found["hd95_mm"]
            assert found == pytest.approx(expected, nan_ok=True)


def test_small_parts_are_left_out_by_their_volume(tiny_model: MakeModel) -> None:
    probability = np.zeros((6, 6, 6), dtype=np.float32)
    probability[0, 0, :2] = 0.9
    probability[3:5, 3:5, 3] = 0.9
    probability[5, 5, 4] = 0.9  # shares a corner: one part of five voxels
    model = tiny_model()
    for volume, left in ((0.0, 7), (0.01, 7), (0.0101, 5), (0.025, 5), (0.03, 0)):
        mask = segmenter(model, min_volume_ml=volume).mask(probability, VOXEL_ML)
        assert mask.sum() == left
        assert mask.dtype == np.uint8


class Cases:
    """Validation cases and what a task's evaluation says of them, without a network."""

    def __init__(self, *, bleeds: tuple[bool, ...] = (True, False, True)) -> None:
        self.maps = [case(seed, bleed=bleed) for seed, bleed in enumerate(bleeds)]

    def predict(self, task: Any) -> Mapping[str, Any]:
        rows = [self._row(task, *pair) for pair in self.maps]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _row(self, task: Any, probability: NDArray[np.float32], target: NDArray[np.uint8]) -> Mapping[str, Any]:
        volume = type("Volume", (), {"voxel_ml": VOXEL_ML, "affine": AFFINE})
        inner = getattr(task, "task", task)
        inner.segment = lambda _: Segmentation(probability, inner.segmenter.mask(probability, VOXEL_ML), 0.5)
        rows: Mapping[str, Any] = task.evaluation_step(
            None, [{"volume": volume, "mask": target, "ich": int(target.any())}]
        )
        return rows


@pytest.fixture
def task(tiny_model: MakeModel) -> IchTask:
    model = tiny_model()
    return IchTask(model=model, segmenter=segmenter(model), mask_loss=partial(dice_cross_entropy, squared=True))


def score_at(cases: Cases, task: IchTask, threshold: float, volume: float) -> float:
    masks = [segmenter(task.model, threshold=threshold, min_volume_ml=volume).mask(p, VOXEL_ML) for p, _ in cases.maps]
    rows = [
        case_metrics(mask, target=target, affine=AFFINE) for mask, (_, target) in zip(masks, cases.maps, strict=True)
    ]
    labels = [int(target.any()) for _, target in cases.maps]
    return summarise(rows, ich_scores=[0.5] * len(labels), ich_labels=labels)["score"]


def test_the_pair_with_the_highest_score_is_taken_and_shown(task: IchTask, tmp_path: Path) -> None:
    cases = Cases()
    chooser = Chooser(task, MaskDecisionConfig(rule="score"))
    chooser.choose(cases.predict)
    decision = chooser.decision
    scores = {(t, v): score_at(cases, task, t, v) for t in chooser.thresholds for v in chooser.volumes}
    assert scores[decision.threshold, decision.min_volume_ml] == max(scores.values()) > scores[0.5, 0.0]
    assert (task.segmenter.threshold, task.segmenter.min_volume_ml) == (decision.threshold, decision.min_volume_ml)

    sections = chooser.sections(cases.predict(task), folder=tmp_path, prefix="")
    assert [type(section) for section in sections] == [Picture, Table]
    assert (tmp_path / "operating_point.png").is_file()
    figures = chooser.decision.figures["val"]
    assert figures["score"].value == pytest.approx(max(scores.values()))
    assert (figures["specificity"].of, figures["lesion_sensitivity"].of) == (1, 4)
    (table,) = chooser.sections(cases.predict(task), folder=tmp_path, prefix="test_")
    assert isinstance(table, Table)
    assert table.title == "Test: decision"
    assert "chosen on the validation cases" in table.note
    assert not (tmp_path / "test_operating_point.png").exists()


def test_the_froc_curve_counts_what_masks_at_each_threshold_find(task: IchTask) -> None:
    cases = Cases()
    grids = [
        grid_of_case(p, target=target, voxel_ml=VOXEL_ML, thresholds=(0.3, 0.5), volumes=(0.0, 0.03))
        for p, target in cases.maps
    ]
    points = froc_points(np.stack(grids))
    for place, threshold in enumerate((0.3, 0.5)):
        for size, volume in enumerate((0.0, 0.03)):
            of = segmenter(task.model, threshold=threshold, min_volume_ml=volume)
            rows = [case_metrics(of.mask(p, VOXEL_ML), target=target, affine=AFFINE) for p, target in cases.maps]
            sums = [sum(getattr(row, name) for row in rows) for name in ("lesions", "found", "false_positives")]
            assert points[place, size].tolist() == [sums[0], sums[1], pytest.approx(sums[2] / len(rows))]


def test_where_all_points_are_alike_the_settings_stay(task: IchTask) -> None:
    cases = Cases(bleeds=(True,))
    cases.maps = [(target.astype(np.float32), target) for _, target in cases.maps]
    chooser = Chooser(task, MaskDecisionConfig(rule="score"))
    chooser.choose(cases.predict)
    assert (chooser.decision.threshold, chooser.decision.min_volume_ml) == (0.5, 0.0)


def test_without_a_bleed_nothing_is_chosen_and_that_is_said(task: IchTask, tmp_path: Path) -> None:
    cases = Cases(bleeds=(False, False))
    chooser = Chooser(task, MaskDecisionConfig(rule="score"))
    chooser.choose(cases.predict)
    assert (chooser.decision.threshold, chooser.decision.chosen_on) == (0.5, None)
    sections = chooser.sections(cases.predict(task), folder=tmp_path, prefix="")
    assert isinstance(sections[-1], Text)
    assert "no validation case has a bleed" in sections[-1].body


def test_not_asked_the_settings_are_the_decision(task: IchTask, tmp_path: Path) -> None:
    chooser = Chooser(task, MaskDecisionConfig())
    chooser.choose(lambda _: pytest.fail("nothing is to be tried"))
    assert chooser.sections(Cases().predict(task), folder=tmp_path, prefix="") == []
    assert (chooser.decision.rule, chooser.decision.threshold) == ("none", 0.5)
    assert chooser.decision.figures["val"]["specificity"].of == 1


def test_a_run_uses_what_it_chose(trained: Callable[[str], Path], tmp_path: Path) -> None:
    run = trained("score")
    decision = read_decision(run)
    assert decision is not None
    assert (decision.kind, decision.rule, decision.chosen_on) == ("mask", "score", "val")
    # What the summary says of the best checkpoint is said at the point that was chosen.
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))["results_of_best_checkpoint"]["val"]
    assert summary["score"] == decision.figures["val"]["score"].value
    assert (run / "operating_point.png").is_file()
    found = segmenter_of(run / "checkpoints" / "best_model.pth")
    assert (found.threshold, found.min_volume_ml) == (decision.threshold, decision.min_volume_ml)

    alone = shutil.copy(run / "checkpoints" / "best_model.pth", tmp_path / "best_model.pth")  # as a run of before
    found = segmenter_of(alone)
    assert (found.threshold, found.min_volume_ml) == (0.5, 0.0)
    write_decision(tmp_path, decision.model_copy(update={"threshold": 0.35, "min_volume_ml": 0.25}))
    found = segmenter_of(alone)
    assert (found.threshold, found.min_volume_ml) == (0.35, 0.25)
