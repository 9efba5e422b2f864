"""What `benchmarks/gpu.py` measures of training steps: rates, memory, other loops, the released SAM-Med3D."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.common import Report, alternate, median_text, peer, ratio_text
from benchmarks.gpu_models import Workload
from benchmarks.gpu_steps import (
    SIDES,
    Kind,
    Measured,
    Session,
    Step,
    arithmetic,
    flops_of_a_sample,
    measure_step,
    on,
    ours,
    peak_flops,
    precision_of,
    synchronise,
)
from mlcore.training.engine import autocast
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.sam import PRESETS

_GIB = 2**30
_CARDS_GIB = (8, 10, 40)


def steps(session: Session) -> Report:
    """Samples a second, memory and use of the device, in every precision; compiled in bf16."""
    rows, raw = [], {}
    for workload in session.workloads:
        flops = None
        with session.cell(f"{workload.name}: operations"):
            flops = flops_of_a_sample(workload, session.device)
        for kind, compiled in session.cells:
            name = f"{workload.name}, {kind}{', compiled' if compiled else ''}"
            with session.cell(name) as timely:
                if timely:
                    begun = time.monotonic()
                    found = _one(session, workload, kind, compiled=compiled)
                    raw[name] = asdict(found) | {"flops_of_a_sample": flops, "took": time.monotonic() - begun}
                    rows.append(_step_row(workload, kind, found, flops, session.device, compiled=compiled))
                    print(rows[-1], flush=True)
    return Report(
        title="Training steps",
        method=(
            "Random weights, batches that lie on the device, forward, backward, clipping and fused AdamW by `Engine`; "
            "memory is the most that tensors held at once. Operations are those of matrix products and convolutions "
            "of forward and backward as torch counts them; the share is of the data sheet's dense rate."
        ),
        header=["network", "batch", "precision", "samples/s", "ms a step", "peak GiB", "TFLOP/s", "of the data sheet"],
        rows=rows,
        raw=raw,
    )


def _one(session: Session, workload: Workload, kind: Kind, *, compiled: bool) -> Measured:
    model, forward = workload.make(session.device)
    if compiled:
        model.compile()
    batch = on(session.device, workload.batch(workload.size))
    with arithmetic(kind):
        step = ours(model, forward, batch, kind, session.device, samples=workload.size)
        return measure_step(step, samples=workload.size, device=session.device, budget=session.budget)


def _step_row(
    workload: Workload, kind: Kind, found: Measured, flops: float | None, device: torch.device, *, compiled: bool
) -> list[str]:
    rate, most = found.samples / found.seconds, peak_flops(kind, device)
    done = None if flops is None else flops * rate
    return [
        workload.name,
        str(found.samples),
        f"{kind}, compiled" if compiled else kind,
        f"{rate:.1f}",
        f"{1e3 * found.seconds:.1f}",
        _gib(found.peak),
        "" if done is None else f"{done / 1e12:.2f}",
        "" if done is None or most is None else f"{done / most:.0%}",
    ]


def _gib(count: int | None) -> str:
    return "" if count is None else f"{count / _GIB:.2f}"


def peers(session: Session) -> Report:
    """The same networks and batches through other loops."""
    there = {name: title for name, (title, module, _) in SIDES.items() if module is None or peer(module) is not None}
    session.left_out += [f"{SIDES[name][0]}: not installed" for name in SIDES if name not in there]
    rows, raw = [], {}
    for workload in session.workloads:
        times: dict[str, list[float]] = {}
        for _ in range(1 if session.quick else 2):
            for name in there:
                with session.cell(f"{workload.name}, {there[name]}") as timely:
                    if timely:
                        step = session.make(workload, session.kind, side=name)
                        found = measure_step(
                            step, samples=workload.size, device=session.device, budget=session.budget / 2
                        )
                        times.setdefault(name, []).append(found.seconds)
                        del step
        raw[workload.name] = times
        if "ours" in times:
            cells = [median_text(times[name], scale=1e3) if name in times else "" for name in there]
            ratios = [_against(times, name) for name in there if name != "ours"]
            rows.append([workload.name, str(workload.size), *cells, *ratios])
            print(rows[-1], flush=True)
    return Report(
        title="Beside other loops",
        method=f"Same network, batch, {session.kind}, clipping, fused AdamW. Milliseconds of a step; ratios by round.",
        header=["network", "batch", *there.values(), *(f"ours / {there[name]}" for name in there if name != "ours")],
        rows=rows,
        raw=raw,
    )


def _against(times: dict[str, list[float]], name: str) -> str:
    pairs = min(len(times["ours"]), len(times.get(name, ())))
    return ratio_text(times["ours"][:pairs], times[name][:pairs]) if pairs else ""


def memory(session: Session) -> Report:
    """Batches to memory's end, and what fits into smaller cards."""
    if session.device.type != "cuda":
        return Report(title="Batches and memory", method="", skipped="the device does not tell what its tensors hold")
    rows, raw = [], {}
    for workload in session.workloads:
        found: list[Measured] = []
        for size in (2**power for power in range(14)):
            with session.cell(f"{workload.name}, batch {size}") as timely:
                if not timely:
                    break
                step = session.make(workload, "bf16", size=size)
                found.append(measure_step(step, samples=size, device=session.device, budget=session.budget / 4))
                del step
            if not found or found[-1].samples != size:
                break
        if len(found) > 2:
            raw[workload.name] = [asdict(one) for one in found]
            rows.append(_memory_row(session, workload, found))
            print(rows[-1], flush=True)
    return Report(
        title="Batches and memory",
        method=(
            "bf16, micro-batches of 1, 2, 4 and so on until the memory's end. For smaller cards the largest one "
            "that should fit by the line through the two largest measured below it, and its measured peak."
        ),
        header=["network", "largest", "its peak GiB", "best samples/s", *(f"{size} GiB" for size in _CARDS_GIB)],
        rows=rows,
        raw=raw,
    )


