"""The table finds every image and mask, or says in which line it does not."""

import unicodedata
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from quartet.apps.sam_med3d_ich.data.case import Case
from quartet.apps.sam_med3d_ich.data.table import check_patients, read_cases


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "masks").mkdir()
    return tmp_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def table(folder: Path, *rows: str, header: str = "path,ich,patient_id", encoding: str = "utf-8") -> Path:
    path = folder / "train.csv"
    path.write_bytes("\n".join([header, *rows, ""]).encode(encoding))
    return path


def read(folder: Path, *rows: str, header: str = "path,ich,patient_id") -> list[Case]:
    return read_cases(table(folder, *rows, header=header), mask_dir=folder / "masks")


def refused(folder: Path, *rows: str, header: str = "path,ich,patient_id") -> str:
    with pytest.raises(UserError) as caught:
        read(folder, *rows, header=header)
    assert str(caught.value).startswith(str(folder / "train.csv"))
    return str(caught.value)


def test_cases_in_order(data: Path) -> None:
    touch(data, "a/12.pkl", "a/007.nii.gz", "b b/뇌출혈 é.npy", "x.npz", "masks/12.nii", "masks/7.nii.gz")
    touch(data, "masks/뇌출혈 é.nii", "masks/._12.nii", "masks/notes.txt")
    first, second, third, fourth = read(
        data, "a/12.pkl,1,p1", "a/007.nii.gz,0,p1", '"b b/뇌출혈 é.npy",1.0,p 2', f"{data}/x.npz,0,p3"
    )
    assert first == Case("12", data / "a/12.pkl", data / "masks/12.nii", 1, "p1", f"{data}/train.csv, line 2")
    assert (second.name, second.mask, second.ich) == ("007", data / "masks/7.nii.gz", 0)
    assert (third.name, third.mask, third.ich, third.patient_id) == (
        "뇌출혈 é", data / "masks/뇌출혈 é.nii", 1, "p 2",
    )  # fmt: skip
    assert (fourth.image, fourth.mask, fourth.ich) == (data / "x.npz", None, 0)


def test_columns_in_any_order_with_others_and_bom(data: Path) -> None:
    touch(data, "1.pkl")
    path = table(data, "p,x,0,1.pkl", "", header="patient_id, note,ich,path", encoding="utf-8-sig")
    (case,) = read_cases(path, mask_dir=data / "masks")
    assert (case.name, case.patient_id, case.ich) == ("1", "p", 0)


def test_relative_paths_start_at_the_table(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(data, "1.pkl")
    table(data, "./1.pkl,0,p")
    (data / "elsewhere").mkdir()
    monkeypatch.chdir(data / "elsewhere")
    (case,) = read_cases(Path("../train.csv"), mask_dir=Path("../masks"))
    assert case.image.is_file()


def test_decomposed_names_are_the_same_names(data: Path) -> None:
    stored = unicodedata.normalize("NFD", "환자é")
    touch(data, f"{stored}.pkl", f"masks/{stored}.nii")
    (case,) = read(data, f"{unicodedata.normalize('NFC', '환자é')}.pkl,1,p")
    assert case.image.is_file()
    assert case.mask is not None


@pytest.mark.parametrize("pair", [("7.nii", "07.nii"), ("7.nii", "7.nii.gz"), ("007.nii.gz", "07.nii")])
def test_two_masks_are_one_too_many(data: Path, pair: tuple[str, str]) -> None:
    touch(data, "7.pkl", *(f"masks/{name}" for name in pair))
    for ich in (0, 1):
        message = refused(data, f"7.pkl,{ich},p")
        assert ", line 2: " in message
        assert all(name in message for name in pair)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1.pkl,1,p"], "line 2: ich is 1, but"),
        (["1.pkl,2,p"], "line 2: ich is '2'; expected 0 or 1"),
        (["1.pkl,,p"], "line 2: ich is ''"),
        (["1.pkl,0,"], "line 2: patient_id is empty"),
        (["1.pkl,0"], "line 2: patient_id is empty"),
        ([",0,p"], "line 2: path is empty"),
        (["none.pkl,0,p"], "line 2: no such file: none.pkl (relative paths start at"),
        (["1.txt,0,p"], "line 2: 1.txt is no volume; expected .nii"),
        (["1.pkl,0,p", "./1.pkl,0,p"], "line 3: the same image as in line 2"),
        (["m.pkl,1,p", "b/m.pkl,1,p"], "line 3: the mask"),
        (["a,b.pkl,0,p"], "line 2: 4 values, but the header names 3 columns"),
        ([], "no rows"),
    ],
)
def test_bad_rows(data: Path, rows: list[str], message: str) -> None:
    touch(data, "1.pkl", "m.pkl", "b/m.pkl", "masks/m.nii")
    assert message in refused(data, *rows)


