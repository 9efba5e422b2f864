"""`quartet new-app NAME`: a small complete app, written into a checkout from the files in `template/`."""

import importlib.util
import keyword
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template

from mlcore.base.errors import UserError
from mlcore.base.files import partial_folder, write_text

__all__ = ["write_app"]

_TEMPLATE = Path(__file__).with_name("template")
_ENDING = ".in"
_LONGEST = 24  # so that no line of the template outgrows the style's 120 characters
# `<Name>Config` would be one of the classes that every app's configuration is made of.
_SECTIONS = ("checkpoint", "data", "model", "run", "scheduler", "tracking", "train")
# Folders of the repository and of runs, the extra with all apps, pages of docs/, and what Windows keeps for devices.
_TAKEN = {
    *("all", "app", "apps", "base", "configs", "dev", "docs", "lr_find", "multirun", "s3", "scripts"),
    *("shared", "test", "tests", "aux", "con", "nul", "prn"),
}


def write_app(name: str, root: Path) -> list[Path]:
    """Write an app that trains at once: code, settings, requirements, image, test and page; all of them, or none.

    It classifies the rows of a table, and is meant to be changed into what is wanted.

    Args:
        name: Of the app and its folders, such as "churn" or "leaf_disease".
        root: Top folder of the checkout.

    Returns:
        The files written, each below `root`, sorted.

    Raises:
        UserError: `root` is no checkout or cannot be written to, or the name is taken or unfit for an app.
    """
    root = Path(root)
    if not ((root / "pyproject.toml").is_file() and (root / "apps" / "__init__.py").is_file()):
        raise UserError(
            f"{root.absolute()}: no checkout of the repository, which has pyproject.toml and apps/ at its top; clone "
            "it with git, and run this at the top of the clone"
        )
    _check_name(name)
    files = _rendered(name)
    pieces = sorted({Path(*path.parts[:2]) for path in files}, reverse=True)
    pages = {path.name.lower() for path in (root / "docs").glob("*")}  # some file systems take no note of the case
    for piece in pieces:
        if (root / piece).exists() or (piece.parts[0] == "docs" and piece.name.lower() in pages):
            raise UserError(
                f"there is an app '{name}', or something of that name: {root / piece} is there already, and no app is "
                "overwritten; choose another name"
            )
    with partial_folder(root / name) as made:
        for path, text in files.items():
            (made / path).parent.mkdir(parents=True, exist_ok=True)
            write_text(made / path, text)
        _move(pieces, made, root)
    return sorted(root / path for path in files)


def _check_name(name: str) -> None:
    """Refuse what is no plain module name, and what would hide another module or class."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or len(name) > _LONGEST:
        raise UserError(
            f"'{name}' cannot be the name of an app: expected at most {_LONGEST} lower-case letters, digits and single "
            "underscores that begin with a letter, such as leaf_disease"
        )
    reason = None
    if keyword.iskeyword(name):
        reason = "is a word of the Python language"
    elif name in sys.stdlib_module_names:
        reason = "is a module of Python's standard library"
    elif name in _TAKEN:
        reason = "stands for something else here"
    elif name in _SECTIONS:
        reason = "is a section of every app's settings"
    elif (spec := importlib.util.find_spec(name)) is not None and spec.origin is not None:
        reason = f"is an installed package ({spec.origin})"  # without an origin it is just some folder of that name
    if reason:
        raise UserError(f"'{name}' cannot be the name of an app: it {reason}; choose another name")


def _rendered(name: str) -> dict[Path, str]:
    """Text of each file of the app, by its path in the checkout."""
    words = name.split("_")
    values = {"name": name, "Class": "".join(map(str.capitalize, words)), "title": " ".join(words).capitalize()}
    files = {}
    for path in sorted(_TEMPLATE.rglob(f"*{_ENDING}")):
        place = path.relative_to(_TEMPLATE).as_posix().removesuffix(_ENDING).replace("NAME", name)
        files[Path(place)] = Template(path.read_text(encoding="utf-8")).substitute(values)
    return files


def _move(pieces: Sequence[Path], made: Path, root: Path) -> None:
    """Give the files and folders their places, the app's package last; after a failure none is left there."""
    moved: list[Path] = []
    try:
        for piece in pieces:
            (root / piece).parent.mkdir(exist_ok=True)
            (made / piece).rename(root / piece)
            moved.append(root / piece)
    except BaseException as error:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for parent in {(root / piece).parent for piece in pieces}:
            with suppress(OSError):  # where it was there before, the rest of it stays
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{root / piece}: cannot be written ({error.strerror}); nothing else was") from error
        raise
