"""What a run is trained and judged on, by what it is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Held", "Splits"]

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Held:
    """A sample that is held out.

    Attributes:
        name: What tables call it; each has another.
        unit: What it belongs to: samples of one unit are alike.
        copies: Names its content, which copies of it share; "": nothing is known of copies.
        about: What else is known of it, by which figures are sliced: numbers and words, the same for all samples.
    """

    name: str
    unit: str
    copies: str = ""
    about: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Splits(Generic[ItemT]):
    """The samples of a run: rows, pages, cases.

    Attributes:
        train: What is trained on.
        validation: Held out; chooses the best checkpoint and the decision. None in a run on all data.
        test: Looked at once, after training; None for none.
        classes: Names, in label order, where the data says what they are.
        notes: Warnings for the report.
    """

    train: Sequence[ItemT]
    validation: Sequence[ItemT]
    test: Sequence[ItemT] | None
    classes: tuple[str, ...] = ()
    notes: Sequence[str] = ()

    def named(self) -> dict[str, Sequence[ItemT]]:
        """The splits there are, by name."""
        parts = {"train": self.train, "val": self.validation, "test": self.test}
        return {name: samples for name, samples in parts.items() if samples}
