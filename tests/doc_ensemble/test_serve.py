"""quartet serve with the app's runs: each page of a file, as `load_run` answers it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlcore.run import load_run, load_runs
from tests.served import served


def test_every_page_of_a_file_is_answered_and_shown(finished: tuple[Path, str], pages: Path, tmp_path: Path) -> None:
    first, *others = [Image.open(path) for path in sorted((pages / "test").rglob("*.jpg"))[:3]]
    first.save(tmp_path / "scan.tif", save_all=True, append_images=others)
    predictor = load_run(finished[0], device="cpu")
    with served(predictor) as server:
        found = server.ask(("계약서.tif", (tmp_path / "scan.tif").read_bytes())).values["predictions"]
        shown = [Image.open(io.BytesIO(server.get(one["pictures"][0]).body)) for one in found]
    assert [one["input"] for one in found] == [f"계약서.tif#{page}" for page in (1, 2, 3)]
    for one, own, page, source in zip(found, predictor(tmp_path / "scan.tif"), shown, [first, *others], strict=True):
        assert list(one["bars"]["probability"].values()) == pytest.approx(own.probabilities.tolist(), abs=1e-6)
        assert one["answer"] == own.predicted
        np.testing.assert_array_equal(np.asarray(page.convert("L")), np.asarray(source.convert("L")))


def test_runs_that_are_averaged_show_the_page_too(finished: tuple[Path, str], pages: Path) -> None:
    path = next((pages / "test").rglob("*.jpg"))
    predictor = load_runs([finished[0], finished[0]], device="cpu")
    with served(predictor) as server:
        (found,) = server.ask(("a.jpg", path.read_bytes())).values["predictions"]
    assert len(found["pictures"]) == 1
    assert found["values"]["probability"] == pytest.approx(predictor(path)[0].probability, abs=1e-6)
