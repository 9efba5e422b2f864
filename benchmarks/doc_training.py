"""Training on pages: our trainer beside the loop of timm's own training script.

python -m benchmarks.doc_training            about six minutes on two cores; a larger network where there is a GPU
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from benchmarks.common import Goal, Options, Report, alternate, median_text, peer, ratio, ratio_text, run_alone
from benchmarks.doc_models import IMAGE_SIZE, TITLES, PageKind, write_pages
from mlcore.base.distributed import World
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.engine import Engine, Precision, autocast
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Cadence, Limits
from mlcore.training.schedules import lr_table
from mlcore.training.trainer import Trainer
from quartet.apps.doc_ensemble.data.dataset import Fit, PageDataset, Prepare
from quartet.apps.doc_ensemble.data.generated import TYPES
from quartet.apps.doc_ensemble.model.classifier import create_model
from quartet.apps.doc_ensemble.task import DocTask

_RATE, _DECAY, _CLIP, _LOG_EVERY = 1e-3, 0.05, 1.0, 50
_AT_LEAST = 0.95
_MEAN, _STD = 0.449, 0.226  # of grey pages, for timm's loader; ours takes the network's own, which are these
_PEER = "timm"
# As `Any`: timm's packages do not say what they export.
_data, _optim, _scheduler, _utils = (peer(f"timm.{part}") for part in ("data", "optim", "scheduler", "utils"))


@dataclass(frozen=True)
class _Case:
    """What is trained on what.

    Attributes:
        model: In timm.
        kind: Of pages.
        pages: In an epoch.
        batch: Pages of a step.
        workers: That read pages.
        epochs: The first one is not counted.
        device: Where.
    """

    model: str
    kind: PageKind
    pages: int
    batch: int
    workers: int
    epochs: int = 3
    device: torch.device = field(default=torch.device("cpu"))

    @property
    def precision(self) -> Precision:
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def steps_per_epoch(self) -> int:
        return self.pages // self.batch

    @property
    def title(self) -> str:
        return f"{self.model}, {self.device.type}, {self.precision}; {TITLES[self.kind]}; {self.workers} workers"


def _cases(*, quick: bool) -> list[_Case]:
    if quick:
        return [_Case("test_resnet", "384", 32, 8, 0, epochs=2)]
    cases = [_Case("test_resnet", "384", 256, 32, 2), _Case("test_resnet", "a4", 128, 32, 2)]
    cases.append(_Case("resnet18", "384", 64, 16, 2))
    if torch.cuda.is_available():
        cases += [_Case("resnet50", kind, 1024, 64, 8, device=torch.device("cuda")) for kind in ("384", "a4")]
    return cases


def measure(options: Options) -> Report:
    """Every case, loops in turns."""
    rounds = 1 if options.quick else 5
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in _cases(quick=options.quick):
            write_pages(Path(folder), case.kind, case.pages)
            sides: dict[str, Callable[[], float]] = {
                "ours": partial(_ours, case, Path(folder)),
                _PEER: partial(_timm, case, Path(folder)),
            }
            found[case.title] = alternate(sides, rounds=rounds)
            print(f"{case.title}: {found[case.title]}", flush=True)
    rows, goals = [], []
    for title, rates in found.items():
        rows.append(
            [title, *(median_text(values) for values in rates.values()), ratio_text(rates["ours"], rates[_PEER])]
        )
        value = ratio(rates["ours"], rates[_PEER])[0]
        goals.append(Goal(f"{title}: at least {_AT_LEAST} of timm's pace", f"{value:.2f}", value >= _AT_LEAST))
    return Report(
        title="Training on pages",
        method=(
            f"Networks with random weights at {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}, grey, {len(TYPES)} classes, AdamW, "
            f"clipping to {_CLIP}, cosine per step, channels_last, no augmentation and no evaluation: reading, steps "
            "and the loop. Ours: `Trainer` with `DocTask`, fused AdamW. timm's train.py is not in its package; its "
            "loop is written here with what it uses, at its defaults (its ImageFolder dataset, `create_loader` with "
            "prefetcher, `create_optimizer_v2`, `create_scheduler_v2`, `dispatch_clip_grad`, `AverageMeter`); it reads "
            "the loss every step. Pages per second after the first epoch, median (smallest..largest); ratios are of "
            "the same round, above 1 means that ours is faster."
        ),
        header=["training", "ours", _PEER, "ours / timm"],
        rows=rows,
        goals=goals,
        notes=[
            "Ours scales pages by averaging areas, timm bilinearly with Pillow. Ours also looks at the size in each "
            "file's header before decoding it and makes the same batches for any number of workers.",
        ],
        raw=found,
    )


class _Clock:
    """Notes when the forward pass of a given step begins; waits for the device only there."""

    def __init__(self, case: _Case, model: nn.Module) -> None:
        self._first = case.steps_per_epoch + min(
            2, case.steps_per_epoch - 1
        )  # the second epoch's start is not its pace
        self._last = case.epochs * case.steps_per_epoch - 1
        self._case, self._calls = case, 0
        self._times: list[float] = []
        model.register_forward_pre_hook(self._begin)

    def _begin(self, *_: object) -> None:
        if self._calls in (self._first, self._last):
            if self._case.device.type == "cuda":
                torch.cuda.synchronize()
            self._times.append(time.perf_counter())
        self._calls += 1

    def rate(self) -> float:
        """Pages per second."""
        first, last = self._times
        return (self._last - self._first) * self._case.batch / (last - first)


# ---------------------------------------------------------------------------------------------------------------- ours


def _ours(case: _Case, folder: Path) -> float:
    torch.manual_seed(0)
    model = create_model(case.model, class_names=TYPES, pretrained=False, image_size=IMAGE_SIZE, in_channels=1)
    model = model.to(case.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    task, clock = DocTask(model=model, class_names=TYPES), _Clock(case, model)
    groups = parameter_groups(model, lr=_RATE, weight_decay=_DECAY)
    steps = case.epochs * case.steps_per_epoch
    engine = Engine(
        model.train(),
        build_optimizer(groups),
        learning_rates=lr_table(
            "cosine", {}, base_lrs=[_RATE] * len(groups), total_steps=steps, steps_per_epoch=case.steps_per_epoch
        ),
        precision=case.precision,
        max_grad_norm=_CLIP,
        nominal_count=case.batch,
        world=World(device=case.device),
    )
    pages, fit = write_pages(folder, case.kind, case.pages), Fit(IMAGE_SIZE)
    loader = BatchLoader(
        PageDataset(pages, max_pixels=10**8, grey=True, fit=fit),
        EpochOrder(size=len(pages), batch_size=case.batch, drop_last=True),
        prepare=Prepare(fit, mean=(0.0,) * 3, std=(1.0,) * 3),
        num_workers=case.workers,
        pin_memory=case.device.type == "cuda",
    )
    Trainer(
        task=task,
        engine=engine,
        loader=loader,
        evaluator=None,
        limits=Limits(epochs=case.epochs),
        cadence=Cadence(log_every=_LOG_EVERY),
        tracker=_Silent(),
    ).fit()
    return clock.rate()


class _Silent:
    """A tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def image(self, step: int, name: str, path: Path) -> None:
        pass

    def close(self, *, status: str) -> None:
        pass

    def state(self) -> dict[str, str]:
        return {}


