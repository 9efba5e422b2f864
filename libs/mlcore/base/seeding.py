"""Random numbers as functions of keys, and the global generators' state as plain data.

Data order and augmentation never depend on a generator's history: they draw from `numpy_rng(seed, epoch, index)`.
What does depend on history (dropout, user code that draws from the global generators) is saved and restored by
`rng_state` and `set_rng_state`, as tensors and primitives only, so that a checkpoint stays loadable without code.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor


class RngState(TypedDict):
    """State of the global generators of this process."""

    python: list[int]  # version, 624 words, position
    python_gauss: float | None
    numpy: Tensor  # uint32 words as int64 [624]
    numpy_position: list[float]  # position, has_gauss, cached_gaussian
    torch: Tensor  # uint8
    cuda: list[Tensor]  # uint8, one per visible device


def numpy_rng(*key: int) -> np.random.Generator:
    """A generator that is a pure function of `key` (non-negative integers), independent for different keys."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def torch_rng(*key: int) -> torch.Generator:
    """A CPU generator that is a pure function of `key` (non-negative integers)."""
    generator = torch.Generator()
    # 63 bits: manual_seed takes a signed 64-bit integer.
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return generator


def seed_everything(seed: int, *, rank: int = 0, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, differently on each rank.

    Args:
        seed: The run's seed, >= 0.
        rank: Rank of this process; dropout must differ between ranks.
        deterministic: Also make cuDNN and torch refuse non-deterministic kernels (slower on GPU).
    """
    words = np.random.SeedSequence((seed, rank)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses to be deterministic without it
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False


def rng_state() -> RngState:
    """Snapshot the global generators of this process."""
    version, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return RngState(
        python=[version, *words],
        python_gauss=gauss,
        numpy=torch.from_numpy(np.asarray(keys).astype(np.int64)),
        numpy_position=[float(position), float(has_gauss), float(cached)],
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def set_rng_state(state: RngState) -> None:
    """Put the global generators back; CUDA generators only where the number of devices is the same."""
    version, *words = state["python"]
    random.setstate((version, tuple(words), state["python_gauss"]))
    position, has_gauss, cached = state["numpy_position"]
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Put the global generators back on the way out, whatever the body drew (a library's import may draw, too)."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
