"""Samples of different length to one padded batch."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data.gaps import shown_positions


@dataclass(frozen=True, kw_only=True)
class PadCollate:
    """Pads to the longest sample of the batch.

    Attributes:
        max_seq_len: Longest sequence in positions; ``None``: no limit.
        on_too_long: ``error``, or ``truncate`` to its first ``max_seq_len`` positions (``inspect_dataset`` counts).
    """

    max_seq_len: int | None = None
    on_too_long: Literal["error", "truncate"] = "error"

    def __call__(self, samples: list[Any]) -> dict[str, Tensor]:
        """Makes a batch.

        Args:
            samples: Dicts with ``input`` ``[M_i, C]``, ``label`` and perhaps ``mask`` ``[M_i]``, arrays or tensors; for
                other tasks ``target``, and ``query`` ``[K_i]``, the positions that are asked for.

        Returns:
            ``input`` float32 ``[B, M, C]``, zero where padded; ``label`` int64 ``[B]``; ``mask`` bool ``[B, M]``;
            ``target``, and ``query`` int64 ``[B, K]`` with ``asked`` bool ``[B, K]``, false where padded.

        Raises:
            UserError: If samples differ in channels, or one is empty or too long, or its mask is not of 0 and 1.
        """
        inputs = [self._fit(torch.as_tensor(sample["input"], dtype=torch.float32)) for sample in samples]
        channels = {tuple(x.shape[1:]) for x in inputs}
        if len(channels) != 1:
            raise UserError(f"samples of one batch have different channels: {sorted(channels)}")
        padded = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
        for row, (x, sample) in enumerate(zip(inputs, samples, strict=True)):
            mask[row, : len(x)] = True
            if "mask" in sample:
                mask[row, : len(x)] = torch.from_numpy(shown_positions(sample["mask"]))[: len(x)]
            if not mask[row].any():
                raise UserError(f"sample {row} of the batch (label {sample['label']}) has no real position")
        labels = torch.tensor([int(sample["label"]) for sample in samples], dtype=torch.int64)
        return {"input": padded, "label": labels, "mask": mask, **_asked(samples)}

    def _fit(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise UserError(f"a sample's input must be [positions, channels], got shape {list(x.shape)}")
        if self.max_seq_len is None or len(x) <= self.max_seq_len:
            return x
        if self.on_too_long == "truncate":
            return x[: self.max_seq_len]
        raise UserError(
            f"a sequence of {len(x)} positions is longer than max_seq_len={self.max_seq_len}; "
            "raise it, shorten the sequence, or allow on_too_long=truncate"
        )


def _asked(samples: list[Any]) -> dict[str, Tensor]:
    """Queries and targets of a batch, where there are some, padded with zeros."""
    found = {}
    for key in ("query", "target"):
        if key in samples[0]:
            values = [torch.as_tensor(sample[key]) for sample in samples]
            found[key] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    if "query" in found:
        counts = torch.tensor([len(sample["query"]) for sample in samples])
        found["asked"] = torch.arange(found["query"].shape[1]) < counts[:, None]
    return found
