"""Hashed n-grams: what they start from is scikit-learn's, no text knows its own label, and runs go everywhere."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mlcore.run import load_run
from mlcore.run.scorer import Item
from mlcore.training.checkpoint import load_checkpoint
from mlcore.use.exporting import export
from quartet.apps.multimodal_ads.data.table import read_table
from quartet.apps.multimodal_ads.text.ngrams import NgramEmbedding, NgramEncoder, fit_ngrams
from tests.multimodal_ads.conftest import own_rows, train
from tests.multimodal_ads.test_export import FORMS, WITHOUT_THE_REPOSITORY

LATE = ["text_encoder=ngrams", "text_encoder.buckets=512", "text_encoder.width=4", "fusion=late"]
LATE += ["text_encoder.max_length=null", "train.modality_loss=1", "--unmask_text", "--baseline", "none"]


def embedding(encoder: NgramEncoder, state: dict[str, torch.Tensor]) -> NgramEmbedding:
    found = NgramEmbedding(encoder.buckets, encoder.width - 1)
    found.load_state_dict({**found.state_dict(), **state})
    return found


def made_up(count: int, *, seed: int = 0) -> list[str]:
    """Texts of words that are drawn at random."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice([*"abcdefgh"], 4)) for _ in range(60)]
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


def test_the_start_is_a_logistic_regression_of_tf_idf_and_its_topics() -> None:
    texts = made_up(80)
    labels = [int("a" in text.split()[0]) for text in texts]
    encoder = NgramEncoder(4096, 5)
    start = fit_ngrams(encoder, texts, labels)
    module = embedding(encoder, dict(start.state))
    ngrams, counts = encoder([*texts, "never seen", ""])
    found = module(ngrams, counts).detach()
    weights = torch.zeros(82, 4096).scatter_add_(1, ngrams, (counts > 0) * (1 + counts.clamp(min=1).log()))
    weights = torch.nn.functional.normalize(weights * module.idf)  # sublinear TF-IDF of unit length
    best = max(
        (LogisticRegression(C=strength, solver="liblinear", random_state=0) for strength in (1.0, 10.0, 100.0)),
        key=lambda model: -abs(model.fit(weights[:80], labels).intercept_[0] - float(module.intercept)),
    )
    expected = torch.from_numpy(best.decision_function(weights)).float()
    torch.testing.assert_close(found[:, -1], expected, rtol=1e-3, atol=1e-3)
    topics = found[:80, :-1] / 5**0.5
    most = torch.linalg.svdvals(weights[:80])[:5].square().sum()  # no five features hold more of the texts
    assert 0.95 * most < topics.square().sum() <= most * (1 + 1e-5)


def test_logits_of_training_texts_do_not_know_their_labels() -> None:
    texts, labels = made_up(150), np.random.default_rng(1).integers(0, 2, 150)  # nothing can be learned
    encoder = NgramEncoder(4096, 2)
    start = fit_ngrams(encoder, texts, labels.tolist())
    module = embedding(encoder, dict(start.state))
    own = module(*encoder(texts)).detach()[:, -1]
    assert roc_auc_score(labels, own) > 0.9  # fitted with them
    assert roc_auc_score(labels, [start.logits[text] for text in texts]) < 0.65
    assert fit_ngrams(encoder, texts, labels.tolist()).logits == start.logits


def test_texts_that_are_missing_or_too_few() -> None:
    encoder = NgramEncoder(64, 4)
    start = fit_ngrams(encoder, ["", "", "", "buy now", "minutes"], [1, 1, 0, 1, 0])
    assert start.missing == pytest.approx(np.log((2 + 0.6) / (1 + 0.4)))  # the share of all is one sample more
    assert start.logits == {"buy now": 0.0, "minutes": 0.0}
    assert "shortcut" not in start.state
    nothing = fit_ngrams(encoder, ["", ""], [1, 0])
    assert (nothing.state, nothing.logits) == ({}, {})
    assert torch.equal(embedding(encoder, dict(start.state))(*encoder([""])), torch.zeros(1, 5))


@pytest.fixture(scope="module")
def settings(ads: Path, backbone: list[str]) -> list[str]:
    return [*backbone, *LATE, "--base_dir", str(ads)]


@pytest.fixture(scope="module")
def late(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps an epoch."""
    return train(tmp_path_factory.mktemp("late") / "run", *settings)


def test_a_run_says_what_each_modality_is_worth_and_goes_on_to_the_same_end(
    late: Path, settings: list[str], tmp_path: Path
) -> None:
    summary = json.loads((late / "summary.json").read_text("utf-8"))["results_of_best_checkpoint"]["test"]
    assert {"auroc", "picture_auroc", "text_auroc"} <= set(summary)
    part = train(tmp_path / "part", *settings, "--max_steps", "3", "scheduler.max_steps=8")
    train(part, *settings)
    one, other = (load_checkpoint(f / "checkpoints" / "latest_model.pth")["model"] for f in (part, late))
    assert {"ngrams.idf", "ngrams.shortcut", "ngrams.embedding.weight", "fusion.weights"} <= set(other)
    assert all(torch.equal(one[key], other[key]) for key in other)


@pytest.mark.slow
def test_every_form_of_an_export_gives_the_runs_own_numbers(late: Path, ads: Path, tmp_path: Path) -> None:
    folder = tmp_path / "exported"
    export(load_run(late, device="cpu"), folder, ["pt2", "onnx"])
    rows, own = read_table(ads / "test.csv", base_dir=None), own_rows(late)
    items = [Item(row.origin, row.image, values=(("text", row.text),)) for row in rows]
    for form in FORMS:
        found = load_run(folder, device="cpu", network=form)(items, batch_size=7)
        assert [one.probability for one in found] == pytest.approx([row["probability"] for row in own], abs=1e-5), form
    given = [str(rows[0].image), "Summer SALE: 50 % off", str(rows[0].image), ""]
    command = [sys.executable, "-I", "-c", WITHOUT_THE_REPOSITORY, *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = load_run(late, device="cpu")([Item("", rows[0].image, values=(("text", one),)) for one in given[1::2]])
    shown = [float(line.split()[-1]) for line in done.stdout.splitlines()]
    assert shown == pytest.approx([one.probability for one in expected], abs=0.01)  # each library resizes its way
