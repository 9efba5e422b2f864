"""quartet serve: what it answers, what it refuses, and that nothing is left of what came."""

import math
import shlex
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlcore.base.errors import UserError
from mlcore.run.predictor import Predictor
from mlcore.run.scorer import Item, Shown
from mlcore.use.serving import listening
from tests.browser import page
from tests.served import BOUNDARY, Reply, Served, form, served

LIMIT = 200_000


class Answer:
    def __init__(self, text: str) -> None:
        self.text = text

    def row(self) -> list[object]:
        return [self.text.upper(), len(self.text) / 3, math.nan]


class Lines:
    """Each line of a file, with a word before it; one that says "bad" cannot be used, at "wait" it waits."""

    columns: Sequence[str] = ("upper", "number", "nothing")
    suffixes: Sequence[str] = (".txt", ".txt.gz")
    inputs: Mapping[str, Sequence[str]] = {"path": ("file",), "word": ("word",)}
    batch_size = 2

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def items(self, path: Path) -> Sequence[Item]:
        self.paths.append(path)
        return [Item(f"{path}, line {k}", path, k) for k in range(len(path.read_text("utf-8").splitlines()))]

    def load(self, item: Item) -> str:
        assert item.path is not None
        text = item.path.read_text("utf-8").splitlines()[item.part]
        if text == "bad":
            raise UserError(f"{item.path}, line {item.part}: is bad")
        return item.value("word") + text

    def collate(self, samples: Sequence[str]) -> list[str]:
        return list(samples)

    def predict(self, batch: list[str]) -> list[Answer]:
        if "wait" in batch:
            self.begun.set()
            assert self.go_on.wait(60)
        if "fault" in batch:
            raise ZeroDivisionError("of the model")
        return [Answer(text) for text in batch]

    def show(self, item: Item, prediction: Answer) -> Shown:
        picture = np.full((3000, 30, 3), len(prediction.text), dtype=np.uint8)
        bars = {"share": {"a": 0.25, "b": 0.75}}
        return Shown(answer=prediction.text, bars=bars, pictures=[picture], curves={"c": np.array([1.0, math.nan])})

    def save(self, item: Item, prediction: Answer, folder: Path) -> None: ...


def predictor(scorer: Lines) -> Predictor:
    app: Any = SimpleNamespace(name="lines", title="Lines of <text>")
    given: Any = scorer
    return Predictor(app=app, scorer=given, source=Path("runs/first/checkpoints/best.pth"), about={}, identity={})


@pytest.fixture(scope="module")
def scorer() -> Lines:
    return Lines()


@pytest.fixture(scope="module")
def server(scorer: Lines) -> Iterator[Served]:
    with served(predictor(scorer), upload=LIMIT, waiting=1) as running:
        yield running


def refused(reply: Reply, status: int) -> str:
    assert reply.status == status, reply.body
    assert list(reply.values) == ["problem"]
    problem: str = reply.values["problem"]
    return problem


