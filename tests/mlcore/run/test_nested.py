"""A choice that is nested in the folds is not optimistic: on labels that are noise, what was chosen is no better."""

import numpy as np

from mlcore.config.protocol import ProtocolConfig
from mlcore.run.member import member_splits
from mlcore.run.splits import Splits

SAMPLES, CANDIDATES, DRAWS, FOLDS = 200, 16, 300, 5


def test_choosing_on_an_inner_part_gives_no_optimism_and_choosing_on_the_fold_does() -> None:
    rng = np.random.default_rng(0)
    protocol = ProtocolConfig(folds=FOLDS, inner=4)
    labels = np.arange(SAMPLES) % 2  # each candidate guesses: what it knows of these is noise
    parts = []
    for fold in range(1, FOLDS + 1):
        splits = member_splits(
            Splits(train=list(range(SAMPLES)), validation=(), test=None),
            protocol.model_copy(update={"fold": fold}),
            label=labels.tolist().__getitem__,
            unit=lambda sample: sample // 4,  # two of each class
            classes=("a", "b"),
            seed=0,
        )
        parts.append((np.array(splits.validation), np.array(splits.test)))
    assert sorted(np.concatenate([test for _, test in parts]).tolist()) == list(range(SAMPLES))
    nested, greedy = [], []
    for _ in range(DRAWS):
        for validation, test in parts:
            right = rng.random((CANDIDATES, SAMPLES)) < 0.5
            nested.append(right[right[:, validation].mean(axis=1).argmax(), test])
            greedy.append(right[right[:, test].mean(axis=1).argmax(), test])
    # The standard error of either is 0.5 / sqrt(200 * 300) = 0.0020.
    assert abs(np.concatenate(nested).mean() - 0.5) < 0.005
    assert np.concatenate(greedy).mean() > 0.6
