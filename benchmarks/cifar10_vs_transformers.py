"""Our Perceiver and transformers' of the same width and depth, trained side by side on CIFAR-10.

    python -m benchmarks.cifar10_vs_transformers --data_dir DIR            about twenty minutes on two cores

DIR holds `cifar10.tar`, or a folder `cifar10/`, with train/<class>/<image> and test/<class>/<image>. Both models see
the same batches with the same augmentation, tokens and position features, in the same order, through the same trainer,
for the same number of steps. Each gets the learning rate of a short grid search that is best for it on a tenth of the
training images; test images are looked at once, at the end. Epochs take turns, so that a busy machine slows both down.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import NOT_INSTALLED, Goal, Options, Report, peer, run_alone
from benchmarks.perceivers import Shape, of_transformers, ours, parameter_count
from mlcore.base.seeding import seed_everything
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from mlcore.training.engine import Engine
from mlcore.training.evaluator import Evaluator
from mlcore.training.optim import build_optimizer, parameter_groups
from mlcore.training.progress import Limits
from mlcore.training.schedules import lr_table
from mlcore.training.trainer import Trainer
from quartet.apps.perceiver.data.image_augment import image_augmentation
from quartet.apps.perceiver.data.images import ImageSource
from quartet.apps.perceiver.data.patches import ImagePatches
from quartet.apps.perceiver.data.samples import Subset
from quartet.apps.perceiver.task import Objective, PerceiverTask

_THREADS, _BATCH, _DECAY = 2, 64, 0.05
_RATES = (3e-4, 1e-3, 3e-3)
_WIDTH, _HEADS, _LATENTS, _LAYERS = 128, 4, 32, 3


_TITLE = "CIFAR-10 against transformers"
_METHOD = (
    f"Perceivers of width {_WIDTH} with {_HEADS} heads, {_LATENTS} latents, one cross-attention and {_LAYERS} "
    "self-attention layers on 4 x 4 patches with two-dimensional Fourier positions; the same batches of "
    f"{_BATCH} with the same augmentation (flips, shifts), label smoothing 0.1, AdamW with weight decay {_DECAY}, "
    f"clipping, warm-up and cosine, the same trainer, {_THREADS} threads. The learning rate of each is the best of "
    f"{', '.join(f'{rate:g}' for rate in _RATES)} on a tenth of the training images; test images are used once."
)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to train: epochs of the learning-rate search and of the comparison; None takes all images."""

    search_epochs: int
    epochs: int
    images: int | None = None


