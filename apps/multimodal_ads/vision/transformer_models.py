"""SigLIP 2, SigLIP 2 NaFlex and ViT of transformers: the vision tower alone.

The fixed-resolution SigLIP 2 models are of transformers' `Siglip` classes, the NaFlex ones of its `Siglip2` classes.
Files of a whole SigLIP model and of its vision tower alone are both read; of a whole one, only the tower's tensors.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.hub import find_model, read_json, read_weights
from mlcore.remote.model_folder import check_model_folder
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.loading import quiet_loading
from quartet.apps.multimodal_ads.vision.interface import Run, Tokens, VisionEncoder
from quartet.apps.multimodal_ads.vision.processors import HubProcessor, processor_settings
from quartet.apps.multimodal_ads.vision.published import PUBLISHED, Published

__all__ = ["load_transformer", "make_transformer", "meta_transformer", "outline_transformer"]

_SETTING = "vision_encoder.model"
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class _Family:
    """How transformers spells a family.

    Attributes:
        config: Its class of settings.
        model: Its class of models.
        types: `model_type` of its `config.json` files.
        prefix: What the names of the tower's tensors start with in files of the whole model.
        foreign: What the names of other parts' tensors start with; they are not read.
        arguments: Further arguments of `model`.
        layers: Where the list of layers is.
        attention: Name of the attention in a layer.
        run: Calls the model; all of them have a summary.
    """

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    types: tuple[str, ...]
    prefix: str
    foreign: tuple[str, ...]
    arguments: Mapping[str, Any]
    layers: str
    attention: str
    run: Callable[[nn.Module, Mapping[str, Tensor]], Tokens]


def load_transformer(config: VisionEncoderConfig, *, ways_out: str) -> VisionEncoder:
    """Build a SigLIP 2 or ViT backbone with its published weights, with those of a folder, or at random.

    Raises:
        UserError: The weights cannot be had or are not exactly those of the model, or the settings do not go together.
    """
    family = _FAMILIES[config.kind]
    folder, published = _found(config, ways_out)
    architecture = _architecture(family, published.architecture)
    if config.pretrained:
        model = _load_weights(family, architecture, folder)
    else:
        model = family.model(architecture, **family.arguments)
    return _encoder(model, config.kind, _processor(config, published.processor))


def outline_transformer(config: VisionEncoderConfig, *, ways_out: str) -> dict[str, Any]:
    """Plain values from which `make_transformer` makes the same network without weights."""
    _, published = _found(config, ways_out)
    processor = _processor(config, published.processor)
    return {"kind": config.kind, "architecture": dict(published.architecture), "processor": processor.settings}


def make_transformer(outline: Mapping[str, Any]) -> VisionEncoder:
    """The backbone that `outline_transformer` describes, with random weights."""
    family = _FAMILIES[outline["kind"]]
    known = {key: value for key, value in outline["architecture"].items() if key in _own_settings(family)}
    model = family.model(_architecture(family, known), **family.arguments)
    return _encoder(model, outline["kind"], HubProcessor(outline["kind"], outline["processor"]))


def meta_transformer(name: str) -> VisionEncoder:
    """The published model called `name`, on the meta device: shapes without memory."""
    known = PUBLISHED[name]
    with torch.device("meta"):
        return make_transformer({"kind": known.kind, "architecture": known.architecture, "processor": known.processor})


def _found(config: VisionEncoderConfig, ways_out: str) -> tuple[Path, Published]:
    """The model's folder, if there is one, and its settings."""
    folder = Path(config.model).expanduser()
    if config.pretrained:
        folder = find_model(config.model, setting=_SETTING, ways_out=ways_out)
    return folder, _of_folder(folder, config.kind) if folder.is_dir() else _known(config)


def _architecture(family: _Family, values: Mapping[str, Any]) -> PreTrainedConfig:
    architecture = family.config(**values)
    architecture._attn_implementation = "sdpa"  # never what a file asks for: some values fetch code from the hub
    return architecture


def _known(config: VisionEncoderConfig) -> Published:
    published = PUBLISHED.get(config.model)
    if published is None:
        raise UserError(
            f"{_SETTING}: the configuration of {config.model} is not known without its files; set "
            "vision_encoder.pretrained=true, give a folder with its config.json and preprocessor_config.json, or name "
            f"one of: {', '.join(name for name, known in PUBLISHED.items() if known.kind == config.kind)}"
        )
    if published.kind != config.kind:
        raise UserError(f"vision_encoder.kind={config.kind}, but {config.model} is of kind {published.kind}")
    return published


def _of_folder(folder: Path, kind: str) -> Published:
    """Settings in a folder: numbers, words and switches that the family's own class knows, and nothing else."""
    check_model_folder(folder)
    family = _FAMILIES[kind]
    path = folder / "config.json"
    settings = read_json(path)
    if settings.get("model_type") not in family.types:
        raise UserError(
            f"{path}: model_type is {settings.get('model_type')!r}; vision_encoder.kind={kind} needs "
            f"{' or '.join(family.types)}"
        )
    tower = settings.get("vision_config", settings)
    if not isinstance(tower, dict):
        raise UserError(f"{path}: vision_config must be an object")
    architecture = {key: value for key, value in tower.items() if key in _own_settings(family)}
    try:
        family.config(**architecture)
    except Exception as error:  # noqa: BLE001 - the library's validation raises errors of its own
        raise UserError(f"{path}: not a configuration of {family.config.__name__}: {error}") from None
    return Published(kind, architecture, processor_settings(folder))


