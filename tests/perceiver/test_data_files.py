"""Readers of files: what is in them, and what is said when they are wrong."""

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlcore.base.errors import UserError
from quartet.apps.perceiver.data import ImagePatches, find_ts_files, load_cifar10, read_npz, read_ts

HEADER = """# a comment
@problemName Tiny
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true yes no
@data
"""

STAMPED = HEADER.replace("@timeStamps false", "@timeStamps true")


def ts_file(folder: Path, text: str, name: str = "Tiny_TRAIN.ts") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_ts_series_are_read(tmp_path: Path) -> None:
    body = "1,2,3:4,5,6:yes\n# between\n\n 7e-1 , ? : -8,+9 : no\n:: no\n"
    path = ts_file(tmp_path, HEADER + body)
    data = read_ts(path)
    assert data.classes == ("yes", "no")
    assert data.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(data[0]["input"], np.array([[1, 4], [2, 5], [3, 6]], dtype=np.float32))
    np.testing.assert_array_equal(data[1]["input"], np.array([[0.7, -8], [np.nan, 9]], dtype=np.float32))
    assert data[2]["input"].shape == (0, 2)
    assert data.origin(1) == f"{path}, line 13"
    assert data[0]["input"].dtype == np.float32


def test_ts_univariate_of_equal_length(tmp_path: Path) -> None:
    path = ts_file(tmp_path, "@UNIVARIATE TRUE\n@seriesLength 2\n@classLabel true a b\n@DATA\n1,2:a\n3,4:b\n")
    data = read_ts(path)
    assert [data[i]["input"].shape for i in range(2)] == [(2, 1), (2, 1)]


@pytest.mark.parametrize("stated", ["", "0", "-1", "?", "29 7", "nine"])
def test_ts_lengths_that_are_none_say_nothing(stated: str, tmp_path: Path) -> None:
    text = f"\ufeff@univariate true\n@seriesLength {stated}\n@classLabel true a b\n@data\n1,2:a\n3,4,5:b\n"
    assert [len(one["input"]) for one in read_ts(ts_file(tmp_path, text))] == [2, 3]


def test_ts_lengths_that_differ_though_one_is_stated(tmp_path: Path) -> None:
    text = "@univariate true\n@seriesLength 2\n@classLabel true a b\n@data\n1,2:a\n3,4,5:b\n"
    with pytest.raises(UserError, match="line 6: 3 values where @seriesLength says 2"):
        read_ts(ts_file(tmp_path, text))
    assert len(read_ts(ts_file(tmp_path, text.replace("@data", "@equalLength false\n@data")))) == 2


def test_ts_time_stamps_of_each_channel_become_one_axis(tmp_path: Path) -> None:
    body = "(0,1),(2.5,2):(1,10),(2.5,20) ,(4,30):yes\n(2026-01-31 23:59:30,7) : (2026-02-01 00:00:00, 8):no\n"
    data = read_ts(ts_file(tmp_path, STAMPED + body), on_missing="interpolate")
    # Values, then the time since the first stamp; lines between values are drawn over time.
    np.testing.assert_allclose(data[0]["input"], [[1, 10, 0], [1.4, 10, 1], [2, 20, 2.5], [2, 30, 4]], rtol=1e-6)
    np.testing.assert_array_equal(data[1]["input"], [[7, 8, 0], [7, 8, 30]])
    assert data.labels.tolist() == [0, 1]
    gaps = read_ts(ts_file(tmp_path, STAMPED + body))[0]["input"]
    assert np.isnan(gaps[:, :2]).sum() == 3
    assert gaps[:, 2].tolist() == [0, 1, 2.5, 4]


