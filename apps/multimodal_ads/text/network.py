"""The network of a sentence encoder by itself: tokens to embeddings, made of a folder's model or of plain values."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["TextNetwork", "make_text_network", "outline_text"]

_ACTIVATIONS = {kind.__name__: kind for kind in (nn.Tanh, nn.ReLU, nn.GELU, nn.Identity)}


class TextNetwork(nn.Module):
    """Tokens and where there are some, int64 [T, L], to embeddings, float32 [T, D].

    Args:
        network: Of transformers.
        modules: Those of sentence-transformers that follow it.
    """

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
