"""The command-line face of the Perceiver app; imports nothing heavy."""

from pathlib import Path

from apps.perceiver.config import PerceiverConfig
from mlcore.cli.spec import AppSpec

SPEC = AppSpec(
    name="perceiver",
    config_cls=PerceiverConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "perceiver",
    description="Train a Perceiver on sequences of any length: patterns, images as patches, .ts files, your own.",
    demo_unless=("data.dataset",),
)
