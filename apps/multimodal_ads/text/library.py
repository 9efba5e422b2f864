"""The model that sentence-transformers makes of a folder: whole, or without weights.

Without weights it is made in a moment, and shows all that the whole one would do with a text before its network.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.remote.hub import read_weights
from quartet.apps.multimodal_ads.loading import quiet_loading
from quartet.apps.multimodal_ads.text.safety import read_modules

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["LIMITLESS", "load_model", "module_weights", "most_tokens"]

LIMITLESS = 10**6
"""Tokens; what tokenizers say who know no limit is far above."""


def load_model(folder: Path, *, max_length: int | None, weights: bool = True) -> "SentenceTransformer":
    """Load the model of a folder that `check_folder` has passed.

    Args:
        folder: A sentence-transformers model.
        max_length: Texts are cut to this many tokens; None: to the model's own limit.
        weights: Without them the network is on the meta device, and computes nothing.

    Returns:
        On the CPU, frozen; its `max_seq_length` is never above what the network can read.

    Raises:
        UserError: The library cannot load it, weights are missing, or the network cannot read `max_length` tokens.
    """
    # Late, because it takes seconds.
    from sentence_transformers import SentenceTransformer

    placed = {} if weights else {"device_map": "meta"}
    try:
        with quiet_loading():
            model = SentenceTransformer(
                str(folder),
                device="cpu" if weights else None,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"attn_implementation": "sdpa", "dtype": torch.float32, **placed},
            )
            if weights:
                _be_strict(model[0].model, read_modules(folder)[0][1])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{folder}: sentence-transformers cannot load it: {type(error).__name__}: {error}") from error
    _set_length(model, max_length, folder)
    return model.eval().requires_grad_(requires_grad=False)


def _set_length(model: "SentenceTransformer", max_length: int | None, folder: Path) -> None:
    own, most = model.max_seq_length, most_tokens(model[0].model)
    if max_length is not None and most is not None and max_length > most:
        shown = f" (null: its own limit, {min(own, most)})" if own else ""
        raise UserError(
            f"text_encoder.max_length={max_length}: {folder} has positions for {most} tokens; give {most} or "
            f"less{shown}"
        )
    lengths = [max_length] if max_length is not None else [value for value in (own, most) if value is not None]
    if lengths:
        model.max_seq_length = min(lengths)


def most_tokens(network: Any) -> int | None:
    """How many tokens a network of transformers has positions for; None: any number, as where they are relative."""
    for module in network.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            padding = getattr(module, "padding_idx", None)  # RoBERTa and its kin count positions from the one after it
            return int(table.num_embeddings) - (padding + 1 if isinstance(padding, int) else 0)
    positions = getattr(network.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


# --------------------------------------------------------------------------------------------------------- the weights


def module_weights(model: "SentenceTransformer", folder: Path) -> dict[str, Tensor]:
    """What the modules take from the folder's weight files, float32, by the names that they have in `model`.

    Args:
        model: The folder's, with or without weights.
        folder: The model's.

    Raises:
        UserError: A file cannot be read, or lacks a part of the model.
    """
    found: dict[str, Tensor] = {}
    for number, (kind, place) in enumerate(read_modules(folder)):
        if kind == "Transformer":
            network = model[number].model
            found |= {f"{number}.{name}": value for name, value in _network_weights(network, place).items()}
        elif kind == "Dense":
            found |= {f"{number}.{name}": value for name, value in read_weights(place).items()}
    return found


def _network_weights(network: Any, folder: Path) -> dict[str, Tensor]:
    prefix = f"{network.base_model_prefix}."
    found = {name.removeprefix(prefix): value for name, value in read_weights(folder).items()}
    needed = _needed(network.state_dict())
    if not found.keys() >= set(needed):
        found = _as_the_library_names_them(network, folder)
    return {name: found[name] for name in needed}


def _be_strict(network: Any, folder: Path) -> None:
    """Refuse weights that lack a part of the model, which the library would draw at random with a warning."""
    prefix = f"{network.base_model_prefix}."
    found = {name.removeprefix(prefix) for name in _weight_names(folder)}
    if _needed({name for name, _ in network.named_parameters()} - found):
        _as_the_library_names_them(network, folder)


def _as_the_library_names_them(network: Any, folder: Path) -> dict[str, Tensor]:
    """Older files have other names, which only the library knows; it is asked at the price of a second model.

    Raises:
        UserError: A part of the model is missing under any name.
    """
    whole, report = type(network).from_pretrained(
        None, config=network.config, state_dict=read_weights(folder), output_loading_info=True
    )
    missing = _needed(report["missing_keys"])
    if missing:
        names = f"{'; '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}"
        raise UserError(f"{folder}: the weights lack {len(missing)} tensors of {type(network).__name__}: {names}")
    state: dict[str, Tensor] = whole.state_dict()
    return state


def _weight_names(folder: Path) -> list[str]:
    names: list[str] = []

    def note(name: str) -> bool:
        names.append(name)
        return False  # nothing needs to be read

    read_weights(folder, keep=note)
    return names


def _needed(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not name.startswith("pooler."))  # sentence-transformers pools by itself
