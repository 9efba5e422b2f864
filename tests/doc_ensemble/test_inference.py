"""One pass over the pages gives what each member's own loop over each view gives, and reads every page once."""

import csv
import errno
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from weakref import ref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mlcore.base.errors import UserError
from quartet.apps.doc_ensemble.data.dataset import Fit
from quartet.apps.doc_ensemble.data.pages import Page, read_page
from quartet.apps.doc_ensemble.ensemble.combine import average_views, combine
from quartet.apps.doc_ensemble.ensemble.inference import PagePredictions, Pages, predict_pages
from quartet.apps.doc_ensemble.ensemble.members import InputFormat, Network, check_members
from quartet.apps.doc_ensemble.ensemble.reading import document_pages
from quartet.apps.doc_ensemble.ensemble.views import ViewKind, with_identity
from quartet.apps.doc_ensemble.ensemble.writing import (
    EnsemblePredictions,
    write_ensemble_meta,
    write_ensemble_predictions,
    write_tta_predictions,
)

CPU = torch.device("cpu")
CLASSES = ("편지", "form", "table")
VIEWS = with_identity([ViewKind(type="horizontal_flip", probability=0.5), ViewKind(type="rotation", degrees=(90, 180))])


@dataclass
class Small:
    """A member with random weights that counts how many networks are alive."""

    name: str
    image_size: tuple[int, int] = (24, 16)
    in_channels: int = 1
    fit: Literal["letterbox", "resize"] = "resize"
    class_names: Sequence[str] = CLASSES
    outputs: int = 3
    scale: float = 1.0
    alive: list[ref] = field(default_factory=list)
    others_at_load: int = -1

    def load(self, device: torch.device) -> Network:
        self.others_at_load = sum(network() is not None for network in self.alive)
        generator = torch.Generator().manual_seed(sum(map(ord, self.name)))
        network = nn.Sequential(
            nn.Conv2d(self.in_channels, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, self.outputs),
        )  # fmt: skip
        for weight in network.parameters():
            weight.data = self.scale * torch.randn(weight.shape, generator=generator)
        self.alive.append(ref(network))
        return network.to(device)


def ensemble() -> list[Small]:
    return [
        Small("resnet"),
        Small("vit", image_size=(20, 20), in_channels=3),
        Small("convnext", fit="letterbox"),
        Small("grey", image_size=(20, 20)),
    ]


