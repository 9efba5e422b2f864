"""Faults that are put into a run of one of the four apps: the dry run finds each, and the real start finds the same.

The quick test runs dry runs inside the test's process; the slow one runs all of them, and the real starts, as commands,
and prints the table `pytest -m slow -s tests/test_preflight.py` (fault, exit code, seconds, what was said).
"""

import base64
import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlcore.base.locks import hold
from quartet.apps.multimodal_ads.data.generated import write_generated
from quartet.apps.sam_med3d_ich.data.phantoms import write_phantoms
from tests.scripts import REPOSITORY, run_script

SMALL = shlex.split("--epochs 2 --batch_size 4 --num_workers 0 --num_threads 1 --device cpu --no_tensorboard")
APPS = {
    "perceiver": "--dataset custom --train_path series.npz --d_model 16 --num_heads 2 --num_latents 4"
    " --num_cross_attention_layers 1 --num_self_attention_layers 1",
    "doc_ensemble": "--data_dir pages model.model_name=test_resnet --no_pretrained model.image_size=[64,48]",
    "multimodal_ads": "--base_dir ads --train.modality vision_only vision_encoder.kind=timm vision_encoder.model="
    "test_efficientnet vision_encoder.pretrained=false vision_encoder.image_size=[32,32]"
    " train.freeze_backbone=false train.finetune_layers=-1",
    "sam_med3d_ich": "--train_csv heads/train.csv --val_csv heads/val.csv --mask_dir heads/masks --model_type vit_tiny"
    " --image_size 16 --weights none --spacing 12 12 12",
}
SECONDS = 60.0


@dataclass(frozen=True)
class Fault:
    """A run that cannot start.

    Attributes:
        app: Of which app.
        flags: What is added to the small healthy run; a later flag wins.
        said: What the error says.
        fix: What it tells the user to do.
        environ: Variables.
        around: What is there while the run is tried.
    """

    app: str
    flags: str
    said: str
    fix: str
    environ: Mapping[str, str] = field(default_factory=dict)
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


# -------------------------------------------------------------------------------------------------- healthy small data


def write_series(path: str, *, classes: int = 2, value: float = 0.0) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(24) % classes
    series = rng.normal(size=(24, 6, 3)).astype(np.float32) + labels[:, None, None]
    series[5, 2, 1] += value
    np.savez(path, inputs=series, labels=labels)


