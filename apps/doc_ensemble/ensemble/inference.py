"""The predictions of all members and views of an ensemble, in one pass over the pages.

The naive way decodes each page once per member and view. Here it is decoded once: from it comes one small array for
each input format that some member has, all views are made of that on the device, and all members of that format share
them. Reading runs ahead in threads while the members compute.

With `low_memory` only one member is in memory at a time. Its pages are then needed once per member; they are decoded
once all the same, and their small arrays wait in a nameless file (which vanishes with the process, however it ends) of
pages x height x width x channels bytes per input format: 10,000 grey pages of 256 x 192 take 0.5 GB. Measured on JPEG
pages 384 pixels high: decoding and fitting takes 2.4 ms a page, storing 0.07 ms, reading back 0.02 ms.
"""

import logging
import math
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlcore.base.console import with_progress
from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder, format_bytes, free_bytes
from mlcore.training.engine import Precision, autocast
from quartet.apps.doc_ensemble.ensemble.members import InputFormat, Member, Network, check_members, format_of
from quartet.apps.doc_ensemble.ensemble.views import IDENTITY, View

__all__ = ["PagePredictions", "Pages", "predict_pages"]

_log = logging.getLogger(__name__)

Item = TypeVar("Item")
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Pages(Generic[Item]):
    """What is to be predicted, and how it becomes an input.

    Attributes:
        items: One for each page.
        read: Gives what all formats are made of; called once per page, from several threads. It raises `UserError`
            where the page cannot be used.
        prepare: Makes that fit an input format: uint8 [height, width, channels]; called likewise.
        skip_bad: Leave pages that cannot be read out, with a warning; otherwise the first one ends the pass.
        workers: Threads that read ahead.
    """

    items: Sequence[Item]
    read: Callable[[Item], Any]
    prepare: Callable[[Any, InputFormat], Pixels]
    skip_bad: bool = False
    workers: int = 2


@dataclass(frozen=True, kw_only=True)
class PagePredictions:
    """What the members said.

    Attributes:
        probabilities: float32 [K, V, N, C]: members, views, pages, classes.
        rows: int64 [N] places in `Pages.items` of the pages that could be read, ascending.
        problems: Place to message, for those that could not.
        class_names: C.
        member_names: K.
        views: V; the first is the page as it is.
        member_seconds: float64 [K] seconds per page of each member, all views together.
        reading_seconds: Seconds per page of reading and preparing it, divided by the threads that do it.
        seconds: Of the whole pass, loading the members included.
    """

    probabilities: NDArray[np.float32]
    rows: NDArray[np.int64]
    problems: dict[int, str]
    class_names: tuple[str, ...]
    member_names: tuple[str, ...]
    views: tuple[View, ...]
    member_seconds: NDArray[np.float64]
    reading_seconds: float
    seconds: float

    @property
    def images_per_second(self) -> NDArray[np.float64]:
        """Pages per second of each member [K], reading left out."""
        speeds: NDArray[np.float64] = 1 / np.maximum(self.member_seconds, 1e-12)
        return speeds

    @property
    def view_weights(self) -> NDArray[np.float64]:
        """[V] as `combine.average_views` takes them."""
        return np.array([view.weight for view in self.views])