def _own_settings(family: _Family) -> set[str]:
    """Names of the settings that describe this family, without those that all of the library's models have."""
    return {field.name for field in fields(family.config)} - {field.name for field in fields(PreTrainedConfig)}


def _described(family: _Family, architecture: PreTrainedConfig) -> str:
    settings = {name: getattr(architecture, name) for name in _own_settings(family)}
    return json.dumps({"model": family.model.__name__, **settings}, sort_keys=True)


def _load_weights(family: _Family, architecture: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    weights = read_weights(folder, keep=lambda key: not key.startswith(family.foreign))
    weights = {key.removeprefix(family.prefix): value for key, value in weights.items()}
    with quiet_loading(), reading(folder, "a model that can be built"):
        # Through the library, because it knows the names of older files; what it would forgive is an error below.
        loaded: Any = family.model.from_pretrained(
            None,
            config=architecture,
            state_dict=weights,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            **family.arguments,
        )
    model: PreTrainedModel = loaded[0]
    _be_strict(loaded[1], folder, family.model.__name__)
    model.train()
    return model


def _be_strict(report: Mapping[str, Any], folder: Path, name: str) -> None:
    found = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape": sorted(str(item[0]) for item in report["mismatched_keys"]),
    }
    lines = [
        f"  {len(keys)} {title}: {'; '.join(keys[:5])}{' ...' if len(keys) > 5 else ''}"
        for title, keys in found.items()
        if keys
    ]
    if lines:
        raise UserError(f"{folder}: not the weights of a {name} as its config.json has it:\n" + "\n".join(lines))


def _processor(config: VisionEncoderConfig, settings: Mapping[str, Any]) -> HubProcessor:
    settings = dict(settings)
    if config.kind == "siglip2_naflex":
        if config.image_size is not None:
            raise UserError("vision_encoder.image_size: NaFlex keeps aspect ratios; set max_patches instead")
        settings["max_num_patches"] = config.max_patches
    elif config.image_size is not None:
        settings["size"] = {"height": config.image_size[0], "width": config.image_size[1]}
    return HubProcessor(config.kind, settings)


def _encoder(model: PreTrainedModel, kind: str, processor: HubProcessor) -> VisionEncoder:
    family = _FAMILIES[kind]
    layers = model.get_submodule(family.layers)
    tail = [module for name, module in model.named_children() if name in {"post_layernorm", "layernorm", "head"}]
    return VisionEncoder(
        model,
        run=Run(family.run, has_summary=True),
        architecture=_described(family, model.config),
        width=int(model.config.hidden_size),
        blocks=[
            (layer, [f"{family.layers}.{name}.{family.attention}.{projection}" for projection in _PROJECTIONS])
            for name, layer in layers.named_children()
        ],
        tail=tail,
        processor=processor,
        use_checkpointing=_use_checkpointing,
    )


def _run_siglip(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    images = pixels["pixel_values"]  # [B, 3, H, W]
    output = model(pixel_values=images, interpolate_pos_encoding=_other_size(model, images))
    return Tokens(output.last_hidden_state, None, output.pooler_output)


def _run_naflex(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    mask = pixels["pixel_attention_mask"]
    # The shapes are read one by one: on a GPU each would be a sync point of its own.
    shapes = pixels["spatial_shapes"].cpu()
    output = model(pixel_values=pixels["pixel_values"], pixel_attention_mask=mask, spatial_shapes=shapes)
    return Tokens(output.last_hidden_state, mask.bool(), output.pooler_output)


def _run_vit(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    images = pixels["pixel_values"]  # [B, 3, H, W]
    output = model(pixel_values=images, interpolate_pos_encoding=_other_size(model, images))
    tokens: Tensor = output.last_hidden_state  # [B, 1 + T, D], the class token first
    return Tokens(tokens[:, 1:], None, tokens[:, 0])


def _other_size(model: nn.Module, images: Tensor) -> bool:
    own: Any = model.config.image_size  # type: ignore[union-attr]
    height, width = (own, own) if isinstance(own, int) else own
    return tuple(images.shape[-2:]) != (height, width)


def _use_checkpointing(model: nn.Module) -> None:
    model.activation_checkpointing_enable()  # type: ignore[operator]


_SIGLIP_OTHERS = ("text_model.", "logit_scale", "logit_bias")

_FAMILIES: Mapping[str, _Family] = {
    "siglip2": _Family(
        SiglipVisionConfig,
        SiglipVisionModel,
        types=("siglip", "siglip_vision_model"),
        prefix="vision_model.",
        foreign=_SIGLIP_OTHERS,
        arguments={},
        layers="encoder.layers",
        attention="self_attn",
        run=_run_siglip,
    ),
    "siglip2_naflex": _Family(
        Siglip2VisionConfig,
        Siglip2VisionModel,
        types=("siglip2", "siglip2_vision_model"),
        prefix="vision_model.",
        foreign=_SIGLIP_OTHERS,
        arguments={},
        layers="encoder.layers",
        attention="self_attn",
        run=_run_naflex,
    ),
    "vit": _Family(
        ViTConfig,
        ViTModel,
        types=("vit",),
        prefix="vit.",
        foreign=("classifier.", "pooler.", "vit.pooler."),  # the published pooler was never trained
        arguments={"add_pooling_layer": False},
        layers="layers",
        attention="attention",
        run=_run_vit,
    ),
}
