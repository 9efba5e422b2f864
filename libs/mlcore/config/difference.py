"""Comparing resolved configurations: which settings that matter to the result differ."""

import json
from collections.abc import Mapping
from typing import Any

from mlcore.config.names import flatten

__all__ = ["config_differences", "plain_values"]

# Settings that change how a run is carried out, not what it computes.
_VOLATILE = ("run.output_dir", "run.resume", "run.num_workers", "run.num_threads", "run.device")
_VOLATILE_SECTIONS = ("tracking", "checkpoint")


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that matter to the result and differ, as "train.lr 0.1 -> 0.2"."""
    flat_old, flat_new = flatten(plain_values(old)), flatten(plain_values(new))
    return [
        f"{key} {flat_old.get(key)} -> {flat_new.get(key)}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(key) != flat_new.get(key)
        and key not in _VOLATILE
        and key.split(".")[0] not in _VOLATILE_SECTIONS
    ]


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON keeps them; what it has no form for as text."""
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return plain
