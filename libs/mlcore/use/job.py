"""Scoring as a job: inputs go through a model shard by shard, and a job that was killed goes on where it was.

Beside the output lies a folder with a file for each shard that is done and `job.json`, which says of what job they are.
The batches are those of one process always: neither a kill nor the number of processes changes a bit of what comes out.
Once all shards are there, they become the output and the folder goes.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.console import with_progress
from mlcore.base.distributed import World, barrier
from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder, write_json, write_text
from mlcore.base.reading import reading
from mlcore.data.loader import BatchLoader, worker_count
from mlcore.data.order import EpochOrder
from mlcore.run.predictor import Predictor
from mlcore.run.scorer import Forewarning, Item, JobScorer, Scorer
from mlcore.use.inputs import Inputs, Once
from mlcore.use.writing import write_table

__all__ = ["Done", "Job", "run_job"]

_log = logging.getLogger(__name__)

_SHARD = 4096  # inputs at most, but whole batches
_SHARDS = 1000  # of a smaller job: what a kill can cost is a thousandth of it, or a batch, such as one volume
_LOOKED_AT = 10_000  # inputs, for what is said before the work
_TOLD = 20  # inputs that cannot be used; the table has all of them
_JOB = "job.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be predicted, how, and where the answers go.

    Attributes:
        predictor: The model.
        inputs: What it predicts.
        output: The table, .csv, .jsonl or .parquet.
        files: Folder for files of single predictions, such as masks; None: none are written.
        batch_size: Items that go through the network together.
        workers: Processes that read ahead; "auto": what the machine has left.
        strict: Whether an input that cannot be used is an error; otherwise it is a row with the reason.
    """

    predictor: Predictor
    inputs: Inputs
    output: Path
    files: Path | None = None
    batch_size: int
    workers: Any = "auto"
    strict: bool = False

    @property
    def folder(self) -> Path:
        """Where the shards are until all are there."""
        return self.output.with_name(f"{self.output.name}.parts")


@dataclass
class Done:
    """What became of a job.

    Attributes:
        rows: Rows of the output.
        predicted: Different inputs that went through the network.
        problems: Rows without a prediction.
        first: The reason of the first of these.
    """

    rows: int = 0
    predicted: int = 0
    problems: int = 0
    first: str = ""


@dataclass(frozen=True)
class Batch:
    """What a process that reads ahead makes of some items.

    Attributes:
        data: What `Scorer.collate` made of those that can be used; None where there is none.
        items: All of them, in order; None for those that are no item.
        problems: Why some cannot be used, by place.
    """

    data: Any
    items: Sequence[Item | None]
    problems: Mapping[int, str] = field(default_factory=dict)


def run_job(job: Job, *, world: World | None = None) -> Done | None:
    """Do a job, or what is left of it; every process of `world` calls it.

    Returns:
        What came out; None on other processes than the first.

    Raises:
        UserError: `strict`, and an input cannot be used; there is an output, or shards, of another job; or the disk is
            full. What is done stays.
        Interrupted: A signal came; the same command goes on.
    """
    world = world or World()
    once = Once(job.inputs, strict=job.strict)
    scorer = job.predictor.scorer
    if isinstance(scorer, JobScorer):
        scorer.before(_usable(once), files=job.files, strict=job.strict)
    if world.is_main:
        _begin(job, once)
        _forewarn(job)
    barrier()
    shards = _shards(len(once.places), job.batch_size)
    missing = [number for number in range(len(shards)) if not _file(job, number).is_file()]
    if world.is_main and len(missing) < len(shards):
        _log.info("going on: %d of %d shards are there", len(shards) - len(missing), len(shards))
    _score(job, once, shards, [number for number in missing if number % world.size == world.rank])
    barrier()
    return _finish(job, once, shards) if world.is_main else None


def _usable(once: Once) -> Iterator[Item]:
    """The different inputs that are items."""
    for place in once.places.tolist():
        with suppress(UserError):
            yield once.inputs.item(place)


