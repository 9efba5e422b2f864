"""Another name of `train.py`, which says what it does: python apps/doc_ensemble/run_experiment.py scheduler=cosine."""

from mlcore.base.signals import listen

if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.run.app import train
    from quartet.apps.doc_ensemble.app import APP

    train(APP)
