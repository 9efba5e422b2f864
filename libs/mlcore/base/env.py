"""Settings and secrets from the environment: `.env` files, and keeping secrets out of everything we write. Torch-free.

Put a line `WANDB_API_KEY=...` into a file `.env` at the root of the project or in the current folder; a variable that
is already set in the environment wins over both.
"""

import netrc
import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import dotenv

from mlcore.base.errors import UserError

__all__ = ["MASK", "load_env", "mask_secrets", "mask_text", "project_root", "wandb_key_source"]

MASK = "***"

# NAMES_LIKE_THIS are environment variables; there, any of these words makes a secret.
_VARIABLE = re.compile(r"^[A-Z][A-Z0-9_]*$")
_VARIABLE_WORDS = re.compile(r"(^|_)(API_?KEY|KEY(_ID)?|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)")
# In configs "key" and "token" mostly mean other things (image_key, pad_token), so only the usual secrets are masked.
_CONFIG_WORDS = re.compile(
    r"(^|[_.-])((api|access|secret|private|auth|account)[_-]?key([_-]?id)?|secret|password|passwd|credentials?"
    r"|(api|access|auth|hf|hub|bearer|session|refresh|wandb)[_-]?token)([_.-]|$)|^token$",
    re.IGNORECASE,
)
_TEXT_PATTERNS = (
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),  # user:password in an address
    re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),  # AWS
    re.compile(r"\b(hf_|gh[pousr]_|wandb_v1_)[0-9A-Za-z_-]{20,}"),
)
_SHORTEST_SECRET = 8  # masking shorter values would blot out ordinary words


def project_root(start: Path | None = None) -> Path | None:
    """The nearest folder at or above `start` (default: this source tree) that has a pyproject.toml, if any."""
    start = Path(start or __file__).resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "pyproject.toml").is_file()), None)


def load_env(*, root: Path | None = None) -> list[Path]:
    """Read `.env` of the current folder, then of the project; what is set already is never changed.

    Args:
        root: The project's root; found through pyproject.toml if not given.

    Returns:
        The files read, the winning one first.

    Raises:
        UserError: A file cannot be read or has a line that is not `NAME=value`.
    """
    root = root or project_root()
    folders = [Path.cwd()] if root is None else [Path.cwd(), root]
    files = [path for path in dict.fromkeys((folder / ".env").resolve() for folder in folders) if path.is_file()]
    for path in files:
        for name, value in _parse(path).items():
            os.environ.setdefault(name, value)
    return files


def mask_secrets(values: Mapping[str, object]) -> dict[str, object]:
    """A copy of `values` that may be written to a file, a log or a report.

    Strings whose key names a secret (`api_key`, `password`, `HF_TOKEN`, ...) become `***`, at any depth; secrets
    inside other strings are treated as in `mask_text`. Numbers, booleans and None stay.
    """
    return {key: _mask(key, value) for key, value in values.items()}


def mask_text(text: str) -> str:
    """`text` without values of secret environment variables, passwords in addresses, and well-known key formats."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _is_secret(name) and value in text:
            text = text.replace(value, MASK)
    for pattern in _TEXT_PATTERNS:
        text = pattern.sub(MASK, text)
    return text


def wandb_key_source() -> str | None:
    """Where W&B finds its key ("WANDB_API_KEY", the path of a netrc file, ...), or None if it would have to ask."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(name):
            return name
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        try:
            if netrc.netrc(path).authenticators(host):
                return str(path)
        except (OSError, netrc.NetrcParseError):
            continue
    return None


def _parse(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected UTF-8 text with lines NAME=value.") from error
    for number, line in enumerate(text.splitlines(), start=1):
        # A value in quotes may go over several lines, which dotenv handles; a bare word is the common mistake.
        if re.fullmatch(r"\s*[^#\s=]+\s*", line) and '"' not in text and "'" not in text:
            raise UserError(f"{path}, line {number}: expected NAME=value, found {mask_text(line.strip())[:20]!r}.")
    return {name: value for name, value in dotenv.dotenv_values(path).items() if value is not None}


def _is_secret(name: str) -> bool:
    return bool((_VARIABLE_WORDS if _VARIABLE.match(name) else _CONFIG_WORDS).search(name))


def _mask(key: str, value: object) -> object:
    if isinstance(value, Mapping):
        return {str(inner): _mask(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(key, item) for item in value]
    if isinstance(value, str):
        return MASK if value and _is_secret(key) else mask_text(value)
    return value
