"""What every vision backbone looks like to the rest of the app."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from quartet.apps.multimodal_ads.adapters import set_training

__all__ = ["Processor", "Run", "Tokens", "VisionEncoder"]


class Tokens(NamedTuple):
    """What a backbone says about B pictures.

    Attributes:
        values: Features of the patches (or of the last feature map's cells), [B, T, D], float.
        mask: [B, T], bool, True where there is a patch of the picture; None: all T are.
        summary: The backbone's own vector of the whole picture, [B, D]: the class token of ViT, the attention-pooled
            output of SigLIP; None where there is none (CNNs).
    """

    values: Tensor
    mask: Tensor | None
    summary: Tensor | None


class Run(NamedTuple):
    """How a library's module is called.

    Attributes:
        call: `call(backbone, pixels)`.
        has_summary: Whether the tokens come with a summary.
    """

    call: Callable[[nn.Module, Mapping[str, Tensor]], Tokens]
    has_summary: bool


class Processor(Protocol):
    """From pictures to a backbone's input; can be pickled, and runs in the loader's workers."""

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Prepare pictures.

        Args:
            images: Each [H, W, 3], uint8, RGB; heights and widths may differ.

        Returns:
            "pixel_values", float32: [B, 3, H, W], or for NaFlex [B, P, patch area * 3] with "pixel_attention_mask"
            (bool, [B, P]) and "spatial_shapes" (int64, [B, 2]: rows and columns of patches).
        """
        ...

    def fingerprint(self) -> str:
        """Text that differs whenever a setting differs that changes pixels."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values from which it is made again, spelled as in a `preprocessor_config.json`."""
        ...


class VisionEncoder(nn.Module):
    """A vision backbone without a classifier.

    Args:
        backbone: The library's module.
        run: Calls it.
        architecture: Text that differs whenever a setting differs that the library built `backbone` from: equal
            weights in another architecture are another function.
        width: D, features of a token.
        blocks: Its layers (CNNs: stages), bottom first; each with the names of its query, key and value projections
            below `backbone`, none where there are none that LoRA could adapt.
        tail: What comes after the last layer and trains with it, e.g. the final norm.
        processor: Makes `pixels`.
        use_checkpointing: Makes the backbone recompute activations in the backward pass.
    """

    kind: Literal["backbone"] = "backbone"

    def __init__(
        self,
        backbone: nn.Module,
        *,
        run: Run,
        architecture: str,
        width: int,
        blocks: Sequence[tuple[nn.Module, Sequence[str]]],
        tail: Sequence[nn.Module],
        processor: Processor,
        use_checkpointing: Callable[[nn.Module], None],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.architecture = architecture
        self.width = width
        self.processor = processor
        # Plain lists: registered once, below `backbone`.
        self.blocks = [block for block, _ in blocks]
        self.projections = [list(names) for _, names in blocks]
        self.tail = list(tail)
        self.has_summary = run.has_summary
        self._run = run.call
        self._use_checkpointing = use_checkpointing

    def forward(self, pixels: Mapping[str, Tensor]) -> Tokens:
        """Features of pictures that `processor` has prepared."""
        return self._run(self.backbone, pixels)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time.

        Raises:
            UserError: This backbone cannot.
        """
        self._use_checkpointing(self.backbone)

    def drop_summary(self) -> None:
        """Remove SigLIP's pooling head where nobody asks for the summary: its weights would never get a gradient."""
        backbone: Any = self.backbone
        if getattr(backbone, "use_head", False):
            self.tail = [module for module in self.tail if module is not backbone.head]
            backbone.use_head = False
            del backbone.head

    def train(self, mode: bool = True) -> "VisionEncoder":
        """See `set_training`."""
        set_training(self, mode=mode)
        return self
