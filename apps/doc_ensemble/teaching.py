"""What a teacher says of pages: a run or an ensemble that is asked once, before its student is trained.

The answers, of the pages as they are, are kept in a table named by what they depend on: the teacher's digest and the
pages'. A run that goes on reads them; a run that was interrupted while it asked goes on asking.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax

from mlcore.base.distributed import World, barrier, broadcast_object
from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder
from mlcore.base.locks import hold
from mlcore.base.reading import reading
from mlcore.base.signals import check
from mlcore.data.fingerprints import cache_file
from mlcore.data.loader import SizedDataset
from mlcore.data.records import failed
from mlcore.data.tables import TABLES, open_table
from mlcore.metrics.arrays import FloatArray
from mlcore.run.predictor import Predictor, load_run
from mlcore.run.scorer import Item, Scorer
from mlcore.use.inputs import Files, find_inputs
from mlcore.use.job import Job, run_job
from quartet.apps.doc_ensemble.config import DocConfig
from quartet.apps.doc_ensemble.data.duplicates import compared
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble.combine import log_probabilities
from quartet.apps.doc_ensemble.ensemble.members import class_difference
from quartet.apps.doc_ensemble.ensemble_scoring import EnsembleScorer, best_member
from quartet.apps.doc_ensemble.restore import CheckpointMember
from quartet.apps.doc_ensemble.scoring import DocScorer
from quartet.apps.doc_ensemble.splits import OUTPUTS, Splits

__all__ = ["Taught", "Teacher", "ask_teacher"]

_log = logging.getLogger(__name__)

_ANSWERS = OUTPUTS / "teachers"


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What a teacher says of all pages of a run.

    Attributes:
        digest: Of all that its answers depend on.
        answers: Probabilities float64 [C] by `Page.digest`.
        member: Name of an ensemble's best member; "" where there is none.
        of_member: What that says of the held-out pages.
        unlabelled: Further pages to train on.
        notes: What the reader must know.
    """

    digest: str
    answers: Mapping[str, FloatArray]
    member: str = ""
    of_member: Mapping[str, FloatArray]
    unlabelled: Sequence[Page]
    notes: Sequence[str]

    def of(self, pages: Sequence[Page]) -> FloatArray:
        """Its answers [N, C]."""
        return np.stack([self.answers[page.digest] for page in pages])


class Taught:
    """A data set whose samples also have `teacher`: its answer at a temperature, float32 [C].

    Args:
        dataset: N pages, samples of `PageDataset`.
        answers: Probabilities [N, C].
        temperature: Probabilities become softmax(log p / temperature).
    """

    def __init__(self, dataset: SizedDataset, answers: FloatArray, *, temperature: float) -> None:
        self._dataset = dataset
        self._soft: NDArray[np.float32] = softmax(log_probabilities(answers) / temperature, axis=1).astype(np.float32)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._dataset[index], "teacher": self._soft[index]}


def ask_teacher(config: DocConfig, splits: Splits, world: World) -> Teacher | None:
    """The answers of the teacher that the configuration names; every process of `world` calls it.

    Raises:
        UserError: The teacher cannot be used or knows other classes, settings do not fit together, or pages cannot be
            read.
    """
    if config.distill.teacher is None:
        return None
    with torch.random.fork_rng():  # what a student begins with is the same whether its teacher was asked before
        return _ask(config, splits, world, source=config.distill.teacher)


def _ask(config: DocConfig, splits: Splits, world: World, *, source: str) -> Teacher:
    predictor = _opened(config, source, splits.classes, device=world.device)
    more, notes = broadcast_object(_unlabelled(config, splits, predictor.scorer) if world.is_main else None)
    held_out, learned = [*splits.validation, *(splits.test or ())], _trained_on(predictor)
    if known := sum(page.digest in learned for page in held_out):
        said = f"the teacher was trained on {known} of the {len(held_out)} evaluated pages: its figures flatter it"
        notes = [*notes, said]
    for note in notes:
        _log.warning("%s", note)
    pages, digest = [*splits.train, *more, *held_out], _digest(predictor.identity)
    if not config.distill.asked:
        even = dict.fromkeys((page.digest for page in pages), np.full(len(splits.classes), 1 / len(splits.classes)))
        return Teacher(digest=digest, answers=even, of_member={}, unlabelled=more, notes=notes)
    member, alone = best_member(predictor, world.device) or ("", None)
    return Teacher(
        digest=digest,
        answers=_asked(predictor, pages, world),
        member=member,
        of_member={} if alone is None else _asked(alone, held_out, world),
        unlabelled=more,
        notes=notes,
    )


