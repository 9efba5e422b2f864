"""A batch on its way from the loader to the engine."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class MicroBatch:
    """One collated batch of one rank.

    Attributes:
        data: What the task understands: tensors in dicts, lists, tuples.
        real: False for a stand-in given to a rank that has no sample left in the last window; it counts nothing.
    """

    data: Any
    real: bool = True

    def to(self, device: torch.device) -> "MicroBatch":
        """The batch, which comes from host memory, on `device`; copies overlap with computation where it is pinned."""
        if device.type == "cpu":
            return self
        return MicroBatch(tree_map_only(torch.Tensor, lambda t: t.to(device, non_blocking=True), self.data), self.real)

    def pin_memory(self) -> "MicroBatch":
        """The batch in page-locked host memory (called by torch's loader)."""
        return MicroBatch(tree_map_only(torch.Tensor, torch.Tensor.pin_memory, self.data), self.real)
