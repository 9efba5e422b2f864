"""quartet export of ads: every form gives the run's own numbers, also where neither repository nor encoders are."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.run.scorer import Item
from mlcore.use.exporting import export
from quartet.apps.multimodal_ads.data.table import read_table
from tests.multimodal_ads.conftest import CACHE, WriteFolder, own_rows, run, train

FORMS = (None, "pt2", "onnx")
TABLES = {"multimodal": "test.csv", "vision_only": "val.csv", "text_only": "val.csv"}

# Runs in a fresh process that never imports the repository's code.
WITHOUT_THE_REPOSITORY = """
import runpy, sys
sys.argv = ["predict.py", *sys.argv[1:]]
runpy.run_path("exported/predict.py", run_name="__main__")
assert not any(name.split(".")[0] in ("quartet", "mlcore", "torch", "transformers") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def exported(finished: Path, alone: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports of the three kinds of model."""
    folders = {}
    for name, folder in {"multimodal": finished, **alone}.items():
        folders[name] = tmp_path_factory.mktemp(name) / "exported"
        export(load_run(folder, device="cpu"), folders[name], ["pt2", "onnx"])
    return folders


def reader(folder: Path, *given: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", "-c", WITHOUT_THE_REPOSITORY, *given]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)


def read_elsewhere(folder: Path, *given: str) -> list[list[str]]:
    done = reader(folder, *given)
    assert done.returncode == 0, done.stderr
    return [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("modality", TABLES)
def test_every_form_gives_the_rows_of_the_runs_own_evaluation(
    modality: str, exported: dict[str, Path], ads: Path, finished: Path, alone: dict[str, Path]
) -> None:
    own = own_rows({"multimodal": finished, **alone}[modality])
    rows = read_table(ads / TABLES[modality], base_dir=None)
    items = [Item(row.origin, row.image, values=(("text", row.text),)) for row in rows]
    for form in FORMS:
        found = load_run(exported[modality], device="cpu", network=form)(items, batch_size=7)
        assert [one.probability for one in found] == pytest.approx([row["probability"] for row in own], abs=1e-5), form
        assert [one.predicted for one in found] == [("not_ad", "ad")[row["predicted"]] for row in own]
        if modality == "multimodal":
            assert [one.gate for one in found] == pytest.approx([row["gate"] for row in own], abs=1e-5)


def test_ads_are_told_without_the_repository(
    exported: dict[str, Path], finished: Path, alone: dict[str, Path], tmp_path: Path
) -> None:
    """Of pictures that have the model's size already: others differ by one of 255 steps, as libraries resize them."""
    picture, text = str(tmp_path / "a.png"), "Summer SALE: 50 % off"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    for name, folder, given in (
        ("multimodal", finished, [picture, text, picture, ""]),
        ("vision_only", alone["vision_only"], [picture]),
        ("text_only", alone["text_only"], [text]),
    ):
        texts = given[1::2] if name == "multimodal" else given
        items = [Item(one, Path(picture), values=(("text", one),)) for one in texts]
        expected = load_run(folder, device="cpu")(items)
        found = read_elsewhere(exported[name], *given)
        assert [row[1] for row in found] == [one.predicted for one in expected]
        assert [float(row[2]) for row in found] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_what_the_reader_does_not_take_is_one_line(exported: dict[str, Path]) -> None:
    for given, said in (
        (["gone.png", "text"], "gone.png: no such picture, or damaged\n"),
        (["a.png"], "a.png: has no text beside it; this model takes pairs"),
    ):
        done = reader(exported["multimodal"], *given)
        assert done.returncode == 1
        assert done.stderr.startswith(said)


def test_an_export_needs_no_encoder_and_says_how_inputs_are_prepared(
    exported: dict[str, Path], finished: Path, ads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = json.loads((exported["multimodal"] / "model.json").read_text("utf-8"))["about"]
    assert about["class_names"] == ["not_ad", "ad"]
    assert about["vision"]["processor"]["image_mean"] == [0.5, 0.5, 0.5]
    assert about["vision"]["processor"]["size"] == {"height": 32, "width": 32}
    assert about["text"]["limit"] == 16
    assert about["decision"]["chosen_on"] == "val"
    picture = min((ads / "images").iterdir())
    expected = load_run(finished, device="cpu", options={"text": "sale"})(picture)

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("looks for published weights")

    monkeypatch.setattr("quartet.apps.multimodal_ads.restore.make_parts", nothing)
    monkeypatch.setattr("quartet.apps.multimodal_ads.scoring.load_text", nothing)
    (found,) = load_run(exported["multimodal"], device="cpu", options={"text": "sale"})(picture)
    assert found.probability == pytest.approx(expected[0].probability, abs=1e-6)


def test_adapters_are_merged_and_the_script_verifies(write_hub_folder: WriteFolder, ads: Path, tmp_path: Path) -> None:
    backbone = write_hub_folder(tmp_path / "vit", "vit")
    folder = train(
        tmp_path / "run",
        *("vision_encoder.kind=vit", f"vision_encoder.model={backbone}", CACHE.format(tmp_path), "pooling=mean"),
        *("train.modality=vision_only", "train.lora.enabled=true", "train.lora.rank=2", "train.lora.target_layers=2"),
        *("--base_dir", ads, "--epochs", "1", "--lr", "1e-2"),
    )
    model = ["--model_path", folder, "--output_dir", tmp_path / "out"]
    code, said = run("export", *model)
    assert code == 0, said
    assert said.count("largest difference from float32") == 3
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert not any("lora" in name for name in file.keys())  # noqa: SIM118 - no mapping
    code, said = run("export", *model, "--verify")
    assert code == 0, said
    assert said.count("largest difference from float32") == 3
    (tmp_path / "out" / "model.onnx").write_bytes(b"")
    code, said = run("export", *model, "--verify")
    assert code == 2
    assert "model.onnx: was changed after the export" in said


@pytest.mark.slow
def test_what_cannot_be_traced_is_left_out_or_refused(write_hub_folder: WriteFolder, ads: Path, tmp_path: Path) -> None:
    backbone = write_hub_folder(tmp_path / "naflex", "siglip2_naflex")
    folder = train(
        tmp_path / "run",
        *("vision_encoder.kind=siglip2_naflex", f"vision_encoder.model={backbone}", "vision_encoder.max_patches=16"),
        *("train.modality=vision_only", "pooling=mean", CACHE.format(tmp_path), "--base_dir", ads, "--epochs", "1"),
    )
    code, said = run("export", "--model_path", folder, "--output_dir", tmp_path / "out")
    assert code == 0, said
    assert "not written: model.pt2, model.onnx" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.json", "model.safetensors"}
    rows = read_table(ads / "test.csv", base_dir=None)
    found = load_run(tmp_path / "out", device="cpu")([row.image for row in rows])
    assert [one.probability for one in found] == pytest.approx(
        [row["probability"] for row in own_rows(folder)], abs=1e-5
    )
    with pytest.raises(UserError, match=r"cannot be traced by torch\.export .*--format safetensors"):
        export(load_run(folder, device="cpu"), tmp_path / "other", ["onnx"])
    assert not (tmp_path / "other").exists()
