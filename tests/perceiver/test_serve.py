"""quartet serve with the app's runs: the numbers of `load_run`, and what was seen."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.run import load_run
from tests.served import served


def test_series_are_answered_with_their_curves(series_run: Path, tmp_path: Path) -> None:
    sequences = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    np.savez(tmp_path / "시계열.npz", inputs=sequences, lengths=[12, 11, 7])
    predictor = load_run(series_run, device="cpu")
    with served(predictor) as server:
        found = server.ask(("시계열.npz", (tmp_path / "시계열.npz").read_bytes())).values["predictions"]
        about = server.get("/api/about").values
    assert [one["input"] for one in found] == [f"시계열.npz, row {row}" for row in range(3)]
    wanted = predictor(tmp_path / "시계열.npz")
    for one, own in zip(found, wanted, strict=True):
        assert list(one["values"].values()) == pytest.approx(list(own.row()), abs=1e-6)
        assert one["answer"] == own.predicted
        assert list(one["bars"]["probability"]) == list(own.class_names)
    assert found[1]["curves"]["channel 2"] == pytest.approx(sequences[12:23, 1].tolist())
    own, values = sequences[None, 12:23], np.array(found[1]["curves"]["attention (scaled)"])
    shares = predictor.scorer.network.module.encoder.attention(torch.from_numpy(own))[0].detach().numpy()  # type: ignore[attr-defined]
    assert shares.sum() == pytest.approx(1)
    low, high = own.min(), own.max()
    assert (values - low) / (high - low) == pytest.approx(shares / shares.max(), abs=1e-5)
    assert about["takes"] == [".ts", ".npz", ".zip"]
    assert (about["fields"], about["decision"]) == ([], "the most probable class")


def test_pictures_are_shown_as_they_came(image_run: Path, pictures: Path) -> None:
    path = pictures / "light" / "2.png"
    predictor = load_run(image_run, device="cpu")
    with served(predictor) as server:
        (found,) = server.ask(("b/2.PNG", path.read_bytes())).values["predictions"]
        picture = server.get(found["pictures"][0]).body
        over = server.get(found["pictures"][0].replace(".png", "_over.png")).body
    assert found["values"]["p_light"] == pytest.approx(predictor(path)[0].probabilities[1], abs=1e-6)
    assert int.from_bytes(picture[16:20], "big") == 16
    assert (found["overlay"], found["files"]) == ("attention", [])
    heat = np.asarray(Image.open(io.BytesIO(over)))
    assert heat.shape == (16, 16, 4)
    assert heat[..., 3].max() == 200
