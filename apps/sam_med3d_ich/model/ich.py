"""The trained model: SAM-Med3D plus a head that says whether a volume holds a haemorrhage at all."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quartet.apps.sam_med3d_ich.model.clicks import next_click
from quartet.apps.sam_med3d_ich.model.decoder import Refinement
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape
from quartet.apps.sam_med3d_ich.model.sam import SamMed3D

Points = tuple[Tensor, Tensor]
"""Voxel indices [B, N, 3] and labels [B, N]: 1 inside, 0 outside, -1 no point."""


class RepresentationHead(nn.Module):
    """Image embedding to tokens of a chosen width, and a score over all of them.

    Args:
        channels: Channels of the embedding.
        visual_tokens: Width of a token.
    """

    def __init__(self, channels: int, *, visual_tokens: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, visual_tokens))
        self.score = nn.Linear(2 * visual_tokens, 1)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding [B, C, g, g, g] to tokens [B, g^3, visual_tokens] and a haemorrhage logit [B]."""
        tokens: Tensor = self.tokens(embedding.flatten(2).transpose(1, 2))
        # The mean is steady, the maximum sees the one place where a small bleed is.
        pooled = torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1)
        return tokens, self.score(F.gelu(pooled)).squeeze(1)


@dataclass(frozen=True)
class Answer:
    """What the model says of a batch of crops.

    Attributes:
        masks: Logits, one mask for each round of clicks (one without clicks), [B, K, S, S, S].
        ich: Logit of "there is a haemorrhage", [B].
    """

    masks: Tensor
    ich: Tensor


