"""Train one network on what a run or an ensemble says of the pages: `quartet distill RUN [--flag VALUE] ...`.

    python apps/doc_ensemble/distill.py outputs/doc_ensemble/ensembles/averaging/<timestamp> model=resnet18
    python apps/doc_ensemble/distill.py RUN --distill.unlabelled scans/ --distill.temperature 4

is `train.py --distill.teacher RUN` with the teacher's data settings where none are given: the same pages in the same
splits. Everything else is set as for any training. The report says what the student keeps of the teacher's gain.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlcore.base.signals import listen

_ENSEMBLE, _RECORD = "ensemble.json", "run.json"
_WHERE = ("source", "data_dir", "base_dir", "train_csv", "val_csv", "test_csv", "generated_dir", "demo")
"""Who says one of these says which pages are meant."""


def data_arguments(run: str, given: Sequence[str]) -> list[str]:
    """Settings of the data of a run or ensemble, as arguments, less what the other arguments say themselves.

    Raises:
        UserError: The run's record is damaged.
    """
    from mlcore.config.text import dump_value

    names = [re.split("[=]", argument.lstrip("-").replace("-", "_"))[0].rpartition(".")[2] for argument in given]
    other = any(name in _WHERE for name in names)
    kept = {name: value for name, value in _data_of(Path(run)).items() if value is not None}
    return [f"data.{name}={dump_value(value)}" for name, value in kept.items() if not (other and name in _WHERE)]


def _data_of(run: Path) -> Mapping[str, Any]:
    from mlcore.base.reading import reading
    from mlcore.config.text import read_document

    folder = run if run.is_dir() else run.parent.parent
    ensemble, record = folder / _ENSEMBLE, folder / _RECORD
    if ensemble.is_file():
        data: Mapping[str, Any] = read_document(ensemble).values.get("data") or {}
        return data
    if not record.is_file():
        return {}
    with reading(record, "the record of a run"):
        return dict(read_document(record).values["config"]["data"])


def main(arguments: Sequence[str]) -> int:
    """Train the student; exits as `train.py`."""
    from mlcore.base.errors import UserError
    from mlcore.run.app import train
    from quartet.apps.doc_ensemble.app import APP

    if not arguments or arguments[0].startswith("-"):
        raise UserError("say whose answers are learned: quartet distill RUN [--flag VALUE] ...")
    run, *given = arguments
    train(APP, [*data_arguments(run, given), f"distill.teacher={run}", *given])


if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.cli.main import guarded

    guarded(lambda: main(sys.argv[1:]))
