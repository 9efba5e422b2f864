"""What `benchmarks/gpu.py` measures around training steps: waits, real files, checkpoints, low precision's losses."""

import os
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Report, seconds
from benchmarks.doc_models import write_pages
from benchmarks.gpu_models import Workload
from benchmarks.gpu_steps import Kind, Session, arithmetic, engine_of, measure_step, on, synchronise, waits_of
from mlcore.data.batch import MicroBatch
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.checkpoint import CheckpointStore
from mlcore.training.engine import Engine
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset, Prepare

_IDLE = 0.05


def waits(session: Session) -> Report:
    """How often a step makes the host wait."""
    title = "Waiting for the device"
    if session.device.type != "cuda":
        return Report(title=title, method="", skipped="a processor does not run behind the host")
    rows = []
    for workload in session.workloads:
        for kind in session.kinds:
            with session.cell(f"{workload.name}, {kind}: waits") as timely:
                if timely:
                    step = session.make(workload, kind)
                    for _ in range(3):
                        step()
                    synchronise(session.device)
                    rows.append([workload.name, kind, f"{waits_of(step, session.device, steps=5):g}"])
    return Report(
        title=title,
        method="Synchronising calls of a training step after three others, as torch reports them; mean of five steps.",
        header=["network", "precision", "waits a step"],
        rows=rows,
    )


def files(session: Session) -> Report:
    """Whether real files keep the device busy."""
    workload = next(one for one in session.workloads if "conv" in one.name)
    count, side = (32, 64) if session.quick else (2048, 224)
    workers = 0 if session.quick else max(1, (os.cpu_count() or 2) - 2)
    with tempfile.TemporaryDirectory() as folder:
        pages = write_pages(Path(folder), "384", count)
        fit = Fit((side, side))
        loader = BatchLoader(
            PageDataset(pages, max_pixels=10**7, grey=False, fit=fit),
            EpochOrder(size=count, batch_size=workload.size, drop_last=True),
            prepare=Prepare(fit, mean=(0.0,) * 3, std=(1.0,) * 3),
            num_workers=workers,
            pin_memory=session.device.type == "cuda",
        )
        model, forward = workload.make(session.device)
        engine = engine_of(model, session.kind, session.device, samples=workload.size)
        resident = [MicroBatch(on(session.device, workload.batch(workload.size)))]
        per_step = measure_step(
            lambda: engine.run_window(forward, resident),
            samples=workload.size,
            device=session.device,
            budget=session.budget,
        ).seconds
        _epoch(engine, forward, loader, 0, session.device)
        taken = seconds(lambda: _epoch(engine, forward, loader, 1, session.device))
    trained = len(loader.order) * workload.size
    idle = max(0.0, 1 - per_step * len(loader.order) / taken)
    row = [workload.name, str(workers), f"{trained / taken:.0f}", f"{workload.size / per_step:.0f}", f"{idle:.1%}"]
    return Report(
        title="Fed from files",
        method=(
            f"{count} drawn pages as JPEG files, 384 pixels high, read, fitted and trained on, second epoch; "
            "beside the same steps on a batch that lies on the device."
        ),
        header=["network", "workers", "pages/s", "pages/s without reading", "device idle"],
        rows=[row],
        notes=[f"Wanted: idle below {_IDLE:.0%}; {'reached' if idle < _IDLE else '**missed**'}."],
        raw={"idle": idle, "per_step": per_step, "epoch": taken},
    )


def _epoch(engine: Engine, forward: Any, loader: BatchLoader, epoch: int, device: torch.device) -> None:
    for batch in loader.epoch(epoch):
        engine.run_window(forward, [batch.to(device)])
    synchronise(device)


def saves(session: Session) -> Report:
    """How long a checkpoint holds up training."""
    rows, raw = [], {}
    for workload in session.workloads[:2]:
        with session.cell(f"{workload.name}: saves") as timely, tempfile.TemporaryDirectory() as folder:
            if timely:
                raw[workload.name] = found = _saves(session, workload, Path(folder))
                rows.append([workload.name, *(f"{found[name]:.3f}" for name in ("plain", "first", "later"))])
                rows[-1].append(f"{found['later'] / found['plain']:.2f}")
    return Report(
        title="Saving",
        method="Weights and optimiser of a network on the device; seconds that the loop waits. Plain: `torch.save`.",
        header=["network", "plain", "first save of a run", "later saves", "later / plain"],
        rows=rows,
        raw=raw,
    )


def _saves(session: Session, workload: Workload, folder: Path) -> dict[str, float]:
    model, forward = workload.make(session.device)
    engine = engine_of(model, session.kind, session.device, samples=workload.size)
    window = [MicroBatch(on(session.device, workload.batch(workload.size)))]
    engine.run_window(forward, window)

    def state() -> dict[str, Any]:
        return {"model": model.state_dict(), "engine": engine.state_dict()}

    def waited(save: Callable[[], object]) -> float:
        synchronise(session.device)
        return seconds(save)

    plain = waited(lambda: torch.save(state(), folder / "plain.pth"))
    store = CheckpointStore(folder / "checkpoints", keep_last=1)
    try:
        first = waited(lambda: store.save(state(), step=1))
        store.wait()
        later = waited(lambda: store.save(state(), step=2))
        store.wait()
    finally:
        store.close()
    return {"plain": plain, "first": first, "later": later}


def curves(session: Session) -> Report:
    """What low precision does to the loss."""
    rows, raw, count = [], {}, session.steps(60)
    for workload in session.workloads[:1] + session.workloads[-1:]:
        found = {}
        for kind in session.kinds:
            with session.cell(f"{workload.name}, {kind}: loss") as timely:
                if timely:
                    found[kind] = _losses(session, workload, kind, count)
        raw[workload.name] = found
        if found:
            ends = [f"{statistics.mean(found[kind][-5:]):.4f}" if kind in found else "" for kind in session.kinds]
            rows.append([workload.name, f"{next(iter(found.values()))[0]:.4f}", *ends])
    return Report(
        title="The loss in each precision",
        method=f"{count} steps on one batch from the same weights: the first loss, then the mean of the last five.",
        header=["network", "first", *session.kinds],
        rows=rows,
        raw=raw,
    )


def _losses(session: Session, workload: Workload, kind: Kind, count: int) -> list[float]:
    model, forward = workload.make(session.device)
    size = min(workload.size, 16)
    with arithmetic(kind):
        engine = engine_of(model, kind, session.device, samples=size)
        window = [MicroBatch(on(session.device, workload.batch(size)))]
        found = []
        for _ in range(count):
            engine.run_window(forward, window)
            found.append(engine.read_totals().loss)
    return found
