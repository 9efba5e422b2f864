"""A trained model at work: raw inputs in, predictions out, whatever the app and whatever computes the network.

An app says how with a `Scorer`; `load_run` makes one of a run and puts the same face before it in every app.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlcore.base.distributed import pick_device
from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.cli.app import App
from mlcore.cli.apps import load_app
from mlcore.config.text import nearest
from mlcore.remote.hub import read_weights
from mlcore.remote.s3 import CACHE, StorageError, fetch, is_remote, stored_file
from mlcore.run.decision import DECISION, REVIEW, Decision
from mlcore.run.exported import ABOUT, WEIGHTS, read_about
from mlcore.run.final_evaluation import best_checkpoint
from mlcore.run.networks import FORMATS, Eager, Network, Signature, open_network
from mlcore.run.restore import RunCheckpoint, of_this_version, read_run_checkpoint, run_folder

__all__ = [
    "ENSEMBLE",
    "ClassPrediction",
    "FolderScorer",
    "Forewarning",
    "Item",
    "JobScorer",
    "Prediction",
    "Predictor",
    "Scorer",
    "Use",
    "decision_of",
    "load_run",
]

_log = logging.getLogger(__name__)

ENSEMBLE = "ensemble.json"
"""In a folder: names an app and what its experiment chose, which predicts like a run."""
_LARGEST = 4 * 2**20  # bytes of it


@dataclass(frozen=True)
class Item:
    """One thing to predict.

    Attributes:
        name: How messages and tables call it.
        path: Its file; None where there is none, as for a text alone.
        part: Which of the file's things it is, from 0: a page, a series.
        values: Its other inputs by name, such as "text".
        content: What the file would hold, where it is in memory already: an array, a picture; None: it is read.
    """

    name: str
    path: Path | None = None
    part: int = 0
    values: tuple[tuple[str, str], ...] = ()
    content: Any = None

    def value(self, name: str) -> str:
        """One of the other inputs; "" where it was not given."""
        return dict(self.values).get(name, "")


class Prediction(Protocol):
    """What a model says of one input; each app's has further attributes."""

    def row(self) -> Sequence[object]:
        """The same as a row of a table, in the order of `Scorer.columns`."""


@dataclass(frozen=True, eq=False)
class ClassPrediction:
    """The prediction of a classifier.

    Attributes:
        probabilities: Of each class, float64 [classes], summing to one.
        class_names: In the same order.
        decided: Index of the class that the run's decision takes; None: the most probable one.
        review: Whether the decision leaves it to a person; None: it never does.
    """

    probabilities: NDArray[np.float64]
    class_names: Sequence[str]
    decided: int | None = None
    review: bool | None = None

    @property
    def predicted(self) -> str:
        """Name of the class that is decided for; where a person decides, of the most probable one."""
        return self.class_names[self._index]

    @property
    def probability(self) -> float:
        """That of the predicted class."""
        return float(self.probabilities[self._index])

    @property
    def _index(self) -> int:
        return int(self.probabilities.argmax()) if self.decided is None else self.decided

    def row(self) -> list[object]:
        """The class, its probability, those of all classes, and "yes" where a person should decide."""
        review = [] if self.review is None else ["yes" if self.review else ""]
        return [self.predicted, self.probability, *self.probabilities.tolist(), *review]

    @staticmethod
    def mean(predictions: Sequence["ClassPrediction"]) -> "ClassPrediction":
        """The mean of the probabilities that several models give for the same input; decided by the largest of them.

        A person should decide where one of the models leaves it to a person.
        """
        chances = np.mean([prediction.probabilities for prediction in predictions], axis=0)
        flags = [prediction.review for prediction in predictions if prediction.review is not None]
        return ClassPrediction(chances, predictions[0].class_names, review=any(flags) if flags else None)

    @staticmethod
    def columns(class_names: Sequence[str], decision: Decision | None = None) -> list[str]:
        """Names of what `row` gives."""
        review = ["review"] if decision is not None and decision.can_review else []
        return ["class", "probability", *(f"p_{name}" for name in class_names), *review]

    @staticmethod
    def of_batch(
        probabilities: NDArray[np.float64], class_names: Sequence[str], decision: Decision | None
    ) -> list["ClassPrediction"]:
        """Predictions at a run's decision.

        Args:
            probabilities: As the network gives them, [B, classes].
            class_names: In the same order.
            decision: The run's; None: the most probable class.

        Raises:
            UserError: The decision is between other classes, or probabilities are not finite.
        """
        if not np.isfinite(probabilities).all():
            raise UserError(
                "the model's answers are not finite: its training has diverged, or it overflows in this precision"
            )
        if decision is None:
            return [ClassPrediction(row, class_names) for row in probabilities]
        if decision.class_names != tuple(class_names):
            raise UserError(
                f"{DECISION} is of the classes {', '.join(decision.class_names)}, not {', '.join(class_names)}"
            )
        chances = decision.calibrated(probabilities)
        decided = decision.decide(chances)
        review, decided = decided == REVIEW, np.where(decided == REVIEW, chances.argmax(axis=1), decided)
        flags = review.tolist() if decision.can_review else [None] * len(review)
        given = zip(chances, decided.tolist(), flags, strict=True)
        return [ClassPrediction(row, class_names, index, flag) for row, index, flag in given]


