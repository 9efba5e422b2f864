"""Four members and six views of pages, our one pass beside each member's own DataLoader.

python -m benchmarks.doc_inference            about ten minutes on two cores
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import Goal, Options, Report, alternate, median_text, ratio, ratio_text, run_alone, seconds
from benchmarks.doc_models import IMAGE_SIZE, TITLES, PageKind, Random, write_member, write_pages
from mlcore.training.engine import autocast_dtype
from quartet.apps.doc_ensemble.data.dataset import Fit
from quartet.apps.doc_ensemble.data.pages import Page, read_page
from quartet.apps.doc_ensemble.ensemble.inference import PagePredictions, Pages, predict_pages
from quartet.apps.doc_ensemble.ensemble.reading import document_pages
from quartet.apps.doc_ensemble.ensemble.views import View, ViewKind, with_identity

_BATCH, _MAX_PIXELS = 32, 10**8
_READERS = 8 if torch.cuda.is_available() else 2
_VIEWS = (
    ViewKind(type="horizontal_flip", probability=0.5),
    ViewKind(type="rotation", degrees=(90, 180)),
    ViewKind(type="multi_scale", scales=(0.9, 1.1)),
)
_LIGHT = ("test_resnet", "test_efficientnet", "test_convnext2", "test_vit")
_HEAVY = ("resnet18",) * 4
_PEERS = {"a pass per member": "member", "a pass per member and view": "view"}
_AUTO = "ours, auto"
_AT_LEAST = 2.0


@dataclass(frozen=True)
class _Case:
    """An ensemble and the pages that it predicts."""

    ensemble: str
    models: tuple[str, ...]
    kind: PageKind
    pages: int
    peers: tuple[str, ...] = tuple(_PEERS)

    @property
    def title(self) -> str:
        return f"{self.ensemble}; {TITLES[self.kind]}"


_CASES = (
    _Case("light", _LIGHT, "384", 96),
    _Case("light", _LIGHT, "a4", 32),
    _Case("light", _LIGHT, "a4_png", 32),
    _Case("heavy", _HEAVY, "384", 16, ("a pass per member",)),
    _Case("heavy", _HEAVY, "a4", 16, ("a pass per member",)),
)
_QUICK = (_Case("light", _LIGHT, "384", 34), _Case("light", _LIGHT, "a4", 17))


def measure(options: Options) -> Report:
    """Every case, sides in turns."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = 1 if options.quick else 3
    found: dict[str, dict[str, list[float]]] = {}
    spent: dict[str, tuple[float, float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in _QUICK if options.quick else _CASES:
            members = [write_member(Path(folder), name, number) for number, name in enumerate(case.models)]
            pages = write_pages(Path(folder), case.kind, case.pages)
            spent[case.title] = _check(case, members, pages, device)
            found[case.title] = alternate(_sides(case, members, pages, device), rounds=rounds)
            print(f"{case.title}: {found[case.title]}", flush=True)
    return _report(found, spent, device)


def _report(
    found: dict[str, dict[str, list[float]]], spent: dict[str, tuple[float, float, float]], device: torch.device
) -> Report:
    rows = []
    first = next(iter(_PEERS))
    for title, rates in found.items():
        cells = [median_text(rates[name]) if name in rates else "" for name in ("ours", _AUTO, *_PEERS)]
        ratios = [ratio_text(rates["ours"], rates[name]) if name in rates else "" for name in _PEERS]
        ratios.append(ratio_text(rates[_AUTO], rates[first]) if _AUTO in rates else "")
        reading, networks, _ = spent[title]
        rows.append([title, *cells, *ratios, f"{1000 * reading:.1f}", f"{1000 * networks:.1f}"])
    goals = []
    for title, rates in found.items():
        for name in (name for name in ("ours", _AUTO) if name in rates):
            value = ratio(rates[name], rates[first])[0]
            said = f"{title}: {name} at least {_AT_LEAST:.0f} times {first}"
            goals.append(Goal(said, f"{value:.2f}", value >= _AT_LEAST))
    reduced = autocast_dtype("auto", device)
    farthest = max(difference for *_, difference in spent.values())
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return Report(
        title="An ensemble with views, one pass",
        method=(
            f"{where}, fp32; auto: `--precision auto`, {reduced or 'fp32 here, left out'}. Four members "
            f"with random weights at {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}, grey, each on six views of every page: as "
            "it is, flipped, turned by 90 and 180 degrees, scaled by 0.9 and 1.1. Light: "
            f"{', '.join(_LIGHT)} of timm, which cost about what reading a page costs; heavy: four resnet18. Ours: "
            "`predict_pages`, which reads each page once. The naive ways: each member has a DataLoader over the files, "
            "and a wrapper that makes the views of a batch and averages nothing, as ttach does; or a pass of the "
            "DataLoader for every view of every member. All sides read with the same functions, in "
            f"{_READERS} workers (threads, processes), in batches of {_BATCH}, with inference_mode and channels_last; "
            "weights are loaded from files in the time that is measured. Before, all probabilities are compared. Pages "
            "per second, median (smallest..largest); ratios are of the same round."
        ),
        header=[
            "ensemble; pages",
            "ours",
            _AUTO,
            *_PEERS,
            *(f"ours / {name}" for name in _PEERS),
            f"auto / {first}",
            "ours: reading, ms/page",
            "ours: networks, ms/page",
        ],
        rows=rows,
        goals=goals,
        notes=[
            "All probabilities of all sides in fp32 agree within 1e-5, and all classes are the same; those of auto are "
            f"at most {farthest:.1e} from them.",
            "Reading is what one page costs a thread, divided by the threads; where it and the networks share the same "
            "cores, both are longer than alone. What is gained is the reading: a heavy ensemble on a CPU gains little.",
        ],
        raw={"rates": found, "seconds": spent},
    )


def _sides(
    case: _Case, members: Sequence[Random], pages: Sequence[Page], device: torch.device
) -> dict[str, Callable[[], float]]:
    views = with_identity(_VIEWS)
    sides: dict[str, Callable[[], object]] = {"ours": partial(_ours, members, pages, views, device, "fp32")}
    if autocast_dtype("auto", device) is not None:
        sides[_AUTO] = partial(_ours, members, pages, views, device, "auto")
    for name in case.peers:
        passes = [views] if _PEERS[name] == "member" else [(view,) for view in views]
        sides[name] = partial(_naive_passes, members, pages, passes, device)
    return {name: partial(_rate, side, len(pages)) for name, side in sides.items()}


def _rate(side: Callable[[], object], pages: int) -> float:
    return pages / seconds(side)


def _check(
    case: _Case, members: Sequence[Random], pages: Sequence[Page], device: torch.device
) -> tuple[float, float, float]:
    """That all sides say the same; seconds per page of our pass for reading and networks, and how far auto is away."""
    views = with_identity(_VIEWS)
    predicted = _ours(members, pages, views, device, "fp32")
    ours, naive = predicted.probabilities, _naive(members, pages, views, device)
    difference = float(np.abs(ours - naive).max())
    if difference > 1e-5 or (ours.argmax(axis=-1) != naive.argmax(axis=-1)).any():
        raise RuntimeError(f"{case.title}: the sides do not agree, the largest difference is {difference:.1e}")
    away = float(np.abs(ours - _ours(members, pages, views, device, "auto").probabilities).max())
    return predicted.reading_seconds, float(predicted.member_seconds.sum()), away


def _pages(members: Sequence[Random], pages: Sequence[Page]) -> Pages[Page]:
    return document_pages(pages, members, max_pixels=_MAX_PIXELS, workers=_READERS)


def _ours(
    members: Sequence[Random],
    pages: Sequence[Page],
    views: Sequence[View],
    device: torch.device,
    precision: Literal["fp32", "auto"],
) -> PagePredictions:
    asked = _pages(members, pages)
    return predict_pages(members, asked, views=views, device=device, batch_size=_BATCH, precision=precision)


# ------------------------------------------------------------------------------------------------------- the naive way


class _Images(Dataset[Tensor]):
    """Pages as float32 [1, H, W] in 0..1."""

    def __init__(self, pages: Sequence[Page], size: tuple[int, int]) -> None:
        self.pages, self.fit = pages, Fit(size)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, index: int) -> Tensor:
        page = self.pages[index]
        image = self.fit(read_page(page.path, page.number, max_pixels=_MAX_PIXELS, grey=True))
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255


class _Views(torch.nn.Module):
    """Asks a network about every view of a batch: probabilities [V, B, C]."""

    def __init__(self, network: torch.nn.Module, views: Sequence[View]) -> None:
        super().__init__()
        self.network, self.views = network, views

    def forward(self, pixels: Tensor) -> Tensor:
        found = [self.network(view.apply(pixels).contiguous(memory_format=torch.channels_last)) for view in self.views]
        return torch.softmax(torch.stack(found), dim=2)


def _naive_passes(
    members: Sequence[Random], pages: Sequence[Page], passes: Sequence[Sequence[View]], device: torch.device
) -> list[NDArray[np.float32]]:
    return [_naive(members, pages, views, device) for views in passes]


@torch.inference_mode()
def _naive(
    members: Sequence[Random], pages: Sequence[Page], views: Sequence[View], device: torch.device
) -> NDArray[np.float32]:
    """Probabilities [K, V, N, C]."""
    answers = []
    for member in members:
        network = _Views(member.load(device).to(memory_format=torch.channels_last), views)
        loader = DataLoader(
            _Images(pages, member.image_size), _BATCH, num_workers=_READERS, pin_memory=device.type == "cuda"
        )
        batches = [network(batch.to(device, non_blocking=True)).cpu() for batch in loader]
        answers.append(torch.cat(batches, dim=1).numpy())
    return np.stack(answers)


if __name__ == "__main__":
    run_alone(measure)
