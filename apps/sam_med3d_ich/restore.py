"""From the configuration, or from a checkpoint, to a segmenter: what training and prediction both begin with."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mlcore.run.decision import Decision
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from quartet.apps.sam_med3d_ich.config import UNET, DataConfig, ModelConfig, SamMed3DConfig
from quartet.apps.sam_med3d_ich.data.preprocess import WINDOWS, Preprocessing
from quartet.apps.sam_med3d_ich.model.encoder import EncoderShape
from quartet.apps.sam_med3d_ich.model.ich import IchModel
from quartet.apps.sam_med3d_ich.model.sam import PRESETS
from quartet.apps.sam_med3d_ich.model.unet import UNetModel
from quartet.apps.sam_med3d_ich.segmentation import Segmenter, WindowModel

Model = IchModel | UNetModel


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained segmenter with what belongs to it.

    Attributes:
        model: In evaluation mode on the chosen device.
        segmenter: It, ready to use.
        prompted: Trained with clicks: it expects some.
        config: The training run's configuration.
    """

    model: Model
    segmenter: Segmenter
    prompted: bool
    config: SamMed3DConfig


def describe(config: SamMed3DConfig) -> dict[str, Any]:
    """Plain values from which `make_model` and `make_segmenter` build; checkpoints carry them."""
    if config.model.model_type == "unet":
        model: dict[str, Any] = {"network": "unet", "shape": {"image_size": config.model.image_size or UNET[0]}}
    else:
        model = {"shape": asdict(encoder_shape(config.model)), "visual_tokens": config.model.visual_tokens}
        model |= {"refined": True} if config.model.refine_masks else {}
    return {
        "model": model,
        "preprocessing": asdict(preprocessing(config.data)),
        "inference": config.inference.model_dump(),
        "prompted": config.objective.prompt_mode == "clicks",
    }


def encoder_shape(config: ModelConfig) -> EncoderShape:
    """The preset with the sizes that the configuration overrides."""
    changes = {key: getattr(config, key) for key in ("image_size", "patch_size") if getattr(config, key) is not None}
    return replace(PRESETS[config.model_type], **changes)


def preprocessing(config: DataConfig) -> Preprocessing:
    """How volumes are made alike."""
    custom = (config.window_level, config.window_width)
    window = custom if config.window == "custom" else WINDOWS[config.window]
    return Preprocessing(spacing=config.spacing, window=window, normalize=config.normalize)


def make_model(metadata: Mapping[str, Any], **options: Any) -> Model:
    """The network that `describe` describes.

    Args:
        metadata: What `describe` returned.
        **options: Those of `IchModel` that matter only in training.
    """
    if metadata["model"].get("network") == "unet":
        return UNetModel(metadata["model"]["shape"]["image_size"])
    shape = {**metadata["model"]["shape"], "global_blocks": tuple(metadata["model"]["shape"]["global_blocks"])}
    return IchModel(
        EncoderShape(**shape),
        visual_tokens=metadata["model"]["visual_tokens"],
        prompted=metadata["prompted"],
        refined=bool(metadata["model"].get("refined", False)),
        **options,
    )


def make_segmenter(metadata: Mapping[str, Any], model: WindowModel, decision: Decision | None = None) -> Segmenter:
    """A segmenter with the settings that `describe` noted, at the decision of its run where there is one."""
    given: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in metadata["preprocessing"].items()
    }
    noted = dict(metadata["inference"])
    if decision is not None:
        noted |= {"threshold": decision.threshold, "min_volume_ml": decision.min_volume_ml}
    return Segmenter(model=model, preprocessing=Preprocessing(**given), **noted)


def restored(read: RunCheckpoint[SamMed3DConfig], *, device: torch.device) -> Restored:
    """The model of a checkpoint that is read, on `device`.

    Raises:
        CheckpointError: No model can be built of what it notes.
    """
    model = rebuild(lambda: make_model(read.metadata), read.weights, source=read.path).to(device)
    decision = read.decision
    with of_this_version(read.path):
        segmenter = make_segmenter(read.metadata, model, decision)
        prompted = bool(read.metadata["prompted"])
    return Restored(model=model, segmenter=segmenter, prompted=prompted, config=read.config)
