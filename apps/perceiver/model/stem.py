"""What comes before the first cross-attention: an embedding of tokens, or convolutions of a picture's patches.

The papers read ImageNet through a convolution and max pooling where they do not take pixels one by one (Perceiver IO,
section 4.5). A stem keeps the number of tokens, so that masks, positions and attention maps mean the same with each;
but for that of long series, which makes one token of a patch of steps.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.base.errors import UserError

StemKind = Literal["conv", "linear", "none"]

_GROUP = 8  # channels that are normalised together


class PatchStem(nn.Module):
    """One token for so many steps of a series, by a linear map of them together, as patches of a picture become tokens.

    The cost of reading a series of 10⁵ steps falls with the size of a patch. Steps that are missing at the end of the
    last patch are 0, as padding is.

    Args:
        before: Channels of a step.
        after: Channels of a token.
        patch: Steps of a token.
    """

    def __init__(self, before: int, after: int, *, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.map = nn.Conv1d(before, after, patch, stride=patch)

    def forward(self, steps: Tensor) -> Tensor:
        """Maps ``[B, M, before]`` to ``[B, ceil(M / patch), after]``; compiled, to a token more, see ``seen``."""
        tokens: Tensor = self.map(self._filled_up(steps.transpose(1, 2)))
        return tokens.transpose(1, 2)

    def seen(self, mask: Tensor) -> Tensor:
        """Whether a patch has a step that is seen: boolean ``[B, M]`` to ``[B, ceil(M / patch)]``."""
        ones = self.map.weight.new_ones(1, 1, self.patch)
        return functional.conv1d(self._filled_up(mask[:, None].to(ones.dtype)), ones, stride=self.patch)[:, 0] > 0

    def first(self, values: Tensor, tokens: Tensor) -> Tensor:
        """What the first step of each patch has, ``[B, M]`` to ``[B, L]``, L as of ``tokens``."""
        steps = self.patch * torch.arange(tokens.shape[1], device=values.device)
        return values.index_select(1, steps.clamp(max=values.shape[1] - 1))

    def _filled_up(self, steps: Tensor) -> Tensor:
        # What is more than the last patch is no window. A program of torch.export is for one token, or for any number
        # above that: it gets a patch of nothing, which its mask hides, so that there are never less than two.
        more = self.patch if torch.compiler.is_compiling() else 0
        return functional.pad(steps, (0, self.patch - 1 + more))


class ConvStem(nn.Module):
    """One token a patch, of convolutions that look across the borders of patches; other channels are handed on.

    For each halving of the patch: convolution 3 x 3, max pooling by two, group norm, GELU; channels double on the way.
    The norm is of a sample alone, so that gradients of a window do not depend on how it is cut into micro-batches.

    Args:
        grid: Rows and columns of patches, and the side of one in pixels; tokens are patches row by row, and pixels come
            first among their channels.
        channels: Channels of the last convolution; a multiple of 8 at each level.

    Raises:
        UserError: The patch size is no power of two above 1, or the channels cannot be halved that often.
    """

    def __init__(self, grid: Sequence[int], *, channels: int) -> None:
        super().__init__()
        self.rows, self.columns, self.side = grid
        levels = self.side.bit_length() - 1
        if levels < 1 or self.side != 2**levels:
            raise UserError(
                "a conv stem halves a patch until one token is left: data.patch_size must be 2, 4, 8 ..., not "
                f"{self.side}"
            )
        if channels < 1 or channels % (_GROUP << (levels - 1)):
            raise UserError(
                f"a conv stem for patches of {self.side} pixels takes a multiple of {_GROUP << (levels - 1)} as "
                f"model.stem_channels, not {channels}"
            )
        widths = [3, *(channels >> level for level in reversed(range(levels)))]
        self.levels = nn.Sequential(*map(_level, widths[:-1], widths[1:]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens ``[B, M, side² * 3 + P]`` to ``[B, M, channels + P]``; M is the number of patches.

        Raises:
            UserError: There are not as many tokens as patches.
        """
        rows, columns, side = self.rows, self.columns, self.side
        if tokens.shape[1] != rows * columns:
            raise UserError(f"a conv stem reads pictures of {rows} x {columns} patches, not {tokens.shape[1]} tokens")
        patches, rest = tokens[..., : side**2 * 3], tokens[..., side**2 * 3 :]
        picture = patches.reshape(-1, rows, columns, side, side, 3).transpose(2, 3)  # [B, rows, side, columns, side, 3]
        # Channels stay last in memory, which the convolutions follow; it is a quarter faster on a CPU.
        found = self.levels(picture.reshape(-1, rows * side, columns * side, 3).permute(0, 3, 1, 2))
        embedded = found.flatten(2).transpose(1, 2)  # [B, rows * columns, channels]
        return torch.cat([embedded, rest], dim=2)


def make_stem(
    kind: StemKind, *, input_dim: int, channels: int, grid: Sequence[int] | None, patch: int = 1
) -> tuple[nn.Module, int]:
    """The stem, and the channels of the tokens that leave it.

    Args:
        kind: Which one; none: tokens stay as they are.
        input_dim: Channels of the tokens that enter.
        channels: Of a linear embedding, or of the last convolution.
        grid: See `ConvStem`; None where tokens are no pictures.
        patch: Steps of a series that become one token, by a linear map whatever the kind.

    Raises:
        UserError: There is no such stem, or it does not fit the tokens.
    """
    if patch > 1 and kind != "conv":
        return PatchStem(input_dim, channels, patch=patch), channels
    if kind == "none":
        return nn.Identity(), input_dim
    if kind == "linear":
        return nn.Linear(input_dim, channels), channels
    if kind != "conv":
        raise UserError(f"stem must be none, linear or conv, not {kind!r}")
    if grid is None:
        raise UserError("model.stem=conv reads pictures (--dataset image_folder or cifar10); of series: none or linear")
    stem = ConvStem(grid, channels=channels)
    return stem, input_dim - stem.side**2 * 3 + channels


def _level(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.GroupNorm(after // _GROUP, after),
        nn.GELU(),
    )
