import threading
from pathlib import Path

import pytest

from mlcore.base.errors import UserError
from mlcore.remote.s3 import StorageError
from mlcore.remote.uploader import BackgroundUploader

FILE = Path("model.pth")


class Sender:
    """Fails as often as told; can be held until `go`."""

    def __init__(self, *errors: Exception, held: bool = False) -> None:
        self.sent: list[tuple[Path, str]] = []
        self.started = threading.Event()
        self.go = threading.Event()
        self._errors = list(errors)
        if not held:
            self.go.set()

    def __call__(self, path: Path, uri: str) -> None:
        self.sent.append((path, uri))
        self.started.set()
        assert self.go.wait(60)
        if self._errors:
            raise self._errors.pop(0)


def test_files_go_in_order() -> None:
    sender = Sender()
    uploader = BackgroundUploader(send=sender)
    for number in range(20):
        uploader.submit(FILE, f"s3://b/{number}")
    assert uploader.close(60) == []
    assert sender.sent == [(FILE, f"s3://b/{number}") for number in range(20)]


def test_a_passing_fault_is_tried_again() -> None:
    sender = Sender(StorageError("cut", passing=True), StorageError("cut", passing=True))
    uploader = BackgroundUploader(send=sender, attempts=3, backoff=0.001)
    uploader.submit(FILE, "s3://b/a")
    assert uploader.close(60) == []
    assert len(sender.sent) == 3


def test_a_file_that_has_arrived_is_sent_again_only_if_it_changes(tmp_path: Path) -> None:
    sent: list[str] = []
    started, go = threading.Event(), threading.Event()

    def send(path: Path, uri: str) -> None:
        sent.append(path.name)
        if path.name == "held":
            started.set()
            assert go.wait(60)

    uploader = BackgroundUploader(send=send)
    for name in ("same", "other", "held"):
        (tmp_path / name).write_text("1")
        uploader.submit(tmp_path / name, f"s3://b/{name}")
    assert started.wait(60)
    (tmp_path / "other").write_text("22")
    for name in ("same", "other"):
        uploader.submit(tmp_path / name, f"s3://b/{name}")
    go.set()
    assert uploader.close(60) == []
    assert sent == ["same", "other", "held", "other"]


def test_attempts_are_bounded_and_the_failure_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sender = Sender(*[StorageError("cut", passing=True) for _ in range(5)])
    uploader = BackgroundUploader(send=sender, attempts=3, backoff=0.001)
    uploader.submit(FILE, "s3://b/a")
    [failure] = uploader.close(60)
    assert failure.reason == "cut (tried 3 times)"
    assert len(sender.sent) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("error", [StorageError("denied"), UserError("no such file"), MemoryError("odd")])
def test_a_lasting_fault_is_not_tried_again(error: Exception) -> None:
    sender = Sender(error)
    uploader = BackgroundUploader(send=sender)
    uploader.submit(FILE, "s3://b/a")
    uploader.submit(FILE, "s3://b/b")
    [failure] = uploader.close(60)
    assert (failure.uri, failure.reason) == ("s3://b/a", str(error))
    assert len(sender.sent) == 2


def test_a_newer_file_replaces_one_that_waits_and_clears_a_failure() -> None:
    sender = Sender(StorageError("denied"), held=True)
    uploader = BackgroundUploader(send=sender)
    uploader.submit(Path("1.pth"), "s3://b/a")
    assert sender.started.wait(60)
    uploader.submit(Path("2.pth"), "s3://b/a")
    uploader.submit(Path("3.pth"), "s3://b/a")
    sender.go.set()
    assert uploader.close(60) == []
    assert [path.name for path, _ in sender.sent] == ["1.pth", "3.pth"]


def test_close_does_not_wait_for_ever() -> None:
    sender = Sender(held=True)
    uploader = BackgroundUploader(send=sender)
    uploader.submit(FILE, "s3://b/a")
    uploader.submit(FILE, "s3://b/b")
    assert sender.started.wait(60)
    failures = uploader.close(0.01)
    assert {failure.uri: failure.reason for failure in failures} == {
        "s3://b/a": "not finished within 0.01 s",
        "s3://b/b": "not finished within 0.01 s",
    }
    sender.go.set()
    with pytest.raises(RuntimeError, match="closed"):
        uploader.submit(FILE, "s3://b/c")


def test_only_the_first_of_many_failures_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    uploader = BackgroundUploader(send=Sender(*[StorageError("denied") for _ in range(3)]))
    for number in range(3):
        uploader.submit(FILE, f"s3://b/{number}")
    assert len(uploader.close(60)) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_server_that_is_down_does_not_hold_up_the_end_for_each_file() -> None:
    sent: list[str] = []

    def send(path: Path, uri: str) -> None:
        sent.append(uri)
        with uploader._changed:
            assert uploader._changed.wait_for(lambda: uploader._closing, 60)
        raise StorageError("cut", passing=True)

    uploader = BackgroundUploader(send=send, attempts=3, backoff=0.001)
    uris = [f"s3://b/{number}" for number in range(10)]
    for uri in uris:
        uploader.submit(FILE, uri)
    failures = uploader.close(60)
    assert sent == [uris[0]] * 3 + [uris[1]]
    assert [failure.uri for failure in failures] == uris
    assert failures[-1].reason == "cut"
