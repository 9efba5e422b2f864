"""Classify document pages with several models and views, and say what each method gains over the best model.

    python apps/doc_ensemble/run_ensemble_experiment.py                     the demo: trains three folds, then compares
    python apps/doc_ensemble/run_ensemble_experiment.py --config mine.yaml  ensemble.models lists checkpoints
    python apps/doc_ensemble/run_ensemble_experiment.py ensemble.run=outputs/doc_ensemble/demo/20260101-120000
    python apps/doc_ensemble/run_ensemble_experiment.py --data_dir pages kfold.folds=5 ensemble.method=stacking

Voting, averaging of probabilities and of logits, given and fitted weights, greedy selection and stacking are all
applied and compared; ensemble.method says whose predictions are written. Without ensemble.models and ensemble.run the
models of a cross-validation are trained first, with the settings of train.py. Leaves a folder below
outputs/doc_ensemble/ensembles/; docs/doc_ensemble.md says what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlcore.base.signals import listen

if TYPE_CHECKING:
    from mlcore.cli.invocation import Invocation
    from quartet.apps.doc_ensemble.config import DocConfig


def act(invocation: Invocation[DocConfig]) -> int:
    """Find or train the members, and compare."""
    from quartet.apps.doc_ensemble.app import APP
    from quartet.apps.doc_ensemble.ensemble.experiment import run  # after parsing: torch takes seconds to import

    return run(APP, invocation)


if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.cli.main import run_app
    from quartet.apps.doc_ensemble.app import ENSEMBLE

    run_app(ENSEMBLE, act)
