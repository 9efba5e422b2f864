"""Released and fine-tuned SAM-Med3D weights: from a file or the Hugging Face hub into a model, strictly."""

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlcore.base.errors import UserError
from mlcore.training.checkpoint import (
    CheckpointError,
    bare_weights,
    inference_weights,
    load_checkpoint,
    load_model_weights,
    unknown_prefix,
)

_log = logging.getLogger(__name__)

HUB_REPOSITORY = "blueyo0/SAM-Med3D"
HUB_FILE = "sam_med3d_turbo.pth"


def fetch_released() -> Path:
    """The released checkpoint: the file that SAM_MED3D_WEIGHTS names, or from the Hugging Face hub or its cache.

    Raises:
        UserError: It is not cached and the hub cannot be reached.
    """
    named = os.environ.get("SAM_MED3D_WEIGHTS")
    if named:
        return Path(named)
    from huggingface_hub import hf_hub_download  # slow to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(HUB_REPOSITORY, HUB_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the released weights {HUB_REPOSITORY}/{HUB_FILE} cannot be fetched from the Hugging Face hub ({reason}). "
            "Download the file elsewhere and give --weights FILE (or set SAM_MED3D_WEIGHTS), "
            "or start from random weights with --weights none"
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint, whoever wrote it; nothing in the file is executed.

    Takes the released file (`model_state_dict`), this app's checkpoints, and state dicts in whatever people wrap them
    in (`bare_weights`), whose names may begin with `sam_model.`, `model.` or `sam.`. Fine-tuned files of the released
    code also hold an `argparse.Namespace`, which is let through and dropped.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe or holds no weights.
    """
    state = load_checkpoint(path, allow=[argparse.Namespace])
    if "model" in state and "engine" in state:  # a checkpoint of this app; averaged weights where there are some
        state = inference_weights(state, source=path)
        weights = {key: value for key, value in state.items() if key.startswith("sam.")}
    else:
        weights = state
    weights = bare_weights(weights, prefixes=("module", "model", "sam_model", "sam"))
    if not weights:
        raise CheckpointError(
            f"{path}: holds no SAM-Med3D weights (keys found: {', '.join(map(str, list(state)[:8]))}); expected a "
            "state dict, or one under 'model_state_dict', 'state_dict' or 'model'"
        )
    return weights


def load_weights(
    model: nn.Module, weights: Mapping[str, Tensor], *, source: Path | str, allow_partial: bool = False
) -> list[str]:
    """Load weights, strictly unless told otherwise.

    Args:
        model: Whose parameters are set.
        weights: Under the model's names.
        source: For messages.
        allow_partial: Load what fits by name and shape; the rest keeps its values.

    Returns:
        What was left out, one line for each; empty after a full load.

    Raises:
        CheckpointError: Names or shapes differ (and `allow_partial` is false), or nothing fits at all.
    """
    own = model.state_dict()
    if not allow_partial:
        try:
            load_model_weights(model, weights, source=source)
        except CheckpointError as error:
            raise CheckpointError(f"{error}\n--allow_partial_weights loads what fits") from None
        return []
    fits = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
    if not fits:
        prefix = unknown_prefix(own, weights)
        why = f": all names begin with an unknown '{prefix}', save the weights again without it" if prefix else ""
        raise CheckpointError(f"{source}: not one tensor fits this model by name and shape{why}")
    model.load_state_dict({**own, **fits})
    left_out = [f"{key}: not in the file" for key in own if key not in weights]
    left_out += [f"{key}: not in the model" for key in weights if key not in own]
    left_out += [
        f"{key}: {list(weights[key].shape)} in the file, {list(own[key].shape)} in the model"
        for key in own
        if key in weights and key not in fits
    ]
    return left_out


def resize_tables(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights whose position tables are interpolated to the model's grid, for image sizes other than the trained one.

    Absolute positions [1, g, g, g, C] are interpolated trilinearly, relative ones [2g - 1, c] linearly. The result is
    a start for fine-tuning, not the released model; a warning names the tables.
    """
    own = model.state_dict()
    result = dict(weights)
    changed = []
    for key, value in weights.items():
        if key not in own or own[key].shape == value.shape:
            continue
        if key.endswith("pos_embed") and value.ndim == own[key].ndim:
            size = own[key].shape[1:4]
            table = F.interpolate(value.permute(0, 4, 1, 2, 3).float(), size=size, mode="trilinear").movedim(1, -1)
        elif ".rel_pos_" in key and value.ndim == own[key].ndim:
            table = F.interpolate(value.T[None].float(), size=len(own[key]), mode="linear")[0].T
        else:
            continue
        if table.shape == own[key].shape:
            result[key] = table.to(value.dtype)
            changed.append(key)
    if changed:
        _log.warning(
            "position tables (%d) were interpolated to another image size: the model is no longer the released one "
            "until it is fine-tuned (%s ...)",
            len(changed),
            changed[0],
        )
    return result


def encoder_state(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's part of a SAM-Med3D state dict, under the encoder's own names."""
    prefix = "image_encoder."
    return {key.removeprefix(prefix): torch.clone(v) for key, v in weights.items() if key.startswith(prefix)}
