"""What may be written: no secret in files, logs, reports, trackers and error texts; no control character on terminals.

A secret is the value of a variable or setting whose name says so (`WANDB_API_KEY`, `hub_token`), or what an address
carries for its host alone (a password, a signature in its query). Values are registered where they come in (`register`,
`note`, `note_arguments`; variables of the process are always known), and masked where text goes out: `mask_known` in
every text file, `shown` on the terminal, in logs and on pages. A value is found however it is escaped or folded.
Torch-free.
"""

import html
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from urllib.parse import quote, quote_plus, unquote, unquote_plus

__all__ = [
    "MASK",
    "is_secret",
    "mask_arguments",
    "mask_known",
    "mask_secrets",
    "mask_text",
    "masking",
    "note",
    "note_arguments",
    "register",
    "shown",
    "visible",
]

MASK = "***"

# NAMES_LIKE_THIS are environment variables; there, any of these words makes a secret, unless it names a place.
_VARIABLE = re.compile(r"^[A-Z][A-Z0-9_]*$")
_VARIABLE_WORDS = re.compile(r"(^|_)(API_?KEY|KEY(_ID)?|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_(?!FILE$|PATH$)|$)")
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
# The same in a value that is known to be one address: anything may stand in it.
_USER = re.compile(r"(?:://|\b(?:s3|gs|https?|ftps?):/)([^/?#]+)@")
_QUERY = re.compile(rf"[?&](?:{_QUERY_WORDS})=([^&#]+)", re.IGNORECASE)
_SHORTEST = 8  # masking shorter values would blot out ordinary words

# What writers put into a value: escapes, doubled quotes and slashes, folds of YAML's lines.
_ADDED = re.compile(r"""\\(?:\n[ \t]*\\?)?|\n(?<!\n\n)\n*[ \t]*(?=[ \t])|\r|/(?<=//)|"(?<="")|'(?<='')""")

# What moves a terminal's cursor, rings its bell, or turns the direction of reading; and halves of characters, which
# names of files that are not UTF-8 have. Tabs and ends of lines stay.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

_registered: set[str] = set()


def register(value: str) -> None:
    """Treat `value` as a secret from now on, wherever it turns up; values under 8 characters are left alone."""
    _registered.add(value)


def note(name: str, value: object) -> None:
    """Register what is secret in a value (or lists and mappings of such): all of it if its `name` says so."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            note(str(key), item)
    elif isinstance(value, list | tuple):
        for item in value:
            note(name, item)
    elif isinstance(value, str):
        _registered.update([value] if is_secret(name) else _in_address(value))


def note_arguments(arguments: Sequence[str]) -> None:
    """Register the secrets of a command line: `--hub_token x`, `hub_token=x`, and those in addresses."""
    for flag, text in zip(["", *arguments], arguments, strict=False):
        name, _, value = text.partition("=")
        note(name.lstrip("-+"), value)
        note("", text)
        if flag.startswith("-") and not text.startswith("-"):
            note(flag.lstrip("-"), text)


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
    return {key: _mask(key, value, _mask_values if reload else mask_text) for key, value in values.items()}


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as it may be written: as `mask_text`, and without what follows a flag that names a secret."""
    note_arguments(arguments)
    flags = ["", *arguments[:-1]]
    return [
        MASK if flag.startswith("-") and is_secret(flag.lstrip("-")) and not text.startswith("-") else mask_text(text)
        for flag, text in zip(flags, arguments, strict=False)
    ]


def shown(text: str) -> str:
    """`text` as it may stand on a terminal, in a log or on a page: `mask_text` and `visible`."""
    return visible(mask_text(text))


def visible(text: str) -> str:
    r"""`text` with control characters, and what turns the direction of text, as escapes (`\x1b`); lines stay lines."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def mask_text(text: str) -> str:
    """`text` without known secrets, and without what has the form of one."""
    return _replace(_mask_values(text), _IN_TEXT)


def mask_known(text: str) -> str:
    """`text` without the values that are known to be secret, in whatever form; all else stays as it is."""
    return masking()(text)


def masking() -> Callable[[str], str]:
    """`mask_known` for many texts in a row: with what is known to be secret now."""
    return partial(_masked, _forms(frozenset(_registered), tuple(os.environ.items())))


def _masked(forms: Sequence[str], text: str) -> str:
    squeezed = _ADDED.sub("", text)
    for form in forms:
        if form in squeezed:
            pattern = f"(?:{_ADDED.pattern})*".join(map(re.escape, form))
            # A number is one only where it stands alone.
            text = re.sub(rf"(?<![\d.]){pattern}(?![\d.]*\d)" if form.isdigit() else pattern, MASK, text)
    return text


def _mask_values(text: str) -> str:
    return _replace(mask_known(text), _IN_ADDRESSES)


def _replace(text: str, patterns: Iterable[re.Pattern[str]]) -> str:
    for pattern in patterns:
        text = pattern.sub(rf"\g<keep>{MASK}", text)
    return text


@lru_cache(maxsize=2)
def _forms(registered: frozenset[str], environ: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    """All that is to be looked for in squeezed text, the longest first: one may be a part of another."""
    values = set(registered)
    for name, value in environ:
        values.update([value] if is_secret(name) else _in_address(value))
    # Programs write long values line by line, or as one line.
    pieces = {part for value in values for part in (value, *value.splitlines(), " ".join(value.split()))}
    forms = {form for piece in pieces if len(piece) >= _SHORTEST for form in _written(piece)}
    return tuple(sorted(forms, key=len, reverse=True))


@lru_cache(maxsize=256)
def _written(value: str) -> frozenset[str]:
    """`value` in the forms that differ in more than `_ADDED`."""
    escaped = json.dumps(value)[1:-1]
    percent = [quote(value), quote(value, safe=""), quote_plus(value)]
    forms = [
        value,
        repr(value)[1:-1],
        ascii(value)[1:-1],
        escaped,
        *(
            re.sub(r"\\(x..|u....|U.{8})", lambda code: code[0][:2] + code[0][2:].upper(), text)  # YAML
            for text in (ascii(value)[1:-1], escaped)
        ),
        json.dumps(value, ensure_ascii=False)[1:-1],
        *percent,
        *(re.sub(r"%\w\w", lambda code: code[0].lower(), text) for text in percent),
        html.escape(value, quote=False),
        html.escape(value),
        html.escape(value).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),  # jinja
        value.replace("'", "'\"'\"'"),  # shells
    ]
    return frozenset(form for form in (_ADDED.sub("", text) for text in forms) if len(form) >= _SHORTEST - 2)


def _in_address(value: str) -> set[str]:
    """What addresses in `value` carry for their hosts: as it is, and without percent escapes."""
    found = [match[1] for pattern in (_USER, _QUERY) for match in pattern.finditer(value)]
    found += [text.partition(":")[2] for text in found]  # the password alone
    return {form for text in found for form in (text, unquote(text), unquote_plus(text)) if text}


def _mask(key: str, value: object, text: Callable[[str], str]) -> object:
    if isinstance(value, Mapping):
        return {str(inner): _mask(str(inner), item, text) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mask(key, item, text) for item in value]
    if isinstance(value, str):
        return MASK if value and is_secret(key) else text(value)
    return value