class Use(Protocol):
    """What an app says of how its models are put to use: functions, of a module as a rule."""

    def describe(self, run: RunCheckpoint[Any]) -> dict[str, Any]:
        """What the scorer of a run needs beside the network: plain values, which travel with an export."""

    def signature_of(self, about: Mapping[str, Any]) -> Signature:
        """Inputs and outputs of the network; `about` is what `describe` gave, here and below."""

    def make_module(self, about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
        """The network with its weights, in evaluation mode; `source` is the file that they are of, for messages."""

    def make_scorer(self, about: Mapping[str, Any], network: Network, options: Mapping[str, str]) -> "Scorer":
        """The scorer; raises `UserError` where the value of an option cannot be used."""


class Scorer(Protocol):
    """What an app says of how its models predict.

    `load` and `collate` run in processes that read ahead, `predict` in the one that has the network.

    Attributes:
        network: Computes what `predict` needs.
        columns: Names of what a prediction's `row` gives.
        suffixes: Of the files that it takes from a folder, in lower case.
        inputs: Columns of a table that an item is made of, by what they are: "path" for its file, "part" for which of
            the file's things is meant, from 0, or "page", from 1 (then "scan.pdf#3" in a path is its third page), other
            names for `Item.values`; of several spellings the first one that the table has is taken.
        batch_size: How many items go through the network together, unless the user says otherwise.
    """

    network: Network
    columns: Sequence[str]
    suffixes: Sequence[str]
    inputs: Mapping[str, Sequence[str]]
    batch_size: int

    def items(self, path: Path) -> Sequence[Item]:
        """What a file holds: one item, or several; raises `UserError` where it cannot be read or holds nothing."""

    def load(self, item: Item) -> Any:
        """The item, read and prepared; raises `UserError` where it cannot be used."""

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of what `load` gave."""

    def predict(self, batch: Any) -> Sequence[Prediction]:
        """Predictions for the samples of a batch, in their order."""

    def save(self, item: Item, prediction: Any, folder: Path) -> None:
        """Write the files that belong to a prediction, such as a mask, into `folder`; most apps have none."""

    def examples(self) -> Sequence[Mapping[str, Tensor]]:
        """Inputs at the edges of what the network takes, after one in the middle; exports are tried on them."""


@runtime_checkable
class Forewarning(Protocol):
    """A scorer with something to say before a job, such as that texts are cut; most have nothing."""

    def forewarn(self, items: Sequence[Item]) -> Sequence[str]:
        """What people should know, seeing what the job begins with."""


@runtime_checkable
class FolderScorer(Protocol):
    """A scorer for which a folder can be what a file is for others, such as one of DICOM slices."""

    def takes(self, folder: Path) -> bool:
        """Whether `items` has something to say of a folder, besides what the folders in it hold."""


@runtime_checkable
class JobScorer(Protocol):
    """A scorer that also sees a job as a whole."""

    def before(self, items: Iterable[Item], *, files: Path | None, strict: bool) -> None:
        """Look at all items before the first is predicted, in every process of the job.

        Args:
            items: The different ones, as far as they are known to be items.
            files: Where `save` will write; None: it is not called.
            strict: Whether one that cannot be used is an error.

        Raises:
            UserError: They cannot be predicted together, or `strict` and what can be told of one at once.
        """

    def after(self, output: Path) -> None:
        """Write what goes with the whole table `output`, which is there; the first process calls it."""


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
        source: The run's folder, whose best checkpoint is taken; a checkpoint; `s3://bucket/key` of one; or a folder
            that `quartet export` or an ensemble experiment wrote.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        options: The app's own, by name, as texts; it says itself what they may be.
        network: What computes the network of an export: None, torch with the file of weights; "onnx", ONNX Runtime;
            "pt2", the exported program, which is code: only of exports that you trust as you trust a program.

    Raises:
        UserError: There is no such run, it is damaged, unsafe, of an app or a version that is not here, or an option
            is unknown or has no sensible value.
    """
    path, where = stored_file(str(source)), pick_device(device)
    if is_remote(source):
        _fetch_decision(str(source))
    if (path / ABOUT).is_file():
        return _exported(path, where, options or {}, network)
    if (path / ENSEMBLE).is_file():
        return _ensemble(path, where)
    if network is not None:
        raise UserError(f"{path}: is no export, and only those have a network for {network}; quartet export writes one")
    app, run = read_run_checkpoint(_checkpoint(path), load_app)
    identity: dict[str, Any] = {"app": app.name, "weights": run.digest, "options": dict(options or {})}
    identity["decision"] = None if run.decision is None else run.decision.identity
    if app.scorer is not None:
        made = app.scorer(run, where, _known(options or {}, app))
        return Predictor(app=app, scorer=made, source=run.path, about={}, identity=identity)
    use = _use_of(app, run.path)
    about = {**use.describe(run), "decision": None if run.decision is None else run.decision.model_dump(mode="json")}
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
        scorer = use.make_scorer(note.about, found, _known(options, app))
    identity = {"app": app.name, "export": note.digest, "network": network, "options": dict(options)}
    return Predictor(app=app, scorer=scorer, source=folder, about=note.about, identity=identity)


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


def decision_of(about: Mapping[str, Any]) -> Decision | None:
    """The decision of the run that a scorer is made for; `load_run` puts it beside what the app describes."""
    return None if about.get("decision") is None else Decision.model_validate(about["decision"])


def _use_of(app: App[Any], source: Path) -> Use:
    if app.use is None:
        raise UserError(f"{source}: the app '{app.name}' does not say how it is put to use (`App.use`)")
    use: Use = app.use()
    return use


def _checkpoint(path: Path) -> Path:
    """The checkpoint itself, or the best one of a run's folder."""
    if not path.is_dir():
        return path
    if found := best_checkpoint(path / "checkpoints") or best_checkpoint(path):
        return found
    if inner := sorted({run_folder(p) for p in path.glob("*/*/checkpoints/*.pth")}):
        raise UserError(f"{path}: holds several runs; name one of them, such as {inner[0]}")
    raise UserError(f"{path}: no checkpoint in this folder; expected a run, with checkpoints/best_model.pth")


def _known(options: Mapping[str, str], app: App[Any]) -> dict[str, str]:
    """The options, all of which the app has."""
    for name in options:
        if name not in app.options:
            known = ", ".join(app.options) or "none"
            raise UserError(f"{app.name} has no option '{name}'{nearest(name, app.options)}; it has: {known}")
    return dict(options)
