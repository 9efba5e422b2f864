"""Folders of tiny models, written by the libraries' own classes, as the hub has them, and a run made with one."""

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from quartet.apps.multimodal_ads.data.generated import write_generated
from tests.scripts import run_script

SMALL = shlex.split("""
text_encoder=minilm text_encoder.max_length=16 fusion.hidden_dim=8 head.hidden_dims=[8] --epochs 2 --batch_size 16
--num_workers 0 --num_threads 1 --device cpu --no_tensorboard --log_every 1 --warmup_steps 1 --patience null
""")
CACHE = "--cache_dir={}/features"
_TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "patch_size": 8,
}
_TIMM_NAME = "resnet10t"

WriteFolder = Callable[..., Path]


def fill(model: nn.Module, *, seed: int = 0) -> None:
    """Random values in every parameter; fresh models have zeros in biases, which hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(1 + noise if name.endswith("weight") and parameter.ndim == 1 else noise)


def _transformers_model(kind: str) -> tuple[PreTrainedModel, Any]:
    square = {"height": 32, "width": 32}
    if kind == "siglip2":
        config = SiglipConfig(text_config=_TEXT, vision_config={**_VISION, "image_size": 32})
        return SiglipModel(config), SiglipImageProcessor(size=square, resample=2)
    if kind == "siglip2_naflex":
        naflex = Siglip2Config(text_config=_TEXT, vision_config={**_VISION, "num_patches": 16})
        return Siglip2Model(naflex), Siglip2ImageProcessor(patch_size=8, max_num_patches=16)
    vit = ViTConfig(**_VISION, image_size=32, num_labels=5)
    return ViTForImageClassification(vit), ViTImageProcessor(size=square)


def _write(folder: Path, kind: str, *, seed: int = 0) -> Path:
    if kind == "timm":
        model = timm.create_model(_TIMM_NAME, num_classes=5)
        fill(model, seed=seed)
        timm.models.save_for_hf(model, folder, model_config={"num_classes": 5}, safe_serialization=True)
        return folder
    whole, processor = _transformers_model(kind)
    fill(whole, seed=seed)
    whole.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def write_text_folder(place: Path) -> Path:
    """A tiny model of four modules, as sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    source, target = place / "bert", place / "model"
    source.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz:", "sale", "now", "query"]
    (source / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
        )
    ).save_pretrained(source)
    BertTokenizer(str(source / "vocab.txt")).save_pretrained(source)
    dense = Dense(16, 12)
    SentenceTransformer(
        modules=[Transformer(str(source), max_seq_length=32), Pooling(16, "mean"), dense, Normalize()], device="cpu"
    ).save(str(target), create_model_card=False)
    return target


@pytest.fixture(scope="session")
def write_hub_folder() -> WriteFolder:
    """`write_hub_folder(folder, kind, seed=0)`: the folder of a tiny whole model of that kind."""
    return _write


@pytest.fixture
def hub_folder(tmp_path: Path) -> WriteFolder:
    """`hub_folder(kind, seed=0)`: the folder of a tiny whole model of that kind, with text tower or classifier."""

    def write(kind: str, *, seed: int = 0) -> Path:
        return _write(tmp_path / f"{kind}-{seed}", kind, seed=seed)

    return write


@pytest.fixture
def pictures() -> list[NDArray[np.uint8]]:
    """Three pictures of different shapes."""
    rng = np.random.default_rng(3)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((40, 60), (90, 20), (33, 33))
    ]


def run(name: str, *arguments: str | Path) -> tuple[int, str]:
    """Run a script of the app in this process; its exit code and what it said."""
    ended = run_script(f"apps/multimodal_ads/{name}.py", *arguments)
    return ended.code, ended.out + ended.err


def train(folder: Path, *arguments: str | Path) -> Path:
    code, said = run("train", *SMALL, "--output_dir", folder, *arguments)
    assert code == 0, said
    return folder


def read_csv(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def ads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated set of 64 + 24 + 24 samples."""
    folder = tmp_path_factory.mktemp("ads") / "set"
    write_generated(folder, train=64, validation=24, test=24, seed=1)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a tiny pre-trained SigLIP 2; features are kept between runs."""
    folder = _write(tmp_path_factory.mktemp("hub") / "siglip2", "siglip2")
    return [
        "vision_encoder.kind=siglip2",
        f"vision_encoder.model={folder}",
        "pooling=mean",
        CACHE.format(folder.parent),
    ]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, ads: Path, backbone: list[str]) -> Path:
    """A finished run."""
    return train(tmp_path_factory.mktemp("finished") / "run", *backbone, "--base_dir", ads)


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, ads: Path, backbone: list[str]) -> dict[str, Path]:
    """Runs of one modality each, with validation data and no test data."""
    tables = ["--train_csv", ads / "train.csv", "--val_csv", ads / "val.csv", "--epochs", "1"]
    modalities = ("vision_only", "text_only")
    root = tmp_path_factory.mktemp("alone")
    return {name: train(root / name, *backbone, *tables, f"train.modality={name}") for name in modalities}


def own_rows(folder: Path) -> list[dict[str, Any]]:
    """What a run predicted in its own evaluation."""
    rows: list[dict[str, Any]] = json.loads((folder / "test_predictions.json").read_text("utf-8"))
    return rows
