"""What plain models make of the same samples in tasks other than classification."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlcore.metrics.arrays import FloatArray
from mlcore.run.baseline import Baseline
from mlcore.run.build import Data
from mlcore.training.evaluator import Predictions
from mlcore.training.plain import fewer
from quartet.apps.perceiver.baselines import AT_ONCE, few, rocket_for, shown
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.gaps import filled
from quartet.apps.perceiver.output_task import OutputTask
from quartet.apps.perceiver.outputs import Outputs

__all__ = ["output_baselines"]

Sample = Mapping[str, Any]
Answering = Callable[[Sequence[Sample]], Iterable[NDArray[Any]]]
"""From prepared samples to what a network would give, [outputs] or [K, outputs] each."""

_LONGEST_SEASON, _LOOKED_AT = 256, 50  # positions; training series that the season is chosen on


def output_baselines(parts: Mapping[str, Data], *, outputs: Outputs, length: int) -> list[Baseline]:
    """The baselines of a run.

    Args:
        parts: Samples by split, with "train"; all can be used.
        outputs: What is asked.
        length: The longest sequence, in positions.
    """
    known: Mapping[str, Mapping[str, Callable[..., Answering]]] = {
        "forecast": {"last value": _last, "seasonal naive": _seasonal},
        "per_step": {"majority class" if outputs.classes else "mean": _majority},
        "masked": {"lines between what is seen": _lines},
    }
    fits = known.get(outputs.kind, {"MiniRocket and ridge regression": _ridge})
    return [
        Baseline(name=name, predict=partial(_rows, parts, partial(fit, outputs), outputs, length))
        for name, fit in fits.items()
    ]


def _rows(
    parts: Mapping[str, Data], fit: Callable[[Sequence[Sample]], Answering], outputs: Outputs, length: int
) -> Mapping[str, Predictions]:
    """What the task makes of answers that are those of a network."""
    places = fewer([0] * len(parts["train"].dataset), most=few(parts["train"].dataset)).tolist()
    answer = fit([_sample(parts["train"], place) for place in places])
    task = OutputTask(model=torch.nn.Identity(), outputs=outputs, length=length)
    found: dict[str, Predictions] = {}
    for name, data in parts.items():
        if name == "train":
            continue
        rows = list[Mapping[str, torch.Tensor]]()
        for start in range(0, len(data.dataset), AT_ONCE):
            samples = [_sample(data, place) for place in range(start, min(start + AT_ONCE, len(data.dataset)))]
            given = [torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in answer(samples)]
            padded = torch.nn.utils.rnn.pad_sequence(given, batch_first=True)
            with torch.no_grad():
                rows.append(task.rows(padded, PadCollate()(samples)))
        found[name] = {key: torch.cat([one[key] for one in rows]) for key in rows[0]}
    return found


def _sample(data: Data, place: int) -> Sample:
    assert data.prepare is not None  # noqa: S101 - it is what asks
    found: Sample = data.prepare(data.dataset[place])
    return found


def _ridge(outputs: Outputs, train: Sequence[Sample]) -> Answering:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    series = [shown(sample, None) for sample in train]
    rocket = rocket_for(series)
    ridge = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-3, 3, 10)))
    ridge.fit(rocket(series), np.stack([sample["target"] for sample in train]))

    def answer(samples: Sequence[Sample]) -> NDArray[Any]:
        found = np.reshape(ridge.predict(rocket([shown(sample, None) for sample in samples])), (len(samples), -1))
        chances = found.clip(1e-3, 1 - 1e-3)  # of labels that are 0 and 1
        return found if outputs.kind == "regression" else np.log(chances / (1 - chances))

    return answer


def _majority(outputs: Outputs, train: Sequence[Sample]) -> Answering:
    """The shares of the classes of all positions, or the mean, which is 0 where numbers are standardised."""
    answer = np.zeros(len(outputs.names))
    if outputs.classes:
        counts = np.bincount(np.concatenate([sample["target"] for sample in train]), minlength=len(answer))
        answer = np.log((counts + 1) / (counts.sum() + len(answer)))
    return lambda samples: (np.tile(answer, (len(sample["query"]), 1)) for sample in samples)


def _before(outputs: Outputs, sample: Sample, *, season: int) -> FloatArray:
    """What was there a season, or as many as it takes, before each position."""
    seen = len(sample["input"]) - outputs.horizon
    series = outputs.standardised(_drawn(outputs, sample)[:seen, list(outputs.channels)])
    season = min(season, seen)
    return series[seen - season + np.arange(outputs.horizon) % season].astype(np.float64)


def _last(outputs: Outputs, _train: Sequence[Sample]) -> Answering:
    return lambda samples: (_before(outputs, sample, season=1) for sample in samples)


def _seasonal(outputs: Outputs, train: Sequence[Sample]) -> Answering:
    """With the season, longer than 1, whose forecasts of the training series are the best."""
    chosen = train[:: max(1, len(train) // _LOOKED_AT)]
    most = min(_LONGEST_SEASON, max(len(sample["input"]) for sample in train) - outputs.horizon)

    def error(season: int) -> float:
        off = [_before(outputs, sample, season=season) - sample["target"] for sample in chosen]
        return float(np.nanmean(np.square(np.concatenate(off))))

    season = min(range(2, most + 1), key=error, default=1)
    return lambda samples: (_before(outputs, sample, season=season) for sample in samples)


def _lines(outputs: Outputs, _train: Sequence[Sample]) -> Answering:
    channels = list(outputs.channels)
    return lambda samples: (
        outputs.standardised(_drawn(outputs, sample)[sample["query"]][:, channels]) for sample in samples
    )


def _drawn(outputs: Outputs, sample: Sample) -> NDArray[np.float32]:
    """The series with lines through what is not seen."""
    series = np.asarray(sample["input"])
    known = np.broadcast_to(np.asarray(sample["mask"])[:, None] == 1, series.shape)
    times = None if outputs.time_step is None else series[:, -1]
    return filled(series, known=known, gaps=~known, times=times)
