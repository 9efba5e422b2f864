"""Plain models of texts and pictures beside the network."""

import numpy as np
import pytest
import torch
from PIL import Image

from quartet.apps.multimodal_ads.baselines import baselines
from quartet.apps.multimodal_ads.data.table import AdRow
from quartet.apps.multimodal_ads.task import Objective

Rows = dict[str, list[AdRow]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Of the ads one half has a word that tells, the other half a bright picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)

    def row(number: int) -> AdRow:
        label, by_text = number % 2, number % 4 < 2
        image = rng.integers(0, 90, (24, 24, 3)) + (0 if by_text or not label else 150)
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
        text = "sale today" if label and by_text else "hello today"
        return AdRow(folder / f"{number}.png", label, text, f"line {number}")

    every = [row(number) for number in range(80)]
    return {"train": every[:48], "val": every[48:]}


def auroc(found: dict[str, torch.Tensor]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(found["label"], found["logit"]))


def test_both_together_know_what_each_alone_does_not(rows: Rows) -> None:
    found = baselines(rows, loss=Objective(), max_pixels=10_000, texts=True, pictures=True)
    assert len(found) == 3
    reached = []
    for one in found:
        of = one.predict()
        assert set(of) == {"val"}
        assert of["val"]["label"].tolist() == [row.label for row in rows["val"]]
        torch.testing.assert_close(of["val"]["loss"], Objective()(of["val"]["logit"], of["val"]["label"]))
        reached.append(auroc(dict(of["val"])))
    assert 0.7 < reached[0] < 0.9
    assert 0.6 < reached[1] < 0.95
    assert reached[2] > max(reached[:2])


def test_what_the_model_does_not_see_no_baseline_sees(rows: Rows) -> None:
    def names(*, texts: bool, pictures: bool) -> list[str]:
        found = baselines(rows, loss=Objective(), max_pixels=10_000, texts=texts, pictures=pictures)
        return [one.name.split(":")[0] for one in found]

    assert names(texts=True, pictures=False) == ["texts"]
    assert names(texts=False, pictures=True) == ["pictures"]
