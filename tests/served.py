"""A model served in the test's process, and what asks it: real sockets, no client library."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn

from mlcore.run.predictor import Predictor
from mlcore.use.serving import Limits, listening, run_server

BOUNDARY = "a-line-between-parts"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def values(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server on a port of its own."""

    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, **headers: str) -> Reply:
        """What is at a path."""
        return self._reply("GET", path, None, headers)

    def ask(self, file: tuple[str, bytes] | None = None, /, *, headers: Any = (), **texts: str) -> Reply:
        """Post a form: a file by name and content, and texts."""
        kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self._reply("POST", "/api/predict", form(file, texts), {**kind, **dict(headers)})

    def _reply(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def form(file: tuple[str, bytes] | None, texts: Mapping[str, str]) -> bytes:
    """The body of a form, as browsers write it."""
    parts = [(f'name="{name}"', text.encode()) for name, text in texts.items()]
    parts += [] if file is None else [(f'name="file"; filename="{file[0]}"', file[1])]
    start = f"--{BOUNDARY}\r\nContent-Disposition: form-data; "
    body = b"".join(f"{start}{about}\r\n\r\n".encode() + content + b"\r\n" for about, content in parts)
    return body + f"--{BOUNDARY}--\r\n".encode()


@contextlib.contextmanager
def served(predictor: Predictor, **limits: Any) -> Iterator[Served]:
    """The predictor behind a server; when the block ends, it has stopped."""
    running: list[uvicorn.Server] = []
    with listening("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        thread = threading.Thread(
            target=run_server,
            args=(predictor, sock, Limits(**limits)),
            kwargs={"host": "127.0.0.1", "ready": running.append},
        )
        thread.start()
        try:
            yield Served(port)  # it listens already: who asks too early waits
        finally:
            while not running and thread.is_alive():
                thread.join(0.01)
            for server in running:
                server.should_exit = True
            thread.join()
