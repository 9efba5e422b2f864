"""SAM-Med3D's mask decoder: a transformer between prompt tokens and the image embedding, then masks at a quarter."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quartet.apps.sam_med3d_ich.model.encoder import ChannelNorm, Perceptron

_MASKS = 4  # one for an unambiguous prompt, three for an ambiguous one
_HEADS = 8
_HIDDEN = 2048  # width of the perceptrons


class Attention(nn.Module):
    """Multi-head attention whose inner width may be smaller than its outer one.

    Args:
        dim: Channels in and out.
        inner: Channels of queries, keys and values.
    """

    def __init__(self, dim: int, *, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Q [B, N, C], k and v [B, M, C] to [B, N, C]."""
        heads = [
            layer(x).unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        ]
        y: Tensor = self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return y


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves, then to the image, and the image to the tokens.

    Args:
        dim: Channels.
        hidden: Width of the perceptron.
        first: Of the first block: self-attention replaces the tokens, which then are position encodings themselves.
    """

    def __init__(self, dim: int, *, hidden: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, inner=dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, inner=dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Perceptron(dim, hidden=hidden, activation=F.relu)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, inner=dim // 2)
        self._first = first

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and token_pe [B, N, C], image and image_pe [B, M, C]; returns new tokens and image."""
        if self._first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + token_pe
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        located = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + token_pe, located, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(located, tokens + token_pe, tokens))
        return tokens, image


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(dim, hidden=_HIDDEN, first=index == 0) for index in range(2))
        self.final_attn_token_to_image = Attention(dim, inner=dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, image: Tensor, image_pe: Tensor, token_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Image [B, M, C], image_pe [1, M, C], token_pe [B, N, C]; returns tokens [B, N, C] and image [B, M, C]."""
        tokens = token_pe
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        look = self.final_attn_token_to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + look), image


class Mlp(nn.Module):
    """Three linear maps with ReLUs between them."""

    def __init__(self, dim: int, *, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)])

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        y: Tensor = self.layers[-1](x)
        return y


class MaskDecoder(nn.Module):
    """Image embedding and prompts to masks.

    Args:
        dim: Channels of the embeddings; a multiple of 48.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(dim)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(_MASKS, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, kernel_size=2, stride=2),
            ChannelNorm(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(dim, hidden=dim, out=dim // 8) for _ in range(_MASKS))
        self.iou_prediction_head = Mlp(dim, hidden=256, out=_MASKS)

    def forward(
        self,
        embedding: Tensor,
        image_pe: Tensor,
        *,
        sparse: Tensor,
        dense: Tensor,
        multimask: bool = False,
        refine: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            embedding: [B, C, g, g, g].
            image_pe: [1, C, g, g, g].
            sparse: Embedded clicks [B, N, C]; N may be 0.
            dense: Embedded mask [B, C, g, g, g].
            multimask: Return the three masks of an ambiguous prompt, not the one of a clear one.
            refine: What the mask's features [B, C/8, 4g, 4g, 4g] go through.

        Returns:
            Logits [B, 1 or 3, 4g, 4g, 4g] and predicted IoU [B, 1 or 3].
        """
        batch, grid = embedding.shape[0], embedding.shape[2:]  # not len(): that is a constant in an export
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(batch, -1, -1), sparse], dim=1)
        image = (embedding + dense).flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, image_pe.flatten(2).transpose(1, 2), tokens)
        fine = self.output_upscaling(image.transpose(1, 2).unflatten(2, grid))  # [B, C/8, 4g, 4g, 4g]
        fine = fine if refine is None else refine(fine)
        chosen = range(1, _MASKS) if multimask else range(1)
        weights = torch.stack([self.output_hypernetworks_mlps[i](tokens[:, 1 + i]) for i in chosen], dim=1)
        # Channels of a voxel lie side by side since the norm above, and so do those of this product's gradient; where
        # the two differ, a CPU takes ten times as long for the GELU's backward pass.
        masks = (fine.flatten(2).mT @ weights.mT).mT.unflatten(2, fine.shape[2:])
        return masks, self.iou_prediction_head(tokens[:, 0])[:, chosen.start : chosen.stop]


class Refinement(nn.Module):
    """The mask's features once more, beside the image at the mask's resolution: what patches are too coarse for.

    A residual that starts as nothing, so that published weights begin with their own answers. That a mask decoder needs
    features of early resolution is known of SAM (HQ-SAM, Ke et al. 2023, https://arxiv.org/abs/2306.01567).

    Args:
        dim: Channels of the embeddings, as of `MaskDecoder`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        channels = dim // 8
        self.inner = nn.Conv3d(channels + 1, channels, kernel_size=3, padding=1)
        self.norm = ChannelNorm(channels)
        self.outer = nn.Conv3d(channels, channels, kernel_size=3, padding=1)
        for parameter in self.outer.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, fine: Tensor) -> Tensor:
        """Image [B, 1, S, S, S] and features [B, C/8, 4g, 4g, 4g] to such features."""
        times, rest = divmod(image.shape[2], fine.shape[2])  # patches of 16 and of 4 voxels give 4 and 1
        even = F.avg_pool3d(image, times) if not rest else F.interpolate(image, size=fine.shape[2:], mode="trilinear")
        seen = even.to(fine.dtype)
        change: Tensor = self.outer(F.gelu(self.norm(self.inner(torch.cat([fine, seen], dim=1)))))
        return fine + change
