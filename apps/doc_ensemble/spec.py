"""The command-line face of the document classifier; imports nothing heavy."""

from dataclasses import replace
from pathlib import Path

from apps.doc_ensemble.config import DocConfig
from mlcore.cli.spec import AppSpec

__all__ = ["ENSEMBLE_SPEC", "SPEC"]

SPEC = AppSpec(
    name="doc_ensemble",
    config_cls=DocConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "doc_ensemble",
    description="Train a classifier of document pages.",
    demo_unless=("data.data_dir", "data.train_csv"),
)

ENSEMBLE_SPEC = replace(
    SPEC,
    description="Judge document pages with several models and views, and say what each method gains.",
    base=("default.yaml", "ensemble.yaml"),
    demo_unless=(*SPEC.demo_unless, "ensemble.models", "ensemble.run"),
)
