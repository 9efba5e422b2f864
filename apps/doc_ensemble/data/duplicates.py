"""Pages that are in the data more than once: image files, and pages of TIFF and PDF files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcore.data.duplicates import duplicate_groups, report_duplicates
from mlcore.data.fingerprints import Numbered, fingerprints
from quartet.apps.doc_ensemble.data.pages import Page, read_page

__all__ = ["check_duplicates", "page_groups"]


def page_groups(pages: Sequence[Page], *, max_pixels: int, cache: Path | None = None) -> list[int]:
    """Group number of each page; pages that are the same share one.

    Pages are the same if their pixels are, or if one is the other scaled or compressed anew; two pages of one layout
    with different text are not (`mlcore.data.duplicates`, with `text`).

    Args:
        pages: Any.
        max_pixels: See `read_page`.
        cache: File of what is known, see `mlcore.data.fingerprints`; None: nothing is kept.

    Raises:
        UserError: Pages cannot be read; the first ones are named.
    """
    prints = fingerprints(
        [page.path for page in pages],
        max_pixels=max_pixels,
        pages=Numbered([page.number for page in pages], read_page),
        origins=[page.origin or page.name for page in pages],
        cache=cache,
    )
    return duplicate_groups(prints, text=True)


def check_duplicates(
    splits: Mapping[str, Sequence[Page]], *, allow: bool, max_pixels: int, cache: Path | None = None
) -> list[str]:
    """Find pages that are in more than one split, whose figures would be too good.

    Args:
        splits: Pages of each part: "train", "val", "test".
        allow: Warn instead of raising.
        max_pixels: See `read_page`.
        cache: See `page_groups`.

    Returns:
        Messages to warn with, among them one on equal pages with different labels; empty where all is well.

    Raises:
        UserError: A page is in two splits and `allow` is false, or pages cannot be read.
    """
    groups = page_groups([page for part in splits.values() for page in part], max_pixels=max_pixels, cache=cache)
    return report_duplicates(
        groups,
        {name: [(_called(page), page.label) for page in part] for name, part in splits.items()},
        allow=allow,
    )


def _called(page: Page) -> str:
    return f"{page.origin} ({page.name})" if page.origin else str(page.path)
