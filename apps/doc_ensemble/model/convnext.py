"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545) in its four sizes, with attention or for focal loss.

model = create_convnext_model("convnext_small", num_classes=17, use_attention=True, attention_dim=256)
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from mlcore.base.errors import UserError
from mlcore.training import losses
from quartet.apps.doc_ensemble.model.classifier import DocClassifier, create_model
from quartet.apps.doc_ensemble.model.published import SETTING, describe

__all__ = ["SIZES", "create_convnext_model"]

SIZES: Mapping[str, int] = MappingProxyType(
    {"convnext_tiny": 28, "convnext_small": 50, "convnext_base": 88, "convnext_large": 198}
)
"""Names in timm, and millions of parameters with a classifier of 1000 classes."""


def create_convnext_model(
    model_name: str = "convnext_tiny",
    num_classes: int = 17,
    dropout_rate: float = 0.1,
    pretrained: bool = True,
    use_attention: bool = False,
    attention_dim: int = 256,
    use_focal_loss: bool = False,
    alpha: float = 1.0,
    gamma: float = 2.0,
) -> DocClassifier:
    """Make a ConvNeXt classifier of RGB pages; it takes any size from 32 x 32 pixels.

    Args:
        model_name: One of `SIZES`, any other ConvNeXt of timm, or a folder with one.
        num_classes: At least 2; they are called "class_0", "class_1", ...
        dropout_rate: Share of the features that is dropped before the classifier, 0..1.
        pretrained: Load the published weights; where they cannot be had, that is an error.
        use_attention: Add attention over the cells of the last feature map, see `CellAttention`.
        attention_dim: use_attention: its width.
        use_focal_loss: Make `model.loss(logits, labels)` the focal loss of the next two; otherwise it is cross entropy.
        alpha: Factor of the focal loss, above 0.
        gamma: How strongly the focal loss discounts easy samples, at least 0; 0 is cross entropy.

    Returns:
        The model; `model(pixels)` gives logits [B, num_classes] of float [B, 3, H, W] in 0..1, and
        `model.loss(logits, labels)` one value per sample [B].

    Raises:
        UserError: No such ConvNeXt, weights that cannot be had or do not fit, or a value outside its range.
    """
    if not describe(model_name).architecture.startswith(("convnext", "test_convnext")):
        raise UserError(f"{SETTING}: {model_name} is no ConvNeXt; expected one of {', '.join(SIZES)}")
    if not (0 <= dropout_rate < 1 and attention_dim >= 1 and alpha > 0 and gamma >= 0):
        raise UserError(
            f"dropout_rate {dropout_rate}, attention_dim {attention_dim}, alpha {alpha}, gamma {gamma}: expected "
            "0 <= dropout_rate < 1, attention_dim at least 1, alpha above 0 and gamma at least 0"
        )
    model = create_model(
        model_name,
        class_names=[f"class_{index}" for index in range(num_classes)],
        pretrained=pretrained,
        dropout_rate=dropout_rate,
        attention_dim=attention_dim if use_attention else None,
    )
    if use_focal_loss:
        model.loss = partial(losses.focal, alpha=alpha, gamma=gamma)
    return model
