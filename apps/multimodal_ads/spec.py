"""The command-line face of the ad classifier; imports nothing heavy."""

from pathlib import Path

from apps.multimodal_ads.config import AdsConfig
from mlcore.cli.spec import AppSpec

SPEC = AppSpec(
    name="multimodal_ads",
    config_cls=AdsConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "multimodal_ads",
    description="Train a classifier that tells ads from other images, by picture and text.",
    root=Path("whole_finetune"),
    demo_unless=("data.train_csv", "data.base_dir"),
)
