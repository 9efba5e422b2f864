"""The same samples get the same pixels with any number of workers, any batch size and any number of ranks."""

import gc
import hashlib
import multiprocessing
import subprocess
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader, worker_count
from mlcore.data.order import EpochOrder

SIZE = 50


class Pictures:
    """Constant pictures; remembers which were read in this process."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.append(index)
        return {"image": np.full((3, 4, 4), index, dtype=np.float32), "index": index}


def noise(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    flipped = sample["image"][:, :, ::-1] if rng.random() < 0.5 else sample["image"]
    return {**sample, "image": flipped + rng.normal(size=(3, 4, 4)).astype(np.float32)}


def hashes(epoch: int = 0, *, seed: int = 7, workers: int = 0, batch_size: int = 8, world_size: int = 1) -> list[str]:
    """Hash of every augmented sample in global order."""
    by_step: dict[int, list[str]] = {}
    for rank in range(world_size):
        order = EpochOrder(SIZE, batch_size, seed=seed, rank=rank, world_size=world_size)
        loader = BatchLoader(Pictures(), order, transform=noise, num_workers=workers)
        for step, batch in enumerate(loader.epoch(epoch)):
            if batch.real:
                rows = by_step.setdefault(step, [])
                rows.extend(
                    f"{int(index)}:{hashlib.sha256(image.numpy().tobytes()).hexdigest()}"
                    for image, index in zip(batch.data["image"], batch.data["index"], strict=True)
                )
    return [row for step in sorted(by_step) for row in by_step[step]]


REFERENCE = {"workers": 0, "batch_size": 8, "world_size": 1}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores, on purpose
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("world_size", [1, 2])
def test_augmented_batches_hash_equal(workers: int, batch_size: int, world_size: int) -> None:
    found = hashes(workers=workers, batch_size=batch_size, world_size=world_size)
    assert found == hashes(**REFERENCE)  # type: ignore[arg-type]
    assert len(found) == SIZE


def test_augmentation_differs_between_epochs_and_seeds() -> None:
    first = dict(row.split(":") for row in hashes(0))
    assert all(first[k] != v for k, v in (row.split(":") for row in hashes(1)))
    assert all(first[k] != v for k, v in (row.split(":") for row in hashes(0, seed=8)))


class Changing(Pictures):
    """Another picture at each place in every epoch."""

    def in_epoch(self, epoch: int, index: int) -> dict[str, Any]:
        return self[(index + 10 * epoch) % SIZE]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_set_may_change_from_epoch_to_epoch(workers: int) -> None:
    order = EpochOrder(SIZE, 8, seed=3)
    loader = BatchLoader(Changing(), order, num_workers=workers)
    for epoch in (2, 0, 1):
        read = [index for batch in loader.epoch(epoch, start=16) for index in batch.data["index"].tolist()]
        assert read == [(place + 10 * epoch) % SIZE for place in order.permutation(epoch)[16:].tolist()]


def test_resuming_reads_no_sample_before_the_position() -> None:
    pictures = Pictures()
    loader = BatchLoader(pictures, EpochOrder(SIZE, 8), transform=noise)
    whole = list(loader.epoch(1))
    pictures.read.clear()
    rest = list(loader.epoch(1, start=4 * 8))
    assert len(pictures.read) == SIZE - 4 * 8
    for resumed, uninterrupted in zip(rest, whole[4:], strict=True):
        assert torch.equal(resumed.data["image"], uninterrupted.data["image"])


def test_loading_leaves_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    for workers in (0, 1):
        list(BatchLoader(Pictures(), EpochOrder(SIZE, 8), transform=noise, num_workers=workers).epoch(0))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]


def test_empty_dataset_is_an_error() -> None:
    with pytest.raises(UserError, match="empty"):
        BatchLoader([], EpochOrder(0, 8))


@pytest.mark.parametrize(("ranks", "batch"), [(1, 24), (2, 12)])
def test_an_epoch_without_a_batch_is_an_error(ranks: int, batch: int) -> None:
    order = EpochOrder(23, batch, drop_last=True, world_size=ranks)
    with pytest.raises(UserError, match=rf"23 samples.*one batch of {batch}.*--drop_last.*--batch_size"):
        BatchLoader([0] * 23, order)
    assert len(BatchLoader([0] * 24, EpochOrder(24, batch, drop_last=True, world_size=ranks))) == 1


def test_worker_count_adapts() -> None:
    assert worker_count(3, samples=10, batch_size=4) == 3
    assert worker_count("auto", samples=10, batch_size=32) == 0, "a small data set is read in the process itself"
    assert worker_count("auto", samples=10**6, batch_size=8, processes=10**4) == 0, "no cores left over"


def test_each_sample_is_prepared_before_the_next_is_read() -> None:
    done: list[str] = []

    class Large:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            done.append(f"read {index}")
            return index

    def transform(sample: int, _rng: np.random.Generator) -> int:
        done.append(f"transform {sample}")
        return sample + 10

    def prepare(sample: int) -> int:
        done.append(f"prepare {sample}")
        return -sample

    order = EpochOrder(4, 2, shuffle=False)
    batches = [batch.data for batch in BatchLoader(Large(), order, transform=transform, prepare=prepare).epoch(0)]
    assert [batch.tolist() for batch in batches] == [[-10, -11], [-12, -13]]
    assert done == [text for i in range(4) for text in (f"read {i}", f"transform {i}", f"prepare {10 + i}")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_named_without_a_traceback_of_the_worker(workers: int) -> None:
    class Broken(Pictures):
        def __getitem__(self, index: int) -> dict[str, Any]:
            if index == 3:
                raise UserError("3.png: damaged")
            return super().__getitem__(index)

    loader = BatchLoader(Broken(), EpochOrder(len(Broken()), 2, shuffle=False), num_workers=workers)
    with pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert str(caught.value) == "3.png: damaged"


KEPT = """
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder

loader = BatchLoader(list(range(64)), EpochOrder(64, 2), num_workers=2)
batches = loader.epoch(0)
next(batches)
kept = [loader, batches]
kept.append(kept)  # a cycle, as a traceback makes one
raise SystemExit(3)
"""


def test_a_process_that_ends_in_the_middle_does_not_wait_for_its_workers() -> None:
    ended = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3, ended.stderr


def test_the_workers_of_a_lost_loader_end_at_once() -> None:
    loader = BatchLoader(Pictures(), EpochOrder(len(Pictures()), 2), num_workers=2)
    batches = loader.epoch(0)
    next(batches)
    before = set(multiprocessing.active_children())
    assert len(before) >= 2
    lost: list[Any] = [loader, batches]
    lost.append(lost)  # a cycle, as a traceback makes one: only the collector finds it
    del loader, batches, lost
    gc.collect()
    assert len(before - set(multiprocessing.active_children())) >= 2


class Pair(NamedTuple):
    """A batch may be one of these."""

    pixels: torch.Tensor
    name: str


def test_a_batch_moves_as_a_whole_and_keeps_its_shape() -> None:
    tensor = torch.zeros(2, 3)
    batch = MicroBatch({"a": tensor, "b": [tensor, ("x", Pair(tensor, "y"))], "c": None}, real=False)
    moved = batch.to(torch.device("meta"))
    assert not moved.real
    text, pair = moved.data["b"][1]
    assert (type(pair), text, pair.name, moved.data["c"]) == (Pair, "x", "y", None)
    assert {t.device.type for t in (moved.data["a"], moved.data["b"][0], pair.pixels)} == {"meta"}
    assert batch.to(torch.device("cpu")) is batch
