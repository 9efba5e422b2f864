"""Position information: without it a Perceiver sees its input as an unordered set (Perceiver, section 3.2)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError

PositionKind = Literal["added", "fourier", "learned", "none", "sinusoidal"]

LIMITED: tuple[PositionKind, ...] = ("added", "fourier", "learned")
"""Those that know no sequence longer than the longest they were made for."""


class PositionEncoding(nn.Module):
    """Concatenates position features to every token, as the paper does, instead of adding them.

    - ``sinusoidal``: sines and cosines of the index, periods from 2π to 20000π in geometric steps ("Attention is all
      you need", section 3.5). Any length.
    - ``fourier``: sines and cosines with frequencies from 1 to ``max_seq_len / 2`` (Nyquist) in equal steps, of the
      position scaled to [-1, 1] over ``max_seq_len``; and the position itself (Perceiver, section 3.2).
    - ``learned``: one trained vector per position below ``max_seq_len``.
    - ``added``: the same, of the token's width and added to it.
    - ``none``: the token alone; the model's output then does not depend on the order of tokens.

    Positions count from the start of the row, so padding belongs at its end; where tokens have times, these are their
    positions, from the first token's on, in steps. Sines and cosines are computed in float32
    at least, whatever the model's type: in bfloat16, 257 and 258 are one number.

    Args:
        kind: Which features.
        num_channels: Even number of sines and cosines, or width of the learned vector.
        max_seq_len: Longest sequence ``fourier``, ``learned`` and ``added`` take; others take any.

    Attributes:
        width: Channels added to each token.
        longest: Longest sequence; ``None``: any length.
    """

    def __init__(self, kind: PositionKind, *, num_channels: int = 32, max_seq_len: int = 4096) -> None:
        super().__init__()
        if kind not in get_args(PositionKind):
            raise UserError(f"position must be one of {', '.join(get_args(PositionKind))}; got {kind!r}")
        if kind in ("fourier", "sinusoidal") and (num_channels < 2 or num_channels % 2):
            raise UserError(f"position_channels must be an even number of at least 2, not {num_channels}")
        self.kind, self.num_channels, self.max_seq_len = kind, num_channels, max_seq_len
        self.longest = max_seq_len if kind in LIMITED else None
        self.width = {"fourier": num_channels + 1, "learned": num_channels, "sinusoidal": num_channels}.get(kind, 0)
        if kind in ("added", "learned"):
            self.table = nn.Parameter(torch.empty(max_seq_len, num_channels))
            # As large as sines and cosines: beside small features a layer norm leaves of a lone value only its sign.
            nn.init.trunc_normal_(self.table, std=0.7)

    def forward(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Appends the features.

        Args:
            tokens: ``[B, M, C]``.
            places: ``[B, M]``, where the tokens are; ``None``: 0, 1, 2 and so on.

        Returns:
            ``[B, M, C + width]``.

        Raises:
            UserError: If ``M`` exceeds ``max_seq_len`` where the kind has one.
        """
        if self.kind == "none":
            return tokens
        if places is not None:
            return torch.cat([tokens, self.at(places, tokens.dtype)], dim=-1)
        features = self._features(tokens).to(tokens.dtype)  # [M, width]
        if self.kind == "added":
            return tokens + features
        return torch.cat([tokens, features.expand(tokens.shape[0], -1, -1)], dim=-1)

    def _features(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        if self.longest is not None and length > self.longest:
            raise UserError(
                f"a sequence of {length} tokens is longer than max_seq_len={self.max_seq_len}, which {self.kind} "
                "positions need; raise max_seq_len or shorten the sequences"
            )
        if self.kind in ("added", "learned"):
            return self.table[:length]
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        return self._waves(torch.arange(length, device=tokens.device, dtype=dtype)[:, None])

    def at(self, places: Tensor, dtype: torch.dtype) -> Tensor:
        """The features of places ``[B, K]`` below the length of a sequence, for learned whole: ``[B, K, width]``."""
        if self.kind == "learned":
            return self.table[places].to(dtype)
        index = places.to(torch.promote_types(dtype, torch.float32))[..., None]
        return (self._waves(index) if self.width else index[..., :0]).to(dtype)

    def _waves(self, index: Tensor) -> Tensor:
        """Sines and cosines of indices ``[..., 1]``, in their type: ``[..., width]``."""
        dtype = index.dtype
        bands = self.num_channels // 2
        if self.kind == "sinusoidal":
            phase = index * 10_000.0 ** -(torch.arange(bands, device=index.device, dtype=dtype) / bands)
            return torch.cat([phase.sin(), phase.cos()], dim=-1)
        position = 2 * index / max(self.max_seq_len - 1, 1) - 1
        frequencies = torch.linspace(1.0, self.max_seq_len / 2, bands, device=index.device, dtype=dtype)
        phase = math.pi * position * frequencies
        return torch.cat([position, phase.sin(), phase.cos()], dim=-1)
