"""The predictions of several networks combined: all methods, views, selection and the cost of each member, from Python.

    python apps/doc_ensemble/example_ensemble_usage.py                 seconds, without network or data
    python apps/doc_ensemble/example_ensemble_usage.py --output DIR    where the files go

Three tiny networks are trained for a moment on drawn patterns; with `restore.CheckpointMember("vit", path)` for members
and `reading.document_pages(pages, members, max_pixels=...)` for pages the calls are the same.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mlcore.base.files import ensure_folder
from mlcore.cli.main import guarded
from mlcore.metrics.arrays import FloatArray, IntArray
from quartet.apps.doc_ensemble.ensemble.combine import average_views, combine, fit_weights
from quartet.apps.doc_ensemble.ensemble.curve import cost_curve, plot_cost_curve, single_points
from quartet.apps.doc_ensemble.ensemble.disagreement import disagreement
from quartet.apps.doc_ensemble.ensemble.inference import PagePredictions, Pages, predict_pages
from quartet.apps.doc_ensemble.ensemble.members import InputFormat, Network
from quartet.apps.doc_ensemble.ensemble.selection import growing_order, select
from quartet.apps.doc_ensemble.ensemble.views import ViewKind, with_identity
from quartet.apps.doc_ensemble.ensemble.writing import EnsemblePredictions, write_ensemble_predictions
from quartet.apps.doc_ensemble.model.classifier import create_model

CLASSES = ("text", "table", "photo", "blank")
SIZE = (64, 48)

Image = NDArray[np.uint8]


@dataclass
class TrainedMember:
    """What `ensemble.members.Member` asks for, around a network that is in memory already."""

    name: str
    network: nn.Module
    image_size: tuple[int, int] = SIZE
    in_channels: int = 1
    fit: Literal["letterbox", "resize"] = "resize"
    class_names: tuple[str, ...] = CLASSES

    def load(self, device: torch.device) -> Network:
        """The network itself."""
        return self.network.to(device).eval()


def drawn_pages(count: int, *, seed: int) -> tuple[list[Image], NDArray[np.int64]]:
    """Grey pages [64, 48, 1] of lines, a grid, noise, or paper alone, under scanner noise; and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(CLASSES)
    pages = np.ones((count, *SIZE))
    for page, label in zip(pages, labels.tolist(), strict=True):
        step = int(rng.integers(4, 9))
        if label in (0, 1):
            page[::step] = 0.2
        if label == 1:
            page[:, ::step] = 0.2
        if label == 2:
            page[16:48, 8:40] = rng.random((32, 32))
    noisy = pages + 0.9 * rng.standard_normal(pages.shape)
    return list((255 * noisy.clip(0, 1)).astype(np.uint8)[..., None]), labels


def train(seed: int, pages: list[Image], labels: NDArray[np.int64]) -> nn.Module:
    """A plain torch loop over a part of the pages that depends on the seed."""
    torch.manual_seed(seed)
    model = create_model("test_resnet", class_names=CLASSES, pretrained=False, image_size=SIZE, in_channels=1)
    chosen = torch.randperm(len(pages))[: len(pages) // 2]
    pixels = torch.from_numpy(np.stack(pages)).permute(0, 3, 1, 2).float()[chosen] / 255
    target = torch.from_numpy(labels)[chosen]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(6):
        for rows in torch.randperm(len(chosen)).reshape(-1, 16):
            loss = nn.functional.cross_entropy(model(pixels[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model


def as_it_is(page: Image) -> Image:
    """Pages are decoded here; these are arrays already."""
    return page


def fitted(page: Image, _shape: InputFormat) -> Image:
    """Pages get a member's size here; these have it already."""
    return page


def decisions(seen: FloatArray, truth: IntArray, fit: slice, test: slice) -> dict[str, FloatArray]:
    """Probabilities [pages, classes] of the pages `test` by each method; weights are fitted on the pages `fit`."""
    weights = fit_weights(seen[:, fit], truth[fit])
    selected = select(seen[:, fit], truth[fit]).weights(len(seen))
    print(f"fitted weights: {weights.round(3)}; selected: {selected.round(3)}")
    return {
        "voting": combine(seen[:, test], method="voting"),
        "averaging of probabilities": combine(seen[:, test], method="averaging"),
        "averaging of logits": combine(seen[:, test], method="averaging", average="logits"),
        "weighted 0.5, 0.3, 0.2": combine(seen[:, test], method="weighted", weights=[0.5, 0.3, 0.2]),
        "weighted, fitted": combine(seen[:, test], method="weighted", weights=weights),
        "greedy selection": combine(seen[:, test], method="weighted", weights=selected),
    }


def draw_costs(
    predicted: PagePredictions, seen: FloatArray, truth: IntArray, *, fit: slice, test: slice, path: Path
) -> None:
    """Score against pages per second, as members are added in the order that is best on the pages `fit`."""
    names, seconds, reading = predicted.member_names, predicted.member_seconds, predicted.reading_seconds
    order = growing_order(seen[:, fit], truth[fit])
    points = cost_curve(
        seen[:, test], truth[test], order=order, names=names, member_seconds=seconds, reading_seconds=reading
    )
    singles = single_points(seen[:, test], truth[test], names=names, member_seconds=seconds, reading_seconds=reading)
    plot_cost_curve(points, path=path, singles=singles)


def main() -> int:
    """Train members, let them predict, and compare ways to combine them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/doc_ensemble/example_ensemble"))
    folder = ensure_folder(parser.parse_args().output)
    pages, labels = drawn_pages(320, seed=0)
    members = [TrainedMember(f"network {seed}", train(seed, pages, labels)) for seed in (1, 2, 3)]

    # One pass: every page is read once for all members and views. The first half is for fitting, the second for
    # figures.
    asked, truth = drawn_pages(240, seed=9)
    views = with_identity([ViewKind(type="color_jitter", probability=0.5, brightness=0.1, contrast=0.0)])
    items = Pages(items=asked, read=as_it_is, prepare=fitted)
    predicted = predict_pages(members, items, views=views, device=torch.device("cpu"))
    seen = average_views(predicted.probabilities, weights=predicted.view_weights)  # [members, pages, classes]
    fit, test = slice(0, 120), slice(120, 240)

    alone = {member.name: seen[index, test] for index, member in enumerate(members)}
    together = decisions(seen, truth, fit, test)
    for name, chances in (alone | together).items():
        print(f"{name:28} accuracy {(chances.argmax(axis=1) == truth[test]).mean():.4f}")
    print(f"two members disagree on {disagreement(seen[:, test]).mean:.1%} of the pages")
    draw_costs(predicted, seen, truth, fit=fit, test=test, path=folder / "cost_curve.png")
    predictions = EnsemblePredictions(
        pages=[f"page {row}" for row in range(120, 240)],
        class_names=CLASSES,
        member_names=predicted.member_names,
        ensemble=together["averaging of probabilities"],
        members=seen[:, test],
        labels=truth[test],
    )
    write_ensemble_predictions(folder, predictions)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


if __name__ == "__main__":
    guarded(main)
