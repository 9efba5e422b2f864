"""metrics.jsonl and metrics.csv: the record of a run that the other trackers and the reports are checked against.

metrics.jsonl is the truth: one JSON object per call, `{"step": 120, "train/loss": 0.6931471805599453}`, handed to the
operating system before the call returns, so it survives the process being killed at any instant. metrics.csv has one
line per step and one column per name; it trails by the newest step while a run goes on and is rebuilt from
metrics.jsonl on resumption. Floats are written so that they read back bit for bit (NaN, Infinity as Python's json).
"""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder, write_text
from mlcore.base.reading import reading

__all__ = ["CSV_NAME", "JSONL_NAME", "Row", "TableTracker", "read_history"]

Row = tuple[int, dict[str, float]]
"""A step and its values by name."""

JSONL_NAME = "metrics.jsonl"
CSV_NAME = "metrics.csv"
_EXPECTED = "a row of figures; restore the file, or delete it to resume without the record of the earlier steps"


class TableTracker:
    """Writes metrics.jsonl and metrics.csv.

    Args:
        folder: The run's folder; created if missing.
        resume_step: The optimiser step of the checkpoint this run goes on from: rows after it are cut off, as the run
            is about to make them again. None starts a new record.

    Raises:
        UserError: The folder is not writable, or metrics.jsonl is damaged before its last line.
    """

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        self._folder = ensure_folder(Path(folder))
        path = self._folder / JSONL_NAME
        kept = [] if resume_step is None else [line for step, _, line in _lines(path) if step <= resume_step]
        write_text(path, "".join(kept))
        self._jsonl = path.open("a", encoding="utf-8")
        self._csv: TextIO | None = None
        # The newest step, to which more values may be added, is not yet in the CSV.
        rows = read_history(self._folder)
        self._row: Row | None = rows[-1] if rows else None
        self._rewrite_csv(rows[:-1])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row to metrics.jsonl; the step before it is complete now and goes to metrics.csv.

        Raises:
            ValueError: The step is lower than the one before, or a value is named "step".
        """
        if "step" in values:
            raise ValueError('"step" is the name of the first column; call the value something else')
        if self._row is not None and step < self._row[0]:
            raise ValueError(f"step {step} comes after step {self._row[0]}: steps must not decrease")
        if self._row is not None and step > self._row[0]:
            self._append_csv(self._row)
            self._row = None
        row = {name: float(value) for name, value in values.items()}
        self._jsonl.write(json.dumps({"step": step, **row}) + "\n")
        self._jsonl.flush()
        self._row = (step, {**(self._row[1] if self._row else {}), **row})

    def image(self, step: int, name: str, path: Path) -> None:
        """Pictures have no place in a table."""

    def close(self, *, status: str) -> None:  # noqa: ARG002 - a table has no place for it
        """Complete metrics.csv and close both files."""
        self._jsonl.close()
        self._rewrite_csv(read_history(self._folder))
        if self._csv is not None:
            self._csv.close()

    def state(self) -> dict[str, str]:
        """Nothing to keep: the step of the checkpoint says where the record ends."""
        return {}

    def _append_csv(self, row: Row) -> None:
        step, values = row
        if self._csv is None or not values.keys() <= set(self._writer.fieldnames):
            self._rewrite_csv(read_history(self._folder))  # a name not seen before needs a column in every line
            return
        self._writer.writerow({"step": step, **values})
        self._csv.flush()

    def _rewrite_csv(self, rows: list[Row]) -> None:
        columns = ["step", *dict.fromkeys(name for _, values in rows for name in values)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")  # of a float the shortest text that reads back so
        writer.writeheader()
        writer.writerows({"step": step, **values} for step, values in rows)
        if self._csv is not None:
            self._csv.close()
        path = self._folder / CSV_NAME
        write_text(path, text.getvalue())
        self._csv = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._csv, columns, lineterminator="\n")


def read_history(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl in `folder`, one per step, in order; none if the file does not exist.

    A last line that was cut off is left out.

    Raises:
        UserError: A line before the last is damaged.
    """
    rows: dict[int, dict[str, float]] = {}
    for step, values, _ in _lines(Path(folder) / JSONL_NAME):
        rows.setdefault(step, {}).update(values)
    return list(rows.items())


def _lines(path: Path) -> list[tuple[int, dict[str, float], str]]:
    """Step, values and text of each whole line of a metrics.jsonl."""
    if not path.exists():
        return []
    with reading(path, "the record of a run's steps"):
        # A file cut in the middle of a character must not hide the good lines before it.
        raw = path.read_bytes().decode("utf-8", errors="replace").splitlines(keepends=True)
    lines: list[tuple[int, dict[str, float], str]] = []
    for number, line in enumerate(raw, start=1):
        try:
            with reading(f"{path}, line {number}", _EXPECTED):
                lines.append((*_row(line), line))
        except UserError:
            if number < len(raw):
                raise  # otherwise the process was killed while it wrote
    return lines


def _row(line: str) -> Row:
    row = json.loads(line)
    if not line.endswith("\n") or not isinstance(row["step"], int):
        raise ValueError("incomplete")
    return row.pop("step"), {name: float(value) for name, value in row.items()}
