"""Pages to classes: the numbers of the run's own evaluation, one decoding for all runs, and what cannot be read."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlcore.base.errors import UserError
from mlcore.data.images import image_size
from mlcore.run import load_run, load_runs
from mlcore.run.averaged import is_run
from mlcore.run.decision import Decision, read_decision, write_decision
from mlcore.run.networks import Eager
from mlcore.use.command import predict
from mlcore.use.exporting import export
from quartet.apps.doc_ensemble import scoring
from quartet.apps.doc_ensemble.data import dataset
from quartet.apps.doc_ensemble.data.dataset import Fit, Prepare
from quartet.apps.doc_ensemble.data.folders import read_folders
from quartet.apps.doc_ensemble.data.pages import read_page
from quartet.apps.doc_ensemble.restore import restore
from tests.doc_ensemble.conftest import Run
from tests.doc_ensemble.tiny_runs import write_checkpoint

CPU = torch.device("cpu")


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_that_the_run_wrote_of_its_validation(finished: tuple[Path, str]) -> None:
    rows = table_of(finished[0] / "val_predictions.csv")
    predictor = load_run(finished[0], device="cpu")
    found = predictor([row["image"].removesuffix("#1") for row in rows], batch_size=5)
    names = found[0].class_names
    expected = np.array([[float(row[f"p_{name}"]) for name in names] for row in rows])
    np.testing.assert_allclose([one.probabilities for one in found], expected, atol=2e-6)
    assert [one.predicted for one in found] == [row["predicted"] for row in rows]
    again = predictor(np.asarray(Image.open(rows[3]["image"].removesuffix("#1")).convert("L")))
    np.testing.assert_allclose(again[0].probabilities, expected[3], atol=2e-6)


def test_pages_decoded_at_a_part_of_their_size_are_so_everywhere(
    run: Run, tiny: list[str], pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: dict[str, set[int]] = {"training": set(), "predictions": set()}
    for name, module in (("training", dataset), ("predictions", scoring)):

        def noting(*given: Any, name: str = name, **how: Any) -> Any:
            image = read_page(*given, **how)
            parts[name].add(round(image_size(given[0])[0] / len(image)))
            return image

        monkeypatch.setattr(module, "read_page", noting)
    for page in sorted(pages.rglob("*.jpg")):
        large = tmp_path / "set" / page.relative_to(pages)
        large.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(page) as whole:
            whole.resize((whole.width * 2, whole.height * 2)).save(large, quality=90)
    data = ["--data_dir", tmp_path / "set", "--decode_side", "48"]
    code, said = run("run_experiment", *tiny, *data, "--output_dir", tmp_path / "run")
    assert code == 0, said
    rows, predictor = table_of(tmp_path / "run" / "val_predictions.csv"), load_run(tmp_path / "run", device="cpu")
    paths = [row["image"].removesuffix("#1") for row in rows]
    found = np.array([one.probabilities for one in predictor(paths)])
    expected = np.array([[float(row[f"p_{name}"]) for name in predictor(paths[:1])[0].class_names] for row in rows])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert parts["predictions"] <= parts["training"] <= {2, 4, 8}


def test_predictions_of_a_table_go_on_after_rows_that_name_no_page(
    tmp_path: Path, pages: Path, finished: tuple[Path, str], run: Run
) -> None:
    """Every row of the table is a row of the result, in its place and with its columns."""
    good, other, *_ = sorted((pages / "test").rglob("*.jpg"))
    shutil.copy(other, tmp_path / "other.jpg")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 cut")
    (tmp_path / "bad.png").write_bytes(b"")
    csv_file, output = tmp_path / "pages.csv", tmp_path / "out" / "predictions.csv"
    names = ["none.png", str(good), "bad.pdf", "bad.png", "none.png", "other.jpg", "other.jpg", ""]
    csv_file.write_text("image\n" + "\n".join(names[:-1]) + '\n"x"y\n', encoding="utf-8")
    options = ["--model_path", finished[0], "--output", output]
    code, said = run("predict", "--csv", csv_file, *options)
    assert code == 1, said
    rows = table_of(output)
    assert [row["image"] for row in rows] == names
    assert [place for place, row in enumerate(rows) if row["class"]] == [1, 5, 6]
    assert rows[5] == rows[6]
    assert "empty file" in rows[3]["problem"]
    assert "bad.pdf: " in rows[2]["problem"]
    for place in (0, 4, 7):
        assert rows[place]["problem"].startswith(f"{csv_file}, line {place + 2}: ")
    for place in (0, 2, 3, 4, 7):
        assert f"left out: {rows[place]['problem']}" in said
    assert "8 inputs, 7 of them different, 5 could not be used" in said


@pytest.mark.parametrize("files", [["none.png"], ["bad.png"], ["none.png", "bad.png"]])
def test_a_table_of_bad_rows_only_is_answered_with_their_reasons(
    files: list[str], tmp_path: Path, finished: tuple[Path, str], run: Run
) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    csv_file, output = tmp_path / "pages.csv", tmp_path / "out" / "predictions.csv"
    csv_file.write_text("image\n" + "\n".join(files) + "\n", encoding="utf-8")
    arguments = ["--csv", csv_file, "--model_path", finished[0], "--output", output, "--files", tmp_path / "seen"]
    code, said = run("predict", *arguments)
    assert code == 2
    rows = table_of(output)
    assert [row["image"] for row in rows] == files
    assert all(row["problem"] and not row["class"] for row in rows)
    assert f"nothing could be predicted, {output} has the reasons; the first: {rows[0]['problem']}" in said
    assert not list((tmp_path / "seen").glob("*"))


def test_predict_reads_every_kind_of_page_and_goes_on_after_a_bad_one(
    tmp_path: Path, pages: Path, finished: tuple[Path, str], run: Run
) -> None:
    files = sorted((pages / "test").rglob("*.jpg"))[:3]
    images = [Image.open(path) for path in files]
    scans = tmp_path / "scans"
    (scans / ".cache").mkdir(parents=True)
    images[0].save(scans / ".cache" / "hidden.png")
    images[0].save(scans / "two.tif", save_all=True, append_images=[images[1]], compression="tiff_lzw")
    images[2].save(scans / "one.pdf")
    (scans / "bad.png").write_bytes(b"")
    (scans / "bad.pdf").write_bytes(b"%PDF-1.4 cut")
    model = finished[0] / "checkpoints" / "best_model.pth"
    output, seen = tmp_path / "out" / "predictions.csv", tmp_path / "seen"
    models = ["--model_path", model, "--model_path", finished[0]]
    code, said = run("predict", *models, "--output", output, scans, "--files", seen)
    assert code == 1, said
    rows = table_of(output)
    names = ["bad.pdf", "bad.png#1", "one.pdf#1", "two.tif#1", "two.tif#2"]
    assert [Path(row["input"]).name for row in rows] == names
    good = [row for row in rows if not row["problem"]]
    assert [Path(row["input"]).name for row in good] == ["one.pdf#1", "two.tif#1", "two.tif#2"]
    problems = {Path(row["input"]).name: row["problem"] for row in rows if row["problem"]}
    assert "damaged" in problems["bad.pdf"]
    assert "empty file" in problems["bad.png#1"]
    restored = restore(model, device=CPU)
    pixels = Prepare(Fit((64, 48)), mean=(0,), std=(1,)).pixels(np.asarray(images[1].convert("L"))[..., None])
    with torch.inference_mode():
        raw = torch.softmax(restored(torch.from_numpy(pixels)[None]), dim=1)
    decision = read_decision(finished[0])
    assert decision is not None
    assert decision.temperature != 1
    (chances,) = decision.calibrated(raw.double().numpy())
    assert good[2]["class"] == decision.class_names[int(chances.argmax())]
    assert float(good[2]["probability"]) == pytest.approx(float(chances.max()), abs=1e-5)
    for row in good:
        name = Path(row["input"]).name.replace("#", "_")
        (picture,) = seen.glob(f"{row['class']}/{float(row['probability']):.3f}_{name}_*.jpg")
        with Image.open(picture) as image:
            assert 0 < max(image.size) <= 320
    assert len([path for path in seen.rglob("*") if path.is_file()]) == 3


def test_a_page_is_a_number_in_the_table_as_well_as_in_the_name(
    tmp_path: Path, pages: Path, finished: tuple[Path, str]
) -> None:
    images = [Image.open(path) for path in sorted((pages / "test").rglob("*.jpg"))[:3]]
    images[0].save(tmp_path / "all.tif", save_all=True, append_images=images[1:])
    (tmp_path / "pages.csv").write_text("id,image,page\na,all.tif,3\nb,all.tif#3,\nc,all.tif,\nd,all.tif,4\n", "utf-8")
    output = tmp_path / "answers.csv"
    assert predict([str(finished[0]), str(tmp_path / "pages.csv"), "--output", str(output), "--device", "cpu"]) == 1
    rows = table_of(output)
    whole = load_run(finished[0], device="cpu")(tmp_path / "all.tif")
    assert list(rows[0])[:5] == ["id", "image", "page", "class", "probability"]
    for row, page in zip(rows[:3], (2, 2, 0), strict=True):
        assert float(row["probability"]) == pytest.approx(whole[page].probability, abs=1e-6)
    assert "no page 4" in rows[3]["problem"]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory, pages: Path) -> list[Path]:
    """Grey and in colour, stretched and with their aspect kept."""
    folder, classes = tmp_path_factory.mktemp("members"), read_folders(pages).classes
    return [
        write_checkpoint(folder / "a.pth", seed=1, classes=classes, data_dir=pages),
        write_checkpoint(folder / "b.ckpt", seed=2, classes=classes, data_dir=pages, channels=3),
        write_checkpoint(folder / "c.pth", seed=3, classes=classes, data_dir=pages, fit="letterbox"),
    ]


def test_runs_are_averaged_and_a_page_is_decoded_once_for_all_of_them(
    members: list[Path], pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(path) for path in sorted((pages / "test").rglob("*.jpg"))[:7]]
    alone = [load_run(path, device="cpu")(files) for path in members]
    decoded: Counter[Path] = Counter()
    read = scoring.read_page

    def counted(path: Path, *arguments: Any, **options: Any) -> Any:
        decoded[path] += 1
        return read(path, *arguments, **options)

    monkeypatch.setattr(scoring, "read_page", counted)
    scoring._decoded.cache_clear()
    together = load_runs(members, device="cpu")(files)
    assert decoded == Counter({Path(path): 1 for path in files})
    for number, one in enumerate(together):
        expected = np.mean([said[number].probabilities for said in alone], axis=0)
        np.testing.assert_allclose(one.probabilities, expected, atol=1e-12)
    output = tmp_path / "answers.csv"
    code = predict([*map(str, members), *files, "--output", str(output), "--device", "cpu", "--num_workers", "0"])
    assert code == 0
    assert [float(row["probability"]) for row in table_of(output)] == pytest.approx(
        [one.probability for one in together], abs=1e-6
    )


def test_a_page_that_one_of_the_runs_leaves_to_a_person_is_a_persons(
    members: list[Path], pages: Path, tmp_path: Path
) -> None:
    classes = read_folders(pages).classes
    sure, unsure = tmp_path / "sure", tmp_path / "unsure"
    for folder, member, least in ((sure, members[0], 1e-9), (unsure, members[2], 1.1)):
        folder.mkdir()
        shutil.copy(member, folder / "best_model.pth")
        write_decision(folder, Decision(kind="multiclass", class_names=classes, least=(least,) * len(classes)))
    page = next((pages / "test").rglob("*.jpg"))
    (one,) = load_runs([sure, sure], device="cpu")(page)
    (two,) = load_runs([sure, unsure], device="cpu")(page)
    assert one.review is False
    assert two.review is True
    assert two.row()[-1] == "yes"
    assert two.probability == two.probabilities.max()


@pytest.mark.slow
def test_an_export_predicts_as_the_run_does(finished: tuple[Path, str], pages: Path, tmp_path: Path) -> None:
    files = sorted((pages / "test").rglob("*.jpg"))[:5]
    predictor = load_run(finished[0], device="cpu")
    export(predictor, tmp_path / "export", ["onnx"])
    expected = [one.probabilities for one in predictor(files)]
    for network in (None, "onnx"):
        found = load_run(tmp_path / "export", device="cpu", network=network)(files)
        np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-5)
    together = load_runs([finished[0], tmp_path / "export"], device="cpu")
    with pytest.raises(UserError, match="several networks, of an ensemble"):
        export(together, tmp_path / "two", [])


def test_runs_before_the_inputs_are_told_from_folders_of_pages(
    finished: tuple[Path, str], members: list[Path], pages: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.json").touch()  # as in an export
    assert all(map(is_run, map(str, [finished[0], finished[0] / "checkpoints", *members, tmp_path, "s3://b/a.ckpt"])))
    assert not any(map(is_run, map(str, [pages, pages / "test", "page.png", "scan.pdf", "s3://b/table.csv"])))


def test_runs_that_do_not_fit_together_are_named(members: list[Path], pages: Path, tmp_path: Path) -> None:
    classes = list(read_folders(pages).classes)
    other = write_checkpoint(tmp_path / "other.pth", seed=1, classes=[*classes[1:], classes[0]], data_dir=pages)
    with pytest.raises(UserError) as error:
        load_runs([members[0], other], device="cpu")
    assert f"{members[0]} and {other} cannot be averaged" in str(error.value)
    assert f"the first gives p_{classes[0]}, the second gives p_{classes[1]}; runs need the same" in str(error.value)


def test_a_file_that_was_changed_is_read_again(finished: tuple[Path, str], pages: Path, tmp_path: Path) -> None:
    first, second = (path for path in sorted((pages / "test").rglob("*.jpg"))[::20][:2])
    predictor = load_run(finished[0], device="cpu")
    expected = [predictor(path)[0].probabilities for path in (first, second)]
    for source, wanted in zip((first, second), expected, strict=True):
        shutil.copy(source, tmp_path / "page.jpg")
        os.utime(tmp_path / "page.jpg", ns=(source.stat().st_ino, source.stat().st_ino))
        np.testing.assert_array_equal(predictor(tmp_path / "page.jpg")[0].probabilities, wanted)


def test_answers_that_are_no_numbers_end_the_job(finished: tuple[Path, str], pages: Path) -> None:
    predictor = load_run(finished[0], device="cpu")
    assert isinstance(predictor.scorer.network, Eager)
    for weight in predictor.scorer.network.module.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="answers are not finite: its training has diverged"):
        predictor(next((pages / "test").rglob("*.jpg")))
