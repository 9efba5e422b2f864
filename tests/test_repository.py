"""The entry points around the product: make, the image builder, the SLURM script.

The real Makefile and scripts run in a small copy, with stand-ins for what would install, build or submit something.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlcore.base.version import VERSION, code_version

pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or shutil.which("bash") is None, reason="needs make and bash"
)

# Python for everything but pip, whose calls are written down.
PYTHON = f"""#!/usr/bin/env bash
if [ "$1 $2" = "-m pip" ]; then echo "$@" >> "$PIP_LOG"; exit "${{PIP_EXIT:-0}}"; fi
if [ "$1 $2" = "-m torch.distributed.run" ]; then echo "torchrun ${{@:3}}"; exit; fi
if [ "$1 $2" = "-m venv" ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; exit; fi
case "$2" in *quartet.pth*) exit 0;; esac
exec {sys.executable} "$@"
"""
TRAIN = """
import signal, sys
if "--exit" in sys.argv:
    sys.exit(int(sys.argv[-1]))
if "--wait" in sys.argv:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: (open("saved", "w").close(), sys.exit(3)))
    print("ready", flush=True)
    while True:
        signal.pause()
if __name__ == "__main__":
    print("trained", sys.argv[1:])
"""


def executable(path: Path, text: str) -> Path:
    """Write a script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def copy(tmp_path: Path, repository: Path) -> Path:
    """The Makefile beside one app with a stand-in script; Python is a stand-in that installs nothing."""
    root = tmp_path / "copy"
    (root / "apps/demo").mkdir(parents=True)
    shutil.copy(repository / "Makefile", root)
    (root / "apps/demo/__init__.py").touch()
    (root / "apps/demo/train.py").write_text(TRAIN)
    (root / "requirements").mkdir()
    for name, text in {"base": "", "demo": "-r base.txt\n", "dev": ""}.items():
        (root / f"requirements/{name}.txt").write_text(text)
    executable(tmp_path / "python3", PYTHON)
    return root


