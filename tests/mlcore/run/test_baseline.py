"""What a network gains over plain models: figures of both, differences by pairs, and words where it gains nothing."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.base.errors import UserError
from mlcore.report.classification import figures
from mlcore.run.baseline import Baseline, as_values, baseline_table, doubts, judge
from mlcore.run.splits import Held
from mlcore.training.evaluator import Predictions
from mlcore.training.plain import class_rows

LABELS = np.arange(200) % 2


class Task:
    """Gives figures; nothing else of it is asked for."""

    model: Any = None
    metadata: Mapping[str, Any] = {}
    training_step: Callable[..., Any]
    evaluation_step: Callable[..., Any]

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        return figures(predictions)


def right_in(share: float, *, seed: int = 0) -> Predictions:
    """Rows of which about so many are right."""
    right = np.random.default_rng(seed).random(len(LABELS)) < share
    chances = np.where(right == (LABELS == 1), 0.9, 0.1)
    return class_rows(LABELS.tolist(), np.stack([1 - chances, chances], axis=1))


def other(rows: Predictions) -> Baseline:
    return Baseline(name="plain", predict=lambda: {"val": rows})


def test_a_network_that_gains_is_compared_by_pairs() -> None:
    network, plain = right_in(0.9), right_in(0.7)
    (found,) = judge([other(plain)], Task(), {"val": network}, metric="accuracy")
    reached = {name: figures(rows)["accuracy"] for name, rows in {"network": network, "plain": plain}.items()}
    assert found.results["val"]["accuracy"] == reached["plain"]
    assert found.results["val"]["n"] == 200
    difference = found.differences["val"]
    assert difference.value == pytest.approx(reached["network"] - reached["plain"])
    assert difference.sure
    assert difference.interval.low < difference.value < difference.interval.high
    assert not doubts([found], metric="accuracy", mode="max")
    (table,) = baseline_table([found], {"val": figures(network)}, metric="accuracy")
    assert [row[1] for row in table.rows] == ["the network", "plain"]  # type: ignore[union-attr]
    assert json.loads(json.dumps(as_values([found], metric="accuracy")))["plain"]["results"]["val"]["n"] == 200


def test_a_network_that_is_surely_worse_is_named_and_one_within_noise_is_not() -> None:
    worse = judge([other(right_in(0.9))], Task(), {"val": right_in(0.6)}, metric="accuracy")
    assert doubts(worse, metric="accuracy", mode="max")[0].startswith("plain is better than the network on val:")
    alike = judge([other(right_in(0.9, seed=1))], Task(), {"val": right_in(0.9)}, metric="accuracy")
    assert not doubts(alike, metric="accuracy", mode="max")
    of_loss = judge([other(right_in(0.9))], Task(), {"val": right_in(0.6)}, metric="loss")
    assert of_loss[0].differences["val"].value > 0
    assert doubts(of_loss, metric="loss", mode="min"), "a smaller loss is better"


def test_what_belongs_together_is_drawn_together() -> None:
    alone = judge([other(right_in(0.7))], Task(), {"val": right_in(0.9)}, metric="accuracy")
    plain = Baseline(name="plain", predict=lambda: {"test": right_in(0.7)})
    held = [Held(str(number), str(number // 20)) for number in range(200)]
    bundled = judge([plain], Task(), {"test": right_in(0.9)}, metric="accuracy", held_out=held)
    assert bundled[0].differences["test"].value == alone[0].differences["val"].value
    assert bundled[0].differences["test"].interval != alone[0].differences["val"].interval


def test_one_that_cannot_be_had_is_left_out_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> Mapping[str, Predictions]:
        raise UserError("page.png: damaged")

    found = judge(
        [Baseline(name="broken", predict=fails), other(right_in(0.7))],
        Task(),
        {"val": right_in(0.9)},
        metric="accuracy",
    )
    assert [one.name for one in found] == ["plain"]
    assert "the baseline could not be had: page.png: damaged" in caplog.text


def test_nothing_is_fitted_where_nothing_is_held_out() -> None:
    def fails() -> Mapping[str, Predictions]:
        raise AssertionError

    assert not judge([Baseline(name="x", predict=fails)], Task(), {"train": right_in(0.9)}, metric="accuracy")
    assert not baseline_table([], {"val": {"accuracy": 0.5}}, metric="accuracy")


def test_rows_of_plain_probabilities_are_those_of_a_classifier() -> None:
    chances = np.array([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]])
    rows = class_rows([1, 2], chances)
    torch.testing.assert_close(rows["probabilities"], torch.from_numpy(chances).float())
    torch.testing.assert_close(rows["loss"], -torch.tensor([0.8, 0.25]).log())
    torch.testing.assert_close(torch.softmax(rows["logits"], dim=1), rows["probabilities"], atol=1e-6, rtol=1e-5)
