"""A run's decision: what its validation data chose, kept in `decision.json` and used wherever the model is.

decision = read_decision(run_folder)           # None: an older run, or one that decides nothing
chances = decision.calibrated(probabilities)
decided = decision.decide(chances)             # class indices; REVIEW: for a person to decide
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.base.reading import reading
from mlcore.config.decision import DecisionConfig
from mlcore.metrics.arrays import Array, FloatArray, IntArray, as_labels, as_probabilities
from mlcore.metrics.operating_points import (
    OperatingPoint,
    Rate,
    at_fpr,
    at_precision,
    at_recall,
    best_f1,
    measure_kept,
    measure_point,
    reject_below,
    three_zones,
)

__all__ = [
    "DECISION",
    "REVIEW",
    "Decision",
    "Figure",
    "check_rule",
    "choose",
    "measured",
    "parse_operating_point",
    "read_decision",
    "write_decision",
]

DECISION = "decision.json"
"""Its file in a run folder, or in an exported one."""
REVIEW = -1
"""What `Decision.decide` gives where a person is to decide."""

Kind = Literal["binary", "multiclass"]
"""Of classes: two, by the probability of the second; or the most probable one of several."""

_VERSION: Literal[1] = 1
_LARGEST = 2**22  # bytes; a class has some hundred
_RULES: tuple[str, ...] = get_args(DecisionConfig.model_fields["rule"].annotation)
_FOR_MANY = ("none", "precision", "class_precision")


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("expected a number, not NaN")
    return value


# JSON has no infinity, which is a threshold that nothing reaches: null.
_Threshold = Annotated[
    float, BeforeValidator(lambda value: math.inf if value is None else value), AfterValidator(_number)
]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class Figure(BaseModel):
    """A figure of a decision on some data.

    Attributes:
        value: The figure; None: undefined.
        low: Lower end of its 95 % interval, where it is a share of samples.
        high: Upper end.
        hits: Samples that count, for a share.
        of: All samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: _Finite | None
    low: _Finite | None = None
    high: _Finite | None = None
    hits: int | None = None
    of: int | None = None

    @classmethod
    def from_rate(cls, rate: Rate) -> "Figure":
        """The share with its interval."""
        if rate.of == 0:
            return cls(value=None, hits=0, of=0)
        low, high = rate.interval
        return cls(value=rate.value, low=low, high=high, hits=rate.hits, of=rate.of)


