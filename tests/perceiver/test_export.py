"""quartet export: files that give the run's numbers, also where this repository is not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mlcore.base.errors import UserError
from mlcore.run import load_run
from mlcore.use.exporting import export, prove
from quartet.apps.perceiver.restore import make_model

FORMS = (None, "pt2", "onnx")

# Runs in a fresh process that never imports the repository's code.
WITHOUT_THE_REPOSITORY = """
import runpy, sys
sys.argv = ["predict.py", *sys.argv[1:]]
runpy.run_path("exported/predict.py", run_name="__main__")
assert not any(name.split(".")[0] in ("quartet", "mlcore", "torch") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def exported(series_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "exported"
    export(load_run(series_run, device="cpu"), folder, ["pt2", "onnx"])
    return folder


def reader(folder: Path, *files: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-I", "-c", WITHOUT_THE_REPOSITORY, *files]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)


def read_elsewhere(folder: Path, *files: str) -> list[list[str]]:
    done = reader(folder, *files)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_the_script_writes_all_files_and_proves_them(series_run: Path, script: Any) -> None:
    ended = script("export", "--model_path", series_run / "checkpoints" / "best_model.pth", "--output_dir", "out")
    assert ended.code == 0, ended.err
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"model.json", "model.safetensors", "model.pt2", "model.onnx", "predict.py"}
    assert ended.out.count("largest difference from float32") == 3


@pytest.mark.parametrize("form", FORMS)
def test_every_form_predicts_what_the_run_does(form: str | None, exported: Path, series_run: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((length, 4)) for length in (1, 5, 17)]
    expected = load_run(series_run, device="cpu")(inputs)
    found = load_run(exported, device="cpu", network=form)(inputs)
    for one, other in zip(found, expected, strict=True):
        assert one.class_names == ["sine", "square", "sawtooth"]
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_series_are_read_without_the_repository(exported: Path, series_run: Path) -> None:
    inputs = np.random.default_rng(1).standard_normal((3, 9, 4)).astype(np.float32)
    np.savez(exported.parent / "new.npz", inputs=inputs)
    expected = load_run(series_run, device="cpu")(list(inputs))
    found = read_elsewhere(exported, "new.npz")
    assert [row[1] for row in found] == [one.predicted for one in expected]
    assert [float(row[2]) for row in found] == pytest.approx([one.probability for one in expected], abs=1e-5)


def test_series_of_several_lengths_are_read_without_the_repository(exported: Path, series_run: Path) -> None:
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((20, 4)).astype(np.float32)
    mask = np.ones(20)
    mask[[1, 6, 19]] = 0
    np.savez(exported.parent / "several.npz", inputs=inputs, lengths=[5, 1, 14], mask=mask, labels=[0, 1, 2])
    expected = load_run(series_run, device="cpu")(str(exported.parent / "several.npz"))
    found = read_elsewhere(exported, "several.npz")
    assert [row[1] for row in found] == [one.predicted for one in expected]
    assert [float(row[2]) for row in found] == pytest.approx([one.probability for one in expected], abs=1e-5)


def _refused(folder: Path) -> dict[str, str]:
    """Files that the reader does not take, and what it says of them."""
    rng = np.random.default_rng(1)
    series = rng.standard_normal((2, 6, 4)).astype(np.float32)
    gap = series.copy()
    gap[1, 2, 0] = np.nan
    np.savez(folder / "gap.npz", inputs=gap)
    np.savez(folder / "narrow.npz", inputs=series[..., :3])
    np.savez(folder / "flat.npz", inputs=series[0])
    np.savez(folder / "other.npz", x=series)
    np.savez(folder / "empty.npz", inputs=np.zeros((6, 4)), lengths=[6, 0])
    np.savez(folder / "masked.npz", inputs=series, mask=np.ones((2, 5)))
    (folder / "cut.npz").write_bytes((folder / "gap.npz").read_bytes()[:200])
    for name in ("t.ts", "t.csv", "t.png"):
        (folder / name).write_text("1,2,3\n")
    return {
        "gone.npz": "no such file",
        "gap.npz": "row 1: has gaps",
        "narrow.npz": "row 0: [6, 3]; expected [positions, 4]",
        "flat.npz": "expected the array inputs [N, M, C], or [total, C] with lengths",
        "other.npz": "expected the array inputs",
        "empty.npz": "row 1: [0, 4]; expected [positions, 4], one at least",
        "masked.npz": "mask is [2, 5]; expected [2, 6]",
        "cut.npz": "damaged or not an .npz file",
        **dict.fromkeys(("t.ts", "t.csv", "t.png"), "for others: quartet predict"),
    }


def test_an_option_that_cannot_be_is_no_fault_of_the_export(exported: Path) -> None:
    with pytest.raises(UserError, match=r"^on_missing=drop: expected error, mask, interpolate"):
        load_run(exported, device="cpu", options={"on_missing": "drop"})


def test_what_the_reader_does_not_take_is_one_line(exported: Path) -> None:
    for file, said in _refused(exported.parent).items():
        done = reader(exported, file)
        assert done.returncode == 1, file
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith(file)
        assert said in done.stderr


def test_pictures_are_read_without_the_repository(image_run: Path, tmp_path: Path) -> None:
    predictor = load_run(image_run, device="cpu")
    export(predictor, tmp_path / "exported", ["onnx"])
    rng = np.random.default_rng(2)
    files = []
    for size in ((16, 16), (40, 23)):
        files.append(str(tmp_path / f"{size[0]}.png"))
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(files[-1])
    expected = predictor(files)
    found = read_elsewhere(tmp_path / "exported", *files)
    assert [float(row[2]) for row in found] == pytest.approx([one.probability for one in expected], abs=1e-5)
    np.savez(tmp_path / "new.npz", inputs=np.zeros((1, 4, 4)))
    done = reader(tmp_path / "exported", "new.npz")
    assert done.stderr.strip() == "new.npz: not a picture, which this model reads, or damaged"


KINDS = [(position, longest) for position in ("fourier", "learned", "none") for longest in (1, 5, 40)]
QUICK = {("fourier", 40), ("learned", 1)}  # the others are slow in all; sinusoidal is what `exported` has


@pytest.mark.slow
@pytest.mark.parametrize(
    ("position", "longest"), [pytest.param(*kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS]
)
def test_every_kind_of_position_is_exported(position: str, longest: int, series_run: Path, tmp_path: Path) -> None:
    state = torch.load(series_run / "checkpoints" / "best_model.pth", weights_only=True)
    settings = state["task"]["model"]
    options = {**settings["options"], "position": position, "max_seq_len": longest}
    torch.manual_seed(0)
    model = make_model({**settings, "options": options})
    metadata = {**state["task"], "model": {**settings, "options": options}}
    checkpoint = tmp_path / "model.pth"
    torch.save({**state, "model": model.state_dict(), "task": metadata}, checkpoint)
    export(load_run(checkpoint, device="cpu"), tmp_path / "out", ["pt2"])
    if position != "none" and longest > 1:
        found = load_run(tmp_path / "out", device="cpu", network="pt2")(np.ones((longest, 4)))
        assert len(found[0].probabilities) == 3


def test_the_weights_are_the_runs(exported: Path, series_run: Path) -> None:
    note = json.loads((exported / "model.json").read_text("utf-8"))
    rebuilt = make_model(note["about"]["model"])
    rebuilt.load_state_dict(load_file(exported / "model.safetensors"))
    network: Any = load_run(series_run, device="cpu").scorer.network
    original = network.module.state_dict()
    assert all(torch.equal(value, original[key]) for key, value in rebuilt.state_dict().items())


def test_the_proof_takes_no_library_from_the_current_folder(
    exported: Path, series_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("torch", "mlcore", "onnxruntime"):
        Path(f"{name}.py").write_text("open('canary', 'w').close()\n")
    prove(load_run(series_run), exported, [])
    assert not Path("canary").exists()


def test_a_network_that_gives_other_numbers_is_not_exported(series_run: Path, tmp_path: Path) -> None:
    predictor = load_run(series_run, device="cpu")
    network: Any = predictor.scorer.network
    plain = type(network).__call__

    class Other(type(network)):  # type: ignore[misc] # a class made of a value
        def __call__(self, inputs: Any) -> Any:
            return {name: value * 1.001 for name, value in plain(self, inputs).items()}

    network.__class__ = Other
    reason = r"logits is another than expected by 1\.00e-03"
    with pytest.raises(UserError, match=reason):
        export(predictor, tmp_path / "out", [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("precision", "half", "formats"),
    [("fp32", True, []), ("bf16", False, []), pytest.param("fp32", True, ["onnx"], marks=pytest.mark.slow)],
)
def test_what_half_precision_costs_is_measured(
    precision: Any, half: bool, formats: list[str], series_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of weights kept in half of the bits, and of a run that computes so; all forms give the same."""
    predictor, folder = load_run(series_run, device="cpu"), tmp_path / "out"
    inputs = [np.random.default_rng(3).standard_normal((length, 4)) for length in (1, 5, 17)]
    expected = predictor(inputs)
    network: Any = predictor.scorer.network
    network.precision = precision
    with caplog.at_level("INFO", logger="mlcore"):
        export(predictor, folder, formats, half=half)
    difference = json.loads((folder / "model.json").read_text("utf-8"))["difference"]
    assert 1e-5 < difference < 0.05
    arithmetic = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert f"from the run {difference:.1e} (relative), which computes in {arithmetic}" in caplog.text
    kinds = {value.dtype for value in load_file(folder / "model.safetensors").values() if value.is_floating_point()}
    assert kinds == {torch.float16 if half else torch.float32}
    forms = [load_run(folder, device="cpu", network=form)(inputs) for form in (None, *formats)]
    for found in forms:
        for one, other, run in zip(found, forms[0], expected, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
            assert one.probabilities == pytest.approx(run.probabilities, abs=1e-2 if half else 1e-5)
    prove(predictor, folder, formats)


def test_weights_that_are_no_float16_are_named(series_run: Path, tmp_path: Path) -> None:
    predictor = load_run(series_run, device="cpu")
    network: Any = predictor.scorer.network
    network.module.head.project.bias.data[0] = 1e5
    with pytest.raises(UserError, match=r"head\.project\.bias has values above 65504"):
        export(predictor, tmp_path / "out", [], half=True)
    assert not list(tmp_path.iterdir())


def test_an_export_that_was_changed_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in exported.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    weights = load_file(copy / "model.safetensors")
    weights["head.project.bias"] = weights["head.project.bias"] + 0.01
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(UserError, match=r"copy/model\.safetensors: was changed after the export"):
        load_run(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"copy/model\.safetensors: model\.json names this file, and it is not there"):
        load_run(copy)
    note = json.loads((exported / "model.json").read_text("utf-8"))
    (copy / "model.json").write_text(json.dumps({**note, "layout": 99}), "utf-8")
    with pytest.raises(UserError, match="written by a newer version"):
        load_run(copy)


def test_an_export_is_not_exported_again(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an export already"):
        export(load_run(exported, device="cpu"), tmp_path / "out", [])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_leaves_nothing(script: Any) -> None:
    ended = script("export", "--model_path", "none.pth", "--output_dir", "out")
    assert ended.code == 2
    assert "none.pth: no such checkpoint file" in ended.err
    assert not Path("out").exists()
