"""How the ensemble that an experiment chose predicts: as it did there, one decoding of a page for all members."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.run.decision import DECISION, read_decision
from mlcore.run.networks import Eager
from mlcore.run.predictor import ENSEMBLE, Predictor
from mlcore.run.restore import load_run_checkpoint
from mlcore.run.scorer import ClassPrediction, Item
from mlcore.training.engine import Precision
from quartet.apps.doc_ensemble.config import DocConfig, TtaConfig
from quartet.apps.doc_ensemble.ensemble.artefact import STACKING, Chosen, ChosenModel, read_chosen, rule_of
from quartet.apps.doc_ensemble.ensemble.combine import average_views
from quartet.apps.doc_ensemble.ensemble.predicting import mean_of_parts, views_of
from quartet.apps.doc_ensemble.scoring import DocScorer, Pixels, describe, make_module, signature_of

__all__ = ["EnsembleScorer", "best_member", "make_ensemble_scorer"]


def make_ensemble_scorer(folder: Path, device: torch.device) -> tuple["EnsembleScorer", str]:
    """The scorer of an experiment's folder, and a digest of what it depends on.

    Raises:
        UserError: A member is missing or another one (named), or a file is damaged.
    """
    scorer = EnsembleScorer(folder, device)
    files = [folder / name for name in (ENSEMBLE, STACKING, DECISION)]
    known = b"".join(path.read_bytes() for path in files if path.is_file())
    return scorer, hashlib.blake2b(known, digest_size=16).hexdigest()


class EnsembleScorer:
    """A `mlcore.run.scorer.Scorer`; items as `DocScorer` takes them."""

    mean = staticmethod(ClassPrediction.mean)

    def __init__(self, folder: Path, device: torch.device, chosen: Chosen | None = None) -> None:
        chosen = chosen or read_chosen(folder)
        self.class_names, self._views = chosen.class_names, views_of(chosen.tta, chosen.views)
        self._rule = rule_of(chosen, folder)
        self._counts = [len(models) for models in chosen.members.values()]
        self._parts: list[DocScorer] = []
        side = None if chosen.data is None else chosen.data.decode_side
        read = {"max_megapixels": chosen.max_megapixels, "decode_side": side}
        self.trained_on: frozenset[str] = frozenset()
        for name, models in chosen.members.items():
            for model in models:
                where = f"{folder / ENSEMBLE}: its member {name!r}"
                part, known = _scorer(model, folder, device, where=where, read=read, precision=chosen.precision)
                self.trained_on |= known
                if part.class_names != chosen.class_names:
                    raise UserError(f"{where}: {model.path} is of other classes than the ensemble, or another order")
                self._parts.append(part)
        self._readers = {part.format: part for part in self._parts}
        first = self._parts[0]
        self._decision = read_decision(folder)
        self.columns = ClassPrediction.columns(self.class_names, self._decision)
        self.suffixes = first.suffixes
        self.inputs: Mapping[str, Sequence[str]] = {}
        for part in self._parts:
            self.inputs = {**self.inputs, **part.inputs}
        self.items, self.save, self.show = first.items, first.save, first.show
        self.network, self.examples = first.network, first.examples
        self.batch_size = min(part.batch_size for part in self._parts)

    def load(self, item: Item) -> dict[Any, Pixels]:
        """The page in each format that some member takes."""
        return {shape: part.load(item) for shape, part in self._readers.items()}

    def collate(self, samples: Sequence[Mapping[Any, Pixels]]) -> dict[Any, Tensor]:
        """A batch of each format."""
        return {shape: part.collate([page[shape] for page in samples]) for shape, part in self._readers.items()}

    def predict(self, batch: Mapping[Any, Tensor]) -> list[ClassPrediction]:
        """What the rule makes of all members' answers to all views, in the experiment's arithmetic (float32)."""
        seen = {shape: self._seen(part, batch[shape]) for shape, part in self._readers.items()}
        said = [[part.network({"pixels": view})["logits"] for view in seen[part.format]] for part in self._parts]
        answers = np.stack([[torch.softmax(logits, dim=1).numpy() for logits in views] for views in said])
        by_view = mean_of_parts(answers, self._counts)  # [K, V, B, C]
        weights = [view.weight for view in self._views]
        chances = average_views(by_view, weights=weights) if len(weights) > 1 else by_view[:, 0]
        return ClassPrediction.of_batch(self._rule(chances), self.class_names, self._decision)

    def _seen(self, part: DocScorer, batch: Tensor) -> list[Tensor]:
        pixels = part.pixels(batch)
        if part.reads_text:
            return [pixels] * len(self._views)
        return [view.apply(pixels).contiguous(memory_format=torch.channels_last) for view in self._views]


def best_member(ensemble: Predictor, device: torch.device) -> tuple[str, Predictor] | None:
    """Name and predictor of the best member of an ensemble; None of a plain run, or where none is noted."""
    if not isinstance(ensemble.scorer, EnsembleScorer):
        return None
    chosen = read_chosen(ensemble.source)
    name = chosen.best_member
    if name is None or name not in chosen.members:
        return None
    alone = {"members": {name: chosen.members[name]}, "method": "averaging", "average": "probabilities"}
    update = {**alone, "weights": None, "tta": TtaConfig(), "views": None}
    scorer = EnsembleScorer(ensemble.source, device, chosen.model_copy(update=update))
    return name, replace(ensemble, scorer=scorer, identity={**ensemble.identity, "member": name})


def _scorer(
    model: ChosenModel,
    folder: Path,
    device: torch.device,
    *,
    where: str,
    read: Mapping[str, Any],
    precision: Precision,
) -> tuple[DocScorer, frozenset[str]]:
    """A model where it was, or where it is as seen from the folder, and digests of the pages that it was trained on."""
    places = (Path(model.path), folder / model.beside)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise UserError(f"{where} is missing: {model.path}; put it back, or repeat the experiment without it")
    run = load_run_checkpoint(path, app="doc_ensemble", config_cls=DocConfig)
    if run.digest != model.digest:
        raise UserError(f"{where}: {path} is another model than the one the experiment chose; repeat the experiment")
    about = {**describe(run), **read}
    module = make_module(about, run.weights, path)
    scorer = DocScorer(about, Eager(module, signature_of(about), device=device, precision=precision))
    return scorer, frozenset(map(str, run.metadata.get("trained_on", ())))
