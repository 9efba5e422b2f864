"""A trained model at work: raw inputs in, predictions out, whatever the app and whatever computes the network.

An app says how with a `Scorer`; `load_run` makes one of a run and puts the same face before it in every app.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError, nearest
from mlcore.base.reading import reading
from mlcore.cli.app import App
from mlcore.cli.apps import load_app
from mlcore.remote.hub import HUB, fetch_model, read_weights
from mlcore.remote.s3 import CACHE, StorageError, fetch, is_remote, stored_file
from mlcore.run.decision import DECISION
from mlcore.run.exported import ABOUT, WEIGHTS, read_about
from mlcore.run.final_evaluation import best_checkpoint
from mlcore.run.networks import FORMATS, Eager, Network, open_network
from mlcore.run.restore import of_this_version, read_run_checkpoint, run_folder
from mlcore.run.scorer import Item, Scorer, Use

__all__ = ["ENSEMBLE", "Predictor", "checkpoint_of", "load_run", "located"]

_log = logging.getLogger(__name__)

ENSEMBLE = "ensemble.json"
"""In a folder: names an app and what its experiment chose, which predicts like a run."""
_LARGEST = 4 * 2**20  # bytes of it


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A run's model with the same face in every app.

    Attributes:
        app: The run's app.
        scorer: How it predicts.
        source: The checkpoint, or the folder of an export or ensemble; where runs are averaged, of the first.
        about: What the scorer was made of, beside the network: plain values; none where it has several networks.
        identity: What the predictions depend on: app, weights, options; a job goes on only with the same.
    """

    app: App[Any]
    scorer: Scorer
    source: Path
    about: Mapping[str, Any]
    identity: Mapping[str, Any]

    def __call__(self, inputs: Any, *, batch_size: int | None = None) -> list[Any]:
        """Predictions for all inputs, in their order.

        Args:
            inputs: One of these, or a list: a file, which may hold several things; an `Item`; or what such a file
                would hold, such as an array or a picture.
            batch_size: Items that go through the network together; None: as many as the app wants.

        Raises:
            UserError: One of them cannot be used.
        """
        items = [
            item for one in (inputs if isinstance(inputs, list | tuple) else [inputs]) for item in self._items(one)
        ]
        size, found = batch_size or self.scorer.batch_size, list[Any]()
        for start in range(0, len(items), size):
            samples = [self.scorer.load(item) for item in items[start : start + size]]
            found += self.scorer.predict(self.scorer.collate(samples))
        return found

    def _items(self, one: Any) -> Sequence[Item]:
        if isinstance(one, Item):
            return [one]
        if isinstance(one, str | Path):
            return self.scorer.items(Path(one))
        return [Item("input", content=one)]


def load_run(
    source: str | Path, *, device: str = "auto", options: Mapping[str, str] | None = None, network: str | None = None
) -> Predictor:
    """The predictor of a run, or of its export.

    Args:
        source: The run's folder, whose best checkpoint is taken, or that of a job with one last run; a checkpoint;
            `s3://bucket/key` of one; a folder that `quartet export` or an ensemble experiment wrote; or `hub:NAME` of
            one that `quartet push` wrote.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        options: The app's own, by name, as texts; it says itself what they may be.
        network: What computes the network of an export: None, torch with the file of weights; "onnx", ONNX Runtime;
            "pt2", the exported program, which is code: only of exports that you trust as you trust a program.

    Raises:
        UserError: There is no such run, it is damaged, unsafe, of an app or a version that is not here, or an option
            is unknown or has no sensible value.
    """
    path, where = located(source), pick_device(device)
    if len(found := runs_within(path)) == 1:
        path = found[0]
    if (path / ABOUT).is_file():
        return _exported(path, where, options or {}, network)
    if (path / ENSEMBLE).is_file():
        return _ensemble(path, where)
    if network is not None:
        raise UserError(f"{path}: is no export, and only those have a network for {network}; quartet export writes one")
    app, run = read_run_checkpoint(checkpoint_of(path), load_app)
    identity: dict[str, Any] = {"app": app.name, "weights": run.digest, "options": dict(options or {})}
    identity["decision"] = None if run.decision is None else run.decision.identity
    use = _use_of(app, run.path)
    decision = None if run.decision is None else run.decision.model_dump(mode="json")
    about = {"decision": decision, **use.describe(run)}
    module = use.make_module(about, run.weights, run.path)
    eager = Eager(module, use.signature_of(about), device=where, precision=run.config.train.precision)
    scorer = use.make_scorer(about, eager, _known(options or {}, app))
    return Predictor(app=app, scorer=scorer, source=run.path, about=about, identity=identity)


