"""From a checkpoint back to a classifier with its encoders: what prediction and test.py begin with."""

import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.run.decision import DECISION, Decision, read_decision
from mlcore.run.restore import RunCheckpoint, load_run_checkpoint, of_this_version, run_folder
from mlcore.training.checkpoint import CheckpointError, load_model_weights
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.batches import Pixels
from quartet.apps.multimodal_ads.evaluation import CLASS_NAMES
from quartet.apps.multimodal_ads.model.build import Parts, describe, make_parts
from quartet.apps.multimodal_ads.model.classifier import AdClassifier
from quartet.apps.multimodal_ads.outputs import RESULTS
from quartet.apps.multimodal_ads.task import AdTask, Objective
from quartet.apps.multimodal_ads.text.encoder import load_text

_log = logging.getLogger(__name__)

__all__ = ["Restored", "as_it_was_read", "decided", "decision_of", "kept_decision", "restore", "restored"]


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained classifier with what belongs to it.

    Attributes:
        model: Ready to use, in evaluation mode on the chosen device.
        parts: Its encoders.
        config: The training run's configuration.
        step: Training step of the checkpoint.
    """

    model: AdClassifier
    parts: Parts
    config: AdsConfig
    step: int

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.model.parameters()).device

    @property
    def max_pixels(self) -> int:
        """Larger pictures are refused."""
        return round(self.config.data.max_megapixels * 1e6)

    @property
    def task(self) -> AdTask:
        """For `mlcore.training.evaluator`; losses are plain binary cross entropy."""
        return AdTask(model=self.model, objective=Objective(loss_type="bce"), text_encoder=self.parts.text)

    @property
    def prepare(self) -> Pixels | None:
        """Makes the backbone's input of a sample's image; None where pictures are not looked at."""
        return None if self.parts.vision is None else Pixels(self.parts.vision.processor)


def restore(path: Path, *, device: torch.device) -> Restored:
    """Load a checkpoint of this app; the frozen encoders come from where the run had them from.

    Args:
        path: `checkpoint_best.ckpt` or any other checkpoint of a run.
        device: Where the model goes.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or no checkpoint of this app, or was trained on other
            encoders than those that are found now.
        UserError: An encoder's weights cannot be had.
    """
    return restored(load_run_checkpoint(path, app="multimodal_ads", config_cls=AdsConfig), device=device)


def restored(read: RunCheckpoint[AdsConfig], *, device: torch.device) -> Restored:
    """The same of a checkpoint that is read."""
    path = read.path
    with of_this_version(path):
        kept = dict(read.metadata["frozen_weights"])
        text, vision = kept["text_fingerprint"], kept["vision_weights"]
    config, former = as_it_was_read(read), _is_former(read)
    parts = make_parts(config, device=device)
    found = describe(config, parts)["frozen_weights"]
    if vision != found["vision_weights"]:
        raise _another(path, "vision backbone")
    if former:
        _check_former(text, parts, path)
    elif text != found["text_fingerprint"]:
        raise _another(path, "text encoder", _differing(text, found["text_fingerprint"]))
    model = parts.classifier()
    load_model_weights(model, read.weights, source=path)
    model.eval().to(device)
    return Restored(model=model, parts=parts, config=config, step=read.step)


def _another(path: Path, what: str, differing: str = "") -> CheckpointError:
    return CheckpointError(
        f"{path}: was trained on another {what} than the one that is found now under the same name{differing}; "
        "put the weights back that the run was trained with"
    )


def _differing(kept: str | None, found: str | None) -> str:
    """Which parts of two fingerprints differ."""
    one, other = (dict(line.partition("=")[::2] for line in (text or "").splitlines()) for text in (kept, found))
    names = ", ".join(sorted(name for name in one.keys() & other.keys() if one[name] != other[name]))
    return f" (another {names})" if names else ""


def _is_former(read: RunCheckpoint[AdsConfig]) -> bool:
    """Whether it knows its text encoder by all files of the model's folder, as earlier versions did."""
    return str(read.metadata["frozen_weights"]["text_fingerprint"]).startswith("text 1 ")


def as_it_was_read(read: RunCheckpoint[AdsConfig]) -> AdsConfig:
    """Runs whose encoder was known by its files cut texts to the model's own limit, even if asked for a longer one."""
    config, settings = read.config, read.config.text_encoder
    if settings.max_length is None or not _is_former(read):
        return config
    own = load_text(settings.model_copy(update={"max_length": None})).whole
    length = settings.max_length if own is None else min(own, settings.max_length)
    return config.model_copy(update={"text_encoder": settings.model_copy(update={"max_length": length})})


def _check_former(kept: str, parts: Parts, path: Path) -> None:
    """Compare by files; only the name of the length may differ, see `as_it_was_read`."""
    found = None if parts.text is None else parts.text.former_fingerprint()
    if found is None or found.rpartition(" max_length=")[0] != kept.rpartition(" max_length=")[0]:
        raise CheckpointError(
            f"{path}: knows its text encoder by all files of the model's folder, as earlier versions did, and these "
            "are not the same now. Give the folder back the files that it had, nothing added or removed; or train again"
        )


def decision_of(checkpoint: Path, given: str | None = None) -> Decision:
    """`decided` of a checkpoint's run."""
    return decided(kept_decision(checkpoint), given, checkpoint)


def decided(kept: Decision | None, given: str | None, source: object) -> Decision:
    """From which probability on an ad is taken for one: the threshold that is given, or else what the run decided.

    Args:
        kept: The run's; None: it left none.
        given: What the user says.
        source: Of the run, for messages.

    Raises:
        UserError: What is given is no probability, or the decision is of another kind.
    """
    start = Decision(kind="binary", class_names=CLASS_NAMES)
    if given is not None:
        with suppress(ValueError):
            if 0 <= (value := float(given)) <= 1:
                return start.model_copy(update={"threshold": value})
        raise UserError(f"threshold={given}: expected a probability, from 0 to 1")
    if kept is None:
        _log.warning("no decision.json beside %s: the threshold is 0.5; give --threshold for another", source)
        return start
    if (kept.kind, kept.class_names) != (start.kind, start.class_names):
        found = ", ".join(kept.class_names) or kept.kind
        raise UserError(f"{DECISION} of {source}: of {found}, not of {' and '.join(CLASS_NAMES)}; it is another run's")
    return kept


def kept_decision(checkpoint: Path) -> Decision | None:
    """What the run of a checkpoint decided; those of earlier versions have their threshold in `results.json`.

    Raises:
        UserError: It is damaged.
    """
    folder = run_folder(checkpoint)
    if (kept := read_decision(folder)) is not None:
        return kept
    with suppress(UserError), reading(folder / RESULTS, "results of an earlier version"):
        about = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["threshold"]
        values = {"threshold": float(about["value"]), "chosen_on": about["chosen_on"]}
        return Decision(kind="binary", class_names=CLASS_NAMES, **values)
    return None
