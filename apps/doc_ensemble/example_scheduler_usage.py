"""The seven schedules of the learning rate: settings, figures, and one picture of all.

    python apps/doc_ensemble/example_scheduler_usage.py                 seconds, without network or data
    python apps/doc_ensemble/example_scheduler_usage.py --output DIR    where schedulers.png goes

In a run the same is `scheduler=step scheduler.step_size=30`; lengths are optimiser steps for the two schedules with
warm-up and epochs for the others (`scheduler.unit`).
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlcore.base.files import ensure_folder
from mlcore.cli.main import guarded
from mlcore.config.schedule import SchedulerConfig
from mlcore.report.plots.curves import Series, plot_panels
from mlcore.training.schedules import Plateau, lr_table

LR = 1e-3
EPOCHS, STEPS_PER_EPOCH = 100, 100

SCHEDULES = (
    SchedulerConfig(name="cosine", T_max=100, eta_min=0.0),
    SchedulerConfig(name="step", step_size=30, gamma=0.1),
    SchedulerConfig(name="exponential", gamma=0.95),
    SchedulerConfig(name="plateau", mode="min", factor=0.1, patience=10, verbose=False),
    SchedulerConfig(name="warmup_cosine", warmup_steps=1000, max_steps=10000, min_lr=0.0, warmup_start_lr=0.0),
    SchedulerConfig(name="warmup_linear", warmup_steps=1000, max_steps=10000, min_lr=0.0, warmup_start_lr=0.0),
    SchedulerConfig(name="cosine_warm_restart", T_0=10, T_mult=2, eta_min=1e-6),
)


def learning_rates(schedule: SchedulerConfig) -> NDArray[np.float64]:
    """The learning rate of every optimiser step, float64 [EPOCHS * STEPS_PER_EPOCH]."""
    table = lr_table(
        schedule.name,
        schedule.params(),
        base_lrs=[LR],
        total_steps=EPOCHS * STEPS_PER_EPOCH,
        steps_per_epoch=STEPS_PER_EPOCH,
        unit=schedule.resolved_unit,
    )
    rates = table[:-1, 0]
    return rates * plateau_factors(schedule) if schedule.name == "plateau" else rates


def plateau_factors(schedule: SchedulerConfig) -> NDArray[np.float64]:
    """What a plateau schedule makes of a validation loss that falls for 30 epochs and then no more."""
    watch = Plateau(**schedule.params())
    losses = [max(1.0 - 0.02 * epoch, 0.4) for epoch in range(EPOCHS)]
    factors = [1.0, *(watch.update(loss) for loss in losses)][:-1]  # an epoch's loss acts on the next epoch
    return np.repeat(np.asarray(factors), STEPS_PER_EPOCH)


def main() -> int:
    """Print the learning rate of some epochs, and draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/doc_ensemble/example_schedulers"))
    folder = ensure_folder(parser.parse_args().output)
    epochs = np.arange(EPOCHS * STEPS_PER_EPOCH) / STEPS_PER_EPOCH
    panels: dict[str, dict[str, Series]] = {}
    shown = (0, 5, 10, 30, 50, 75, 99)
    print(f"{'schedule':<20}  " + "  ".join(f"{f'epoch {epoch}':>8}" for epoch in shown))
    for schedule in SCHEDULES:
        rates = learning_rates(schedule)
        print(f"{schedule.name:<20}  " + "  ".join(f"{rates[epoch * STEPS_PER_EPOCH]:8.1e}" for epoch in shown))
        panels[schedule.name] = {"learning rate": (epochs.tolist(), rates.tolist())}
    print(f"\n{plot_panels(panels, path=folder / 'schedulers.png', x_label='epoch')}")
    return 0


if __name__ == "__main__":
    guarded(main)
