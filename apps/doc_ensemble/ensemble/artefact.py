"""The ensemble that an experiment chose, as one file in its folder: `load_run` takes the folder like any run."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.base.reading import reading
from mlcore.run.predictor import ENSEMBLE
from mlcore.training.engine import Precision
from quartet.apps.doc_ensemble.config import DataConfig, TtaConfig
from quartet.apps.doc_ensemble.ensemble.combine import Average
from quartet.apps.doc_ensemble.ensemble.methods import Alone, Combined, Rule, Stacked
from quartet.apps.doc_ensemble.ensemble.sources import Source
from quartet.apps.doc_ensemble.ensemble.stacking import read_stacker

__all__ = ["STACKING", "Chosen", "ChosenModel", "read_chosen", "rule_of", "write_chosen"]

STACKING = "stacking.json"
_LARGEST = 4 * 2**20  # bytes


class ChosenModel(BaseModel):
    """One checkpoint.

    Attributes:
        path: Where it was.
        beside: The same, as seen from the ensemble's folder: both may have moved together.
        digest: Of its weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    beside: str
    digest: str


class Chosen(BaseModel):
    """The whole of it.

    Attributes:
        version: Of the file.
        app: Whose it is.
        class_names: In the order of the probabilities.
        members: Of each, by name and in the order of the weights, the models whose mean it is.
        method: What makes one answer of theirs; stacking: `stacking.json` does.
        average: What is averaged.
        weights: weighted: of each member.
        tta: The views that were looked at.
        views: Names of those of them that are averaged; None, in older files: all.
        best_member: On the validation pages.
        data: Where the pages are that it was evaluated on, and those of its members' training.
        max_megapixels: Larger pages are refused.
        precision: What the networks compute in; float32 in older files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: Literal[1] = 1
    app: Literal["doc_ensemble"] = "doc_ensemble"
    class_names: tuple[str, ...]
    members: Mapping[str, tuple[ChosenModel, ...]]
    method: Literal["voting", "averaging", "weighted", "stacking"]
    average: Average = "probabilities"
    weights: tuple[float, ...] | None = None
    tta: TtaConfig
    views: tuple[str, ...] | None = None
    best_member: str | None = None
    data: DataConfig | None = None
    max_megapixels: float
    precision: Precision = "fp32"


def write_chosen(
    folder: Path,
    *,
    sources: Sequence[Source],
    class_names: Sequence[str],
    rule: Rule,
    tta: TtaConfig,
    views: Sequence[str],
    best_member: str,
    data: DataConfig,
    precision: Precision,
) -> None:
    """Write `ensemble.json`.

    Args:
        folder: The experiment's; where the rule is a stacking model, its file is there.
        sources: The members.
        class_names: C.
        rule: Fitted on all validation pages.
        tta: Which views were looked at.
        views: Names of those that are averaged.
        best_member: Name of the best one on the validation pages.
        data: How the pages of the experiment were found and read.
        precision: What the networks computed in.
    """
    base = {"class_names": tuple(class_names), "members": {source.name: _noted(source, folder) for source in sources}}
    how: dict[str, object]
    match rule:
        case Combined(method, average, weights):
            how = {"method": method, "average": average, "weights": weights}
        case Alone(index):
            how = {"method": "weighted", "weights": tuple(float(place == index) for place in range(len(sources)))}
        case _:
            how = {"method": "stacking"}
    seen = {"tta": tta, "views": tuple(views), "best_member": best_member}
    read = {"data": data, "max_megapixels": data.max_megapixels, "precision": precision}
    chosen = Chosen.model_validate({**base, **how, **seen, **read})
    write_json(folder / ENSEMBLE, chosen.model_dump(mode="json"))


def read_chosen(folder: Path) -> Chosen:
    """What `write_chosen` wrote.

    Raises:
        UserError: It is damaged, or a newer version wrote it.
    """
    path = folder / ENSEMBLE
    with reading(path, "an ensemble of documents' classifiers"):
        with path.open("rb") as file:
            chosen = Chosen.model_validate_json(file.read(_LARGEST))
        models, weights = chosen.members.values(), chosen.weights
        if not models or not all(models) or (weights is not None and len(weights) != len(models)):
            raise UserError(f"{path}: expected members, each with a model, and where there are weights, one for each")
    return chosen


def rule_of(chosen: Chosen, folder: Path) -> Rule:
    """The rule that was fitted.

    Raises:
        UserError: The stacking model is missing, damaged, or of other members.
    """
    if chosen.method != "stacking":
        return Combined(chosen.method, chosen.average, chosen.weights)
    stacker = read_stacker(folder / STACKING)
    if (stacker.member_names, stacker.class_names) != (tuple(chosen.members), chosen.class_names):
        raise UserError(f"{folder / STACKING}: fitted on other members or classes than {ENSEMBLE} beside it names")
    return Stacked(stacker)


def _noted(source: Source, folder: Path) -> tuple[ChosenModel, ...]:
    paths = [(part.path.resolve(), part.digest) for part in source.parts]
    return tuple(
        ChosenModel(path=str(path), beside=os.path.relpath(path, folder.resolve()), digest=digest)
        for path, digest in paths
    )
