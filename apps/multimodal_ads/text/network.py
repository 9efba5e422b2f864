"""The network of a sentence encoder by itself: tokens to embeddings, made of a folder's model or of plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.adapters import set_training

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TextNetwork", "embed", "make_text_network", "outline_text", "pool_chunks"]

_ACTIVATIONS = {kind.__name__: kind for kind in (nn.Tanh, nn.ReLU, nn.GELU, nn.Identity)}
_PROJECTIONS = {f"{one}{end}" for one in "qkv" for end in ("", "_proj", "_lin")} | {"query", "key", "value"}


class TextNetwork(nn.Module):
    """Tokens and where there are some, int64 [T, L], to embeddings, float32 [T, D].

    Args:
        network: Of transformers.
        modules: Those of sentence-transformers that follow it.
    """

    kind: Literal["text encoder"] = "text encoder"

    def __init__(self, network: Any, modules: Sequence[Any]) -> None:
        super().__init__()
        if getattr(network, "pooler", None) is not None:
            network.pooler = None  # sentence-transformers pools by itself
        self.network = network
        self.rest = nn.ModuleList(modules)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: D102
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        features: dict[str, Any] = {"token_embeddings": found.last_hidden_state, "attention_mask": attention_mask}
        for module in self.rest:
            features = module(features)
        embedding: Tensor = features["sentence_embedding"]
        return embedding

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self.network.activation_checkpointing_enable()

    @property
    def backbone(self) -> nn.Module:
        """The network of transformers."""
        network: nn.Module = self.network
        return network

    @property
    def projections(self) -> list[list[str]]:
        """Names of the query, key and value projections of each layer below `backbone`, bottom first."""
        layers: dict[str, list[str]] = {}
        for name, module in self.backbone.named_modules():
            owner, _, last = name.rpartition(".")
            if last in _PROJECTIONS and isinstance(module, nn.Linear):
                layers.setdefault(owner, []).append(name)
        return list(layers.values())

    def train(self, mode: bool = True) -> "TextNetwork":
        """See `set_training`."""
        set_training(self, mode=mode)
        return self


def embed(network: nn.Module, input_ids: Tensor, attention_mask: Tensor, text_of: Tensor) -> Tensor:
    """Embeddings [B, D] of the texts of B inputs; of those without one anything.

    Args:
        network: Tokens (or n-grams) to embeddings.
        input_ids: int64 [T, L], of T different texts, or chunks of such.
        attention_mask: int64 [T, L], where there are some.
        text_of: The text of each input, int64 [B], or its chunks, int64 [B, K]; -1: none.
    """
    found: Tensor = network(input_ids, attention_mask)
    if text_of.ndim == 1:
        return found[text_of.clamp(min=0)]
    return pool_chunks(found, attention_mask, text_of)


def pool_chunks(embeddings: Tensor, attention_mask: Tensor, chunks_of: Tensor) -> Tensor:
    """Means [B, D] of the embeddings of chunks [T, D], weighted by their tokens; that of one chunk is itself, exactly.

    Args:
        embeddings: Of the chunks.
        attention_mask: int64 [T, L], where these have tokens.
        chunks_of: Those of each text, int64 [B, K]; -1: there are no more.
    """
    place = chunks_of.clamp(min=0)
    tokens = attention_mask.sum(dim=1)[place] * (chunks_of >= 0)
    shares = tokens / tokens.sum(dim=1, keepdim=True).clamp(min=1)
    return (shares.unsqueeze(-1).to(embeddings.dtype) * embeddings[place]).sum(dim=1)


def outline_text(model: "SentenceTransformer") -> dict[str, Any]:
    """Plain values from which `make_text_network` makes a model's network again.

    Raises:
        UserError: Texts go through it in another way than all encoders' do.
    """
    from transformers import AutoModel

    network: Any = model[0].model
    parts: list[Any] = list(model)
    kinds: Any = AutoModel._model_mapping
    way = (parts[0].modality_config or {}).get("text")
    if way and way["method"] != "forward":
        raise UserError(f"text encoders that are called by {way['method']} cannot be used")
    settings: dict[str, Any] | None = None  # of a kind that its settings alone do not name
    if type(network) is kinds.get(type(network.config), None):
        own = _own_settings(type(network.config))
        settings = {name: value for name, value in network.config.to_dict().items() if name in own}
        settings = {"model_type": network.config.model_type, **settings}
    return {"network": settings, "modules": [(type(module).__name__, _plain(module)) for module in parts[1:]]}


def make_text_network(outline: Mapping[str, Any]) -> TextNetwork:
    """The network that `outline_text` describes, with random weights.

    Raises:
        UserError: It is of a kind that is not known.
    """
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling
    from transformers import AutoConfig, AutoModel

    values = outline["network"]
    if values is None:
        raise UserError("a text encoder of this kind cannot be made again without its folder, and so not be exported")
    kind = values["model_type"]
    config_class = type(AutoConfig.for_model(kind))
    config = config_class(**{name: values[name] for name in values.keys() & _own_settings(config_class)})
    config._attn_implementation = "sdpa"  # never what a file asks for: some values fetch code from the hub
    modules: list[nn.Module] = []
    for name, settings in outline["modules"]:
        if name == "Dense":
            activation = _ACTIVATIONS[settings["activation_function"]]()
            modules.append(Dense(**{**settings, "activation_function": activation}))
        elif name in ("Pooling", "Normalize"):
            modules.append(Pooling(**settings) if name == "Pooling" else Normalize())
        else:
            raise UserError(f"text encoders with a module {name} are not known")
    make: Any = AutoModel.from_config  # no types there
    return TextNetwork(make(config, dtype=torch.float32), modules)


def _own_settings(kind: Any) -> set[str]:
    """Names of the settings that describe this kind of network, without those that all of the library's have."""
    from transformers import PreTrainedConfig

    return {field.name for field in fields(kind)} - {field.name for field in fields(PreTrainedConfig)}


def _plain(module: Any) -> dict[str, Any]:
    """A module's settings; those of `Dense` name its activation without the package that it is in."""
    values = dict(module.get_config_dict())
    if "activation_function" in values:
        values["activation_function"] = str(values["activation_function"]).rpartition(".")[2]
    return values
