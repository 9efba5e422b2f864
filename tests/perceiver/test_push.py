"""card and push: what a run keeps of itself as a card, and what a hub receives, loads and predicts like the run."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.run.card import card
from mlcore.use.verbs import card as write_card
from mlcore.use.verbs import push
from tests.hub_server import COMMIT, Hub, hub_server

TOKEN = "hf_" + "Ab1" * 11  # in the form of one


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server() as found:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.address)
        template = f"{found.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        for name in ("HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield found


def table(text: str, title: str) -> list[list[str]]:
    """Cells below a heading of a card."""
    part = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_card_says_what_the_run_keeps(series_run: Path) -> None:
    text, _ = card(str(series_run))
    summary = json.loads((series_run / "summary.json").read_text("utf-8"))
    data = ModelCard(text).data
    assert (data.library_name, data.model_name) == ("quartet", series_run.name)
    assert data.eval_results is not None
    own = summary["results_of_best_checkpoint"]["val"]
    told = {result.metric_type: result.metric_value for result in data.eval_results}
    assert told == {name: value for name, value in own.items() if name != "n" and value is not None}
    metric = summary["monitor"]["metric"]
    ends = summary["intervals_of_best_checkpoint"]["val"][metric]
    shown = [f"{value:.4f}" for value in (own[metric], ends["low"], ends["high"])]
    assert table(text, "Results")[2][1] == f"{shown[0]} ({shown[1]} to {shown[2]})"
    assert [row[:2] for row in table(text, "Data")[-2:]] == [["train", "48"], ["val", "12"]]
    assert "3 classes: sine, square, sawtooth." in text
    assert "A demo, trained and evaluated on generated data" in text
    assert load_run(series_run, device="cpu").identity["weights"] in text


def test_the_command_of_the_card_works(series_run: Path, tmp_path: Path) -> None:
    assert write_card([str(series_run), "--output", str(tmp_path / "README.md")]) == 0
    text = (tmp_path / "README.md").read_text("utf-8")
    block = text.partition("## How to load\n")[2].partition("On the command line:")[0]
    code = "\n".join(line[4:] for line in block.splitlines())
    code = code.replace('"FILE"', repr(str(tmp_path / "new.npz")))
    np.savez(tmp_path / "new.npz", inputs=np.ones((2, 6, 4)))
    names: dict[str, list[object]] = {}
    exec(code, names)  # noqa: S102 - what the card tells people to run
    assert len(names["predictions"]) == 2


def test_what_names_of_others_say_is_taken_literally(series_run: Path, tmp_path: Path) -> None:
    run = tmp_path / f"---\nevil: [x](y) <b> {TOKEN}"
    shutil.copytree(series_run, run)
    decision = json.loads((run / "decision.json").read_text("utf-8"))
    decision |= {"class_names": ["<script>|", "![a](b)", f"password={TOKEN}"], "chosen_on": None}
    (run / "decision.json").write_text(json.dumps(decision), encoding="utf-8")
    text, _ = card(str(run))
    assert TOKEN not in text
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["model-index"][0]["name"].startswith("--- evil: ")
    body = text.partition("\n# ")[2]
    prose = "\n".join(line for line in body.splitlines() if not line.startswith("    "))
    assert not re.search(r"(?<!\\)(<|\]\(|!\[)", prose)
    assert r"\<script\>\|" in prose


def test_a_run_that_is_not_finished_has_no_card(series_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(series_run, tmp_path / "run"))
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match=r"run: the run is not finished \(no summary.json\)"):
        card(str(run))


def test_what_the_hub_receives_predicts_like_the_run(
    series_run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push([str(series_run), "hub:team/model", "--private", "--revision", "first", "--format", "pt2"]) == 0
    assert f"published: {hub.address}/team/model/commit/{COMMIT}" in capsys.readouterr().out
    assert hub.created["visibility"] == "private"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert "POST /api/models/team/model/branch/first" in hub.requests
    assert set(hub.files) == {"README.md", "model.json", "model.safetensors", "model.pt2"}  # the reader wants ONNX
    assert 'load_run("hub:team/model")' in hub.files["README.md"].decode()
    assert not any(TOKEN.encode() in content for content in hub.files.values())
    sequences = [np.random.default_rng(0).standard_normal((length, 4)) for length in (3, 9)]
    own = load_run(series_run, device="cpu")(sequences)
    hub.write(tmp_path / "received")
    for source in (tmp_path / "received", "hub:team/model"):
        found = load_run(source, device="cpu")(sequences)
        for one, other in zip(own, found, strict=True):
            np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=0, atol=1e-6)
            assert one.predicted == other.predicted


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"hub:team/model: cannot be written: the hub does not accept the token in HF_TOKEN \(401\)"),
        (403, r"hub:team/model: cannot be written: the token in HF_TOKEN may not write there \(403\)"),
        (404, r"hub:team/model: cannot be written: the hub knows no such model|answered with an error"),
        (0, r"hub:team/model: cannot be written: the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(
    status: int, message: str, series_run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.refuse = status
    monkeypatch.setattr("mlcore.use.exporting.export", lambda _, folder, __: folder.mkdir())
    if not status:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=message) as told:
        push([str(series_run), "hub:team/model"])
    assert TOKEN not in str(told.value)
    assert not hub.files


def test_a_model_that_the_hub_does_not_have(hub: Hub) -> None:
    hub.refuse = 404
    with pytest.raises(UserError, match=r"^hub:team/other: cannot be had: "):
        load_run("hub:team/other")


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("team/model", TOKEN, "team/model: expected a name on the hub, such as hub:team/model"),
        ("hub:team/model", "", "hub:team/model: cannot be written: HF_TOKEN is not set"),
    ],
)
def test_a_push_needs_a_name_and_a_token(
    name: str, token: str, message: str, hub: Hub, series_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=message):
        push([str(series_run), name])
    assert not hub.requests