def predict_pages(
    members: Sequence[Member],
    pages: Pages[Any],
    *,
    views: Sequence[View] = (IDENTITY,),
    device: torch.device,
    batch_size: int = 32,
    precision: Precision = "fp32",
    low_memory: bool = False,
    scratch: Path | None = None,
) -> PagePredictions:
    """Ask all members about all views of all pages.

    The answers do not depend on `low_memory`, and on `batch_size` no more than the network's arithmetic does.

    Args:
        members: At least one.
        pages: At least one.
        views: With the page as it is first; `views.with_identity`.
        device: Where the networks run.
        batch_size: Pages at a time.
        precision: What the networks compute in; `mlcore.training.engine.autocast_dtype`.
        low_memory: Hold one member at a time; see the module's docstring.
        scratch: `low_memory`: where the prepared pages wait; None: the system's folder for temporary files.

    Raises:
        UserError: Members that do not fit together, or one whose answers are not finite or not one per class; no pages,
            or one that cannot be read, or none where these are left out; no room in `scratch`.
    """
    class_names = check_members(members)
    if not len(pages.items) or not views or batch_size < 1:
        raise UserError(
            f"nothing to predict: {len(pages.items)} pages, {len(views)} views, batches of {batch_size}; each must be "
            "at least one"
        )
    begun = time.perf_counter()
    shape = len(members), len(views), len(pages.items), len(class_names)
    answers = _Answers(members, views=views, shape=shape, device=device, precision=precision)
    reader = _Reader(pages, list(dict.fromkeys(map(format_of, members))))
    with torch.inference_mode():
        if low_memory and len(members) > 1:
            _one_by_one(members, reader, answers, batch_size=batch_size, scratch=scratch)
        else:
            networks = {index: _load(member, device) for index, member in enumerate(members)}
            for places, arrays in reader.batches(batch_size):
                answers.ask(networks, places, arrays)
    if len(reader.problems) == len(pages.items):
        raise UserError(f"none of the pages can be read; the first: {min(reader.problems.items())[1]}")
    rows = np.array([place for place in range(len(pages.items)) if place not in reader.problems], dtype=np.int64)
    return PagePredictions(
        probabilities=answers.values if len(rows) == len(pages.items) else answers.values[:, :, rows],
        rows=rows,
        problems=dict(sorted(reader.problems.items())),
        class_names=class_names,
        member_names=tuple(member.name for member in members),
        views=tuple(views),
        member_seconds=answers.seconds / len(rows),
        reading_seconds=reader.seconds / len(pages.items) / pages.workers,
        seconds=time.perf_counter() - begun,
    )


def _one_by_one(
    members: Sequence[Member], reader: "_Reader", answers: "_Answers", *, batch_size: int, scratch: Path | None
) -> None:
    folder = ensure_folder(Path(scratch or tempfile.gettempdir()))
    count = len(reader.pages.items)
    with ExitStack() as files:
        stored = {
            shape: _reserve(
                files.enter_context(tempfile.TemporaryFile(dir=folder)), (count, *shape.array_shape), folder=folder
            )
            for shape in reader.formats
        }
        for places, arrays in reader.batches(batch_size):
            for shape, array in arrays.items():
                stored[shape][places] = array
        kept = [place for place in range(count) if place not in reader.problems]
        for index, member in enumerate(members):
            networks = {index: _load(member, answers.device)}
            shape = format_of(member)
            starts = range(0, len(kept), batch_size)
            for start in with_progress(starts, total=len(starts), what=f"batches of {member.name}"):
                places = kept[start : start + batch_size]
                answers.ask(networks, places, {shape: stored[shape][places]})
            del networks
            if answers.device.type == "cuda":
                torch.cuda.empty_cache()  # the next member's largest blocks may be of other sizes


def _reserve(file: IO[bytes], shape: tuple[int, ...], *, folder: Path) -> Pixels:
    """An array in a file whose blocks are all there: writing to a map of a full disk would kill the process."""
    size = math.prod(shape)
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise UserError(
            f"{folder}: no room for {format_bytes(size)} of prepared pages, {format_bytes(free_bytes(folder))} free "
            f"({error.strerror}); make some space, choose another folder, or set ensemble.low_memory: false"
        ) from None
    return np.memmap(file, np.uint8, mode="r+", shape=shape)


def _load(member: Member, device: torch.device) -> Network:
    network = member.load(device)
    if isinstance(network, nn.Module):
        network.eval()
        # The pages lie so in memory, and convolutions on CPUs and in half precision on GPUs are quicker on it.
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


