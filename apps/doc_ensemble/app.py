"""What the document classifier is, for the command line and the session; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.base.errors import UserError
from mlcore.cli.app import App
from quartet.apps.doc_ensemble.config import DocConfig, UnaskedConfig

if TYPE_CHECKING:
    from mlcore.base.distributed import World
    from mlcore.run.build import TrainingSetup
    from mlcore.run.group import RunGroup

__all__ = ["APP", "ENSEMBLE"]


def _build(config: DocConfig, world: World) -> TrainingSetup:
    from quartet.apps.doc_ensemble.build import build  # torch takes seconds to import

    return build(config, world)


def _samples(config: DocConfig) -> Mapping[str, Any]:
    from quartet.apps.doc_ensemble.build import samples

    return samples(config)


def _group(config: DocConfig) -> RunGroup[DocConfig] | None:
    if config.protocol.asked:
        if config.kfold.folds:
            raise UserError("protocol and kfold both cross-validate; leave out one (kfold is for stacking members)")
        from mlcore.report.classification import figures
        from mlcore.run.protocol import protocol_group

        return protocol_group(config, figures=figures, title=APP.title, look=partial(_look, config))
    if not config.kfold.folds or config.kfold.fold is not None:
        return None
    from quartet.apps.doc_ensemble.ensemble.folds import folds

    return folds(config)


def _look(config: DocConfig, name: str, _unit: str) -> Any:
    from quartet.apps.doc_ensemble.data.pages import read_page

    path, _, number = name.rpartition("#")  # as `Page.key` has it
    return read_page(Path(path), int(number) - 1, max_pixels=round(config.data.max_megapixels * 1e6))


def _dry_run_config(config: DocConfig) -> DocConfig:
    """A dry run of a cross-validation is one of its first fold; a teacher is opened and asked nothing."""
    if config.distill.teacher is not None:
        config = config.model_copy(update={"distill": UnaskedConfig(**config.distill.model_dump())})
    if not config.kfold.folds or config.kfold.fold is not None:
        return config
    return config.model_copy(update={"kfold": config.kfold.model_copy(update={"fold": 1})})


def _evaluation(run: Any, asked: Any, world: World) -> Any:
    from quartet.apps.doc_ensemble.build import evaluation

    return evaluation(run, asked, world)


def _use() -> Any:
    from quartet.apps.doc_ensemble import scoring

    return scoring


def _ensemble(folder: Path, device: Any) -> Any:
    from quartet.apps.doc_ensemble.ensemble_scoring import make_ensemble_scorer

    return make_ensemble_scorer(folder, device)


def _run_name(config: DocConfig) -> str:
    if config.data.source == "generated":
        return "generated"
    data = config.data.data_dir or (config.data.train_csv or Path("pages")).with_suffix("")
    name = data.resolve().name
    return data.resolve().parent.name if name == "train" else name


APP = App(
    name="doc_ensemble",
    title="Document classifier",
    description="Train a classifier of document pages.",
    config_cls=DocConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "doc_ensemble",
    build=_build,
    samples=_samples,
    evaluation=_evaluation,
    use=_use,
    ensemble=_ensemble,
    run_name=_run_name,
    own_data="--data_dir DIR  (a folder per class; tables: docs/doc_ensemble.md)",
    demo_unless=("data.data_dir", "data.train_csv"),
    dry_run_config=_dry_run_config,
    group=_group,
    purpose="Tells the types of document pages.",
    limits=("Every page gets one of the classes, a page of another type, too.",),
    pipeline_tag="image-classification",
    rehearsal=(
        *("--demo", "data.num_train=68", "data.num_val=34", "--kfold.folds", "2", "model.model_name=test_resnet"),
        *("model.arguments={}", "model.image_size=[64,48]", "--batch_size", "8", "--epochs", "2"),
    ),
)

ENSEMBLE = replace(
    APP,
    description="Classify document pages with several models and views, and say what each method gains.",
    base=("default.yaml", "ensemble.yaml"),
    demo_unless=(*APP.demo_unless, "ensemble.models", "ensemble.run"),
)
