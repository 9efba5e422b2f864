"""The section `decision`: by what a classifier's thresholds are chosen."""

from typing import Literal, Self

from pydantic import model_validator

from mlcore.config.section import Section, field, reject

__all__ = ["DecisionConfig"]

_NEED_VALUE = ("precision", "class_precision", "recall", "fpr", "zones")


class DecisionConfig(Section):
    """What a trained classifier decides at; chosen on the validation data, and kept in the run's decision.json."""

    rule: Literal["none", "f1", "precision", "class_precision", "recall", "fpr", "zones"] = field(
        "none",
        "Two classes, for the second one: largest f1; most found with a precision; least threshold with a recall or "
        "false-positive rate (fpr); zones to accept, review and reject. More classes: unsure predictions are rejected, "
        "so that what is kept has the precision, together or (class_precision) of each class; none: the most probable "
        "class",
        aliases=("decision_rule",),
        continued="applied",
    )
    value: float | None = field(
        None,
        "The precision, recall or false-positive rate that the rule asks for; zones: the precision of what is accepted",
        aliases=("decision_value",),
        ge=0,
        le=1,
        continued="applied",
    )
    npv: float | None = field(
        None,
        "zones: negative predictive value of what is rejected; null: value",
        aliases=("decision_npv",),
        gt=0,
        le=1,
        continued="applied",
    )

    @model_validator(mode="after")
    def _check_value(self) -> Self:
        if self.rule not in _NEED_VALUE and self.value is not None:
            reject("value", f"rule '{self.rule}' takes none; these do: {', '.join(_NEED_VALUE)}")
        if self.rule in _NEED_VALUE and self.value is None:
            reject("value", f"rule '{self.rule}' needs one, such as {0.01 if self.rule == 'fpr' else 0.95}")
        if self.value == (1 if self.rule == "fpr" else 0):
            reject("value", f"rule '{self.rule}' with {self.value:g} asks for nothing")
        if self.rule != "zones" and self.npv is not None:
            reject("npv", f"rule '{self.rule}' takes none; zones does")
        return self