def test_ts_test_file_takes_the_labels_of_training(tmp_path: Path) -> None:
    data = read_ts(ts_file(tmp_path, HEADER + "1:1:no\n"), classes=("no", "yes"))
    assert data.labels.tolist() == [0]
    assert data.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "1,2:1,2:maybe\n", r"line 10: class 'maybe' is not one of yes, no"),
        (HEADER + "1,2:1,2:yes\n1,x:1,2:no\n", r"line 11, channel 1: 'x' is not a number"),
        (HEADER + "1,2:1,2,3:yes\n", r"line 10: its channels have different lengths: \[2, 3\]"),
        (HEADER + "1,2:yes\n", r"line 10: 1 channels where the header says 2"),
        (HEADER + "yes\n", r"line 10: no series before the class"),
        (HEADER + "(0,1),(1,2):(0,1):yes\n", r"line 10, channel 1: pairs \(time,value\), and the header does not say"),
        (HEADER + "1,,2:1,2,3:yes\n", r"line 10, channel 1: '' is not a number"),
        (HEADER, "no series after @data"),
        (
            STAMPED + "(0,1),(2,2),(1,3):(0,1):yes\n",
            r"line 10, channel 1, pair 3: the time stamp 1 does not come after 2",
        ),
        (STAMPED + "(0,1):(4,2),(4,3):yes\n", r"line 10, channel 2, pair 2: the time stamp 4 does not come after 4"),
        (STAMPED + "(0,1),(soon,2):(0,1):yes\n", r"line 10, channel 1, pair 2: the time stamp is missing, or neither"),
        (STAMPED + "(0,1):(0,x):yes\n", r"line 10, channel 2: 'x' is not a number"),
        (STAMPED + "1,2:1,2:yes\n", r"line 10, channel 1: expected \(time,value\),\(time,value\), as @timeStamps true"),
        (HEADER.replace("true yes no", "false") + "1:1\n", "no '@classLabel true"),
        (HEADER.replace("true yes no", "true yes yes"), "line 8: @classLabel true must be followed by the distinct"),
        (HEADER.replace("@dimensions 2", "@dimensions two"), "line 6: @dimensions must be followed by a number"),
        (HEADER.replace("@missing true", "@targetLabel true"), "line 4: regression targets"),
        (HEADER.replace("@univariate false", "@univariate perhaps"), "line 5: @univariate must be followed by true"),
        (HEADER.replace("@equalLength false", "@seriesLength 3") + "1:1:no\n", "1 values where @seriesLength says 3"),
        (HEADER.replace("@data", "1,2:yes"), "line 9: expected a header line"),
        ("@problemName x\n", "no @data line"),
        ("", "no @data line"),
    ],
)
def test_ts_errors_name_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"Tiny_TRAIN\.ts.*{message}"):
        read_ts(ts_file(tmp_path, text))


def test_ts_lines_that_cannot_be_read_are_samples_that_say_so(tmp_path: Path) -> None:
    body = "1,2:4,5:yes\n1,x:1,2:no\n1,2:1,2:maybe\n1:2\n7,8:9,1:no\n"
    data = read_ts(ts_file(tmp_path, HEADER + body), strict=False)
    assert len(data) == 5
    assert [data[i]["label"] for i in (0, 4)] == [0, 1]
    for index, message in (
        (1, "line 11, channel 1: 'x' is not a number"),
        (2, "line 12: class 'maybe' is not one of"),
        (3, "line 13: class '2' is not one of"),
    ):
        with pytest.raises(UserError, match=message):
            data[index]


def test_ts_missing_values_at_the_end_are_length(tmp_path: Path) -> None:
    body = "1,2,?,?:4,5,?,NaN:yes\n1,?,3:1,2,3:no\n1,2,?:4,5,6:no\n"
    path = ts_file(tmp_path, HEADER.replace("@equalLength false", "@comment") + body)
    kept, masked, drawn = (read_ts(path, on_missing=how) for how in ("error", "mask", "interpolate"))  # type: ignore[arg-type]
    for data in (kept, masked, drawn):
        np.testing.assert_array_equal(data[0]["input"], [[1, 4], [2, 5]])
    np.testing.assert_array_equal(kept[1]["input"][:, 0], [1, np.nan, 3])
    assert [masked[i]["mask"].tolist() for i in (1, 2)] == [[1, 0, 1], [1, 1]]
    np.testing.assert_array_equal(drawn[1]["input"], [[1, 1], [2, 2], [3, 3]])
    np.testing.assert_array_equal(drawn[2]["input"], [[1, 4], [2, 5], [2, 6]])
    assert drawn[2]["mask"].all()


def test_ts_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"a\.ts: damaged or not text in UTF-8"):
        read_ts(path)
    with pytest.raises(UserError, match="no such file"):
        read_ts(tmp_path / "b.ts")