def _exported(folder: Path, device: torch.device, options: Mapping[str, str], network: str | None) -> Predictor:
    """The predictor of an export, whose files are those that it was written with."""
    note = read_about(folder)
    app = load_app(note.app)
    use = _use_of(app, folder)
    with of_this_version(folder / ABOUT):
        signature = use.signature_of(note.about)
    found: Network
    if network is None:
        module = use.make_module(note.about, read_weights(folder), folder / WEIGHTS)
        found = Eager(module, signature, device=device, precision="fp32")
    elif network in FORMATS:
        found = open_network(folder / FORMATS[network], signature, device=device)
    else:
        raise UserError(f"no kind of network '{network}'{nearest(network, FORMATS)}; there is: {', '.join(FORMATS)}")
    with of_this_version(folder / ABOUT):
        scorer = use.make_scorer(note.about, found, {})
    if options:  # what is wrong with these is no fault of the folder
        scorer = use.make_scorer(note.about, found, _known(options, app))
    identity = {"app": app.name, "export": note.digest, "network": network, "options": dict(options)}
    return Predictor(app=app, scorer=scorer, source=folder, about=note.about, identity=identity)


def located(source: str | Path) -> Path:
    """What is meant by a path or an address, on this machine; the decision of a run in a bucket comes with it."""
    if str(source).startswith(HUB):
        return fetch_model(str(source))
    if is_remote(source):
        path = stored_file(str(source))
        _fetch_decision(str(source))
        return path
    return Path(source)


def _fetch_decision(address: str) -> None:
    """Bring the decision of a run in a bucket to its checkpoint; older runs, and checkpoints alone, have none."""
    folder = address.rpartition("/")[0].removesuffix("/checkpoints")
    try:
        fetch(f"{folder}/{DECISION}", cache_dir=CACHE)
    except StorageError as error:
        if error.passing:
            raise
        _log.info("%s: without a decision beside it, the most probable class counts (%s)", address, error)


def _ensemble(folder: Path, device: torch.device) -> Predictor:
    """The predictor of what the experiment of an app chose."""
    with reading(folder / ENSEMBLE, "an ensemble"), (folder / ENSEMBLE).open("rb") as file:
        app = load_app(str(json.loads(file.read(_LARGEST))["app"]))
    if app.ensemble is None:
        raise UserError(f"{folder / ENSEMBLE}: the app '{app.name}' has no ensembles (`App.ensemble`)")
    scorer, digest = app.ensemble(folder, device)
    identity = {"app": app.name, "weights": digest}
    return Predictor(app=app, scorer=scorer, source=folder, about={}, identity=identity)


def _use_of(app: App[Any], source: Path) -> Use:
    if app.use is None:
        raise UserError(f"{source}: the app '{app.name}' does not say how it is put to use (`App.use`)")
    use: Use = app.use()
    return use


def checkpoint_of(path: Path) -> Path:
    """The checkpoint itself, or the best one of a run's folder.

    Raises:
        UserError: The folder has none.
    """
    if not path.is_dir():
        return path
    if found := best_checkpoint(path / "checkpoints") or best_checkpoint(path):
        return found
    if inner := sorted({run_folder(p) for p in path.glob("*/*/checkpoints/*.pth")}):
        raise UserError(f"{path}: holds several runs; name one of them, such as {inner[0]}")
    raise UserError(f"{path}: no checkpoint in this folder; expected a run, with checkpoints/best_model.pth")


def runs_within(path: Path) -> list[Path]:
    """The runs that a job's folder stands for: the last ones on all data, or those of its folds or seeds.

    What lies in it counts, too: `JOB/folds` stands for the folds. The folder itself where it is a run's, or no job's.
    """
    if any((path / name).is_file() for name in (ABOUT, ENSEMBLE)) or not path.is_dir():
        return [path]
    if best_checkpoint(path / "checkpoints") or best_checkpoint(path):
        return [path]
    own = {"refit": "seed_*", "folds": "fold_*", "seeds": "seed_*"}.get(path.name, "")
    for pattern in (own, "refit", "refit/seed_*", "folds/fold_*", "seeds/seed_*"):
        found = [place for place in path.glob(pattern) if best_checkpoint(place / "checkpoints")] if pattern else []
        if found:
            return sorted(found)
    return [path]


def _known(options: Mapping[str, str], app: App[Any]) -> dict[str, str]:
    """The options, all of which the app has."""
    for name in options:
        if name not in app.options:
            known = ", ".join(app.options) or "none"
            raise UserError(f"{app.name} has no option '{name}'{nearest(name, app.options)}; it has: {known}")
    return dict(options)
