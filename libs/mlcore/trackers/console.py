"""One log line per row."""

import logging
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ConsoleTracker"]

logger = logging.getLogger("mlcore")


class ConsoleTracker:
    """Writes each row as one line through `logging`, so it reaches the terminal and train.log alike."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write `step 120  train/loss 0.6931  ...` (four significant digits; the table keeps all of them)."""
        logger.info("step %d  %s", step, "  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def image(self, step: int, name: str, path: Path) -> None:
        """Write where the picture is."""
        logger.info("step %d  %s: %s", step, name, path)

    def close(self, *, status: str) -> None:
        """Nothing to close."""

    def state(self) -> dict[str, str]:
        """Nothing to keep."""
        return {}
