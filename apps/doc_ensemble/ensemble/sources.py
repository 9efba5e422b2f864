"""Where the members of an ensemble come from: checkpoints, runs, their snapshots, the folds of a cross-validation."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.config.compose import Composed
from mlcore.remote.s3 import stored_file
from mlcore.run.final_evaluation import best_checkpoint
from quartet.apps.doc_ensemble.config import DocConfig, EnsembleConfig, MemberConfig
from quartet.apps.doc_ensemble.ensemble.folds import OUT_OF_FOLD, fold_folders
from quartet.apps.doc_ensemble.ensemble.out_of_fold import OutOfFold, join_members, read_out_of_fold
from quartet.apps.doc_ensemble.restore import CheckpointMember
from quartet.apps.doc_ensemble.splits import load_splits

__all__ = ["Source", "data_of", "find_sources", "out_of_fold", "trained_on"]

_log = logging.getLogger(__name__)

_WHERE = ("source", "data_dir", "train_csv", "val_csv", "test_csv", "generated_dir")
"""Settings that say which pages are meant; the others of the section say how they are taken."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One member.

    Attributes:
        name: What it is called in files and tables.
        parts: The checkpoints whose probabilities it is the mean of; one, or those of a cross-validation's folds.
        weight: As configured.
        job: The cross-validation that it is, or is a fold of; None: neither.
        whole: Whether it is the whole of `job`, so that its out-of-fold predictions are the member's.
    """

    name: str
    parts: tuple[CheckpointMember, ...]
    weight: float = 1.0
    job: Path | None = None
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A member before its checkpoints are opened; without a name it gets the model's, and `suffix`."""

    name: str
    files: tuple[Path, ...]
    weight: float = 1.0
    suffix: str = ""
    job: Path | None = None
    whole: bool = False


def find_sources(settings: EnsembleConfig) -> tuple[Source, ...]:
    """The members that `models` lists, or those in the folder `run`.

    Args:
        settings: With one of the two.

    Raises:
        UserError: Files are missing (all of them are told), a cross-validation is not finished, or a checkpoint cannot
            be used.
    """
    if settings.models:
        places = list(_listed(settings.models))
    elif settings.run is not None:
        places = list(_in_folder(settings.run, together=settings.method == "stacking"))
    else:
        raise UserError("the ensemble has no members; list their checkpoints under ensemble.models")
    taken: set[str] = {place.name for place in places if place.name}
    sources = []
    for place in places:
        parts = tuple(CheckpointMember(place.name, path) for path in place.files)
        name = place.name or _unused(f"{parts[0].config.model.title}{place.suffix}", taken)
        for number, part in enumerate(parts, 1):
            part.name = name if len(parts) == 1 else f"{name}, fold {number}"
        sources.append(Source(name=name, parts=parts, weight=place.weight, job=place.job, whole=place.whole))
    return tuple(sources)


def _listed(models: Sequence[MemberConfig]) -> Iterator[_Place]:
    missing = []
    for member in models:
        path = stored_file(member.checkpoint_path)
        if path.is_dir() and fold_folders(path):
            yield _job(path, name=member.name, weight=member.weight)
            continue
        file = _checkpoint(path)
        if file is None:
            words = "a folder without checkpoints" if path.is_dir() else "no such file"
            missing.append(f"{member.name or 'a member'}: {member.checkpoint_path} ({words})")
            continue
        yield _Place(name=member.name, files=(file,), weight=member.weight)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(models)} members of the ensemble are missing:\n  " + "\n  ".join(missing) + "\n"
            "Give each checkpoint_path a checkpoint, s3://bucket/key, or the folder of a run or a cross-validation"
        )


def _checkpoint(path: Path) -> Path | None:
    """The file itself, or the best checkpoint of a run."""
    if not path.is_dir():
        return path if path.is_file() else None
    inner = path / "checkpoints"
    return best_checkpoint(inner if inner.is_dir() else path)


