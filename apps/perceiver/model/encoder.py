"""The encoder: any number of input tokens in, a fixed number of latents out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.model.adapters import Adapters
from quartet.apps.perceiver.model.attention import CrossAttentionBlock, SelfAttentionBlock
from quartet.apps.perceiver.model.positions import PositionEncoding, PositionKind
from quartet.apps.perceiver.model.stem import ConvStem, PatchStem, StemKind, make_stem

Inputs = Tensor | Mapping[str, Tensor]
"""Tokens, or raw samples."""
_SCORES = 2**24  # scores of an attention that are there at a time, where it is looked at


@dataclass(frozen=True, kw_only=True)
class PerceiverOptions:
    """What is chosen once and seldom changed.

    Attributes:
        position: Position features that each token gets, see ``PositionEncoding``.
        position_channels: Number of those features (``fourier`` has one more).
        max_seq_len: Longest sequence in tokens for ``fourier`` and ``learned`` positions.
        widening_factor: Hidden width of every perceptron in units of ``d_model``.
        dropout: Probability of dropping an element of a residual branch, in [0, 1).
        share_weights: Repeats use the same weights: all cross-attentions but the first, and all latent transformers
            (Perceiver, section 3.1).
        latent_repeats: How often each latent transformer is gone through, with the same weights.
        cross_widths: Of cross-attentions, where they differ from the rest: ``num_heads``, ``qk_channels``,
            ``v_channels``, ``widening_factor``.
        self_widths: The same of the latent transformers.
        pooling: Classes are read from the mean of the latents (Perceiver) or by one learned query (Perceiver IO).
        gradient_checkpointing: Recompute each block in the backward pass: less memory, the same gradients.
        stem: What tokens go through before they get positions, see ``make_stem``.
        stem_channels: Channels of the stem.
        grid: Rows and columns of a picture's patches and the side of one in pixels, for a conv stem.
        patch: Steps of a series that become one token, ``stem_channels`` wide, see ``PatchStem``.
        time_step: The time from one position to the next, typically, where the last channel of the input is the time of
            each position, rising; its place is then that time, in such steps from the first one on. None: there is no
            such channel, and positions are counted.
        modalities: Of raw samples, as ``Modality.values`` gives them; the input is then ``input`` of ``RawCollate``,
            and stem and positions are those of ``Adapters``. None: it is tokens.
    """

    position: PositionKind = "sinusoidal"
    position_channels: int = 32
    max_seq_len: int = 4096
    widening_factor: int = 1
    dropout: float = 0.0
    share_weights: bool = False
    latent_repeats: int = 1
    cross_widths: Mapping[str, int] = field(default_factory=dict)
    self_widths: Mapping[str, int] = field(default_factory=dict)
    pooling: Literal["mean", "query"] = "mean"
    gradient_checkpointing: bool = False
    stem: StemKind = "none"
    stem_channels: int = 64
    grid: Sequence[int] | None = None
    patch: int = 1
    time_step: float | None = None
    modalities: Sequence[Mapping[str, Any]] | None = None


class PerceiverEncoder(nn.Module):
    """Repeats (cross-attention to the input, then a latent transformer), each as in the paper's figure 1.

    Args:
        input_dim: Channels of a position, with its time if it has one; of raw samples any number, adapters know it.
        d_model: Width of the latents.
        num_heads: Heads of every attention; divides ``d_model``.
        num_cross_attention_layers: Number of repeats.
        num_self_attention_layers: Self-attention blocks after **each** cross-attention.
        num_latents: Number of latents.
        options: The rest.

    Raises:
        UserError: If a number is out of range or ``num_heads`` does not divide ``d_model``.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self,
        input_dim: int,
        *,
        d_model: int,
        num_heads: int,
        num_cross_attention_layers: int,
        num_self_attention_layers: int,
        num_latents: int,
        options: PerceiverOptions | None = None,
    ) -> None:
        super().__init__()
        options = options or PerceiverOptions()
        self.adapters = _adapters(options)
        if self.adapters is not None:
            input_dim, options = self.adapters.width, replace(options, position="none", stem="none")
        channels = input_dim - (options.time_step is not None)
        _check_at_least_one(
            input_dim=channels,
            patch=options.patch,
            d_model=d_model,
            num_heads=num_heads,
            num_cross_attention_layers=num_cross_attention_layers,
            num_latents=num_latents,
            widening_factor=options.widening_factor,
            max_seq_len=options.max_seq_len,
            stem_channels=options.stem_channels,
            latent_repeats=options.latent_repeats,
        )
        self.input_dim, self.depth, self.latent_repeats = input_dim, num_cross_attention_layers, options.latent_repeats
        self.gradient_checkpointing = options.gradient_checkpointing
        width = self._make_inputs(channels, options)
        self.latents = nn.Parameter(torch.empty(num_latents, d_model))
        nn.init.trunc_normal_(self.latents, std=0.02, a=-2.0, b=2.0)

        crosses, towers = (min(self.depth, 2), 1) if options.share_weights else (self.depth, self.depth)
        cross, own = _widths(num_heads, options)
        self.cross_blocks = nn.ModuleList(
            CrossAttentionBlock(d_model, context_dim=width, **cross) for _ in range(crosses)
        )
        self.latent_transformers = nn.ModuleList(
            nn.ModuleList(SelfAttentionBlock(d_model, **own) for _ in range(num_self_attention_layers))
            for _ in range(towers)
        )

    def _make_inputs(self, channels: int, options: PerceiverOptions) -> int:
        """Stem, positions and statistics of inputs; returns the width of a token."""
        self.patch, self.time_step = options.patch, options.time_step
        if self.time_step is not None and options.position in ("added", "learned"):
            raise UserError(
                f"model.position={options.position} counts positions, and these have times: take fourier or sinusoidal"
            )
        self.stem, stem_width = make_stem(
            options.stem,
            # Within a patch the time since the step before is one more value of a step.
            input_dim=channels + (self.time_step is not None and self.patch > 1),
            channels=options.stem_channels,
            grid=options.grid,
            patch=self.patch,
        )
        self.positions = PositionEncoding(
            options.position,
            num_channels=stem_width if options.position == "added" else options.position_channels,
            max_seq_len=options.max_seq_len + (self.patch > 1),  # which a compiled ``PatchStem`` uses
        )
        self.register_buffer("input_mean", torch.zeros(channels))
        self.register_buffer("input_std", torch.ones(channels))
        width = stem_width + self.positions.width
        if width < 2:
            raise UserError("a token of one channel without position features says nothing after its layer norm")
        return width

    @property
    def length(self) -> int | None:
        """The one length of sequences in tokens that the stem takes; None: any."""
        return self.stem.rows * self.stem.columns if isinstance(self.stem, ConvStem) else None

    @property
    def longest(self) -> int | None:
        """The longest sequence in positions; None: any. How long in time one may be is for the caller to know."""
        most = self.positions.longest
        return None if most is None or self.time_step is not None else (most - (self.patch > 1)) * self.patch

    def set_input_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Standardises inputs from now on: each channel less ``mean``, over ``std``; saved with the weights.

        Args:
            mean: Mean of each input channel over the training data, in the data's units; of all but the time.
            std: Standard deviation of each, above 0.

        Raises:
            UserError: If there are not as many finite numbers each, or a deviation is not above 0.
        """
        values, channels = torch.tensor([list(mean), list(std)], dtype=torch.float64), len(self.input_mean)
        if values.shape[1] != channels or not values.isfinite().all() or not (values[1] > 0).all():
            raise UserError(f"expected finite means and deviations above 0 of {channels} channels")
        self.input_mean.copy_(values[0])
        self.input_std.copy_(values[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PerceiverEncoder":
        """Moves and converts; input statistics stay float32 in a model of half precision, which could not hold them."""
        exact = self.input_mean, self.input_std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if torch.promote_types(self.input_mean.dtype, torch.float32) != self.input_mean.dtype:
            self.input_mean, self.input_std = (values.to(self.input_mean.device) for values in exact)
        return self

    def forward(self, x: Inputs, mask: Tensor | None = None) -> Tensor:
        """Encodes a batch of sequences.

        Args:
            x: Tokens, floating point ``[B, M, input_dim]``; padding at the end of a row. Or raw samples, with a mask.
            mask: ``[B, M]``, boolean or numbers, true or 1 where a token is real, else 0; ``None``: everywhere.

        Returns:
            Latents ``[B, num_latents, d_model]``; what stands in padding and how much there is does not matter.

        Raises:
            UserError: If a shape does not fit, a mask holds other numbers, or a sample has no real token (values are
                looked at on accelerators only in evaluation, because looking makes the device wait).
        """
        tokens, mask = self.tokens(x, mask)
        # [1, L, d]: all samples ask the same first questions, so their projection is computed once.
        latents = self.latents[None]
        for repeat in range(self.depth):
            cross = self.cross_blocks[min(repeat, len(self.cross_blocks) - 1)]
            latents = self._run(cross, latents, tokens, mask)
            tower = self.latent_transformers[min(repeat, len(self.latent_transformers) - 1)]
            assert isinstance(tower, nn.ModuleList)  # noqa: S101 - narrows what nn.ModuleList declares
            for block in [*tower] * self.latent_repeats:
                latents = self._run(block, latents)
        return latents

    def attention(self, x: Inputs, mask: Tensor | None = None) -> Tensor:
        """Where the latents look first: of each sample's tokens the share that the first cross-attention takes.

        Arguments are those of ``forward``.

        Returns:
            ``[B, L]``, the mean over heads and latents; rows sum to 1, padding has 0. L is M, or the number of patches.
        """
        tokens, mask = self.tokens(x, mask)
        first = self.cross_blocks[0]
        assert isinstance(first, CrossAttentionBlock)  # noqa: S101 - narrows what nn.ModuleList declares
        queries, context = first.latent_norm(self.latents[None]), first.context_norm(tokens)
        heads = first.attention.num_heads
        some = max(1, _SCORES // (heads * context.shape[0] * context.shape[1]))  # latents at a time
        parts = [
            first.attention.weights(part, context, mask).sum(dim=(1, 2)) for part in torch.split(queries, some, dim=1)
        ]
        shares: Tensor = torch.stack(parts).sum(dim=0) / (heads * queries.shape[1])
        return shares

    def values(self, x: Tensor) -> Tensor:
        """The channels of the input ``[B, M, input_dim]`` without time, standardised."""
        values = x if self.time_step is None else x[..., :-1]
        return (values - self.input_mean) / self.input_std

    def places(self, x: Tensor, query: Tensor) -> Tensor:
        """Where the positions ``query`` ``[B, K]`` of the input are, as ``PositionEncoding.at`` takes it."""
        times = self._times(x)
        found = query if times is None else times.gather(1, query)
        return found if self.patch == 1 else found / self.patch

    def _times(self, x: Tensor) -> Tensor | None:
        """Of each position ``[B, M]``, in steps from the first one of the row on."""
        return None if self.time_step is None else (x[..., -1] - x[:, :1, -1]) / self.time_step

    def tokens(self, x: Inputs, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the latents read: standardised inputs through the stem, with positions ``[B, L, width]``; the mask.

        Arguments are those of ``forward``; the mask is ``None`` where it hides nothing.
        """
        times: Tensor | None = None
        if not isinstance(x, Tensor):
            if self.adapters is None or mask is None:
                raise UserError("raw samples need a model made with modalities, and a mask")
            tokens: Tensor = self.adapters(x, mask)
            self._check_shapes(tokens, mask)
        else:
            self._check_shapes(x, mask)
            tokens, times = self.values(x), self._times(x)
            if times is not None and self.patch > 1:
                tokens = torch.cat([tokens, times.diff(dim=1, prepend=times[:, :1])[..., None]], dim=2)
            tokens = tokens.to(self.latents.dtype)
        if mask is not None:
            tokens, mask = self._without_padding(tokens, self._shown(mask))
        if isinstance(self.stem, PatchStem) and mask is None and torch.compiler.is_compiling():
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        tokens = self._run(self.stem, tokens)
        if isinstance(self.stem, PatchStem):
            times = None if times is None else self.stem.first(times, tokens) / self.patch
            mask = None if mask is None else self.stem.seen(mask)
        return self.positions(tokens, times), mask

    def _run(self, block: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
            return out
        return block(*inputs)

    def _check_shapes(self, x: Tensor, mask: Tensor | None) -> None:
        if x.dim() != 3 or x.shape[-1] != self.input_dim:
            raise UserError(f"expected tokens of shape [batch, length, {self.input_dim}], got {list(x.shape)}")
        if x.shape[1] == 0:
            raise UserError("a sequence of length 0 holds nothing to attend to; leave empty samples out")
        if mask is not None and mask.shape != x.shape[:2]:
            raise UserError(f"expected a mask of shape {list(x.shape[:2])}, got {list(mask.shape)}")

    def _may_look(self, mask: Tensor) -> bool:
        return not torch.compiler.is_compiling() and (mask.device.type == "cpu" or not self.training)

    def _shown(self, mask: Tensor) -> Tensor:
        """The mask as booleans; numbers that are added to scores (0 and minus infinity) mean the opposite."""
        if mask.dtype == torch.bool:
            return mask
        shown = mask == 1
        if self._may_look(mask) and not bool((shown | (mask == 0)).all()):
            strange = mask[~shown & (mask != 0)][0].item()
            raise UserError(f"a mask must be 1 where a token is real and 0 where it is not; found {strange}")
        return shown

    def _without_padding(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Zeroes padding, since 0 * NaN is NaN even under the mask; drops a mask that hides nothing."""
        if self._may_look(mask):
            if not bool(mask.any(dim=1).all()):
                rows = (~mask.any(dim=1)).nonzero().flatten().tolist()
                raise UserError(f"samples {rows} of the batch are padding only; leave empty samples out")
            if mask.device.type == "cpu" and bool(mask.all()):
                return x, None
        return x.masked_fill(~mask[..., None], 0.0), mask


def _adapters(options: PerceiverOptions) -> Adapters | None:
    if options.modalities is None:
        return None
    return Adapters(
        [Modality(**values) for values in options.modalities],
        channels=options.stem_channels,
        stem=options.stem,
        position=options.position,
        position_channels=options.position_channels,
    )


def _widths(num_heads: int, options: PerceiverOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the blocks that read the input, and of the others."""
    both = {"num_heads": num_heads, "widening_factor": options.widening_factor, "dropout": options.dropout}
    return {**both, **options.cross_widths}, {**both, **options.self_widths}


def _check_at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"{name} must be at least 1, not {number}")
