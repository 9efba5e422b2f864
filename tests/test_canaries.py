"""Secrets that come in through every door are in no file and no output of a run, of any app, whatever fails.

Each secret has a mark in it that nothing else has. Every file that a run leaves, in its folder, in the home folder and
among temporary files, is searched for the marks, also inside archives, as UTF-8, UTF-16 and base64; so is the output.
"""

import base64
import gzip
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from mlcore.trackers.wandb import _records

REPOSITORY = Path(__file__).resolve().parents[1]

# Settings of a small run, and one that is a path which such a run does not use.
SMALL = {
    "perceiver": ("data.num_samples=60 data.seq_len_range=[8,12] epochs=1", "data.data_dir"),
    "doc_ensemble": ("num_train=34 num_val=17 num_test=17 epochs=1 image_size=[64,64]", "data.data_dir"),
    "multimodal_ads": ("num_train=24 num_val=12 num_test=12 epochs=1 ablations=false", "data.base_dir"),
    "sam_med3d_ich": ("num_train=2 num_val=1 epochs=1 eval_every=1", "data.mask_dir"),
}


# What a `.env` must not set.
ATTACKS = (
    *("GIT_SSH_COMMAND", "GIT_DIR", "LD_PRELOAD", "PYTHONSTARTUP", "PYTHONPATH", "PATH", "HTTPS_PROXY", "ALL_PROXY"),
    *("WANDB_BASE_URL", "WANDB_DIR", "WANDB_CONFIG_DIR", "AWS_ENDPOINT_URL", "AWS_CONFIG_FILE", "AWS_PROFILE"),
    *("AWS_SHARED_CREDENTIALS_FILE", "HF_ENDPOINT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)


class Canaries:
    """Secrets by the way in which they come, each with a mark of its own."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def __call__(self, shape: str) -> str:
        """A new secret: `shape` with its mark in place of `{}`."""
        mark = f"Cnry{len(self.values):02d}Zq"
        self.values[mark] = shape.replace("{}", mark)
        return self.values[mark]


class Given(NamedTuple):
    """What a run is given.

    Attributes:
        environ: Its environment.
        arguments: The end of its command line.
        canaries: The secrets in both.
    """

    environ: dict[str, str]
    arguments: list[str]
    canaries: Canaries


def given(inputs: Path, place: Path) -> Given:
    """Secrets in the environment, `.env`, a file of settings, and addresses, with all that is awkward to write."""
    new = Canaries()
    environ = {
        name: os.environ[name]
        for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")
        if name in os.environ
    }
    environ |= {
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": str(inputs),
        "QUARTET_ENV": str(inputs / "mine.env"),
        "WANDB_API_KEY": new("{}" + "0123456789abcdef" * 2),
        "WANDB_NOTES": f"see https://me:{new('{}-in-notes')}@host.example/x",
        "AWS_ACCESS_KEY_ID": new("AKIA{}00"),
        "AWS_SECRET_ACCESS_KEY": new("plus+/slash=and{}"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{new('user-{}')}:{new('pass-{}')}@127.0.0.1:9",
        "HTTPS_PROXY": f"http://me:{new('proxy%20{}')}@127.0.0.1:9",
        "HF_TOKEN": new("hf_{}abcdefghijklmnopqrst"),
        "LONG_TOKEN": new("열쇠 " * 40 + "{} end of it"),
        "LINES_SECRET": new("first line of {}\nsecond line of {}\n셋째 줄 {}"),
        "PLACE": f"https://me:{new('환경-{}')}@host.example/a?X-Amz-Signature={new('{}aabb')}",
    }
    quoted = new("with \"quotes\" 'these' \\back\\slashes <b>&amp; {} 비밀")
    lines = ["DB_PASSWORD='{}'".format(quoted.replace("\\", "\\\\").replace("'", "\\'"))]
    lines += [f"OTHER_URL=https://host.example/x?a=1&token={new('{}-dotenv')}"]
    lines += [f"{name}={place / 'ran'}" for name in ATTACKS]
    lines += [
        "GIT_CONFIG_COUNT=1",
        "GIT_CONFIG_KEY_0=core.fsmonitor",
        f"GIT_CONFIG_VALUE_0='touch {place / 'ran'}; false'",
    ]
    (inputs / "mine.env").write_text("\n".join(lines) + "\n", "utf-8")
    settings = {
        "tracking.wandb_entity": None,
        "tracking.wandb_project": "canaries",
        "run.name": "canaries",
        "tracking.use_wandb": True,
        "tracking.wandb_mode": "offline",
        "tracking.log_images": True,
    }
    (inputs / "mine.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    path = f"https://me:{new('path-{}')}@host.example/a/?token={new('q{}&')}${{env:DB_PASSWORD}}/${{env:LINES_SECRET}}"
    return Given(environ, [f"--config={inputs / 'mine.yaml'}", path], new)


def search(place: Path, marks: list[str]) -> tuple[list[str], int]:
    """Where a mark is, and how many files and members of archives were searched."""
    needles = {needle: mark for mark in marks for needle in _needles(mark)}
    found, count = [], 0
    for path in sorted(place.rglob("*")):
        found += [f"the name {path}: {mark}" for mark in marks if mark in path.name]
        if path.is_file():
            for name, data in _contents(str(path.relative_to(place)), path.read_bytes()):
                count += 1
                found += [f"{name}: {mark}" for needle, mark in needles.items() if needle in data]
    return found, count


def _needles(mark: str) -> Iterator[bytes]:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        yield mark.encode(encoding)
    for shift in range(3):  # base64 of anything that the mark is in; what does not depend on its neighbours
        yield base64.b64encode(b"\0" * shift + mark.encode())[4 if shift else 0 : (shift + len(mark)) // 3 * 4]


def _contents(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file, and what is packed in it."""
    yield name, data
    if data[:4] == b"PK\3\4":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from _contents(f"{name}!{member}", archive.read(member))
    elif data[:2] == b"\x1f\x8b":
        yield from _contents(f"{name}!", gzip.decompress(data))
    elif name.endswith(".wandb"):
        for number, record in enumerate(_records(data)):
            yield f"{name}!{number}", record


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    mark = "Cnry07Zq"
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", gzip.compress(f"..{mark}..".encode()))
    (tmp_path / "b").write_text(mark, "utf-16")
    for shift in range(3):
        (tmp_path / f"c{shift}").write_bytes(base64.b64encode(b"x" * shift + mark.encode() + b"yz"))
    assert len(search(tmp_path, [mark])[0]) == 5
    assert search(tmp_path, ["Cnry08Zq"])[0] == []


def run(place: Path, script: str, environ: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / script), *arguments],
        cwd=place,
        env=environ,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)  # fourteen commands
