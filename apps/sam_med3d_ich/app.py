"""What the SAM-Med3D app is, for the command line and the session; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcore.cli.app import App
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig

if TYPE_CHECKING:
    from mlcore.base.distributed import World
    from mlcore.run.build import TrainingSetup
    from mlcore.run.group import RunGroup

__all__ = ["APP"]


def _build(config: SamMed3DConfig, world: World) -> TrainingSetup:
    from quartet.apps.sam_med3d_ich.build import build  # torch takes seconds to import

    return build(config, world)


def _samples(config: SamMed3DConfig) -> Mapping[str, Any]:
    from quartet.apps.sam_med3d_ich.build import samples

    return samples(config)


def _evaluation(run: Any, asked: Any, world: World) -> Any:
    from quartet.apps.sam_med3d_ich.build import evaluation

    return evaluation(run, asked, world)


def _use() -> Any:
    from quartet.apps.sam_med3d_ich import scoring

    return scoring


def _group(config: SamMed3DConfig) -> RunGroup[SamMed3DConfig] | None:
    if not config.protocol.asked:
        return None
    from mlcore.run.protocol import protocol_group
    from quartet.apps.sam_med3d_ich.task import figures

    return protocol_group(config, figures=figures, title=APP.title)


def _run_name(config: SamMed3DConfig) -> str:
    return config.data.train_csv.stem if config.data.train_csv else config.data.source


APP = App(
    name="sam_med3d_ich",
    title="SAM-Med3D for intracerebral haemorrhage",
    description="Fine-tune SAM-Med3D to segment intracerebral haemorrhage in brain CT.",
    config_cls=SamMed3DConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "sam_med3d_ich",
    build=_build,
    samples=_samples,
    evaluation=_evaluation,
    use=_use,
    group=_group,
    options={
        "array_spacing": "voxel size of arrays that carry none, X Y Z in mm (default: that of the run)",
        "clicks": "X,Y,Z voxel indices inside the target of the one volume, X,Y,Z,0 outside it; spaces between",
        "threshold": "probability from which a voxel is in the mask (default: that of the run's decision)",
        "flips": "true: also seen mirrored left to right, the mean of both; or along axes of R, A and S, such as RA",
        "probability_map": "also write {name}_probability.nii.gz",
        "overlays": "also write a picture of each volume",
        "mask_dir": "true masks of a table's images, to compare with; the table says path and ich (0 or 1)",
    },
    run_name=_run_name,
    own_data="--train_csv train.csv --val_csv val.csv --mask_dir masks  "
    "(making these from NIfTI or DICOM: docs/sam_med3d_ich.md)",
    demo_unless=("data.train_csv",),
    purpose="Segments intracerebral haemorrhage in brain CT.",
    limits=(
        "Not a medical device: for research only, not for diagnosis or any decision about a patient.",
        "It reads CT in Hounsfield units; other scanners, protocols and bleeds than those of the data may go wrong.",
    ),
    pipeline_tag="image-segmentation",
    rehearsal=("--demo", "data.num_train=4", "data.num_val=2", "--epochs", "2", "--eval_every", "1"),
)
