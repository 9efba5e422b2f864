"""What the Perceiver app is, for the command line and the session; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.cli.app import App
from quartet.apps.perceiver.config import PerceiverConfig

if TYPE_CHECKING:
    from mlcore.base.distributed import World
    from mlcore.run.build import TrainingSetup
    from mlcore.run.group import RunGroup

__all__ = ["APP"]


def _build(config: PerceiverConfig, world: World) -> TrainingSetup:
    from quartet.apps.perceiver import build, build_raw  # torch takes seconds to import

    return build_raw.build(config, world) if config.data.dataset in build_raw.RAW else build.build(config, world)


def _samples(config: PerceiverConfig) -> Mapping[str, Any]:
    from quartet.apps.perceiver.data.sources import samples_to_check

    return samples_to_check(config.data, seed=config.run.seed, kind=config.task.kind)


def _evaluation(run: Any, asked: Any, world: World) -> Any:
    from quartet.apps.perceiver.evaluation import evaluation

    return evaluation(run, asked, world)


def _use() -> Any:
    from quartet.apps.perceiver import scoring

    return scoring


def _group(config: PerceiverConfig) -> RunGroup[PerceiverConfig] | None:
    if not config.protocol.asked:
        return None
    from mlcore.report.classification import figures as of_classes
    from mlcore.run.protocol import protocol_group
    from quartet.apps.perceiver.measures import figures

    figures_of = of_classes if config.task.kind == "classification" else figures
    look = partial(_look, config) if config.data.dataset == "image_folder" else None
    return protocol_group(config, figures=figures_of, title=APP.title, look=look)


def _look(config: PerceiverConfig, name: str, _unit: str) -> Any:
    from mlcore.data.images import read_image

    return read_image(Path(name), max_pixels=round(config.data.max_megapixels * 1e6))


def _run_name(config: PerceiverConfig) -> str:
    return config.data.dataset or "run"


APP = App(
    name="perceiver",
    title="Perceiver",
    description="Train a Perceiver on texts, images, series of any length, or tables of all of these.",
    config_cls=PerceiverConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "perceiver",
    build=_build,
    samples=_samples,
    evaluation=_evaluation,
    use=_use,
    group=_group,
    options={"on_missing": "gaps in sequences: error, mask or interpolate (default: as in training)"},
    run_name=_run_name,
    own_data="--dataset image_folder --data_dir DIR  (more kinds: docs/perceiver.md)",
    demo_unless=("data.dataset", "data.data_dir", "data.train_path"),
    purpose="Classifies series, images as patches, texts as bytes, or all together; of series also what its task asks.",
    limits=("Everything gets an answer, such as one of the classes, whatever it is.",),
    rehearsal=(
        *("--dataset", "synthetic", "--num_samples", "160", "--seq_len_range", "8", "24", "--feature_dim", "6"),
        *("--num_classes", "3", "--d_model", "16", "--num_heads", "2", "--num_latents", "4", "--dropout", "0.1"),
        *("--num_cross_attention_layers", "1", "--num_self_attention_layers", "1"),
        *("--batch_size", "8", "--epochs", "3"),
    ),
)
