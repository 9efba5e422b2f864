"""Texts in images, found by Tesseract where it is installed."""

import json
import logging
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from mlcore.base.console import with_progress
from mlcore.base.env import child_environment
from mlcore.base.errors import UserError
from mlcore.data.images import content_digest, read_image
from quartet.apps.multimodal_ads.data.table import AdRow, clean_text

__all__ = ["check_tesseract", "recognise"]

_log = logging.getLogger(__name__)

_INSTALL = "apt-get install tesseract-ocr {packages} (Debian, Ubuntu) or brew install tesseract tesseract-lang (macOS)"
_LONGEST_S = 120  # for one image; Tesseract can be at noise for hours


def check_tesseract(languages: str) -> None:
    """Make sure that Tesseract can be run and knows the languages.

    Args:
        languages: Codes joined by "+": "kor+eng".

    Raises:
        UserError: It cannot, or does not; with the command that installs what is missing.
    """
    wanted = languages.split("+")
    command = _INSTALL.format(packages=" ".join(f"tesseract-ocr-{name.replace('_', '-')}" for name in wanted))
    try:
        import pytesseract  # noqa: F401
    except ImportError:
        raise UserError("--ocr needs the package pytesseract: pip install pytesseract") from None
    try:
        listed = subprocess.run(
            ["tesseract", "--list-langs"],  # noqa: S607 (from the PATH, as pytesseract takes it)
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=child_environment(),
            check=False,
            text=True,
        )
        known = {line.strip() for line in listed.stdout.splitlines() if re.fullmatch(r"[\w/-]+\s*", line)}
    except OSError:
        raise UserError(f"--ocr needs Tesseract, which is not installed or not on the PATH: {command}") from None
    missing = [name for name in wanted if name not in known]
    if missing:
        raise UserError(
            f"--ocr_lang {languages}: Tesseract does not know {', '.join(missing)} (it knows "
            f"{', '.join(sorted(known)) or 'no language'}): {command}"
        )


def recognise(rows: Sequence[AdRow], *, languages: str, max_pixels: int, record: Path) -> list[str]:
    """The text of each image, several at a time.

    What is found is added to `record` at once, and not looked for again if that file is there already: a killed run
    goes on where it stopped.

    Args:
        rows: Which images.
        languages: See `check_tesseract`.
        max_pixels: See `read_image`.
        record: JSON lines; its folder must exist.

    Returns:
        One text per row; "" where nothing was found, or nothing in two minutes (with a warning).

    Raises:
        UserError: An image cannot be read, or Tesseract fails.
    """
    known = _recorded(record, languages)
    texts: list[str] = []
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")  # each Tesseract would start four threads of its own

    def find(row: AdRow) -> tuple[str, str]:
        digest = content_digest(row.image)
        return digest, known[digest] if digest in known else _text(row.image, languages, max_pixels)

    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        with record.open("a", encoding="utf-8") as file:
            for digest, text in with_progress(pool.map(find, rows), total=len(rows), what="pictures searched for text"):
                texts.append(text)
                if known.get(digest) != text:
                    file.write(json.dumps({"image": digest, "languages": languages, "text": text}) + "\n")
                    file.flush()
    finally:
        pool.shutdown(cancel_futures=True)
        if record.exists() and not record.stat().st_size:
            record.unlink()  # it says nothing
    return texts


def _text(path: Path, languages: str, max_pixels: int) -> str:
    import pytesseract

    pytesseract.pytesseract.environ = child_environment()  # what it gives Tesseract, which needs no secret
    image = Image.fromarray(read_image(path, max_pixels=max_pixels))
    try:
        found = pytesseract.image_to_string(image, lang=languages, timeout=_LONGEST_S)
    except pytesseract.TesseractError as error:
        raise UserError(f"{path}: Tesseract failed: {error.message}") from None
    except RuntimeError:  # what pytesseract raises when the time is over
        _log.warning("%s: no text found in %d s, left empty", path, _LONGEST_S)
        return ""
    return clean_text(str(found))


def _recorded(record: Path, languages: str) -> Mapping[str, str]:
    """Texts by digest of the image; half a line at the end is no record."""
    found: dict[str, str] = {}
    if not record.exists():
        return found
    content = record.read_text(encoding="utf-8", errors="replace")
    if content and not content.endswith("\n"):
        with record.open("a", encoding="utf-8") as file:
            file.write("\n")
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and entry.get("languages") == languages and isinstance(entry.get("text"), str):
            found[str(entry.get("image"))] = entry["text"]
    return found
