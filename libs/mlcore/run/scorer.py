"""What an app says of how its models are put to use: what an input is, how it is read, what the network's outputs mean.

`mlcore.run.predictor` puts the same face before every app's `Scorer`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.run.decision import DECISION, REVIEW, Decision
from mlcore.run.networks import Network, Signature
from mlcore.run.restore import RunCheckpoint

__all__ = [
    "FURTHER",
    "Bundling",
    "ClassPrediction",
    "FolderScorer",
    "Forewarning",
    "Ignoring",
    "Item",
    "JobScorer",
    "Prediction",
    "Scorer",
    "Showing",
    "Shown",
    "Use",
    "decision_of",
]

FURTHER = "path:"
"""What the name of a value begins with that is a file."""


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


@dataclass(frozen=True, kw_only=True)
class Shown:
    """How a prediction is shown to people, besides its row.

    Attributes:
        answer: It in a few words, such as a class or "12.3 mL".
        review: Whether a person should look at it.
        bars: Shares from 0 to 1 by name, in groups by what they are: probabilities, weights.
        pictures: What the model saw, a page or the slices of a volume: uint8 [H, W, 3] or [H, W], each drawn when it is
            asked for.
        overlays: What it found there, uint8 [H, W, 4]; none, or one for each picture.
        overlaid: What these are called.
        first: Number of the picture to begin with.
        curves: Or what it saw of a sequence: values over time by name of the channel, [M] each; NaN is a gap.
        texts: Or what it read: by name its pieces, each with how much it counts, from 0 to 1.
        files: What people may keep, such as a mask: writes the file, by its name.
        notes: What else people should know, in sentences.
    """

    answer: str
    review: bool = False
    bars: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    pictures: Sequence[NDArray[np.uint8]] = ()
    overlays: Sequence[NDArray[np.uint8]] = ()
    overlaid: str = "mask"
    first: int = 0
    curves: Mapping[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[tuple[str, float]]] = field(default_factory=dict)
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    notes: Sequence[str] = ()


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

    def shown(self, **seen: Any) -> Shown:
        """Class and probabilities for people; `seen` is what else `Shown` takes, such as pictures."""
        chances = dict(zip(self.class_names, self.probabilities.tolist(), strict=True))
        return Shown(answer=self.predicted, review=bool(self.review), bars={"probability": chances}, **seen)

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
        """What the scorer of a run needs beside the network: plain values, which travel with an export.

        "decision" is the run's, unless it is described here; "files" are texts by name, own files of an export.
        """

    def signature_of(self, about: Mapping[str, Any]) -> Signature:
        """Inputs and outputs of the network; `about` is what `describe` gave, here and below."""

    def make_module(self, about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
        """The network with its weights, in evaluation mode; `source` is the file that they are of, for messages."""

    def make_scorer(self, about: Mapping[str, Any], network: Network, options: Mapping[str, str]) -> "Scorer":
        """The scorer; raises `UserError` where the value of an option cannot be used."""


@runtime_checkable
class Bundling(Protocol):
    """A `Use` of models that MONAI can run."""

    def write_bundle(self, about: Mapping[str, Any], folder: Path) -> None:
        """Write all of a MONAI bundle but `models/model.pt2`, its program; `UserError` where it cannot be one."""


class Scorer(Protocol):
    """What an app says of how its models predict.

    `load` and `collate` run in processes that read ahead, `predict` in the one that has the network.

    Attributes:
        network: Computes what `predict` needs.
        columns: Names of what a prediction's `row` gives.
        suffixes: Of the files that it takes from a folder, in lower case.
        inputs: Columns of a table that an item is made of, by what they are: "path" for its file, "part" for which of
            the file's things is meant, from 0, or "page", from 1 (then "scan.pdf#3" in a path is its third page), other
            names for `Item.values`; of several spellings the first one that the table has is taken. A value whose name
            begins with "path:" is that of a file, too, as an absolute path, unless the cell begins with "[".
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
class Ignoring(Protocol):
    """A scorer of an app whose models do not all look at the same things.

    Attributes:
        ignored: Columns that others of its models look at and this one does not.
    """

    ignored: Sequence[str]


@runtime_checkable
class FolderScorer(Protocol):
    """A scorer for which a folder can be what a file is for others, such as one of DICOM slices."""

    def takes(self, folder: Path) -> bool:
        """Whether `items` has something to say of a folder, besides what the folders in it hold."""


@runtime_checkable
class Showing(Protocol):
    """A scorer that has something to show of a prediction; of others people see the row."""

    def show(self, item: Item, prediction: Any, /) -> Shown:
        """What the model saw and found."""


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


def decision_of(about: Mapping[str, Any]) -> Decision | None:
    """The decision of the run that a scorer is made for; `load_run` puts it beside what the app describes."""
    return None if about.get("decision") is None else Decision.model_validate(about["decision"])
