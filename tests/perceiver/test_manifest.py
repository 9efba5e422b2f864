"""Tables of texts, images and series: trained on, evaluated, predicted and exported as they lie on the disk."""

import csv
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.data.tables import open_table
from mlcore.run import load_run
from mlcore.run.scorer import Item
from mlcore.use.answering import Answering, Upload
from mlcore.use.exporting import export
from mlcore.use.inputs import Once, find_inputs
from quartet.apps.perceiver.config import DataConfig
from quartet.apps.perceiver.data.manifest import load_raw
from quartet.apps.perceiver.model import from_transformers, to_transformers
from tests.perceiver.conftest import run

ROWS = 30
COLUMNS = ("text:title", "image", "series", "label", "split", "group")


def write_table(folder: Path) -> Path:
    """Two classes that each modality tells apart, in 24 training and 6 validation rows; a few cells are empty."""
    rng = np.random.default_rng(0)
    (folder / "files").mkdir(parents=True)
    rows = []
    for index in range(ROWS):
        label = index % 2
        image, series = f"files/{index}.png", f"files/{index}.npy"
        Image.fromarray(rng.integers(128 * label, 128 + 128 * label, (20, 30, 3), dtype=np.uint8)).save(folder / image)
        np.save(folder / series, rng.standard_normal((4 + index % 5, 2)).astype(np.float32) + 3 * label)
        text = ("gut ja " if label else "nein schlecht ") * (1 + index % 3)
        cells = [text if index % 7 else "", image if index % 5 else "", series if index % 3 else ""]
        rows.append([*cells, ("no", "yes")[label], "val" if index >= 24 else "train", ""])
    rows[0][0] = "nein"  # no row is empty
    path = folder / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


def records(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


SETTINGS = shlex.split("""
--dataset manifest --image_size 16 --patch_size 8 --series_patch 2 --text_patch 2 --stem conv --stem_channels 32
--modality_dropout 0.3 --lr 1e-2 --epochs 3
""")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("manifest"))


