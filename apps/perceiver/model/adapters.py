"""From raw modalities to tokens of one width, packed: the input side of a multimodal Perceiver.

A token is an embedding of its content, features of its place in its own modality (Fourier features of row and column
for pictures, one of ``PositionEncoding`` for the rest) and a learned code of the modality, which also fills it up to
the common width (Perceiver IO, arXiv 2107.14795, section 3.2 and appendix on multimodal autoencoding).
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.patches import fourier_positions
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.model.positions import PositionEncoding, PositionKind
from quartet.apps.perceiver.model.stem import ConvStem, StemKind

__all__ = ["Adapters", "convolved"]

_CODE = 8  # learned channels of the widest modality's tokens
_BANDS = 4  # of rows and columns
_BYTES = 256


class Adapters(nn.Module):
    """Tokens of a batch of raw samples.

    Args:
        modalities: What a sample may have, as ``Modality`` notes it.
        channels: Channels of an embedding.
        stem: linear: a linear map of each patch; conv: convolutions that look across the borders of patches.
        position: Positions of bytes and time steps; where these are added, a lone modality has no code.
        position_channels: Their number.

    Attributes:
        width: Channels of a token.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        *,
        channels: int,
        stem: StemKind = "linear",
        position: PositionKind = "sinusoidal",
        position_channels: int = 32,
    ) -> None:
        super().__init__()
        kinds = {"text": _Text, "image": _Picture, "series": _Series}
        self.names = [modality.name for modality in modalities]
        self.embeddings = nn.ModuleList(
            kinds[modality.kind](modality, channels=channels, conv=stem == "conv") for modality in modalities
        )
        self.positions = nn.ModuleList(
            _Grid(modality)
            if modality.kind == "image"
            else PositionEncoding(
                position,
                num_channels=channels if position == "added" else position_channels,
                max_seq_len=modality.longest or 1,
            )
            for modality in modalities
        )
        widths = [channels + int(positions.width) for positions in self.positions]  # type: ignore[arg-type]
        self.width = max(widths) + (0 if position == "added" and len(widths) == 1 else _CODE)
        self.codes = nn.ParameterList(torch.empty(self.width - width).normal_(std=0.5) for width in widths)

    @property
    def is_plain_text(self) -> bool:
        """Whether a token is a linear map of one byte and a learned position that is added to it."""
        first, positions = self.embeddings[0], self.positions[0]
        return (
            len(self.names) == 1
            and isinstance(first, _Text)
            and isinstance(first.embed, _Patches)
            and first.embed.map.in_features == first.bytes.embedding_dim
            and positions.kind == "added"
        )

    def set_scales(self, scales: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
        """Standardises series from now on, by mean and deviation of each channel; saved with the weights."""
        for name, embedding in zip(self.names, self.embeddings, strict=True):
            if name in scales and isinstance(embedding, _Series):
                embedding.mean.copy_(torch.tensor(scales[name][0]))
                embedding.std.copy_(torch.tensor(scales[name][1]))

    def forward(self, x: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Maps ``input`` and ``mask`` of ``RawCollate`` to ``[B, M, width]``, tokens at the start of each row.

        What stands where the mask is false means nothing.
        """
        length, row = x["length"], x["row"]  # [B, K]
        at = torch.arange(mask.shape[1], device=mask.device)[None]  # [1, M]
        place = torch.zeros_like(mask, dtype=torch.int64)
        parts: list[Tensor] = []
        start, before = torch.zeros_like(length[:, :1]), 0  # of a modality: among a sample's tokens, among all rows
        for number, name in enumerate(self.names):
            tokens = self.positions[number](self.embeddings[number](x[name]))  # [n, L, ...]
            code = self.codes[number].to(tokens.dtype).expand(*tokens.shape[:2], -1)
            parts.append(torch.cat([tokens, code], dim=2).flatten(0, 1))
            within, own = at - start, length[:, number : number + 1]
            found = before + row[:, number : number + 1] * tokens.shape[1] + within
            place = torch.where((within >= 0) & (within < own), found, place)
            start, before = start + own, before + tokens.shape[0] * tokens.shape[1]
        return torch.cat(parts).index_select(0, place.flatten()).view(mask.shape[0], mask.shape[1], self.width)


class _Grid(nn.Module):
    """Appends Fourier features of row and column to the patches of pictures ``[n, L, C]``."""

    features: Tensor

    def __init__(self, modality: Modality) -> None:
        super().__init__()
        height, width = modality.size
        grid = height // modality.patch, width // modality.patch
        self.register_buffer("features", torch.from_numpy(fourier_positions(grid, bands=_BANDS)), persistent=False)
        self.width = self.features.shape[1]

    def forward(self, tokens: Tensor) -> Tensor:
        """To ``[n, L, C + width]``."""
        return torch.cat([tokens, self.features.to(tokens.dtype).expand(tokens.shape[0], -1, -1)], dim=2)


class _Picture(nn.Module):
    """Pictures uint8 ``[n, H, W, 3]`` to patches ``[n, L, channels]``."""

    def __init__(self, modality: Modality, *, channels: int, conv: bool) -> None:
        super().__init__()
        (height, width), self.side = modality.size, modality.patch
        if height % self.side or width % self.side:
            raise UserError(
                f"{modality.name}: patches of {self.side} pixels do not tile pictures of {height} x {width}; choose a "
                "patch_size that divides both, or an image_size"
            )
        grid = height // self.side, width // self.side, self.side
        self.embed = ConvStem(grid, channels=channels) if conv else nn.Linear(3 * self.side**2, channels)

    def forward(self, pictures: Tensor) -> Tensor:
        """Cuts and embeds them."""
        count, height, width, _ = pictures.shape
        side = self.side
        cut = pictures.reshape(count, height // side, side, width // side, side, 3).transpose(2, 3)
        pixels = cut.reshape(count, -1, 3 * side**2).to(self.dtype) / 127.5 - 1
        out: Tensor = self.embed(pixels)
        return out

    @property
    def dtype(self) -> torch.dtype:
        """That of the weights."""
        return next(self.embed.parameters()).dtype


class _Text(nn.Module):
    """Bytes uint8 ``[n, L, patch]``, 0 where padded, to ``[n, L, channels]``."""

    def __init__(self, modality: Modality, *, channels: int, conv: bool) -> None:
        super().__init__()
        width = _widths(channels, modality.patch)[0] if conv else channels
        self.bytes = nn.Embedding(_BYTES, width, padding_idx=0)
        self.embed = _stem(width, channels, patch=modality.patch, conv=conv)

    def forward(self, text: Tensor) -> Tensor:
        """Embeds them."""
        out: Tensor = self.embed(self.bytes(text.long()), text != 0)
        return out


class _Series(nn.Module):
    """Series float32 ``[n, L, patch, C]``, NaN where padded, to ``[n, L, channels]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Modality, *, channels: int, conv: bool) -> None:
        super().__init__()
        (width,) = modality.size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.embed = _stem(width, channels, patch=modality.patch, conv=conv)

    def forward(self, series: Tensor) -> Tensor:
        """Standardises and embeds them; padding is as good as the mean."""
        there = ~series.isnan()
        standard = torch.where(there, (series - self.mean) / self.std, 0.0).to(next(self.embed.parameters()).dtype)
        out: Tensor = self.embed(standard, there[..., 0])
        return out


class _Patches(nn.Module):
    """A linear map of the steps of a patch together: ``[n, L, patch, before]`` to ``[n, L, after]``."""

    def __init__(self, before: int, after: int, *, patch: int) -> None:
        super().__init__()
        self.map = nn.Linear(before * patch, after)

    def forward(self, x: Tensor, _there: Tensor) -> Tensor:
        """Maps them."""
        out: Tensor = self.map(x.flatten(2))
        return out


class _Convolutions(nn.Module):
    """For each halving of the patch: convolution over five steps, layer norm, GELU, max pooling by two.

    Channels double on the way. Steps that are padding are 0 before each convolution, so that how much there is of it
    changes nothing.
    """

    def __init__(self, before: int, after: int, *, patch: int) -> None:
        super().__init__()
        self.halvings = patch.bit_length() - 1
        if patch != 2**self.halvings:
            raise UserError(
                "a conv stem halves a patch until one token is left: data.text_patch and data.series_patch must be "
                f"1, 2, 4 ..., not {patch}"
            )
        widths = _widths(after, patch)
        steps = zip([before, *widths[:-1]], widths, strict=True)
        self.convolutions = nn.ModuleList(nn.Conv1d(one, other, 5, padding=2) for one, other in steps)
        self.norms = nn.ModuleList(map(nn.LayerNorm, widths))

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Maps ``[n, L, patch, before]`` to ``[n, L, after]``; ``there`` is false where a step is padding."""
        x, there = x.flatten(1, 2), there.flatten(1, 2)
        for level, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = F.gelu(norm(convolved(convolution, x.masked_fill(~there[..., None], 0.0))))
            if level < self.halvings:
                x = torch.maximum(x[:, ::2], x[:, 1::2])
                there = there[:, ::2] | there[:, 1::2]
        return x


def convolved(convolution: nn.Module, x: Tensor) -> Tensor:
    """A convolution along ``[n, L, before]``, with as much padding as keeps L, to ``[n, L, after]``.

    It is one product: a convolution's kernel would be made anew for each length, which takes longer than its work.
    """
    assert isinstance(convolution, nn.Conv1d)  # noqa: S101 - narrows what nn.ModuleList declares
    taps = convolution.kernel_size[0]
    padded = F.pad(x, (0, 0, taps // 2, taps // 2))
    windows = torch.cat([padded[:, tap : tap + x.shape[1]] for tap in range(taps)], dim=2)
    return F.linear(windows, convolution.weight.permute(0, 2, 1).flatten(1), convolution.bias)


def _widths(channels: int, patch: int) -> list[int]:
    """Channels of each level, the last of which has `channels`."""
    return [max(channels >> level, 1) for level in reversed(range(max(patch.bit_length() - 1, 1)))]


def _stem(before: int, after: int, *, patch: int, conv: bool) -> nn.Module:
    return (_Convolutions if conv else _Patches)(before, after, patch=patch)
