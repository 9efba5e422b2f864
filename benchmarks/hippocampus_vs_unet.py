"""A small SAM-Med3D from scratch beside MONAI's UNet: same volumes, crops, loss, optimiser and minutes.

python -m benchmarks.hippocampus_vs_unet            about twelve minutes
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common import Goal, Options, Report, run_alone
from mlcore.base.distributed import World
from mlcore.base.seeding import seed_everything
from mlcore.cli.parse import parse
from mlcore.run.build import TrainingSetup, build_trainer, evaluation_loader
from mlcore.training.checkpoint import CheckpointStore, inference_weights, load_checkpoint
from mlcore.training.evaluator import Evaluator
from quartet.apps.sam_med3d_ich.app import APP
from quartet.apps.sam_med3d_ich.build import build
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.split import SplitSizes
from quartet.apps.sam_med3d_ich.preparation import Preparation, prepare_data

_MINUTES = 5.0
_TRIAL_STEPS = 30  # from whose pace the number of epochs follows
_FLOOR, _MARGIN = 0.75, 0.03
_SIDES = {
    "SAM-Med3D vit_tiny (ours)": (),
    "MONAI UNet": ("model.model_type=unet", "model.refine_masks=false", "model.image_size=32"),
}


@dataclass(frozen=True)
class Result:
    """What one side reached.

    Attributes:
        dice: Mean full-volume Dice of the validation cases.
        worst: The smallest of them.
        minutes: Training time.
        epochs: Epochs it had time for.
        parameters: Trained parameters.
    """

    dice: float
    worst: float
    minutes: float
    epochs: int
    parameters: int


def measure(options: Options) -> Report:
    """Train both sides one after the other and evaluate their best checkpoints."""
    source = options.data_dir / "hippocampus"
    title = "Hippocampus from scratch, beside MONAI's UNet"
    minutes = 0.2 if options.quick else _MINUTES
    method = (
        f"60 training and 20 validation volumes split by patient, target: label > 0; {minutes:g} minutes of training "
        "for each side. The same crops of 32^3 voxels, augmentation, DiceCE, AdamW, cosine after warm-up, averaged "
        "weights and sliding windows; the number of epochs is set beforehand from the pace of the first steps. Each "
        "side's best of five evaluations on the validation volumes counts. MONAI UNet: 16-32-64-128 channels, two "
        "residual units."
    )
    if not source.is_dir():
        return Report(title=title, method=method, skipped=f"{source} is not there; name its folder with --data_dir")
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        sizes = SplitSizes(train_cases=60, val_cases=20)
        prepare_data(source, base / "data", Preparation(sizes=sizes, link=True))
        results = {name: _train(base, settings, minutes=minutes) for name, settings in _SIDES.items()}
    ours, unet = results.values()
    return Report(
        title=title,
        method=method,
        header=["network", "parameters", "epochs", "minutes", "mean Dice", "worst case"],
        rows=[
            [name, f"{r.parameters:,}", str(r.epochs), f"{r.minutes:.1f}", f"{r.dice:.4f}", f"{r.worst:.3f}"]
            for name, r in results.items()
        ],
        goals=[
            Goal(f"at least {_FLOOR}", f"{ours.dice:.3f}", ours.dice >= _FLOOR),
            Goal(
                f"not below the UNet by more than {_MARGIN}",
                f"{ours.dice - unet.dice:+.3f}",
                ours.dice >= unet.dice - _MARGIN,
            ),
        ],
        raw={name: vars(result) for name, result in results.items()},
    )


def _train(base: Path, settings: Sequence[str], *, minutes: float) -> Result:
    data = base / "data"
    arguments = ["+experiment=hippocampus", "--train_csv", data / "train.csv", "--val_csv", data / "val.csv"]
    arguments += ["--mask_dir", data / "masks", "--cache_dir", base / "cache", "--num_workers", "0"]
    config: SamMed3DConfig = parse(APP, [*map(str, arguments), *settings]).config
    tried = _setup(config)
    pace = _seconds_per_step(config, tried)
    steps_per_epoch = -(-len(tried.train.dataset) // config.train.batch_size)
    epochs = max(1, int(60 * minutes / (pace * steps_per_epoch)))
    every = max(1, epochs // 5)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"epochs": epochs, "eval_every": every})}
    )
    setup = _setup(config)
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, setup, world=World(), folder=Path(folder))
        begun = time.monotonic()
        trainer.fit()
        taken = time.monotonic() - begun
        best = Path(folder) / CheckpointStore.BEST
        setup.task.model.load_state_dict(inference_weights(load_checkpoint(best), source=best))
    evaluator = Evaluator(setup.task, evaluation_loader(config, setup.validation, world=World()), world=World())
    figures, rows = evaluator.run(setup.task.model)
    parameters = sum(p.numel() for p in setup.task.model.parameters() if p.requires_grad)
    return Result(figures["dice"], float(rows["figures"][:, 0].min()), taken / 60, epochs, parameters)


def _setup(config: SamMed3DConfig) -> TrainingSetup:
    seed_everything(config.run.seed)
    return build(config, World())


def _seconds_per_step(config: SamMed3DConfig, setup: TrainingSetup) -> float:
    trainer = build_trainer(config, setup, world=World())
    begun = 0.0
    for step, window in enumerate(trainer.windows_over_epochs(_TRIAL_STEPS)):
        if step == _TRIAL_STEPS // 3:
            begun = time.monotonic()
        trainer.engine.run_window(setup.task.training_step, window)
    return (time.monotonic() - begun) / (_TRIAL_STEPS - _TRIAL_STEPS // 3)


if __name__ == "__main__":
    torch.set_num_threads(2)
    run_alone(measure)