@dataclass
class _Reader:
    """Decodes and prepares pages ahead of their use, in order."""

    pages: Pages[Any]
    formats: Sequence[InputFormat]
    problems: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0

    def batches(self, size: int) -> Iterator[tuple[list[int], dict[InputFormat, Pixels]]]:
        """Places of pages, and their pixels [B, height, width, channels] in each format, without unreadable pages."""
        places: list[int] = []
        prepared: list[dict[InputFormat, Pixels]] = []
        count = len(self.pages.items)
        for place, arrays in with_progress(enumerate(self._ahead(2 * size)), total=count, what="pages"):
            if arrays is not None:
                places.append(place)
                prepared.append(arrays)
            if places and (len(places) == size or place == count - 1):
                yield places, {shape: np.stack([page[shape] for page in prepared]) for shape in self.formats}
                places, prepared = [], []

    def _ahead(self, most: int) -> Iterator[dict[InputFormat, Pixels] | None]:
        with ThreadPoolExecutor(self.pages.workers, thread_name_prefix="pages") as pool:
            items = iter(enumerate(self.pages.items))
            waiting = deque(pool.submit(self._prepare, *entry) for entry in islice(items, most))
            try:
                while waiting:
                    arrays, seconds = waiting.popleft().result()
                    waiting.extend(pool.submit(self._prepare, *entry) for entry in islice(items, 1))
                    self.seconds += seconds
                    yield arrays
            finally:
                for future in waiting:  # whoever stops early does not wait for pages that nobody wants any more
                    future.cancel()

    def _prepare(self, place: int, item: Any) -> tuple[dict[InputFormat, Pixels] | None, float]:
        begun = time.perf_counter()
        try:
            page = self.pages.read(item)
        except UserError as error:
            if not self.pages.skip_bad:
                raise
            _log.warning("left out: %s", error)
            self.problems[place] = str(error)
            return None, time.perf_counter() - begun
        arrays = {shape: self.pages.prepare(page, shape) for shape in self.formats}
        return arrays, time.perf_counter() - begun


class _Answers:
    """Collects probabilities and times."""

    def __init__(
        self,
        members: Sequence[Member],
        *,
        views: Sequence[View],
        shape: tuple[int, ...],
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.values = np.empty(shape, dtype=np.float32)  # [members, views, pages, classes]
        self.seconds = np.zeros(len(members))
        self.device = device
        self._precision: Precision = precision
        self._members, self._views = members, views

    def ask(self, networks: dict[int, Network], places: Sequence[int], arrays: dict[InputFormat, Pixels]) -> None:
        """Let networks, by their member's number, predict a batch of pages."""
        found, watches = [], []
        with autocast(self._precision, self.device):  # one for all, so that weights are cast once
            for shape, array in arrays.items():
                asked = [(index, net) for index, net in networks.items() if format_of(self._members[index]) == shape]
                original = self._to_device(array)
                for number, view in enumerate(self._views):
                    with torch.autocast(self.device.type, enabled=False):
                        # A text is the same in every view.
                        seen = original if shape.fit == "text" else view.apply(original)
                    pixels = seen.contiguous(memory_format=torch.channels_last)
                    for index, network in asked:
                        watch = _Watch(self.device)
                        logits = network(pixels)
                        watches.append((index, watch.stop()))
                        found.append((index, number, self._probabilities(index, logits, pages=len(places))))
        # Only now: a device that works by itself is never waited for before it has the whole batch's work.
        for index, number, values in found:
            self.values[index, number, places] = self._checked(index, values.cpu().numpy())
        for index, watch in watches:
            self.seconds[index] += watch.seconds()

    def _probabilities(self, index: int, logits: Tensor, *, pages: int) -> Tensor:
        expected = (pages, self.values.shape[3])
        if tuple(logits.shape) != expected:
            name = self._members[index].name
            raise UserError(f"the member {name!r} answers {tuple(logits.shape)}, not {expected}, [pages, classes]")
        return torch.softmax(logits.float(), dim=1)

    def _checked(self, index: int, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if not np.isfinite(values).all():
            raise UserError(
                f"the answers of the member {self._members[index].name!r} are not finite: its training has diverged, "
                "or it overflows in this precision; leave it out, or use bf16 or fp32"
            )
        return values

    def _to_device(self, array: Pixels) -> Tensor:
        """uint8 [B, H, W, C] to float32 [B, C, H, W] in 0..1, in memory channels last as before."""
        pixels = torch.from_numpy(array).to(self.device)  # a quarter of what floats would take on the way
        return pixels.permute(0, 3, 1, 2).float().div_(255)


class _Watch:
    """Seconds that a device works on what is asked of it between here and `stop`."""

    def __init__(self, device: torch.device) -> None:
        make: Any = torch.cuda.Event  # it has no types
        self._events = [make(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._times = [time.perf_counter()]
        if self._events:
            self._events[0].record()

    def stop(self) -> "_Watch":
        """Itself."""
        self._times.append(time.perf_counter())
        if self._events:
            self._events[1].record()
        return self

    def seconds(self) -> float:
        """Only after the device's answers were read."""
        if self._events:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        return self._times[1] - self._times[0]
