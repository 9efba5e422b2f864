"""predict.py: pictures, texts or both to a table, with the numbers and decisions of the run's own evaluation."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.base.files import write_json
from mlcore.data.images import read_image
from mlcore.run import load_run, load_runs
from mlcore.run.decision import Decision, read_decision, write_decision
from mlcore.run.scorer import Item
from quartet.apps.multimodal_ads.data.table import read_table
from tests.multimodal_ads.conftest import own_rows, read_csv, run, train

pytestmark = pytest.mark.usefixtures("empty_folder")


def predict(model: Path, *arguments: str | Path) -> tuple[int, str]:
    return run("predict", "--model_path", model, *arguments)


def write_table(path: str, lines: Sequence[str]) -> None:
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize(
    ("modality", "table"), [("multimodal", "test.csv"), ("vision_only", "val.csv"), ("text_only", "val.csv")]
)
def test_predictions_are_those_of_the_runs_own_evaluation(
    modality: str, table: str, ads: Path, finished: Path, alone: dict[str, Path]
) -> None:
    folder = {"multimodal": finished, **alone}[modality]
    own = own_rows(folder)
    rows = read_table(ads / table, base_dir=None)
    found = load_run(folder, device="cpu")(
        [Item(row.origin, row.image, values=(("text", row.text),)) for row in rows], batch_size=7
    )
    assert [one.probability for one in found] == pytest.approx([row["probability"] for row in own], abs=1e-5)
    assert [one.predicted for one in found] == [("not_ad", "ad")[row["predicted"]] for row in own]
    assert len({one.probability for one in found}) > 10, "another sample, another probability"
    if modality == "multimodal":
        assert [one.gate for one in found] == pytest.approx([row["gate"] for row in own], abs=1e-5)
    else:
        assert {one.gate for one in found} == {None}
    code, said = predict(folder / "checkpoint_best.ckpt", "--csv", ads / table, "--output", "scores.csv")
    assert code == 0, said
    scores = read_csv("scores.csv")
    given = read_csv(ads / table)
    assert [{name: row[name] for name in given[0]} for row in scores] == given
    assert list(scores[0]) == [*given[0], "probability", "predicted", "gate", "problem"]
    assert [float(row["probability"]) for row in scores] == pytest.approx([one.probability for one in found], abs=1e-6)
    assert [row["predicted"] for row in scores] == [one.predicted for one in found]


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_pictures_decoded_at_a_part_of_their_size_are_so_everywhere(
    cache: str, ads: Path, backbone: list[str], tmp_path: Path
) -> None:
    tables = ["--train_csv", ads / "train.csv", "--val_csv", ads / "val.csv", "--epochs", "1"]
    how = ["train.modality=vision_only", "--cache", cache, "--decode_side", "32"]
    folder = train(tmp_path / "run", *backbone, *tables, *how)
    rows, predictor = read_table(ads / "val.csv", base_dir=None), load_run(folder, device="cpu")
    expected = [row["probability"] for row in own_rows(folder)]
    found = [one.probability for one in predictor([Item(row.origin, row.image) for row in rows])]
    assert found == pytest.approx(expected, abs=1e-5)
    whole = [one.probability for one in predictor([read_image(row.image, max_pixels=10**8) for row in rows])]
    assert np.abs(np.subtract(found, whole)).max() > 1e-4, "decoded as a whole they are others"


def test_every_row_of_a_table_is_a_row_of_the_scores(ads: Path, finished: Path, tmp_path: Path) -> None:
    """In its place, with a score or the reason why there is none."""
    shutil.copytree(ads / "images", tmp_path / "images")
    good = [f"images/{path.name}" for path in sorted((tmp_path / "images").iterdir())[:3]]
    (tmp_path / "images" / "bad.jpg").write_bytes(b"")
    lines = ["none.jpg,x", f"{good[0]},sale", "images/bad.jpg,y", f"{good[0]},news", f"{good[1]},50 % off, today"]
    lines += ['"broken"x,y', f"{good[2]},z", f"{good[0]},sale", ",sale"]
    write_table("new.csv", ["local_image_path,text_info", *lines])
    code, said = predict(finished / "checkpoint_best.ckpt", "--csv", "new.csv", "--batch_size", "2")
    assert code == 1, said
    rows = read_csv("predictions.csv")
    names = ["none.jpg", good[0], "images/bad.jpg", good[0], "", "", good[2], good[0], ""]
    assert [row["local_image_path"] for row in rows] == names
    assert [place for place, row in enumerate(rows) if row["probability"]] == [1, 3, 6, 7]
    reasons = ("no such file", "", "empty file", "", "3 values", "not a row of a CSV table", "", "", "image is empty")
    for row, reason in zip(rows, reasons, strict=True):
        assert reason in row["problem"]
        assert bool(row["problem"]) == bool(reason)
    assert rows[1] == rows[7], "there before"
    assert rows[1]["probability"] != rows[3]["probability"], "the same picture with another text"
    assert "9 inputs, 8 of them different, 5 could not be used" in said
    write_table("new.csv", ["local_image_path,text_info", "none.jpg,x", "images/bad.jpg,y"])
    code, said = predict(finished / "checkpoint_best.ckpt", "--csv", "new.csv", "--batch_size", "2")
    assert code == 2
    assert (
        "nothing could be predicted, predictions.csv has the reasons; the first: new.csv, line 2: no such file" in said
    )
    assert [bool(row["problem"]) for row in read_csv("predictions.csv")] == [True, True]


def test_a_bad_picture_does_not_stop_the_others(ads: Path, finished: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    code, _ = predict(finished / "checkpoint_best.ckpt", broken, ads / "images")
    assert code == 1
    rows = read_csv("predictions.csv")
    assert [bool(row["problem"]) for row in rows] == [True] + [False] * (len(rows) - 1)
    assert str(broken) in rows[0]["problem"]
    assert [row["input"] for row in rows] == [str(broken), *map(str, sorted((ads / "images").iterdir()))]


def test_a_model_wants_what_it_looks_at_and_nothing_else(ads: Path, alone: dict[str, Path]) -> None:
    shutil.copytree(ads / "images", "images")
    pictures = sorted(Path("images").iterdir())[:2]
    write_table("pictures.csv", ["image", *map(str, pictures)])
    write_table("texts.csv", ["id,text", "1,50 % off", "2,annual report", "3,50 % off", "4, 50 % off "])
    code, said = predict(alone["vision_only"], "--csv", "pictures.csv")
    assert code == 0, said
    assert "texts" not in said
    by_table = [row["probability"] for row in read_csv("predictions.csv")]
    assert predict(alone["vision_only"], *pictures)[0] == 0
    assert [row["probability"] for row in read_csv("predictions.csv")] == by_table
    code, said = predict(alone["text_only"], "--csv", "texts.csv")
    assert code == 0, said
    assert "4 inputs, 2 of them different, 0 could not be used" in said
    first, second, third, fourth = read_csv("predictions.csv")
    assert first["probability"] == third["probability"] == fourth["probability"] != second["probability"]
    code, said = predict(alone["text_only"], *pictures, "--text", "50 % off")
    assert code == 0, said
    assert said.count("the pictures are not looked at: this model was trained with texts alone") == 1
    for row in read_csv("predictions.csv"):
        assert float(row["probability"]) == pytest.approx(float(first["probability"]), abs=1e-6)
    code, said = predict(alone["vision_only"], *pictures, "--text", "50 % off")
    assert code == 0, said
    assert said.count("the text is not looked at: this model was trained with pictures alone") == 1
    assert [row["probability"] for row in read_csv("predictions.csv")] == by_table
    assert "does not look at the column text_info" in predict(alone["vision_only"], "--csv", ads / "val.csv")[1]
    assert "does not look at the column local_image_path" in predict(alone["text_only"], "--csv", ads / "val.csv")[1]
    for model, table, expected in (
        ("vision_only", "texts.csv", "expected one called local_image_path or image or path"),
        ("text_only", "pictures.csv", "expected one called text_info or text"),
    ):
        code, said = predict(alone[model], "--csv", table)
        assert code == 2
        assert expected in said


def test_a_model_of_both_wants_a_picture(finished: Path) -> None:
    write_table("texts.csv", ["text_info", "50 % off"])
    code, said = predict(finished, "--csv", "texts.csv")
    assert code == 2
    assert "texts.csv, line 2: names no picture; expected a file in the column local_image_path" in said


def test_one_text_for_all_is_taken_as_it_stands(ads: Path, finished: Path) -> None:
    picture = min((ads / "images").iterdir())
    for text in ("Sale: 50 %", "007", "null"):
        (ours,) = load_run(finished, device="cpu", options={"text": text})(picture)
        (same,) = load_run(finished, device="cpu")(Item("x", picture, values=(("text", text),)))
        (none,) = load_run(finished, device="cpu")(picture)
        assert ours == same
        assert ours.probability != none.probability


def test_the_threshold_decides_and_changes_no_probability(ads: Path, finished: Path) -> None:
    picture = min((ads / "images").iterdir())
    (own,) = load_run(finished, device="cpu")(picture)
    for threshold, predicted in (
        (own.probability, "ad"),
        (np.nextafter(own.probability, 1), "not_ad"),
        (0, "ad"),
        (1, "not_ad"),
    ):
        (other,) = load_run(finished, device="cpu", options={"threshold": repr(float(threshold))})(picture)
        assert (other.probability, other.predicted) == (own.probability, predicted)
    for name in ("predict", "test"):
        for given in ("often", "1.5", "nan"):
            table = ["--csv", ads / "test.csv"]
            code, said = run(name, "--model_path", finished / "checkpoint_best.ckpt", *table, "--threshold", given)
            assert code == 2
            assert f"threshold={given}: expected a probability, from 0 to 1" in said


def test_what_validation_chose_decides_and_may_leave_some_to_a_person(
    ads: Path, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    decision = read_decision(folder)
    assert decision is not None
    results = json.loads((folder / "results.json").read_text("utf-8"))["threshold"]
    assert results == {"value": decision.threshold, "chosen_on": "val", "maximises": "f1"}
    assert list(decision.figures) == ["val", "test"]

    table = [
        Item(row.origin, row.image, values=(("text", row.text),)) for row in read_table(ads / "test.csv", base_dir=None)
    ]
    chances = [one.probability for one in load_run(folder, device="cpu")(table)]
    low, high = sorted(chances)[8], sorted(chances)[16]
    write_decision(folder, decision.model_copy(update={"threshold": high, "lower": low}))
    predictor = load_run(folder, device="cpu")
    assert predictor.scorer.columns == ("probability", "predicted", "gate", "review")
    for one in predictor(table):
        assert one.review == (low <= one.probability < high)
        assert one.review or one.predicted == ("ad" if one.probability >= high else "not_ad")
        assert one.row()[-1] == ("yes" if one.review else "")

    # A run of before has its threshold in results.json.
    (folder / "decision.json").unlink()
    write_json(folder / "results.json", {"threshold": {"value": high, "chosen_on": "val"}})
    for one in load_run(folder, device="cpu")(table):
        assert one.predicted == ("ad" if one.probability >= high else "not_ad")
        assert one.review is None


def test_a_checkpoint_away_from_its_run_decides_at_one_half_and_says_so(
    ads: Path, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(finished / "checkpoint_best.ckpt", "moved.ckpt")
    code, said = predict(tmp_path / "moved.ckpt", "--csv", ads / "test.csv")
    assert code == 0, said
    assert "no decision.json beside" in said
    assert "the threshold is 0.5" in said
    for row in read_csv("predictions.csv"):
        assert row["predicted"] == ("ad" if float(row["probability"]) >= 0.5 else "not_ad")


def test_pictures_in_memory_are_as_those_of_files(ads: Path, finished: Path) -> None:
    picture = next(path for path in sorted((ads / "images").iterdir()))
    predictor = load_run(finished, device="cpu")
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    assert predictor(pixels) == predictor(picture)
    with pytest.raises(UserError, match=r"float64 \[4, 5\]; expected a picture uint8"):
        predictor(np.zeros((4, 5)))


def test_pictures_classified_without_texts_are_told_once(ads: Path, finished: Path) -> None:
    pictures = sorted((ads / "images").iterdir())[:3]
    warning = "every picture is classified without its text"
    for given, count in ((pictures, 1), ([*pictures, "--text", "50 % off"], 0), (["--csv", ads / "test.csv"], 0)):
        code, said = predict(finished / "checkpoint_best.ckpt", "--batch_size", "1", "--device", "cpu", *given)
        assert code == 0, said
        assert said.count(warning) == count


def test_equal_texts_are_encoded_once(ads: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["sale", "", "annual report", "sale", ""]
    predictor, seen = load_run(finished, device="cpu"), list[Any]()
    scorer: Any = predictor.scorer
    network = scorer.network
    monkeypatch.setattr(scorer, "network", lambda inputs: seen.append(inputs) or network(inputs))
    picture = min((ads / "images").iterdir())
    found = predictor([Item("x", picture, values=(("text", text),)) for text in texts])
    (inputs,) = seen
    assert inputs["text_of"].tolist() == [0, -1, 1, 0, -1]
    assert len(inputs["input_ids"]) == 2
    probabilities = [one.probability for one in found]
    assert probabilities[:2] == pytest.approx(probabilities[3:], abs=1e-6)  # products round by the place in a batch
    assert abs(probabilities[0] - probabilities[1]) > 1e-4
    for text, one in zip(texts[:3], found, strict=False):
        (alone,) = load_run(finished, device="cpu", options={"text": text})(picture)
        assert one.probability == pytest.approx(alone.probability, abs=1e-6)


def test_runs_are_averaged_also_of_other_modalities(ads: Path, finished: Path, alone: dict[str, Path]) -> None:
    items = [
        Item(row.origin, row.image, values=(("text", row.text),)) for row in read_table(ads / "val.csv", base_dir=None)
    ]
    runs = [finished, alone["vision_only"], alone["text_only"]]
    each = [[one.probability for one in load_run(run, device="cpu")(items)] for run in runs]
    found = load_runs(runs, device="cpu")(items)
    assert [one.probability for one in found] == pytest.approx(np.mean(each, axis=0), abs=1e-7)
    at = np.mean([load_run(run, device="cpu")(items[0])[0].threshold for run in runs])
    assert [one.predicted for one in found] == ["ad" if one.probability >= at else "not_ad" for one in found]
    gates = [one.gate for one in load_run(finished, device="cpu")(items)]
    assert [one.gate for one in found] == pytest.approx(gates, abs=1e-6), "of the run that has one"
    other = load_runs(runs, device="cpu", options={"threshold": "0.9"})(items)
    assert [one.predicted for one in other] == ["ad" if one.probability >= 0.9 else "not_ad" for one in found]


def test_a_decision_between_other_classes_is_refused(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    write_decision(folder, Decision(kind="mask", threshold=0.4))
    with pytest.raises(
        UserError, match=r"decision\.json of the model: of mask, not of not an ad and ad; it is another run's"
    ):
        load_run(folder, device="cpu")


def test_a_place_that_cannot_be_written_to_is_told_before_the_work(ads: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    model = ["--model_path", finished / "checkpoint_best.ckpt", "--csv", ads / "test.csv"]
    for name, place in (
        ("predict", ["--output", tmp_path / "file/a.csv"]),
        ("test", ["--output_dir", tmp_path / "file/a"]),
    ):
        code, said = run(name, *model, *place)
        assert code == 2
        assert str(tmp_path / "file") in said
        assert "batches" not in said
        assert said.startswith("error: ")
    code, said = run("predict", *model, tmp_path / "none.jpg", "--output", tmp_path / "new/folder/a.csv")
    assert code == 2, said
    assert not (tmp_path / "new").exists()
