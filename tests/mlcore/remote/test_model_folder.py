"""A model's folder that asks for more than to be read is refused, whichever file asks and however deep."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mlcore.base.errors import UserError
from mlcore.remote.hub import find_model, read_json, read_weights
from mlcore.remote.model_folder import check_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as published: with what may be named in it, and is not followed."""
    path = tmp_path / "model"
    path.mkdir()
    write(path / "config.json", {"model_type": "vit", "_name_or_path": "/home/me/x", "attn_implementation": "sdpa"})
    write(path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "auto_map": None})
    write(path / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    save_file({"a": torch.ones(2)}, path / "model.safetensors")
    (path / "train.py").write_text("raise SystemExit", encoding="utf-8")
    return path


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def refused(folder: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_model(str(folder), setting="model")


def test_a_model_is_taken(folder: Path) -> None:
    assert find_model(str(folder), setting="model") == folder


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "1_Pooling/config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "evil.Model"}),
        ("custom_pipelines", {"x": {"impl": "evil.Pipe"}}),
        ("base_model_name_or_path", "evil/model"),
        ("trust_remote_code", True),
        ("_attn_implementation", "evil/kernel"),
        ("_attn_implementation_internal", "flash_attention_2"),
        ("attn_implementation", {"text_config": "evil/kernel"}),
        ("experts_implementation", "evil/kernel"),
    ],
)
def test_settings_that_ask_for_more_are_refused(folder: Path, name: str, key: str, value: object) -> None:
    write(folder / name, {"text_config": [{"deep": {key: value}}]})
    refused(folder, rf"{name}: refused, because its {key} asks for something else")


def test_an_adapter_is_refused(folder: Path) -> None:
    write(folder / "adapter_config.json", {})
    refused(folder, r"adapter_config\.json: refused, because an adapter's base model lies elsewhere")


def test_links_stay_in_the_folder(folder: Path) -> None:
    (folder / "inside.txt").symlink_to("config.json")
    check_model_folder(folder)
    write(folder.parent / "outside.json", {})
    (folder / "vocab.json").symlink_to("../outside.json")
    refused(folder, r"vocab\.json: refused, because it is a link out of the folder")
    (folder / "vocab.json").unlink()
    (folder / "part").symlink_to(folder.parent)
    refused(folder, "part: refused, because it is a link out of the folder")


def test_links_of_the_hub_s_cache_are_its_own(folder: Path) -> None:
    snapshot, blobs = folder / "snapshots" / "1", folder / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / "config.json").rename(blobs / "1f")
    (snapshot / "config.json").symlink_to("../../blobs/1f")
    check_model_folder(snapshot)
    (snapshot / "vocab.json").symlink_to("../../tokenizer_config.json")
    refused(snapshot, r"vocab\.json: refused, because it is a link out of the folder")


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"a":' + "9" * 5000 + "}", '{"a": "' + "x" * 2**22 + '"}', "\0"])
def test_settings_that_are_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    refused(folder, r"config\.json: (damaged or not a JSON file|more than 4 MiB)")
    with pytest.raises(UserError, match=r"config\.json: "):
        read_json(folder / "config.json")


def test_a_header_of_gigabytes_is_not_read(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes((10**12).to_bytes(8, "little") + file.read_bytes()[8:])
    refused(folder, r"model\.safetensors: damaged or not a safetensors file .a header of 1000000000000 bytes")


def test_shapes_larger_than_the_file_are_refused(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or not a safetensors file"):
        read_weights(folder)
