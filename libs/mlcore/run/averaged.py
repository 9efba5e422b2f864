"""Several runs at work as one: each reads an input as it was trained, and what they predict is averaged."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mlcore.base.errors import UserError
from mlcore.remote.hub import HUB
from mlcore.remote.s3 import is_remote
from mlcore.run.exported import ABOUT
from mlcore.run.final_evaluation import best_checkpoint
from mlcore.run.predictor import ENSEMBLE, Predictor, load_run, runs_within
from mlcore.run.scorer import Forewarning, Item, Prediction, Scorer

__all__ = ["Averaging", "is_run", "load_runs"]

_CHECKPOINTS = (".pth", ".ckpt")
_NOTES = ("run.json", ABOUT, ENSEMBLE)  # of a run, an export, an ensemble


@runtime_checkable
class Averaging(Scorer, Protocol):
    """A scorer whose predictions can be averaged with those of other runs."""

    def mean(self, predictions: Sequence[Any], /) -> Prediction:
        """One prediction of several, of the same input."""


def load_runs(
    sources: Sequence[str | Path],
    *,
    device: str = "auto",
    options: Mapping[str, str] | None = None,
    network: str | None = None,
) -> Predictor:
    """The predictor of one run, or of several whose predictions are averaged.

    Args:
        sources: As `load_run` takes them, at least one; a job's folder stands for its last runs, or for its folds'.
        device: As there.
        options: As there, for all of them.
        network: Likewise.

    Raises:
        UserError: As `load_run`, or runs are of different apps or outputs, or their app has nothing to average.
    """
    sources = [run for source in sources for run in _each(source)]
    loaded = [load_run(source, device=device, options=options, network=network) for source in sources]
    first = loaded[0]
    if len(loaded) == 1:
        return first
    for source, other in zip(sources, loaded, strict=True):
        _check_together(sources[0], source, first, other)
    return Predictor(
        app=first.app,
        scorer=_Averaged([one.scorer for one in loaded]),
        source=first.source,
        about={},
        identity={"app": first.app.name, "runs": [dict(one.identity) for one in loaded]},
    )


def _each(source: str | Path) -> Sequence[str | Path]:
    if str(source).startswith(HUB) or is_remote(source):
        return [source]
    return runs_within(Path(source))


def is_run(text: str) -> bool:
    """Whether a path on a command line is that of a run or a checkpoint, not of something to predict."""
    if Path(text).suffix.lower() in _CHECKPOINTS or text.startswith(HUB):
        return True
    folder = Path(text)
    found = best_checkpoint(folder / "checkpoints") or best_checkpoint(folder)
    return found is not None or runs_within(folder) != [folder] or any((folder / name).is_file() for name in _NOTES)


def _check_together(path: str | Path, other_path: str | Path, one: Predictor, other: Predictor) -> None:
    if one.app.name != other.app.name:
        raise UserError(
            f"{path} is a run of {one.app.name}, {other_path} of {other.app.name}; give runs of one app to average them"
        )
    if not isinstance(other.scorer, Averaging):
        raise UserError(f"{path}, {other_path}: predictions of {one.app.name} cannot be averaged; give one run")
    pairs = zip_longest(one.scorer.columns, other.scorer.columns, fillvalue="nothing")
    if differing := next((pair for pair in pairs if pair[0] != pair[1]), None):
        raise UserError(
            f"{path} and {other_path} cannot be averaged: where the first gives {differing[0]}, the second gives "
            f"{differing[1]}; runs need the same classes in the same order, and decisions of one kind"
        )


class _Averaged:
    """A `Scorer` of several; for one input a sample is what each of them makes of it."""

    def __init__(self, members: Sequence[Any]) -> None:
        self._members: Sequence[Averaging] = members
        first = self._members[0]
        self.columns, self.suffixes = first.columns, first.suffixes
        self.inputs: Mapping[str, Sequence[str]] = {
            name: columns for member in reversed(members) for name, columns in member.inputs.items()
        }
        self.batch_size = min(member.batch_size for member in members)
        self.network, self.examples = first.network, first.examples
        self.items, self.save, self.mean = first.items, first.save, first.mean
        for name in ("takes", "before", "after", "show"):  # of `FolderScorer`, `JobScorer` and `Showing`
            if hasattr(first, name):
                setattr(self, name, getattr(first, name))

    def forewarn(self, items: Sequence[Item]) -> list[str]:
        """What they have to say, each thing once."""
        speaking = [member for member in self._members if isinstance(member, Forewarning)]
        return list(dict.fromkeys(warning for member in speaking for warning in member.forewarn(items)))

    def load(self, item: Item) -> list[Any]:
        """One after another, so that what an app remembers of the last file it decoded serves all of them."""
        return [member.load(item) for member in self._members]

    def collate(self, samples: Sequence[Sequence[Any]]) -> list[Any]:
        """A batch for each."""
        return [member.collate(own) for member, own in zip(self._members, zip(*samples, strict=True), strict=True)]

    def predict(self, batch: Sequence[Any]) -> list[Prediction]:
        """The means."""
        answers = [member.predict(own) for member, own in zip(self._members, batch, strict=True)]
        return [self.mean(predictions) for predictions in zip(*answers, strict=True)]