def environment(copy: Path, **extra: str) -> dict[str, str]:
    """What `make` is started with: none of the variables that would steer it from outside."""
    steering = {"APP", "ARGS", "NPROC", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RDZV_ENDPOINT"}
    steering |= {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES"}  # `make test` started us
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    return kept | {"PYTHON": str(copy.parent / "python3"), "PIP_LOG": str(copy.parent / "pip.log")} | extra


def make(copy: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `make` in the copy."""
    return subprocess.run(
        ["make", *arguments], cwd=copy, env=environment(copy, **extra), capture_output=True, text=True, timeout=60
    )


def installs(copy: Path) -> list[str]:
    """The requirements files that pip was asked for so far, in order."""
    log = copy.parent / "pip.log"
    return re.findall(r"--requirement requirements/(\S+)\.txt", log.read_text("utf-8")) if log.exists() else []


def touch_later(path: Path, than: Path) -> None:
    """Make `path` newer than `than` without waiting for the clock."""
    moment = than.stat().st_mtime + 10
    os.utime(path, (moment, moment))


def test_make_installs_what_a_target_needs_once(copy: Path) -> None:
    first = make(copy, "train", "APP=demo", "ARGS=--name 'a b'")
    assert first.returncode == 0, first.stderr
    assert "trained ['--name', 'a b']" in first.stdout
    assert installs(copy) == ["demo"]
    assert "--require-hashes " in (copy.parent / "pip.log").read_text("utf-8")

    assert make(copy, "train", "APP=demo").stdout == "trained []\n"
    assert installs(copy) == ["demo"]


@pytest.mark.parametrize("edited", ["demo", "base"])
def test_editing_a_requirements_file_installs_again(copy: Path, edited: str) -> None:
    make(copy, "train", "APP=demo")
    touch_later(copy / f"requirements/{edited}.txt", than=copy / ".venv/stamps/demo")
    make(copy, "train", "APP=demo")
    assert installs(copy) == ["demo", "demo"]


def test_a_failed_install_is_tried_again(copy: Path) -> None:
    failed = make(copy, "train", "APP=demo", PIP_EXIT="1")
    assert failed.returncode == 2
    assert "trained" not in failed.stdout
    assert "trained" in make(copy, "train", "APP=demo").stdout
    assert installs(copy) == ["demo", "demo"]


def test_a_lost_interpreter_brings_a_new_environment(copy: Path) -> None:
    make(copy, "train", "APP=demo")
    (copy / ".venv/bin/python").unlink()
    assert "trained" in make(copy, "train", "APP=demo").stdout
    assert installs(copy) == ["demo", "demo"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ("#!/bin/sh\nexit 1\n", "Python 3.11 or newer is needed"),
        ('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\n', "install its venv module"),
    ],
)
def test_a_python_that_will_not_do_is_named_with_the_way_out(copy: Path, found: str, message: str) -> None:
    python = executable(copy.parent / "unfit", found)
    result = make(copy, "train", "APP=demo", PYTHON=str(python))
    assert result.returncode == 2
    assert message in result.stderr
    assert str(python) in result.stderr
    assert not (copy / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Say which app"),
        (["train", "APP=dmeo"], 'No app named "dmeo"; there is: demo'),
        (["train", "APP=demo", "SCRIPT=tain.py"], "No script apps/demo/tain.py; there is: train.py"),
        (["train", "APP=demo", "NNODES=2"], "NODE_RANK"),
        (["train", "APP=demo", "NNODES=2", "NODE_RANK=0"], "MASTER_ADDR"),
    ],
)
def test_make_says_what_is_missing(copy: Path, arguments: list[str], message: str) -> None:
    result = make(copy, *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_the_exit_code_of_the_script_is_printed(copy: Path) -> None:
    assert re.search(r"Error 7\b", make(copy, "train", "APP=demo", "ARGS=--exit 7").stderr)


@pytest.mark.parametrize(
    ("arguments", "launch"),
    [
        (["NPROC=4"], "--standalone --nproc-per-node=4 "),
        (["NPROC=8", "NNODES=2", "NODE_RANK=1", "MASTER_ADDR=h"],
         "--nnodes=2 --node-rank=1 --master-addr=h --master-port=29500 --nproc-per-node=8 "),
        (["NNODES=2", "RDZV_ENDPOINT=h:1"],
         "--nnodes=2 --rdzv-backend=c10d --rdzv-id=quartet --rdzv-endpoint=h:1 --nproc-per-node=1 "),
    ],
)  # fmt: skip
def test_several_processes_start_through_torchrun(copy: Path, arguments: list[str], launch: str) -> None:
    result = make(copy, "train", "APP=demo", "ARGS=--x", *arguments)
    assert f"torchrun {launch}apps/demo/train.py --x\n" in result.stdout


@pytest.mark.parametrize(("number", "whole_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_signal_lets_the_script_save_before_make_ends(copy: Path, number: signal.Signals, whole_group: bool) -> None:
    make(copy, "train", "APP=demo")
    with subprocess.Popen(
        ["make", "train", "APP=demo", "ARGS=--wait"],
        cwd=copy,
        env=environment(copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        # Ctrl-C in a terminal goes to the whole group, `kill` to make alone.
        (os.killpg if whole_group else os.kill)(process.pid, number)
        process.wait(timeout=60)
    assert (copy / "saved").exists()


@pytest.fixture
def builder(tmp_path: Path, repository: Path) -> Path:
    """The image builder beside stand-in engines: docker is a client without an engine, buildah works."""
    root = tmp_path / "copy"
    shutil.copytree(repository / "docker", root / "docker")
    (root / "libs/mlcore/base").mkdir(parents=True)
    shutil.copy(repository / "libs/mlcore/base/version.py", root / "libs/mlcore/base")
    bin_folder = tmp_path / "bin"
    executable(bin_folder / "docker", "#!/bin/sh\n[ $1 = --version ]\n")
    executable(bin_folder / "buildah", '#!/bin/sh\n[ "$1" = info ] || echo "ran buildah $*"\n')
    for tool in ("bash", "dirname", "sed", "sh", "env"):
        (bin_folder / tool).symlink_to(shutil.which(tool) or "")
    return root


def build(builder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run docker/build.sh with the stand-ins alone on the PATH."""
    command = [str(builder / "docker/build.sh"), *arguments]
    env = {"PATH": str(builder.parent / "bin")} | extra
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_the_builder_passes_over_a_client_without_engine(builder: Path) -> None:
    result = build(builder, "perceiver", PYTHON_IMAGE="some/python:3.12")
    assert result.returncode == 0, result.stderr
    base, app = re.findall(r"^ran buildah build.*$", result.stdout, re.MULTILINE)
    assert base.endswith(
        "--build-arg PYTHON_IMAGE=some/python:3.12 -f docker/base.Dockerfile -t localhost/quartet-base:latest ."
    )
    assert "--build-arg BASE_IMAGE=localhost/quartet-base:latest" in app
    assert app.endswith("-f docker/perceiver.Dockerfile -t localhost/quartet-perceiver:latest .")


def test_an_image_knows_its_version_and_the_revision_that_its_checkout_has(
    builder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = build(builder, "perceiver").stdout
    assert f"--build-arg VERSION={VERSION} --build-arg REVISION= -f " in outside

    git = shutil.which("git")
    if git is None:
        pytest.skip("needs git")
    (builder.parent / "bin/git").symlink_to(git)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for command in ("init -q", "add .", "-c user.name=n -c user.email=n@example.org commit -qm first"):
        subprocess.run([git, *command.split()], cwd=builder, check=True)
    revision = code_version(builder / "libs")
    assert re.fullmatch(r"[0-9a-f]{12}", revision)
    assert f"--build-arg REVISION={revision} -f " in build(builder, "perceiver").stdout

    (builder / "libs/mlcore/base/version.py").write_text('VERSION = "9.8.7"\n', encoding="utf-8")
    changed = build(builder, "perceiver").stdout
    assert f"--build-arg VERSION=9.8.7 --build-arg REVISION={revision}+changes -f " in changed
    assert code_version(builder / "libs") == f"{revision}+changes"


def test_the_builder_says_what_is_missing(builder: Path) -> None:
    assert "docker/dmeo.Dockerfile does not exist" in build(builder, "dmeo").stderr
    (builder.parent / "bin/buildah").unlink()
    result = build(builder, "perceiver")
    assert result.returncode == 2
    assert "No docker, podman or buildah answers here" in result.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """Stand-ins for SLURM's commands; the step waits on a pipe that `scancel --signal` writes to."""
    bin_folder = tmp_path / "bin"
    os.mkfifo(tmp_path / "signals")
    executable(
        bin_folder / "scontrol",
        f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n[ "$1" = show ] && echo host1 && echo host2\n',
    )
    executable(
        bin_folder / "scancel", f'#!/bin/sh\necho "scancel $@" >> {tmp_path}/log\necho stop > {tmp_path}/signals\n'
    )
    step = f'#!/bin/sh\necho "srun $*"\n[ "$WAIT" ] && read -r line < {tmp_path}/signals\nexit "$STEP_EXIT"\n'
    executable(bin_folder / "srun", step)
    return tmp_path


def submit(cluster: Path, repository: Path, **extra: str) -> subprocess.Popen[str]:
    """Start the batch script as SLURM would."""
    env = os.environ | {"PATH": f"{cluster / 'bin'}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(cluster)}
    env |= {
        "SLURM_JOB_ID": "20007",
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(repository / "scripts/slurm/train.sbatch"), "perceiver", "--demo"]
    return subprocess.Popen(command, env=env | extra, stdout=subprocess.PIPE, text=True)


def test_a_slurm_job_starts_torchrun_on_every_machine_and_keeps_its_code(cluster: Path, repository: Path) -> None:
    with submit(cluster, repository, STEP_EXIT="5", WAIT="", SLURM_CPUS_PER_TASK="8") as job:
        output, _ = job.communicate(timeout=60)
    assert output.startswith("srun --cpus-per-task=8 .venv/bin/python ")
    assert "--nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=host1:20007" in output
    assert "apps/perceiver/train.py --demo" in output
    assert job.returncode == 5
    assert "requeue" not in (cluster / "log").read_text("utf-8")


def test_a_slurm_job_at_its_time_limit_saves_and_queues_again(cluster: Path, repository: Path) -> None:
    with submit(cluster, repository, STEP_EXIT="1", WAIT="yes") as job:
        assert job.stdout is not None
        assert job.stdout.readline().startswith("srun ")
        job.send_signal(signal.SIGUSR1)
        job.communicate(timeout=60)
    assert job.returncode == 0
    assert (cluster / "log").read_text("utf-8").splitlines()[-2:] == ["scancel --signal=TERM 20007", "requeue 20007"]


def test_a_slurm_job_trains_nowhere_but_where_it_was_submitted(cluster: Path, repository: Path) -> None:
    with submit(cluster, repository, STEP_EXIT="0", WAIT="", SLURM_SUBMIT_DIR=str(cluster / "gone")) as job:
        output, _ = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "srun" not in output


def test_every_app_has_what_make_and_the_images_need(repository: Path) -> None:
    apps = [path.parent.name for path in (repository / "apps").glob("*/__init__.py")]
    assert apps
    for app in apps:
        for path in (f"requirements/{app}.in", f"docker/{app}.Dockerfile", f"configs/{app}/default.yaml"):
            assert (repository / path).is_file(), f"apps/{app} needs {path}"


@pytest.fixture
def services(repository: Path) -> dict[str, dict[str, Any]]:
    """The services of docker/compose.yaml, with what their anchors stand for."""
    return yaml.safe_load((repository / "docker/compose.yaml").read_text(encoding="utf-8"))["services"]


def test_every_service_finds_its_data_where_it_is_mounted(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        mounted = [volume.removesuffix(":ro").rpartition(":")[2] for volume in service["volumes"]]
        assert service["environment"]["DATA_DIR"] in mounted, f"{name} is given the folder that .env names outside"


def test_compose_builds_no_image_that_an_app_runs_in(services: dict[str, dict[str, Any]]) -> None:
    built = {service["image"] for service in services.values() if "build" in service}
    assert built
    assert not built & {service["image"] for service in services.values() if "build" not in service}


@pytest.mark.parametrize("app", sorted(path.parent.name for path in Path(__file__).parents[1].glob("apps/*/app.py")))
def test_an_app_starts_from_what_its_image_copies(app: str, repository: Path, tmp_path: Path) -> None:
    sent = re.findall(r"^!(\S+)$", (repository / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    runtime = (repository / f"docker/{app}.Dockerfile").read_text(encoding="utf-8").partition("AS runtime")[2]
    for line in re.findall(r"^COPY (?!--from)(.+)$", runtime, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            assert source.partition("/")[0] in sent, f".dockerignore keeps {source} from the builder"
            place = tmp_path / (source if target == "./" else target)
            if (repository / source).is_dir():
                shutil.copytree(repository / source, place, symlinks=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(repository / source, place)
    entrypoint = re.findall(r'^ENTRYPOINT \["python", "(.+)"\]$', runtime, re.MULTILINE)
    env = os.environ | {"PYTHONPATH": f"{tmp_path / 'libs'}:{tmp_path}"}
    command = [sys.executable, *entrypoint, "--demo", "--cfg", "job"]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "train:" in result.stdout