def test_ts_files_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected one file named \*_TRAIN\.ts, found 0"):
        find_ts_files(tmp_path)
    train = ts_file(tmp_path, HEADER)
    assert find_ts_files(tmp_path) == (train, None)
    test = ts_file(tmp_path, HEADER, "Tiny_TEST.ts")
    assert find_ts_files(tmp_path) == (train, test)


def test_japanese_vowels_as_published(real_data: Path) -> None:
    train_path, test_path = find_ts_files(real_data / "JapaneseVowels")
    assert test_path is not None
    train, test = read_ts(train_path), read_ts(test_path)
    assert (len(train), len(test)) == (270, 370)
    assert np.bincount(train.labels).tolist() == [30] * 9
    lengths = [len(s) for data in (train, test) for s in data.sequences]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {s.shape[1] for s in train.sequences} == {12}


def test_npz_in_both_layouts(tmp_path: Path) -> None:
    equal, ragged = tmp_path / "equal.npz", tmp_path / "ragged.npz"
    inputs = np.arange(24, dtype=np.float64).reshape(2, 4, 3)
    np.savez(equal, inputs=inputs, labels=[1, 0], classes=["a", "b"])
    np.savez(ragged, inputs=inputs.reshape(8, 3), lengths=[3, 5], labels=[1, 0])
    first, second = read_npz(equal), read_npz(ragged)
    np.testing.assert_array_equal(first[1]["input"], inputs[1])
    np.testing.assert_array_equal(second[1]["input"], inputs.reshape(8, 3)[3:])
    assert first.classes == ("a", "b")
    assert second.classes == ("0", "1")
    assert second[0]["mask"].shape == (3,)
    assert second.origin(1) == f"{ragged}, row 1"


def npz_file(path: Path, labels: object, **more: object) -> Path:
    np.savez(path, inputs=np.zeros((len(labels), 3, 1)), labels=labels, **more)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "names"),
    [
        ([1, -1, -1], None, [1, 0, 0], ("-1", "1")),
        ([1.0, -1.0], None, [1, 0], ("-1", "1")),
        ([2.0, 0.0, 1.0], None, [2, 0, 1], ("0", "1", "2")),
        ([True, False], None, [1, 0], ("0", "1")),
        (["walk", "run", "walk"], None, [1, 0, 1], ("run", "walk")),
        ([b"walk", b"run"], None, [1, 0], ("run", "walk")),
        (["walk", "run"], ["walk", "run"], [0, 1], ("walk", "run")),
        ([1, -1], [-1, 1], [1, 0], ("-1", "1")),  # what numpy.unique gives
        ([10, 30, 20], [10.0, 20.0, 30.0], [0, 2, 1], ("10", "20", "30")),
        ([0, 2], ["10", "20", "30"], [0, 2], ("10", "20", "30")),
    ],
)
def test_labels_are_names_or_places(
    tmp_path: Path, labels: list[object], classes: list[object] | None, numbers: list[int], names: tuple[str, ...]
) -> None:
    data = read_npz(npz_file(tmp_path / "own.npz", labels, **({} if classes is None else {"classes": classes})))
    assert data.labels.tolist() == numbers
    assert data.classes == names


