"""Another name of `train.py`, which says what it does: python apps/doc_ensemble/run_experiment.py scheduler=cosine."""

from mlcore.run.app import train
from quartet.apps.doc_ensemble.app import APP

if __name__ == "__main__":
    train(APP)
