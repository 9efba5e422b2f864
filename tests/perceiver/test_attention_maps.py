"""Where the latents look: shares by modality and position, in bounded memory, in reports and for pages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlcore.report.page import Picture, Table
from mlcore.run.build import Data
from quartet.apps.perceiver.attention_report import AttentionReport
from quartet.apps.perceiver.data.raw import Modality
from quartet.apps.perceiver.data.raw_batches import RawCollate
from quartet.apps.perceiver.model import PerceiverEncoder, PerceiverModel, PerceiverOptions, encoder
from quartet.apps.perceiver.seen import Seen, of_modalities, shares_of, shown

TEXT = Modality(name="text", kind="text", patch=2)
IMAGE = Modality(name="image", kind="image", patch=4, size=(8, 4))
SERIES = Modality(name="series:ecg", kind="series", patch=3, size=(2,))
ALL = (TEXT, IMAGE, SERIES)


def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "text": np.frombuffer("a가b\U0001f600".encode(), dtype=np.uint8),  # characters of 1, 3, 1 and 4 bytes: 5 tokens
        "image": rng.integers(0, 256, (8, 4, 3), dtype=np.uint8),
        "series:ecg": rng.standard_normal((7, 2), dtype=np.float32),
    }


def model() -> PerceiverModel:
    torch.manual_seed(0)
    options = PerceiverOptions(modalities=[one.values() for one in ALL], stem_channels=8)
    size = {"d_model": 16, "num_heads": 2, "num_cross_attention_layers": 1, "num_self_attention_layers": 0}
    return PerceiverModel(0, num_classes=2, num_latents=5, options=options, **size)


def test_each_modality_has_the_shares_of_its_tokens() -> None:
    shares = np.arange(10, dtype=np.float32)
    text, image, series = of_modalities(values(), ALL, shares)
    assert [one.shares.tolist() for one in (text, image, series) if one.shares is not None] == [
        [0, 1, 2, 3, 4], [5, 6], [7, 8, 9]
    ]  # fmt: skip
    assert (image.grid, image.overlay.shape) == ((2, 1), (8, 4, 4))
    assert series.by_position.tolist() == pytest.approx([7 / 9] * 3 + [8 / 9] * 3 + [1])
    without = {name: value for name, value in values().items() if name != "image"}
    assert [one.name for one in of_modalities(without, ALL, shares[:8])] == ["text", "series:ecg"]


def test_a_character_has_the_mean_share_of_its_bytes() -> None:
    text, *_ = of_modalities(values(), ALL, np.array([1, 2, 3, 4, 5, 0, 0, 0, 0, 1], dtype=np.float32))
    bytes_of = {"a": [1], "가": [1, 2, 2], "b": [3], "\U0001f600": [3, 4, 4, 5]}
    assert text.characters == [(one, pytest.approx(np.mean(parts) / 4)) for one, parts in bytes_of.items()]
    cut = Seen(name="text", kind="text", value=text.value[:3], shares=np.ones(3, dtype=np.float32))
    assert [one for one, _ in cut.characters] == ["a", "\ufffd"]


def test_a_page_shows_all_modalities_and_what_each_gets() -> None:
    sample, network = values(), model()
    shares = shares_of(network, RawCollate(modalities=ALL)([{"input": sample, "label": 0}]))
    assert shares.sum() == pytest.approx(1)
    page = shown(of_modalities(sample, ALL, shares))
    assert [len(page[key]) for key in ("pictures", "overlays", "texts")] == [1, 1, 1]
    assert [*page["curves"]] == ["series:ecg, attention (scaled)", "series:ecg, channel 1", "series:ecg, channel 2"]
    assert page["notes"][1] == f"text gets {shares[:5].sum():.0%} of it."
    alone = shown(of_modalities(sample, ALL, None))
    assert (alone["overlays"], alone["notes"], len(alone["curves"])) == ([], [], 2)
    assert {share for _, share in alone["texts"]["text"]} == {0.0}


@torch.no_grad()
def test_shares_are_the_mean_over_heads_and_latents_however_many_are_there_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    size = {"d_model": 16, "num_heads": 4, "num_cross_attention_layers": 1, "num_self_attention_layers": 0}
    network = PerceiverEncoder(3, num_latents=7, **size).double()
    x, mask = torch.randn(2, 9, 3, dtype=torch.float64), torch.arange(9) < torch.tensor([[9], [4]])
    tokens, first = network.tokens(x, mask)[0], network.cross_blocks[0]
    queries = first.latent_norm(network.latents[None])  # type: ignore[operator]
    every = first.attention.weights(queries, first.context_norm(tokens), mask)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(network.attention(x, mask), every.mean(dim=(1, 2)), rtol=0, atol=1e-12)
    monkeypatch.setattr(encoder, "_SCORES", 2 * 4 * 9 * 2)  # two latents
    torch.testing.assert_close(network.attention(x, mask), every.mean(dim=(1, 2)), rtol=0, atol=1e-12)


def test_a_report_has_a_picture_and_the_share_of_each_modality(tmp_path: Path) -> None:
    samples = [{"input": values(), "label": place % 2} for place in range(5)]
    samples.append({"input": {"text": values()["text"]}, "label": 1})
    data = {"val": Data(dataset=samples, collate=RawCollate(modalities=ALL))}
    report = AttentionReport(model=model(), data=data, modalities=ALL, class_names=["calm", "가"])
    rows = {"label": torch.tensor([0, 1] * 3), "probabilities": torch.tensor([[0.9, 0.1]] * 6)}
    before = Table("before", [], [])
    first, drawn, table = report.after(lambda *_: [before])(rows, tmp_path, "")
    assert first is before
    assert isinstance(drawn, Picture)
    assert drawn.path.is_file()
    assert isinstance(table, Table)
    assert [row[:2] for row in table.rows] == [["text", 5], ["image", 5], ["series:ecg", 5]]  # one has text alone
    assert [row[3] for row in table.rows] == pytest.approx([0.5, 0.2, 0.3])
    assert sum(float(str(row[2])) for row in table.rows) == pytest.approx(1)
    assert report.after(lambda *_: [before])(rows, tmp_path, "test_") == [before]
