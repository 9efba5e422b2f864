"""Bring the tables of flags in docs/ up to date with the typed configurations.

.venv/bin/python scripts/flag_tables.py
"""

from pathlib import Path

from mlcore.cli.flag_table import BEGIN, insert_flag_tables
from quartet.command import app_names, load_app

_DOCS = Path(__file__).resolve().parents[1] / "docs"

if __name__ == "__main__":
    for page in (_DOCS / f"{name}.md" for name in app_names()):
        if page.is_file() and BEGIN in page.read_text(encoding="utf-8"):
            page.write_text(insert_flag_tables(page, load_app(page.stem)), encoding="utf-8")
