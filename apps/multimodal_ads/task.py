"""Ad or not, as the trainer sees it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.training import losses
from mlcore.training.engine import StepOutput
from quartet.apps.multimodal_ads.evaluation import ad_metrics
from quartet.apps.multimodal_ads.model.classifier import AdClassifier, full_precision, given
from quartet.apps.multimodal_ads.text.encoder import AnyTextEncoder
from quartet.apps.multimodal_ads.text.ngrams import NgramEncoder
from quartet.apps.multimodal_ads.text.reading import text_inputs

Batch = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The training loss.

    Attributes:
        loss_type: Focal loss or binary cross entropy.
        focal_gamma: focal: how strongly easy samples are discounted.
        focal_alpha: focal: weight of the ads, 1 - alpha that of the others; None: both 1.
        pos_weight: bce: weight of the ads.
        label_smoothing: How far targets are moved towards one half.
        align_weight: Weight of 1 - cosine between a text's embedding and the one predicted from its picture (visual-
            semantic embedding: Frome et al. 2013, with a cosine in place of the ranking loss).
        modality_loss: Weight of the loss of each modality's own logit.
    """

    loss_type: Literal["focal", "bce"] = "focal"
    focal_gamma: float = 2.0
    focal_alpha: float | None = None
    pos_weight: float | None = None
    label_smoothing: float = 0.0
    align_weight: float = 0.0
    modality_loss: float = 0.0

    def __call__(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of each sample [B]; logits [B], label int64 [B]."""
        if self.loss_type == "bce":
            return losses.binary_cross_entropy(
                logits, label, pos_weight=self.pos_weight, label_smoothing=self.label_smoothing
            )
        return losses.binary_focal(
            logits, label, gamma=self.focal_gamma, alpha=self.focal_alpha, label_smoothing=self.label_smoothing
        )

    def alone(self, branches: Tensor, label: Tensor) -> Tensor:
        """Loss of each sample [B] for the logits of picture and text alone [B, 2]."""
        picture, text = branches.unbind(dim=1)
        return self.modality_loss * (self(picture, label) + self(text, label))

    def align(self, imagined: Tensor, text: Tensor, real: Tensor) -> Tensor:
        """Loss of each sample [B] for predicted and true embeddings [B, D]; 0 where there is no `real` text (bool)."""
        return self.align_weight * (1 - functional.cosine_similarity(imagined, text, dim=-1)) * real


@dataclass(frozen=True, kw_only=True)
class AdTask:
    """A classifier and what it is trained for.

    Attributes:
        model: The classifier.
        objective: The training loss.
        text_encoder: Encodes texts that come as they are ("texts" in the batch); None where embeddings come.
        text_logits: Of training texts, by a shortcut that was fitted without them; see `NgramStart`.
        metadata: Plain values that a checkpoint carries for whoever loads the model alone.
        former_metadata: Gives them as earlier versions had them.
    """

    model: AdClassifier
    objective: Objective = field(default_factory=Objective)
    text_encoder: AnyTextEncoder | None = None
    text_logits: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    former_metadata: Callable[[], Mapping[str, Any]] = dict

    def training_step(self, model: nn.Module, batch: Batch) -> StepOutput:
        """Loss of a batch as `AdClassifier` takes it, with "label" int64 [B]."""
        label, batch = batch["label"], self._complete(batch, self.text_logits)
        found = model(batch)
        loss = self.objective(found.logits, label)
        if self.objective.modality_loss:
            loss = loss + self.objective.alone(found.branches, label)
        if found.imagined is not None:
            loss = loss + self.objective.align(found.imagined, found.text.detach(), batch["real_text"])
        right = ((found.logits.detach() > 0) == (label > 0)).sum()
        return StepOutput(loss.sum(), len(label), {"accuracy": right.float()})

    def evaluation_step(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Rows "label" int64 [B], "logit" float32 [B], "loss" [B], and more where there is more to say.

        "gate" [B] is the mean of a gated fusion's; "picture_logit" and "text_logit" [B] are of each modality alone.
        """
        output = model(self._complete(batch))
        logits = output.logits.float()
        rows = {"label": batch["label"], "logit": logits, "loss": self.objective(logits, batch["label"])}
        if output.gate is not None:
            rows["gate"] = output.gate.float().mean(dim=1)
        if output.branches is not None:
            rows["picture_logit"], rows["text_logit"] = output.branches.float().unbind(dim=1)
        return rows

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        """AUROC, average precision, and figures at probability one half."""
        return ad_metrics(predictions)

    def _complete(self, batch: Batch, known: Mapping[str, float] | None = None) -> Batch:
        """The batch with embeddings, tokens or n-grams in place of texts, and logits of those that are known."""
        if "texts" not in batch:
            return batch
        device, texts = batch["label"].device, batch["texts"]
        if isinstance(self.text_encoder, NgramEncoder):
            ngrams = tuple(tensor.to(device) for tensor in self.text_encoder(texts))
            if not known:
                return {**batch, "ngrams": ngrams}
            logits = torch.tensor([known.get(text, 0.0) for text in texts], device=device)
            return {**batch, "ngrams": ngrams, "text_logit": logits}
        if self.model.text is not None:
            inputs = text_inputs(given(self.text_encoder).reader(), texts)
            return {**batch, "text_inputs": tuple(tensor.to(device) for tensor in inputs)}
        with torch.no_grad(), full_precision(device):  # as the stored embeddings are computed
            return {**batch, "text": given(self.text_encoder).encode(texts).to(device)}
