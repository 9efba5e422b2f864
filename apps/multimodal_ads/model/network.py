"""The whole classifier as one network of plain tensors: what predicts, and what is exported."""

from collections.abc import Sequence

from torch import Tensor, nn

from quartet.apps.multimodal_ads.model.classifier import AdClassifier, full_precision
from quartet.apps.multimodal_ads.text.network import TextNetwork, embed

__all__ = ["TEXT_FACTS", "TEXT_INPUTS", "AdNetwork"]

TEXT_INPUTS = ("input_ids", "attention_mask", "text_of")
"""Tokens of T texts int64 [T, L], where there are some int64 [T, L], and the text of each input int64 [B], -1: none.

Of n-grams: their buckets, and how often each occurs. Where texts are read in chunks, T is how many of these there are,
and each input has several, int64 [B, K].
"""
TEXT_FACTS = "text_facts"
"""What a gate is told of each text, float32 [B, F], where it is told."""


class AdNetwork(nn.Module):
    """Prepared pictures, tokens of texts, or both, to logits [B], and for a gated fusion the mean of the gate [B].

    Args:
        classifier: Without frozen weights or adapters, so that its state dict holds all.
        text: The frozen text encoder's; None where texts are not looked at, or n-grams are.
        pixels: Names of the processor's tensors, which come first; none where pictures are not looked at.
    """

    def __init__(self, classifier: AdClassifier, text: TextNetwork | None, pixels: Sequence[str]) -> None:
        super().__init__()
        self.classifier, self.text, self._pixels = classifier, text, tuple(pixels)

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The processor's tensors in their order, then those of `TEXT_INPUTS`, then `TEXT_FACTS`."""
        count = len(self._pixels)
        batch: dict[str, object] = {"pixels": dict(zip(self._pixels, tensors[:count], strict=True))}
        network = self.classifier.ngrams if self.text is None else self.text
        if network is not None:
            tokens, mask, place, *facts = tensors[count:]
            with full_precision(tokens.device):  # as the embeddings of training are computed
                embeddings = embed(network, tokens, mask, place)
            batch |= {"text": embeddings, "has_text": (place if place.ndim == 1 else place[:, 0]) >= 0}
            batch |= {TEXT_FACTS: facts[0]} if facts else {}
        found = self.classifier(batch)
        return found.logits if found.gate is None else (found.logits, found.gate.float().mean(dim=1))
