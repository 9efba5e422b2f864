"""Predictions beside the truth: the case table of a run's validation, made of the table that a job wrote."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlcore.data.tables import open_table
from quartet.apps.sam_med3d_ich.case_metrics import FIELDS, CaseMetrics, summarise
from quartet.apps.sam_med3d_ich.case_report import CaseRow, case_sections
from quartet.apps.sam_med3d_ich.data.volume import volume_name

__all__ = ["write_comparison"]

_log = logging.getLogger(__name__)


def write_comparison(output: Path, *, path_columns: Sequence[str]) -> None:
    """Write cases.csv and its pictures beside a table of predictions, and say the means; see `case_sections`.

    Args:
        output: A table with the columns ich, those of the prediction and `FIELDS`, and problem, in this order at its
            end; rows with a problem count nothing.
        path_columns: What the column of the images may be called; the first one that is there is taken.
    """
    table = open_table(output)
    path = next(name for name in path_columns if name in table.columns)
    records = [table.record(row) for row in range(len(table))]
    cases = [_case(record, record[path]) for record in records if not list(record.values())[-1]]
    if not cases:
        return
    case_sections(cases, folder=output.absolute().parent)
    means = summarise(
        [case.metrics for case in cases],
        ich_scores=[case.score for case in cases],
        ich_labels=[case.ich for case in cases],
    )
    for name, value in means.items():
        _log.info("  %-20s %s", name, value if isinstance(value, int) else f"{value:.4f}")


def _case(record: Mapping[str, str], path: str) -> CaseRow:
    # The caller's own columns come first and may be called the same.
    own = list(record.values())[-len(FIELDS) - 3 : -1]  # score, remark, figures
    figures = CaseMetrics.from_row(float(text) if text else math.nan for text in own[2:])
    name = volume_name(Path(path))
    return CaseRow(name=name, metrics=figures, ich=int(float(record["ich"])), score=float(own[0]))
