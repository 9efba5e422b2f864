"""`--check_data`: open every file of all splits and name all that cannot be used, before a training meets them."""

import logging
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader

from mlcore.base.console import with_progress
from mlcore.base.distributed import World, broadcast_object
from mlcore.base.errors import UserError, all_listed
from mlcore.cli.app import App
from mlcore.data.loader import SizedDataset, worker_count
from mlcore.run.build import CoreConfig, TrainingSetup
from mlcore.run.folder import reason_of

__all__ = ["check_data"]

_log = logging.getLogger(__name__)


class _Reasons:
    """Why each sample of a data set cannot be read; empty where it can."""

    def __init__(self, dataset: SizedDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> str:
        try:
            self._dataset[index]
        except Exception as error:  # noqa: BLE001 - whatever a library raises is a finding about the file
            return reason_of(error) if isinstance(error, UserError) else f"sample {index}: {reason_of(error)}"
        return ""


def check_data(app: App[Any], config: CoreConfig, world: World) -> str:
    """Read every sample of every split, in parallel, with progress in the log; nothing is kept or prepared.

    Returns:
        All that cannot be read, one line each, with the reasons; empty if all can.

    Raises:
        UserError: A table or folder is wrong as a whole; all its lines are named.
    """
    with all_listed():
        splits = _splits(app, config, world)
        return str(broadcast_object(_found(splits, config) if world.is_main else ""))


def _splits(app: App[Any], config: CoreConfig, world: World) -> Mapping[str, SizedDataset]:
    if app.samples is not None:
        return app.samples(config) if world.is_main else {}
    setup: TrainingSetup = app.build(config, world)
    return {"train": setup.train.dataset, **{name: data.dataset for name, data in setup.evaluation.items()}}


def _found(splits: Mapping[str, SizedDataset], config: CoreConfig) -> str:
    bad: dict[str, list[str]] = {}
    for name, dataset in splits.items():
        total = len(dataset)
        workers = worker_count(config.run.num_workers, samples=total, batch_size=1)
        reasons: DataLoader[str] = DataLoader(_Reasons(dataset), batch_size=None, num_workers=workers)  # type: ignore[arg-type]
        bad[name] = [reason for reason in with_progress(reasons, total=total, what=f"{name} samples read") if reason]
        _log.info("%s: %d samples, %d cannot be read", name, total, len(bad[name]))
    lines = [f"{name}: {reason}" for name, reasons in bad.items() for reason in reasons]
    count = f"{len(lines)} of {sum(map(len, splits.values()))} samples cannot be read:"
    return "\n  ".join([count, *lines]) if lines else ""