def test_all_problems_together(data: Path) -> None:
    touch(data, "1.pkl")
    message = refused(data, "1.pkl,5,", *[f"missing{n}.pkl,0,p" for n in range(12)])
    lines = message.splitlines()
    assert lines[0].endswith("14 problems")
    assert len(lines) == 12
    assert lines[-1] == "  and 4 more"
    assert lines[2] == "  line 2: patient_id is empty"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,ich", "no column patient_id; the header is path,ich, expected path,ich,patient_id"),
        ("image,label", "no columns path, ich, patient_id; the header"),
        ("", "header is empty"),
        ("path,ich,patient_id,path", "the column path is there twice"),
        ("path;ich;patient_id", "its separator seems to be ';'; expected commas: path,ich,patient_id"),
        ('"path";"ich";"patient_id"', "its separator seems to be ';'"),
        ("\ufeffnote\tich\tpath", "its separator seems to be a tab"),
    ],
)
def test_bad_headers(data: Path, header: str, message: str) -> None:
    assert message in refused(data, "1.pkl,0,p", header=header)


def test_bad_files(data: Path) -> None:
    (data / "train.csv").write_bytes("path,ich,patient_id\n뇌.pkl,0,p\n".encode("cp949"))
    with pytest.raises(UserError, match=r"train\.csv, line 2: not UTF-8; .*in Excel.*'CSV UTF-8"):
        read_cases(data / "train.csv", mask_dir=data / "masks")
    (data / "train.csv").write_text('path,ich,patient_id\n"1.pkl,0,p\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.csv, line 2: not a row of a CSV table"):
        read_cases(data / "train.csv", mask_dir=data / "masks")
    with pytest.raises(UserError, match=r"none\.csv: cannot be read"):
        read_cases(data / "none.csv", mask_dir=data / "masks")
    with pytest.raises(UserError, match="nowhere: the mask folder cannot be read"):
        read_cases(table(data, "1.pkl,0,p"), mask_dir=data / "nowhere")


def cases(split: str, *patients: str) -> list[Case]:
    return [
        Case(str(n), Path(f"/{split}/{n}.pkl"), None, 0, patient, f"{split}.csv, line {n + 2}")
        for n, patient in enumerate(patients)
    ]


def test_patients_in_both_splits() -> None:
    train, validation = cases("train", "a", "b", "b", "c"), cases("val", "d", "b", "c")
    assert check_patients(train, cases("val", "x"), allow=False) is None
    with pytest.raises(UserError, match=r"train\.csv and val\.csv: 2 patients in both splits: b, c\."):
        check_patients(train, validation, allow=False)
    assert check_patients(train, validation, allow=True) == "train.csv and val.csv: 2 patients in both splits: b, c"


def test_images_in_both_splits() -> None:
    with pytest.raises(UserError, match=r"1 image in both splits: /train/0\.pkl"):
        check_patients(cases("train", "a"), cases("train", "other"), allow=False)
