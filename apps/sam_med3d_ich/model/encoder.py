"""SAM-Med3D's image encoder: a 3-D vision transformer with attention in windows and over the whole grid."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quartet.apps.sam_med3d_ich.model.attention import GridAttention


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Sizes of an image encoder; the defaults are the released `vit_b_ori`.

    Attributes:
        image_size: Side of the input cube, voxels.
        patch_size: Side of a patch, voxels; divides `image_size`.
        embed_dim: Width of the transformer.
        depth: Number of blocks.
        num_heads: Attention heads.
        window: Side of the attention windows, tokens.
        global_blocks: Blocks that attend over the whole grid.
        out_channels: Channels of the embedding.
    """

    image_size: int = 128
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    window: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    out_channels: int = 384

    @property
    def grid(self) -> int:
        """Tokens along each side."""
        return self.image_size // self.patch_size


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of [B, C, D, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        x = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.movedim(-1, 1)


class PatchEmbed(nn.Module):
    """Patches of a volume as tokens: a convolution whose stride is its kernel, done as one matrix product."""

    def __init__(self, *, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(1, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, X, Y, Z] to tokens [B, D, H, W, C]."""
        p = self.patch_size
        d, h, w = (size // p for size in x.shape[2:])
        patches = x.view(-1, d, p, h, p, w, p).permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, d, h, w, p**3)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Perceptron(nn.Module):
    """Two linear maps with a nonlinearity between them, by default an exact GELU."""

    def __init__(self, dim: int, *, hidden: int, activation: Callable[[Tensor], Tensor] = F.gelu) -> None:
        super().__init__()
        self._activation = activation
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.lin2(self._activation(self.lin1(x)))
        return y


class Block(nn.Module):
    """A pre-norm transformer block.

    Args:
        dim: Channels.
        num_heads: Attention heads.
        side: Side of the windows, or of the grid where `windowed` is false.
        windowed: Attend within windows.
    """

    def __init__(self, dim: int, *, num_heads: int, side: int, windowed: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = GridAttention(dim, num_heads=num_heads, side=side)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Perceptron(dim, hidden=4 * dim)
        self._windowed = windowed

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W, C] to the same."""
        y = self.norm1(x)
        x = x + (self._in_windows(y) if self._windowed else self.attn(y))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed

    def _in_windows(self, x: Tensor) -> Tensor:
        cuts = [[*range(0, size, self.attn.side), size] for size in x.shape[1:4]]
        if all(len(cut) == 2 for cut in cuts):  # one window
            whole: Tensor = self.attn(x)
            return whole
        y = torch.empty_like(x)
        for (d0, d1), (h0, h1), (w0, w1) in product(*(list(pairwise(cut)) for cut in cuts)):
            y[:, d0:d1, h0:h1, w0:w1] = self.attn(x[:, d0:d1, h0:h1, w0:w1])
        return y


class ImageEncoder(nn.Module):
    """Volume to embedding; state-dict names are the released ones.

    Args:
        shape: Sizes.
        gradient_checkpointing: Recompute each block's activations in the backward pass.
    """

    def __init__(self, shape: EncoderShape, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.gradient_checkpointing = gradient_checkpointing
        dim, out = shape.embed_dim, shape.out_channels
        self.patch_embed = PatchEmbed(patch_size=shape.patch_size, embed_dim=dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.grid, shape.grid, shape.grid, dim))
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads=shape.num_heads,
                side=shape.grid if index in shape.global_blocks else shape.window,
                windowed=index not in shape.global_blocks,
            )
            for index in range(shape.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(dim, out, kernel_size=1, bias=False),
            ChannelNorm(out),
            nn.Conv3d(out, out, kernel_size=3, padding=1, bias=False),
            ChannelNorm(out),
        )
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal weights of deviation 0.02, as vision transformers are begun; loading replaces them."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Embed.

        Args:
            image: [B, 1, S, S, S], S the image size; normalised intensities.

        Returns:
            [B, out_channels, S/p, S/p, S/p].
        """
        x = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        embedding: Tensor = self.neck(x.permute(0, 4, 1, 2, 3))
        return embedding
