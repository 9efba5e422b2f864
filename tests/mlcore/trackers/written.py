"""What trackers have written, read back without them."""

import csv
from pathlib import Path

from mlcore.trackers.table import Row
from mlcore.trackers.wandb import read_wandb_file, session_files


def read_csv(path: Path) -> list[Row]:
    """The rows of a metrics.csv; empty cells are left out."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            (int(line.pop("step")), {name: float(cell) for name, cell in line.items() if cell})
            for line in csv.DictReader(file)
        ]


def read_wandb_history(folder: Path, run_id: str) -> dict[int, dict[str, float]]:
    """All rows that W&B's sessions of a run have kept; a value logged twice for a step is the later one."""
    rows: dict[int, dict[str, float]] = {}
    for path in session_files(folder, run_id):
        for step, row in read_wandb_file(path):
            rows.setdefault(step, {}).update(row)
    return rows