@pytest.fixture
def pages(tmp_path: Path) -> list[Page]:
    """Seven colour pages of different sizes."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(7):
        image = rng.integers(0, 256, (40 + number, 30, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / f"page{number}.png")
        found.append(Page(path=tmp_path / f"page{number}.png", origin="test"))
    return found


def read_all(pages: Sequence[Page], members: Sequence[Small], **settings: object) -> Pages:
    return document_pages(pages, members, max_pixels=10**6, **settings)


@torch.no_grad()
def naive(member: Small, pages: Sequence[Page]) -> np.ndarray:
    """[V, N, C]: its own loop over the pages for every view, one page at a time."""
    network = member.load(CPU).eval()
    found = []
    for view in VIEWS:
        rows = []
        for page in pages:
            image = read_page(page.path, page.number, max_pixels=10**6, grey=member.in_channels == 1)
            pixels = torch.from_numpy(Fit(member.image_size, member.fit)(image)).permute(2, 0, 1)[None].float() / 255
            rows.append(torch.softmax(network(view.apply(pixels)), dim=1)[0].numpy())
        found.append(np.stack(rows))
    return np.stack(found)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_one_pass_is_the_naive_way(pages: list[Page], low_memory: bool, batch_size: int) -> None:
    members = ensemble()
    found = predict_pages(
        members, read_all(pages, members), views=VIEWS, device=CPU, batch_size=batch_size, low_memory=low_memory
    )
    assert found.probabilities.shape == (4, 4, 7, 3)
    assert found.probabilities.dtype == np.float32
    for index, member in enumerate(members):
        np.testing.assert_allclose(found.probabilities[index], naive(member, pages), atol=2e-6)
    assert (found.class_names, found.member_names) == (CLASSES, ("resnet", "vit", "convnext", "grey"))
    assert (found.images_per_second > 0).all()
    assert found.view_weights.tolist() == [1, 0.5, 1, 1]


def test_reduced_precision_answers_nearly_the_same(pages: list[Page]) -> None:
    members = ensemble()
    asked = read_all(pages, members)
    exact, reduced = (
        predict_pages(members, asked, views=VIEWS, device=CPU, precision=precision).probabilities
        for precision in ("fp32", "bf16")
    )
    assert 0 < np.abs(exact - reduced).max() < 0.02


def test_members_one_at_a_time_answer_bit_by_bit_the_same(pages: list[Page], tmp_path: Path) -> None:
    members = ensemble()
    together, apart = (
        predict_pages(
            members, read_all(pages, members), views=VIEWS, device=CPU, batch_size=3, low_memory=low, scratch=tmp_path
        )
        for low in (False, True)
    )
    np.testing.assert_array_equal(together.probabilities, apart.probabilities)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".png"] * 7  # nothing is left behind


def test_low_memory_holds_one_network_at_a_time(pages: list[Page]) -> None:
    alive: list[ref] = []
    members = [Small(name, alive=alive) for name in "abc"]
    predict_pages(members, read_all(pages, members), device=CPU, low_memory=True)
    assert [member.others_at_load for member in members] == [0, 0, 0]
    predict_pages(members, read_all(pages, members), device=CPU)
    assert [member.others_at_load for member in members] == [0, 1, 2]


@pytest.mark.parametrize("low_memory", [False, True])
def test_each_page_is_read_once_and_made_once_for_each_format(low_memory: bool) -> None:
    read: Counter[int] = Counter()
    made: Counter[InputFormat] = Counter()
    lock = threading.Lock()

    def read_one(item: int) -> np.ndarray:
        with lock:
            read[item] += 1
        return np.full((8, 8, 3), item, dtype=np.uint8)

    def prepare(image: np.ndarray, shape: InputFormat) -> np.ndarray:
        with lock:
            made[shape] += 1
        return np.resize(image, shape.array_shape)

    members = ensemble()
    predict_pages(
        members,
        Pages(items=range(50), read=read_one, prepare=prepare),
        views=VIEWS,
        device=CPU,
        batch_size=4,
        low_memory=low_memory,
    )
    assert read == Counter(range(50))
    formats = (24, 16, 1, "resize"), (24, 16, 1, "letterbox"), (20, 20, 3, "resize"), (20, 20, 1, "resize")
    assert made == {InputFormat(*each): 50 for each in formats}  # type: ignore[arg-type]


@pytest.mark.parametrize("low_memory", [False, True])
def test_pages_that_cannot_be_read_end_the_pass_or_are_left_out(
    pages: list[Page], low_memory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    members = ensemble()[:2]
    whole = predict_pages(members, read_all(pages, members), device=CPU)
    for bad in (2, 6):
        pages[bad].path.write_bytes(b"")
    with pytest.raises(UserError, match=r"page2\.png: empty file"):
        predict_pages(members, read_all(pages, members), device=CPU, low_memory=low_memory)
    with caplog.at_level(logging.WARNING):
        found = predict_pages(
            members, read_all(pages, members, skip_bad=True), device=CPU, batch_size=2, low_memory=low_memory
        )
    assert found.rows.tolist() == [0, 1, 3, 4, 5]
    assert sorted(found.problems) == [2, 6]
    assert "page6.png" in found.problems[6]
    assert "left out" in caplog.text
    np.testing.assert_allclose(found.probabilities, whole.probabilities[:, :, found.rows], atol=2e-6)
    for page in pages:
        page.path.write_bytes(b"")
    with pytest.raises(UserError, match=r"none of the pages can be read; the first: .*page0\.png"):
        predict_pages(members, read_all(pages, members, skip_bad=True), device=CPU, low_memory=low_memory)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("form", "편지", "table"), "in another order, output 0 is '편지' and 'form'"),
        (("편지", "form", "slide"), "the second lacks 'table'; the first lacks 'slide'"),
        (("편지", "form"), "the second lacks 'table'"),
        (("편지", "form", "table", "form"), "3 classes and 4"),
    ],
)
def test_members_of_other_classes_are_named_and_never_permuted(classes: tuple[str, ...], message: str) -> None:
    members = [Small("resnet"), Small("fine"), Small("vit", class_names=classes)]
    with pytest.raises(UserError, match=f"'resnet' and 'vit' do not fit together: .*{message}"):
        predict_pages(members, Pages(items=[1], read=np.array, prepare=np.resize), device=CPU)
    assert not members[0].alive  # found out before anything was loaded


def test_members_that_cannot_be_an_ensemble_are_refused(pages: list[Page], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no members.*ensemble\.models"):
        check_members([])
    with pytest.raises(UserError, match="two members of the ensemble are called 'vit'"):
        check_members([Small("vit"), Small("resnet"), Small("vit")])
    for member, message in (
        (Small("odd", outputs=4), r"'odd' answers \(7, 4\), not \(7, 3\)"),
        (Small("wild", scale=float("nan")), "'wild' are not finite"),
    ):
        with pytest.raises(UserError, match=message):
            predict_pages([member], read_all(pages, [member]), device=CPU)
    with pytest.raises(UserError, match="nothing to predict: 0 pages"):
        predict_pages([Small("a")], read_all([], [Small("a")]), device=CPU)


def test_too_little_room_for_prepared_pages_is_said_before_reading(
    pages: list[Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    members = ensemble()
    with pytest.raises(UserError, match=r"no room for 2\.\d KiB of prepared pages, .* free .No space left"):
        predict_pages(members, read_all(pages, members), device=CPU, low_memory=True, scratch=tmp_path / "new")
    assert not members[0].alive


def test_an_ensemble_of_invariant_members_gains_nothing_from_views(pages: list[Page]) -> None:
    class Invariant(Small):
        def load(self, device: torch.device) -> Network:
            def predict_mean(pixels: Tensor) -> Tensor:
                mean = pixels.double().mean(dim=(1, 2, 3)).float()  # knows nothing of places
                return torch.stack([mean, 2 * mean, 1 - mean], dim=1)

            return predict_mean

    member = Invariant("mean", image_size=(20, 20))
    found = predict_pages([member], read_all(pages, [member]), views=VIEWS, device=CPU)
    mean = average_views(found.probabilities, weights=found.view_weights)
    np.testing.assert_allclose(mean, found.probabilities[:, 0], atol=1e-6)


# ------------------------------------------------------------------------------------------------------- what is left


@pytest.fixture
def predicted(pages: list[Page]) -> PagePredictions:
    members = ensemble()
    return predict_pages(members, read_all(pages, members), views=VIEWS, device=CPU)


def predictions_of(predicted: PagePredictions, labels: list[int] | None) -> EnsemblePredictions:
    members = average_views(predicted.probabilities, weights=predicted.view_weights)
    return EnsemblePredictions(
        pages=[f"scan, {row}.pdf#2" for row in range(7)],
        class_names=predicted.class_names,
        member_names=predicted.member_names,
        ensemble=combine(members),
        members=members,
        labels=None if labels is None else np.array(labels),
    )


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_written_with_all_that_speaks_for_them(predicted: PagePredictions, tmp_path: Path) -> None:
    predictions = predictions_of(predicted, [0, 1, 2, 0, 1, -1, 2])
    rows = rows_of(write_ensemble_predictions(tmp_path, predictions))
    assert (tmp_path / "ensemble_predictions.csv").exists()
    assert [row["image"] for row in rows] == list(predictions.pages)
    for number, row in enumerate(rows):
        chances = predictions.ensemble[number]
        assert row["predicted"] == CLASSES[chances.argmax()]
        assert float(row["probability"]) == pytest.approx(chances.max(), abs=1e-6)
        assert [float(row[f"p_{name}"]) for name in CLASSES] == pytest.approx(chances.tolist(), abs=1e-6)
        votes = [row[f"member_{name}"] for name in predicted.member_names]
        assert votes == [CLASSES[index] for index in predictions.members[:, number].argmax(axis=1)]
        assert int(row["votes"]) == votes.count(row["predicted"])
    assert [row["label"] for row in rows] == ["편지", "form", "table", "편지", "form", "", "table"]
    assert "label" not in rows_of(write_ensemble_predictions(tmp_path, predictions_of(predicted, None)))[0]


def test_what_views_did_is_written(predicted: PagePredictions, tmp_path: Path) -> None:
    predictions = predictions_of(predicted, None)
    by_view = np.stack([combine(predicted.probabilities[:, number]) for number in range(len(VIEWS))])
    rows = rows_of(write_tta_predictions(tmp_path, predictions, views=predicted.views, by_view=by_view))
    assert (tmp_path / "tta_predictions.csv").exists()
    for number, row in enumerate(rows):
        seen = [row[f"view_{view.name}"] for view in VIEWS]
        assert seen == [CLASSES[index] for index in by_view[:, number].argmax(axis=1)]
        assert row["without_tta"] == seen[0]
        assert int(row["views_agreeing"]) == seen.count(row["predicted"])
    with pytest.raises(UserError, match="by view"):
        write_tta_predictions(tmp_path, predictions, views=predicted.views, by_view=by_view[1:])


def test_the_metadata_of_an_ensemble_are_written(predicted: PagePredictions, tmp_path: Path) -> None:
    labels = [0, 1, 2, 0, 1, -1, 2]
    predictions = predictions_of(predicted, labels)
    metadata = [{"checkpoint": f"{name}.ckpt", "weight": 0.25} for name in predicted.member_names]
    path = write_ensemble_meta(
        tmp_path,
        predictions,
        method="averaging",
        average="probabilities",
        views=predicted.views,
        members=metadata,
        extra={"seconds": 1.5},
    )
    assert path.name == "ensemble_predictions_meta.json"
    values = json.loads(path.read_text("utf-8"))
    known = [0, 1, 2, 3, 4, 6]
    right = predictions.ensemble[known].argmax(axis=1) == np.array(labels)[known]
    assert values["scores"]["accuracy"] == pytest.approx(right.mean())
    assert [model["name"] for model in values["models"]] == list(predicted.member_names)
    assert values["models"][2]["checkpoint"] == "convnext.ckpt"
    assert values["tta"]["views"][1] == {"name": "horizontal_flip", "weight": 0.5}
    assert (values["num_models"], values["num_pages"], values["seconds"]) == (4, 7, 1.5)
    without = predictions_of(predicted, None)
    assert without.scores(without.ensemble) is None


def test_parts_of_predictions_must_fit_together(predicted: PagePredictions) -> None:
    with pytest.raises(UserError, match="do not fit"):
        predictions_of(predicted, [0, 1])