def raw(server: Served, head: str, body: bytes = b"") -> bytes:
    """What comes back on a socket that sends just this and goes on listening."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        sock.sendall(head.replace("\n", "\r\n").encode() + b"\r\n" + body)
        found = b""
        while chunk := sock.recv(65536):
            found += chunk
        return found


def test_a_file_and_a_text_are_answered_under_the_clients_name(server: Served, scorer: Lines) -> None:
    reply = server.ask(("../../새 글.TXT", "하나\nbad\n셋\n".encode()), word="말 ")
    assert reply.status == 200, reply.body
    first, second, third = reply.values["predictions"]
    assert (first["input"], first["answer"]) == ("새 글.TXT, line 0", "말 하나")
    assert first["values"] == {"upper": "말 하나", "number": pytest.approx(4 / 3), "nothing": None}
    assert (first["bars"], first["curves"]) == ({"share": {"a": 0.25, "b": 0.75}}, {"c": [1.0, None]})
    assert second == {"input": "새 글.TXT, line 1", "problem": "새 글.TXT, line 1: is bad"}
    assert third["answer"] == "말 셋"
    assert scorer.paths[-1].name == "upload.txt"
    assert not scorer.paths[-1].parent.exists(), "what came is gone as soon as it is answered"
    assert scorer.paths[-1].parents[1].stat().st_mode & 0o777 == 0o700


def test_pictures_are_kept_for_the_last_answers_only(server: Served) -> None:
    (found,) = server.ask(("a.txt", b"one"), word="").values["predictions"]
    (address,) = found["pictures"]
    picture = server.get(address)
    assert (picture.status, picture.headers["content-type"]) == (200, "image/png")
    assert picture.body[:4] == b"\x89PNG"
    assert int.from_bytes(picture.body[20:24], "big") == 1000, "no larger than a screen needs it"
    for wrong in (
        address.replace("0.png", "1.png"),
        address.rpartition("/")[0] + "/..%2f..%2fx",
        "/made/x/0/0.png",
    ):
        assert server.get(wrong).status == 404
    for _ in range(16):
        assert server.ask(("a.txt", b"one")).status == 200
    assert "predict again" in refused(server.get(address), 404)


def test_only_the_first_things_of_a_long_file_are_answered(server: Served) -> None:
    found = server.ask(("a.txt", b"one\n" * 100)).values
    assert (len(found["predictions"]), found["left_out"]) == (64, 36)


@pytest.mark.parametrize(
    ("file", "texts", "message"),
    [
        (("a.exe", b"x"), {}, "a.exe: this model reads .txt, .txt.gz"),
        (("C:\\own\\a", b"x"), {}, "a: this model reads"),
        (None, {"word": "x"}, "nothing to predict came; this model reads .txt, .txt.gz, word"),
        (("a.txt", b"x"), {"wrod": "x"}, "this model takes no 'wrod'; it takes file, word"),
        (("a.txt", b"bad"), {}, "a.txt, line 0: is bad"),
        (("a.txt", b""), {}, "there is nothing in this file"),
    ],
)
def test_what_cannot_be_predicted_is_told(server: Served, file: Any, texts: Any, message: str) -> None:
    problem = refused(server.ask(file, **texts), 422)
    assert problem.startswith(message)
    assert tempfile.gettempdir() not in problem


def test_two_gigabytes_are_refused_before_they_are_sent(server: Served) -> None:
    head = f"POST /api/predict HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary={BOUNDARY}\n"
    reply = raw(server, f"{head}Content-Length: {2 * 2**30}\n")
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b"too large: this server takes at most 195.3 KiB" in reply


def test_an_upload_without_a_length_is_cut_off_at_the_limit(server: Served) -> None:
    head = f"POST /api/predict HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary={BOUNDARY}\n"
    part = form(("a.txt", b"x" * (LIMIT + 1)), {})[:-50]
    reply = raw(server, f"{head}Transfer-Encoding: chunked\n", f"{len(part):x}\r\n".encode() + part)
    assert reply.startswith(b"HTTP/1.1 413 ")


def test_other_forms_are_refused(server: Served) -> None:
    assert "multipart/form-data" in refused(server.ask(headers={"Content-Type": "application/json"}), 415)
    assert server.get("/api/predict").status == 404
    assert server.get("/nothing").status == 404
    assert server.ask(("a.txt", b"x"), word="x" * 70_000).status == 400
    torn = form(("a.txt", b"x"), {}).replace(BOUNDARY.encode(), b"other")
    head = f"POST /api/predict HTTP/1.1\nHost: localhost\nConnection: close\nContent-Length: {len(torn)}\n"
    reply = raw(server, f"{head}Content-Type: multipart/form-data; boundary={BOUNDARY}\n", torn)
    assert reply.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "LOCALHOST:99", "[::1]:8000", "10.1.2.3"])
def test_names_that_cannot_be_made_to_stand_for_others_are_answered(server: Served, host: str) -> None:
    assert server.get("/api/about", Host=host).status == 200
    assert server.get("/api/about", Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "[::1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
)
def test_pages_of_other_sites_are_refused(server: Served, scorer: Lines, headers: Any) -> None:
    seen = len(scorer.paths)
    assert refused(server.get("/", **headers), 403)
    assert refused(server.ask(("a.txt", b"x"), headers=headers), 403)
    assert len(scorer.paths) == seen


def test_every_answer_bears_the_headers(server: Served) -> None:
    for reply in (
        server.get("/"),
        server.get("/nothing"),
        server.get("/page.css"),
        server.ask(),
        server.get("/", Host="x"),
    ):
        assert reply.headers["content-security-policy"].startswith("default-src 'self';")
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "server" not in reply.headers
    page = server.get("/").body.decode()
    assert "<script>" not in page
    assert "style=" not in page


def test_one_is_answered_one_waits_and_the_next_is_told_so(server: Served, scorer: Lines) -> None:
    with ThreadPoolExecutor(3) as clients:
        first = clients.submit(server.ask, ("a.txt", b"wait"))
        try:
            assert scorer.begun.wait(60)
            others = [clients.submit(server.ask, (name, b"two")) for name in ("b.txt", "c.txt")]
            done, waiting = wait(others, timeout=60, return_when=FIRST_COMPLETED)
        finally:
            scorer.go_on.set()
        (told,) = (one.result() for one in done)
        assert "busy: one prediction at a time, and 1 wait" in refused(told, 503)
        assert told.headers["retry-after"] == "5"
        assert [one.result().status for one in (first, *waiting)] == [200, 200]


def test_a_fault_of_the_model_is_told_without_its_particulars(caplog: pytest.LogCaptureFixture) -> None:
    with served(predictor(Lines())) as server:
        problem = refused(server.ask(("a.txt", b"fault")), 500)
        assert problem == "the server failed at this; what it printed says why"
        assert server.ask(("a.txt", b"one")).status == 200
    assert "ZeroDivisionError: of the model" in caplog.text


def test_time_is_limited_and_nothing_is_left_when_the_server_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scorer = Lines()
    with served(predictor(scorer), seconds=0.3, waiting=1) as server:
        head = f"POST /api/predict HTTP/1.1\nHost: 127.0.0.1\nContent-Type: multipart/form-data; boundary={BOUNDARY}\n"
        assert b"the upload took longer than 0.3 s" in raw(server, f"{head}Content-Length: 900\n", b"--a")
        assert "no answer within 0.3 s" in refused(server.ask(("a.txt", b"wait")), 504)
        assert "no answer within 0.3 s" in refused(server.ask(("b.txt", b"one")), 504)  # it waited, and is not made
        assert len(list(tmp_path.iterdir())) == 1
        scorer.go_on.set()
    assert not list(tmp_path.iterdir())
    assert [path.name for path in scorer.paths] == ["upload.txt"]


def test_the_documented_command_works(server: Served, repository: Path, tmp_path: Path) -> None:
    page = (repository / "docs" / "USE.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("curl -F "))
    (tmp_path / "scan.txt").write_text("one")
    words = [word.replace("scan.pdf", "scan.txt") for word in shlex.split(command)]
    words = [word.replace("http://127.0.0.1:8000", server.url) for word in words]
    if subprocess.run(["which", "curl"], stdout=subprocess.DEVNULL).returncode:
        pytest.skip("no curl")
    ended = subprocess.run([*words, "--silent", "--noproxy", "*"], cwd=tmp_path, capture_output=True, text=True)
    assert '"answer":"one"' in ended.stdout, ended


def test_an_address_that_is_taken_is_told(server: Served) -> None:
    with pytest.raises(UserError, match=rf"cannot listen at 127.0.0.1, port {server.port} .* another --port"):
        listening("127.0.0.1", server.port)
    with pytest.raises(UserError, match="--port 70000: expected a number from 0 to 65535"):
        listening("127.0.0.1", 70000)


@pytest.mark.slow
def test_a_file_dropped_on_the_page_is_answered_and_no_request_leaves_it(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "<img src=x onerror=document.title=1> 새.txt"
    file.write_text("<b>하나</b>\nbad\n", encoding="utf-8")
    elsewhere = listening("127.0.0.1", 0)
    elsewhere.settimeout(0)
    with elsewhere, page(tmp_path) as tab:
        tab.open(server.url, "document.title.startsWith('Lines')")
        assert tab.evaluate("document.querySelector('h1').textContent") == "Lines of <text>"
        tab.evaluate("document.querySelector('textarea').value = '말 '")
        tab.drop(file, "#drop")
        tab.evaluate("document.getElementById('send').click()")
        tab.wait("document.querySelectorAll('#answers section').length")
        first, second = tab.evaluate("[...document.querySelectorAll('#answers section')].map(e => e.innerText)")
        assert "말 <b>하나</b>" in first
        assert f"{file.name}, line 1: is bad" in second
        tab.wait("[...document.images].every(image => image.naturalHeight)")  # loaded
        assert tab.evaluate("[...document.images].map(i => i.naturalHeight)") == [1000], "the names are no markup"
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert tab.complaints == []
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        assert tab.evaluate(f"fetch('{address}').then(() => 'came', () => 'refused')") == "refused"
        with pytest.raises(BlockingIOError):  # nobody has called
            elsewhere.accept()
        assert all(url.startswith((server.url, address)) for url in tab.requested), tab.requested


@pytest.mark.slow
def test_a_file_that_is_too_large_is_told_on_the_page(server: Served, tmp_path: Path) -> None:
    (tmp_path / "large.txt").write_bytes(b"x" * (LIMIT + 1))
    with page(tmp_path) as tab:
        tab.open(server.url, "document.title.startsWith('Lines')")
        tab.drop(tmp_path / "large.txt", "#drop")
        tab.evaluate("document.getElementById('send').click()")
        tab.wait("!document.getElementById('problem').hidden")
        assert "large.txt is too large" in tab.evaluate("document.getElementById('problem').innerText")
