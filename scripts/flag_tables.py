"""Bring the tables of flags in docs/ up to date with the typed configurations.

.venv/bin/python scripts/flag_tables.py
"""

from pathlib import Path

from apps.doc_ensemble.spec import SPEC as DOC_ENSEMBLE
from apps.multimodal_ads.spec import SPEC as MULTIMODAL_ADS
from apps.perceiver.spec import SPEC as PERCEIVER
from apps.sam_med3d_ich.spec import SPEC as SAM_MED3D_ICH
from mlcore.cli.flag_table import insert_flag_tables

_DOCS = Path(__file__).resolve().parents[1] / "docs"

if __name__ == "__main__":
    for spec in (PERCEIVER, SAM_MED3D_ICH, MULTIMODAL_ADS, DOC_ENSEMBLE):
        page = _DOCS / f"{spec.name}.md"
        page.write_text(insert_flag_tables(page, spec), encoding="utf-8")
