"""The ad classifier: backbone, pooling, fusion and head, for one modality or both."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from quartet.apps.multimodal_ads.model.fusion import ConcatFusion, GatedFusion, LateFusion, Single
from quartet.apps.multimodal_ads.text.network import TextNetwork, embed
from quartet.apps.multimodal_ads.text.ngrams import NgramEmbedding
from quartet.apps.multimodal_ads.vision.interface import Tokens, VisionEncoder

Batch = Mapping[str, Any]
Part = TypeVar("Part")


class Output(NamedTuple):
    """What the classifier says of a batch.

    Attributes:
        logits: [B]; above 0 means more likely an ad than not.
        gate: [B, H], the share of the picture in each unit of a gated fusion; None without one.
        imagined: [B, Dt], the text's embedding as predicted from the picture; None but in training with that aim.
        text: [B, Dt], the embedding itself; None without texts.
        branches: [B, 2], the logit of the picture alone and of the text alone; None where there are none.
    """

    logits: Tensor
    gate: Tensor | None
    imagined: Tensor | None = None
    text: Tensor | None = None
    branches: Tensor | None = None


class AdClassifier(nn.Module):
    """One logit for each sample.

    Its state dict holds what training changes: frozen weights of the encoders are not in it, and are not asked for when
    it is loaded. They come from the hub or a folder, and their digest is noted in checkpoints.

    Args:
        vision: The backbone; None where pictures are not looked at, or where their features come with the batch.
        pooling: From its tokens to a vector; None where pictures are not looked at.
        fusion: What joins (or, for one modality, prepares) the vectors, or their logits.
        head: From the fused vector to the logit; not used where logits are fused.
        branches: Heads of the picture's vector and of the text's; None without logits of their own.
        text_width: Width of what is known of texts; None where they are not looked at.
        ngrams: Embeds texts; None where they come embedded. What it says last is a logit, and is added to the text's.
        text: Embeds texts, and trains; None where it is frozen, and stays outside.
        imagine: From the picture's vector to a text embedding, for training; None for none.
    """

    def __init__(
        self,
        *,
        vision: VisionEncoder | None,
        pooling: nn.Module | None,
        fusion: GatedFusion | ConcatFusion | LateFusion | Single,
        head: nn.Module,
        branches: nn.ModuleList | None = None,
        text_width: int | None,
        ngrams: NgramEmbedding | None = None,
        text: TextNetwork | None = None,
        imagine: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.vision = vision
        self.pooling = pooling
        self.fusion = fusion
        self.head = head
        self.branches = branches
        self.ngrams = ngrams
        self.text = text
        self.imagine = imagine
        # What stands in for a text that is missing; learned, so that it need not look like any text. It starts at unit
        # length, as embeddings have it: fusions normalise it, and at zero the gradient of that is without bound.
        self.no_text = (
            None if text_width is None else nn.Parameter(functional.normalize(torch.randn(text_width), dim=0))
        )
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_excuse_frozen)  # type: ignore[no-untyped-call]

    def forward(self, batch: Batch) -> Output:
        """Logits of a batch, with the gate where there is one.

        Args:
            batch: "pixels" (the processor's tensors), or "tokens" (`Tokens`), or "pooled" [B, D]; and "text" [B, Dt],
                or "text_inputs" (as `embed` takes them), or "ngrams" (as `NgramEmbedding` does), perhaps with
                "text_logit" [B] in place of the shortcut's, with "has_text" bool [B], and "text_facts" [B, F] for a
                gate that is told them. What the modality does not need may be missing.
        """
        picture = None if self.pooling is None else self._picture(batch).float()
        text = None if self.no_text is None else self._text(batch).float()
        # Fusion and head cost next to nothing, and logits of few digits would tie.
        with full_precision(given(text if picture is None else picture).device):
            shortcut: Tensor | float = 0.0
            if text is not None and self.ngrams is not None:
                text, shortcut = text[:, :-1], text[:, -1]
            imagined = self.imagine(picture) if self.imagine is not None and self.training else None
            branches = None if self.branches is None else self._alone(given(picture), given(text), shortcut)
            if isinstance(self.fusion, LateFusion):
                return Output(self.fusion(given(branches)), None, imagined, text, branches)
            if isinstance(self.fusion, Single):
                vector, gate = self.fusion(given(text if picture is None else picture)), None
            else:
                vector, gate = self.fusion(given(picture), given(text), *self._facts(batch))
            logits = self.head(vector).squeeze(-1) + shortcut
            return Output(logits, gate, imagined, text, branches)

    def _alone(self, picture: Tensor, text: Tensor, shortcut: Tensor | float) -> Tensor:
        """Logits of each modality [B, 2]; vectors at mean 0 and variance 1, as for `GatedFusion`."""
        vectors = (functional.layer_norm(vector, vector.shape[-1:]) for vector in (picture, text))
        seen, read = (head(vector).squeeze(-1) for head, vector in zip(given(self.branches), vectors, strict=True))
        return torch.stack([seen, read + shortcut], dim=1)

    def _picture(self, batch: Batch) -> Tensor:
        if "pooled" in batch:
            known: Tensor = batch["pooled"]
            return known
        pooled: Tensor = given(self.pooling)(batch["tokens"] if "tokens" in batch else self._see(batch["pixels"]))
        return pooled

    def _see(self, pixels: Mapping[str, Tensor]) -> Tokens:
        vision = given(self.vision)
        with torch.set_grad_enabled(torch.is_grad_enabled() and _trains(vision)):
            tokens: Tokens = vision(pixels)
        return tokens

    def _text(self, batch: Batch) -> Tensor:
        if "text_inputs" in batch:
            text = embed(given(self.text), *batch["text_inputs"])
        else:
            text = batch["text"] if "text" in batch else given(self.ngrams)(*batch["ngrams"])
        if "text_logit" in batch:
            text = torch.cat([text[:, :-1], batch["text_logit"].unsqueeze(1)], dim=1)
        return torch.where(batch["has_text"].unsqueeze(-1), text, given(self.no_text).to(text.dtype))

    def _facts(self, batch: Batch) -> list[Tensor]:
        """What the gate is told of texts; zeros of those that are missing or hidden."""
        if not isinstance(self.fusion, GatedFusion) or not self.fusion.facts:
            return []
        return [batch["text_facts"] * batch["has_text"].unsqueeze(-1)]


def given(part: Part | None) -> Part:
    """A part that this modality needs.

    Raises:
        ValueError: The classifier was made without it, or the batch lacks what would stand in for it.
    """
    if part is None:
        raise ValueError("the batch asks for a part that this classifier was made without")
    return part


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off inside, where it is on."""
    active = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if active else nullcontext()


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _frozen_keys(module: nn.Module) -> set[str]:
    """Parameters that are frozen, and buffers of modules that do not train, below `module.vision` and `module.text`.

    A module without parameters trains if the one that holds it does.
    """
    if not isinstance(module, AdClassifier):
        return set()
    encoders = {"vision": module.vision, "text": module.text}
    return {
        key
        for name, encoder in encoders.items()
        if encoder is not None
        for key in _frozen_below(encoder, name, trains=_trains(encoder))
    }


def _frozen_below(module: nn.Module, path: str, *, trains: bool) -> Iterator[str]:
    trains = _trains(module) if any(True for _ in module.parameters()) else trains
    own = module.named_parameters(recurse=False)
    yield from (f"{path}.{name}" for name, parameter in own if not parameter.requires_grad)
    if not trains:
        yield from (f"{path}.{name}" for name, _ in module.named_buffers(recurse=False))
    for name, child in module.named_children():
        yield from _frozen_below(child, f"{path}.{name}", trains=trains)


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: dict[str, Any]) -> None:
    for key in _frozen_keys(module):
        state.pop(prefix + key, None)


def _excuse_frozen(module: nn.Module, keys: Any) -> None:
    frozen = _frozen_keys(module)
    keys.missing_keys[:] = [key for key in keys.missing_keys if key not in frozen]