@pytest.mark.parametrize("app", SMALL)
def test_no_secret_is_in_any_file_or_output_of_a_run(app: str, tmp_path: Path) -> None:
    inputs, place = tmp_path / "inputs", tmp_path / "place"
    for folder in (inputs, place / "home", place / "tmp"):
        folder.mkdir(parents=True)
    environ, (config, path), canaries = given(inputs, place)
    (place / "wandb").mkdir()
    (place / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:9/evil\n", "utf-8")
    (place / ".env").write_text("WANDB_ENTITY=evil\n", "utf-8")
    small, unused = SMALL[app]
    common = ["--demo", config, *small.split(), f"{unused}={path}"]
    bucket = "checkpoint.upload_to=s3://bucket/prefix"  # at whose address nobody answers
    token, flag = canaries('{}-on the "command" line'), canaries("flag-{}")
    address = f"https://{canaries('token-{}')}@host.example/x?X-Amz-Credential={canaries('{}%2F2024')}"
    calls = {
        "train": (0, [*common, "--output_dir", "run"]),
        "go on, without the bucket": (0, [*common, "--output_dir", "run", "epochs=2", bucket]),
        "no bucket": (None, [*common, "--dry_run", bucket]),
        "dry run": (0, [*common, "--dry_run"]),
        "settings": (0, [*common, "--cfg", "job"]),
        "settings to edit": (0, [*common, "--print_config"]),
        "check": (None, [*common, "--test"]),
        "unknown flag": (2, [*common, "--hub_token", token]),
        "unknown setting": (2, [*common, f"tracking.api_key={token}"]),
        "stray word": (2, [*common, "--password", flag]),
        "no checkpoint": (2, [*common, "--resume", address]),
        "no folder": (2, [*common, "--output_dir", address]),
        "no such value": (2, [*common, f"train.epochs={address}"]),
        "no file": (2, [*common, f"--config={address}"]),
    }
    said = ""
    for what, (code, arguments) in calls.items():
        done = run(place, f"apps/{app}/train.py", environ, *arguments)
        assert done.returncode == code or code is None, f"{what}: {done.stdout}{done.stderr}"
        said += f"{done.stdout}\n{done.stderr}\n"
    compared = run(place, "scripts/compare_results.py", environ, "run")
    assert compared.returncode == 0, compared.stderr
    (place / "said.txt").write_text(said + compared.stdout + compared.stderr, "utf-8")
    assert list(place.rglob("*.wandb"))
    assert list(place.rglob("best_model.pth"))
    log = (place / "run" / "train.log").read_text("utf-8")
    untold = [name for name in (*ATTACKS, "GIT_CONFIG_COUNT") if f"{name} is not taken" not in log]
    assert set(untold) <= environ.keys(), "what is set in the shell wins, and nothing needs to be said"
    assert ".env is not read" in log
    assert "settings is not read" in log
    assert not (place / "ran").exists()
    found, count = search(place, list(canaries.values))
    forms = len(list(_needles("Cnry00Zq")))
    print(f"{app}: {len(canaries.values)} secrets in {forms} encodings, {count} files and members: {len(found)} found")
    assert not found, "\n".join(dict.fromkeys(found))
