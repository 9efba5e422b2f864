"""From the configuration to the plain arguments that checkpoints note, and from these to the network."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from quartet.apps.perceiver.config import ModelConfig
from quartet.apps.perceiver.model import SIZES, PerceiverModel, PerceiverOptions, PerceiverQueries


def model_settings(
    config: ModelConfig,
    *,
    input_dim: int,
    num_classes: int,
    max_seq_len: int,
    grid: Sequence[int] | None = None,
    modalities: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Plain constructor arguments of the configured model; `make_model` takes them.

    Args:
        config: The model section; what it leaves open follows from its size.
        input_dim: Channels of a token.
        num_classes: Number of classes.
        max_seq_len: Longest sequence in tokens.
        grid: Rows and columns of a picture's patches and the side of one in pixels; None: no pictures.
        modalities: Of raw samples, see `PerceiverOptions`; None: the input is tokens.
    """
    widths = asdict(SIZES[config.model_size])
    widths.update({key: getattr(config, key) for key in widths if getattr(config, key) is not None})
    options: dict[str, Any] = {
        "position": config.position,
        "position_channels": config.position_channels,
        "max_seq_len": max_seq_len,
        "widening_factor": config.widening_factor,
        "dropout": config.dropout,
        "share_weights": config.share_weights,
        "pooling": config.pooling,
    }
    if config.stem != "none":  # checkpoints of before there were stems go on
        options |= {"stem": config.stem, "stem_channels": config.stem_channels, "grid": grid and list(grid)}
    if modalities is not None:
        options |= {"modalities": [dict(values) for values in modalities]}
    return {"input_dim": input_dim, "num_classes": num_classes, **widths, "options": options}


def make_model(
    settings: Mapping[str, Any], *, gradient_checkpointing: bool = False
) -> PerceiverModel | PerceiverQueries:
    """The model that `model_settings` describes; one of queries where they note what these see."""
    arguments = {key: value for key, value in settings.items() if key != "options"}
    options = PerceiverOptions(**settings["options"], gradient_checkpointing=gradient_checkpointing)
    make = PerceiverQueries if "visible" in settings else PerceiverModel
    return make(**arguments, options=options)
