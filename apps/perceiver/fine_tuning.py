"""A start from another run: its encoder's weights and input statistics."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from mlcore.base.errors import UserError
from mlcore.run.predictor import checkpoint_of, located
from mlcore.run.restore import RunCheckpoint, load_run_checkpoint, of_this_version
from quartet.apps.perceiver.config import PerceiverConfig

__all__ = ["fitting", "read_start", "take_encoder"]

_OUTPUTS = ("num_classes", "visible")
_ENCODER = "encoder."
_FREE = ("dropout", "pooling")  # options that no weight of an encoder belongs to


def read_start(source: str) -> RunCheckpoint[PerceiverConfig]:
    """The run to begin with: its folder, a checkpoint, or `s3://bucket/key` of one.

    Raises:
        UserError: There is none, or it is no Perceiver's.
    """
    return load_run_checkpoint(checkpoint_of(located(source)), app="perceiver", config_cls=PerceiverConfig)


def fitting(settings: Mapping[str, Any], start: RunCheckpoint[PerceiverConfig]) -> dict[str, Any]:
    """Model settings with the positions that the start knows.

    Args:
        settings: What `model_settings` gives.
        start: The run to begin with.

    Raises:
        UserError: Its encoder is another one, and in what.
    """
    with of_this_version(start.path):
        there = {key: value for key, value in start.metadata["model"].items() if key not in _OUTPUTS}
        most, step = there["options"]["max_seq_len"], there["options"].get("time_step")
    options = dict(settings["options"])
    if None not in (step, options.get("time_step")):  # its weights are made for its own unit of time
        options["time_step"], scale = step, options["time_step"] / step
        options["max_seq_len"] = math.ceil((options["max_seq_len"] - 1) * scale) + 1
    if options["position"] in ("fourier", "learned") and options["max_seq_len"] > most:
        raise UserError(
            f"{start.path}: knows {most} positions, the data has sequences of {options['max_seq_len']}; pre-train with "
            "--max_seq_len, or with sinusoidal positions"
        )
    found = {**settings, "options": {**options, "max_seq_len": most}}
    here = _flat({key: value for key, value in found.items() if key not in _OUTPUTS})
    differing = [f"{key} {value} -> {here.get(key)}" for key, value in _flat(there).items() if here.get(key) != value]
    differing += [f"{key} none -> {value}" for key, value in here.items() if key not in _flat(there)]
    if differing:
        raise UserError(
            f"{start.path}: its encoder is another one ({', '.join(differing)}); give the model settings and the "
            "channels that it was trained with, or leave out task.init_from"
        )
    return found


def take_encoder(model: nn.Module, start: RunCheckpoint[PerceiverConfig]) -> None:
    """Let the model's encoder begin with the start's weights, which fit."""
    weights = {name: value for name, value in start.weights.items() if name.startswith(_ENCODER)}
    model.load_state_dict(weights, strict=False)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in settings["options"].items() if key not in _FREE}
    return {**{key: value for key, value in settings.items() if key != "options"}, **options}
