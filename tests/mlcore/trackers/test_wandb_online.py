"""W&B online, against a small stand-in for its server that keeps the rows it is given."""

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.mlcore.trackers.written import read_csv

SESSION = """
import logging, pathlib, sys
from mlcore.trackers import wandb
from mlcore.trackers.base import Trackers
from mlcore.trackers.table import TableTracker, read_history

folder, start, stop = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
wandb._FINISH_SECONDS = 1.0
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
trackers = Trackers(
    {
        "table": lambda: TableTracker(folder, resume_step=start - 1),
        "W&B": lambda: wandb.WandbTracker(
            folder, project="p", name="n", run_id="run1", history=read_history(folder),
            config={"api_key": "tell-nobody"},
        ),
    }
)
print("started", flush=True)
sys.stdin.readline()
for step in range(start, stop):
    trackers.log(step, {"train/loss": 1 / (step + 3)})
    trackers.log(step, {"val/accuracy": step / 7})
trackers.close(status="finished")
print("training ended normally")
"""


class StandIn(BaseHTTPRequestHandler):
    """Answers what wandb 0.31 asks for on the way to logging a run."""

    protocol_version = "HTTP/1.1"
    rows: list[dict[str, Any]]
    received: list[bytes]
    dead: threading.Event

    def parse_request(self) -> bool:
        if self.dead.is_set():  # connections that were open before the end go silent too
            self.close_connection = True
            return False
        return super().parse_request()

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        raw = self.rfile.read(int(self.headers["Content-Length"] or 0))
        raw = gzip.decompress(raw) if self.headers["Content-Encoding"] == "gzip" else raw
        self.received.append(raw)
        return raw

    def do_POST(self) -> None:
        request = json.loads(self.body())
        if not self.path.endswith("/graphql"):
            lines = request.get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.rows.extend(json.loads(line) for line in lines)
            self.answer({"limits": {}})
        elif "upsertBucket" in request["query"]:
            self.answer({"data": {"upsertBucket": {"bucket": self.run(), "inserted": not self.rows}}})
        elif "RunResumeStatus" in request["query"]:
            self.answer({"data": {"model": {"name": "p", "bucket": self.run() if self.rows else None}}})
        elif "createRunFiles" in request["query"]:
            self.answer({"data": {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}})
        else:
            self.answer({"data": {}})

    def run(self) -> dict[str, Any]:
        return {
            "id": "r", "name": "run1", "displayName": "n", "config": "{}", "summaryMetrics": "{}", "tags": [],
            "historyLineCount": len(self.rows), "eventsLineCount": 0, "logLineCount": 0, "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(row) for row in self.rows[-1:]]),
            "wandbConfig": '{"t": 1}',
            "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}},
        }  # fmt: skip


class Server:
    """The stand-in, listening on a free port."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.received: list[bytes] = []
        self._dead = threading.Event()
        handler = type("Handler", (StandIn,), {"rows": self.rows, "received": self.received, "dead": self._dead})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if not self._dead.is_set():
            self._dead.set()
            self._server.shutdown()
            self._server.server_close()

    def history(self) -> list[tuple[int, dict[str, float]]]:
        return [(row["_step"], {k: v for k, v in row.items() if not k.startswith("_")}) for row in self.rows]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


def session(server: Server, folder: Path, start: int, stop: int, *, dies: bool = False) -> tuple[str, str]:
    """Run one session; the server may die after W&B has started and before the first row."""
    process = subprocess.Popen(
        [sys.executable, "-c", SESSION, str(folder), str(start), str(stop)],
        env={"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "HOME": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    if dies:
        server.stop()
    out, err = process.communicate("go\n", timeout=120)
    assert process.returncode == 0, err
    assert out == "training ended normally\n"
    return out, err


def test_the_server_gets_the_table_and_no_secret(server: Server, tmp_path: Path) -> None:
    _, err = session(server, tmp_path, 0, 20)
    assert err == ""
    assert server.history() == read_csv(tmp_path / "metrics.csv")
    everything = b"".join(server.received)
    assert b"api_key" in everything
    assert b"tell-nobody" not in everything


def test_a_resumed_run_goes_on_with_monotonic_steps_and_no_duplicates(server: Server, tmp_path: Path) -> None:
    session(server, tmp_path, 0, 9)
    _, err = session(server, tmp_path, 6, 14)  # from a checkpoint at step 5; the server has up to 8
    assert err == ""
    assert [step for step, _ in server.history()] == list(range(14))
    assert server.history() == read_csv(tmp_path / "metrics.csv")


def test_a_server_that_dies_in_the_middle_costs_one_warning_and_the_next_session_delivers(
    server: Server, tmp_path: Path
) -> None:
    _, err = session(server, tmp_path, 0, 9, dies=True)
    [warning] = err.splitlines()
    assert warning.startswith("WARNING W&B was not closed in order: the upload took more than 1 s")
    assert "wandb sync" in warning
    assert server.rows == []
    again = Server()
    session(again, tmp_path, 9, 12)
    again.stop()
    assert again.history() == read_csv(tmp_path / "metrics.csv")
