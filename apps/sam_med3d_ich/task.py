"""Segmentation of haemorrhages, as the trainer sees it: crops in training, whole volumes in evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlcore.training import losses
from mlcore.training.engine import StepOutput
from quartet.apps.sam_med3d_ich.case_metrics import CaseMetrics, case_metrics, lesions_by_size, summarise
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.unet import UNetModel
from quartet.apps.sam_med3d_ich.segmentation import Segmentation, Segmenter, clicks_from_mask

WholeCase = Mapping[str, Any]
"""An item of `CaseDataset`: "volume", "mask", "ich", "name", "index"."""
MaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Logits and target, both [B, 1, X, Y, Z], to one value per sample, [B]."""


@dataclass(eq=False, kw_only=True)
class IchTask:
    """A model of head CTs and what it is trained for.

    Attributes:
        model: The network.
        segmenter: How it goes over whole volumes; another one takes its place where validation chooses its point.
        mask_loss: Loss of a predicted mask.
        ich_weight: Weight of the image-level loss.
        prompted: Train and evaluate with simulated clicks.
        metadata: Plain values that a checkpoint carries for whoever loads the model alone.
    """

    model: IchModel | UNetModel
    segmenter: Segmenter
    mask_loss: MaskLoss
    ich_weight: float = 0.1
    prompted: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def training_step(self, model: nn.Module, batch: Mapping[str, Tensor]) -> StepOutput:
        """Losses of crops: "image" [B, 1, S, S, S], "mask" likewise, "label" [B], and "draws" [B, K] for clicks."""
        image, mask, label = batch["image"], batch["mask"], batch["label"]
        answer = model(image, target=mask, draws=batch["draws"]) if self.prompted else model(image)
        rounds = answer.masks.split(1, dim=1)
        mask_loss = torch.stack([self.mask_loss(logits, mask) for logits in rounds]).mean(dim=0)  # [B]
        ich_loss = losses.binary_cross_entropy(answer.ich, label)  # [B]
        logs = {
            "mask_loss": mask_loss.detach().sum(),
            "ich_loss": ich_loss.detach().sum(),
            "crop_dice": _hard_dice(rounds[-1].detach(), mask).sum(),
        }
        return StepOutput((mask_loss + self.ich_weight * ich_loss).sum(), len(image), logs)

    def evaluation_step(self, model: nn.Module, batch: Sequence[WholeCase]) -> dict[str, Tensor]:
        """Figures of whole cases at their stored resolution.

        Rows "figures" [B, F] (`CaseMetrics`), "sizes" [B, 2, 5] (`lesions_by_size`), "ich_score" and "ich_label" [B].
        """
        del model  # the segmenter has it
        rows, scores, sizes = [], [], []
        for case in batch:
            found = self.segment(case)
            rows.append(case_metrics(found.mask, target=case["mask"], affine=case["volume"].affine).to_row())
            scores.append(found.ich_score)
            sizes.append(lesions_by_size(found.mask, target=case["mask"], affine=case["volume"].affine))
        return {
            "figures": torch.tensor(rows, dtype=torch.float64),
            "sizes": torch.from_numpy(np.stack(sizes)),
            "ich_score": torch.tensor(scores, dtype=torch.float64),
            "ich_label": torch.tensor([case["ich"] for case in batch]),
        }

    def segment(self, case: WholeCase) -> Segmentation:
        """The segmentation that the figures of a case are of."""
        return self.segmenter(
            case["volume"], clicks=clicks_from_mask(case["mask"], case["volume"].affine) if self.prompted else None
        )

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """Means over cases; see `case_metrics.summarise`."""
        return figures(predictions)


def figures(predictions: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over cases, from rows of `IchTask.evaluation_step`; see `case_metrics.summarise`."""
    return summarise(
        [CaseMetrics.from_row(row) for row in predictions["figures"].tolist()],
        ich_scores=predictions["ich_score"],
        ich_labels=predictions["ich_label"],
    )


def _hard_dice(logits: Tensor, mask: Tensor) -> Tensor:
    """Dice of the thresholded crop, [B]; 1 where both are empty."""
    found, there = (logits > 0).flatten(1), (mask > 0).flatten(1)
    total = found.sum(1) + there.sum(1)
    return torch.where(total > 0, 2 * (found & there).sum(1) / total.clamp_min(1), 1.0)
