"""A folder that appears complete or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mlcore.base.errors import UserError
from mlcore.base.files import partial_folder

__all__ = ["new_folder", "refuse_existing"]


def refuse_existing(target: Path) -> None:
    """Raise a UserError if `target` is a file or a folder with something in it."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target}: exists and is not empty; give another output folder, or remove it first")


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target` that takes its name when the block ends, or goes if the block raises.

    Folders above `target` that were made for it go with it.

    Raises:
        UserError: `target` exists and is not empty, or its parent cannot be written to.
    """
    refuse_existing(target)
    with partial_folder(target) as folder:
        yield folder
        refuse_existing(target)  # somebody else may have been quicker
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()
        folder.rename(target)
