"""Any backbone of timm: ResNet, VGG, EfficientNet and the rest, without the classifier."""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform
from timm.models import group_parameters
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.base.reading import reading
from mlcore.remote.hub import find_model, plain_arguments, read_json, read_weights
from mlcore.remote.model_folder import check_model_folder
from mlcore.remote.packaged import packaged
from quartet.apps.multimodal_ads.config import VisionEncoderConfig
from quartet.apps.multimodal_ads.vision.interface import Run, Tokens, VisionEncoder

__all__ = ["TimmProcessor", "load_timm", "make_timm", "meta_timm", "outline_timm", "timm_processor"]

_SETTING = "vision_encoder.model"


class TimmProcessor:
    """The normalisation, resolution and interpolation of a timm model, applied to the whole picture.

    timm's own evaluation transform cuts the centre out; the text of an ad is at its borders as well, so that here the
    picture is resized to the input as a whole, as the processors of SigLIP and ViT do.

    Args:
        size: Height and width of the input, in pixels.
        mean: Per channel, of values in 0..1.
        std: Per channel.
        interpolation: "bilinear", "bicubic" or another name that timm knows.
    """

    def __init__(
        self, size: tuple[int, int], *, mean: Sequence[float], std: Sequence[float], interpolation: str
    ) -> None:
        self._transform = create_transform(
            (3, *size),
            is_training=False,
            mean=tuple(mean),
            std=tuple(std),
            interpolation=interpolation,
            crop_pct=1.0,
            crop_mode="squash",
        )
        self.size = size
        self._settings = {
            "size": {"height": size[0], "width": size[1]},
            "resample": int(Image.Resampling[interpolation.upper()]),
            "image_mean": list(mean),
            "image_std": list(std),
            "rescale_factor": 1 / 255,
        }
        self._described = f"timm {timm.__version__} {size} {tuple(mean)} {tuple(std)} {interpolation} squash"

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, Tensor]:
        """See `Processor`."""
        return {"pixel_values": torch.stack([self._transform(Image.fromarray(image)) for image in images])}

    def fingerprint(self) -> str:
        """See `Processor`."""
        return self._described

    @property
    def settings(self) -> dict[str, Any]:
        """See `Processor`."""
        return self._settings


def load_timm(config: VisionEncoderConfig, *, ways_out: str) -> VisionEncoder:
    """Build a timm model with its published weights, with those of a folder, or at random.

    Raises:
        UserError: timm has no such model, its weights cannot be had or do not fit, or it takes no other input size.
    """
    folder, metadata = _found(config)
    overlay: dict[str, Any] = {}
    if config.pretrained:
        own = None if folder.is_dir() else packaged(config.model)
        if own is not None:
            with torch.device("meta"):
                overlay["state_dict"] = own.read(timm.create_model(metadata["architecture"]).state_dict())
        else:
            if not folder.is_dir():
                folder = find_model(_hub_name(config.model), setting=_SETTING, ways_out=ways_out)
            overlay["state_dict"] = read_weights(folder)
    arguments = _arguments(config, metadata)
    if "num_classes" in arguments:
        overlay["num_classes"] = arguments["num_classes"]  # else timm would load the file without being strict
    try:
        model = timm.create_model(
            metadata["architecture"], pretrained=config.pretrained, pretrained_cfg_overlay=overlay, **arguments
        )
    except (RuntimeError, TypeError, AssertionError, KeyError) as error:
        problem = str(error).strip()[:1000]
        raise UserError(f"{_SETTING}={config.model}: timm cannot build it from these weights: {problem}") from None
    return _encoder(model, metadata["architecture"], _processor(config, metadata), arguments)


def outline_timm(config: VisionEncoderConfig) -> dict[str, Any]:
    """Plain values from which `make_timm` makes the same network without weights."""
    _, metadata = _found(config)
    return {
        "kind": "timm",
        "architecture": metadata["architecture"],
        "arguments": _arguments(config, metadata),
        "processor": _processor(config, metadata).settings,
    }


def make_timm(outline: Mapping[str, Any]) -> VisionEncoder:
    """The backbone that `outline_timm` describes, with random weights.

    Raises:
        UserError: timm has no such model, or an argument is more than a number, a word or a switch.
    """
    name, arguments = outline["architecture"], plain_arguments(outline["arguments"], where=_SETTING)
    if not timm.is_model(name):
        raise UserError(f"{_SETTING}: timm has no model {name}")
    return _encoder(timm.create_model(name, **arguments), name, timm_processor(outline["processor"]), arguments)


