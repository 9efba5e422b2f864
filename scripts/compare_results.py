"""Compare runs of any app; the same as `quartet compare`, see its --help.

.venv/bin/python scripts/compare_results.py outputs/perceiver/multirun/1a2b3c4d5e
.venv/bin/python scripts/compare_results.py whole_finetune --metric test/auroc
.venv/bin/python scripts/compare_results.py RUN_A RUN_B --metric val/loss --output_dir comparison
"""

from mlcore.cli.main import guarded
from mlcore.compare.command import compare

if __name__ == "__main__":
    guarded(compare)
