"""What a sample is asked for: at which positions, and what the answers are."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.gaps import shown_positions
from quartet.apps.perceiver.data.samples import Array
from quartet.apps.perceiver.outputs import Outputs

__all__ = ["Asking"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """The last change of a sample: ``query``, the positions asked for ``[K]``, and ``target`` as the network gives it.

    Attributes:
        outputs: What the model gives.
        max_seq_len: Longer sequences are cut to their first ones, so many positions; None: they are not.
        share: Of a sequence, what is hidden of it (masked).
        block: Positions hidden in a row.
    """

    outputs: Outputs
    max_seq_len: int | None = None
    share: float = 0.5
    block: int = 4

    def __call__(self, sample: Any) -> dict[str, Any]:
        """A sample whose answers are known; a function of the sample."""
        kind, outputs = self.outputs.kind, self.outputs
        if kind in ("multilabel", "regression"):
            target = np.asarray(sample["target"])
            return {**sample, "target": outputs.standardised(target) if outputs.mean else target.astype(np.float32)}
        series, mask = self._parts(sample)
        if kind == "per_step":
            target = np.asarray(sample["target"])[: len(series)]
            query = np.flatnonzero(target >= 0 if outputs.classes else np.isfinite(target).all(axis=1))
            found = target[query] if outputs.classes else outputs.standardised(target[query])
            return _asked(sample, series, mask, query, found)
        if kind == "forecast":
            seen = np.arange(len(series)) < len(series) - outputs.horizon
        else:
            seen = ~(sample["hidden"] if "hidden" in sample else self._hidden(len(series), _own_rng(series)))
        if not (mask & seen).any():
            seen = np.arange(len(series)) == mask.argmax()  # something has to be seen
        query = (
            np.arange(len(series) - outputs.horizon, len(series))
            if kind == "forecast"
            else np.flatnonzero(mask & ~seen)
        )
        target = outputs.standardised(series[query][:, list(outputs.channels)])
        target[~mask[query]] = np.nan  # a gap, of which nobody knows what it should be
        return self._in_context(_asked(sample, series, mask & seen, query, target))

    def vary(self, sample: Any, rng: np.random.Generator) -> dict[str, Any]:
        """A training sample with a random end (forecast), or random hidden positions; others as they are."""
        series, mask = self._parts(sample)
        if self.outputs.kind == "forecast":
            horizon, length = self.outputs.horizon, len(series)
            least = min(length, horizon + (self.outputs.context or max(1, (length - horizon + 1) // 2)))
            end = int(rng.integers(least, length + 1))
            return {**sample, "input": series[:end], "mask": mask[:end]}
        if self.outputs.kind == "masked":
            return {**sample, "hidden": self._hidden(len(series), rng)}
        return {**sample}

    def new(self, sample: Any, *, longest: int | None = None, lasting: float = math.inf) -> dict[str, Any]:
        """A sample whose answers are not known: every position, or the positions after its end.

        Args:
            sample: The sample, with rising times where it has them.
            longest: Positions of a forecast at most, with those to come: it looks at the last ones. None: any number.
            lasting: How long they last at most, where the last channel is time.

        Raises:
            UserError: A forecast with covariates lacks those of the positions to come.
        """
        if not self.outputs.by_position:
            return {**sample}
        series, mask = self._parts(sample)
        horizon = self.outputs.horizon
        if not horizon:
            return _asked(sample, series, mask, np.arange(len(series)))
        if not self.outputs.covariates:
            to_come = np.zeros((horizon, series.shape[1]), dtype=np.float32)
            if self.outputs.time_step is not None:
                to_come[:, -1] = series[-1, -1] + self.outputs.time_step * np.arange(1, horizon + 1)
            series = np.concatenate([series, to_come])
            mask = np.concatenate([mask, np.zeros(horizon, dtype=bool)])
        elif len(series) < self.outputs.least:
            raise UserError(
                f"{len(series)} positions; expected those seen and {horizon} more, where covariates are known ahead"
            )
        query = np.arange(len(series) - horizon, len(series))
        mask = mask & (np.arange(len(series)) < query[0])
        return self._in_context(_asked(sample, series, mask, query), longest=longest, lasting=lasting)

    def _parts(self, sample: Any) -> tuple[Array, NDArray[np.bool_]]:
        series = np.asarray(sample["input"], dtype=np.float32)[: self.max_seq_len]
        shown = shown_positions(sample["mask"])[: len(series)] if "mask" in sample else np.ones(len(series), dtype=bool)
        return series, shown

    def _in_context(
        self, sample: dict[str, Any], *, longest: int | None = None, lasting: float = math.inf
    ) -> dict[str, Any]:
        """Without the positions that a forecast does not look back to, or that would be too many or too long ago."""
        length, horizon = len(sample["input"]), self.outputs.horizon
        start = length - horizon - (self.outputs.context or length)
        start = max(start, length - (longest or length))
        if self.outputs.time_step is not None:
            times = sample["input"][:, -1]
            start = max(start, int(((times[-1] - times).astype(np.float64) <= lasting).argmax()))
        start = min(start, length - horizon - 1)  # one is seen
        if start <= 0:
            return sample
        cut = {key: sample[key][start:] for key in ("input", "mask")}
        return {**sample, **cut, "query": sample["query"] - start}

    def _hidden(self, length: int, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Blocks of positions, bool ``[M]``; at least one block is hidden and one is not."""
        block = self.block if length > 2 * self.block else 1
        blocks = (np.arange(length) + rng.integers(block)) // block
        count = int(blocks[-1]) + 1
        chosen = rng.permutation(count)[: min(max(1, round(self.share * count)), count - 1)]
        return np.isin(blocks, chosen)


def _asked(
    sample: Any, series: Array, mask: NDArray[np.bool_], query: NDArray[np.int64], target: NDArray[Any] | None = None
) -> dict[str, Any]:
    answers = {} if target is None else {"target": target}
    kept = {key: value for key, value in sample.items() if key not in ("hidden", "target")}
    return {**kept, "input": series, "mask": mask, "query": query, **answers}


def _own_rng(series: Array) -> np.random.Generator:
    """Draws that belong to a sequence, so that each evaluation hides the same."""
    digest = hashlib.blake2b(np.ascontiguousarray(series).tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
