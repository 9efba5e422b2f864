"""What people look at after an evaluation: tables of cases and pictures of the best, the median and the worst."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from mlcore.report.page import Picture, Section
from mlcore.training.evaluator import Predictions
from quartet.apps.sam_med3d_ich.case_metrics import CaseMetrics
from quartet.apps.sam_med3d_ich.case_report import CaseRow, case_sections, size_sections
from quartet.apps.sam_med3d_ich.data.dataset import CaseDataset
from quartet.apps.sam_med3d_ich.data.volume import Volume
from quartet.apps.sam_med3d_ich.overlays import best_median_worst, plot_overlay
from quartet.apps.sam_med3d_ich.task import IchTask


@dataclass(frozen=True, kw_only=True)
class Inspector:
    """Makes report sections of an evaluation; `TrainingSetup.analyse`.

    Attributes:
        task: Segments again the few cases that are drawn.
        datasets: Cases by split.
        window: Level and width in HU of the pictures; None for percentiles.
        decide: Sections on the decision (`choosing.Chooser.sections`).
    """

    task: IchTask
    datasets: Mapping[str, CaseDataset]
    window: tuple[float, float] | None
    decide: Callable[..., Sequence[Section]]

    def __call__(self, predictions: Predictions, folder: Path, prefix: str) -> Sequence[Section]:
        """Write `{prefix}cases.csv`, the overlays and the figures' pictures; see `case_report.case_sections`."""
        dataset = self.datasets[prefix.removesuffix("_") or "val"]
        rows = [
            CaseRow(name=case.name, metrics=CaseMetrics.from_row(values), ich=case.ich, score=score)
            for case, values, score in zip(
                dataset.cases, predictions["figures"].tolist(), predictions["ich_score"].tolist(), strict=True
            )
        ]
        chosen = best_median_worst(
            [1.0 if math.isnan(row.metrics.dice) else row.metrics.dice for row in rows],  # nothing there, nothing found
            lesion=[row.metrics.lesions > 0 for row in rows],
            names=[row.name for row in rows],
        )
        split = prefix.strip("_").capitalize() or "Validation"
        overlays = [
            self._overlay(
                dataset[index], title=f"{split}: {word} case, {rows[index].name}", path=folder / f"{prefix}{word}.png"
            )
            for word, index in chosen.items()
        ]
        return [
            *case_sections(rows, folder=folder, prefix=prefix, overlays=overlays),
            *size_sections(predictions["sizes"].sum(dim=0).numpy(), title=split),
            *self.decide(predictions, folder=folder, prefix=prefix),
        ]

    def _overlay(self, case: Mapping[str, Any], *, title: str, path: Path) -> Picture:
        was_training = self.task.model.training
        self.task.model.eval()
        try:
            with torch.inference_mode():
                found = self.task.segment(case)
        finally:
            self.task.model.train(was_training)
        draw_case(case["volume"], found.mask, target=case["mask"], title="", path=path, window=self.window)
        return Picture(title, path, wide=True, photo=True)


def draw_case(
    volume: Volume,
    predicted: NDArray[np.uint8],
    *,
    target: NDArray[np.uint8] | None,
    title: str,
    path: Path,
    window: tuple[float, float] | None,
) -> None:
    """Write the overlay of a case as stored; see `overlays.plot_overlay`."""
    image, affine = to_ras(volume.array, volume.affine)
    plot_overlay(
        image,
        predicted=to_ras(predicted, volume.affine)[0],
        target=None if target is None else to_ras(target, volume.affine)[0],
        affine=affine,
        title=title,
        path=path,
        window=window,
    )


def to_ras(array: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """An array with its axes in the closest R, A, S order, and its affine in that order."""
    image: Any = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))  # type: ignore[no-untyped-call]
    return np.asarray(image.dataobj), image.affine
