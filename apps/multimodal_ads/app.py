"""What the ad classifier is, for the command line and the session; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from quartet.apps.multimodal_ads.config import AdsConfig

if TYPE_CHECKING:
    from mlcore.base.distributed import World
    from mlcore.run.build import TrainingSetup
    from mlcore.run.group import RunGroup

__all__ = ["APP", "variants"]


def _build(config: AdsConfig, world: World) -> TrainingSetup:
    from quartet.apps.multimodal_ads.build import build  # torch takes seconds to import

    return build(config, world)


def _samples(config: AdsConfig) -> Mapping[str, Any]:
    from quartet.apps.multimodal_ads.build import samples

    return samples(config)


def _evaluation(run: Any, asked: Any, world: World) -> Any:
    from quartet.apps.multimodal_ads.testing import evaluation

    return evaluation(run, asked, world)


def _use() -> Any:
    from quartet.apps.multimodal_ads import scoring

    return scoring


def _group(config: AdsConfig) -> RunGroup[AdsConfig] | None:
    if config.protocol.asked:
        if config.train.ablations and config.data.source != "generated":
            raise UserError("protocol and train.ablations both ask for several runs; leave out one")
        from mlcore.run.protocol import protocol_group
        from quartet.apps.multimodal_ads.evaluation import ad_metrics

        plain = _changed(config, train={"ablations": False})  # the demo's preset asks for them by itself
        return protocol_group(plain, figures=ad_metrics, title=APP.title, look=partial(_look, config))
    from mlcore.run.group import ablations

    return ablations(config, variants(config))


def _look(config: AdsConfig, _name: str, unit: str) -> Any:
    from mlcore.data.images import read_image

    return read_image(Path(unit), max_pixels=round(config.data.max_megapixels * 1e6))


def variants(config: AdsConfig) -> Mapping[str, AdsConfig]:
    """Each modality alone and the other fusion, where asked for; none for a demo that has one modality only."""
    if not config.train.ablations or config.train.modality != "multimodal" or config.text_encoder.model is None:
        return {}
    plain = _changed(config, train={"ablations": False})
    alone = {"align_weight": 0.0, "modality_loss": 0.0}
    other = "concat" if config.fusion.name == "gated" else "gated"
    lora, seen = plain.train.lora, dict[str, Any]()
    if lora.enabled and not lora.on_vision:
        seen = {"lora": lora.model_copy(update={"enabled": False}), "lora_lr": None}
    return {
        f"fusion_{other}": _changed(plain, fusion={"name": other, "text_facts": False}),
        "vision_only": _changed(plain, train={"modality": "vision_only", **alone, **seen}),
        "text_only": _changed(plain, train={"modality": "text_only", **alone}),
    }


def _dry_run_config(config: AdsConfig) -> AdsConfig:
    """It computes the features that it needs and keeps none."""
    return _changed(config, features={"cache": "off"})


def _changed(config: AdsConfig, **changes: Mapping[str, Any]) -> AdsConfig:
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)


def _run_name(config: AdsConfig) -> str:
    if config.data.source == "generated":
        return "generated"
    table = config.data.train_csv or (config.data.base_dir or Path("data")) / "train.csv"
    return table.stem if table.stem != "train" else f"{table.resolve().parent.name}"


APP = App(
    name="multimodal_ads",
    title="Multimodal ad classifier",
    description="Train a classifier that tells ads from other images, by picture and text.",
    config_cls=AdsConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "multimodal_ads",
    build=_build,
    samples=_samples,
    evaluation=_evaluation,
    use=_use,
    options={
        "text": "text of all inputs; a table brings its own in the column text_info (default: none)",
        "threshold": "probability from which an input is an ad (default: chosen on validation)",
    },
    run_name=_run_name,
    own_data="--train_csv train.csv  (columns local_image_path, label, text_info)",
    demo_unless=("data.train_csv", "data.base_dir"),
    root=Path("whole_finetune"),
    dry_run_config=_dry_run_config,
    group=_group,
    purpose="Tells ads from other images, by picture and text.",
    limits=("Frozen encoders are not part of the checkpoint: they are fetched from where the training had them from.",),
    pipeline_tag="image-classification",
    rehearsal=(
        *("--demo", "data.num_train=64", "data.num_val=16", "data.num_test=16", "data.generated_dir=generated"),
        *("train.ablations=false", "text_encoder=none", "--batch_size", "8", "--epochs", "2"),
    ),
)
