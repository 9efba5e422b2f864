"""Folders of .npy files: the samples of a .npz file of the same arrays, of which memory holds one at a time."""

import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data import inspect_dataset, read_npz
from quartet.apps.perceiver.data.inspection import Needs
from tests.perceiver.conftest import Script


def arrays(samples: int = 30, *, seed: int = 0) -> dict[str, Any]:
    """Sequences of two channels with gaps, masks and time stamps."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, samples)
    inputs = rng.standard_normal((lengths.sum(), 2)).astype(np.float32)
    labels = np.arange(samples) % 2
    inputs[:, 1] += np.repeat(4 * labels, lengths)
    inputs[rng.random(inputs.shape) < 0.05] = np.nan
    return {
        "inputs": inputs,
        "lengths": lengths,
        "labels": labels,
        "mask": rng.random(len(inputs)) < 0.95,
        "times": np.cumsum(rng.uniform(0.1, 2, len(inputs))),
        "classes": np.array(["calm", "busy"]),
    }


def store(folder: Path, given: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in given.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.mark.parametrize("on_missing", ["mask", "interpolate"])
@pytest.mark.parametrize("even", [False, True])
def test_stored_and_loaded_samples_are_the_same(even: bool, on_missing: Any, tmp_path: Path) -> None:
    given = arrays()
    if even:
        steps = {name: given[name][:80].reshape(20, 4, *given[name].shape[1:]) for name in ("inputs", "mask", "times")}
        given = {**steps, "labels": given["labels"][:20], "classes": given["classes"]}
    np.savez(tmp_path / "own.npz", **given)
    stored, loaded = (
        read_npz(path, on_missing=on_missing, strict=False)
        for path in (store(tmp_path / "own", given), tmp_path / "own.npz")
    )
    assert stored.classes == loaded.classes == ("calm", "busy")
    for place in range(len(loaded)):
        one, other = stored[place], loaded[place]
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])  # type: ignore[literal-required]
    looks = [inspect_dataset(data, classes=("calm", "busy"), on_bad_sample="skip") for data in (stored, loaded)]
    assert looks[0].statistics == looks[1].statistics


def test_memory_holds_a_sample_at_a_time(tmp_path: Path) -> None:
    given = {
        "inputs": np.ones((64, 20_000, 2), np.float32),
        "labels": np.arange(64) % 2,
        "times": np.ones((64, 20_000)),
    }
    given["times"] = given["times"].cumsum(axis=1)
    data = read_npz(store(tmp_path / "own", given))
    size = given["inputs"][0].nbytes
    tracemalloc.start()
    try:
        look = inspect_dataset(data, classes=data.classes, needs=Needs(timed=True))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert look.statistics.time_step == 1
    assert peak < 16 * size  # copies of one sample, some of them in double precision; all are 64


READS = """
import resource, sys
from pathlib import Path
from quartet.apps.perceiver.data import inspect_dataset, read_npz

data = read_npz(Path(sys.argv[1]))
data[0]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert inspect_dataset(data, classes=data.classes).lengths.sum() == 64 * 500_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_process_stays_as_large_as_a_sample(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    inputs = np.lib.format.open_memmap(tmp_path / "own" / "inputs.npy", "w+", np.float32, (64, 500_000, 1))
    inputs[:, 7] = 1.0  # the rest of its 128 MB is a hole in the file
    del inputs
    np.save(tmp_path / "own" / "labels.npy", np.arange(64) % 2)
    done = subprocess.run(
        [sys.executable, "-c", READS, str(tmp_path / "own")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40  # MiB: copies of one sample of 2 MB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.zeros(3)}, "unknown array weights; known are"),
        ({"inputs": np.asfortranarray(np.zeros((4, 2)))}, r"inputs\.npy: stored by columns; save numpy\.ascontiguous"),
        ({"inputs": np.array([None, 1])}, r"inputs\.npy: damaged or not a \.npy file of plain numbers"),
        ({"lengths": np.array([3, 4])}, "lengths add up to 7"),
        ({"times": np.zeros(3)}, r"times is \[3\]; expected \["),
        ({"mask": np.array(["a"] * len(arrays()["inputs"]))}, "mask is <U1; expected numbers"),
    ],
)
def test_folders_that_cannot_be_used(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"own.*{message}"):
        read_npz(store(tmp_path / "own", arrays() | change))


def test_a_file_that_becomes_shorter_is_an_error_and_no_crash(tmp_path: Path) -> None:
    data = read_npz(store(tmp_path / "own", arrays()), on_missing="interpolate")
    path = tmp_path / "own" / "inputs.npy"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        UserError, match=r"inputs\.npy: damaged or not a \.npy file of plain numbers .it has become shorter"
    ):
        data[20]


def test_masks_in_files_are_looked_at_when_a_sample_is(tmp_path: Path) -> None:
    mask = np.where(np.arange(len(arrays()["inputs"])) == 0, -np.inf, 0)
    data = read_npz(store(tmp_path / "own", arrays() | {"mask": mask}))
    with pytest.raises(UserError, match="a mask must be 1 where a position is real"):
        data[0]


def test_a_run_of_a_folder_is_that_of_its_arrays(script: Script, tiny: Sequence[str]) -> None:
    np.savez("own.npz", **arrays())
    store(Path("own"), arrays())
    answers = []
    for name in ("own", "own.npz"):
        data = ["--dataset", "custom", "--train_path", name, "--on_missing", "interpolate", "--on_bad_sample", "skip"]
        ended = script("train", *tiny, *data, "--output_dir", f"run_{name}", "--warmup_steps", "0")
        assert ended.code == 0, ended.err
        ended = script("predict", "--model_path", f"run_{name}", name)
        assert ended.code in (0, 1), ended.err
        lines = Path("predictions.csv").read_text("utf-8").replace("own.npz", "own").splitlines()
        answers.append(lines)
        Path("predictions.csv").unlink()
    assert answers[0] == answers[1]
    assert len(answers[0]) == 31
