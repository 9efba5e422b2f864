"""Vision backbones: full size without memory, tiny ones through the real files, and folders not to be trusted."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import SiglipModel, SiglipVisionModel

from mlcore.base.errors import UserError
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.encoder import VisionEncoder, load_vision, meta_vision
from quartet.apps.multimodal_ads.vision.published import PUBLISHED

SETTINGS = Path(__file__).resolve().parents[2] / "configs" / "multimodal_ads" / "vision_encoder"
KINDS = ("siglip2", "siglip2_naflex", "vit", "timm")
# Width, layers (CNNs: stages), weights in millions without a classifier; the CNNs' as published, less the classifier.
FULL_SIZE = {
    "siglip2_so400m": (1152, 27, 428.2),
    "siglip2_base": (768, 12, 92.9),
    "siglip2_naflex_so400m": (1152, 27, 427.9),
    "siglip2_naflex_base": (768, 12, 92.9),
    "resnet50": (2048, 4, 25.557 - 2.049),
    "resnet101": (2048, 4, 44.549 - 2.049),
    "vgg16": (512, 12, 14.715),
    "vit": (1024, 24, 303.3),
    "vit_base": (768, 12, 85.8),
    "efficientnet": (1280, 7, 118.515 - 1.281),
    "efficientnet_lite0": (1280, 7, 4.652 - 1.281),
    "efficientnet_lite1": (1280, 7, 5.417 - 1.281),
    "efficientnet_lite2": (1280, 7, 6.092 - 1.281),
}


def setting(name: str) -> VisionEncoderConfig:
    return VisionEncoderConfig(**yaml.safe_load((SETTINGS / f"{name}.yaml").read_text(encoding="utf-8")))


def tiny(folder: Path, kind: str, **changes: Any) -> VisionEncoder:
    changes = {"max_patches": 16, **changes}
    if kind == "timm" and "image_size" not in changes:
        changes["image_size"] = (64, 64)
    return load_vision(VisionEncoderConfig(kind=kind, model=str(folder), **changes))  # type: ignore[arg-type]


def test_every_setting_is_in_the_table() -> None:
    assert {path.stem for path in SETTINGS.glob("*.yaml")} == set(FULL_SIZE)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_on_the_meta_device(name: str, pictures: list[NDArray[np.uint8]]) -> None:
    width, layers, millions = FULL_SIZE[name]
    encoder = meta_vision(setting(name).model)
    assert encoder.width == width
    assert len(encoder.blocks) == layers
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.002)
    assert all(parameter.is_meta for parameter in encoder.parameters())
    pixels = encoder.processor(pictures)
    if "naflex" in name:  # it looks into the values of its input, which the meta device has not
        assert pixels["pixel_values"].shape == (3, 256, 16 * 16 * 3)
        return
    tokens = encoder({key: value.to("meta") for key, value in pixels.items()})
    assert tokens.values.shape[::2] == (3, width)
    assert (tokens.summary is None) == (setting(name).kind == "timm")
    assert name != "siglip2_so400m" or tokens.values.shape[1] == 27 * 27


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_trains_all_of_a_model_from_its_files(
    kind: str, hub_folder: Any, pictures: list[NDArray[np.uint8]]
) -> None:
    encoder = tiny(hub_folder(kind), kind).train()
    before = {name: value.clone() for name, value in encoder.named_parameters()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-2)
    tokens = encoder(encoder.processor(pictures))
    loss = tokens.values.square().mean()
    if tokens.summary is not None:
        loss = loss + tokens.summary.square().mean()
    loss.backward()
    optimizer.step()
    same = [name for name, value in encoder.named_parameters() if torch.equal(before[name], value)]
    # A bias of keys moves all scores of a query alike, so that its gradient is zero up to rounding.
    assert [name for name in same if "k_proj.bias" not in name] == []


def test_the_whole_siglip_and_its_tower_alone_are_the_library_s_tower(
    hub_folder: Any, tmp_path: Path, pictures: list[NDArray[np.uint8]]
) -> None:
    folder = hub_folder("siglip2")
    encoder = tiny(folder, "siglip2").eval()
    pixels = encoder.processor(pictures)
    tokens = encoder(pixels)
    reference = SiglipModel.from_pretrained(folder).vision_model.eval()(pixel_values=pixels["pixel_values"])
    torch.testing.assert_close(tokens.values, reference.last_hidden_state, rtol=0, atol=1e-6)
    assert tokens.summary is not None
    torch.testing.assert_close(tokens.summary, reference.pooler_output, rtol=0, atol=1e-6)
    alone = tmp_path / "alone"
    SiglipVisionModel.from_pretrained(folder).save_pretrained(alone)
    (alone / "preprocessor_config.json").write_bytes((folder / "preprocessor_config.json").read_bytes())
    torch.testing.assert_close(tiny(alone, "siglip2").eval()(pixels).values, tokens.values, rtol=0, atol=0)


def test_no_text_tower_is_built(hub_folder: Any) -> None:
    encoder = tiny(hub_folder("siglip2"), "siglip2")
    assert not [name for name, _ in encoder.named_parameters() if "text" in name or "logit" in name]


def test_plain_torch_files_are_read_too(hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    folder = hub_folder("vit")
    expected = tiny(folder, "vit").eval()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    pixels = expected.processor(pictures)
    torch.testing.assert_close(tiny(folder, "vit").eval()(pixels).values, expected(pixels).values, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_unexpected_and_misshapen_weights_are_listed(kind: str, hub_folder: Any) -> None:
    folder = hub_folder(kind)
    whole = load_file(folder / "model.safetensors")
    names = [
        name for name in whole if name.endswith("weight") and not name.startswith(("text_model", "fc", "classifier"))
    ]
    victim = next(name for name in names if "fc1" in name or "conv2" in name or "intermediate" in name)
    save_file({name: value for name, value in whole.items() if name != victim}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"(?i)missing"):
        tiny(folder, kind)
    save_file({**whole, names[0] + "_more": torch.ones(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"(?i)unexpected"):
        tiny(folder, kind)
    save_file({**whole, victim: torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"shape|size mismatch"):
        tiny(folder, kind)


def test_damaged_weights_are_told(hub_folder: Any) -> None:
    folder = hub_folder("siglip2")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        tiny(folder, "siglip2")


@pytest.mark.parametrize("kind", ["siglip2", "vit", "timm"])
def test_another_input_size(kind: str, hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    encoder = tiny(hub_folder(kind), kind, image_size=(64, 96)).eval()
    pixels = encoder.processor(pictures)
    assert pixels["pixel_values"].shape == (3, 3, 64, 96)
    assert encoder(pixels).values.shape == (3, 2 * 3 if kind == "timm" else 8 * 12, encoder.width)


@pytest.mark.parametrize("kind", KINDS)
def test_processors_survive_workers_and_tell_settings_apart(
    kind: str, hub_folder: Any, pictures: list[NDArray[np.uint8]]
) -> None:
    folder = hub_folder(kind)
    changes: dict[str, Any] = {"max_patches": 12} if kind == "siglip2_naflex" else {"image_size": (96, 96)}
    encoder, other = tiny(folder, kind), tiny(folder, kind, **changes)
    copy = pickle.loads(pickle.dumps(encoder.processor))
    assert copy.fingerprint() == encoder.processor.fingerprint() != other.processor.fingerprint()
    for key, value in encoder.processor(pictures).items():
        assert torch.equal(copy(pictures)[key], value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_may_be_of_another_architecture(kind: str, hub_folder: Any) -> None:
    folder = hub_folder(kind)
    before = tiny(folder, kind).architecture
    assert tiny(folder, kind).architecture == before
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if kind == "timm":
        settings["model_args"] = {"act_layer": "silu"}
    else:
        settings.get("vision_config", settings)["hidden_act"] = "relu"
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert tiny(folder, kind).architecture != before


def test_normalisation_is_the_processor_s_own(hub_folder: Any) -> None:
    white = np.full((20, 30, 3), 255, np.uint8)
    for kind in ("siglip2", "vit"):
        pixels = tiny(hub_folder(kind), kind).processor([white])["pixel_values"]
        torch.testing.assert_close(pixels, torch.ones_like(pixels))
    pixels = tiny(hub_folder("timm"), "timm").processor([white])["pixel_values"]
    torch.testing.assert_close(pixels[0, 0], torch.full((64, 64), (1 - 0.485) / 0.229))


def test_the_borders_of_a_wide_picture_reach_a_cnn() -> None:
    processor = meta_vision("resnet50.a1_in1k").processor
    banner = np.zeros((20, 300, 3), np.uint8)
    banner[:, :10] = 255
    pixels = processor([banner])["pixel_values"]
    assert pixels[0, :, :, 0].min() > pixels[0, :, :, 100].max()


def test_random_start_needs_no_files_and_follows_the_seed() -> None:
    config = VisionEncoderConfig(kind="timm", model="resnet10t", pretrained=False, image_size=(32, 32))
    torch.manual_seed(1)
    first = load_vision(config)
    torch.manual_seed(1)
    second = load_vision(config)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize(("name", "expected"), [("test_vit", True), ("test_vit4", False), ("test_convnext", False)])
def test_timm_models_with_a_class_token_have_a_summary(name: str, expected: bool) -> None:
    encoder = load_vision(VisionEncoderConfig(kind="timm", model=name, pretrained=False)).eval()
    summary = encoder(encoder.processor([np.zeros((9, 9, 3), np.uint8)])).summary
    assert encoder.has_summary == (summary is not None) == expected


def test_timm_models_of_a_fixed_size_start_at_another(pictures: list[NDArray[np.uint8]]) -> None:
    settings = {"kind": "timm", "model": "vit_tiny_patch16_224", "image_size": (32, 64)}
    encoder = load_vision(VisionEncoderConfig(**settings, pretrained=False)).eval()  # type: ignore[arg-type]
    tokens = encoder(encoder.processor(pictures))
    assert tokens.values.shape == (3, 2 * 4, 192)
    assert tokens.summary is not None
    assert tokens.summary.shape == (3, 192)


def test_a_random_start_of_a_folder_s_architecture(hub_folder: Any) -> None:
    folder = hub_folder("siglip2")
    (folder / "model.safetensors").unlink()
    encoder = tiny(folder, "siglip2", pretrained=False)
    assert (encoder.width, len(encoder.blocks)) == (32, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_shape(kind: str, hub_folder: Any) -> None:
    encoder = tiny(hub_folder(kind), kind).eval()
    shapes = [(1, 1), (1, 2000), (2000, 1), (3, 3), (3, 1)]
    pixels = encoder.processor([np.full((*shape, 3), 77, np.uint8) for shape in shapes])
    with torch.no_grad():
        tokens = encoder(pixels)
    assert tokens.values.isfinite().all()
    assert encoder.has_summary == (tokens.summary is not None) == (kind != "timm")


def test_checkpointing_gives_the_same_gradients(hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    gradients = []
    for checkpointing in (False, True):
        encoder = tiny(hub_folder("siglip2"), "siglip2").train()
        if checkpointing:
            encoder.enable_gradient_checkpointing()
        assert encoder.blocks[0].gradient_checkpointing == checkpointing
        encoder(encoder.processor(pictures)).values.square().mean().backward()
        gradients.append(encoder.blocks[0].self_attn.q_proj.weight.grad)  # type: ignore[union-attr]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_summary_that_nobody_asks_for_can_go(hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    encoder = tiny(hub_folder("siglip2"), "siglip2").eval()
    pixels = encoder.processor(pictures)
    expected = encoder(pixels).values
    encoder.drop_summary()
    tokens = encoder(pixels)
    assert tokens.summary is None
    assert torch.equal(tokens.values, expected)
    assert not [name for name, _ in encoder.named_parameters() if ".head." in name]


# ------------------------------------------------------------------------------------------- what cannot or must not be


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "google/siglip2-so400m-patch14-384"}, "vision_encoder.pretrained=false"),
        ({"model": "google/siglip2-misspelt"}, "--local-dir"),
        ({"kind": "timm", "model": "resnet50.a1_in1k"}, "timm/resnet50.a1_in1k"),
        ({"kind": "timm", "model": "resnet55"}, "similar: .*resnet50"),
        ({"kind": "timm", "model": "resnet10t", "image_size": (64, 64)}, "--local-dir|publishes no weights"),
        ({"model": "./no-such-folder"}, "not a folder"),
        ({"model": "google/unknown", "pretrained": False}, "not known without its files"),
        ({"kind": "vit", "model": "google/siglip2-base-patch16-224", "pretrained": False}, "is of kind siglip2"),
    ],
)
def test_weights_that_cannot_be_had(changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=words):
        load_vision(VisionEncoderConfig(**changes))


def test_an_unreachable_hub_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(*_: object, **options: object) -> None:
        calls.append(options)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match=r"cannot be reached \(ConnectionError: no route to host\).*pretrained=false"):
        load_vision(VisionEncoderConfig())
    assert calls == [{"timeout": 10.0}]


def test_a_folder_of_another_family_is_refused(hub_folder: Any) -> None:
    with pytest.raises(UserError, match=r"config\.json: model_type is 'siglip'"):
        tiny(hub_folder("siglip2"), "siglip2_naflex")


def test_naflex_has_no_input_size(hub_folder: Any) -> None:
    with pytest.raises(UserError, match="max_patches"):
        tiny(hub_folder("siglip2_naflex"), "siglip2_naflex", image_size=(32, 32))


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickle_in_place_of_weights_does_not_run(kind: str, hub_folder: Any, tmp_path: Path) -> None:
    folder, ran = hub_folder(kind), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: refused"):
        tiny(folder, kind)
    assert not ran.exists()


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_naflex", "vit"])
def test_classes_that_a_folder_names_are_ignored(kind: str, hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    folder = hub_folder(kind)
    expected = tiny(folder, kind).eval()
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        changes = {"image_processor_type": "evil.Processor", "quantization_config": {"quant_method": "evil"}}
        (folder / name).write_text(json.dumps({**settings, **changes}), encoding="utf-8")
    encoder = tiny(folder, kind).eval()
    pixels = encoder.processor(pictures)
    assert torch.equal(encoder(pixels).values, expected(pixels).values)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("kind", ["siglip2", "siglip2_naflex", "vit"])
def test_code_that_a_folder_names_is_refused(kind: str, name: str, hub_folder: Any, tmp_path: Path) -> None:
    folder, ran = hub_folder(kind), tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n", encoding="utf-8")
    settings = json.loads((folder / name).read_text(encoding="utf-8"))
    for key, value in (("auto_map", {"AutoModel": "evil.Model"}), ("_attn_implementation", "evil/kernel")):
        (folder / name).write_text(json.dumps({**settings, key: value}), encoding="utf-8")
        with pytest.raises(UserError, match=rf"{name}: refused, because its {key}"):
            tiny(folder, kind)
    assert not ran.exists()


def test_timm_arguments_that_name_things_are_refused(hub_folder: Any) -> None:
    folder = hub_folder("timm")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["model_args"] = {"norm_layer": "os.system"}
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match=r"model_args\.norm_layer"):
        tiny(folder, "timm")


def test_parts_of_weights_must_be_in_the_folder(hub_folder: Any) -> None:
    folder = hub_folder("siglip2")
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    index = {"weight_map": {"a": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match="plain file names"):
        tiny(folder, "siglip2")


def test_published_processors_fit_their_models() -> None:
    for name, published in PUBLISHED.items():
        if "size" in published.processor:
            assert published.processor["size"]["height"] == published.architecture["image_size"], name
        else:
            assert published.processor["patch_size"] == published.architecture["patch_size"], name


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_is_close_and_trains(kind: str, hub_folder: Any, pictures: list[NDArray[np.uint8]]) -> None:
    encoder = tiny(hub_folder(kind), kind).eval()
    pixels = encoder.processor(pictures)
    exact = encoder(pixels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = encoder(pixels)
    for a, b in ((exact.values, mixed.values), (exact.summary, mixed.summary)):
        if a is not None and b is not None:
            assert torch.nn.functional.cosine_similarity(a.flatten(), b.float().flatten(), dim=0) > 0.99
    (mixed.values.float().square().mean() + (0 if mixed.summary is None else mixed.summary.float().sum())).backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in encoder.parameters())