def write_pages(folder: str, names: Sequence[str]) -> None:
    rng = np.random.default_rng(1)
    for part, count in (("train", 8), ("val", 4)):
        for name in names:
            Path(folder, part, name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(Path(folder, part, name, f"{number}.png"))


def command(app: str, *flags: str) -> list[str]:
    return [*shlex.split(APPS[app]), *SMALL, "--output_dir", "out", *flags]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data of each app and a finished run of two."""
    folder = tmp_path_factory.mktemp("workplace")
    with contextlib.chdir(folder):
        write_series("series.npz")
        write_pages("pages", ("bill", "letter"))
        write_generated(Path("ads"), train=16, validation=8, test=4, seed=0)
        write_phantoms(Path("heads"), train=4, validation=3, seed=0, shape=(32, 32, 16), spacing=(6.0, 6.0, 10.0))
        for app in ("perceiver", "doc_ensemble"):
            ended = run_script(f"apps/{app}/train.py", *command(app, "--output_dir", f"run_{app}"))
            assert ended.code == 0, ended.err
    return folder


# ------------------------------------------------------------------------------------------------------- surroundings


@contextlib.contextmanager
def mounted(options: str) -> Iterator[None]:
    """A file system in memory at `disk`."""
    Path("disk").mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "disk"], capture_output=True, check=False)
    try:
        if done.returncode:
            pytest.skip("file systems cannot be mounted here")
        yield
    finally:
        subprocess.run(["umount", "disk"], capture_output=True, check=False)
        Path("disk").rmdir()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Somebody trains in the folder `busy`."""
    Path("busy").mkdir()
    lock = hold(Path("busy/run.lock"))
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


class _Refusing(BaseHTTPRequestHandler):
    """Takes one key only."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        right = "Basic " + base64.b64encode(b"api:the-right-key").decode()
        self.send_response(200 if self.headers["Authorization"] == right else 401)
        self.end_headers()
        self.wfile.write(b'{"data": {"viewer": {"id": "somebody"}}}')

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def wandb_server() -> Iterator[None]:
    with HTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        before = os.environ.get("WANDB_BASE_URL")
        os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.server_port}"
        try:
            yield
        finally:
            server.shutdown()
            os.environ.pop("WANDB_BASE_URL")
            os.environ |= {} if before is None else {"WANDB_BASE_URL": before}


DEAD = "http://127.0.0.1:9"
NO_KEY = {"WANDB_API_KEY": "", "NETRC": os.devnull, "WANDB_MODE": "online"}
ONLINE = {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
KEYS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "testing123",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1",
}

# ------------------------------------------------------------------------------------------------------ damaged data


def one_line(path: str, old: str, new: str) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """A file with other text while the run is tried."""

    @contextlib.contextmanager
    def changed() -> Iterator[None]:
        before = Path(path).read_text("utf-8")
        Path(path).write_text(re.sub(old, new, before), "utf-8")
        assert Path(path).read_text("utf-8") != before
        try:
            yield
        finally:
            Path(path).write_text(before, "utf-8")

    return changed


def made(write: Callable[[], Any]) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Files that are written before the run is tried."""

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        write()
        yield

    return there


def damage(path: str, copy: str, *, keep: float = 0.5) -> None:
    content = Path(path).read_bytes()
    Path(copy).parent.mkdir(parents=True, exist_ok=True)
    Path(copy).write_bytes(content[: int(keep * len(content))])


def damaged_pages() -> None:
    write_pages("worn", ("bill", "letter"))
    damage("worn/train/bill/3.png", "worn/train/bill/3.png")


def missing_mask() -> contextlib.AbstractContextManager[Any]:
    @contextlib.contextmanager
    def away() -> Iterator[None]:
        path = next(iter(sorted(Path("heads/masks").iterdir())))
        path.rename("mask")
        try:
            yield
        finally:
            Path("mask").rename(path)

    return away()


RUN, OTHER = "run_perceiver", "run_doc_ensemble"
LATEST = "checkpoints/latest_model.pth"
FAULTS = {
    # where the run lives
    "a file where the run's folder would be": Fault(
        "perceiver", "--output_dir series.npz/run", "series.npz.*Not a directory", "must exist and be a folder"
    ),
    "a folder that cannot be written to": Fault(
        "multimodal_ads", "--output_dir disk/run", "disk/run", "another output folder", around=lambda: mounted("ro")
    ),
    "a disk that is too full": Fault(
        "doc_ensemble",
        "--output_dir disk/run",
        r"3 checkpoints of .* and one being written need .*, .* are free",
        "free some space, give --output_dir on another disk, or lower --keep_last",
        around=lambda: mounted("size=4m"),
    ),
    "another process trains there": Fault(
        "sam_med3d_ich",
        "--output_dir busy",
        "busy: another process is training",
        "give --output_dir another",
        around=locked,
    ),
    "a whole path whose name is too long": Fault(
        "perceiver",
        f"--output_dir {Path(tempfile.gettempdir()) / ('x' * 300)}",
        "File name too long",
        "another --output_dir",
    ),
    "a name that is too long": Fault(
        "perceiver", f"--output_dir {'long' * 80}", "File name too long", "shorter --run.name, or another --output_dir"
    ),
    # what it goes on from
    "nothing to resume": Fault("sam_med3d_ich", "--resume gone.pth", "--resume gone.pth: no such", "give one, or auto"),
    "a checkpoint of another app": Fault(
        "doc_ensemble",
        f"--resume {RUN}/{LATEST}",
        "of the app 'perceiver', not of doc_ensemble",
        "--resume one of this",
    ),
    "a damaged checkpoint": Fault(
        "perceiver",
        "--resume damaged.pth",
        "damaged.pth: damaged, its end is missing",
        "",
        around=made(lambda: damage(f"{RUN}/{LATEST}", "damaged.pth")),
    ),
    "another architecture": Fault(
        "perceiver",
        f"--resume {RUN}/{LATEST} --num_latents 8",
        "num_latents 4 -> 8",
        "Give the old one again, or start",
    ),
    "other classes than the checkpoint's": Fault(
        "doc_ensemble",
        f"--resume {OTHER}/{LATEST} --epochs 9 --data_dir other",
        "data.data_dir|class_names",
        "start another run|start a new run",
        around=made(lambda: write_pages("other", ("bill", "note"))),
    ),
    "resumed into another folder": Fault(
        "perceiver", f"--resume {RUN} --output_dir elsewhere", "goes on in that folder", "leave out --output_dir"
    ),
    # what is elsewhere
    "a bucket that does not answer": Fault(
        "perceiver",
        "--upload_to models",
        f"no proper answer from {DEAD}",
        "Check the network and AWS_ENDPOINT_URL",
        environ={**KEYS, "AWS_ENDPOINT_URL": DEAD},
    ),
    "a bucket that is not there": Fault(
        "doc_ensemble", "--upload_to modles", "no bucket 'modles'", "Check S3_BUCKET_NAME", environ=KEYS
    ),
    "wrong keys for the bucket": Fault(
        "multimodal_ads",
        "--upload_to models",
        "access denied",
        "Check AWS_ACCESS_KEY_ID",
        environ={**KEYS, "AWS_SECRET_ACCESS_KEY": "another"},
    ),
    "W&B without a key": Fault("sam_med3d_ich", "--use_wandb", "W&B: no key", "set WANDB_API_KEY", environ=NO_KEY),
    "W&B without a server": Fault(
        "perceiver",
        "--use_wandb",
        f"W&B: {DEAD} cannot be reached",
        "--wandb_mode offline",
        environ={**ONLINE, "WANDB_BASE_URL": DEAD},
    ),
    "W&B with a wrong key": Fault(
        "multimodal_ads",
        "--use_wandb",
        "does not take WANDB_API_KEY",
        "/authorize",
        environ=ONLINE,
        around=wandb_server,
    ),
    # settings
    "a warm-up longer than the run": Fault(
        "multimodal_ads",
        "--warmup_steps 5000",
        "the warm-up takes 5000 steps, the run only 8",
        "set --warmup_steps lower",
    ),
    "a decay that never comes": Fault(
        "perceiver",
        "scheduler=step scheduler.step_size=50",
        "step_size is .* the run only",
        "lower it, or leave it out",
    ),
    "a cosine in the wrong unit": Fault(
        "doc_ensemble",
        "scheduler=cosine scheduler.T_max=20000",
        r"T_max is \d+ steps .* ends at 100% of its highest",
        "lower it, or leave it out",
    ),
    "a metric that does not exist": Fault(
        "sam_med3d_ich", "--metric val_dise", "'dise' is not among the evaluation's: ", "score"
    ),
    "patience without validation data": Fault(
        "perceiver", "--val_fraction 0 --patience 3", "no validation data: --patience", "leave them out"
    ),
    "a batch larger than the data": Fault(
        "doc_ensemble", "--batch_size 64 --drop_last", "16 samples are fewer than one batch of 64", "lower --batch_size"
    ),
    "more workers than memory": Fault(
        "perceiver", "--num_workers 1000000", "--num_workers 1000000 needs .* are free", "lower it, or leave it out"
    ),
    "a device that is not there": Fault(
        "sam_med3d_ich", "--device cuda:31", "device 'cuda:31' was asked for", "--device cpu|CUDA device"
    ),
    # data
    "one class of series": Fault(
        "perceiver",
        "--train_path one.npz",
        "one class only, 0",
        "add samples of another one",
        around=made(lambda: write_series("one.npz", classes=1)),
    ),
    "one class of pages": Fault(
        "doc_ensemble",
        "--data_dir alike",
        "only one class, bill",
        "at least two",
        around=made(lambda: write_pages("alike", ["bill"])),
    ),
    "nothing but ads": Fault(
        "multimodal_ads",
        "",
        "training rows: each is an ad",
        "add rows of the other kind",
        around=one_line("ads/train.csv", ",False,", ",True,"),
    ),
    "a table without a column": Fault(
        "multimodal_ads", "", "label", "column", around=one_line("ads/train.csv", "label", "lable")
    ),
    "an empty validation table": Fault(
        "multimodal_ads", "", "val.csv: no rows", "below the header", around=one_line("ads/val.csv", r"\n[^~]*", "\n")
    ),
    "no bleed to learn": Fault(
        "sam_med3d_ich",
        "",
        "train.csv: no case has a bleed",
        "add some",
        around=one_line("heads/train.csv", ",1,", ",0,"),
    ),
    "a missing mask": Fault("sam_med3d_ich", "", "has no .*.nii", "ich is 1", around=missing_mask),
    "weights that cannot be read": Fault(
        "sam_med3d_ich",
        "--weights worn.pth",
        "worn.pth: damaged",
        "",
        around=made(lambda: damage(f"{RUN}/{LATEST}", "worn.pth")),
    ),
    "a damaged picture": Fault(
        "doc_ensemble", "--data_dir worn", "worn/train/bill/3.png", "", around=made(damaged_pages)
    ),
    "a folder that is not there": Fault("doc_ensemble", "--data_dir nowhere", "nowhere: no such folder", "data_dir"),
    "a number that is none": Fault(
        "perceiver",
        "--train_path nan.npz",
        "position 2, channel 1 is nan",
        "on_missing says what to do",
        around=made(lambda: write_series("nan.npz", value=float("nan"))),
    ),
}
SERVED = ("a bucket that is not there", "wrong keys for the bucket")


@contextlib.contextmanager
def put_in(fault: Fault, name: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """The fault is there, and so is what it needs to be one."""
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder):
        if name in SERVED:
            request.getfixturevalue("s3_server")
        for variable, value in fault.environ.items():
            patch.setenv(variable, value)
        with fault.around():
            yield


def test_there_are_thirty_of_them_over_all_apps() -> None:
    assert len(FAULTS) >= 30
    assert {fault.app for fault in FAULTS.values()} == set(APPS)


@pytest.mark.parametrize("name", FAULTS)
def test_a_dry_run_finds_it(name: str, workplace: Path, request: pytest.FixtureRequest) -> None:
    fault = FAULTS[name]
    with put_in(fault, name, workplace, request):
        ended = run_script(f"apps/{fault.app}/train.py", *command(fault.app, "--dry_run", *shlex.split(fault.flags)))
    assert ended.code == 2
    assert re.search(fault.said, ended.err)
    assert re.search(fault.fix, ended.err)
    assert not (workplace / "out").exists()


@pytest.mark.parametrize("app", ["perceiver", *(pytest.param(app, marks=pytest.mark.slow) for app in [*APPS][1:])])
def test_a_healthy_run_passes_and_leaves_nothing(app: str, workplace: Path) -> None:
    with contextlib.chdir(workplace):
        ended = run_script(f"apps/{app}/train.py", *command(app, "--dry_run", "--output_dir", "new/run"))
        assert ended.code == 0, ended.err
        assert "a real run in new/run would train" in ended.out
        assert not Path("new").exists()


def as_command(app: str, *arguments: str) -> tuple[int, float, str, str]:
    """Exit code, seconds, error and output of a script in a process of its own."""
    begun = time.monotonic()
    script = [sys.executable, str(REPOSITORY / f"apps/{app}/train.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=600)
    return done.returncode, time.monotonic() - begun, done.stderr.strip(), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)  # two commands for each fault
def test_commands_find_each_of_them_within_a_minute(workplace: Path, request: pytest.FixtureRequest) -> None:
    rows, wrong = [], []
    for name, fault in FAULTS.items():
        try:
            with put_in(fault, name, workplace, request):
                actions = (["--dry_run"], [])
                flags = [command(fault.app, *action, *shlex.split(fault.flags)) for action in actions]
                ended = [(action, *as_command(fault.app, *given)) for action, given in zip(actions, flags, strict=True)]
        except pytest.skip.Exception as skipped:
            rows.append(f"| {name} | {fault.app} | - | - | skipped: {skipped} |")
            continue
        for action, code, seconds, error, out in ended:
            found = code == 2 and seconds < SECONDS and re.search(fault.said, error) and re.search(fault.fix, error)
            stepped = "train/loss" in out or "trained" in out or any(workplace.glob("out*/checkpoints/*"))
            told = re.sub(r"\s+", " ", error).removeprefix("error: ")
            rows.append(f"| {name} | {fault.app} {' '.join(action)} | {code} | {seconds:.1f} | {told[:150]} |")
            wrong += [] if found and not stepped and "Traceback" not in error else [rows[-1]]
    print("\n| fault | run | exit | s | said |\n|---|---|---|---|---|", *rows, sep="\n")
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("app", APPS)
def test_the_demos_pass(app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error, out = as_command(app, "--demo", "--dry_run", "--num_threads", "1")
    assert code == 0, error
    assert "dry run passed" in out


# --------------------------------------------------------------------------------------------------------- check_data


@pytest.mark.parametrize("app", APPS)
def test_check_data_opens_everything(app: str, workplace: Path) -> None:
    with contextlib.chdir(workplace):
        ended = run_script(f"apps/{app}/train.py", *command(app, "--check_data"))
    assert ended.code == 0, ended.err
    assert re.search(r"train: \d+ samples, 0 cannot be read", ended.out)
    assert not (workplace / "out").exists()


def test_check_data_names_every_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pages("pages", ("bill", "letter"))
    bad = [path for part in ("train", "val") for path in sorted(Path("pages", part).rglob("*.png"))][::2]
    for path in bad:
        path.write_bytes(path.read_bytes()[:40])
    assert len(bad) == 12  # more than a list of mistakes shows otherwise
    ended = run_script("apps/doc_ensemble/train.py", *command("doc_ensemble", "--check_data", "--num_workers", "2"))
    assert ended.code == 2
    assert "12 of 24 samples cannot be read" in ended.err
    assert all(str(path) in ended.err for path in bad)
    both = run_script("apps/doc_ensemble/train.py", *command("doc_ensemble", "--check_data", "--dry_run"))
    assert both.err == ended.err


@pytest.mark.slow
def test_a_healthy_check_goes_on_with_the_dry_run(workplace: Path) -> None:
    with contextlib.chdir(workplace):
        flags = ["--check_data", "--dry_run", "--train_path", "series.npz"]
        ended = run_script("apps/perceiver/train.py", *command("perceiver", *flags))
    assert ended.code == 0, ended.err
    assert ended.out.index("0 cannot be read") < ended.out.index("dry run passed")
