"""Perceivers for scikit-learn and what builds on it: `PerceiverClassifier` and `PerceiverRegressor`.

    from quartet.apps.perceiver.estimator import PerceiverClassifier
    print(PerceiverClassifier(epochs=20, random_state=0).fit(X, y).score(X_test, y_test))

Arguments of `fit` and `predict`, channels first as aeon has them:

- `[samples, features]`: each row is a series of one channel, and every column a position of it; so rows of a table do,
  too, where features have one scale (`StandardScaler`), since a channel has one mean and deviation for all positions;
- `[samples, channels, time]`: series of one length;
- a list of arrays `[channels, time]`: series of different lengths.

Training is that of `train.py` without files: all samples, for `epochs`, the last weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from mlcore.base.distributed import World, pick_device
from mlcore.base.errors import UserError
from mlcore.base.seeding import seed_everything, untouched_generators
from mlcore.run.build import build_trainer
from mlcore.training.task import Task
from quartet.apps.perceiver.build import build_of
from quartet.apps.perceiver.config import PerceiverConfig
from quartet.apps.perceiver.data.collate import PadCollate
from quartet.apps.perceiver.data.samples import SequenceDataset
from quartet.apps.perceiver.data.sources import Sources
from quartet.apps.perceiver.data.targets import Targets
from quartet.apps.perceiver.outputs import Outputs

__all__ = ["PerceiverClassifier", "PerceiverRegressor"]

_Array = NDArray[Any]


@dataclass(eq=False, repr=False, kw_only=True)
class _PerceiverEstimator(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both have in common; docs/perceiver.md says what the settings mean.

    Attributes:
        d_model: Width of the latents.
        num_heads: Attention heads; divides `d_model`.
        num_latents: Number of latents.
        num_cross_attention_layers: Times that the latents read the input.
        num_self_attention_layers: Self-attention layers after each of them.
        widening_factor: Hidden width of the perceptrons, in units of `d_model`.
        dropout: Share of elements dropped in each residual branch.
        position: Position features: `sinusoidal`, `fourier`, `learned`, `added`, or `none`.
        pooling: `mean` of the latents, or a learned `query`.
        epochs: Passes over the training data.
        batch_size: Samples of a step.
        lr: Peak learning rate.
        weight_decay: Of matrices.
        ema_decay: Decay of the averaged weights, which then predict; None: none.
        jitter: Deviation of added noise, in deviations of the channel.
        scaling: Deviation of a random factor per channel around 1.
        time_warp: Largest relative stretch of time.
        time_mask: Largest share of positions hidden in one block.
        window_slice: Largest share of positions cut off.
        random_state: Seed of weights, order and augmentation: the same number gives the same model.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
    """

    d_model: int = 64
    num_heads: int = 4
    num_latents: int = 32
    num_cross_attention_layers: int = 1
    num_self_attention_layers: int = 2
    widening_factor: int = 1
    dropout: float = 0.0
    position: str = "sinusoidal"
    pooling: str = "mean"
    epochs: int = 50
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 1e-2
    ema_decay: float | None = None
    jitter: float = 0.0
    scaling: float = 0.0
    time_warp: float = 0.0
    time_mask: float = 0.0
    window_slice: float = 0.0
    random_state: Any = None
    device: str = "cpu"

    _section: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("epochs", "batch_size", "lr", "weight_decay", "ema_decay"), "train"),
        **dict.fromkeys(("jitter", "scaling", "time_warp", "time_mask", "window_slice"), "data"),
        **dict.fromkeys(("label_smoothing", "class_weights"), "objective"),
        "device": "run",
    }

    n_features_in_: Any = field(init=False)  # scikit-learn notes it, too

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _train(self, dataset: SequenceDataset, *, classes: Sequence[str], kind: str) -> Task:
        """The trained task; a `ValueError` says which parameter cannot be, or that training has diverged."""
        seed = int(check_random_state(self.random_state).randint(2**31))
        values: dict[str, dict[str, Any]] = {"task": {"kind": kind}, "run": {"seed": seed, "num_workers": 0}}
        values |= {"data": {"val_fraction": 0.0}}
        for name, value in self.get_params(deep=False).items():
            if name != "random_state":
                plain = value.item() if isinstance(value, np.generic) else value
                values.setdefault(self._section.get(name, "model"), {})[name] = plain
        sources = Sources(train=dataset, validation=None, test=None, classes=classes, preprocessing={"kind": "series"})
        try:
            config = PerceiverConfig.model_validate(values)
            world = World(device=pick_device(config.run.device))
            with untouched_generators():
                seed_everything(seed)
                setup = build_of(sources, config, world)
                trainer = build_trainer(config, setup, world=world)
                trainer.fit()
            with trainer.engine.averaged_weights():
                weights = {name: value.clone() for name, value in setup.task.model.state_dict().items()}
            setup.task.model.load_state_dict(weights)
        except UserError as error:
            raise ValueError(str(error)) from error
        return setup.task

    def _sequences(self, X: Any, *, reset: bool = False) -> list[_Array]:  # noqa: N803 - scikit-learn's name
        """Samples as sequences float32 [time, channels]; notes or compares features, or channels."""
        if isinstance(X, list | tuple) and len(X) and all(np.ndim(one) == 2 for one in X):
            series = [check_array(one, dtype=np.float32, input_name="X") for one in X]
            channels = {len(one) for one in series} | (set() if reset else {self.n_features_in_})
            if len(channels) > 1:
                raise ValueError(f"series of {sorted(channels)} channels; expected arrays [channels, time] of as many")
            self.n_features_in_ = len(series[0])
            return [one.T for one in series]
        found = validate_data(self, X, reset=reset, dtype=np.float32, allow_nd=True)
        if found.ndim > 3:
            raise ValueError(f"X has {found.ndim} dimensions; expected [samples, channels, time] at most")
        return list(found[:, :, None] if found.ndim == 2 else found.transpose(0, 2, 1))

    @torch.inference_mode()
    def _outputs(self, X: Any) -> _Array:  # noqa: N803
        """What the network gives, float64 [samples, outputs]."""
        check_is_fitted(self)
        sequences, collate, found = self._sequences(X), PadCollate(), list[Tensor]()
        longest, most = self.model_.encoder.longest, max(map(len, sequences))
        if longest is not None and most > longest:
            raise ValueError(
                f"a series of {most} positions, and position={self.position!r} knows {longest}, as long as the longest "
                "that was fitted; shorten it, or fit with position='sinusoidal'"
            )
        device = next(self.model_.parameters()).device
        try:
            for start in range(0, len(sequences), self.batch_size):
                part = sequences[start : start + self.batch_size]
                batch = collate([{"input": sequence, "label": 0} for sequence in part])
                found.append(self.model_(batch["input"].to(device), batch["mask"].to(device)).double().cpu())
        except UserError as error:
            raise ValueError(str(error)) from error
        return torch.cat(found).numpy()


