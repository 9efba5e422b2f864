"""What a run that goes on does with settings that are not those it had: each declares it, see `Meta.continued`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.config.difference import Change, changes, matters
from mlcore.config.section import BEST
from mlcore.config.sections import EarlyStoppingConfig
from mlcore.run.build import VALIDATION
from mlcore.training.checkpoint import State
from mlcore.training.trainer import Trainer

_log = logging.getLogger(__name__)

_JUDGEMENT = {f"train.early_stopping.{name}": name for name in ("metric", "mode")}


@dataclass(frozen=True)
class Resumed:
    """The checkpoint that a run goes on from.

    Attributes:
        path: The file.
        state: Its contents.
        changed: The settings that matter to the result and are not those of the checkpoint.
    """

    path: Path
    state: State
    changed: Sequence[Change]


def accepted_changes(config: Any, state: Mapping[str, Any], *, source: Path) -> list[Change]:
    """The settings that differ from those of a checkpoint and matter to the result.

    Args:
        config: The configuration of now.
        state: The checkpoint's contents.
        source: Its file, for the message.

    Raises:
        UserError: One of them is of those with whose values a run stands or falls.
    """
    changed = [change for change in changes(state["config"], config) if matters(change.path)]
    if _judged_alike(changed, config.train.early_stopping):
        changed = [change for change in changed if change.path not in _JUDGEMENT]
    refused = [str(change) for change in changed if change.meta.continued == "refused"]
    if refused:
        raise UserError(
            f"{source}: a run cannot go on with another value of {'; '.join(refused)}. Give the old one again, or "
            "start a new run: without --resume, in another folder (--output_dir)"
        )
    return changed


def _judged_alike(changed: Sequence[Change], now: EarlyStoppingConfig) -> bool:
    """Whether `now` is another way to write the metric and the mode of before, such as "val_loss" for "loss"."""
    old = {_JUDGEMENT[change.path]: change.old for change in changed if change.path in _JUDGEMENT}
    was = now.model_copy(update=old)
    return (was.monitored, was.resolved_mode) == (now.monitored, now.resolved_mode)


def adopt_changes(resumed: Resumed, trainer: Trainer) -> str:
    """After `trainer` has taken over the state: reset what the changes ask for, and say all that is different.

    Returns:
        What a step is to the settings, where it is not the present one; else nothing.
    """
    state, changed = resumed.state, resumed.changed
    resets: dict[str, list[str]] = {}
    for change in changed:
        if change.meta.continued == "reset":
            resets.setdefault(change.meta.resets, []).append(str(change))
    held_out = (state.get(VALIDATION), trainer.extra.get(VALIDATION))
    if None not in held_out and held_out[0] != held_out[1]:
        resets.setdefault(BEST, []).append(f"validation samples {held_out[0]} -> {held_out[1]}")
    if BEST in resets:
        trainer.forget_best()
    ranks = (len(state["rng"]), trainer.engine.world.size)
    told = [str(change) for change in changed] + ([f"ranks {ranks[0]} -> {ranks[1]}"] if ranks[0] != ranks[1] else [])
    if told:
        _log.warning("going on with other settings than before: %s", "; ".join(told))
    for what, why in resets.items():
        _log.warning("reset: %s (%s)", what, "; ".join(why))
    first, now = trainer.course.first, trainer.course.now
    if first.window == now.window:
        return ""
    note = (
        f"a step was of {first.window} samples when the run began and is of {now.window} now: learning rates go on "
        f"where the samples are on the schedule; lengths, limits and evaluations in steps count those of {first.window}"
    )
    _log.warning("%s", note)
    return note
