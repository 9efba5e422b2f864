"""What timm, or a folder that timm wrote, says of a model: architecture, normalisation, where its weights are."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from mlcore.base.errors import UserError
from mlcore.remote.hub import find_model, plain_arguments, read_json, read_weights
from mlcore.remote.model_folder import check_model_folder
from mlcore.remote.packaged import packaged
from quartet.apps.doc_ensemble.config import LAYOUT, TEXT

__all__ = ["SETTING", "Published", "check_name", "describe", "read_published_weights"]

SETTING = "model.model_name"

_WAY_OUT = (
    "Or take model=efficientnet_lite0, whose weights come with the requirements, or set model.pretrained=false to "
    "start at random."
)
_DECIDED_HERE = ("drop_path_rate", "drop_rate", "img_size", "in_chans", "num_classes")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model as it was published.

    Attributes:
        name: As it was asked for: a name in timm, or a folder.
        folder: Where it lies; None for a name in timm.
        architecture: Its name in timm, with the tag where one was given.
        arguments: Arguments of the architecture that differ from timm's, plain values.
        classes: Outputs of its published classifier; 0 for none.
        input_size: Channels, height and width it was published for.
        mean: Per channel, of values in 0..1; training data were normalised with it.
        std: Per channel.
        fixed_size: Whether the architecture is built for one input size.
    """

    name: str
    folder: Path | None
    architecture: str
    arguments: Mapping[str, Any]
    classes: int
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed_size: bool


def describe(name: str) -> Published:
    """Look a model up; nothing is loaded and the network is not asked.

    Args:
        name: A name in timm, such as "resnet50" or "vit_base_patch16_224.augreg_in21k", or a folder with the
            `config.json` that timm writes next to weights.

    Raises:
        UserError: There is no such model, or the folder's `config.json` is no description of one.
    """
    if name in (LAYOUT, TEXT):
        return _published(name, None, name, {"input_size": (1, 224, 224), "mean": (0,), "std": (1,)}, {})
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _of_folder(name, folder)
    if folder.is_file():
        raise UserError(f"{SETTING}: {name} is a file; expected the folder that holds config.json and the weights")
    check_name(name)
    known: Any = timm.get_pretrained_cfg(name)
    cfg = {} if known is None else known.to_dict()
    own = packaged(name)
    return _published(name, None, name, cfg if own is None else {**cfg, "mean": own.mean, "std": own.std}, {})


def check_name(name: object, *, where: str = SETTING) -> str:
    """`name` if timm knows it, tag included.

    Raises:
        UserError: It does not; similar names are listed.
    """
    if not isinstance(name, str) or not timm.is_model(name):
        close = difflib.get_close_matches(str(name), timm.list_models(), n=4, cutoff=0.5)
        hint = f"; similar: {', '.join(close)}" if close else ""
        raise UserError(f"{where}: timm has no model {name!r} and there is no such folder{hint}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        architecture = name.partition(".")[0]
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or "none"
        raise UserError(f"{where}: timm publishes no weights {name}; published of {architecture}: {known}") from None
    return name


def read_published_weights(published: Published) -> dict[str, Tensor]:
    """The published tensors by name, from the folder, an installed package, or the hub; nothing is executed.

    Raises:
        UserError: They cannot be had, or are damaged.
    """
    if published.folder is None and (own := packaged(published.name)) is not None:
        with torch.device("meta"):
            like = timm.create_model(published.architecture).state_dict()
        return own.read(like)
    if published.architecture in (LAYOUT, TEXT):
        raise UserError(f"{SETTING}={published.name} has no published weights; set model.pretrained=false")
    folder = published.folder or find_model(_hub_name(published.name), setting=SETTING, ways_out=_WAY_OUT)
    return read_weights(folder)


def _of_folder(name: str, folder: Path) -> Published:
    check_model_folder(folder)
    path = folder / "config.json"
    settings = read_json(path)
    architecture = check_name(settings.get("architecture"), where=f"{path}: architecture")
    cfg = settings.get("pretrained_cfg", {})
    if not isinstance(cfg, dict):
        raise UserError(f"{path}: pretrained_cfg must be an object")
    arguments = settings.get("model_args") or {}
    if isinstance(arguments, dict):
        arguments = {key: value for key, value in arguments.items() if key not in _DECIDED_HERE}
    arguments = plain_arguments(arguments, where=f"{path}: model_args")
    classes = settings.get("num_classes")
    cfg = {**cfg, **({"num_classes": classes} if classes is not None else {})}
    known: Any = timm.get_pretrained_cfg(architecture)
    return _published(name, folder, architecture, {**({} if known is None else known.to_dict()), **cfg}, arguments)


def _published(
    name: str, folder: Path | None, architecture: str, cfg: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Published:
    where = name if folder is None else folder / "config.json"
    try:
        channels, height, width = (int(value) for value in cfg.get("input_size") or (3, 224, 224))
        mean = tuple(float(value) for value in cfg.get("mean") or (0.485, 0.456, 0.406))
        std = tuple(float(value) for value in cfg.get("std") or (0.229, 0.224, 0.225))
        classes = int(1000 if cfg.get("num_classes") is None else cfg["num_classes"])
        if min(std, default=0.0) <= 0 or len(mean) != len(std) or classes < 0 or min(channels, height, width) < 1:
            raise ValueError
    except (TypeError, ValueError, LookupError):
        raise UserError(
            f"{where}: input_size, mean, std or num_classes make no sense; expected channels first, one positive std "
            "per mean, and a number of classes"
        ) from None
    return Published(
        name=name,
        folder=folder,
        architecture=architecture,
        arguments=arguments,
        classes=classes,
        input_size=(channels, height, width),
        mean=mean,
        std=std,
        fixed_size=bool(cfg.get("fixed_input_size")),
    )


def _hub_name(name: str) -> str:
    known: Any = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        some = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}*")[:4]) or "resnet50, convnext_tiny"
        raise UserError(f"{SETTING}: timm publishes no weights of {name} on the hub. {_WAY_OUT} Or take one of: {some}")
    hub_id = str(known.hf_hub_id)
    return hub_id + f"{known.architecture}.{known.tag}" if hub_id.endswith("/") else hub_id
