"""What computes a network's outputs: torch itself, an exported program, ONNX Runtime; named tensors in and out.

A network's `Signature` is plain data and travels with every export.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.training.engine import Precision, autocast, autocast_dtype
from mlcore.training.evaluator import largest_difference

__all__ = ["FORMATS", "Eager", "Network", "OnnxNetwork", "Signature", "open_network"]

FORMATS = {"pt2": "model.pt2", "onnx": "model.onnx"}
"""Formats that hold a whole network, and the file of each in an export's folder."""

Tensors = Mapping[str, Tensor]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Names of a network's inputs and outputs.

    Attributes:
        inputs: The axes of each input, in order: a number, or a name where the size is free.
        outputs: Likewise.
        longest: Largest size of a named axis; one that is not in it has no limit.
    """

    inputs: Mapping[str, Sequence[int | str]]
    outputs: Mapping[str, Sequence[int | str]]
    longest: Mapping[str, int] = field(default_factory=dict)


class Network(Protocol):
    """Computes outputs of inputs, both by name; outputs are float32 on the CPU."""

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Outputs of the inputs."""


class Eager:
    """A torch module, in evaluation mode.

    Args:
        module: Takes the inputs in the order of the signature, and gives one tensor, or a tuple of all outputs.
        signature: Its inputs and outputs.
        device: Where it runs.
        precision: The arithmetic; None where the module brings its own, as an exported program does.

    Attributes:
        module, signature, precision: As given.
    """

    def __init__(
        self, module: nn.Module, signature: Signature, *, device: torch.device, precision: Precision | None = None
    ) -> None:
        self.module = module.to(device)
        self.signature = signature
        self.precision = precision
        self._device = device
        self._compared = False

    def of(self, module: nn.Module, signature: Signature) -> "Eager":
        """Another module, on the same device and in the same arithmetic."""
        return Eager(module, signature, device=self._device, precision=self.precision)

    @property
    def reduced(self) -> torch.dtype | None:
        """The type that matrices are multiplied in, where it is not the module's own."""
        return None if self.precision is None else autocast_dtype(self.precision, self._device)

    @property
    def arithmetic(self) -> str:
        """The type that matrices are multiplied in, for people."""
        return str(self.reduced or torch.float32).removeprefix("torch.")

    @torch.inference_mode()
    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Outputs of the inputs."""
        with nullcontext() if self.precision is None else autocast(self.precision, self._device):
            found = self._outputs(inputs)
        if not self._compared and self.reduced is not None:
            self._compared = True
            said = "computes in %s: the first outputs differ from float32 by at most %.1e of the largest"
            with suppress(torch.OutOfMemoryError):  # float32 needs more
                _log.info(said, self.arithmetic, largest_difference(found, self._outputs(inputs)))
        return found

    def _outputs(self, inputs: Tensors) -> dict[str, Tensor]:
        found = self.module(*(inputs[name].to(self._device) for name in self.signature.inputs))
        values = found if isinstance(found, tuple) else (found,)
        return {name: value.float().cpu() for name, value in zip(self.signature.outputs, values, strict=True)}


class OnnxNetwork:
    """A network in ONNX Runtime, on the CPU.

    Args:
        path: The model.
        signature: Its inputs and outputs.

    Raises:
        UserError: It cannot be read, or ONNX Runtime is not installed.
    """

    def __init__(self, path: Path, signature: Signature) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise UserError(f"{path}: needs the package onnxruntime: pip install onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with reading(path, "an ONNX model"):
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.signature = signature

    def __call__(self, inputs: Tensors) -> dict[str, Tensor]:
        """Outputs of the inputs."""
        given = {name: inputs[name].numpy() for name in self.signature.inputs}
        found = self._session.run(list(self.signature.outputs), given)
        return {name: torch.from_numpy(value) for name, value in zip(self.signature.outputs, found, strict=True)}


def open_network(path: Path, signature: Signature, *, device: torch.device) -> Network:
    """The network in a file of `FORMATS`.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a network")
    if path.suffix == ".onnx":
        return OnnxNetwork(path, signature)
    with reading(path, "a torch.export program"):
        program: Any = torch.export.load(path).module()
    return Eager(program, signature, device=device)
