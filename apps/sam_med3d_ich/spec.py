"""The command-line face of the SAM-Med3D app; imports nothing heavy."""

from pathlib import Path

from apps.sam_med3d_ich.config import SamMed3DConfig
from mlcore.cli.spec import AppSpec

SPEC = AppSpec(
    name="sam_med3d_ich",
    config_cls=SamMed3DConfig,
    config_dir=Path(__file__).resolve().parents[2] / "configs" / "sam_med3d_ich",
    description="Fine-tune SAM-Med3D to segment intracerebral haemorrhage in brain CT.",
    demo_unless=("data.train_csv",),
)
