"""A Perceiver's training step and forward pass against transformers and perceiver-pytorch, at equal widths.

python -m benchmarks.perceiver_step            about five minutes
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import (
    NOT_INSTALLED,
    Goal,
    Options,
    Report,
    alternate,
    median_text,
    peer,
    ratio,
    ratio_text,
    run_alone,
    seconds,
)
from benchmarks.perceivers import Shape, of_perceiver_pytorch, of_transformers, ours, parameter_count, shape_of, tokens
from mlcore.training.engine import Precision, autocast, autocast_dtype

_FASTER, _FASTER_ALIKE = 1.9, 1.05
_THREADS = 2
_METHOD = (
    "Forward, backward, clipping to 1.0 and AdamW(fused=True) for every model, no dropout, "
    f"{_THREADS} threads; milliseconds, median (smallest..largest); the ratio is a peer's time over that of mlcore's "
    "model with the same read-out in the same precision and round. bf16 is autocast, where the processor multiplies "
    'it; "as it comes" is a peer in fp32 beside mlcore with `--precision auto`, bf16. transformers reads classes with '
    "a query over the latents as mlcore's `pooling=query` does; perceiver-pytorch takes the latents' mean, mlcore's "
    "default."
)


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One workload: `length` tokens of `channels` (position features included), `batch` of them."""

    title: str
    length: int
    channels: int
    batch: int
    size: str
    widening: int = 1

    @property
    def shape(self) -> Shape:
        return shape_of(self.size, channels=self.channels, widening=self.widening)


_CIFAR = {"title": "CIFAR-10, 4 x 4 patches", "length": 64, "channels": 48 + 18}
_VOWELS = {"title": "JapaneseVowels", "length": 29, "channels": 12 + 32}
_LONG = {"title": "long sequence", "length": 2048, "channels": 32 + 32}
_CASES = [
    _Case(**_CIFAR, batch=32, size="small"),  # type: ignore[arg-type]
    _Case(**_VOWELS, batch=16, size="small"),  # type: ignore[arg-type]
    _Case(**_LONG, batch=4, size="small"),  # type: ignore[arg-type]
    _Case(**_CIFAR, batch=8, size="base"),  # type: ignore[arg-type]
    _Case(**_LONG, batch=4, size="base"),  # type: ignore[arg-type]
    _Case(**_CIFAR, batch=16, size="small", widening=4),  # type: ignore[arg-type]
    _Case(**_LONG, batch=4, size="small", widening=4),  # type: ignore[arg-type]
]


def measure(options: Options) -> Report:
    """Every case, models and precisions in turns."""
    torch.set_num_threads(_THREADS)
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    faster: dict[str, list[float]] = {}
    for case in _CASES[1:2] if options.quick else _CASES:
        name = f"{case.title}, {case.length} x {case.channels}, batch {case.batch}, {case.size}"
        name += f", perceptrons x{case.widening}" if case.widening != 1 else ""
        found = _measure_case(case, rounds=2 if options.quick else 9)
        raw[name] = {" ".join(key): values for key, values in found.items()}
        rows += _rows(name, found)
        for said, (theirs, mine) in _COMPARISONS.items():
            if theirs in found and mine in found:
                faster.setdefault(said, []).append(ratio(found[theirs]["step"], found[mine]["step"])[0])
        print(f"{name}: done", flush=True)
    if peer("transformers") is None:
        rows.append(["all", "transformers", NOT_INSTALLED, "", "", "", "", ""])
    if peer("perceiver_pytorch") is None:
        rows.append(["all", "perceiver-pytorch", NOT_INSTALLED, "", "", "", "", ""])
    return Report(
        title="Perceiver training step",
        method=_METHOD,
        header=["case", "model", "in", "parameters", "step, ms", "step ratio", "forward, ms", "forward ratio"],
        rows=rows,
        goals=[_goal(said, faster.get(said, [])) for said in _COMPARISONS],
        notes=[
            "The models differ by parameters that express nothing (gains and biases of layer norms that feed linear "
            "maps); perceiver-pytorch's perceptrons are gated, which makes them half as large again.",
        ],
        raw=raw,
    )


_REFERENCE = {"transformers": "mlcore (query)", "perceiver-pytorch": "mlcore (mean)"}
_AS_IT_COMES = "transformers as it comes"
_COMPARISONS = {  # by what is compared: their side and ours
    _AS_IT_COMES: (("transformers", "fp32"), ("mlcore (query)", "bf16")),
    "transformers in fp32": (("transformers", "fp32"), ("mlcore (query)", "fp32")),
    "transformers in bf16": (("transformers", "bf16"), ("mlcore (query)", "bf16")),
}

_Key = tuple[str, str]  # model, precision


def _goal(said: str, faster: list[float]) -> Goal:
    wanted = _FASTER if said == _AS_IT_COMES else _FASTER_ALIKE
    measured = f"{min(faster):.2f} to {max(faster):.2f}, {len(faster)} cases" if faster else "not compared here"
    reached = min(faster) >= wanted if faster else None
    return Goal(
        f"a training step at least {wanted} times as fast as that of {said}, at equal widths", measured, reached
    )


def _measure_case(case: _Case, *, rounds: int) -> dict[_Key, dict[str, Any]]:
    models = {"mlcore (query)": ours(case.shape, pooling="query"), "mlcore (mean)": ours(case.shape, pooling="mean")}
    if peer("transformers") is not None:
        models["transformers"] = of_transformers(case.shape)
    if case.widening == 4 and peer("perceiver_pytorch") is not None:
        models["perceiver-pytorch"] = of_perceiver_pytorch(case.shape)
    has_bf16 = autocast_dtype("auto", torch.device("cpu")) is torch.bfloat16
    precisions: list[Precision] = ["fp32", "bf16"] if has_bf16 else ["fp32"]
    x, y = tokens(case.shape, batch=case.batch, length=case.length)
    sides = {(name, precision): model for precision in precisions for name, model in models.items()}
    runs = {
        kind: {" ".join(key): make(model, key[1], x, y) for key, model in sides.items()}
        for kind, make in (("step", _training_step), ("forward", _forward))
    }
    for kind in runs:
        alternate(runs[kind], rounds=2)  # buffers, caches
    times = {kind: alternate(runs[kind], rounds=rounds) for kind in runs}
    return {
        key: {"parameters": parameter_count(model), **{kind: times[kind][" ".join(key)] for kind in times}}
        for key, model in sides.items()
    }


def _training_step(model: nn.Module, precision: Precision, x: Tensor, y: Tensor) -> Callable[[], float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, x.device):
            loss = F.cross_entropy(model(x).float(), y)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return lambda: seconds(step)


def _forward(model: nn.Module, precision: Precision, x: Tensor, y: Tensor) -> Callable[[], float]:
    del y

    @torch.inference_mode()
    def forward() -> None:
        with autocast(precision, x.device):
            model(x)

    return lambda: seconds(forward)


def _rows(case: str, found: dict[_Key, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for (name, precision), values in found.items():
        base = found[_REFERENCE[name], precision] if name in _REFERENCE else None
        cells = [case, name, precision, f"{values['parameters']:,}"]
        for kind in ("step", "forward"):
            cells += [
                median_text(values[kind], scale=1e3),
                "" if base is None else ratio_text(values[kind], base[kind]),
            ]
        rows.append(cells)
    return rows


if __name__ == "__main__":
    run_alone(measure)
