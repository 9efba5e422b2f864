"""Compare runs of any app: a table on the terminal, comparison.md, comparison.csv and comparison.png.

    .venv/bin/python scripts/compare_results.py outputs/perceiver/multirun/1a2b3c4d5e
    .venv/bin/python scripts/compare_results.py whole_finetune --metric test/auroc
    .venv/bin/python scripts/compare_results.py RUN_A RUN_B --metric val/loss --output_dir comparison

Takes run folders, sweep folders and folders of such, and searches them to the bottom. Shown are the metrics of each
run's best checkpoint, the settings that differ between the runs, and the cost. Runs that did not finish or cannot be
read are listed below with the reason. Takes a second or two.
"""

import argparse
import os
from pathlib import Path

from mlcore.cli.main import guarded


def main() -> int:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="run folders, sweep folders, or folders of such")
    add(
        "--metric",
        help="sort by this, such as val/auroc or test/loss (default: what the best checkpoint was chosen by)",
    )
    add("--mode", choices=["max", "min"], help="whether a larger or a smaller value is better (default: by the metric)")
    add("--output_dir", type=Path, help="where the files go (default: the common parent of the folders)")
    given = parser.parse_args()

    from mlcore.compare.comparison import (
        compare_runs,
        write_comparison,
    )  # after parsing: matplotlib takes a second to import

    comparison = compare_runs(given.folders, metric=given.metric, mode=given.mode)
    folder = given.output_dir or Path(os.path.commonpath([path.resolve() for path in given.folders]))
    print(write_comparison(comparison, folder))
    print(f"\nwritten: {folder}/comparison.md, .csv and .png")
    return 0


if __name__ == "__main__":
    guarded(main)
