"""Keeping secrets out of everything that is written: files, logs, reports, trackers, error texts. Torch-free.

A secret is the value of a variable whose name says so (`WANDB_API_KEY`), a setting whose name says so (`hub_token`), or
what has the form of one (a password in an address, a signature in a query). It is found in every form in which text
carries it: as it is, escaped for addresses, JSON or Python, line by line, or with the slash that a path swallows.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote, quote_plus

__all__ = ["MASK", "is_secret", "mask_arguments", "mask_secrets", "mask_text", "register"]

MASK = "***"

# NAMES_LIKE_THIS are environment variables; there, any of these words makes a secret.
_VARIABLE = re.compile(r"^[A-Z][A-Z0-9_]*$")
_VARIABLE_WORDS = re.compile(r"(^|_)(API_?KEY|KEY(_ID)?|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_|$)")
# In configs "key" and "token" mostly mean other things (image_key, pad_token), so only the usual secrets are masked.
_CONFIG = (
    r"(?:api|access|secret|private|auth|account)[_-]?key(?:[_-]?id)?|secret|password|passwd|credentials?"
    r"|(?:api|access|auth|hf|hub|bearer|session|refresh|wandb)[_-]?token"
)
_CONFIG_WORDS = re.compile(rf"(^|[_.-])({_CONFIG})([_.-]|$)|^token$", re.IGNORECASE)
_QUERY_WORDS = rf"[\w.-]*(?:{_CONFIG}|token|signature|credential)|sig|auth|key"
_IN_ADDRESSES = (
    # user:password or a token before the host; a Path drops one slash
    re.compile(r"(?P<keep>://|\b(?:s3|gs|https?|ftps?):/)[^/\s@'\"]+(?=@)"),
    re.compile(rf"(?<=[?&])(?P<keep>(?:{_QUERY_WORDS})=)[^&\s#'\"]+", re.IGNORECASE),  # ?token=...
)
_IN_TEXT = (
    re.compile(rf"(?P<keep>(?:(?<![^\W_])(?:{_CONFIG})|(?<!\w)token)=)[^\s&'\"]+", re.IGNORECASE),  # --hub_token=...
    re.compile(r"(?P<keep>)\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),  # AWS
    re.compile(r"(?P<keep>)\b(?:hf_|gh[pousr]_|wandb_v1_)[0-9A-Za-z_-]{20,}"),
)
_SHORTEST = 8  # masking shorter values would blot out ordinary words

_registered: set[str] = set()


def register(value: str) -> None:
    """Treat `value` as a secret from now on, wherever it turns up; values under 8 characters are left alone."""
    _registered.add(value)


def is_secret(name: str) -> bool:
    """Whether a variable or setting of this name holds a secret."""
    return bool((_VARIABLE_WORDS if _VARIABLE.match(name) else _CONFIG_WORDS).search(name))


def mask_secrets(values: Mapping[str, object], *, reload: bool = False) -> dict[str, object]:
    """A copy of `values` that may be written to a file, a log or a report.

    Strings whose key names a secret (`api_key`, `password`, `HF_TOKEN`, ...) become `***`, at any depth; secrets
    inside other strings are treated as in `mask_text`. Numbers, booleans and None stay.

    Args:
        values: The values.
        reload: Whether they will be read again: then what only looks like a secret (`/data/token=bert`) stays.
    """
    return {key: _mask(key, value, _mask_known if reload else mask_text) for key, value in values.items()}


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be written: as `mask_text`, and without what follows a flag that names a secret."""
    flags = ["", *arguments[:-1]]
    return [
        MASK if flag.startswith("-") and is_secret(flag.lstrip("-")) and not text.startswith("-") else mask_text(text)
        for flag, text in zip(flags, arguments, strict=False)
    ]


def mask_text(text: str) -> str:
    """`text` without secrets, in any of the forms above."""
    return _replace(_mask_known(text), _IN_TEXT)


def _mask_known(text: str) -> str:
    """`text` without values that are known to be secret, and without what an address carries for its host alone."""
    secrets = _registered.union(value for name, value in os.environ.items() if is_secret(name))
    forms = {form for value in secrets if len(value) >= _SHORTEST for form in _forms(value)}
    for form in sorted(forms, key=len, reverse=True):  # the longest first: one may be a part of another
        if form in text:
            text = text.replace(form, MASK)
    return _replace(text, _IN_ADDRESSES)


def _replace(text: str, patterns: Iterable[re.Pattern[str]]) -> str:
    for pattern in patterns:
        text = pattern.sub(rf"\g<keep>{MASK}", text)
    return text


@lru_cache(maxsize=256)
def _forms(value: str) -> frozenset[str]:
    """Every text in which `value` can stand in what is written."""
    plain = {value, value.replace("//", "/"), *value.splitlines(), " ".join(value.split())}
    escaped = {
        form
        for text in plain
        for form in (
            text,
            quote(text),
            quote(text, safe=""),
            quote_plus(text),
            json.dumps(text)[1:-1],
            re.sub(r"\\u\w{4}", lambda code: f"\\u{code[0][2:].upper()}", json.dumps(text)[1:-1]),  # YAML's escapes
            json.dumps(text, ensure_ascii=False)[1:-1],
            repr(text)[1:-1],
            text.replace("'", "''"),  # YAML's single quotes
        )
    }
    return frozenset(form for form in escaped if len(form) >= _SHORTEST)


def _mask(key: str, value: object, text: Callable[[str], str]) -> object:
    if isinstance(value, Mapping):
        return {str(inner): _mask(str(inner), item, text) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(key, item, text) for item in value]
    if isinstance(value, str):
        return MASK if value and is_secret(key) else text(value)
    return value