@pytest.mark.parametrize(
    ("train", "test", "numbers"),
    [
        (([0, 1, 2], ["a", "b", "c"]), ([0, 1, 2, 2], ["c", "a", "b"]), [2, 0, 1, 1]),
        (([0, 1, 2], ["a", "b", "c"]), (["b", "c"], None), [1, 2]),
        (([0, 1, 2], ["a", "b", "c"]), ([2, 0], None), [2, 0]),  # no list: places in the training data's
        ((["b", "a"], None), ([0, 1], ["b", "a"]), [1, 0]),
        (([-1, 1], None), ([1, 1], None), [1, 1]),
        (([-1, 1], None), ([-1.0], None), [0]),
        (([0, 1], None), (["1", "0"], None), [1, 0]),
    ],
)
def test_test_files_mean_the_training_datas_classes_by_name(
    tmp_path: Path, train: tuple[Any, Any], test: tuple[Any, Any], numbers: list[int]
) -> None:
    first, second = (
        npz_file(tmp_path / f"{name}.npz", labels, **({} if classes is None else {"classes": classes}))
        for name, (labels, classes) in (("train", train), ("test", test))
    )
    data = read_npz(second, like=read_npz(first))
    assert data.labels.tolist() == numbers
    assert data.classes == read_npz(first).classes


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (([0, 1], ["a", "b"]), ([0, 1], ["a", "c"]), "its classes are a, c, the training data's a, b; both files"),
        (([0, 1], ["a", "b"]), ([0, 1], ["a", "b", "c"]), "its classes are a, b, c, the training data's a, b"),
        (([0, 1], None), ([0, 1], ["a", "b"]), "its classes are a, b, the training data's 0, 1"),
        (([0, 1], ["a", "b"]), (["a", "x"], None), "test.npz, row 1: label 'x' is not one of a, b"),
        (([-1, 1], None), ([0, 1], None), "test.npz, row 0: label '0' is not one of -1, 1"),
        ((["a", "b"], None), ([0, 1], None), "test.npz, row 0: label '0' is not one of a, b"),
        (([0, 1], ["a", "b"]), ([0, 1], ["1", "0"]), "its classes are 1, 0"),
    ],
)
def test_classes_that_differ_from_the_training_datas_are_refused(
    tmp_path: Path, train: tuple[Any, Any], test: tuple[Any, Any], message: str
) -> None:
    first, second = (
        npz_file(tmp_path / f"{name}.npz", labels, **({} if classes is None else {"classes": classes}))
        for name, (labels, classes) in (("train", train), ("test", test))
    )
    with pytest.raises(UserError, match=f"test.npz.*{message}" if "row" not in message else message):
        read_npz(second, like=read_npz(first))


def test_a_label_that_is_no_class_may_wait_until_it_is_asked_for(tmp_path: Path) -> None:
    path = npz_file(tmp_path / "own.npz", ["a", "x", "b"], classes=["a", "b"])
    data = read_npz(path, strict=False)
    assert data[2]["label"] == 1
    with pytest.raises(UserError, match=r"own\.npz, row 1: label 'x' is not one of a, b"):
        data[1]


def test_masks_and_missing_values_in_both_layouts(tmp_path: Path) -> None:
    inputs = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    inputs[0, 2] = np.nan  # the end of the first
    mask = np.array([[1, 1, 1], [0, 1, 1]])
    np.savez(tmp_path / "equal.npz", inputs=inputs, mask=mask, labels=[0, 1])
    flat = {"inputs": inputs.reshape(6, 2), "mask": mask.ravel() == 1, "lengths": [3, 3]}
    np.savez(tmp_path / "ragged.npz", labels=[0, 1], **flat)  # type: ignore[arg-type]
    for data in (read_npz(tmp_path / "equal.npz"), read_npz(tmp_path / "ragged.npz")):
        assert [data[i]["mask"].tolist() for i in range(2)] == [[1, 1], [0, 1, 1]]
        np.testing.assert_array_equal(data[0]["input"], inputs[0, :2])


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.zeros((2, 3, 1))}, "no array named labels"),
        ({"labels": [0]}, "no array named inputs"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0]}, "2 sequences but 1 labels"),
        ({"inputs": np.zeros((2, 3)), "labels": [0, 1]}, "there are no lengths"),
        ({"inputs": np.zeros((2, 3)), "labels": [0, 1], "lengths": [1, 2]}, "add up to 3, inputs have 2"),
        ({"inputs": np.zeros((2, 3)), "labels": [0, 1], "lengths": [3, -1]}, "add up to 2"),
        ({"inputs": np.zeros((2, 3)), "labels": [0, 1], "lengths": [1.0, 1.0]}, "lengths float64"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0.5, 1]}, "labels float64"),
        ({"inputs": np.array([["a"]]), "labels": [0]}, "inputs are <U1"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0.0, np.nan]}, "labels float64"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0, 1], "classes": "ab"}, r"classes <U2 \[\]; expected a list"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0, 1], "classes": ["a", "a"]}, "classes are not distinct: a, a"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0, 1], "classes": ["1", "0"]}, "label 0 may be the class named 0"),
        ({"inputs": np.zeros((2, 3, 1)), "label": [0, 1]}, "unknown array label; known are .*; did you mean labels?"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0, 1], "weather": [1]}, "unknown array weather; .*; leave it out"),
        ({"inputs": np.zeros((2, 3, 1)), "labels": [0, 1], "mask": np.ones((2, 2))}, r"mask is \[2, 2\]; expected"),
        (
            {"inputs": np.zeros((2, 3, 1)), "labels": [0, 1], "mask": np.full((2, 3), -np.inf)},
            "a mask must be 1 where a position is real and 0 where it is not; found -inf",
        ),
    ],
)
def test_npz_errors_name_the_file(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"own\.npz: .*{message}"):
        read_npz(path)


