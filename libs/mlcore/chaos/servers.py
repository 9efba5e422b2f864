"""Trackers and buckets that are dead, slow or refuse, on loopback."""

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

from mlcore.chaos.bench import PLAIN, Bench, checkpoints, tail, unwanted
from mlcore.chaos.child import Child

__all__ = ["bucket", "trackers"]

Mode = Literal["well", "slow", "refusing"]
_MODES = ("dead", "slow", "refusing")
_SLOW = 3600.0  # seconds: longer than anybody waits


class _Server(ThreadingHTTPServer):
    """Keeps objects as a bucket does while it is well; then answers never, or with 503."""

    daemon_threads = True
    mode: Mode = "well"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.over = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that have given up are what is wanted."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def _answer(self, code: int, *, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.mode == "slow":
            self.server.over.wait(_SLOW)
        if self.server.mode != "well":
            self._answer(503)
            return
        key = self.path.partition("?")[0]
        if self.command == "PUT":
            kept = {k: v for k, v in self.headers.items() if k.lower().startswith(("x-amz-meta", "x-amz-checksum"))}
            kept["ETag"] = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
            self.server.objects[key] = (data, kept)
            self._answer(200, headers=kept)
        elif self.command == "DELETE":
            self.server.objects.pop(key, None)
            self._answer(204)
        elif key in self.server.objects:
            body, kept = self.server.objects[key]
            self._answer(200, headers=kept, body=body)
        else:
            self._answer(200 if key.count("/") == 1 else 404)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - named by the library

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@contextmanager
def _serving() -> Iterator[_Server]:
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


def _closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def trackers(bench: Bench, number: int) -> tuple[str | None, str]:
    """W&B's server is dead, slow or refuses: the run is refused at its start, or trains as if there were none."""
    mode, place = _MODES[number % 3], bench.place("tracker")
    bench.whole(PLAIN)
    with _serving() as server:
        server.mode = "slow" if mode == "slow" else "refusing"
        url = _closed_port() if mode == "dead" else server.url
        known = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online"}
        child = bench.start(place, PLAIN, "--use_wandb", environment=known)
        return _fails_open(bench, child, words=("w&b", "wandb")), f"{mode}: exit code {child.process.returncode}"


def bucket(bench: Bench, number: int) -> tuple[str | None, str]:
    """The bucket falls ill in the middle of a run: it trains as if there were none and says what is missing there."""
    mode, place = _MODES[number % 3], bench.place("bucket")
    bench.whole(PLAIN)
    with _serving() as server:
        keys = {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos", "AWS_DEFAULT_REGION": "us-east-1"}
        known = {"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true", **keys}
        child = bench.start(place, PLAIN, "--upload_to", "s3://chaos", environment=known)
        child.until(lambda: bool(checkpoints(place)))
        child.wait_until(time.monotonic() + bench.rng.uniform(0.0, 0.5))
        server.mode = "slow" if mode == "slow" else "refusing"
        if mode == "dead":
            server.shutdown()
            server.server_close()
        return _fails_open(bench, child, words=("not uploaded",)), f"{mode}: exit code {child.process.returncode}"


def _fails_open(bench: Bench, child: Child, *, words: tuple[str, ...]) -> str | None:
    """A complaint unless the run says what is ill, and was refused before it began or trained like the whole one."""
    code, said = child.wait(), child.said
    if code == 2:
        return unwanted(child, 2, words=words) or (
            f"{child.place.name}: refused late" if checkpoints(child.place) else None
        )
    if not any(word in said.lower() for word in words):
        return f"{child.place.name}: nothing is said of it: {tail(said)}"
    return unwanted(child, 0) or bench.judge(child, bench.whole(PLAIN))
