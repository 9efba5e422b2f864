"""Learning-rate range test (Smith 2015, arXiv 1506.01186): train while the rate rises, watch where the loss falls."""

import copy
import math
from dataclasses import dataclass

import numpy as np

from mlcore.training.engine import unwrap
from mlcore.training.trainer import Trainer


@dataclass(frozen=True)
class LrCurve:
    """What a range test saw.

    Attributes:
        rates: Learning rate of each step.
        losses: Exponentially smoothed training loss of each step.
        suggestion: A tenth of the rate with the lowest loss: still falling fast, with a margin to divergence.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float


def find_learning_rate(trainer: Trainer, *, steps: int = 100, lowest: float = 1e-7, highest: float = 1.0) -> LrCurve:
    """Run the range test on a fresh trainer; model and optimiser are put back afterwards.

    Args:
        trainer: Not trained yet; its own schedule is not used.
        steps: Windows to run, over more than one epoch if need be.
        lowest: First learning rate.
        highest: Last learning rate; the test ends earlier where the loss diverges.
    """
    engine, model = trainer.engine, unwrap(trainer.engine.model)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(engine.state_dict())
    rates: list[float] = np.geomspace(lowest, highest, steps).tolist()
    losses: list[float] = []
    smooth = math.nan
    kept = engine.replace_learning_rates(np.repeat(np.asarray(rates)[:, None], len(engine.learning_rates()), axis=1))
    model.train()
    try:
        for k, window in enumerate(trainer.windows_over_epochs(steps)):
            engine.run_window(trainer.task.training_step, window)
            loss = engine.read_totals().loss
            smooth = loss if k == 0 else 0.8 * smooth + 0.2 * loss
            if not math.isfinite(loss) or (losses and smooth > 4.0 * min(losses)):
                break
            losses.append(smooth)
    finally:
        engine.replace_learning_rates(kept)
        model.load_state_dict(weights)
        engine.load_state_dict(state)
    return LrCurve(rates[: len(losses)], losses, rates[int(np.argmin(losses))] / 10.0 if losses else rates[0])
