"""Members that differ from networks of pixels: what they compute, and a whole ensemble of them."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.use.inputs import find_inputs
from quartet.apps.doc_ensemble.build import learning_rates
from quartet.apps.doc_ensemble.config import DocConfig, ModelConfig
from quartet.apps.doc_ensemble.data.words import WIDTH, count_words
from quartet.apps.doc_ensemble.model.classifier import create_model
from quartet.apps.doc_ensemble.model.plain import LayoutTrunk, TextTrunk, layout_features
from tests.doc_ensemble.conftest import Run

SIZE = (64, 48)
PLAIN = [
    *("--no_pretrained", "--epochs", "4", "--lr", "3e-2", "--batch_size", "16", "--num_workers", "0"),
    *(
        "--num_threads",
        "1",
        "--device",
        "cpu",
        "--no_tensorboard",
        "--warmup_steps",
        "1",
        "--augmentation.name",
        "none",
    ),
]


def lined(pitch: int, size: tuple[int, int] = (320, 240)) -> Tensor:
    """A page with a black line in every so many rows."""
    page = torch.ones(1, 1, *size)
    page[:, :, ::pitch] = 0
    return page


def test_words_are_counted_wherever_they_stand() -> None:
    counts = count_words("dear sir dear madam")
    assert counts.shape == (1, WIDTH, 1)
    assert counts.dtype == np.uint8
    words = counts[:, : WIDTH // 2]
    assert int(words.sum()) == 4 + 3  # words and pairs
    assert sorted(words[words > 0].tolist()) == [1, 1, 1, 1, 1, 2]  # "dear" is there twice
    assert not count_words("").any()
    assert count_words("again " * 400)[:, : WIDTH // 2].max() == 255


def test_features_of_texts_are_tf_idf() -> None:
    counts = np.random.default_rng(0).poisson(0.4, (30, 24)).clip(0, 9)
    counts[:, 0] = counts[:, 12] = 1  # in every page
    counts[0, 1:12] = 0
    counts[0, 12:] = 0
    trunk = TextTrunk(24)
    given = torch.from_numpy(counts).float().reshape(30, 1, 1, 24) / 255
    for batch in given.split(7):  # in parts of different size
        trunk.train().forward_features(batch)
    found = trunk.eval().forward_features(given)
    weigh = TfidfTransformer(sublinear_tf=True, smooth_idf=False)
    expected = np.concatenate([weigh.fit_transform(half).toarray() for half in np.split(counts, 2, axis=1)], axis=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_what_a_page_shows_is_in_its_features() -> None:
    white, some = layout_features(torch.ones(1, 1, 320, 240)), layout_features(torch.rand(2, 1, 320, 240))
    assert white.shape[1] == some.shape[1] == layout_features(torch.rand(1, 3, 90, 70)).shape[1]
    assert bool(torch.isfinite(torch.cat([white, some])).all())
    assert int((white > 1e-3).sum()) == 1  # the histogram, of white
    ten, twenty = layout_features(lined(10)), layout_features(lined(20))
    assert float((ten - twenty).abs().max()) > 0.5
    # Grey or colour, one or in a batch: the same.
    page = torch.rand(1, 1, 320, 240)
    torch.testing.assert_close(layout_features(page.expand(2, 3, -1, -1))[1:], layout_features(page), atol=1e-4, rtol=0)


def test_features_of_the_layout_are_standardised_by_the_training_pages() -> None:
    trunk, pages = LayoutTrunk(SIZE, width=8), torch.rand(40, 1, *SIZE) * torch.rand(40, 1, 1, 1)
    for batch in pages.split(9):
        trunk.train().forward_features(batch)
    found = layout_features(pages)
    torch.testing.assert_close(trunk.moments.mean, torch.stack([found.mean(0), found.square().mean(0)]))
    before = trunk.eval().forward_features(pages)
    torch.testing.assert_close(trunk.forward_features(pages), before, atol=0, rtol=0)
    standard = (found - found.mean(0)) / found.var(0, unbiased=False).clamp(min=1e-6).sqrt()
    expected = torch.nn.functional.gelu(trunk.hidden(standard.clamp(-5, 5)))
    torch.testing.assert_close(before, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["layout", "text"])
def test_there_are_no_published_weights_of_features(name: str) -> None:
    with pytest.raises(UserError, match=rf"model_name={name} has no published weights; set model.pretrained=false"):
        create_model(name, class_names=("a", "b"), pretrained=True, image_size=SIZE)


def test_rates_fall_towards_the_input_and_first_stages_stay() -> None:
    model = create_model("test_resnet", class_names=("a", "b"), pretrained=False, image_size=SIZE)
    config = DocConfig(model=ModelConfig(model_name="test_resnet", frozen_stages=2, layer_decay=0.5))
    rates = {rule.prefix: rule.lr for rule in learning_rates(model, config)}
    assert rates.keys() == {name for name, _ in model.named_parameters() if name.startswith("trunk.")}
    assert rates["trunk.conv1.0.weight"] == rates["trunk.layer1.0.conv1.weight"] == 0
    lr = config.train.lr
    assert math.isclose(rates["trunk.layer4.0.conv1.weight"], lr / 2)
    assert math.isclose(rates["trunk.layer2.0.conv1.weight"], lr / 8)
    assert not learning_rates(model, DocConfig(model=ModelConfig(model_name="test_resnet")))
    with pytest.raises(UserError, match="has 5 stages, and one must learn"):
        learning_rates(model, DocConfig(model=ModelConfig(model_name="test_resnet", frozen_stages=5)))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> Path:
    """Tables of the drawn pages, of two kinds of three; the text names the kind on most of them."""
    folder = tmp_path_factory.mktemp("tables")
    for split in ("train", "val"):
        files = sorted((pages / split).rglob("*.jpg"))
        kinds = sorted({path.parent.name for path in files})
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "label", "text"])
            for number, path in enumerate(files):
                kind = f"kind{kinds.index(path.parent.name) % 3}"
                rows.writerow([path, kind, "" if number % 7 == 0 else f"this is a page of {kind}, number {number}"])
    return folder


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory, tables: Path, run: Run) -> Path:
    """An experiment with the cross-validations of a layout member and a text member."""
    folder = tmp_path_factory.mktemp("plain")
    data = ["--train_csv", tables / "train.csv", "--val_csv", tables / "val.csv"]
    for name, more in (("layout", ["model.image_size=[64,48]", "model.arguments={width: 64}"]), ("text", [])):
        options = [f"model={name}", *more, *PLAIN, *data, "kfold.folds=2", "--output_dir", folder / name]
        code, said = run("train", *options)
        assert code == 0, said
    members = f"[{{checkpoint_path: {folder / 'layout'}}}, {{checkpoint_path: {folder / 'text'}}}]"
    views = "[{type: multi_scale, scales: [0.9]}]"
    code, said = run("run_ensemble_experiment", f"ensemble.models={members}", "--method", "stacking",
                     "ensemble.tta.enabled=true", f"ensemble.tta.augmentations={views}", "ensemble.tta.choose=false",
                     "--device", "cpu", "--output_dir", folder / "out")  # fmt: skip
    assert code == 0, said
    return folder / "out"


@pytest.mark.slow
def test_members_that_differ_are_stacked_like_others(ensemble: Path, tables: Path) -> None:
    with (ensemble / "methods.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["method"], row["tta"]): row for row in csv.DictReader(file)}
    text = [float(rows["text", tta]["accuracy"]) for tta in ("no", "yes")]
    assert text[0] == text[1]  # a text has no views
    assert text[0] > 0.7  # most pages have one
    assert {"stacking", "greedy selection", "weighted, fitted"} <= {method for method, _ in rows}
    # The folder predicts a table with texts as the experiment did.
    with (ensemble / "ensemble_predictions.csv").open(encoding="utf-8", newline="") as file:
        wrote = list(csv.DictReader(file))
    predictor = load_run(ensemble, device="cpu")
    rows_of = find_inputs([str(tables / "val.csv")], predictor.scorer)
    found = predictor([rows_of.item(place) for place in range(len(rows_of))])
    names = found[0].class_names
    expected = np.array([[float(row[f"p_{name}"]) for name in names] for row in wrote])
    np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-5)


def test_a_model_of_texts_without_texts_is_refused(pages: Path, run: Run, tmp_path: Path) -> None:
    code, said = run("train", "model=text", *PLAIN, "--data_dir", pages, "--output_dir", tmp_path / "run")
    assert code == 2
    assert "reads the column text of the tables, and no training page has one" in said


@pytest.mark.slow
def test_a_member_of_texts_asks_for_a_table(ensemble: Path, pages: Path) -> None:
    with pytest.raises(UserError, match="it reads pages' texts; give a table with the columns image and text"):
        load_run(ensemble, device="cpu")(sorted((pages / "val").rglob("*.jpg"))[:2])
