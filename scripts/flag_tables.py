"""Bring the tables of flags in docs/ up to date with the typed configurations.

.venv/bin/python scripts/flag_tables.py
"""

from pathlib import Path

from mlcore.cli.flag_table import insert_flag_tables
from quartet.apps.doc_ensemble.app import APP as DOC_ENSEMBLE
from quartet.apps.multimodal_ads.app import APP as MULTIMODAL_ADS
from quartet.apps.perceiver.app import APP as PERCEIVER
from quartet.apps.sam_med3d_ich.app import APP as SAM_MED3D_ICH

_DOCS = Path(__file__).resolve().parents[1] / "docs"

if __name__ == "__main__":
    for spec in (PERCEIVER, SAM_MED3D_ICH, MULTIMODAL_ADS, DOC_ENSEMBLE):
        page = _DOCS / f"{spec.name}.md"
        page.write_text(insert_flag_tables(page, spec), encoding="utf-8")