def _shards(count: int, batch_size: int) -> list[range]:
    """Places of the inputs of each shard."""
    wanted = max(1, min(_SHARD, -(-count // _SHARDS)))
    size = -(-wanted // batch_size) * batch_size
    return [range(start, min(count, start + size)) for start in range(0, count, size)]


def _file(job: Job, number: int) -> Path:
    return job.folder / f"{number:06d}.jsonl"


def _begin(job: Job, once: Once) -> None:
    """Make the folder of the shards, or see that it is of this job."""
    asked = {
        "model": dict(job.predictor.identity),
        "inputs": {"count": len(job.inputs), "digest": once.digest},
        "batch_size": job.batch_size,
        "files": None if job.files is None else str(job.files),
    }
    note = job.folder / _JOB
    if note.is_file():
        with reading(note, "the note of a scoring job"):
            known = json.loads(note.read_text(encoding="utf-8"))
            differing = [key for key in asked if known.get(key) != json.loads(json.dumps(asked[key]))]
        if differing:
            raise UserError(
                f"{job.folder}: holds what is done of another job (another {', '.join(differing)}); give another "
                f"--output, or remove the folder"
            )
        return
    if job.folder.exists() and any(job.folder.iterdir()):
        raise UserError(f"{job.folder}: is there and of no scoring job; give another --output, or remove the folder")
    write_json(ensure_folder(job.folder) / _JOB, asked)


def _forewarn(job: Job) -> None:
    """Say before the work what the app has to say of the first inputs; to look at all would be work, too."""
    scorer, first = job.predictor.scorer, list[Item]()
    if not isinstance(scorer, Forewarning):
        return
    for place in range(min(_LOOKED_AT, len(job.inputs))):
        with suppress(UserError):
            first.append(job.inputs.item(place))
    which = "" if len(job.inputs) <= _LOOKED_AT else f"the first {_LOOKED_AT:,} inputs: "
    for warning in scorer.forewarn(first):
        _log.warning("%s%s", which, warning)


def _score(job: Job, once: Once, shards: Sequence[range], numbers: Sequence[int]) -> None:
    """Write the files of some shards."""
    places = [place for number in numbers for place in shards[number]]
    if not places:
        return
    reader = _Reader(job.inputs, job.predictor.scorer, once.places[np.array(places)])
    workers = worker_count(job.workers, samples=len(places), batch_size=job.batch_size)
    loader = BatchLoader(
        reader, EpochOrder(len(places), job.batch_size, shuffle=False), collate=reader.collate, num_workers=workers
    )
    batches = with_progress(loader.epoch(0), total=len(loader), what="batches")
    told = 0
    for number in numbers:
        lines: list[str] = []
        while len(lines) < len(shards[number]):
            batch: Batch = next(batches).data
            for reason in islice(batch.problems.values(), max(0, _TOLD - told)):
                _log.warning("left out: %s", reason)
            told += len(batch.problems)
            lines += _answers(job, batch)
        write_text(_file(job, number), "".join(f"{line}\n" for line in lines))


def _answers(job: Job, batch: Batch) -> Iterator[str]:
    """What is written of a batch: the values of a prediction, or the reason why there is none, as JSON."""
    scorer = job.predictor.scorer
    found = iter(scorer.predict(batch.data) if batch.data is not None else ())
    for place, item in enumerate(batch.items):
        reason = batch.problems.get(place)
        if reason is None and item is not None:
            prediction = next(found)
            if job.files is not None:
                scorer.save(item, prediction, job.files)
            yield json.dumps(list(prediction.row()), ensure_ascii=False)
            continue
        if job.strict:
            raise UserError(str(reason))
        yield json.dumps({"problem": reason}, ensure_ascii=False)


class _Reader:
    """The data set of a job: items, loaded, or the reasons why they cannot be."""

    def __init__(self, inputs: Inputs, scorer: Scorer, places: NDArray[np.int64]) -> None:
        self._inputs, self._scorer, self._places = inputs, scorer, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Item | None, Any, str]:
        item = None
        try:
            item = self._inputs.item(int(self._places[index]))
            return item, self._scorer.load(item), ""
        except UserError as error:
            name = "" if item is None else item.name
            return item, None, str(error) if not name or name in str(error) else f"{name}: {error}"

    def collate(self, read: Sequence[tuple[Item | None, Any, str]]) -> Batch:
        """A batch of what can be used."""
        samples = [sample for _, sample, reason in read if not reason]
        problems = {place: reason for place, (_, _, reason) in enumerate(read) if reason}
        return Batch(self._scorer.collate(samples) if samples else None, [item for item, _, _ in read], problems)


def _finish(job: Job, once: Once, shards: Sequence[range]) -> Done:
    """Make the output of the shards, a row for each input."""
    answers = _Answers([_file(job, number) for number in range(len(shards))])
    done = Done(rows=len(job.inputs), predicted=len(once.places))
    columns: dict[str, type] = dict.fromkeys(job.inputs.columns, str)
    kinds, width = once.kinds, len(job.predictor.scorer.columns)
    example = next((found[0] for found in map(answers.__getitem__, range(len(answers))) if found[0]), [""] * width)
    for name, value in zip((*job.predictor.scorer.columns, "problem"), (*example, ""), strict=True):
        columns[_free(name, columns)] = type(value)

    def rows() -> Iterator[Sequence[object]]:
        for place in range(len(job.inputs)):
            values, reason = answers[int(kinds[place])]
            if reason:
                reason = _renamed(reason, job.inputs, once.places[kinds[place]], place)
                done.problems += 1
                done.first = done.first or reason
            yield [*job.inputs.record(place), *(values or [None] * width), reason]

    write_table(job.output, columns, rows())
    write_json(job.output.with_name(f"{job.output.name}.json"), _provenance(job, done))
    if isinstance(job.predictor.scorer, JobScorer):
        job.predictor.scorer.after(job.output)
    shutil.rmtree(job.folder)
    return done


def _renamed(reason: str, inputs: Inputs, first: int, place: int) -> str:
    """Why an input cannot be used, where an equal one before it was looked at and is named in its place."""
    if first == place:
        return reason
    here, there = inputs.item(place).name, inputs.item(first).name
    return f"{here}{reason.removeprefix(there)}" if reason.startswith(there) else reason


def _free(name: str, taken: Mapping[str, type]) -> str:
    """A name for a column that is not there yet."""
    while name in taken:
        name = f"model_{name}"
    return name


def _provenance(job: Job, done: Done) -> dict[str, Any]:
    return {"model": dict(job.predictor.identity), "source": str(job.predictor.source), **asdict(done)}


class _Answers:
    """The lines of all shards, by number.

    Args:
        files: Of the shards, in order.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        starts: list[NDArray[np.int64]] = []
        for path in files:
            ends = np.flatnonzero(np.frombuffer(path.read_bytes(), dtype=np.uint8) == ord("\n")) + 1
            starts.append(np.concatenate([[0], ends[:-1]]))
        self._offsets = np.concatenate([*starts, []]).astype(np.int64)
        self._first = np.cumsum([0, *map(len, starts)])
        self._opened, self._content = -1, b""  # rows mostly follow one another

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> tuple[list[Any] | None, str]:
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        if shard != self._opened:
            self._opened, self._content = shard, self._files[shard].read_bytes()
        start = int(self._offsets[number])
        found = json.loads(self._content[start : self._content.index(b"\n", start)])
        return (None, found["problem"]) if isinstance(found, dict) else (found, "")
