"""What a plain model makes of the same samples: of series MiniRocket and ridge, of pictures their plain features."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from mlcore.metrics.arrays import FloatArray
from mlcore.run.baseline import Baseline
from mlcore.training.evaluator import Predictions
from mlcore.training.plain import class_rows, describe_picture, fewer, fit_features, fit_texts
from quartet.apps.perceiver.data.gaps import shown_positions
from quartet.apps.perceiver.data.patches import PatchLayout
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.data.samples import SampleDataset
from quartet.apps.perceiver.mini_rocket import MiniRocket

__all__ = ["AT_ONCE", "baselines", "few", "raw_baselines", "rocket_for", "shown"]

_COMPARISONS = 1e9  # of MiniRocket on training positions: seconds
_FEATURES = 9996  # as in the paper
SERIES = 2000
"""Series to learn from at most: ridge of more takes minutes."""
AT_ONCE = 64
"""Series that are in memory together to be predicted."""
_VALUES = 20_000_000  # of training series


def baselines(
    parts: Mapping[str, SampleDataset], *, classes: int, layout: PatchLayout | None, max_seq_len: int | None = None
) -> list[Baseline]:
    """The baselines of a run.

    Args:
        parts: Samples by split, with "train"; all can be used.
        classes: How many there are.
        layout: How pictures were cut; None: they are series.
        max_seq_len: Series are cut to so many positions; None: not at all.
    """

    def pictures(name: str, places: Sequence[int]) -> FloatArray:
        assert layout is not None  # noqa: S101 - of pictures there is one
        images = (layout.image(np.asarray(parts[name][place]["input"])) for place in places)
        return np.stack([describe_picture(image) for image in images])

    def series(name: str, places: Sequence[int]) -> list[FloatArray]:
        return [shown(parts[name][place], max_seq_len) for place in places]

    def predict() -> Mapping[str, Predictions]:
        labels = {name: np.asarray(part.labels).tolist() for name, part in parts.items()}  # type: ignore[attr-defined]
        places = {name: range(len(part)) for name, part in parts.items() if name != "train"}
        most = {} if layout else {"most": few(parts["train"])}
        train = fewer(labels["train"], **most).tolist()
        known = [labels["train"][place] for place in train]
        if layout is None:
            of_series = _fit_series(series("train", train), known, classes=classes)
            chances = {
                name: np.concatenate(
                    [of_series(series(name, those[at : at + AT_ONCE])) for at in range(0, len(those), AT_ONCE)]
                )
                for name, those in places.items()
            }
        else:
            of_pictures = fit_features(pictures("train", train), known, classes=classes)
            chances = {name: of_pictures(pictures(name, those)) for name, those in places.items()}
        return {name: class_rows(labels[name], found) for name, found in chances.items()}

    name = "plain features and logistic regression" if layout else "MiniRocket and ridge regression"
    return [Baseline(name=name, predict=predict)]


def raw_baselines(
    parts: Mapping[str, SampleDataset], *, classes: int, modalities: Sequence[Modality]
) -> list[Baseline]:
    """Baselines of raw samples: of their texts, of their pictures, and where there are both the mean of their logits.

    Args:
        parts: As `baselines`.
        classes: How many there are.
        modalities: Those of the samples; of series there is no baseline here.
    """
    labels = {name: np.asarray(part.labels).tolist() for name, part in parts.items()}  # type: ignore[attr-defined]
    train = fewer(labels["train"]).tolist()
    known = [labels["train"][place] for place in train]
    asked = {name: range(len(part)) for name, part in parts.items() if name != "train"}

    def texts(name: str, places: Sequence[int]) -> list[str]:
        names = [modality.name for modality in modalities if modality.kind == "text"]
        samples = (parts[name][place]["input"] for place in places)
        return [
            "\n".join(bytes(values[key]).decode(errors="replace") for key in names if key in values)
            for values in samples
        ]

    def pictures(name: str, places: Sequence[int]) -> FloatArray:
        those = [modality for modality in modalities if modality.kind == "image"]
        nothing = {one.name: np.zeros((*one.size, 3), dtype=np.uint8) for one in those}
        samples = ({**nothing, **parts[name][place]["input"]} for place in places)
        return np.stack([np.concatenate([describe_picture(values[one.name]) for one in those]) for values in samples])

    @cache
    def chances(kind: str) -> Mapping[str, FloatArray]:
        if kind == "text":
            of_texts = fit_texts(texts("train", train), known, classes=classes)
            return {name: of_texts(texts(name, places)) for name, places in asked.items()}
        of_pictures = fit_features(pictures("train", train), known, classes=classes)
        return {name: of_pictures(pictures(name, places)) for name, places in asked.items()}

    def of(*kinds: str) -> Callable[[], Mapping[str, Predictions]]:
        def predict() -> Mapping[str, Predictions]:
            found = {}
            for name in asked:
                logs = np.mean([np.log(chances(kind)[name].clip(1e-7)) for kind in kinds], axis=0)
                shares = np.exp(logs)
                found[name] = class_rows(labels[name], shares / shares.sum(axis=1, keepdims=True))
            return found

        return predict

    there = {modality.kind for modality in modalities}
    found = []
    if "text" in there:
        found.append(Baseline(name="texts: TF-IDF and logistic regression", predict=of("text")))
    if "image" in there:
        found.append(Baseline(name="pictures: plain features and logistic regression", predict=of("image")))
    if {"text", "image"} <= there:
        found.append(Baseline(name="both: the mean of their logits", predict=of("text", "image")))
    return found


def _fit_series(
    train: Sequence[FloatArray], labels: Sequence[int], *, classes: int
) -> Callable[[Sequence[FloatArray]], FloatArray]:
    """From series to probabilities [N, C]: what ridge decides, through a softmax."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rocket = rocket_for(train)
    ridge = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)))
    ridge.fit(rocket(train), labels)

    def predict(series: Sequence[FloatArray]) -> FloatArray:
        scores = ridge.decision_function(rocket(series))
        scores = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        found = np.zeros((len(series), classes))
        found[:, ridge.classes_] = shares / shares.sum(axis=1, keepdims=True)
        return found

    return predict


def few(train: SampleDataset) -> int:
    """How many series such features are learned from: those of long ones are kept in memory, too."""
    return int(min(SERIES, max(_VALUES // np.asarray(train[0]["input"]).size, 8)))


def rocket_for(series: Sequence[FloatArray]) -> MiniRocket:
    """The features for such series, as many as take seconds."""
    return MiniRocket.fit(series, features=int(min(_FEATURES, max(_COMPARISONS / sum(map(len, series)), 84))))


def shown(sample: Mapping[str, object], longest: int | None) -> FloatArray:
    """The positions [M, C] of a sample that its mask shows."""
    series = np.asarray(sample["input"])[:longest]
    return series[shown_positions(sample["mask"])[:longest]] if "mask" in sample else series
