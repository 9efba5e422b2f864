"""From JPEG files to the network's input: our decoding, augmentation and processing beside torchvision's.

python -m benchmarks.ads_images            about six minutes
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from benchmarks.common import Goal, Options, Report, alternate, median_text, ratio, ratio_text, run_alone, seconds
from mlcore.data.loader import BatchLoader
from mlcore.data.order import EpochOrder
from quartet.apps.multimodal_ads.data.augment import Augmentation
from quartet.apps.multimodal_ads.data.batches import Pixels, SampleSource, collate
from quartet.apps.multimodal_ads.data.table import AdRow
from quartet.apps.multimodal_ads.vision.processors import HubProcessor
from quartet.apps.multimodal_ads.vision.published import PUBLISHED

Strength = Literal["none", "weak", "strong"]

_BATCH, _SIDE = 16, 224
_NETWORK = "google/siglip2-base-patch16-224"
_METHOD = (
    f"Drawn JPEGs (quality 88) are read, augmented at full size, resized to {_SIDE} x {_SIDE} (bilinear, antialiased), "
    f"normalised and put into batches of {_BATCH}, as `{_NETWORK}` takes them; one thread in each process, 0 workers "
    "(all in the training process) or 2. Images per second over whole epochs, median (smallest..largest); ratios are "
    "of the same round, above 1 means that ours is faster; they are those of our reduced way, which decodes files at "
    f"1/2 or 1/4 of their size where that is at least {_SIDE} pixels (`--decode_side {_SIDE}`). torchvision: "
    "`ImageFolder` with transforms v2, once on Pillow images (its default loader) and once on tensors "
    "(`decode_image`). Its transforms are set to ours: weak is affine and brightness/contrast, strong adds "
    "perspective, colour, grey, blur, JPEG and erasing, with the same probabilities and ranges."
)


@dataclass(frozen=True)
class _Case:
    """Pictures of one size, augmented in one way, read by `workers` processes."""

    width: int
    height: int
    images: int
    strength: Strength
    workers: int

    @property
    def title(self) -> str:
        return f"{self.width} x {self.height}, {self.strength}, {self.workers} workers"


_CASES = [
    _Case(width, height, images, strength, workers)
    for width, height, images in ((1000, 1400, 48), (640, 480, 96))
    for strength in ("none", "weak", "strong")
    for workers in (0, 2)
]
_QUICK = [_Case(320, 240, 16, "weak", workers) for workers in (0, 2)]
_PEERS = ("torchvision, Pillow", "torchvision, tensors")
_FASTER = 2.0


def measure(options: Options) -> Report:
    """Every case, pipelines in turns."""
    torch.set_num_threads(1)
    rounds = 1 if options.quick else 5
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in _QUICK if options.quick else _CASES:
            found[case.title] = _measure_case(case, _draw(case, Path(folder)), rounds=rounds)
            print(f"{case.title}: {found[case.title]}", flush=True)
    rows, goals = [], []
    for title, rates in found.items():
        cells = [median_text(rates[name]) for name in ("ours", "ours, reduced", *_PEERS)]
        rows.append([title, *cells, *(ratio_text(rates["ours, reduced"], rates[name]) for name in _PEERS)])
    for name, augmented in product(_PEERS, (True, False)):
        ratios = {
            title: ratio(rates["ours, reduced"], rates[name])[0]
            for title, rates in found.items()
            if (", none," not in title) is augmented
        }
        if not ratios:
            continue
        worst = min(ratios, key=lambda title: ratios[title])
        measured = f"{ratios[worst]:.2f} to {max(ratios.values()):.2f} times, the least with {worst}"
        said = f"{'augmented' if augmented else 'as they are'}: at least {_FASTER:g} times as fast as {name}"
        goals.append(Goal(said, measured, ratios[worst] >= _FASTER))
    return Report(
        title="Reading and augmenting pictures",
        method=_METHOD,
        header=["pictures", "ours", "ours, reduced", *_PEERS, *(f"reduced / {name}" for name in _PEERS)],
        rows=rows,
        goals=goals,
        notes=[
            "Ours also checks each file's header against a size limit, turns pictures as their EXIF data say, makes "
            "the same pixels for any number of workers, and repeats edges where torchvision fills with black. It draws "
            "noise or blur where torchvision's only blurs, and hides parts at full size.",
            "Without augmentation the distance to tensors is the decoding: Pillow, which reads every format alike, "
            "keeps four bytes of a pixel and hands them over in a copy. `decode_image` leaves checks and damaged files "
            "to its caller.",
        ],
        raw=found,
    )


def _measure_case(case: _Case, folder: Path, *, rounds: int) -> dict[str, list[float]]:
    ours = {name: _ours(case, folder, side) for name, side in (("ours", None), ("ours, reduced", _SIDE))}
    pipelines = {**ours, **_torchvision(case, folder)}
    sides = {name: lambda epoch=epoch: case.images / seconds(epoch) for name, epoch in pipelines.items()}
    alternate(sides, rounds=1)  # the workers' start
    return alternate(sides, rounds=rounds)


def _draw(case: _Case, root: Path) -> Path:
    """Smooth colours with a little noise, in the two folders that `ImageFolder` wants; about 2 bits a pixel."""
    folder = root / f"{case.width}x{case.height}"
    rng = np.random.default_rng(0)
    for number in range(0 if folder.exists() else case.images):
        path = folder / ("ad", "other")[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (case.height // 20, case.width // 20, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((case.width, case.height), Image.Resampling.BICUBIC)
        noise = rng.integers(-6, 7, (case.height, case.width, 1))
        Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=88)
    return folder


# ---------------------------------------------------------------------------------------------------------------- ours


def _ours(case: _Case, folder: Path, decode_side: int | None) -> Callable[[], None]:
    rows = [AdRow(path, path.parent.name == "ad", "", path.name) for path in sorted(folder.glob("*/*.jpg"))]
    loader = BatchLoader(
        SampleSource(rows, max_pixels=10**8, decode_side=decode_side),
        EpochOrder(size=len(rows), batch_size=_BATCH),
        transform=None if case.strength == "none" else Augmentation(case.strength),
        prepare=Pixels(HubProcessor("siglip2", PUBLISHED[_NETWORK].processor)),
        collate=collate,
        num_workers=case.workers,
    )
    epochs = count()
    return lambda: _exhaust(loader.epoch(next(epochs)))


def _exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


# --------------------------------------------------------------------------------------------------------- torchvision


def _torchvision(case: _Case, folder: Path) -> Mapping[str, Callable[[], None]]:
    pillow = v2.Compose([*_changes(case.strength), v2.Resize((_SIDE, _SIDE)), v2.ToImage(), *_finish(case.strength)])
    tensors = v2.Compose([*_changes(case.strength), v2.Resize((_SIDE, _SIDE)), *_finish(case.strength)])
    datasets = (ImageFolder(folder, pillow), ImageFolder(folder, tensors, loader=_decode))
    loaders = [
        DataLoader(data, _BATCH, shuffle=True, num_workers=case.workers, persistent_workers=case.workers > 0)
        for data in datasets
    ]
    return {name: partial(_exhaust, loader) for name, loader in zip(_PEERS, loaders, strict=True)}


def _decode(path: str) -> Any:
    return decode_image(path, mode="RGB")


def _changes(strength: Strength) -> list[Any]:
    """What happens at full size, on Pillow images and tensors alike."""
    smooth = v2.InterpolationMode.BILINEAR
    if strength == "none":
        return []
    if strength == "weak":
        affine = v2.RandomAffine(3, translate=(0.04, 0.04), scale=(0.95, 1.05), interpolation=smooth)
        return [v2.RandomApply([affine], 0.8), v2.RandomApply([v2.ColorJitter(0.1, 0.1)], 0.8)]
    affine = v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=(-5, 5, -5, 5), interpolation=smooth)
    return [
        v2.RandomApply([affine], 0.9),
        v2.RandomPerspective(0.1, p=0.3),
        v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.4, 0.04)], 0.8),
        v2.RandomGrayscale(0.05),
        v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.5))], 0.3),
        v2.RandomApply([v2.JPEG((35, 90))], 0.4),
    ]


def _finish(strength: Strength) -> list[Any]:
    finish: list[Any] = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
    return [*finish, v2.RandomErasing(p=0.3, scale=(0.0025, 0.09))] if strength == "strong" else finish


if __name__ == "__main__":
    run_alone(measure)
