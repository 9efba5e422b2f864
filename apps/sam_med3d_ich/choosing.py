"""From where on a voxel is in the mask, and which parts of a mask are too small to count, chosen on validation.

Both are tried together, on whole cases at their stored resolution, and the pair with the highest score
(`case_metrics.summarise`) is taken; of equal ones the one that is nearest to the settings. Leaving out small parts is
nnU-Net's postprocessing (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z), with a size in mL.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.ndimage import label
from torch import Tensor, nn

from mlcore.metrics.operating_points import Rate
from mlcore.report.page import Picture, Section, Text
from mlcore.report.plots.style import INK, PALETTE, SUBTITLE, picture
from mlcore.run.deciding import figure_table
from mlcore.run.decision import Decision, Figure
from mlcore.training.evaluator import Predictions
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, CaseMetrics, summarise
from quartet.apps.sam_med3d_ich.config import MaskDecisionConfig
from quartet.apps.sam_med3d_ich.data.preprocess import EVERYWHERE
from quartet.apps.sam_med3d_ich.task import IchTask, WholeCase

__all__ = ["Chooser", "froc_points", "grid_of_case"]

_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(2, 19))  # 0.1 to 0.9
_VOLUMES_ML = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
_SHOWN = ("score", "dice", "false_positives", "volume_abs_error_ml")

Mask = NDArray[np.bool_]


class Chooser:
    """Chooses the point of a segmenter, and shows what it gives.

    Args:
        task: Its segmenter gets what is chosen.
        settings: What is asked for.
        kept: A run's decision, which is used as it is.

    Attributes:
        decision: The one in use.
    """

    def __init__(self, task: IchTask, settings: MaskDecisionConfig, *, kept: Decision | None = None) -> None:
        self._task, self._settings = task, settings
        self._scores: NDArray[np.float64] | None = None  # [T, V]
        self._counts = np.empty((0, 0, 3))  # [T, V], of all cases: lesions, found ones, false positives per case
        at = task.segmenter
        self.decision = kept or Decision(kind="mask", threshold=at.threshold, min_volume_ml=at.min_volume_ml)
        self.thresholds = tuple(sorted({*_THRESHOLDS, at.threshold}))
        self.volumes = tuple(sorted({*_VOLUMES_ML, at.min_volume_ml}))

    def choose(self, predict: Callable[[Any], Predictions]) -> None:
        """Try the grid on the validation cases, where it is asked for; every rank must call it.

        Args:
            predict: Gives a task's evaluation rows for all validation cases (`TrainingSetup.choose`).
        """
        if self._settings.rule == "none":
            return
        rows = predict(_OnGrid(self._task, self.thresholds, self.volumes))
        self._scores = np.array(
            [
                [self._score(rows, rows["grid"][:, place, size]) for size in range(len(self.volumes))]
                for place in range(len(self.thresholds))
            ]
        )
        self._counts = froc_points(rows["grid"].numpy())
        threshold, volume, note = self._best(self._scores)
        chosen = {"rule": "score", "chosen_on": None if note else "val", "threshold": threshold, "note": note}
        self.decision = self.decision.model_copy(update={**chosen, "min_volume_ml": volume})
        self._task.segmenter = replace(self._task.segmenter, threshold=threshold, min_volume_ml=volume)

    def _score(self, rows: Predictions, figures: Tensor) -> float:
        cases = [CaseMetrics.from_row(row) for row in figures.tolist()]
        return summarise(cases, ich_scores=rows["ich_score"], ich_labels=rows["ich_label"])["score"]

    def _best(self, scores: NDArray[np.float64]) -> tuple[float, float, str]:
        """Threshold, volume in mL, and why nothing could be chosen."""
        now = self.decision.threshold, self.decision.min_volume_ml
        if np.isnan(scores).all():
            return *now, "no validation case has a bleed: there is nothing to choose by"
        best = np.argwhere(scores == np.nanmax(scores)).tolist()
        points = [(self.thresholds[place], self.volumes[size]) for place, size in best]
        return *min(points, key=lambda point: (abs(point[0] - now[0]), abs(point[1] - now[1]), point)), ""

    def sections(self, predictions: Predictions, *, folder: Path, prefix: str) -> list[Section]:
        """Figures at the point in use, which the decision remembers, and where it was chosen `operating_point.png`."""
        split = prefix.removesuffix("_") or "val"
        self.decision = self.decision.with_figures(split, self._figures(predictions))
        if self.decision.rule == "none":
            return []
        title = f"{'Validation' if split == 'val' else split.capitalize()}: decision"
        decision, sections = self.decision, list[Section]()
        if split == "val" and self._scores is not None and not np.isnan(self._scores).all():
            sections.append(Picture(title, self._draw(folder / "operating_point.png"), wide=True))
        chosen = "chosen on these cases, so that the figures are better than on others"
        note = f"voxels from {decision.threshold:g} on, parts of at least {decision.min_volume_ml:g} mL; "
        note += chosen if split == decision.chosen_on else "chosen on the validation cases"
        sections.append(figure_table(title, decision.figures[split], note=decision.note or note))
        return [*sections, *([Text(title, f"Note: {decision.note}.")] if decision.note else [])]

    def _figures(self, predictions: Predictions) -> dict[str, Figure]:
        column = dict(zip(FIELDS, predictions["figures"].numpy().T, strict=True))
        values = self._task.metrics(predictions)
        healthy = column["lesions"] == 0
        silent = int(np.count_nonzero(column["predicted_ml"][healthy] == 0))
        return {
            **{name: Figure(value=None if math.isnan(values[name]) else values[name]) for name in _SHOWN},
            "lesion_sensitivity": Figure.from_rate(Rate(int(column["found"].sum()), int(column["lesions"].sum()))),
            "specificity": Figure.from_rate(Rate(silent, int(healthy.sum()))),
        }

    def _draw(self, path: Path) -> Path:
        """Score over the threshold, a line for each smallest volume, and beside it the FROC curve."""
        assert self._scores is not None  # noqa: S101 - only called where it was chosen
        decision = self.decision
        with picture(path, width=11.5, height=4.4) as figure:
            axes, froc = figure.subplots(1, 2, width_ratios=(3, 2))
            for size, volume in enumerate(self.volumes):
                words = f"parts from {volume:g} mL" if volume else "all parts"
                color = PALETTE[size % len(PALETTE)]
                axes.plot(self.thresholds, self._scores[:, size], "o-", color=color, markersize=3, label=words)
            best = float(np.nanmax(self._scores))
            axes.plot([decision.threshold], [best], "o", color=INK, fillstyle="none", markersize=13)
            used = f"voxels from {decision.threshold:g} on, parts from {decision.min_volume_ml:g} mL"
            axes.set_title(f"used: {used}, score {best:.3f}", **SUBTITLE)
            axes.set(xlabel="threshold: least probability of a voxel", ylabel="score of the validation cases")
            axes.legend(loc="lower center", fontsize=8)
            self._draw_froc(froc)
        return path

    def _draw_froc(self, axes: Axes) -> None:
        """Lesions found over false positives per case, over the thresholds (FROC: Bunch et al. 1978)."""
        size, place = self.volumes.index(self.decision.min_volume_ml), self.thresholds.index(self.decision.threshold)
        lesions, found, alarms = self._counts[:, size].T
        share = found / lesions
        axes.plot(alarms, share, "o-", color=PALETTE[0], markersize=3)
        axes.plot([alarms[place]], [share[place]], "o", color=INK, fillstyle="none", markersize=13)
        axes.set_title(f"{share[place]:.1%} of lesions at {alarms[place]:.2f} false positives a case", **SUBTITLE)
        axes.set(xlabel="false positives per case", ylabel="lesions found", ylim=(0, 1.03))
        axes.set_xlim(left=0)


def froc_points(grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of figures [N, T, V, F]: lesions and found ones of all cases, and false positives per case, [T, V, 3]."""
    of = {name: grid[..., FIELDS.index(name)] for name in ("lesions", "found", "false_positives")}
    return np.stack([of["lesions"].sum(0), of["found"].sum(0), of["false_positives"].mean(0)], axis=-1)