@dataclass(eq=False, repr=False, kw_only=True)
class PerceiverClassifier(ClassifierMixin, _PerceiverEstimator):  # type: ignore[misc]
    """Perceiver that tells classes apart.

    Attributes:
        label_smoothing: Share of the target spread over all classes.
        class_weights: `none`, `balanced`, or a list in the order of `classes_`.
        classes_: The classes, sorted.
        model_: The network, `PerceiverModel`.
        n_features_in_: Features, or channels, of the training data.
    """

    label_smoothing: float = 0.0
    class_weights: Any = "none"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Trains on samples, see the module's text, and their classes."""
        sequences = self._sequences(X, reset=True)
        y = validate_data(self, X="no_validation", y=y)
        check_consistent_length(sequences, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {self.classes_[0]}: a classifier needs at least two")
        names = [str(name) for name in self.classes_]
        dataset = SequenceDataset(sequences, labels=labels, classes=names)
        self.model_ = self._train(dataset, classes=names, kind="classification").model.eval()
        return self

    def predict_proba(self, X: Any) -> _Array:  # noqa: N803
        """Probabilities of the classes, float64 [samples, classes]."""
        return torch.from_numpy(self._outputs(X)).softmax(dim=1).numpy()

    def predict(self, X: Any) -> _Array:  # noqa: N803
        """The most probable classes [samples]."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])


@dataclass(eq=False, repr=False, kw_only=True)
class PerceiverRegressor(RegressorMixin, _PerceiverEstimator):  # type: ignore[misc]
    """Perceiver that predicts numbers, one or several.

    Attributes:
        model_: The network, `PerceiverModel`, which gives numbers in deviations from the training data's mean.
        n_features_in_: Features, or channels, of the training data.
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Trains on samples, see the module's text, and numbers [samples] or [samples, numbers]."""
        sequences = self._sequences(X, reset=True)
        y = np.asarray(validate_data(self, X="no_validation", y=y, multi_output=True, y_numeric=True), dtype=np.float64)
        check_consistent_length(sequences, y)
        self._single = y.ndim == 1
        targets = Targets(values=list(y.reshape(len(y), -1)), names=tuple(map(str, range(y[0].size))))
        dataset = SequenceDataset(sequences, labels=np.zeros(len(y), dtype=np.int64), targets=targets)
        task = self._train(dataset, classes=dataset.classes, kind="regression")
        outputs = Outputs.of(task.metadata)
        assert outputs is not None  # noqa: S101 - of a regression there are some
        self.model_, self._units = task.model.eval(), outputs
        return self

    def predict(self, X: Any) -> _Array:  # noqa: N803
        """Numbers float64 [samples], or [samples, numbers] as in training."""
        found = self._outputs(X)
        values = self._units.in_units(found)
        return values[:, 0] if self._single else values
