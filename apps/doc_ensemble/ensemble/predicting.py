"""What all members predict of all pages of an experiment, in one pass."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mlcore.base.errors import UserError
from mlcore.metrics.arrays import Array, FloatArray, as_floats
from quartet.apps.doc_ensemble.config import DocConfig, EnsembleConfig, TtaConfig
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.ensemble.inference import predict_pages
from quartet.apps.doc_ensemble.ensemble.methods import Votes
from quartet.apps.doc_ensemble.ensemble.reading import document_pages
from quartet.apps.doc_ensemble.ensemble.sources import Source
from quartet.apps.doc_ensemble.ensemble.views import View, ViewKind, with_identity
from quartet.apps.doc_ensemble.splits import Splits

__all__ = ["SplitPredictions", "mean_of_parts", "predict_splits", "views_of"]


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """What all members say of all pages.

    Attributes:
        votes: By split: "val", and "test" where there is one.
        class_names: C.
        member_names: K.
        views: V; the first is the page as it is.
        member_seconds: [K] per page, all views together.
        reading_seconds: Per page.
        problems: Messages of pages that could not be read and are left out.
    """

    votes: dict[str, Votes]
    class_names: tuple[str, ...]
    member_names: tuple[str, ...]
    views: tuple[View, ...]
    member_seconds: FloatArray
    reading_seconds: float
    problems: tuple[str, ...]

    @property
    def view_weights(self) -> FloatArray | None:
        """[V]; None where the pages are looked at as they are only."""
        return np.array([view.weight for view in self.views]) if len(self.views) > 1 else None

    def looking(self, places: Sequence[int]) -> "SplitPredictions":
        """The same with some of the views only."""
        kept = list(places)
        return replace(
            self,
            votes={split: replace(said, by_view=said.by_view[:, kept]) for split, said in self.votes.items()},
            views=tuple(self.views[place] for place in kept),
            member_seconds=self.member_seconds * len(kept) / len(self.views),
        )


def predict_splits(
    sources: Sequence[Source],
    splits: Splits,
    *,
    config: DocConfig,
    settings: EnsembleConfig,
    device: torch.device,
    scratch: Path | None = None,
    batch_size: int = 32,
) -> SplitPredictions:
    """Let the members predict the validation and the test pages.

    Args:
        sources: The members.
        splits: The pages.
        config: How large pages may be and how they are decoded, and what the networks compute in.
        settings: The views, and how many members are in memory at a time.
        device: Where the networks run.
        scratch: Folder for what `low_memory` keeps on the disk; None: the system's for temporary files.
        batch_size: Pages at a time.

    Raises:
        UserError: As `inference.predict_pages`; or no page of a split can be read.
    """
    parts = [part for source in sources for part in source.parts]
    named: dict[str, Sequence[Page]] = {"val": splits.validation}
    if splits.test:
        named["test"] = splits.test
    pages = [page for group in named.values() for page in group]
    predicted = predict_pages(
        parts,
        document_pages(
            pages,
            parts,
            max_pixels=round(config.data.max_megapixels * 1e6),
            decode_side=config.data.decode_side,
            skip_bad=True,
        ),
        views=views_of(settings.tta),
        device=device,
        batch_size=batch_size,
        precision=config.train.precision,
        low_memory=settings.low_memory,
        scratch=scratch,
    )
    counts = [len(source.parts) for source in sources]
    split_of = np.repeat(np.arange(len(named)), [len(group) for group in named.values()])[predicted.rows]
    together = mean_of_parts(predicted.probabilities, counts)
    votes = {}
    for number, split in enumerate(named):
        places = np.flatnonzero(split_of == number)
        if not len(places):
            raise UserError(
                f"none of the {split} pages can be read; the first: {next(iter(predicted.problems.values()))}"
            )
        chosen = [pages[row] for row in predicted.rows[places]]
        labels = np.array([page.label for page in chosen], dtype=np.int64)
        votes[split] = Votes(split=split, pages=chosen, labels=labels, by_view=together[:, :, places])
    return SplitPredictions(
        votes=votes,
        class_names=predicted.class_names,
        member_names=tuple(source.name for source in sources),
        views=predicted.views,
        member_seconds=np.add.reduceat(predicted.member_seconds, np.cumsum([0, *counts[:-1]])),
        reading_seconds=predicted.reading_seconds,
        problems=tuple(predicted.problems.values()),
    )


def mean_of_parts(probabilities: Array, counts: Sequence[int]) -> FloatArray:
    """The mean of each member's models.

    Args:
        probabilities: [sum of counts, ...], each member's models behind each other.
        counts: [K] models of each member.

    Returns:
        [K, ...] float64.
    """
    chances, ends = as_floats(probabilities, name="probabilities"), np.cumsum(counts)
    return np.stack([chances[end - count : end].mean(axis=0) for count, end in zip(counts, ends, strict=True)])


def views_of(tta: TtaConfig, names: Sequence[str] | None = None) -> tuple[View, ...]:
    """The configured views, behind the page as it is; with `names` those of them that are called so.

    Raises:
        UserError: As `views.with_identity`, or test-time augmentation is on without any.
    """
    if not tta.enabled:
        return with_identity([])
    if not tta.augmentations:
        raise UserError(
            "ensemble.tta.enabled is true, but ensemble.tta.augmentations is empty; list kinds of views, such as "
            "- {type: multi_scale, scales: [0.9, 1.1]}"
        )
    views = with_identity([ViewKind(**kind.model_dump()) for kind in tta.augmentations])
    return views if names is None else tuple(view for view in views if view.name in names)
