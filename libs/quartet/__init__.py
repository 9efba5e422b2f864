"""Quartet: the `quartet` command, and the place from which apps and configurations are imported.

Installed, `quartet.apps` and `quartet.configs` are subpackages like any other. In a checkout they are the folders
`apps/` and `configs/` at its top, which this package takes in: one spelling works everywhere.
"""

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]

if (_CHECKOUT / "apps" / "__init__.py").is_file() and (_CHECKOUT / "pyproject.toml").is_file():
    __path__.append(str(_CHECKOUT))
