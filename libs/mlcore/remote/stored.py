"""Command-line arguments that name a file, here or in a bucket."""

import sys
from pathlib import Path

from mlcore.base.env import load_env
from mlcore.remote.s3 import fetch, is_remote

__all__ = ["stored_file"]

CACHE = Path("outputs") / "s3"
"""Where downloads go, by bucket and key; what is made from a checkpoint then lies beside it, as in a run folder."""


def stored_file(text: str) -> Path:
    """`type=` of an argument that is a file: a local path as it is; `s3://bucket/key` is downloaded first.

    A copy that is there already is used again if its checksum is that of the object.

    Raises:
        UserError: The object is missing, damaged or cannot be reached; the message says what to do.
    """
    if not is_remote(text):
        return Path(text)
    load_env()  # credentials
    path = fetch(text, cache_dir=CACHE)
    print(f"{text} -> {path}", file=sys.stderr)
    return path
