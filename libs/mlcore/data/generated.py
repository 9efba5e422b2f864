"""Generated data sets as folders that are written once, whole or not at all."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.base.files import partial_folder, write_json
from mlcore.base.reading import reading

__all__ = ["write_once"]

_STAMP = "generated.json"


def write_once(folder: Path, request: Mapping[str, object], write: Callable[[Path], None]) -> None:
    """Fill `folder` through `write`, unless it holds the set of the same `request` already.

    The folder appears complete or not at all; of several processes that write the same set one is kept.

    Args:
        folder: Created, or replaced if it holds a generated set of another request.
        request: What makes the set, down to the version of its format and its seed: plain JSON values, kept in it.
        write: Writes the set into the empty folder that it gets.

    Raises:
        UserError: `folder` holds something else, or cannot be written to.
    """
    if _request_of(folder) == request:
        return
    with partial_folder(folder) as made:
        write(made)
        write_json(made / _STAMP, dict(request))
        if _request_of(folder) == request:  # another process was quicker
            return
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)


def _request_of(folder: Path) -> dict[str, object] | None:
    """What the set in `folder` was made of; None: there is nothing."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    request = None
    with suppress(UserError), reading(folder / _STAMP, "a note of what was generated"):
        request = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    if not isinstance(request, dict):
        raise UserError(f"{folder}: holds something that was not generated; remove it, or choose another folder")
    return request
