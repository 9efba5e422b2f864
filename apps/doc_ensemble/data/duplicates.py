"""Pages that are in a data set more than once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from apps.doc_ensemble.data.pages import Page
from mlcore.data import duplicates

__all__ = ["check_duplicates"]


def check_duplicates(
    splits: Mapping[str, Sequence[Page]], *, allow: bool, max_pixels: int, cache: Path | None = None
) -> list[str]:
    """`mlcore.data.duplicates.check_duplicates` of pages."""
    return duplicates.check_duplicates(
        {name: [page.path for page in pages] for name, pages in splits.items()},
        allow=allow,
        max_pixels=max_pixels,
        allow_with="data.allow_duplicates=true",
        labels={name: [page.label for page in pages] for name, pages in splits.items()},
        origins={name: [page.origin for page in pages] for name, pages in splits.items()},
        cache=cache,
    )