@dataclass(frozen=True)
class _OnGrid:
    """A task of which only evaluation rows are asked: "grid" [B, T, V, F] figures, "ich_score" [B], "ich_label" [B]."""

    task: IchTask
    thresholds: Sequence[float]
    volumes: Sequence[float]

    def evaluation_step(self, model: nn.Module, batch: Sequence[WholeCase]) -> Mapping[str, Tensor]:
        del model  # the segmenter has it
        found = [self.task.segment(case) for case in batch]
        grids = [
            grid_of_case(
                one.probability,
                target=case["mask"],
                voxel_ml=case["volume"].voxel_ml,
                thresholds=self.thresholds,
                volumes=self.volumes,
            )
            for one, case in zip(found, batch, strict=True)
        ]
        return {
            "grid": torch.from_numpy(np.stack(grids)),
            "ich_score": torch.tensor([one.ich_score for one in found], dtype=torch.float64),
            "ich_label": torch.tensor([case["ich"] for case in batch]),
        }


def grid_of_case(
    probability: NDArray[np.float32],
    *,
    target: NDArray[np.uint8],
    voxel_ml: float,
    thresholds: Sequence[float],
    volumes: Sequence[float],
) -> NDArray[np.float64]:
    """Figures of a case (`case_metrics.FIELDS`, without HD95, which the score does not need) at each pair, [T, V, F].

    Args:
        probability: [X, Y, Z], 0..1.
        target: Shaped as `probability`, 0 or 1.
        voxel_ml: Volume of a voxel.
        thresholds: T least probabilities.
        volumes: V volumes in mL; smaller parts of the mask are left out.
    """
    there = target.astype(bool)
    lesions, many = label(there, structure=EVERYWHERE)
    figures = np.empty((len(thresholds), len(volumes), len(FIELDS)))
    for place, threshold in enumerate(thresholds):
        parts, count = label(probability >= threshold, structure=EVERYWHERE)
        sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
        inside = np.bincount(parts[there], minlength=count + 1)[1:]
        pairs = np.unique(np.stack([parts[there], lesions[there]]), axis=1)
        for size, volume in enumerate(volumes):
            kept = sizes * voxel_ml >= volume
            hit = pairs[1][(pairs[0] > 0) & np.append(False, kept)[pairs[0]]]
            figures[place, size] = _row(
                both=int(inside[kept].sum()),
                predicted=int(sizes[kept].sum()),
                true=int(there.sum()),
                voxel_ml=voxel_ml,
                counts=(many, len(np.unique(hit)), int((kept & (inside == 0)).sum())),
            )
    return figures


def _row(*, both: int, predicted: int, true: int, voxel_ml: float, counts: tuple[int, int, int]) -> list[float]:
    total, union = predicted + true, predicted + true - both
    return CaseMetrics(
        dice=2 * both / total if total else math.nan,
        iou=both / union if union else math.nan,
        hd95_mm=math.nan,
        volume_ml=true * voxel_ml,
        predicted_ml=predicted * voxel_ml,
        volume_error_ml=(predicted - true) * voxel_ml,
        lesions=counts[0],
        found=counts[1],
        false_positives=counts[2],
    ).to_row()
