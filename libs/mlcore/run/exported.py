"""The folder of an export: what is in it, and reading it back without running anything.

`model.json` says what the model is, with the digest of every other file; `model.safetensors` holds the weights.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.base.version import VERSION

__all__ = ["ABOUT", "LAYOUT", "WEIGHTS", "Exported", "digest_of", "read_about"]

ABOUT = "model.json"
WEIGHTS = "model.safetensors"
LAYOUT = 1
"""Version of what `model.json` holds."""

_LONGEST = 16 << 20  # bytes of model.json
_LONGEST_TEXT = 256 << 20  # of a text that lies beside it, such as a tokenizer


@dataclass(frozen=True)
class Exported:
    """What `model.json` says.

    Attributes:
        app: Whose model it is.
        about: What its scorer is made of, beside the network; "files" are texts by name, of the files they lie in.
        digest: Of `model.json` itself.
        half: Whether weights are kept as float16.
    """

    app: str
    about: Mapping[str, Any]
    digest: str
    half: bool = False


def digest_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_about(folder: Path) -> Exported:
    """What an export is, once every file is seen to be the one that was written with it.

    Raises:
        UserError: `model.json` is damaged or of a newer version, or a file is missing or was changed.
    """
    path = folder / ABOUT
    with reading(path, "a description of an export"):
        if path.stat().st_size > _LONGEST:
            raise UserError(f"{path}: more than {_LONGEST >> 20} MiB; no export has such a description")
        note = json.loads(path.read_text(encoding="utf-8"))
        layout, app, about, files = int(note["layout"]), str(note["app"]), dict(note["about"]), dict(note["files"])
        texts = [str(name) for name in about.get("files", ())]
    if layout > LAYOUT:
        raise UserError(f"{path}: written by a newer version ({note.get('version')}; this is {VERSION}); update it")
    for name, digest in files.items():
        file = folder / name
        with reading(folder, "an export"):  # a name may be none
            if "/" in name or "\\" in name or not file.is_file():
                raise UserError(f"{file}: {path.name} names this file, and it is not there; export again")
            if digest_of(file) != digest:
                changed = f"was changed after the export (another SHA-256 than in {path.name})"
                raise UserError(f"{file}: {changed}; export again")
    texts_of = {name: _text(folder, name, files) for name in texts}
    return Exported(app, {**about, "files": texts_of}, digest_of(path), half=bool(note.get("half", False)))


def _text(folder: Path, name: str, files: Mapping[str, str]) -> str:
    """A text of an export, one of the files whose digests were compared."""
    with reading(folder / name, "a text of an export"):
        if name not in files or (folder / name).stat().st_size > _LONGEST_TEXT:
            raise UserError(f"{folder / name}: no text that belongs to {ABOUT}; export again")
        return (folder / name).read_text(encoding="utf-8")
