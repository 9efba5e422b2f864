"""Train a Perceiver on sequences of any length.

    python apps/perceiver/train.py                                             the demo, about a minute on two cores
    python apps/perceiver/train.py --dataset synthetic --epochs 10 --batch_size 16
    python apps/perceiver/train.py --dataset cifar10 --data_dir DIR --model_size small --epochs 100 --lr 1e-4
    python apps/perceiver/train.py +experiment=japanese_vowels data.data_dir=DIR
    python apps/perceiver/train.py --config config.json --lr 2e-4
    python apps/perceiver/train.py -m model_size=small,base lr=1e-4,3e-4       a sweep of four runs

Leaves a run folder below outputs/perceiver/; docs/perceiver.md says what is in it. An interrupted run (exit code 75)
continues when the same command is given again.
"""

from mlcore.base.signals import listen

if __name__ == "__main__":
    listen()  # before what takes long to import
    from mlcore.run.app import train
    from quartet.apps.perceiver.app import APP

    train(APP)
