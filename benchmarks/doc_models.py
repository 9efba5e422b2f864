"""Pages and members for the benchmarks of the document classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from quartet.apps.doc_ensemble.data.generated import TYPES, draw_page
from quartet.apps.doc_ensemble.data.pages import Page
from quartet.apps.doc_ensemble.model.classifier import DocClassifier, create_model, make_model

IMAGE_SIZE = (256, 192)

PageKind = Literal["384", "a4", "a4_png"]

TITLES: dict[PageKind, str] = {
    "384": "JPEG, 384 pixels high",
    "a4": "JPEG, A4 at 150 dpi",
    "a4_png": "PNG, A4 at 150 dpi",
}


def write_pages(folder: Path, kind: PageKind, count: int) -> list[Page]:
    """Drawn pages of all types in turn, as grey scans in a folder for each type; those that are there stay."""
    pages = []
    for number in range(count):
        label = number % len(TYPES)
        path = folder / kind / TYPES[label] / f"{number:05d}.{'png' if kind == 'a4_png' else 'jpg'}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = draw_page(TYPES[label], np.random.default_rng(number))
            size = (round(drawn.width * 1.5), 384) if kind == "384" else (1240, 1754)
            drawn.resize(size, Image.Resampling.BICUBIC).save(path, quality=85)
        pages.append(Page(path, label=label, origin=kind))
    return pages


@dataclass(frozen=True, kw_only=True)
class Random:
    """A member with random weights, kept in a file as trained ones are.

    Attributes:
        name: Of the member.
        model_name: In timm.
        path: Its weights.
    """

    name: str
    model_name: str
    path: Path
    image_size: tuple[int, int] = IMAGE_SIZE
    in_channels: int = 1
    fit: Literal["letterbox", "resize"] = "resize"
    class_names: tuple[str, ...] = TYPES

    def load(self, device: torch.device) -> DocClassifier:
        """The network as it would come from a checkpoint."""
        state = torch.load(self.path, weights_only=True, map_location="cpu")
        model = make_model(state["metadata"])
        model.load_state_dict(state["weights"])
        return model.eval().to(device)


def write_member(folder: Path, model_name: str, number: int) -> Random:
    """Draw the weights of a member and keep them; its answers are made so different that classes mean something."""
    torch.manual_seed(number)
    model = create_model(model_name, class_names=TYPES, pretrained=False, image_size=IMAGE_SIZE, in_channels=1)
    model.classifier.weight.data.mul_(10)
    path = folder / f"member{number}.pt"
    torch.save({"metadata": model.metadata, "weights": model.state_dict()}, path)
    return Random(name=f"{model_name}_{number}", model_name=model_name, path=path)
