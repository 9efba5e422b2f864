"""A hub on loopback: what `huggingface_hub` asks of it to make a repository, commit files and fetch them."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40


class Hub:
    """What it has been told.

    Attributes:
        files: By path, of the one repository.
        requests: Method and path of every request.
        tokens: What was written was authorised with.
        created: What the repository was made with.
        refuse: Status of every answer; 0: it does what is asked.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.tokens: set[str | None] = set()
        self.created: dict[str, Any] = {}
        self.refuse = 0
        self.address = ""

    def write(self, folder: Path) -> None:
        """Put the files into a folder."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def answer(self, path: str, body: bytes) -> Any:
        """What a POST gives."""
        if path.endswith("/api/repos/create"):
            self.created = json.loads(body)
            return {"url": f"{self.address}/team/model", "id": "team/model"}
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in files]}
        if "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    assert entry["value"]["encoding"] == "base64"
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return {"commitUrl": f"{self.address}/team/model/commit/{COMMIT}", "commitOid": COMMIT}
        return {}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

        def _begin(self) -> bytes:
            hub.requests.append(f"{self.command} {self.path}")
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_POST(self) -> None:
            body = self._begin()
            hub.tokens.add(self.headers.get("Authorization"))
            found = {} if hub.refuse else hub.answer(self.path.partition("?")[0], body)
            self._send(json.dumps(found).encode(), hub.refuse or 200)

        def do_GET(self) -> None:
            self._begin()
            name = self.path.partition("?")[0].rpartition("/")[2]
            if hub.refuse or ("/resolve/" in self.path and name not in hub.files):
                self._send(b"", hub.refuse or 404)
            elif "/resolve/" in self.path:
                etag = hashlib.sha256(hub.files[name]).hexdigest()
                self._send(hub.files[name], ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            elif "/tree/" in self.path:
                tree = [{"type": "file", "path": file, "size": len(data)} for file, data in hub.files.items()]
                oids = [hashlib.sha1(data, usedforsecurity=False).hexdigest() for data in hub.files.values()]
                entries = [{**entry, "oid": oid} for entry, oid in zip(tree, oids, strict=True)]
                self._send(json.dumps(entries).encode())
            else:
                siblings = [{"rfilename": file} for file in hub.files]
                self._send(json.dumps({"id": "team/model", "sha": COMMIT, "siblings": siblings}).encode())

        do_HEAD = do_GET  # noqa: N815

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    """One that listens until the block ends."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