def test_npz_with_objects_runs_nothing(tmp_path: Path) -> None:
    path, canary = tmp_path / "own.npz", tmp_path / "canary"
    inputs = np.empty(1, dtype=object)
    inputs[0] = Touch(canary)
    np.savez(path, inputs=inputs, labels=[0])
    with pytest.raises(UserError, match=r"own\.npz: damaged or not an \.npz file of plain arrays"):
        read_npz(path)
    assert not canary.exists()


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    with pytest.raises(UserError, match="no such file"):
        read_npz(path)
    np.savez(path, inputs=np.zeros((9, 9, 9)), labels=np.zeros(9, dtype=int))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"own\.npz"):
        read_npz(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match="holds one array"):
        read_npz(tmp_path / "one.npy")


def cifar_folder(parent: Path, rows: int = 4) -> Path:
    """The layout of the archive, with `rows` images a file."""
    folder = parent / "cifar-10-batches-py"
    folder.mkdir()
    names = [b"plane", b"car", b"bird"]
    rng = np.random.default_rng(0)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = rng.integers(0, 256, size=(rows, 3072), dtype=np.uint8)
        batch = {
            b"data": pixels,
            b"labels": [(number + row) % 3 for row in range(rows)],
            b"filenames": [b"x.png"] * rows,
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder


def cifar_archive(folder: Path) -> Path:
    archive = folder.parent / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    return archive


def test_cifar_from_folder_archive_and_parent(tmp_path: Path) -> None:
    folder = cifar_folder(tmp_path)
    wanted = pickle.loads((folder / "data_batch_2").read_bytes())
    archive = cifar_archive(folder)
    for place in (folder, archive, tmp_path):
        data = load_cifar10(place)
        assert data.images.shape == (20, 32, 32, 3)
        assert data.classes == ("plane", "car", "bird")
        np.testing.assert_array_equal(data.images[5, :, :, 1].ravel(), wanted[b"data"][1, 1024:2048])
        assert data.labels[4:8].tolist() == wanted[b"labels"]
        assert data.origins[5].endswith("data_batch_2, row 1")
        assert len(load_cifar10(place, "test").labels) == 4
    assert ImagePatches(data, patch_size=8)[0]["input"].shape[0] == 16


def test_cifar_that_is_malicious_runs_nothing(tmp_path: Path) -> None:
    folder, canary = cifar_folder(tmp_path), tmp_path / "canary"
    batch = {b"data": Touch(canary), b"labels": [0]}
    (folder / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(UserError, match=r"data_batch_3: refused and not run"):
        load_cifar10(folder)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({b"data": np.zeros((2, 3072), np.uint8)}, "expected the keys data and labels"),
        ({b"data": np.zeros((2, 100), np.uint8), b"labels": [0, 1]}, r"expected data uint8 \[N, 3072\]"),
        ({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0, 3]}, "labels must be whole numbers from 0 to 2"),
        ([1], "expected a pickled dict, got list"),
    ],
)
def test_cifar_errors_name_the_file(tmp_path: Path, batch: object, message: str) -> None:
    folder = cifar_folder(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(batch))
    with pytest.raises(UserError, match=rf"test_batch: {message}"):
        load_cifar10(folder, "test")


def test_cifar_that_is_not_there_or_cut_off(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no CIFAR-10 there; expected"):
        load_cifar10(tmp_path)
    folder = cifar_folder(tmp_path)
    archive = cifar_archive(folder)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"tar\.gz: damaged"):
        load_cifar10(archive)
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match="data_batch_4: cannot be read"):
        load_cifar10(folder)