class IchModel(nn.Module):
    """SAM-Med3D with a representation head.

    Args:
        shape: Sizes of the encoder.
        visual_tokens: Width of the head's tokens.
        prompted: Train for clicks; the prompt encoder's other parts stay as they are either way.
        refined: With a `Refinement` of the mask.
        freeze_encoder: Train all but the image encoder, which then also runs without keeping activations.
        gradient_checkpointing: Recompute the encoder's activations in the backward pass.
    """

    def __init__(
        self,
        shape: EncoderShape,
        *,
        visual_tokens: int = 256,
        prompted: bool = False,
        refined: bool = False,
        freeze_encoder: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.sam = SamMed3D(shape, gradient_checkpointing=gradient_checkpointing)
        self.head = RepresentationHead(shape.out_channels, visual_tokens=visual_tokens)
        self.refinement = Refinement(shape.out_channels) if refined else None
        # Parts that no loss reaches: trained, they would only drift with weight decay (and DDP would wait for them).
        self.sam.mask_decoder.iou_prediction_head.requires_grad_(requires_grad=False)
        self.sam.mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(requires_grad=False)
        prompts = self.sam.prompt_encoder
        prompts.requires_grad_(prompted)
        prompts.no_mask_embed.requires_grad_(not prompted)
        self.sam.image_encoder.requires_grad_(not freeze_encoder)

    @property
    def side(self) -> int:
        """Voxels along each side of a crop."""
        return self.sam.shape.image_size

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.head.score.weight.device

    def encode(self, image: Tensor) -> Tensor:
        """Image [B, 1, S, S, S] to embedding [B, C, g, g, g]."""
        embedding: Tensor = self.sam.image_encoder(image)
        return embedding

    def segment(
        self, embedding: Tensor, image: Tensor, *, points: Points | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Mask logits [B, 1, S/p*4, ...] of an image and its embedding; see `SamMed3D.decode`."""
        refine = None if self.refinement is None else partial(self.refinement, image)
        return self.sam.decode(embedding, points=points, mask=mask, refine=refine)[0]

    def enlarge(self, masks: Tensor) -> Tensor:
        """Logits of the decoder to the size of the input, [B, K, S, S, S]."""
        return masks if masks.shape[2] == self.side else enlarge_cubes(masks, self.side)

    def forward(self, image: Tensor, *, target: Tensor | None = None, draws: Tensor | None = None) -> Answer:
        """Segment a batch of crops, without prompts or along simulated clicks.

        Args:
            image: [B, 1, S, S, S], normalised.
            target: Wanted mask [B, 1, S, S, S]; with it clicks are simulated.
            draws: Uniform random numbers in [0, 1), one for each round, [B, K].
        """
        embedding = self.encode(image)
        _, ich = self.head(embedding)
        if target is None or draws is None:
            return Answer(self.enlarge(self.segment(embedding, image)), ich)
        return Answer(self._along_clicks(embedding, image, target, draws), ich)

    def after_clicks(self, image: Tensor, positions: Tensor, labels: Tensor) -> Answer:
        """Segment crops where clicks are known: answered, and then refined once, as training ends.

        Args:
            image: [B, 1, S, S, S], normalised.
            positions: Voxel indices of the crop, [B, N, 3].
            labels: 1 (inside), 0 (outside) or -1 (no point), [B, N].
        """
        embedding = self.encode(image)
        _, ich = self.head(embedding)
        side = 4 * self.sam.shape.grid
        blank = embedding.new_zeros(embedding.shape[0], 1, side, side, side)
        first = self.segment(embedding, image, points=(positions, labels), mask=blank)
        return Answer(self.enlarge(self.segment(embedding, image, mask=first)), ich)

    def _along_clicks(self, embedding: Tensor, image: Tensor, target: Tensor, draws: Tensor) -> Tensor:
        """Click after click on what is wrong; the middle and the last round only refine. After the released training.

        Every other round sees all clicks so far, and all see the previous logits; no gradient flows through either. The
        released training draws the round that refines, shows the newest click alone unless asked for all, lets the
        gradient through the previous logits, and finds wrong voxels with logits above 0.5, not 0.
        """
        rounds = draws.shape[1]
        side = 4 * self.sam.shape.grid
        previous = embedding.new_zeros(len(embedding), 1, side, side, side)
        shown = torch.zeros_like(target, dtype=embedding.dtype)
        positions, labels = embedding.new_zeros(len(embedding), 0, 3), target.new_zeros(len(embedding), 0).long()
        masks = []
        for index in range(rounds):
            position, label = next_click(shown, target, draw=draws[:, index])
            positions, labels = torch.cat([positions, position], dim=1), torch.cat([labels, label], dim=1)
            unprompted = rounds > 1 and index in (rounds // 2, rounds - 1)
            low = self.segment(embedding, image, points=None if unprompted else (positions, labels), mask=previous)
            previous, shown = low.detach(), self.enlarge(low)
            masks.append(shown)
            shown = shown.detach()
        return torch.cat(masks, dim=1)


def enlarge_cubes(values: Tensor, side: int) -> Tensor:
    """Trilinear interpolation, as of `F.interpolate` with centres of voxels in their places, but of matrix products.

    The backward pass of torch's own adds on one thread of a CPU, and in any order on a GPU.

    Args:
        values: [B, K, s, s, s]; computed in float32 also under autocast.
        side: S.

    Returns:
        [B, K, S, S, S].
    """
    own, device = values.shape[2], values.device
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            return enlarge_cubes(values.float(), side)
    place = ((torch.arange(side, device=device, dtype=values.dtype) + 0.5) * (own / side) - 0.5).clamp(0, own - 1)
    knots = torch.arange(own, device=device, dtype=values.dtype)
    weights = (1 - (place[:, None] - knots).abs()).clamp_min(0)  # [S, s], two of a row are not 0
    wide = weights @ (values @ weights.T)  # [B, K, s, S, S]
    return torch.unflatten(weights @ wide.flatten(3), 3, (side, side))


class IchNetwork(nn.Module):
    """The trained model as one network of plain tensors: what predicts a window, and what is exported.

    Args:
        model: The trained model, or a UNet.
        prompted: Whether it takes clicks.
    """

    def __init__(self, model: nn.Module, *, prompted: bool) -> None:
        super().__init__()
        self.model, self.prompted = model, prompted

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """What `IchModel.after_clicks` takes, or an image alone, to logits of masks [B, 1, S, S, S] and `ich` [B]."""
        ask: Any = self.model.after_clicks if self.prompted else self.model
        answer: Answer = ask(*tensors)
        return answer.masks, answer.ich
