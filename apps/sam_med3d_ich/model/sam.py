"""SAM-Med3D: image encoder, prompt encoder and mask decoder under the released state-dict names."""

from collections.abc import Callable

from torch import Tensor, nn

from quartet.apps.sam_med3d_ich.model.decoder import MaskDecoder
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape, ImageEncoder
from quartet.apps.sam_med3d_ich.model.prompts import PromptEncoder

PRESETS: dict[str, EncoderShape] = {
    "vit_b_ori": EncoderShape(),
    "vit_small": EncoderShape(embed_dim=384, depth=8, num_heads=6, global_blocks=(1, 3, 5, 7), out_channels=192),
    "vit_tiny": EncoderShape(
        image_size=32, patch_size=4, embed_dim=96, depth=4, num_heads=3, global_blocks=(1, 3), out_channels=96
    ),
}
"""Encoder sizes by name; `vit_b_ori` is the released one."""


class SamMed3D(nn.Module):
    """Promptable segmentation of a volume (Wang et al. 2023, https://arxiv.org/abs/2310.15161).

    Args:
        shape: Sizes of the encoder, which fix those of the rest.
        gradient_checkpointing: Recompute the encoder's activations in the backward pass.
    """

    def __init__(self, shape: EncoderShape, *, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        dim = shape.out_channels
        self.shape = shape
        self.image_encoder = ImageEncoder(shape, gradient_checkpointing=gradient_checkpointing)
        self.prompt_encoder = PromptEncoder(dim, grid=shape.grid, image_size=shape.image_size)
        self.mask_decoder = MaskDecoder(dim)

    def decode(
        self,
        embedding: Tensor,
        *,
        points: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        multimask: bool = False,
        refine: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Masks of an embedding; one embedding serves any number of prompts.

        Args:
            embedding: What `image_encoder` returned, [B, C, g, g, g].
            points: Voxel indices [B, N, 3] of the input cube and labels [B, N] (1 inside, 0 outside, -1 no point).
            mask: Logits of an earlier answer, [B, 1, 4g, 4g, 4g].
            multimask: Three masks for an ambiguous prompt.
            refine: See `MaskDecoder.forward`.

        Returns:
            Mask logits [B, 1 or 3, 4g, 4g, 4g], predicted IoU [B, 1 or 3].
        """
        batch = embedding.shape[0]  # not len(): that is a constant in an export
        sparse = embedding.new_zeros(batch, 0, embedding.shape[1])
        if points is not None:
            sparse = self.prompt_encoder.points(*points)
        dense = self.prompt_encoder.mask(mask, batch=batch)
        masks, iou = self.mask_decoder(
            embedding,
            self.prompt_encoder.dense_pe(),
            sparse=sparse,
            dense=dense,
            multimask=multimask,
            refine=refine,
        )
        return masks, iou
