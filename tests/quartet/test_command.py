"""The command `quartet`: what it takes, what it says to mistakes, and the wheel that brings it."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcore.base.version import VERSION
from quartet import command


def quartet(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "quartet", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def called(*arguments: str) -> int:
    """The exit code of the command in this process."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    return int(ended.value.code or 0)


def test_help_names_the_commands_and_the_apps(capsys: pytest.CaptureFixture[str]) -> None:
    assert called("--help") == 0
    said = capsys.readouterr().out
    for word in (
        "quartet train APP",
        "quartet doctor",
        "quartet compare",
        "quartet new-app",
        "perceiver, sam_med3d_ich",
    ):
        assert word in said


def test_help_and_version_load_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from quartet.command import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules)))"
    for arguments in (
        ["--help"],
        ["--version"],
        ["train", "perceiver", "--help"],
        ["compare", "--help"],
        ["chaos", "perceiver", "--help"],
    ):
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert ended.stdout.splitlines()[-1] == "[]", arguments


def test_the_version_is_that_of_the_core(capsys: pytest.CaptureFixture[str]) -> None:
    assert called("--version") == 0
    assert capsys.readouterr().out == f"quartet {VERSION}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "perceiver"], "no command 'trian', did you mean 'train'?"),
        (["train"], "say which app: quartet train APP"),
        (["train", "--epochs", "3"], "say which app"),
        (["train", "percever"], "no app named 'percever', did you mean 'perceiver'?"),
        (["train", "perceiver", "--epocs", "3"], "unknown flag '--epocs', did you mean '--epochs'?"),
        (["doctor", "perciever"], "did you mean 'perceiver'?"),
        (["run", "perceiver", "predct"], "no script 'predct' of perceiver, did you mean 'predict'?"),
        (["run", "perceiver"], "say which script of perceiver: example_usage, export, inference, predict, train"),
        (["compare", "nothing"], "nothing"),
        (["chaos"], "say which app: quartet chaos APP"),
        (["chaos", "perceiver", "--faults", "kil"], "no fault 'kil', did you mean 'kill'?"),
        (["new-app"], "say how the app is to be called"),
    ],
)
def test_mistakes_are_told_plainly(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["quartet"])
    assert called(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert list(tmp_path.iterdir()) == []


def test_train_takes_what_the_script_takes(tmp_path: Path, repository: Path) -> None:
    ours = quartet("train", "perceiver", "scheduler=step", "lr=3e-4", "--cfg", "job", cwd=tmp_path)
    script = subprocess.run(
        [sys.executable, str(repository / "apps/perceiver/train.py"), "scheduler=step", "lr=3e-4", "--cfg", "job"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ours.stdout == script.stdout
    assert "lr: 0.0003" in ours.stdout


def test_a_script_of_an_app_is_run(tmp_path: Path) -> None:
    ended = quartet("run", "perceiver", "predict", "--help", cwd=tmp_path)
    assert ended.returncode == 0
    assert "--model_path" in ended.stdout


def test_without_the_libraries_of_an_app_the_way_out_is_told(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pydantic'\", name='pydantic')\n"
    )
    ended = quartet("train", "perceiver", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith('pip install "quartet-train[perceiver]"')
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("start", [["-m", "quartet"], ["-P", "-m", "quartet"]])
def test_files_of_the_current_folder_are_no_libraries(start: list[str], tmp_path: Path) -> None:
    for name in ("mlcore", "torch", "numpy", "PIL", "pydantic", "yaml"):
        (tmp_path / f"{name}.py").write_text("open('canary', 'w').close()\n")
    ended = subprocess.run(
        [sys.executable, *start, "train", "perceiver", "--dataset", "synthetic", "--num_samples", "0"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert "num_samples" in ended.stderr
    assert not (tmp_path / "canary").exists()


@pytest.fixture
def sealed() -> Iterator[Path]:
    """A folder that nobody but root can write to; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        yield Path(name)


def test_a_folder_that_cannot_be_written_to_is_named(sealed: Path) -> None:
    as_another = [] if os.getuid() else ["setpriv", "--reuid=65534", "--clear-groups"]
    if as_another and (
        shutil.which("setpriv") is None or subprocess.run([*as_another, sys.executable, "-V"]).returncode
    ):
        pytest.skip("root may write anywhere, and no other user can run this interpreter")
    ended = subprocess.run(
        [*as_another, sys.executable, "-m", "quartet", "train", "perceiver", "--demo"],
        cwd=sealed,
        env={**os.environ, "HOME": str(sealed), "MPLCONFIGDIR": str(sealed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "not writable" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_the_wheel_holds_everything_and_nothing_else(tmp_path: Path, repository: Path) -> None:
    files = subprocess.run(["git", "ls-files"], cwd=repository, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        target = tmp_path / "copy" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (repository / name).is_file():
            target.write_bytes((repository / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(tmp_path / "copy")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"mlcore", "quartet", f"quartet_train-{VERSION}.dist-info"}
    code = {name for name in names if name.endswith(".py")}
    listed = [Path(name) for name in files.stdout.splitlines() if name.endswith(".py")]
    expected = {str(path.relative_to("libs")) for path in listed if path.parts[0] == "libs"}
    expected |= {f"quartet/{path}" for path in listed if path.parts[0] == "apps"}
    assert code == expected
    presets = {name for name in names if name.endswith(".yaml")}
    assert presets == {f"quartet/{n}" for n in files.stdout.splitlines() if n.startswith("configs/")}
    described = importlib.metadata.Distribution.at(_unpacked(wheel, tmp_path))
    extras = set(described.metadata.get_all("Provides-Extra") or ())
    assert {"perceiver", "sam-med3d-ich", "multimodal-ads", "doc-ensemble", "all"} <= extras
    assert all("==" in pin for pin in described.requires or ())


def _unpacked(wheel: Path, folder: Path) -> Path:
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    (info,) = (folder / "unpacked").glob("*.dist-info")
    return info
