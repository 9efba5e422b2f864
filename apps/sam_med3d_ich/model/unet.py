"""MONAI's UNet in the place of SAM-Med3D: what a plain network reaches on the same crops in the same minutes."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.model.ich import Answer

__all__ = ["UNetModel"]


class UNetModel(nn.Module):
    """A 3-D UNet with residual units (Kerfoot et al. 2019, https://doi.org/10.1007/978-3-030-12029-0_40).

    Four levels of 16 to 128 channels, 1.2 million parameters. It takes no clicks; that there is a haemorrhage is as
    likely as the likeliest voxel.

    Args:
        side: Voxels along each side of a crop, a multiple of 8.
    """

    def __init__(self, side: int) -> None:
        from monai.networks.nets.unet import UNet  # seconds to import; the others start without it

        super().__init__()
        levels: dict[str, Any] = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
        self.net = UNet(spatial_dims=3, in_channels=1, out_channels=1, **levels)
        self.side = side

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def forward(self, image: Tensor) -> Answer:
        """Crops [B, 1, S, S, S] to mask logits [B, 1, S, S, S] and the largest of them, [B]."""
        masks = cast("Tensor", self.net(image))
        return Answer(masks, masks.flatten(1).amax(dim=1))

    def after_clicks(self, image: Tensor, positions: Tensor, labels: Tensor) -> Answer:  # noqa: ARG002 - as IchModel
        """As `IchModel.after_clicks`; raises `UserError`."""
        raise UserError("a UNet takes no clicks; leave them out")