@dataclass(frozen=True)
class Images:
    """Training and test images as patches, with what standardises them."""

    train: ImagePatches
    test: ImagePatches
    mean: Tensor
    deviation: Tensor

    @classmethod
    def load(cls, path: Path, *, images: int | None) -> "Images":
        """Read both splits; `images` keeps every k-th image, so that about so many are left."""
        source = ImageSource(path)
        parts = []
        for split in ("train", "test"):
            data = source.load("train" if split == "train" else "test")
            every = slice(None, None, 1 if images is None else max(1, len(data.labels) // images))
            kept = dataclasses.replace(data, images=data.images[every], labels=data.labels[every])
            parts.append(ImagePatches(dataclasses.replace(kept, origins=data.origins[every]), patch_size=4))
        train, test = parts
        tokens = np.concatenate([np.asarray(train[i]["input"]) for i in range(0, len(train), 10)])  # [N, C]
        return cls(train, test, torch.from_numpy(tokens.mean(0)), torch.from_numpy(tokens.std(0) + 1e-6))

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """Standardised tokens [B, M, C] and labels [B]."""
        tokens = torch.from_numpy(np.stack([sample["input"] for sample in samples]))
        labels = torch.tensor([sample["label"] for sample in samples])
        return {"input": (tokens - self.mean) / self.deviation, "label": labels}


class _Side:
    """One model in training."""

    def __init__(
        self, make: Callable[[Shape], nn.Module], data: Images, *, indices: Sequence[int], rate: float, epochs: int
    ) -> None:
        seed_everything(0)
        layout = data.train.layout
        shape = Shape(
            channels=layout.pixel_channels + layout.positions.shape[1],
            width=_WIDTH,
            heads=_HEADS,
            latents=_LATENTS,
            layers=_LAYERS,
            classes=len(data.train.classes),
        )
        self._data, self._epochs, self.seconds = data, epochs, 0.0
        self.model = make(shape)
        self.task = PerceiverTask(
            model=self.model, class_names=data.train.classes, objective=Objective(label_smoothing=0.1)
        )
        order = EpochOrder(size=len(indices), batch_size=_BATCH, drop_last=True)
        loader = BatchLoader(
            Subset(data.train, indices=indices),
            order,
            transform=image_augmentation(layout, strength="weak"),
            collate=data.collate,
        )
        self.trainer = self._trainer(loader, rate)

    def _trainer(self, loader: BatchLoader, rate: float) -> Trainer:
        groups = parameter_groups(self.model, lr=rate, weight_decay=_DECAY)
        steps = self._epochs * len(loader)
        table = lr_table(
            "warmup_cosine",
            {"warmup_steps": steps // 20},
            base_lrs=[group["lr"] for group in groups],
            total_steps=steps,
            steps_per_epoch=len(loader),
        )
        engine = Engine(self.model, build_optimizer(groups), learning_rates=table, max_grad_norm=1.0)
        return Trainer(task=self.task, engine=engine, loader=loader, evaluator=None, limits=Limits(epochs=0))

    def train_epoch(self) -> None:
        """One more epoch; its wall time is added up."""
        done = self.trainer.progress.epoch
        self.trainer.limits = Limits(epochs=done + 1)
        begun = time.perf_counter()
        outcome = self.trainer.fit()
        self.seconds += time.perf_counter() - begun
        if outcome.status == "interrupted":  # the trainer ends its step in good order; a benchmark has no use for that
            raise KeyboardInterrupt

    def accuracy(self, dataset: Any) -> float:
        """Share of images of `dataset` that are classified rightly."""
        order = EpochOrder(size=len(dataset), batch_size=200, shuffle=False)
        loader = BatchLoader(dataset, order, collate=self._data.collate)
        predictions = Evaluator(self.task, loader).predict(self.model)
        return float((predictions["probabilities"].argmax(1) == predictions["label"]).double().mean())


def measure(options: Options) -> Report:
    """Search both learning rates, train both models, test both."""
    path = next((p for p in (options.data_dir / "cifar10.tar", options.data_dir / "cifar10") if p.exists()), None)
    if path is None or peer("transformers") is None:
        reason = f"transformers is {NOT_INSTALLED}" if path else f"no cifar10.tar or cifar10 in {options.data_dir}"
        return Report(title=_TITLE, method=_METHOD, skipped=reason)
    torch.set_num_threads(_THREADS)
    budget = Budget(search_epochs=1, epochs=1, images=200) if options.quick else Budget(search_epochs=1, epochs=20)
    data = Images.load(path, images=budget.images)
    makers: dict[str, Callable[[Shape], nn.Module]] = {"mlcore": ours, "transformers": of_transformers}
    searched = {name: _search(make, data, budget, name) for name, make in makers.items()}
    rates = {name: max(found, key=lambda rate: found[rate]) for name, found in searched.items()}
    everything = range(len(data.train))
    sides = {
        name: _Side(make, data, indices=everything, rate=rates[name], epochs=budget.epochs)
        for name, make in makers.items()
    }
    for epoch in range(budget.epochs):
        for side in list(sides.values())[:: 1 if epoch % 2 == 0 else -1]:
            side.train_epoch()
        _say(f"epoch {epoch + 1} of {budget.epochs}", {name: side.seconds for name, side in sides.items()}, "s")
    accuracies = {name: side.accuracy(data.test) for name, side in sides.items()}
    return _report(sides, accuracies, rates, searched, images=(len(data.train), len(data.test)))


def _search(make: Callable[[Shape], nn.Module], data: Images, budget: Budget, name: str) -> dict[float, float]:
    """Validation accuracy of each learning rate after a short training on nine tenths of the training images."""
    everything = np.arange(len(data.train))
    held_out = everything % 10 == 9  # images are sorted by class, so this takes a tenth of each
    found = {}
    for rate in _RATES:
        indices = everything[~held_out].tolist()
        side = _Side(make, data, indices=indices, rate=rate, epochs=budget.search_epochs)
        for _ in range(budget.search_epochs):
            side.train_epoch()
        found[rate] = side.accuracy(Subset(data.train, indices=everything[held_out]))
        _say(f"{name}, learning rate {rate:g}", {"validation accuracy": found[rate], "seconds": side.seconds})
    return found


def _report(
    sides: dict[str, _Side],
    accuracies: dict[str, float],
    rates: dict[str, float],
    searched: dict[str, dict[float, float]],
    *,
    images: tuple[int, int],
) -> Report:
    mine, theirs = sides
    share = sides[mine].seconds / sides[theirs].seconds
    better = accuracies[mine] >= accuracies[theirs]
    return Report(
        title=_TITLE,
        method=_METHOD,
        header=["model", "parameters", "learning rate", "steps", "test accuracy", "training time, s"],
        rows=[
            [
                name,
                f"{parameter_count(side.model):,}",
                f"{rates[name]:g}",
                str(side.trainer.progress.step),
                f"{accuracies[name]:.4f}",
                f"{side.seconds:.0f}",
            ]
            for name, side in sides.items()
        ],
        goals=[
            Goal(
                f"test accuracy of at least that of {theirs}'", f"{accuracies[mine] - accuracies[theirs]:+.4f}", better
            ),
            Goal("in less time", f"{share:.2f} of its training time", share < 1.0),
        ],
        notes=_notes(searched, images),
        raw={
            "accuracy": accuracies,
            "seconds": {name: side.seconds for name, side in sides.items()},
            "search": searched,
        },
    )


def _notes(searched: dict[str, dict[float, float]], images: tuple[int, int]) -> list[str]:
    found = [
        f"{name} " + ", ".join(f"{rate:g}: {value:.3f}" for rate, value in values.items())
        for name, values in searched.items()
    ]
    return [
        f"{images[0]:,} training and {images[1]:,} test images; an accuracy's standard error is about "
        f"{np.sqrt(0.24 / images[1]):.3f}.",
        f"Validation accuracy after the short search: {'; '.join(found)}.",
    ]


def _say(title: str, figures: dict[str, float], unit: str = "") -> None:
    print(f"{title}: " + ", ".join(f"{name} {value:.3f}{unit}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    run_alone(measure)
