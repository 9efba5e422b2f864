"""quartet serve with a run of the app: picture and text, decision and gate."""

from pathlib import Path

import pytest

from mlcore.run import load_run
from mlcore.run.scorer import Item
from tests.served import served


def test_picture_and_text_are_answered_with_the_gate(ads: Path, finished: Path) -> None:
    path, text = sorted((ads / "images").iterdir())[0], "오늘만 50 % 할인"
    predictor = load_run(finished, device="cpu")
    with served(predictor) as server:
        found, bare = (
            server.ask(("광고.jpg", path.read_bytes()), **texts).values["predictions"][0]
            for texts in ({"text": text}, {})
        )
        assert server.ask(text=text).values["problem"].startswith("nothing to predict came; this model reads .avif")
        assert server.get("/api/about").values["fields"] == ["text"]
    own, alone = predictor([Item("a", path, values=(("text", text),)), path])
    for one, wanted in ((found, own), (bare, alone)):
        assert one["values"]["probability"] == pytest.approx(wanted.probability, abs=1e-6)
        assert one["bars"]["weight in the fusion"]["picture"] == pytest.approx(wanted.gate, abs=1e-6)
        assert (one["answer"], len(one["pictures"])) == (wanted.predicted, 1)
    assert own.probability != alone.probability
