"""Train a classifier of document pages.

    python apps/doc_ensemble/train.py                                   the demo, under three minutes on two cores
    python apps/doc_ensemble/train.py --data_dir pages                  a folder per class, or train/ and val/ of such
    python apps/doc_ensemble/train.py --train_csv train.csv model=convnext_small scheduler=warmup_cosine
    python apps/doc_ensemble/train.py --data_dir pages kfold.folds=5    cross-validation, one resumable job

Published weights come from the Hugging Face hub or from folders (model.model_name). Leaves a run folder below
outputs/doc_ensemble/; docs/doc_ensemble.md says what is in it. An interrupted run (exit code 75) continues when the
same command is given again. `run_experiment.py` is another name of this script.
"""

from mlcore.base.signals import listen

if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.run.app import train
    from quartet.apps.doc_ensemble.app import APP

    train(APP)
