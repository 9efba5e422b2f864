"""Settings and secrets from the environment, and what is taken from `.env` files. Torch-free.

Put a line `WANDB_API_KEY=...` into a file `.env` at the root of the checkout, or name a file or folder in the variable
`QUARTET_ENV`; a variable that is already set wins. A `.env` that merely lies in the current folder is not read: it may
be anybody's, and variables can start programs (`GIT_*`, `LD_*`) or send keys elsewhere (proxies, addresses). So only
the names below become variables of the process, an address only together with the keys that are sent there; every
other name serves `${env:NAME}` in settings and nothing else.
"""

import logging
import netrc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import dotenv

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.base.secrets import mask_secrets, note, shown

__all__ = ["NAMED", "child_environment", "env_notes", "environment", "load_env", "project_root", "wandb_key_source"]

_log = logging.getLogger(__name__)

NAMED = "QUARTET_ENV"
"""Variable that names the `.env` file, or its folder, to read instead of the checkout's."""

_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_KEYS_SENT_TO = {
    "WANDB_BASE_URL": ("WANDB_API_KEY",),
    "AWS_ENDPOINT_URL": _AWS_KEYS,
    "AWS_ENDPOINT_URL_S3": _AWS_KEYS,
    "HF_ENDPOINT": ("HF_TOKEN",),
}
_TAKEN = {
    *("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE"),
    *(*_AWS_KEYS, "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION", "S3_BUCKET_NAME"),
    *("HF_TOKEN", "HF_HOME", "HF_HUB_OFFLINE"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *_KEYS_SENT_TO,
}
# Said when they are found, because whoever wrote them expected them to work.
_NEVER = re.compile(
    r"(GIT|LD|DYLD|PYTHON|BASH|NCCL|TORCH|CUDA)_?.*|(AWS|WANDB|HF|SSL|CURL|REQUESTS|OPENSSL|SSH|XDG|TESSDATA)_.*"
    r"|.*PATH|.*_PROXY|.*_CA_BUNDLE|HOME|NETRC|SHELL|ENV|TMPDIR",
    re.IGNORECASE,
)

_other: dict[str, str] = {}  # what else `.env` files say, for `${env:NAME}`
_notes: list[str] = []


def project_root(start: Path | None = None) -> Path | None:
    """The nearest folder at or above `start` (default: this source tree) that has a pyproject.toml, if any."""
    start = Path(start or __file__).resolve()
    return next((folder for folder in (start, *start.parents) if (folder / "pyproject.toml").is_file()), None)


def load_env(*, root: Path | None = None) -> list[Path]:
    """Read `.env` of the checkout, or the one that `QUARTET_ENV` names; what is set already is never changed.

    What is left out is said once on the terminal; `env_notes` has it for logs.

    Args:
        root: The project's root; found through pyproject.toml if not given.

    Returns:
        The file read, or nothing.

    Raises:
        UserError: The file cannot be read, has a line that is not `NAME=value`, or the named one is not there.
    """
    path = _env_file(root or project_root())
    here = Path.cwd() / ".env"
    if here.is_file() and (path is None or here.resolve() != path):
        _note(f"{here} is not read: only the checkout's own .env is, or the one that the variable {NAMED} names")
    if path is None:
        return []
    values = _parse(path)
    for name, value in values.items():
        if name in os.environ:
            continue
        if name not in _TAKEN:
            _other[name] = value
            note(name, value)
            if _NEVER.fullmatch(name):
                _note(f"{path}: {name} is not taken from a file; set it in the shell if it is yours")
        elif any(os.environ.get(key, values.get(key)) != values.get(key, "") for key in _KEYS_SENT_TO.get(name, ())):
            keys = " and ".join(_KEYS_SENT_TO[name])
            _note(f"{path}: {name} is not taken: it must come from where {keys} come from, because they are sent there")
        else:
            os.environ[name] = value
    return [path]


def environment() -> dict[str, str]:
    """Variables of the process, and what else the `.env` file says: what `${env:NAME}` can name."""
    return {**_other, **os.environ}


def env_notes() -> list[str]:
    """What `load_env` left out and why."""
    return list(_notes)


def child_environment() -> dict[str, str]:
    """The environment for programs that need no secret: without variables that hold one, also in an address."""
    masked = mask_secrets(os.environ)
    return {name: value for name, value in os.environ.items() if masked[name] == value}


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


def _env_file(root: Path | None) -> Path | None:
    named = os.environ.get(NAMED)
    if named:
        place = Path(named).expanduser().resolve()
        file = place / ".env" if place.is_dir() else place
        if not file.is_file():
            raise UserError(f"{NAMED}={named}: there is no file {file}")
        return file
    own = None if root is None else (root / ".env").resolve()
    return own if own is not None and own.is_file() else None


def _note(text: str) -> None:
    if text not in _notes:
        _notes.append(text)
        _log.warning("%s", shown(text))


@contextmanager
def _dotenv_warnings_as_errors() -> Iterator[None]:
    """The dotenv library passes over lines that it cannot read, and says so in its log without the file's name."""

    def refuse(record: logging.LogRecord) -> bool:
        raise ValueError(
            record.getMessage().replace("python-dotenv could not parse statement starting at ", "cannot read ")
        )

    log = logging.getLogger("dotenv.main")
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


def _parse(path: Path) -> dict[str, str]:
    with reading(path, "UTF-8 text with lines NAME=value"):
        text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.splitlines(), start=1):
        # A value in quotes may go over several lines, which dotenv handles; a bare word is the common mistake.
        if re.fullmatch(r"\s*[^#\s=]+\s*", line) and '"' not in text and "'" not in text:
            raise UserError(f"{path}, line {number}: expected NAME=value.")  # it may be a key
    with reading(path, "lines NAME=value"), _dotenv_warnings_as_errors():
        return {name: value for name, value in dotenv.dotenv_values(path).items() if value is not None}
