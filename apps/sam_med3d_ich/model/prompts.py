"""SAM-Med3D's prompt encoder: clicks and a previous mask as embeddings."""

import math

import torch
from torch import Tensor, nn

from quartet.apps.sam_med3d_ich.model.encoder import ChannelNorm

NOT_A_POINT = -1
"""Label of a point that is only there to fill up."""


class RandomFourierEncoding(nn.Module):
    """Positions in the unit cube as sines and cosines of random frequencies (Tancik et al. 2020).

    Args:
        dim: Channels of an encoding; a multiple of 3, as the released model writes [sin, cos, sin].
    """

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, dim // 3))

    def forward(self, position: Tensor) -> Tensor:
        """Positions [..., 3] in 0..1 to encodings [..., dim]."""
        angle = 2 * math.pi * ((2 * position - 1) @ self.positional_encoding_gaussian_matrix)
        return torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)

    def grid(self, side: int) -> Tensor:
        """Encodings of the voxel centres of a cube, [1, dim, side, side, side].

        The released model swaps the first two axes here (and not for clicks); its weights expect that.
        """
        frequencies = self.positional_encoding_gaussian_matrix
        centre = (torch.arange(side, device=frequencies.device, dtype=frequencies.dtype) + 0.5) / side
        first, second, third = torch.meshgrid(centre, centre, centre, indexing="ij")
        codes: Tensor = self(torch.stack([second, first, third], dim=-1))  # [side, side, side, dim]
        return codes.permute(3, 0, 1, 2)[None]


class PromptEncoder(nn.Module):
    """Clicks to sparse embeddings, a mask to a dense one.

    Args:
        dim: Channels of an embedding.
        grid: Tokens along each side of the image embedding.
        image_size: Side of the input cube, voxels; clicks are in its coordinates.
    """

    def __init__(self, dim: int, *, grid: int, image_size: int) -> None:
        super().__init__()
        self.grid = grid
        self.image_size = image_size
        self.pe_layer = RandomFourierEncoding(dim)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(2))  # negative, positive
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, 4, kernel_size=2, stride=2),
            ChannelNorm(4),
            nn.GELU(),
            nn.Conv3d(4, 16, kernel_size=2, stride=2),
            ChannelNorm(16),
            nn.GELU(),
            nn.Conv3d(16, dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)

    def dense_pe(self) -> Tensor:
        """Position encodings of the image embedding, [1, dim, grid, grid, grid]."""
        return self.pe_layer.grid(self.grid)

    def points(self, coordinates: Tensor, labels: Tensor) -> Tensor:
        """Clicks as embeddings; one that says "no point" is appended, as where no box is given.

        Args:
            coordinates: Voxel indices of the input cube, in its axis order, [B, N, 3].
            labels: 1 (inside), 0 (outside) or -1 (no point), [B, N].

        Returns:
            [B, N + 1, dim].
        """
        position = (coordinates.to(self.no_mask_embed.weight) + 0.5) / self.image_size
        position = torch.cat([position, torch.zeros_like(position[:, :1])], dim=1)
        labels = torch.cat([labels, torch.full_like(labels[:, :1], NOT_A_POINT)], dim=1)
        negative, positive = (self.get_parameter(f"point_embeddings.{label}.weight") for label in (0, 1))
        table = torch.cat([self.not_a_point_embed.weight, negative, positive])  # row: label + 1
        encoded: Tensor = self.pe_layer(position) * (labels >= 0).unsqueeze(-1)
        return encoded + table[labels.long() + 1]

    def mask(self, mask: Tensor | None, *, batch: int) -> Tensor:
        """A mask prompt as an embedding that is added to the image's.

        Args:
            mask: Logits [B, 1, 4 grid, 4 grid, 4 grid], or None for no mask.
            batch: B.

        Returns:
            [B, dim, grid, grid, grid].
        """
        if mask is None:
            return self.no_mask_embed.weight.view(1, -1, 1, 1, 1).expand(batch, -1, self.grid, self.grid, self.grid)
        dense: Tensor = self.mask_downscaling(mask)
        return dense