# ---------------------------------------------------------------------------------------------------------------- timm


def _timm(case: _Case, folder: Path) -> float:
    torch.manual_seed(0)
    model = timm.create_model(case.model, num_classes=len(TYPES), in_chans=1)
    model = model.to(case.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    clock = _Clock(case, model)
    loader = _data.create_loader(
        _data.create_dataset("", str(folder / case.kind), is_training=True, input_img_mode="L"),
        input_size=(1, *IMAGE_SIZE),
        batch_size=case.batch,
        is_training=True,
        no_aug=True,
        mean=(_MEAN,) * 3,
        std=(_STD,) * 3,
        num_workers=case.workers,
        persistent_workers=case.workers > 0,
        device=case.device,
    )
    optimizer = _optim.create_optimizer_v2(model, opt="adamw", lr=_RATE, weight_decay=_DECAY)
    scheduler, _ = _scheduler.create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=case.epochs, step_on_epochs=False, updates_per_epoch=len(loader)
    )
    loss_of, updates = nn.CrossEntropyLoss().to(case.device), 0
    for epoch in range(case.epochs):
        updates = _timm_epoch(case, model, loader, loss_of, optimizer, scheduler, updates=updates)
        scheduler.step(epoch + 1)
    return clock.rate()


def _timm_epoch(
    case: _Case, model: nn.Module, loader: Any, loss_of: nn.Module, optimizer: Any, scheduler: Any, *, updates: int
) -> int:
    """What `train_one_epoch` of timm's train.py does for one process without mixup and averaged weights."""
    losses, batch_time, data_time = (_utils.AverageMeter() for _ in range(3))
    model.train()
    optimizer.zero_grad()
    end = time.time()
    for index, (pixels, target) in enumerate(loader):
        data_time.update(time.time() - end)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with autocast(case.precision, case.device):
            loss: Tensor = loss_of(model(pixels), target)
        loss.backward()  # type: ignore[no-untyped-call]
        _utils.dispatch_clip_grad(model.parameters(), value=_CLIP, mode="norm")
        optimizer.step()
        losses.update(loss.item(), pixels.size(0))
        updates += 1
        optimizer.zero_grad()
        batch_time.update(time.time() - end)
        if index % _LOG_EVERY == 0:
            np.mean([group["lr"] for group in optimizer.param_groups])
        scheduler.step_update(num_updates=updates, metric=losses.avg)
        end = time.time()
    return updates


if __name__ == "__main__":
    run_alone(measure)