def _in_folder(folder: Path, *, together: bool) -> Iterator[_Place]:
    """The members in one folder; `together`: a cross-validation's folds are one."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder (ensemble.run: that of a run or of a cross-validation)")
    if fold_folders(folder):
        job = _job(folder)
        if together:
            yield job
            return
        for number, file in enumerate(job.files, 1):
            yield _Place(name="", files=(file,), suffix=f"_fold_{number}", job=folder)
        return
    snapshots = sorted((folder / "checkpoints").glob("epoch_*.pth"))
    for file in snapshots:
        yield _Place(name="", files=(file,), suffix=f"_{file.stem}")
    best = best_checkpoint(folder / "checkpoints")
    if not snapshots and best is None:
        raise UserError(f"{folder}: neither a run with checkpoints nor a cross-validation (ensemble.run)")
    if not snapshots and best is not None:
        _log.warning("%s is a single run without snapshots: an ensemble of one member gains nothing", folder)
        yield _Place(name="", files=(best,))


def _job(folder: Path, *, name: str = "", weight: float = 1.0) -> _Place:
    files = [best_checkpoint(fold / "checkpoints") for fold in fold_folders(folder)]
    found = tuple(file for file in files if file is not None)
    if not (folder / OUT_OF_FOLD).is_file() or len(found) < len(files):
        raise UserError(
            f"{folder}: this cross-validation is not finished ({len(found)} of its {len(files)} folds so far have a "
            f"checkpoint, {OUT_OF_FOLD} comes last); start the command that trains it again, and it goes on"
        )
    return _Place(name=name, files=found, weight=weight, job=folder, whole=True)


def _unused(name: str, taken: set[str]) -> str:
    numbered = (f"{name}_{number}" for number in range(2, len(taken) + 3))
    free = next(candidate for candidate in (name, *numbered) if candidate not in taken)
    taken.add(free)
    return free


def data_of(composed: Composed[DocConfig], sources: Sequence[Source]) -> DocConfig:
    """The configuration that says which pages are predicted.

    That of the first member, so that the pages held out from its training are those that are predicted, with what the
    user gave in place of it: another place of the pages replaces all that says where they are. Pages may be as large as
    any member allows, and are decoded as large as the one that wants most. Networks compute as the experiment says.

    Args:
        composed: The experiment's.
        sources: The members.
    """
    configs = [part.config for source in sources for part in source.parts]
    largest = max(config.data.max_megapixels for config in configs)
    sides = [config.data.decode_side for config in configs]
    wanted = {"max_megapixels": largest, "decode_side": None if None in sides else max(filter(None, sides))}
    given, known = composed.config.data, configs[0].data.model_copy(update=wanted)
    names = [name for name in type(given).model_fields if composed.was_given(f"data.{name}")]
    if any(name in _WHERE for name in names):
        names += _WHERE
    update = {name: getattr(given, name) for name in names if name != "fit"}  # how a network's pages are fitted is its
    train = configs[0].train.model_copy(update={"precision": composed.config.train.precision})
    return configs[0].model_copy(update={"data": known.model_copy(update=update), "train": train})


def out_of_fold(sources: Sequence[Source]) -> OutOfFold | None:
    """The out-of-fold predictions of all members; None where one is no whole cross-validation.

    Raises:
        UserError: They cannot be read, or do not fit together.
    """
    jobs = [source.job for source in sources if source.whole and source.job is not None]
    if len(jobs) < len(sources):
        return None
    read = [read_out_of_fold(job / OUT_OF_FOLD) for job in jobs]
    return join_members(read, member_names=[source.name for source in sources])


def trained_on(sources: Sequence[Source]) -> dict[str, set[str]]:
    """Digests of the pages that members were trained on (`Page.digest`).

    Checkpoints keep them. For older ones, a cross-validation has the names of its pages (`Page.key`), and the data of a
    run is split anew; where it is not there any more, nothing is known.

    Args:
        sources: The members.
    """
    found: dict[str, set[str]] = {}
    by_split: dict[str, set[str]] = {}
    for source in sources:
        kept = [part.trained_on for part in source.parts]
        if all(digests is not None for digests in kept):
            found[source.name] = set().union(*(digests or () for digests in kept))
        elif source.job is not None:
            found[source.name] = set(read_out_of_fold(source.job / OUT_OF_FOLD).pages)
        else:
            config = source.parts[0].config
            key = repr(config.data)
            if key not in by_split:
                by_split[key] = _split_anew(config)
            found[source.name] = by_split[key]
    return found


def _split_anew(config: DocConfig) -> set[str]:
    try:
        return {page.digest for page in load_splits(config).train}
    except UserError as error:
        _log.warning("which pages a member was trained on cannot be told any more: %s", error)
        return set()
