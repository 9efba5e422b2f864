"""Pictures that are in the tables more than once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcore.data.duplicates import duplicate_groups, report_duplicates
from mlcore.data.fingerprints import fingerprints
from quartet.apps.multimodal_ads.data.table import AdRow

__all__ = ["check_duplicates", "picture_groups"]


def picture_groups(rows: Sequence[AdRow], *, max_pixels: int, cache: Path | None = None) -> list[int]:
    """Group number of each row; rows whose pictures are the same share one.

    Raises:
        UserError: Pictures cannot be read; the first ones are named.
    """
    paths, origins = [row.image for row in rows], [row.origin for row in rows]
    prints = fingerprints(paths, max_pixels=max_pixels, origins=origins, cache=cache)
    return duplicate_groups(prints)


def check_duplicates(
    splits: Mapping[str, Sequence[AdRow]], *, allow: bool, max_pixels: int, cache: Path | None = None
) -> list[str]:
    """Find pictures that are in more than one split, whose figures would be too good.

    Args:
        splits: Rows of each part: "train", "val", "test".
        allow: Warn instead of raising.
        max_pixels: See `mlcore.data.images.read_image`.
        cache: See `mlcore.data.fingerprints.fingerprints`.

    Returns:
        Messages to warn with, among them one on equal pictures with different labels; empty where all is well.

    Raises:
        UserError: A picture is in two splits and `allow` is false, or pictures cannot be read.
    """
    return report_duplicates(
        picture_groups([row for rows in splits.values() for row in rows], max_pixels=max_pixels, cache=cache),
        {name: [(f"{row.origin} ({row.image.name})", row.label) for row in rows] for name, rows in splits.items()},
        allow=allow,
    )