def _memory_row(session: Session, workload: Workload, found: Sequence[Measured]) -> list[str]:
    best = max(found, key=lambda one: one.samples / one.seconds)
    cells = []
    for card in _CARDS_GIB:
        cells.append("")
        with session.cell(f"{workload.name}, {card} GiB") as timely:
            if timely:
                cells[-1] = _fitting(session, workload, found, limit=card * _GIB)
    return [
        workload.name,
        str(found[-1].samples),
        _gib(found[-1].peak),
        f"{best.samples / best.seconds:.1f} (batch {best.samples})",
        *cells,
    ]


def _fitting(session: Session, workload: Workload, found: Sequence[Measured], *, limit: int) -> str:
    """The largest batch that should fit, with the peak that it is seen to have."""
    below = [one for one in found if one.peak is not None and one.peak < limit]
    if len(below) < 2:
        return "none"
    one, two = below[-2:]
    assert one.peak is not None and two.peak is not None  # noqa: PT018 - chosen so
    each = (two.peak - one.peak) / (two.samples - one.samples)
    size = min(found[-1].samples, int(two.samples + (limit - two.peak) / max(each, 1.0)))
    step = session.make(workload, "bf16", size=size)
    step()
    synchronise(session.device)
    return f"{size} ({_gib(torch.cuda.max_memory_allocated(session.device))} GiB)"


def released(session: Session) -> Report:
    """SAM-Med3D beside the released code, with the same weights."""
    title = "SAM-Med3D beside the released code"
    if peer("medim") is None:
        return Report(title=title, method="", skipped="medim is not installed")
    if session.quick:
        return Report(title=title, method="", skipped="the released code has the released size only")
    from medim.models.sam_med3d import build_sam3D_vit_b_ori

    torch.manual_seed(0)
    mine = IchModel(PRESETS["vit_b_ori"]).to(session.device)
    theirs = build_sam3D_vit_b_ori().to(session.device)
    theirs.load_state_dict(mine.sam.state_dict())
    image = torch.randn(1, 1, 128, 128, 128, device=session.device)
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    for kind in session.kinds:
        sides = {}
        for name, encoder in {"medim": theirs.image_encoder, "ours": mine.sam.image_encoder}.items():
            step = _encoder_step(encoder, image, kind, session.device)
            sides[name] = lambda step=step: (
                measure_step(step, samples=1, device=session.device, budget=session.budget).seconds
            )
        with session.cell(f"released code, {kind}") as timely:
            if timely:
                with arithmetic(kind):
                    raw[kind] = alternate(sides, rounds=3)
                cells = [median_text(raw[kind][name], scale=1e3) for name in sides]
                rows.append([kind, *cells, ratio_text(raw[kind]["medim"], raw[kind]["ours"])])
    return Report(
        title=title,
        method="Encoder, forward and backward at 128^3, batch 1, same weights; milliseconds, three rounds in turns.",
        header=["precision", "medim", "ours", "faster"],
        rows=rows,
        raw=raw,
    )


def _encoder_step(encoder: Any, image: torch.Tensor, kind: Kind, device: torch.device) -> Step:
    def step() -> None:
        encoder.zero_grad()
        with autocast(precision_of(kind), device):
            loss = encoder(image).float().square().mean()
        loss.backward()

    return step
