"""How a trained classifier of pages predicts: images, and all pages of TIFF and PDF files, to probabilities."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder
from mlcore.run.networks import Network, Signature
from mlcore.run.restore import RunCheckpoint, of_this_version, rebuild
from mlcore.run.scorer import ClassPrediction, Item, Shown, decision_of
from quartet.apps.doc_ensemble.config import TEXT, DocConfig
from quartet.apps.doc_ensemble.data.pages import PAGE_SUFFIXES, Page, page_count, read_page
from quartet.apps.doc_ensemble.data.upright import Upright
from quartet.apps.doc_ensemble.data.words import count_words
from quartet.apps.doc_ensemble.ensemble.members import InputFormat
from quartet.apps.doc_ensemble.ensemble.reading import prepare_page
from quartet.apps.doc_ensemble.model.classifier import make_model
from quartet.apps.doc_ensemble.restore import fit_of, upright_of

__all__ = ["DocScorer", "Pixels", "describe", "make_module", "make_scorer", "signature_of"]

Pixels = NDArray[np.uint8]

_SIDE = 320  # pixels, longer side of a picture in `--files`
_LONGEST = 60  # characters of a file's name


def describe(run: RunCheckpoint[DocConfig]) -> dict[str, Any]:
    """What the scorer of a run needs beside its network: plain values."""
    data, train = run.config.data, run.config.train
    with of_this_version(run.path):
        return {
            "class_names": [str(name) for name in run.metadata["class_names"]],
            "model": dict(run.metadata["model"]),
            "fit": fit_of(run),
            "upright": None if (upright := upright_of(run)) is None else upright.values,
            "max_megapixels": data.max_megapixels,
            "decode_side": data.decode_side,
            "batch_size": train.eval_batch_size or train.batch_size,
        }


def make_module(about: Mapping[str, Any], weights: Mapping[str, Tensor], source: Path) -> nn.Module:
    """The network: `pixels float32 [B, channels, height, width] in 0..1 -> logits [B, classes]`."""
    module = rebuild(lambda: make_model(about["model"]), weights, source=source)
    return module.to(memory_format=torch.channels_last)  # as in training


def signature_of(about: Mapping[str, Any]) -> Signature:
    """Inputs and outputs of the network."""
    model = about["model"]
    return Signature(
        inputs={"pixels": ("batch", model["in_channels"], *model["image_size"])},
        outputs={"logits": ("batch", len(about["class_names"]))},
    )


def make_scorer(about: Mapping[str, Any], network: Network, _options: Mapping[str, str]) -> "DocScorer":
    """The scorer of what `describe` gave."""
    return DocScorer(about, network)


class DocScorer:
    """A `mlcore.run.scorer.Scorer`; an item's content is a page, uint8 [H, W, 3], [H, W, 1] or [H, W]."""

    inputs: Mapping[str, Sequence[str]] = {"path": ("image", "path", "input", "file"), "page": ("page",)}
    suffixes: Sequence[str] = PAGE_SUFFIXES
    mean = staticmethod(ClassPrediction.mean)

    def __init__(self, about: Mapping[str, Any], network: Network) -> None:
        self.network = network
        self.class_names: tuple[str, ...] = tuple(about["class_names"])
        height, width = about["model"]["image_size"]
        known = about.get("upright")  # older exports have none
        upright = None if known is None else Upright.of(known)
        self.format = InputFormat(height, width, about["model"]["in_channels"], about["fit"], upright)
        if self.reads_text:
            self.inputs = {**self.inputs, "text": (TEXT,)}
        # How large a page may be, and how it is decoded, which older exports do not say.
        self._read = round(about["max_megapixels"] * 1e6), about.get("decode_side")
        self._decision = decision_of(about)
        self.columns = ClassPrediction.columns(self.class_names, self._decision)
        self.batch_size: int = about["batch_size"]

    @property
    def reads_text(self) -> bool:
        """Whether it looks at pages' texts, and not at pages."""
        return self.format.fit == TEXT

    def items(self, path: Path) -> Sequence[Item]:
        """All pages of a file."""
        if path.suffix.lower() not in self.suffixes:
            raise UserError(f"{path}: this model reads {', '.join(self.suffixes)}")
        pages = [Page(path, number) for number in range(page_count(path))]
        return [Item(page.key, path, page.number) for page in pages]

    def load(self, item: Item) -> Pixels:
        """The page as the network takes it, uint8 [height, width, channels]."""
        if self.reads_text:
            if TEXT not in dict(item.values):
                raise UserError(f"{item.name}: it reads pages' texts; give a table with the columns image and text")
            return count_words(item.value(TEXT))
        return prepare_page(self._page(item), self.format)

    def collate(self, samples: Sequence[Pixels]) -> Tensor:
        """Pages uint8 [B, height, width, channels], a quarter of what floats take on the way to the device."""
        return torch.from_numpy(np.stack(samples))

    def pixels(self, batch: Tensor) -> Tensor:
        """The same as float32 [B, channels, height, width] in 0..1."""
        pixels = batch.permute(0, 3, 1, 2).float().div_(255)
        return pixels.contiguous(memory_format=torch.channels_last)

    def predict(self, batch: Tensor) -> list[ClassPrediction]:
        """Probabilities of the classes, and classes at the run's decision."""
        chances = torch.softmax(self.network({"pixels": self.pixels(batch)})["logits"], dim=1).double().numpy()
        return ClassPrediction.of_batch(chances, self.class_names, self._decision)

    def examples(self) -> list[dict[str, Tensor]]:
        """Random pages: two, one, three."""
        generator, shape = torch.Generator().manual_seed(0), self.format
        return [
            {"pixels": torch.rand(count, shape.channels, shape.height, shape.width, generator=generator)}
            for count in (2, 1, 3)
        ]

    def save(self, item: Item, prediction: ClassPrediction, folder: Path) -> None:
        """A small picture of the page in a folder of its class, its name beginning with the probability."""
        picture = Image.fromarray(self._page(item))
        picture.thumbnail((_SIDE, _SIDE))
        inside = ensure_folder(folder / _plain(prediction.predicted))
        known = hashlib.blake2b(f"{item.path}\0{item.part}".encode(errors="surrogateescape"), digest_size=4)
        name = f"{prediction.probability:.3f}_{_plain(Path(item.name).name)}_{known.hexdigest()}.jpg"
        with atomic_write(inside / name) as file:
            picture.save(file, "JPEG", quality=85)

    def show(self, item: Item, prediction: ClassPrediction) -> Shown:
        """The page."""
        return prediction.shown(pictures=[self._page(item)])

    def _page(self, item: Item) -> Pixels:
        """In colour, uint8 [H, W, 3]."""
        if item.content is not None:
            image = np.asarray(item.content, dtype=np.uint8)
            image = image[..., None] if image.ndim == 2 else image
            return image if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
        if item.path is None:
            raise UserError(f"{item.name}: names no file; expected one in the column image")
        found = item.path.stat() if item.path.is_file() else None
        state = None if found is None else (found.st_size, found.st_mtime_ns)
        return _decoded(item.path, item.part, *self._read, state)


@lru_cache(maxsize=1)
def _decoded(
    path: Path, number: int, max_pixels: int, decode_side: int | None, _state: tuple[int, int] | None
) -> Pixels:
    """A page; runs that are averaged ask for it one after another. A file that was changed is another one."""
    image = read_page(path, number, max_pixels=max_pixels, decode_side=decode_side)
    image.flags.writeable = False
    return image


def _plain(text: str) -> str:
    """What can be the name of a file or folder: the end of a text, of letters, digits, dots and dashes."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[-_LONGEST:] or "page"
