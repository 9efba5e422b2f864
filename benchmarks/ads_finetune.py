"""A full fine-tuning step of a SigLIP 2 tower, ours beside a plain loop around transformers' model.

python -m benchmarks.ads_finetune            about two minutes on two cores; the whole Base model where there is a GPU
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ads_models import write_tower
from benchmarks.common import Goal, Options, Report, alternate, median_text, peer, ratio, ratio_text, run_alone, seconds
from mlcore.base.distributed import World
from mlcore.data.batch import MicroBatch
from mlcore.training.engine import Engine, Precision, autocast
from mlcore.training.optim import build_optimizer, parameter_groups
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.loading import quiet_loading
from quartet.apps.multimodal_ads.model.build import make_parts
from quartet.apps.multimodal_ads.task import AdTask, Objective

_SIDE = 224
_RATE, _DECAY, _CLIP = 1e-5, 0.01, 1.0
_AT_MOST = 1.05


@dataclass(frozen=True)
class _Setup:
    """How much is trained, and where.

    Attributes:
        layers: Transformer layers; SigLIP 2 Base has 12.
        batch: Pictures of a step.
        threads: CPU threads.
        device: Where.
    """

    layers: int
    batch: int
    threads: int
    device: torch.device

    @property
    def precision(self) -> Precision:
        return "bf16" if self.device.type == "cuda" else "fp32"


def measure(options: Options) -> Report:
    """Our step and the plain loop's, in turns, from the same weights."""
    setup = _setup(quick=options.quick)
    torch.set_num_threads(setup.threads)
    where = torch.cuda.get_device_name() if setup.device.type == "cuda" else f"CPU, {setup.threads} threads"
    title = "Full fine-tuning step of SigLIP 2"
    method = (
        f"{where}, {setup.precision}: a vision tower of SigLIP 2 Base's width (768) with {setup.layers} of its 12 "
        f"layers at {_SIDE} x {_SIDE} pixels, random weights, the same on all sides; all of them are trained, vision "
        f"only, mean of the tokens at unit length, a linear layer, binary cross entropy, clipping to {_CLIP}, batch "
        f"{setup.batch}. Ours: `Engine` and `AdClassifier`. The plain loop calls transformers' `SiglipVisionModel` as "
        "it is; AdamW as most scripts write it, and fused, as ours always is. Milliseconds of a step, median "
        "(smallest..largest); the ratio is of the same round."
    )
    if peer("transformers") is None:
        return Report(title=title, method=method, skipped="transformers is not installed; make bench installs it")
    with tempfile.TemporaryDirectory() as folder:
        tower = write_tower(Path(folder), layers=setup.layers, side=_SIDE)
        task, plain = _task(tower, setup), _Plain(tower, setup)
    plain.classifier.load_state_dict(task.model.head.get_submodule("1").state_dict())  # after the dropout
    batch = _batch(setup)
    with torch.no_grad():
        difference = float((task.model(batch).logits - plain(batch)).abs().max())
    sides = {"ours": _our_step(task, batch, setup)}
    sides |= {name: _plain_step(copy.deepcopy(plain), batch, setup, fused=fused) for name, fused in _PLAIN.items()}
    alternate(sides, rounds=1 if options.quick else 2)  # buffers, the optimisers' state
    times = alternate(sides, rounds=1 if options.quick else 9)
    return Report(
        title=title,
        method=method,
        header=["loop", "step, ms", "pictures per second", "ours / this"],
        rows=[_row(name, values, times["ours"], setup) for name, values in times.items()],
        goals=[_goal(name, times) for name in _PLAIN],
        notes=[
            f"{sum(parameter.numel() for parameter in task.model.parameters()):,} trained parameters; largest "
            f"difference of the two models' logits before the first step: {difference:.1e}.",
            "transformers' model always runs SigLIP's pooling head too, whose result a mean of tokens does not use; "
            "ours drops it.",
        ],
        raw=times,
    )


def _row(name: str, values: list[float], ours: list[float], setup: _Setup) -> list[str]:
    rates = median_text([setup.batch / value for value in values])
    return [name, median_text(values, scale=1e3), rates, ratio_text(ours, values) if name in _PLAIN else ""]


def _goal(name: str, times: dict[str, list[float]]) -> Goal:
    found = ratio(times["ours"], times[name])[0]
    return Goal(f"at most {_AT_MOST} of the time of {name}", f"{found:.2f}", found <= _AT_MOST)


def _setup(*, quick: bool) -> _Setup:
    if torch.cuda.is_available():
        return _Setup(layers=12, batch=8 if quick else 64, threads=2, device=torch.device("cuda"))
    cpu = torch.device("cpu")
    return _Setup(layers=1, batch=2, threads=1, device=cpu) if quick else _Setup(4, 8, 2, cpu)


def _batch(setup: _Setup) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixels": {"pixel_values": torch.randn(setup.batch, 3, _SIDE, _SIDE, generator=generator).to(setup.device)},
        "label": torch.randint(0, 2, (setup.batch,), generator=generator).to(setup.device),
    }


def _timed(step: Callable[[], object], device: torch.device) -> Callable[[], float]:
    """Seconds of a step, until the device is done with it."""

    def run() -> None:
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return lambda: seconds(run)


# ---------------------------------------------------------------------------------------------------------------- ours


def _task(tower: Path, setup: _Setup) -> AdTask:
    torch.manual_seed(0)
    settings = {
        "vision_encoder": {"kind": "siglip2", "model": str(tower)},
        "pooling": {"name": "mean"},
        "head": {"hidden_dims": [], "dropout": 0.0},
        "train": {"modality": "vision_only", "freeze_backbone": False, "finetune_layers": -1},
    }
    model = make_parts(AdsConfig.model_validate(settings), device=setup.device).classifier()
    return AdTask(model=model.to(setup.device), objective=Objective(loss_type="bce"))


def _our_step(task: AdTask, batch: dict[str, Any], setup: _Setup) -> Callable[[], float]:
    groups = parameter_groups(task.model, lr=_RATE, weight_decay=_DECAY)
    engine = Engine(
        task.model.train(),
        build_optimizer(groups),
        learning_rates=np.full((2, len(groups)), _RATE),
        precision=setup.precision,
        max_grad_norm=_CLIP,
        world=World(device=setup.device),
    )
    return _timed(lambda: engine.run_window(task.training_step, [MicroBatch(batch)]), setup.device)


# ------------------------------------------------------------------------------------------------------ the plain loop

_PLAIN = {"transformers, AdamW": False, "transformers, AdamW(fused=True)": True}


class _Plain(nn.Module):
    """transformers' vision tower with the same classifier on top."""

    def __init__(self, tower: Path, setup: _Setup) -> None:
        super().__init__()
        from transformers import SiglipVisionModel

        with quiet_loading():
            self.tower = SiglipVisionModel.from_pretrained(tower)
        self.classifier = nn.Linear(self.tower.config.hidden_size, 1)
        self.to(setup.device)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Logits [B]."""
        tokens = self.tower(**batch["pixels"]).last_hidden_state
        logits: Tensor = self.classifier(F.normalize(tokens.mean(dim=1), dim=-1)).squeeze(-1)
        return logits


def _plain_step(model: _Plain, batch: dict[str, Any], setup: _Setup, *, fused: bool) -> Callable[[], float]:
    # `fused=None` is AdamW's own default.
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY, fused=fused or None)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with autocast(setup.precision, setup.device):
            loss = F.binary_cross_entropy_with_logits(model(batch), batch["label"].float())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()

    return _timed(step, setup.device)


if __name__ == "__main__":
    run_alone(measure)