def timm_processor(settings: Mapping[str, Any]) -> TimmProcessor:
    """The processor of its `settings`."""
    return TimmProcessor(
        (settings["size"]["height"], settings["size"]["width"]),
        mean=settings["image_mean"],
        std=settings["image_std"],
        interpolation=Image.Resampling(settings["resample"]).name.lower(),
    )


def _processor(config: VisionEncoderConfig, metadata: Mapping[str, Any]) -> TimmProcessor:
    size = config.image_size or metadata["size"]
    return TimmProcessor(size, **{name: metadata[name] for name in ("mean", "std", "interpolation")})


def _found(config: VisionEncoderConfig) -> tuple[Path, dict[str, Any]]:
    """Where the model's folder would be, and what is known of it."""
    folder = Path(config.model).expanduser()
    return folder, _folder_metadata(folder) if folder.is_dir() else _named_metadata(config.model)


def meta_timm(name: str) -> VisionEncoder:
    """The model called `name` in timm, on the meta device: shapes without memory."""
    metadata = _named_metadata(name)
    with torch.device("meta"):
        model = timm.create_model(metadata["architecture"])
    processor = _processor(VisionEncoderConfig(kind="timm", model=name), metadata)
    return _encoder(model, metadata["architecture"], processor, {})


def _named_metadata(name: str) -> dict[str, Any]:
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.5)
        hint = f"; similar: {', '.join(close)}" if close else ""
        raise UserError(f"{_SETTING}: timm has no model {name} and there is no such folder{hint}")
    known: Any = timm.get_pretrained_cfg(name)
    cfg, own = {} if known is None else known.to_dict(), packaged(name)
    return _metadata(name, cfg if own is None else {**cfg, "mean": own.mean, "std": own.std}, arguments={})


def _folder_metadata(folder: Path) -> dict[str, Any]:
    """What the `config.json` says that timm writes next to the weights."""
    check_model_folder(folder)
    path = folder / "config.json"
    settings = read_json(path)
    name = settings.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        raise UserError(f"{path}: architecture is {name!r}; expected the name of a timm model")
    published = settings.get("pretrained_cfg", {})
    arguments = settings.get("model_args", {})
    if not isinstance(published, dict):
        raise UserError(f"{path}: pretrained_cfg must be an object")
    arguments = plain_arguments(arguments, where=f"{path}: model_args")
    if isinstance(settings.get("num_classes"), int):
        arguments = {**arguments, "num_classes": settings["num_classes"]}
    with reading(path, "a description of a timm model"):
        return _metadata(name, published, arguments=arguments)


def _metadata(name: str, published: Mapping[str, Any], *, arguments: Mapping[str, Any]) -> dict[str, Any]:
    size = tuple(published.get("input_size") or (3, 224, 224))
    return {
        "architecture": name,
        "size": (int(size[-2]), int(size[-1])),
        "mean": published.get("mean") or (0.485, 0.456, 0.406),
        "std": published.get("std") or (0.229, 0.224, 0.225),
        "interpolation": published.get("interpolation") or "bilinear",
        "fixed_size": bool(published.get("fixed_input_size")),
        "arguments": dict(arguments),
    }


def _hub_name(name: str) -> str:
    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise UserError(
            f"{_SETTING}: timm publishes no weights of {name} on the hub; set vision_encoder.pretrained=false to "
            "start at random, or name one of: "
            + ", ".join(timm.list_pretrained(f"{name.split('.')[0]}*")[:4] or ("resnet50.a1_in1k",))
        )
    return str(known.hf_hub_id if not known.hf_hub_id.endswith("/") else known.hf_hub_id + name)