def _opened(config: DocConfig, source: str, classes: Sequence[str], *, device: torch.device) -> Predictor:
    """The teacher, which can teach what is to be learned."""
    if config.distill.unlabelled is not None and (config.augmentation.mixup or config.augmentation.cutmix):
        raise UserError("distill.unlabelled: pages without labels cannot be mixed; leave out mixup and cutmix")
    if config.distill.unlabelled is not None and config.loss.balanced_sampling:
        raise UserError("distill.unlabelled: pages without labels have no class to balance: no loss.balanced_sampling")
    predictor = load_run(source, device=str(device))
    if not isinstance(predictor.scorer, DocScorer | EnsembleScorer):
        raise UserError(f"{source}: a run of {predictor.app.name}; the teacher of a classifier of pages is one, too")
    if predictor.scorer.class_names != tuple(classes):
        raise UserError(
            f"{source}: the teacher's classes (the first) and those of the pages (the second) are not the same: "
            f"{class_difference(predictor.scorer.class_names, tuple(classes))}"
        )
    return predictor


def _trained_on(predictor: Predictor) -> frozenset[str]:
    """Digests of pages; of exports nothing is known."""
    if isinstance(predictor.scorer, EnsembleScorer):
        return predictor.scorer.trained_on
    known = CheckpointMember("", predictor.source).trained_on if predictor.source.is_file() else None
    return known or frozenset()


def _unlabelled(config: DocConfig, splits: Splits, scorer: Scorer) -> tuple[list[Page], list[str]]:
    """The pages without labels that are in no split, and what is to be said of the others."""
    path, pages, problems = config.distill.unlabelled, list[Page](), list[str]()
    if path is None:
        return [], []
    inputs = find_inputs([str(path)], scorer, base_dir=config.data.base_dir if path.suffix in TABLES else None)
    for place in range(len(inputs)):
        try:
            item = inputs.item(place)
        except UserError as error:
            problems.append(str(error))
            continue
        pages.append(Page(item.path or Path(), item.part, text=item.value("text")))
    if problems:
        raise failed(path, problems)
    held_out = [*splits.validation, *(splits.test or ())]
    pixels, cache = round(config.data.max_megapixels * 1e6), cache_file(OUTPUTS / "fingerprints", path)
    found, copies = compared([*pages, *held_out], max_pixels=pixels, cache=cache)
    seen, taken = {copies[page.key] for page in held_out}, {page.digest for page in splits.train}
    found = [page for page in found[: len(pages)] if page.digest not in taken and copies[page.key] not in seen]
    left_out = len(pages) - len(found)
    note = f"{left_out} of the {len(pages)} pages of {path} are in a split of the data, too, and left out there"
    return found, [note] if left_out else []


def _asked(predictor: Predictor, pages: Sequence[Page], world: World) -> dict[str, FloatArray]:
    """What a model says of pages, by their digests: read where it is known, else asked and kept."""
    known = dict(sorted((page.digest, page) for page in pages))
    reads = "text" in predictor.scorer.inputs

    def values(page: Page) -> tuple[tuple[str, str], ...]:
        return (("text", page.text),) if reads else ()

    texts = [page.text for page in known.values()] if reads else []
    path = _ANSWERS / f"{_digest(predictor.identity, list(known), *texts)}.jsonl"
    lock = None
    if world.is_main:
        ensure_folder(path.parent)
        waits = False
        while (lock := hold(path.with_suffix(".lock"))) is None:
            if not waits:
                _log.info("another run asks the teacher about the same pages: waiting for its answers (%s)", path)
            waits = True
            time.sleep(1)
            check()
    try:
        if not broadcast_object(path.is_file()):
            _log.info("the teacher (%s) is asked about %d pages: %s", predictor.source, len(known), path)
            inputs = Files([Item(d, p.path, p.number, values(p)) for d, p in known.items()])
            size = predictor.scorer.batch_size
            run_job(Job(predictor=predictor, inputs=inputs, output=path, batch_size=size, strict=True), world=world)
            barrier()  # the first process writes the table
    finally:
        if lock is not None:
            lock.release()
    names = [column for column in predictor.scorer.columns if column.startswith("p_")]
    table = open_table(path)
    with reading(path, "a teacher's answers; remove it, and they are asked for anew"):
        rows = [table.record(row) for row in range(len(table))]
        answers = {row["input"]: np.array([float(row[name]) for name in names]) for row in rows}
        return {digest: answers[digest] for digest in known}


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
