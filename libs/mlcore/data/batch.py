"""A batch on its way from the loader to the engine."""

from dataclasses import dataclass
from typing import Any

import torch


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
        return MicroBatch(_map_tensors(self.data, lambda t: t.to(device, non_blocking=True)), self.real)

    def pin_memory(self) -> "MicroBatch":
        """The batch in page-locked host memory (called by torch's loader)."""
        return MicroBatch(_map_tensors(self.data, torch.Tensor.pin_memory), self.real)


def _map_tensors(data: Any, function: Any) -> Any:
    if isinstance(data, torch.Tensor):
        return function(data)
    if isinstance(data, dict):
        return {key: _map_tensors(value, function) for key, value in data.items()}
    if isinstance(data, tuple) and hasattr(data, "_fields"):
        return type(data)(*(_map_tensors(value, function) for value in data))
    if isinstance(data, list | tuple):
        return type(data)(_map_tensors(value, function) for value in data)
    return data
