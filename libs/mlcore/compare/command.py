"""The command line of `quartet compare` and of scripts/compare_results.py."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["compare"]

_DESCRIPTION = """\
Compare runs of any app: a table on the terminal, comparison.md, comparison.csv and comparison.png.

Takes run folders, sweep folders and folders of such, and searches them to the bottom. Shown are the metrics of each
run's best checkpoint, the settings that differ between the runs, and the cost. Runs that did not finish or cannot be
read are listed below with the reason. Takes a second or two.
"""


def compare(arguments: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse the command line and compare; returns the exit code.

    Args:
        arguments: The process's own by default.
        prog: How the command is called, for its usage line.

    Raises:
        UserError: A folder holds no runs, or there is no such metric.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="run folders, sweep folders, or folders of such")
    add("--metric", help="sort by this, such as val/auroc or test/loss (default: what chose the best checkpoint)")
    add("--mode", choices=["max", "min"], help="whether a larger or a smaller value is better (default: by the metric)")
    add("--output_dir", type=Path, help="where the files go (default: the common parent of the folders)")
    given = parser.parse_args(arguments)

    from mlcore.compare.comparison import compare_runs, write_comparison  # matplotlib takes a second to import

    comparison = compare_runs(given.folders, metric=given.metric, mode=given.mode)
    folder = given.output_dir or Path(os.path.commonpath([path.resolve() for path in given.folders]))
    print(write_comparison(comparison, folder))
    print(f"\nwritten: {folder}/comparison.md, .csv and .png")
    return 0
