"""The files that a finished run leaves for other programs, besides the shared ones."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcore.base.files import write_json
from mlcore.config.dump import to_values
from mlcore.run.decision import write_decision
from mlcore.training.checkpoint import save_checkpoint
from quartet.apps.sam_med3d_ich.choosing import Chooser
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.weights import encoder_state
from quartet.apps.sam_med3d_ich.task import IchTask

ENCODER_KEY = "image_encoder_state_dict"


def write_outputs(
    task: IchTask, config: SamMed3DConfig, chooser: Chooser, folder: Path, summary: Mapping[str, Any]
) -> None:
    """Write `decision.json`, `sam_encoder.pth`, `config.json` and `training_summary_<date-time>.json`.

    A UNet has no encoder for other programs.

    Args:
        task: Its model has the best checkpoint's weights.
        config: The run's.
        chooser: It has seen the evaluations.
        folder: The run's.
        summary: Results of the run.
    """
    write_decision(folder, chooser.decision)
    if isinstance(task.model, IchModel):
        content = {
            ENCODER_KEY: encoder_state(task.model.sam.state_dict()),
            "shape": task.metadata["model"]["shape"],
            "preprocessing": task.metadata["preprocessing"],
        }
        save_checkpoint(folder / "sam_encoder.pth", content)
    write_json(folder / "config.json", to_values(config))
    write_json(folder / f"training_summary_{time.strftime('%Y%m%d-%H%M%S')}.json", summary)
