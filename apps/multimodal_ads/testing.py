"""A trained ad classifier and labelled data, ready to be evaluated."""

import logging
from dataclasses import replace
from functools import partial

from mlcore.base.distributed import World, broadcast_object
from mlcore.run.build import Data, EvaluationSetup
from mlcore.run.deciding import Decider
from mlcore.run.evaluating import Asked
from mlcore.run.restore import RunCheckpoint
from quartet.apps.multimodal_ads.build import interval, load_splits, objective, reader
from quartet.apps.multimodal_ads.config import AdsConfig
from quartet.apps.multimodal_ads.data.batches import SampleSource, collate
from quartet.apps.multimodal_ads.evaluation import CLASS_NAMES
from quartet.apps.multimodal_ads.outputs import Inspector, write_results
from quartet.apps.multimodal_ads.restore import decision_of, restored
from quartet.apps.multimodal_ads.text.truncation import forewarn

__all__ = ["evaluation"]

_log = logging.getLogger(__name__)

_NO_WEIGHT = "the weight of ads in the loss (train.pos_weight=auto) is known of the run's own data only; it is 1 here"


def evaluation(run: RunCheckpoint[AdsConfig], asked: Asked, world: World) -> EvaluationSetup:
    """The classifier of a run with the samples that are asked for; `App.evaluation`.

    Frozen encoders are found where the run had them from; a checkpoint does not hold their weights.

    Raises:
        CheckpointError: Encoders are not those that the run was trained with.
        UserError: A table is missing or has mistakes, or an encoder cannot be had.
    """
    read = reader(run.config.data)
    rows = {name: read(path) for name, path in asked.data.items() if path is not None}
    own = None
    if None in asked.data.values():
        own = broadcast_object(load_splits(run.config) if world.is_main else None)
        rows |= asked.pick(own.named())
    rows = {name: rows[name] for name in asked.data}
    found = restored(run, device=world.device)
    warnings = forewarn([row.text for part in rows.values() for row in part], found.parts.text)
    if own is None and run.config.train.pos_weight == "auto":
        warnings = [*warnings, _NO_WEIGHT]
    task = replace(found.task, objective=objective(run.config.train, None if own is None else own.train))
    parts, pixels = found.parts, found.max_pixels
    source = partial(
        SampleSource,
        max_pixels=pixels,
        decode_side=run.config.data.decode_side,
        with_images=parts.vision is not None,
        with_texts=parts.text is not None,
        with_facts=parts.tells_facts,
    )
    kept = asked.kept(run)
    if not asked.choose and (kept is None or asked.threshold):
        kept = decision_of(run.path, asked.threshold or None)
    decider = Decider(run.config.decision, class_names=CLASS_NAMES, kind="binary", positive="ads", kept=kept)
    inspector = Inspector(rows, decider=decider, max_pixels=pixels)
    return EvaluationSetup(
        task=task,
        evaluation={
            name: Data(dataset=source(part), prepare=found.prepare, collate=collate) for name, part in rows.items()
        },
        analyse=inspector,
        interval=interval,
        finish=partial(write_results, inspector),
        warnings=warnings,
    )