def _arguments(config: VisionEncoderConfig, metadata: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {
        **metadata["arguments"],
        **plain_arguments(dict(config.arguments), where="vision_encoder.arguments"),
    }
    if metadata["fixed_size"] and config.image_size not in (None, metadata["size"]):
        if config.pretrained:
            height, width = metadata["size"]
            raise UserError(
                f"vision_encoder.image_size: the weights of {config.model} are for {height} x {width} pixels only; "
                "set it to null, or take another model"
            )
        arguments["img_size"] = config.image_size
    return arguments


def _encoder(model: nn.Module, name: str, processor: TimmProcessor, arguments: Mapping[str, Any]) -> VisionEncoder:
    layout, width = _drop_head(model, name, size=processor.size, arguments=arguments)
    return VisionEncoder(
        model,
        run=_RUN[layout],
        architecture=json.dumps({"timm": name, **arguments}, sort_keys=True),
        width=width,
        blocks=[(block, ()) for block in _blocks(model)],
        tail=[],  # timm groups what follows the last layer with it
        processor=processor,
        use_checkpointing=_use_checkpointing,
    )


def _drop_head(model: nn.Module, name: str, *, size: tuple[int, int], arguments: Mapping[str, Any]) -> tuple[str, int]:
    """Replace what `forward_features` does not use (classifiers, VGG's fully connected layers) by nothing.

    Which parts these are shows in a backward pass on the meta device, whatever the architecture calls them.

    Returns:
        The layout of the features ("maps", "maps_last", "tokens" or "class_token") and their width.
    """
    with torch.device("meta"):
        twin: Any = model if next(model.parameters()).is_meta else timm.create_model(name, **arguments)
        features = twin.forward_features(torch.zeros(2, 3, *size))
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise UserError(f"{_SETTING}: the features of timm's {name} are neither maps nor tokens; take another model")
    names = [key for key, _ in twin.named_parameters()]
    gradients = torch.autograd.grad(features.sum(), list(twin.parameters()), allow_unused=True)
    used = {key.split(".")[0] for key, gradient in zip(names, gradients, strict=True) if gradient is not None}
    for key, child in list(model.named_children()):
        if key not in used and next(child.parameters(), None) is not None:
            setattr(model, key, nn.Identity())
    if features.ndim == 3:
        has_class = getattr(model, "cls_token", None) is not None and _extra_tokens(model) > 0
        return "class_token" if has_class else "tokens", features.shape[2]
    channels = int(model.num_features)  # type: ignore[arg-type]
    return ("maps", channels) if features.shape[1] == channels else ("maps_last", features.shape[3])


def _blocks(model: nn.Module) -> list[nn.Module]:
    """The model's layers as timm groups them for layer-wise learning rates, without the stem."""
    if not hasattr(model, "group_matcher"):
        return []
    groups = group_parameters(model, model.group_matcher(coarse=True))  # type: ignore[operator]
    blocks: list[nn.Module] = []
    for number in sorted(groups)[1:]:
        owners = {key.rpartition(".")[0]: None for key in groups[number] if "." in key}
        blocks.append(nn.ModuleList(model.get_submodule(owner) for owner in owners))
    return blocks


def _run_maps(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    values = pixels["pixel_values"].contiguous(memory_format=torch.channels_last)  # a quarter less time on a CPU
    maps: Tensor = model.forward_features(values)  # type: ignore[operator]  # [B, D, H, W]
    return Tokens(maps.flatten(2).transpose(1, 2), None, None)


def _run_maps_last(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    maps: Tensor = model.forward_features(pixels["pixel_values"])  # type: ignore[operator]  # [B, H, W, D]
    return Tokens(maps.flatten(1, 2), None, None)


def _run_tokens(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    tokens: Tensor = model.forward_features(pixels["pixel_values"])  # type: ignore[operator]  # [B, N, D]
    return Tokens(tokens[:, _extra_tokens(model) :], None, None)


def _run_class_token(model: nn.Module, pixels: Mapping[str, Tensor]) -> Tokens:
    tokens: Tensor = model.forward_features(pixels["pixel_values"])  # type: ignore[operator]  # [B, N, D]
    return Tokens(tokens[:, _extra_tokens(model) :], None, tokens[:, 0])


def _extra_tokens(model: nn.Module) -> int:
    """How many tokens come before those of the patches."""
    return int(getattr(model, "num_prefix_tokens", 0))


_RUN = {
    "maps": Run(_run_maps, has_summary=False),
    "maps_last": Run(_run_maps_last, has_summary=False),
    "tokens": Run(_run_tokens, has_summary=False),
    "class_token": Run(_run_class_token, has_summary=True),
}


def _use_checkpointing(model: nn.Module) -> None:
    try:
        model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
    except (AssertionError, AttributeError):
        raise UserError(
            f"train.gradient_checkpointing: timm cannot do that with {type(model).__name__}; set it to false"
        ) from None
