"""Comparing resolved configurations: which settings differ, and what that means to a run that goes on."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlcore.base.secrets import MASK
from mlcore.config.dump import to_values
from mlcore.config.names import NameTable, flatten
from mlcore.config.section import Meta, Section

__all__ = ["Change", "changes", "config_differences", "matters", "of_today", "plain_values"]

# Settings that change how a run is carried out, not what it computes.
_VOLATILE = (
    *("run.output_dir", "run.resume", "run.num_workers", "run.num_threads", "run.device"),
    "train.max_hours",  # how long this process works, not where the run ends
)
_VOLATILE_SECTIONS = ("tracking", "checkpoint")
_AUTO_CUT = ("train.batch_size", "train.gradient_accumulation_steps")


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Settings that matter to the result and differ, as "train.lr 0.1 -> 0.2"."""
    flat_old, flat_new = flatten(plain_values(old)), flatten(plain_values(new))
    return [
        f"{key} {flat_old.get(key)} -> {flat_new.get(key)}"
        for key in sorted(flat_old.keys() | flat_new.keys())
        if not _same(flat_old.get(key), flat_new.get(key)) and matters(key)
    ]


def matters(path: str) -> bool:
    """Whether a setting changes what a run computes, not only how it is carried out."""
    return path not in _VOLATILE and path.split(".")[0] not in _VOLATILE_SECTIONS


@dataclass(frozen=True)
class Change:
    """A setting whose value is not the one that the run had until now.

    Attributes:
        path: Dotted path.
        old: The value until now, plain.
        new: The value from now on, plain.
        meta: What is declared of the setting, such as what a run that goes on does with another value.
    """

    path: str
    old: Any
    new: Any
    meta: Meta

    def __str__(self) -> str:
        return f"{self.path} {self.old} -> {self.new}"


def changes(old: Mapping[str, Any], config: Section) -> list[Change]:
    """The settings that differ.

    Args:
        old: Values of an earlier run, nested and plain. What they lack, being older, had its default; what the
            configuration does not know any more, says nothing.
        config: The resolved configuration of now.
    """
    table = NameTable(type(config))
    defaults = {path: table.presets.get(path, leaf.info.default) for path, leaf in table.leaves.items()}
    was = {**plain_values(defaults), **flatten(plain_values(of_today(old, type(config))), table.leaves)}
    now = flatten(plain_values(to_values(config)), table.leaves)
    same_cut = _AUTO_CUT if _same_samples(was, now) else ()
    leaves = [(path, leaf) for path, leaf in table.leaves.items() if path not in same_cut]
    return [Change(path, was[path], now[path], leaf.meta) for path, leaf in leaves if not _same(was[path], now[path])]


def _same_samples(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both leave it to the memory how a step is cut, and mean as many samples."""
    auto = "train.auto_batch_size"
    if not (was.get(auto) and now.get(auto)):
        return False
    before, after = (math.prod(int(values[path]) for path in _AUTO_CUT) for values in (was, now))
    return before == after


def _same(one: Any, other: Any) -> bool:
    """Whether values are equal; what is masked in one of them may be anything in the other."""
    if isinstance(one, str) and isinstance(other, str) and MASK in one + other:
        return any(
            re.fullmatch(".+".join(map(re.escape, masked.split(MASK))), whole, re.DOTALL)
            for masked, whole in ((one, other), (other, one))
        )
    return bool(one == other)


def of_today(old: Mapping[str, Any], config_cls: type[Section]) -> Mapping[str, Any]:
    """Values of an earlier run (nested) as this version means them: before `data.split_seed`, the seed named the split.

    Args:
        old: The run's.
        config_cls: The app's configuration.
    """
    section = config_cls.model_fields.get("data")
    known = getattr(section and section.annotation, "model_fields", {})
    data, run = old.get("data", {}), old.get("run", {})
    seed = run.get("seed") if isinstance(run, Mapping) else None
    if "split_seed" not in known or not isinstance(data, Mapping) or "split_seed" in data or seed is None:
        return old
    return {**old, "data": {**data, "split_seed": seed}}


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON keeps them; what it has no form for as text."""
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    return plain
