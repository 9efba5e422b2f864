"""One training step on a device: how long it takes, what memory it needs, how much it computes; ours and the peers'."""

import gc
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import peer
from benchmarks.gpu_models import Forward, Workload, workloads
from mlcore.base.distributed import World
from mlcore.data.batch import MicroBatch
from mlcore.training.engine import Engine, Precision, autocast
from mlcore.training.optim import build_optimizer, parameter_groups

Kind = Literal["fp32", "tf32", "bf16", "fp16"]
Step = Callable[[], object]

_RATE, _CLIP = 1e-5, 1.0

# Dense TFLOP/s of fp32, TF32, and bf16 or fp16, by NVIDIA's data sheets; the longest name that fits counts.
_PEAKS = {
    "H200": (67.0, 494.0, 989.0),
    "H100": (67.0, 494.0, 989.0),
    "H100 PCIe": (51.0, 378.0, 756.0),
    "A100": (19.5, 156.0, 312.0),
    "L40S": (91.6, 183.0, 362.0),
    "L4": (30.3, 60.0, 121.0),
    "RTX 4090": (82.6, 82.6, 165.0),
    "RTX 3090": (35.6, 35.6, 71.0),
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a step was seen to need.

    Attributes:
        seconds: Median of a step.
        peak: Most bytes that tensors held at once; None where the device does not tell.
        samples: Of a step.
    """

    seconds: float
    peak: int | None
    samples: int


def precision_of(kind: Kind) -> Precision:
    """TF32 is float32 to the engine."""
    return "fp32" if kind == "tf32" else kind


def peak_flops(kind: Kind, device: torch.device) -> float | None:
    """What the data sheet says of this device, FLOP/s; None where it is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    fitting = [known for known in _PEAKS if known in name]
    column = {"fp32": 0, "tf32": 1}.get(kind, 2)
    return _PEAKS[max(fitting, key=len)][column] * 1e12 if fitting else None


@contextmanager
def arithmetic(kind: Kind) -> Iterator[None]:
    """TF32 for float32 products or not, as `kind` says."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest" if kind == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = kind != "fp32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clean(device: torch.device) -> None:
    """Give back what earlier measurements held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def on(device: torch.device, batch: Any) -> Any:
    """A batch on the device."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), batch)


def measure_step(step: Step, *, samples: int, device: torch.device, budget: float) -> Measured:
    """Time steps for about `budget` seconds, after three that warm up."""
    for _ in range(3):
        step()
    synchronise(device)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begun < budget and len(times) < 50):
        before = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - before)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Measured(seconds=statistics.median(times), peak=peak, samples=samples)


def flops_of_a_sample(workload: Workload, device: torch.device) -> float:
    """Operations of forward and backward of one sample, counted by torch (attention as its two products)."""
    model, forward = workload.make(device)
    batch = on(device, workload.batch(2))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward(model.train(), batch).loss_sum.backward()  # type: ignore[no-untyped-call]
    return float(counter.get_total_flops()) / 2


# --------------------------------------------------------------------------------------------------------------- sides


def engine_of(model: nn.Module, kind: Kind, device: torch.device, *, samples: int) -> Engine:
    """Ours, as `mlcore.run.build` puts it together."""
    groups = parameter_groups(model, lr=_RATE)
    return Engine(
        model.train(),
        build_optimizer(groups),
        learning_rates=np.full((2, len(groups)), _RATE),
        precision=precision_of(kind),
        max_grad_norm=_CLIP,
        nominal_count=samples,
        world=World(device=device),
    )


def ours(model: nn.Module, forward: Forward, batch: Any, kind: Kind, device: torch.device, *, samples: int) -> Step:
    """A step of `mlcore.training.engine.Engine`."""
    engine, window = engine_of(model, kind, device, samples=samples), [MicroBatch(batch)]
    return lambda: engine.run_window(forward, window)


def bare(model: nn.Module, forward: Forward, batch: Any, kind: Kind, device: torch.device, *, samples: int) -> Step:
    """What everybody writes: autocast, scaled gradients in fp16, fused AdamW."""
    optimizer = torch.optim.AdamW(_trained(model), lr=_RATE, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=kind == "fp16")
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision_of(kind), device):
            loss = forward(model, batch).loss_sum / samples
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        scaler.step(optimizer)
        scaler.update()

    return step


def fabric(model: nn.Module, forward: Forward, batch: Any, kind: Kind, device: torch.device, *, samples: int) -> Step:
    """Lightning Fabric, as its guide says."""
    precision = {"bf16": "bf16-mixed", "fp16": "16-mixed"}.get(kind, "32-true")
    runner = peer("lightning.fabric").Fabric(accelerator=device.type, devices=1, precision=precision)
    optimizer = torch.optim.AdamW(_trained(model), lr=_RATE, fused=True)
    wrapped, wrapped_optimizer = runner.setup(model.train(), optimizer)

    def step() -> None:
        wrapped_optimizer.zero_grad()
        loss = forward(wrapped, batch).loss_sum / samples
        runner.backward(loss)
        if kind != "fp16":  # a fused optimiser unscales by itself, and Fabric then refuses to clip
            runner.clip_gradients(wrapped, wrapped_optimizer, max_norm=_CLIP)
        wrapped_optimizer.step()

    return step


def accelerate(
    model: nn.Module, forward: Forward, batch: Any, kind: Kind, device: torch.device, *, samples: int
) -> Step:
    """Hugging Face Accelerate, as its quick tour says."""
    mixed = kind if kind in ("bf16", "fp16") else "no"
    accelerator = peer("accelerate").Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
    optimizer = torch.optim.AdamW(_trained(model), lr=_RATE, fused=True)
    wrapped, wrapped_optimizer = accelerator.prepare(model.train(), optimizer)

    def step() -> None:
        wrapped_optimizer.zero_grad()
        loss = forward(wrapped, batch).loss_sum / samples
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(wrapped.parameters(), _CLIP)
        wrapped_optimizer.step()

    return step


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# Title, the module it needs, and what makes its step.
SIDES: dict[str, tuple[str, str | None, Callable[..., Step]]] = {
    "ours": ("mlcore Engine", None, ours),
    "bare": ("bare PyTorch loop", None, bare),
    "fabric": ("Lightning Fabric", "lightning.fabric", fabric),
    "accelerate": ("Accelerate", "accelerate", accelerate),
}


def waits_of(step: Step, device: torch.device, *, steps: int) -> float:
    """How often a step makes the host wait for the device, mean of `steps`."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
            synchronise(device)
    return sum("synchroniz" in str(warning.message) for warning in seen) / steps


# ------------------------------------------------------------------------------------------------------------- session

_LAST_CALL_S = 15.0  # nothing new begins with less time left than that


@dataclass
class Session:
    """What all parts share.

    Attributes:
        device: Where.
        quick: Small networks and few steps.
        deadline: On `time.monotonic`.
        left_out: What was not measured, with the reason.
    """

    device: torch.device
    quick: bool
    deadline: float
    left_out: list[str] = field(default_factory=list)

    @property
    def budget(self) -> float:
        """Seconds for which one cell of a table is measured."""
        return 0.2 if self.quick else 1.0

    @property
    def workloads(self) -> list[Workload]:
        """What is trained."""
        return workloads(quick=self.quick)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Precisions of this device."""
        return ("fp32", "tf32", "bf16", "fp16") if self.device.type == "cuda" else ("fp32",)

    @property
    def cells(self) -> list[tuple[Kind, bool]]:
        """Precisions, each without compilation, and on a GPU the usual one with it."""
        compiled: list[tuple[Kind, bool]] = [(self.kind, True)] if self.device.type == "cuda" else []
        return [*((kind, False) for kind in self.kinds), *compiled]

    @property
    def kind(self) -> Kind:
        """What is usual there."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    def steps(self, count: int) -> int:
        """So many steps, or a few."""
        return 4 if self.quick else count

    def make(self, workload: Workload, kind: Kind, *, size: int | None = None, side: str = "ours") -> Step:
        """A step of one side."""
        model, forward = workload.make(self.device)
        samples = size or workload.size
        batch = on(self.device, workload.batch(samples))
        return SIDES[side][2](model, forward, batch, kind, self.device, samples=samples)

    @contextmanager
    def cell(self, what: str) -> Iterator[bool]:
        """One measurement: yields whether there is time for it; what fails is named and left out."""
        timely = time.monotonic() < self.deadline - _LAST_CALL_S
        if not timely:
            self.left_out.append(f"{what}: no time was left")
        try:
            yield timely
        except torch.OutOfMemoryError:
            self.left_out.append(f"{what}: out of memory")
        except Exception as error:  # noqa: BLE001 - the rest is still worth having
            traceback.print_exc()
            self.left_out.append(
                f"{what}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
        finally:
            clean(self.device)
