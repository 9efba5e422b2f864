"""Pictures that are in the tables more than once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcore.data import duplicates
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
    groups: list[int] = duplicates.duplicate_groups(prints).tolist()
    return groups


def check_duplicates(
    splits: Mapping[str, Sequence[AdRow]], *, allow: bool, max_pixels: int, cache: Path | None = None
) -> list[str]:
    """`mlcore.data.duplicates.check_duplicates` of tables' rows."""
    return duplicates.check_duplicates(
        {name: [row.image for row in rows] for name, rows in splits.items()},
        allow=allow,
        max_pixels=max_pixels,
        allow_with="data.allow_duplicates=true",
        labels={name: [row.label for row in rows] for name, rows in splits.items()},
        origins={name: [row.origin for row in rows] for name, rows in splits.items()},
        cache=cache,
    )
