"""Pages that are in the data more than once: image files, and pages of TIFF and PDF files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlcore.data.duplicates import duplicate_groups, joined, report_duplicates
from mlcore.data.fingerprints import Numbered, fingerprints
from quartet.apps.doc_ensemble.data.pages import Page, read_page

__all__ = ["check_duplicates", "compared"]

_DIGITS = 32  # of a digest, in hexadecimal: 128 bits tell all pages of the world apart, in half the space


def compared(pages: Sequence[Page], *, max_pixels: int, cache: Path | None = None) -> tuple[list[Page], dict[str, int]]:
    """Look at pages to know them again: by their content, and by their copies.

    Pages are the same if their pixels are, or if one is the other scaled or compressed anew; two pages of one layout
    with different text are not (`mlcore.data.duplicates`, with `text`).

    Args:
        pages: Any.
        max_pixels: See `read_page`.
        cache: File of what is known, see `mlcore.data.fingerprints`; None: nothing is kept.

    Returns:
        The pages with `digest` and `unit`, and by `Page.key` the number of the pages that are the same.

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
    copies = duplicate_groups(prints, text=True)
    units = joined([page.bundle for page in pages], copies)
    known = [
        replace(page, digest=digest[:_DIGITS], unit=unit)
        for page, digest, unit in zip(pages, prints.digests, units, strict=True)
    ]
    return known, {page.key: group for page, group in zip(pages, copies, strict=True)}


def check_duplicates(splits: Mapping[str, Sequence[Page]], *, copies: Mapping[str, int], allow: bool) -> list[str]:
    """Find pages that are in more than one split, whose figures would be too good.

    Args:
        splits: Pages of each part: "train", "val", "test".
        copies: What `compared` says of them.
        allow: Warn instead of raising.

    Returns:
        Messages to warn with, among them one on equal pages with different labels; empty where all is well.

    Raises:
        UserError: A page is in two splits and `allow` is false.
    """
    return report_duplicates(
        [copies[page.key] for part in splits.values() for page in part],
        {name: [(_called(page), page.label) for page in part] for name, part in splits.items()},
        allow=allow,
    )


def _called(page: Page) -> str:
    return f"{page.origin} ({page.name})" if page.origin else str(page.path)