class Decision(BaseModel):
    """How a model's probabilities become decisions.

    Attributes:
        version: Of the file.
        kind: binary: between two classes, by the probability of the second; multiclass: the most probable class, or a
            person; mask: of voxels.
        rule: What it was chosen by, see `DecisionConfig`; "score" for masks.
        value: What the rule was asked for.
        npv: Likewise, of rejected samples.
        chosen_on: The split that chose it; None: nothing was chosen.
        class_names: In the order of the probabilities; empty for masks.
        threshold: binary: the second class from here on (infinite: never); mask: inside from here on.
        lower: binary: the first class below; a person decides between the two. None: as `threshold`.
        least: multiclass: ``[C]`` least probability of each predicted class, or a person decides; empty: 0.
        temperature: What logits are divided by before; the thresholds are for probabilities at it.
        min_volume_ml: mask: smaller connected parts are left out.
        note: Why what was asked for is not reached; empty where it is.
        figures: What it gives, by split and name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = _VERSION
    kind: Literal["binary", "multiclass", "mask"]
    rule: str = "none"
    value: _Finite | None = None
    npv: _Finite | None = None
    chosen_on: str | None = None
    class_names: tuple[str, ...] = ()
    threshold: _Threshold = 0.5
    lower: _Finite | None = None
    least: tuple[_Threshold, ...] = ()
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False)
    min_volume_ml: float = Field(0.0, ge=0, allow_inf_nan=False)
    note: str = ""
    figures: Mapping[str, Mapping[str, Figure]] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "binary" and len(self.class_names) != 2:
            raise ValueError(f"two classes expected, not {len(self.class_names)}")
        if self.least and len(self.least) != len(self.class_names):
            raise ValueError(f"{len(self.least)} thresholds for {len(self.class_names)} classes")
        if self.lower is not None and self.lower > self.threshold:
            raise ValueError(f"the lower threshold, {self.lower:g}, is above the upper one, {self.threshold:g}")
        return self

    def calibrated(self, probabilities: FloatArray) -> FloatArray:
        """Probabilities ``[N, C]`` at the temperature; at 1 as they are."""
        if self.temperature == 1.0:
            return probabilities
        with np.errstate(divide="ignore"):
            logits = np.log(np.asarray(probabilities, dtype=np.float64)) / self.temperature
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scaled: FloatArray = powers / powers.sum(axis=1, keepdims=True)
        return scaled

    def decide(self, probabilities: Array) -> IntArray:
        """Class indices ``[N]``, `REVIEW` where a person is to decide.

        Args:
            probabilities: ``[N, C]`` as `calibrated` gives them; or ``[N]``, those of the second class of two.

        Raises:
            UserError: No probabilities, or not of this decision's classes.
        """
        chances = as_probabilities(probabilities, rows=len(probabilities))
        if chances.shape[1] != len(self.class_names):
            raise UserError(
                f"probabilities of {chances.shape[1]} classes; the decision is between {len(self.class_names)}"
            )
        if self.kind == "binary":
            second = chances[:, 1]
            lower = self.threshold if self.lower is None else self.lower
            return np.where(second >= self.threshold, 1, np.where(second < lower, 0, REVIEW))
        guess = chances.argmax(axis=1)
        least = np.array(self.least or [0.0] * len(self.class_names))
        return np.where(chances.max(axis=1) >= least[guess], guess, REVIEW)

    @property
    def can_review(self) -> bool:
        """Whether it leaves some to a person."""
        return self.lower is not None or any(least > 0 for least in self.least)

    @property
    def words(self) -> str:
        """What it does, for people, in one line."""
        if self.kind == "mask":
            small = f", parts from {self.min_volume_ml:g} mL on" if self.min_volume_ml else ""
            return f"voxels count from a probability of {self.threshold:.3g} on{small}"
        if self.kind == "binary":
            first, second = self.class_names
            if self.lower is None:
                return f"{second} from a probability of {self.threshold:.3g} on"
            return f"{second} from {self.threshold:.3g} on, {first} below {self.lower:.3g}, a person decides in between"
        if not self.can_review:
            return "the most probable class"
        low, high = min(self.least), max(self.least)
        least = f"{high:.3g}" if low == high else f"{low:.3g} to {high:.3g}, by class"
        return f"the most probable class; a person decides where its probability is below {least}"

    @property
    def identity(self) -> Mapping[str, Any]:
        """What predictions depend on, as JSON has it."""
        left_out = {"version", "rule", "value", "npv", "note", "figures"}
        values: Mapping[str, Any] = json.loads(self.model_dump_json(exclude=left_out))  # null for what is infinite
        return values

    def with_figures(self, split: str, figures: Mapping[str, Figure]) -> "Decision":
        """The same, knowing what it gives on one more split."""
        return self.model_copy(update={"figures": {**self.figures, split: figures}})


def read_decision(folder: Path) -> Decision | None:
    """The decision that a run folder, or an exported one, holds; None where there is none, as in older runs.

    Raises:
        UserError: The file is damaged, or a newer version wrote it.
    """
    path = folder / DECISION
    if not path.exists():
        return None
    with reading(path, "the decision of a run"):
        with path.open("rb") as file:
            values = json.loads(file.read(_LARGEST))
        if isinstance(values.get("version"), int) and values["version"] > _VERSION:
            raise UserError(f"{path}: written by a newer version; use that one, or evaluate the run anew")
        return Decision.model_validate(values)


def write_decision(folder: Path, decision: Decision) -> None:
    """Write `decision.json`; thresholds keep every digit, infinite ones are null."""
    write_json(folder / DECISION, decision.model_dump())


def parse_operating_point(text: str) -> DecisionConfig:
    """What `f1`, `precision=0.95`, `class_precision=0.95`, `recall=0.9`, `fpr=0.01` or `zones=0.95,0.99` asks for.

    The two numbers of zones are the precision of what is accepted and the negative predictive value of what is
    rejected; one number stands for both.

    Raises:
        UserError: No such rule, or its value is missing, no number, or out of range.
    """
    rule, equals, given = text.strip().partition("=")
    try:
        numbers = [float(part) for part in given.split(",")] if equals else []
    except ValueError:
        numbers = []
    wanted = {"none": (0,), "f1": (0,), "zones": (1, 2)}.get(rule, (1,))
    if rule not in _RULES or len(numbers) not in wanted or (equals and not numbers):
        raise UserError(
            f"operating point '{text}': expected f1, none, precision=0.95, class_precision=0.95, recall=0.9, fpr=0.01, "
            "or zones=0.95,0.99 (precision of what is accepted, negative predictive value of what is rejected)"
        )
    value, npv, *_ = [*numbers, None, None]
    try:
        return DecisionConfig.model_validate({"rule": rule, "value": value, "npv": npv})
    except ValueError as error:
        least = "at least 0 and below 1" if rule == "fpr" else "above 0 and at most 1"
        raise UserError(f"operating point '{text}': expected a share {least}, such as 0.95") from error


def check_rule(settings: DecisionConfig, *, kind: Kind) -> None:
    """Refuse, before a training rather than after it, a rule that does not suit the classes.

    Raises:
        UserError: The rule is for two classes and there are more, or the other way round.
    """
    if kind == "multiclass" and settings.rule not in _FOR_MANY:
        raise UserError(
            f"decision.rule={settings.rule} is for two classes; for more there are {', '.join(_FOR_MANY)}, which "
            "reject unsure predictions"
        )
    if kind == "binary" and settings.rule == "class_precision":
        raise UserError("decision.rule=class_precision is for more than two classes; for two there is zones")


def choose(
    settings: DecisionConfig,
    *,
    labels: Array,
    probabilities: Array,
    class_names: Sequence[str],
    kind: Kind,
    temperature: float = 1.0,
    split: str = "val",
) -> Decision:
    """The decision that the settings ask for, chosen on held-out data, with its figures there.

    Args:
        settings: Rule and values.
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]`` as the model gives them, at temperature 1.
        class_names: C names.
        kind: binary: the second of two classes is looked for; multiclass: the most probable one counts.
        temperature: Kept with the decision, which is chosen at it.
        split: What the data is called.

    Raises:
        UserError: As `check_rule`, or labels and probabilities are not what they should be.
    """
    check_rule(settings, kind=kind)
    given = {"rule": settings.rule, "value": settings.value, "class_names": tuple(class_names), "kind": kind}
    start = Decision.model_validate({**given, "temperature": temperature})
    chances = start.calibrated(as_probabilities(probabilities, rows=len(as_labels(labels))))
    changed: dict[str, Any] = {} if settings.rule == "none" and temperature == 1.0 else {"chosen_on": split}
    if settings.rule != "none":
        changed |= (_binary if kind == "binary" else _multiclass)(settings, labels, chances, start.class_names)
    chosen = start.model_copy(update=changed)
    return chosen.with_figures(split, measured(chosen, labels=labels, probabilities=chances))


def _binary(settings: DecisionConfig, labels: Array, chances: FloatArray, _names: Sequence[str]) -> dict[str, Any]:
    value = settings.value or 0.0
    point: OperatingPoint
    if settings.rule == "zones":
        npv = settings.npv or value
        point = three_zones(labels, scores=chances, precision=value, npv=npv)
        return {"threshold": point.threshold, "lower": point.lower, "npv": npv, "note": point.shortfall}
    if settings.rule == "f1":
        point = best_f1(labels, scores=chances)
    elif settings.rule == "precision":
        point = at_precision(labels, scores=chances, precision=value)
    elif settings.rule == "recall":
        point = at_recall(labels, scores=chances, recall=value)
    else:
        point = at_fpr(labels, scores=chances, fpr=value)
    changed = {"threshold": point.threshold, "note": point.shortfall}
    return changed | ({} if 0 < point.positives < point.samples else {"chosen_on": None})


def _multiclass(settings: DecisionConfig, labels: Array, chances: FloatArray, names: Sequence[str]) -> dict[str, Any]:
    kept = reject_below(
        labels,
        probabilities=chances,
        precision=settings.value or 0.0,
        class_names=names,
        per_class=settings.rule == "class_precision",
    )
    return {"least": tuple(kept.least.tolist()), "note": kept.shortfall}


def measured(decision: Decision, *, labels: Array, probabilities: Array) -> dict[str, Figure]:
    """What a decision gives on labelled data: shares with their intervals.

    Args:
        decision: Of kind binary or multiclass.
        labels: ``[N]`` class indices.
        probabilities: ``[N, C]``, calibrated.

    Returns:
        binary: the names of `OperatingPoint.rates`, and "f1"; multiclass: "kept", "precision" (of what is kept), and
        "precision: NAME" of each class where each has a threshold of its own.

    Raises:
        UserError: As `measure_point` and `measure_kept`.
    """
    if decision.kind == "binary":
        point = measure_point(labels, scores=probabilities, threshold=decision.threshold, lower=decision.lower)
        f1 = Figure(value=None if math.isnan(point.f1) else point.f1)
        return {**{name: Figure.from_rate(rate) for name, rate in point.rates().items()}, "f1": f1}
    names = decision.class_names
    kept = measure_kept(labels, probabilities=probabilities, least=decision.least or [0.0] * len(names))
    figures = {"kept": Figure.from_rate(kept.kept), "precision": Figure.from_rate(kept.right)}
    if decision.rule == "class_precision":
        own = zip(names, kept.by_class, strict=True)
        figures |= {f"precision: {name}": Figure.from_rate(rate) for name, rate in own}
    return figures
