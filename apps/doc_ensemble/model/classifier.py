"""A network of timm as a classifier of pages: any name, grey or colour, any size, with attention over its cells or not.

    model = create_model("resnet50", class_names=("form", "letter"), image_size=(256, 192), in_channels=1)
    logits = model(pixels)                # float [B, 1, 256, 192] in 0..1 -> [B, 2]
    again = make_model(model.metadata)       # the same network from plain values; its weights come from a checkpoint

The network normalises its input itself, so that members of an ensemble take the same pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from mlcore.base.errors import UserError
from mlcore.remote.hub import plain_arguments
from mlcore.training import losses
from quartet.apps.doc_ensemble.config import LAYOUT, TEXT
from quartet.apps.doc_ensemble.data.words import WIDTH
from quartet.apps.doc_ensemble.model.plain import LayoutTrunk, TextTrunk
from quartet.apps.doc_ensemble.model.published import (
    SETTING,
    Published,
    check_name,
    describe,
    read_published_weights,
)

__all__ = ["CellAttention", "DocClassifier", "create_model", "make_model"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [B, C] and labels int64 [B] to one value per sample [B]."""

_BUILD_ERRORS = (RuntimeError, TypeError, AssertionError, AttributeError, KeyError, ValueError, IndexError)


class CellAttention(nn.Module):
    """One vector from the cells of a feature map, by learned queries that look at all of them.

    Pooling by multi-head attention (Lee et al. 2019, https://arxiv.org/abs/1810.00825, with one seed and without its
    feed-forward part). Where the network's own pooling weighs every cell alike, each head learns which cells matter: a
    letterhead, a signature, the rules of a table. No cell is masked, and any number of them will do. The output
    projection starts at zero, so that training begins with the network as it is.

    Args:
        width: Channels of a cell.
        attention_dim: Width of keys, values and output; split over up to 8 heads.
    """

    def __init__(self, width: int, *, attention_dim: int) -> None:
        super().__init__()
        heads = math.gcd(attention_dim, 8)
        self.norm = nn.LayerNorm(width)
        # Of unit variance, so that the heads look at different cells from the first step on.
        self.query = nn.Parameter(torch.randn(heads, 1, attention_dim // heads))
        self.key = nn.Linear(width, attention_dim, bias=False)  # a bias would shift all cells alike: softmax drops it
        self.value = nn.Linear(width, attention_dim)
        self.project = nn.Linear(attention_dim, attention_dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, cells: Tensor) -> Tensor:
        """Cells [B, N, width] in any order to [B, attention_dim]."""
        cells = self.norm(cells)
        heads = self.query.shape[0]
        key, value = (part(cells).unflatten(2, (heads, -1)).transpose(1, 2) for part in (self.key, self.value))
        query = self.query.to(key.dtype).expand(len(cells), -1, -1, -1)  # [B, heads, 1, A / heads]
        seen = functional.scaled_dot_product_attention(query, key, value)
        pooled: Tensor = self.project(seen.flatten(1))
        return pooled


class DocClassifier(nn.Module):
    """A trunk of timm, dropout, and one linear layer; use `create_model` or `make_model`.

    Args:
        trunk: A timm network without classifier.
        metadata: What it was made from, see `create_model`.

    Attributes:
        metadata: Plain values that rebuild the network (`make_model`), for checkpoints; "class_names" among them.
        loss: What it is meant to be trained with; cross entropy unless its maker says otherwise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, *, metadata: Mapping[str, Any]) -> None:
        super().__init__()
        self.metadata = dict(metadata)
        self.loss: Loss = losses.cross_entropy
        self.register_buffer("mean", torch.tensor(metadata["mean"]).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(metadata["std"]).reshape(-1, 1, 1), persistent=False)
        self.trunk = trunk
        attention_dim = metadata["attention_dim"]
        width = metadata["width"]
        self.attention = None
        if attention_dim is not None:
            self.attention = CellAttention(metadata["cell_width"], attention_dim=attention_dim)
            width += attention_dim
        self.dropout = nn.Dropout(metadata["dropout_rate"])
        self.classifier = nn.Linear(width, len(metadata["class_names"]))
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, classes] of pages: float [B, in_channels, H, W] in 0..1 (0 black), RGB or grey."""
        logits: Tensor = self.classifier(self.dropout(self.embed(pixels)))
        return logits

    def embed(self, pixels: Tensor) -> Tensor:
        """What the classifier sees, [B, width]: the trunk's pooled features, then those of the attention, if any."""
        features = self.trunk.forward_features((pixels - self.mean) / self.std)  # type: ignore[operator]
        pooled: Tensor = self.trunk.forward_head(features, pre_logits=True)  # type: ignore[operator]
        if self.attention is None:
            return pooled
        cells = _cells(features, self.trunk, order=self.metadata["cell_order"])
        return torch.cat([pooled, self.attention(cells)], dim=1)


def create_model(
    model_name: str,
    *,
    class_names: Sequence[str],
    pretrained: bool,
    image_size: tuple[int, int] = (224, 224),
    in_channels: int = 3,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    attention_dim: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> DocClassifier:
    """Make a classifier with published weights, or at random where that is asked for.

    Published position embeddings are resampled to the image size, and first convolutions summed over the colours for
    grey input, as timm does; every other tensor of the trunk must be among the published ones.

    Args:
        model_name: A name in timm, or a folder with `config.json` and `model.safetensors` or `pytorch_model.bin`; or
            "layout" or "text", see `model.plain`.
        class_names: In the order of the logits, at least 2.
        pretrained: Load the folder's weights, or the published ones from the Hugging Face hub or its cache.
        image_size: Height and width of the input, in pixels; it need not be square.
        in_channels: 1 for grey pages, 3 for RGB.
        dropout_rate: Share of the features that is dropped before the classifier, 0..1.
        drop_path_rate: Stochastic depth, 0..1.
        attention_dim: Width of what `CellAttention` adds to the pooled features; None for no attention.
        arguments: Further ones of the architecture, plain values: {"channels": [32, 64, 128, 256]}.

    Raises:
        UserError: No such model, weights that cannot be had or do not fit, or a size or option the model cannot do.
    """
    if len(class_names) < 2 or len(set(class_names)) != len(class_names):
        raise UserError(f"{len(class_names)} class names ({', '.join(class_names)}): expected at least 2, each once")
    published = describe(model_name)
    channels = 1 if model_name == TEXT else in_channels
    metadata = _with_shapes(
        {
            "architecture": published.architecture,
            "arguments": {
                **published.arguments,
                **({"drop_path_rate": drop_path_rate} if drop_path_rate else {}),
                **plain_arguments(dict(arguments or {}), where="model.arguments"),
            },
            "class_names": list(class_names),
            "image_size": [1, WIDTH] if model_name == TEXT else list(image_size),
            "in_channels": channels,
            "mean": _per_channel(published.mean, channels),
            "std": _per_channel(published.std, channels),
            "dropout_rate": dropout_rate,
            "attention_dim": attention_dim,
        },
        fixed_size=published.fixed_size,
    )
    model = make_model(metadata)
    if pretrained:
        _load(model.trunk, published, metadata)
    return model


def make_model(metadata: Mapping[str, Any]) -> DocClassifier:
    """Make a network from the metadata of another one; its weights are random, for those of a checkpoint to replace.

    Within `torch.device("meta")` it takes no memory, for counting parameters.

    Args:
        metadata: `DocClassifier.metadata`, for example from a checkpoint: plain values, which are checked.

    Raises:
        UserError: This timm has no such network, or a value is not of its kind.
        KeyError: A value is missing: not written by this version of the app.
    """
    if metadata["architecture"] not in (LAYOUT, TEXT):
        check_name(metadata["architecture"], where="architecture")
    plain_arguments(metadata["arguments"], where="arguments")
    try:
        return DocClassifier(_trunk(metadata).train(), metadata=metadata)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        raise UserError(f"{SETTING}: timm cannot build {metadata['architecture']}: {_first_line(error)}") from None


def _trunk(metadata: Mapping[str, Any]) -> nn.Module:
    match metadata["architecture"]:
        case "layout":
            return LayoutTrunk(metadata["image_size"], **metadata["arguments"])
        case "text":
            return TextTrunk(metadata["image_size"][1], **metadata["arguments"])
    made: nn.Module = timm.create_model(
        metadata["architecture"], num_classes=0, in_chans=metadata["in_channels"], **metadata["arguments"]
    )
    return made


def _with_shapes(metadata: dict[str, Any], *, fixed_size: bool) -> dict[str, Any]:
    """Complete the metadata by a pass on the meta device: how the input size is told, and the shapes that come out."""
    size = {"img_size": metadata["image_size"]}  # for networks with positions; the others do not know the argument
    problems = []
    for told in (size, {}) if fixed_size else ({}, size):
        tried = {**metadata, "arguments": {**metadata["arguments"], **told}}
        try:
            return {**tried, **_shapes(tried)}
        except _BUILD_ERRORS as error:
            problems.append(error)
    height, width = metadata["image_size"]
    options = {**metadata["arguments"], "in_channels": metadata["in_channels"], "attention": metadata["attention_dim"]}
    raise UserError(
        f"{SETTING}: timm's {metadata['architecture']} cannot take pages of {height} x {width} pixels with {options}: "
        f"{_first_line(problems[0])}; change model.image_size (many networks want multiples of 16 or 32) or the options"
    )


@torch.no_grad()
def _shapes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    with torch.device("meta"):
        trunk: Any = _trunk(metadata).eval()
        features = trunk.forward_features(torch.zeros(2, metadata["in_channels"], *metadata["image_size"]))
        pooled = trunk.forward_head(features, pre_logits=True)
    if not isinstance(pooled, Tensor) or pooled.ndim != 2:
        raise ValueError("its features are not one vector per page")
    shapes = {"width": pooled.shape[1], "cell_width": None, "cell_order": None}
    if metadata["attention_dim"] is None:
        return shapes
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise ValueError("its features are neither maps nor tokens, which model.use_attention needs")
    order = "tokens" if features.ndim == 3 else _map_order(trunk, features)
    return {**shapes, "cell_width": features.shape[1 if order == "maps" else -1], "cell_order": order}


def _map_order(trunk: Any, features: Tensor) -> str:
    """Whether channels of a map [B, ?, ?, ?] come first or last."""
    last = getattr(trunk, "output_fmt", "NCHW") == "NHWC" or features.shape[1] != trunk.num_features
    return "maps_last" if last else "maps"


def _cells(features: Tensor, trunk: nn.Module, *, order: str) -> Tensor:
    """The cells [B, N, D] of a feature map; class and register tokens are none."""
    if order == "tokens":
        return features[:, int(getattr(trunk, "num_prefix_tokens", 0)) :]
    return features.flatten(1, 2) if order == "maps_last" else features.flatten(2).transpose(1, 2)


def _load(trunk: nn.Module, published: Published, metadata: Mapping[str, Any]) -> None:
    """Give the trunk the published weights, adapted by timm to the input; all of them, or it is an error."""
    weights = read_published_weights(published)
    source = {"state_dict": weights, "num_classes": published.classes, "input_size": published.input_size}
    try:
        # With as many classes as were published: with another number timm would load without being strict.
        whole = timm.create_model(
            metadata["architecture"],
            pretrained=True,
            pretrained_cfg_overlay=source,
            num_classes=published.classes,
            in_chans=metadata["in_channels"],
            **metadata["arguments"],
        )
        known = whole.state_dict()
        trunk.load_state_dict({key: known[key] for key in trunk.state_dict()})
    except (RuntimeError, TypeError, AssertionError, KeyError, ValueError) as error:
        problem = str(error).strip()[:1000]
        raise UserError(f"{SETTING}={published.name}: these weights do not fit the architecture: {problem}") from None
    _check_first_layer(whole, published, metadata)


def _check_first_layer(whole: Any, published: Published, metadata: Mapping[str, Any]) -> None:
    """Timm starts a first layer that it cannot adapt to other channels at random; that is not what was asked for."""
    channels = published.input_size[0]
    if channels == metadata["in_channels"]:
        return
    names = whole.pretrained_cfg.get("first_conv") or ()
    for name in (names,) if isinstance(names, str) else names:
        if whole.get_submodule(name).weight.ndim != 4:
            raise UserError(
                f"{SETTING}={published.name}: its first layer cannot be adapted from {channels} to "
                f"{metadata['in_channels']} channels; set model.in_channels={channels}"
            )


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    """As they are where the number fits; otherwise their mean for each channel."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
