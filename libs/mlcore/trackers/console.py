"""One log line per row, for people."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path

from mlcore.base.console import format_duration, row

__all__ = ["ConsoleTracker"]

logger = logging.getLogger("mlcore")

_FIRST = ("epoch", "ETA", "loss", "accuracy")  # on a terminal
_UNITS = {"samples_per_s": "{:.0f} samples/s", "memory_gib": "{:.2f} GiB", "evaluation_s": "{:.1f} s"}


class ConsoleTracker:
    """Writes each row as one line through `logging`, so it reaches the terminal and train.log alike.

    Names lose their "train/" or "val/", which begins the line instead; "perf/" figures come last, with units. On a
    terminal a row is no longer than a line, with the most telling figures first, and rows of training take each other's
    place.
    """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write `step 120  train  loss 0.6931  ...  466 samples/s  ETA 0:01:20` (the table keeps all digits)."""
        parts: dict[str, list[str]] = {"train": [], "val": [], "perf": [], "": []}
        for name, value in values.items():
            group, _, rest = name.rpartition("/")
            parts.setdefault(group, []).append(_perf(rest, value) if group == "perf" else f"{rest} {value:.4g}")
        lines = [f"{group}  {'  '.join(items)}" for group, items in parts.items() if items and group != "perf"]
        line = "  ".join([*lines, *filter(None, parts["perf"])])
        live = bool(parts["train"])
        figures = sorted((figure for items in parts.values() for figure in items), key=_importance)
        shown = row([f"step {step}", *(figures if live else ("val", *figures))], live=live)
        logger.info("step %-6d %s", step, line, extra=shown)

    def image(self, step: int, name: str, path: Path) -> None:
        """Write where the picture is."""
        logger.info("step %-6d %s: %s", step, name, path)

    def close(self, *, status: str) -> None:
        """Nothing to close."""

    def state(self) -> dict[str, str]:
        """Nothing to keep."""
        return {}


def _importance(figure: str) -> int:
    name = figure.partition(" ")[0]
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _perf(name: str, value: float) -> str:
    if name == "eta_s":
        return f"ETA {format_duration(None if math.isnan(value) else value)}"
    return _UNITS[name].format(value) if name in _UNITS else f"{name} {value:.4g}"
