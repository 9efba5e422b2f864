"""A whole app in a few lines, for the tests of what surrounds an app: it fits a line to generated points."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlcore.base.distributed import World
from mlcore.cli.app import App
from mlcore.config.schedule import SchedulerConfig
from mlcore.config.section import Section, field
from mlcore.config.sections import CheckpointConfig, RunConfig, TrackingConfig, TrainConfig
from mlcore.report.page import RunReport
from mlcore.run.build import Data, TrainingSetup
from mlcore.run.final_evaluation import Pages, Results
from mlcore.run.group import RunGroup, ablations
from mlcore.training.engine import StepOutput


class LineConfig(Section):
    """What is special about this app."""

    seeds: int = field(0, "Runs of a group, each with a seed of its own", ge=0)
    steeper: bool = field(default=False, description="Train a variant with a steeper line, too")
    slope: float = field(2.0, "Slope of the line")
    has_test: bool = field(default=True, description="Whether there is a test set")
    classes: tuple[str, ...] = field(("down", "up"), "Noted in checkpoints", continued="applied")
    broken_seed: int = field(-1, "The run with this seed cannot be built")


class ToyConfig(Section):
    """All settings."""

    line: LineConfig = field(LineConfig(), "The line")
    train: TrainConfig = field(TrainConfig(), "Training")
    scheduler: SchedulerConfig = field(SchedulerConfig(), "Learning rate")
    run: RunConfig = field(RunConfig(), "Run")
    checkpoint: CheckpointConfig = field(CheckpointConfig(), "Checkpoints")
    tracking: TrackingConfig = field(TrackingConfig(), "Trackers")


class Line:
    """Least squares on y = slope * x."""

    def __init__(self, config: LineConfig) -> None:
        self.model: nn.Module = nn.Linear(1, 1, bias=False)
        self.metadata: Mapping[str, Any] = {"class_names": list(config.classes)}

    def training_step(self, model: nn.Module, batch: dict[str, Tensor]) -> StepOutput:
        error = model(batch["x"]) - batch["y"]
        return StepOutput(error.square().sum(), len(error))

    def evaluation_step(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"error": (model(batch["x"]) - batch["y"]).square().squeeze(1)}

    def metrics(self, predictions: Mapping[str, Tensor]) -> dict[str, float]:
        return {"loss": float(predictions["error"].mean()), "n": float(len(predictions["error"]))}


def points(config: LineConfig, *, size: int, seed: int) -> Data:
    """Map-style data set of {"x": [1], "y": [1]}, float32."""
    x = torch.randn(size, 1, generator=torch.Generator().manual_seed(seed))
    return Data(dataset=[{"x": row, "y": config.slope * row} for row in x])  # type: ignore[arg-type]


def build(config: ToyConfig, world: World) -> TrainingSetup:
    """The setup of a run; it leaves `finished.txt` in the run folder."""
    if config.run.seed == config.line.broken_seed:
        raise RuntimeError("this seed is broken")
    held_out = {"val": points(config.line, size=8, seed=1)}
    if config.line.has_test:
        held_out["test"] = points(config.line, size=6, seed=2)
    return TrainingSetup(
        task=Line(config.line),
        train=points(config.line, size=32, seed=0),
        evaluation=held_out,
        finish=lambda folder, summary: (folder / "finished.txt").write_text(summary["status"]) and None,
        warnings=["a toy"],
    )


def group(config: ToyConfig) -> RunGroup[ToyConfig] | None:
    """Runs with other seeds, or a variant, where the configuration asks for them."""
    alone = config.model_copy(update={"line": config.line.model_copy(update={"seeds": 0, "steeper": False})})
    if config.line.steeper:
        return ablations(config, {"steeper": _with(alone, slope=2 * config.line.slope)})
    if not config.line.seeds:
        return None
    seeds = range(config.line.seeds)
    configs = {
        f"seeds/seed_{k}": alone.model_copy(update={"run": config.run.model_copy(update={"seed": k})}) for k in seeds
    }
    return RunGroup(what="seed", configs=configs, aggregate=_mean)


def _with(config: ToyConfig, **changes: Any) -> ToyConfig:
    return config.model_copy(update={"line": config.line.model_copy(update=changes)})


def _mean(folder: Path, results: Mapping[str, Results], pages: Pages | None) -> Pages:
    assert pages is None  # there is no run in the group's own folder
    losses = {name: figures["val"]["loss"] for name, figures in results.items()}
    with (folder / "seeds.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(losses.items())
    mean = sum(losses.values()) / len(losses)
    summary = {"status": "finished", "results_of_best_checkpoint": {"val": {"loss": mean}}}
    return Pages(summary=summary, report=RunReport(title="seeds", subtitle="", headlines=[], sections=[]))


def toy_app(folder: Path) -> App[ToyConfig]:
    """The app, with its configurations and runs below `folder`."""
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs/default.yaml").write_text(
        "train: {epochs: 2, batch_size: 8, lr: 0.1, optimizer: sgd, early_stopping: {metric: loss}}\n"
        "run: {num_workers: 0, num_threads: 1, device: cpu}\n"
        "tracking: {tensorboard: false}\n"
    )
    return App(
        name="toy",
        title="Toy",
        description="Fits a line.",
        config_cls=ToyConfig,
        config_dir=folder / "configs",
        build=build,
        run_name=lambda config: "line",
        own_data="there is none",
        root=folder / "runs",
        group=group,
    )
