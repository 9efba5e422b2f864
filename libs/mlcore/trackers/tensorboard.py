"""TensorBoard event files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from mlcore.base.files import ensure_folder

__all__ = ["TensorBoardTracker"]


class TensorBoardTracker:
    """Writes scalars and pictures for TensorBoard.

    TensorBoard's format holds scalars as float32: what is read back equals the table's value rounded to float32.

    Args:
        folder: Where the event files go; created if missing.
        resume_step: The optimiser step of the checkpoint this run goes on from: TensorBoard then hides later rows of
            earlier files, which are about to be made again. None starts anew.

    Raises:
        UserError: The folder is not writable.
    """

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # half a second, and only this tracker needs it

        self._writer = SummaryWriter(
            str(ensure_folder(Path(folder))), purge_step=None if resume_step is None else resume_step + 1
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar per value and flush, so that a killed run loses nothing it has checkpointed."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, step: int, name: str, path: Path) -> None:
        """Write the picture in the file `path`."""
        with Image.open(path, formats=("PNG",)) as picture:
            pixels = np.asarray(picture.convert("RGB"))  # [H, W, 3] uint8
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, *, status: str) -> None:  # noqa: ARG002 - the format has no place for it
        """Flush and close the event file."""
        self._writer.close()

    def state(self) -> dict[str, str]:
        """Nothing to keep."""
        return {}
