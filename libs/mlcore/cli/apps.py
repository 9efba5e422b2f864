"""Which apps there are: every folder with an `app.py` in the subpackage `apps` of a package beside this one.

A name from a file or a command line is only ever compared with those names; nothing is imported that is not there.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.base.errors import UserError

if TYPE_CHECKING:
    from mlcore.cli.app import App

__all__ = ["app_names", "load_app"]


def app_names() -> list[str]:
    """Names of the apps there are."""
    return sorted(_places())


def load_app(name: str) -> "App[Any]":
    """The description of an app.

    Raises:
        UserError: There is none of this name.
    """
    from mlcore.base.errors import nearest  # its library may be what is missing, see `quartet.command`

    places = _places()
    if name not in places:
        raise UserError(f"no app named '{name}'{nearest(name, places)}; there is: {', '.join(sorted(places))}")
    app: App[Any] = importlib.import_module(f"{places[name]}.{name}.app").APP
    return app


def _places() -> dict[str, str]:
    """The package that each app is in."""
    beside = Path(__file__).resolve().parents[2]
    packages = [f"{path.parents[1].name}.apps" for path in sorted(beside.glob("*/apps/__init__.py"))]
    found: dict[str, str] = {}
    for package in packages:
        folders = map(Path, importlib.import_module(package).__path__)
        found |= {path.parent.name: package for folder in folders for path in folder.glob("*/app.py")}
    return found
