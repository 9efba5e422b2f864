"""The section `protocol`: how a result is judged, by runs made of runs."""

from typing import Self

from pydantic import model_validator

from mlcore.config.section import Section, field, reject

__all__ = ["ProtocolConfig"]


class ProtocolConfig(Section):
    """Cross-validation, several seeds, a last run on all data; each run lies in a folder of its own."""

    folds: int = field(
        0,
        "Parts of the training and validation data together that are held out in turn and looked at once; each class "
        "has its share in each, and what belongs together (patient, group, copies) is in one; 0: none",
        unit="folds",
        aliases=("folds",),
        ge=0,
    )
    inner: int = field(
        8,
        "One part in so many of what a fold's run could train on chooses its best checkpoint and its decision; 0: all "
        "of it is trained on and the last weights count",
        unit="parts",
        ge=0,
    )
    seeds: int = field(
        1, "Runs of each fold, or of the whole, that differ by run.seed only", unit="runs", aliases=("seeds",), ge=1
    )
    refit: bool = field(
        default=False,
        description="At the end, with each seed, a run on all of that data, for as many passes over it as the "
        "folds' best checkpoints had (their median); its last weights count, and it alone looks at the test data",
        aliases=("refit",),
    )
    jobs: int = field(
        1,
        "Runs at the same time, each a process of its own",
        unit="processes",
        aliases=("jobs",),
        ge=1,
        continued="applied",
    )
    fold: int | None = field(
        None,
        "Train only the run of this fold; 0: the one on all of the data; null: all, and say what they are together",
        ge=0,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("folds", "inner"):
            if getattr(self, name) == 1:
                reject(name, "expected at least 2, or 0 for none")
        if self.refit and not self.folds:
            reject("refit", "the folds say for how long; give protocol.folds, too")
        if self.fold is not None and self.fold > self.folds:
            reject("fold", f"expected one of the {self.folds} folds, which are counted from 1")
        return self

    @property
    def asked(self) -> bool:
        """Whether there are several runs to train, of which this is none."""
        return self.fold is None and (self.folds > 0 or self.seeds > 1)