@pytest.fixture(scope="module")
def manifest_run(table: Path, tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("manifest_run") / "run"
    ended = run("train", *tiny, *SETTINGS, "--train_path", table, "--output_dir", folder)
    assert ended.code == 0, ended.err
    return folder


def test_a_run_tells_what_each_modality_tells(manifest_run: Path) -> None:
    summary = json.loads((manifest_run / "summary.json").read_text("utf-8"))
    assert summary["samples"] == {"train": 24, "val": 6}
    alone = summary["modalities"]
    assert {name: row["samples"] for name, row in alone.items()} == {"all": 6, "text:title": 5, "image": 5, "series": 4}
    assert alone["all"]["all"] == summary["results_of_best_checkpoint"]["val"]["accuracy"]
    assert set(summary["baselines"]) == {
        "texts: TF-IDF and logistic regression",
        "pictures: plain features and logistic regression",
        "both: the mean of their logits",
    }
    page = (manifest_run / "report.html").read_text("utf-8")
    assert "Validation: each modality alone" in page
    assert "16 x 16 pixels" in page


def test_rows_are_predicted_as_they_were_evaluated(manifest_run: Path, table: Path, tmp_path: Path) -> None:
    ended = run(
        "inference", "--model_path", manifest_run / "checkpoints/best_model.pth", "--output_dir", tmp_path / "e"
    )
    assert ended.code == 0, ended.err
    evaluated = {row["origin"]: float(row["probability"]) for row in records(tmp_path / "e" / "predictions.csv")}
    assert "each modality alone" in (tmp_path / "e" / "report.html").read_text("utf-8")
    best = manifest_run / "checkpoints" / "best_model.pth"
    ended = run("predict", "--model_path", best, table, "--output", tmp_path / "p.csv")
    assert ended.code == 0, ended.err
    found = records(tmp_path / "p.csv")
    where = open_table(table).where
    assert len(found) == ROWS
    for place in range(24, ROWS):
        assert float(found[place]["probability"]) == pytest.approx(evaluated[where(place)], abs=1e-6)


@pytest.mark.slow
def test_every_form_of_an_export_gives_the_same(manifest_run: Path, table: Path, tmp_path: Path) -> None:
    predictor = load_run(manifest_run, device="cpu")
    export(predictor, tmp_path / "out", ["pt2", "onnx"])  # which proves them on samples that lack modalities
    rows = find_inputs([str(table)], predictor.scorer)
    items = [rows.item(place) for place in range(6)]
    expected = [one.probabilities for one in predictor(items)]
    for form in (None, "pt2", "onnx"):
        for size in (6, 1):
            found = load_run(tmp_path / "out", device="cpu", network=form)(items, batch_size=size)
            assert [one.probabilities for one in found] == [pytest.approx(row, abs=1e-5) for row in expected]


def test_the_encoder_of_a_run_is_one_of_transformers(manifest_run: Path, table: Path) -> None:
    """The snippet of docs/perceiver.md, on a run of raw samples."""
    scorer: Any = load_run(manifest_run, device="cpu").scorer
    encoder = scorer.network.module.encoder
    same = from_transformers(*to_transformers(encoder))
    rows = find_inputs([str(table)], scorer)
    batch = scorer.collate([scorer.load(rows.item(place)) for place in range(4)])
    with torch.no_grad():
        latents = encoder(batch["input"], batch["mask"])
        torch.testing.assert_close(same(*encoder.tokens(batch["input"], batch["mask"])), latents, rtol=0, atol=1e-5)


def test_bad_rows_are_told_with_their_reason(manifest_run: Path, table: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(table.parent, folder)
    (folder / "files/1.png").write_bytes(b"no picture")
    np.save(folder / "files/2.npy", np.zeros((4, 3)))
    rows = records(folder / "table.csv")
    rows[3] |= dict.fromkeys(COLUMNS[:3], "")
    rows[5] |= {"image": "../outside.png"}
    path = write_rows(folder / "table.csv", rows)
    best = manifest_run / "checkpoints" / "best_model.pth"
    ended = run("predict", "--model_path", best, path, "--output", tmp_path / "p.csv")
    assert ended.code == 1, ended.err
    problems = {place: row["problem"] for place, row in enumerate(records(tmp_path / "p.csv")) if row["problem"]}
    assert problems.keys() == {1, 2, 3, 5}
    assert "files/1.png: not an image" in problems[1]
    assert "series: 3 channels where others have 2" in problems[2]
    assert "there is nothing in text:title, image, series" in problems[3]
    assert "table.csv, line 7: ../outside.png is outside of" in problems[5]


def test_a_file_alone_is_the_modality_of_its_kind(manifest_run: Path, table: Path, tmp_path: Path) -> None:
    predictor = load_run(manifest_run, device="cpu")
    picture, text = table.parent / "files/1.png", tmp_path / "a.txt"
    text.write_text("gut ja", encoding="utf-8")
    values = [Item("row", values=(("path:image", str(picture)),)), Item("row", values=(("text:title", "gut ja"),))]
    expected = [one.probability for one in predictor(values)]
    assert [one.probability for one in predictor([str(picture), str(text)])] == pytest.approx(expected)
    with pytest.raises(UserError, match=r"a\.pdf: this model reads \.txt, "):
        predictor(str(tmp_path / "a.pdf"))


def test_a_changed_file_is_another_input(manifest_run: Path, table: Path, tmp_path: Path) -> None:
    shutil.copytree(table.parent, tmp_path / "copy")
    given, scorer = [str(tmp_path / "copy" / "table.csv")], load_run(manifest_run, device="cpu").scorer
    before = Once(find_inputs(given, scorer)).digest
    assert Once(find_inputs(given, scorer)).digest == before
    Image.new("RGB", (9, 9)).save(tmp_path / "copy/files/1.png")
    assert Once(find_inputs(given, scorer)).digest != before


def test_clients_of_a_server_name_no_files(manifest_run: Path, table: Path, tmp_path: Path) -> None:
    answering = Answering(load_run(manifest_run, device="cpu"), tmp_path)
    assert answering.fields == ["text:title"]
    with pytest.raises(UserError, match="takes no 'path:image'"):
        answering.check_fields(["path:image"])
    upload = Upload(path=table.parent / "files/1.png", name="x.png", values={"text:title": "gut ja"})
    (answer,) = answering(upload)["predictions"]
    assert len(answer["pictures"]) == 1
    assert answer["overlay"] == "attention"
    assert [note.split()[0] for note in answer["notes"]] == ["Attention:", "text:title", "image"]
    assert "".join(piece for piece, _ in answer["texts"]["text:title"]) == "gut ja"
    assert max(share for _, share in answer["texts"]["text:title"]) == 1


def test_texts_alone(script: Any, tiny: list[str]) -> None:
    """A folder for each class, and the same as a table, of which nothing else is looked at."""
    rows = []
    for index in range(16):
        label, words = ("bad", "nein schlecht") if index % 2 else ("good", "gut ja ß")
        for part in ("train", "val"):
            path = Path("texts") / part / label / f"{index}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(words, encoding="utf-8")
        rows.append({"text": words, "label": label, "image": "nothing.png"})
    table = load_raw(DataConfig(dataset="text"), write_rows(Path("table.csv"), rows))["train"]
    folder = load_raw(DataConfig(dataset="text"), Path("texts"))
    assert {name: len(part) for name, part in folder.items()} == {"train": 16, "val": 16}
    assert {bytes(table[place]["input"]["text"]).decode() for place in range(16)} == {"nein schlecht", "gut ja ß"}
    assert [*table[0]["input"]] == [*folder["train"][0]["input"]] == ["text"]
    Path("texts/train/bad/1.txt").write_bytes(b"nein \xff")
    train = ("train", *tiny, "--dataset", "text", "--data_dir", "texts", "--output_dir", "run")
    ended = script(*train)
    assert ended.code == 2
    assert "bad/1.txt: damaged or not a text in UTF-8" in ended.err
    ended = script(*train, "--on_bad_sample", "skip")
    assert ended.code == 0, ended.err
    assert "left out: texts/train/bad/1.txt" in ended.out
    summary = json.loads(Path("run/summary.json").read_text("utf-8"))
    assert summary["samples"] == {"train": 15, "val": 16}
    assert "modalities" not in summary
    assert list(summary["baselines"]) == ["texts: TF-IDF and logistic regression"]
    assert script("predict", "--model_path", "run/checkpoints/best_model.pth", "texts/val").code == 0
    assert len(records(Path("predictions.csv"))) == 16
