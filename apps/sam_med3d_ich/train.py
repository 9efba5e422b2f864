"""Fine-tune SAM-Med3D to segment intracerebral haemorrhage in brain CT.

    python apps/sam_med3d_ich/train.py                       the demo, under three minutes on two cores
    python apps/sam_med3d_ich/train.py --train_csv train.csv --val_csv val.csv --mask_dir masks --output_dir outputs/ich
    python apps/sam_med3d_ich/train.py +experiment=hippocampus data.train_csv=train.csv ...   small volumes
    python apps/sam_med3d_ich/train.py --test                check the system

Starts from the released weights (fetched from Hugging Face; --weights FILE or SAM_MED3D_WEIGHTS where there is no
network). Leaves a run folder; docs/sam_med3d_ich.md says what is in it. An interrupted run (exit code 75) continues
when the same command is given again.
"""

from apps.sam_med3d_ich.spec import SPEC
from mlcore.cli.app import run_app
from mlcore.cli.spec import Invocation


def act(invocation: Invocation) -> int:  # type: ignore[type-arg]
    """Train, or rehearse, or check the system, as the command line says."""
    from apps.sam_med3d_ich.build import APP  # after parsing: torch takes seconds to import
    from mlcore.session import run

    return run(APP, invocation)


if __name__ == "__main__":
    run_app(SPEC, act)
