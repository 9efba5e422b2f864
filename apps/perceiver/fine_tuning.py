"""A start from another run, or from a published Perceiver of texts: its encoder's weights and input statistics."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.model_folder import check_model_folder, json_value
from mlcore.run.predictor import checkpoint_of, located
from mlcore.run.restore import load_run_checkpoint, of_this_version
from mlcore.training.checkpoint import load_model_weights
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.model.positions import LIMITED
from quartet.apps.perceiver.model.published import encoder_settings, encoder_weights

__all__ = ["Start", "fitting", "read_start", "take_encoder"]

_log = logging.getLogger(__name__)

_OUTPUTS = ("num_classes", "visible")
_ENCODER = "encoder."
_FREE = ("dropout", "pooling")  # options that no weight of an encoder belongs to


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a model begins with.

    Attributes:
        path: Where it is from.
        settings: Of its model, as `model_settings` gives them.
        weights: Those of its encoder, by their names in a model.
        published: Whether it is one of transformers, which knows no data of a run; the model is then like it.
    """

    path: Path
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    published: bool = False


def read_start(source: str) -> Start:
    """The run to begin with: its folder, a checkpoint, or `s3://bucket/key` of one; or a folder of transformers.

    Raises:
        UserError: There is none, or it is no Perceiver's.
    """
    path = located(source)
    if (path / "config.json").is_file():
        return _read_published(path)
    run = load_run_checkpoint(checkpoint_of(path), app="perceiver", config_cls=PerceiverConfig)
    with of_this_version(run.path):
        settings = run.metadata["model"]
    weights = {name: value for name, value in run.weights.items() if name.startswith(_ENCODER)}
    return Start(path=run.path, settings=settings, weights=weights)


def _read_published(folder: Path) -> Start:
    check_model_folder(folder)
    config, file = json_value(folder / "config.json"), folder / "model.safetensors"
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "perceiver":
        raise UserError(f"{folder}: a model of the type {kind}, not a perceiver")
    with reading(file, "a safetensors file"), safe_open(file, framework="pt") as stored:
        wanted = [name for name in stored.keys() if "decoder" not in name]  # noqa: SIM118 - not a mapping
        weights = {name: stored.get_tensor(name).float() for name in wanted}
    with reading(file, "weights of transformers' Perceiver"):
        settings, own = encoder_settings(weights, config), encoder_weights(weights)
    named = {f"{_ENCODER}{name}": value for name, value in own.items()}
    return Start(path=folder, settings=settings, weights=named, published=True)


def fitting(settings: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """Model settings with the positions that the start knows; of a published model all of its own.

    Args:
        settings: What `model_settings` gives.
        start: What to begin with.

    Raises:
        UserError: Its encoder is another one, and in what.
    """
    with of_this_version(start.path):
        there = {key: value for key, value in start.settings.items() if key not in _OUTPUTS}
        if start.published:
            return _like(settings, start)
        known = _known(settings["options"], there["options"], start.path)
    found = {**settings, "options": {**settings["options"], **known}}
    here = _flat({key: value for key, value in found.items() if key not in _OUTPUTS})
    differing = [f"{key} {value} -> {here.get(key)}" for key, value in _flat(there).items() if here.get(key) != value]
    differing += [f"{key} none -> {value}" for key, value in here.items() if key not in _flat(there)]
    if differing:
        raise UserError(
            f"{start.path}: its encoder is another one ({', '.join(differing)}); give the model settings and the "
            "channels that it was trained with, or leave out task.init_from"
        )
    return found


def _known(options: Mapping[str, Any], there: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """How far the start's positions reach, in the options of a model; a `UserError` where the data reaches further."""
    longest, step = options["max_seq_len"], there.get("time_step")
    known: dict[str, Any] = {"max_seq_len": there["max_seq_len"]}
    if None not in (step, options.get("time_step")):  # its weights are made for its own unit of time
        known["time_step"], scale = step, options["time_step"] / step
        longest = math.ceil((longest - 1) * scale) + 1
    if options["position"] in LIMITED and longest > there["max_seq_len"]:
        _refuse(path, there["max_seq_len"], longest)
    own, theirs = options.get("modalities"), there.get("modalities")
    if own and theirs and len(own) == len(theirs):
        for one, other in zip(own, theirs, strict=True):
            if other["longest"] is not None and (one["longest"] or 0) > other["longest"]:
                _refuse(path, other["longest"], one["longest"])
        known["modalities"] = [{**one, "longest": other["longest"]} for one, other in zip(own, theirs, strict=True)]
    return known


def _refuse(path: Path, known: int, longest: int) -> None:
    raise UserError(
        f"{path}: knows {known} positions, the data has sequences of {longest}; cut them (--max_seq_len {known} "
        "--on_too_long truncate), or pre-train with --max_seq_len, or with sinusoidal positions"
    )


def _like(settings: Mapping[str, Any], start: Start) -> dict[str, Any]:
    """Settings of a model of texts that is like a published one, but for its outputs."""
    theirs, own = start.settings, settings["options"].get("modalities", ())
    if "modalities" not in theirs["options"] or [(one["kind"], one["patch"]) for one in own] != [("text", 1)]:
        raise UserError(
            f"{start.path}: from the command line a published Perceiver of texts begins a model of one text, byte by "
            "byte (--dataset text, --text_patch 1); for others there is from_transformers in Python"
        )
    known = _known({**settings["options"], "max_seq_len": 1}, theirs["options"], start.path)
    _log.info("the encoder is as wide and deep as that of %s, whatever the model section says", start.path)
    return {**settings, **theirs, "options": {**settings["options"], **theirs["options"], **known}}


def take_encoder(model: nn.Module, start: Start) -> None:
    """Let the model's encoder begin with the start's weights, which fit."""
    _log.info(
        "begins with the encoder of %s: %d tensors of weights and input statistics", start.path, len(start.weights)
    )
    load_model_weights(model, {**model.state_dict(), **start.weights}, source=start.path)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in settings["options"].items() if key not in _FREE}
    return {**{key: value for key, value in settings.items() if key != "options"}, **options}
