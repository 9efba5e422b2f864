"""The network of a window: made of a run or an export again, and asked by the segmenter, whatever computes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlcore.run.networks import Eager, Network, Signature
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from quartet.apps.sam_med3d_ich.config import SamMed3DConfig
from quartet.apps.sam_med3d_ich.model.ich import Answer, IchModel, IchNetwork
from quartet.apps.sam_med3d_ich.restore import make_model

__all__ = ["Windows", "describe", "make_module", "signature_of"]


def describe(run: RunCheckpoint[SamMed3DConfig]) -> dict[str, Any]:
    """What the scorer of a run needs beside its network: plain values."""
    with of_this_version(run.path):
        noted = {name: run.metadata[name] for name in ("model", "preprocessing", "inference", "prompted")}
        return {**noted, "prompted": bool(noted["prompted"]), "array_spacing": run.config.data.array_spacing}


def make_module(about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network of a window, see `IchNetwork`."""
    own = {
        name.removeprefix("model."): value for name, value in weights.items()
    }  # in exports they are the wrapped model's
    return IchNetwork(rebuild(lambda: make_model(about), own, source=source), prompted=about["prompted"]).eval()


def signature_of(about: Mapping[str, Any]) -> Signature:
    """Inputs and outputs of the network: a window, and for a model of clicks those in it."""
    return _signature(about, prompted=about["prompted"])


def _signature(about: Mapping[str, Any], *, prompted: bool) -> Signature:
    side = about["model"]["shape"]["image_size"]
    window = ("batch", 1, side, side, side)
    clicks = {"positions": ("batch", "clicks", 3), "labels": ("batch", "clicks")} if prompted else {}
    return Signature(inputs={"image": window, **clicks}, outputs={"masks": window, "ich": ("batch",)})


class Windows:
    """A `WindowModel` that a network computes.

    Args:
        about: What `describe` gave.
        network: As `signature_of` has it.
    """

    device = torch.device("cpu")

    def __init__(self, about: Mapping[str, Any], network: Network) -> None:
        self.side: int = about["model"]["shape"]["image_size"]
        self._network = network
        self._clicking: Network | None = network
        if not about["prompted"]:
            own = isinstance(network, Eager) and isinstance(getattr(network.module, "model", None), IchModel)
            self._clicking = _with_clicks(about, network) if own else None

    @property
    def takes_clicks(self) -> bool:
        """Whether it can; a program without clicks and a UNet cannot."""
        return self._clicking is not None

    def __call__(self, image: Tensor) -> Answer:
        """Answer windows [B, 1, S, S, S]."""
        found = self._network({"image": image})
        return Answer(found["masks"], found["ich"])

    def after_clicks(self, image: Tensor, positions: Tensor, labels: Tensor) -> Answer:
        """See `WindowModel`."""
        assert self._clicking is not None  # noqa: S101 - asked before
        found = self._clicking({"image": image, "positions": positions, "labels": labels})
        return Answer(found["masks"], found["ich"])


def _with_clicks(about: Mapping[str, Any], network: Any) -> Network:
    """The same network for clicks, which it was not trained with."""
    clicking: Network = network.of(IchNetwork(network.module.model, prompted=True), _signature(about, prompted=True))
    return clicking
