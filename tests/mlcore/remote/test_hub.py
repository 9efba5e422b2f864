"""What is fetched from the hub, and what is said when it cannot be."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from mlcore.base.errors import UserError
from mlcore.remote.hub import find_model, weight_files

COMMON = ["README.md", ".gitattributes", "config.json", "tokenizer.json", "tokenizer_config.json"]
# Files of models on the hub, and which of them are needed besides COMMON's settings.
MODELS = {
    "google/siglip2-so400m-patch14-384": (
        [*COMMON, "model.safetensors", "preprocessor_config.json"],
        {"model.safetensors", "preprocessor_config.json"},
    ),
    "BAAI/bge-m3": (
        [
            *(*COMMON, "1_Pooling/config.json", "modules.json", "pytorch_model.bin", "sentencepiece.bpe.model"),
            *("colbert_linear.pt", "onnx/model.onnx", "onnx/model.onnx_data", "onnx/config.json", "imgs/bm25.jpg"),
        ],
        {"1_Pooling/config.json", "modules.json", "pytorch_model.bin", "sentencepiece.bpe.model"},
    ),
    "sentence-transformers/LaBSE": (
        [
            *(*COMMON, "2_Dense/config.json", "2_Dense/pytorch_model.bin", "2_Dense/rust_model.ot", "vocab.txt"),
            *("flax_model.msgpack", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "modules.json"),
        ],
        {"2_Dense/config.json", "2_Dense/pytorch_model.bin", "vocab.txt", "model.safetensors", "modules.json"},
    ),
    "timm/resnet50.a1_in1k": (
        ["README.md", "config.json", "model.safetensors", "pytorch_model.bin"],
        {"model.safetensors"},
    ),
}


class Hub:
    """Stands in for the hub; writes what it is asked for as empty files."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names, self.questions = folder, names, 0

    def model_info(self, _client: object, _name: str, **_: object) -> SimpleNamespace:
        self.questions += 1
        return SimpleNamespace(sha="1" * 40, siblings=[SimpleNamespace(rfilename=name) for name in self.names])

    def snapshot_download(self, _name: str, *, local_files_only: bool = False, **options: Any) -> str:
        if local_files_only:
            if not self.folder.is_dir():
                raise FileNotFoundError(self.folder)
            return str(self.folder)
        allow, ignore = options["allow_patterns"], options["ignore_patterns"]
        for name in filter_repo_objects(self.names, allow_patterns=allow, ignore_patterns=ignore):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text("{}" if name.endswith(".json") else "", encoding="utf-8")
        return str(self.folder)


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *given, **options: hub.model_info(*given, **options))
    monkeypatch.setattr("mlcore.remote.hub.snapshot_download", hub.snapshot_download)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_needed_is_fetched_and_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, needed = MODELS[name]
    hub = Hub(tmp_path / "cache", names)
    connect(hub, monkeypatch)
    folder = find_model(name, setting="x.model")
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found - {"config.json", "tokenizer.json", "tokenizer_config.json"} == needed
    assert "config.json" in found
    assert find_model(name, setting="x.model") == folder
    assert hub.questions == 1


def test_a_download_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "cache", ["config.json", "model.safetensors"])
    hub.folder.mkdir()
    (hub.folder / "config.json").touch()
    connect(hub, monkeypatch)
    assert weight_files(find_model("a/b", setting="x.model"))


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path / "cache", [])
    connect(hub, monkeypatch)
    assert find_model(str(tmp_path), setting="x.model") == tmp_path
    assert hub.questions == 0


def test_a_folder_that_is_called_like_a_model_of_the_hub_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect(Hub(tmp_path / "cache", []), monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "google" / "model"
    folder.mkdir(parents=True)
    with caplog.at_level("INFO"):
        find_model(str(folder), setting="x.model")
        assert not caplog.text
        assert find_model("google/model", setting="x.model").resolve() == folder
    assert f"google/model is the folder {folder}, not the hub's" in caplog.text


def test_a_misspelt_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    connect(Hub(tmp_path / "cache", []), monkeypatch)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unknown)
    with pytest.raises(UserError, match=r"x\.model: .*a/b.* misspelling.*--local-dir FOLDER.*x\.model=FOLDER. Or else"):
        find_model("a/b", setting="x.model", ways_out="Or else.")


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "a/b/c", "two words", "a/../b"])
def test_what_can_only_be_a_folder_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path / "cache", [])
    connect(hub, monkeypatch)
    with pytest.raises(UserError, match="not a folder"):
        find_model(name, setting="x.model")
    assert hub.questions == 0
