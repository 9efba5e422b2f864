"""From the configuration to the plain arguments that checkpoints note, and from these to the network."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from quartet.apps.perceiver.config import ModelConfig, PerceiverConfig
from quartet.apps.perceiver.data.inspection import Inspection, Needs
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.model import SIZES, PerceiverModel, PerceiverOptions, PerceiverQueries
from quartet.apps.perceiver.model.positions import LIMITED


def model_settings(
    config: ModelConfig,
    *,
    input_dim: int,
    num_classes: int,
    max_seq_len: int,
    grid: Sequence[int] | None = None,
    modalities: Sequence[Mapping[str, Any]] | None = None,
    further: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain constructor arguments of the configured model; `make_model` takes them.

    Args:
        config: The model section; what it leaves open follows from its size.
        input_dim: Channels of a token.
        num_classes: Number of classes.
        max_seq_len: Longest sequence in tokens.
        grid: Rows and columns of a picture's patches and the side of one in pixels; None: no pictures.
        modalities: Of raw samples, see `PerceiverOptions`; None: the input is tokens.
        further: More options; those that are as ever are left out, so that checkpoints of before there were they go on.
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
    options |= {key: value for key, value in (further or {}).items() if value != getattr(PerceiverOptions, key)}
    if "patch" in options:
        options["stem_channels"] = config.stem_channels
    if modalities is not None:
        options |= {"modalities": [dict(values) for values in modalities]}
    return {"input_dim": input_dim, "num_classes": num_classes, **widths, "options": options}


def settings_of(
    config: PerceiverConfig, looks: Mapping[str, Inspection], *, num_classes: int, layout: PatchLayout | None
) -> dict[str, Any]:
    """The same for data that was looked at.

    Args:
        config: The run's.
        looks: What was found, by part, with "train".
        num_classes: Number of outputs.
        layout: How pictures are cut; None where samples are series.
    """
    statistics, longest = looks["train"].statistics, max(int(look.lengths.max()) for look in looks.values())
    most, step, patch = config.data.max_seq_len or longest, statistics.time_step, config.data.series_patch
    if step is not None:  # positions are those of time
        most = max(most, math.ceil(max(look.statistics.duration for look in looks.values()) / step) + 1)
    return model_settings(
        config.model,
        input_dim=len(statistics.mean) + (step is not None),
        num_classes=num_classes,
        max_seq_len=math.ceil(most / patch) if layout is None else most,
        grid=None if layout is None else layout.patches,
        further={"patch": patch, "time_step": step} if layout is None else {},
    )


def needs_of(about: Mapping[str, Any]) -> Needs:
    """What a model asks of the sequences that it is given, of what its checkpoint or export notes."""
    options = about["model"]["options"]
    step, most = options.get("time_step"), options["max_seq_len"] * options.get("patch", 1)
    limited, timed = options["position"] in LIMITED, step is not None
    return Needs(
        channels=about["model"]["input_dim"],
        names=about["preprocessing"].get("columns", {}).get("channels", ()),
        timed=timed,
        longest=most if limited and not timed else None,
        duration=(most - 1) * step if limited and timed else None,
    )


def make_model(
    settings: Mapping[str, Any], *, gradient_checkpointing: bool = False
) -> PerceiverModel | PerceiverQueries:
    """The model that `model_settings` describes; one of queries where they note what these see."""
    arguments = {key: value for key, value in settings.items() if key != "options"}
    if settings["options"].get("modalities"):
        # Batches of raw samples differ in shape, and oneDNN keeps a kernel for each: 1024 unless it is told otherwise,
        # with which memory grows for hundreds of steps. It asks when it makes its first one.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    options = PerceiverOptions(**settings["options"], gradient_checkpointing=gradient_checkpointing)
    make = PerceiverQueries if "visible" in settings else PerceiverModel
    return make(**arguments, options=options)
