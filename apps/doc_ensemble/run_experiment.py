"""Another name of `train.py`, which says what it does: python apps/doc_ensemble/run_experiment.py scheduler=cosine."""

from apps.doc_ensemble.spec import SPEC
from apps.doc_ensemble.train import act
from mlcore.cli.app import run_app

if __name__ == "__main__":
    run_app(SPEC, act)
