"""Against a real S3 server on the loopback: rclone's, from requirements/dev.txt."""

import hashlib
import os
import random
import socket
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlcore.base.errors import UserError
from mlcore.remote import s3
from mlcore.remote.s3 import StorageError, check_bucket, fetch, to_address, upload
from mlcore.remote.uploader import BackgroundUploader


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_PART", 5 << 20)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(100_000))
    return path


@pytest.mark.parametrize("size", [0, 1, 100_000, (5 << 20) + 1, 12 << 20])
def test_round_trip_in_one_or_several_parts(s3_server: Any, tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(size))
    upload(path, "s3://models/run 1/best.pth")
    copy = fetch("s3://models/run 1/best.pth", cache_dir=tmp_path / "cache")
    assert copy == tmp_path / "cache" / "models" / "run 1" / "best.pth"
    assert copy.read_bytes() == path.read_bytes()
    assert [entry.name for entry in copy.parent.iterdir()] == ["best.pth"]


def test_a_good_copy_is_not_downloaded_again_and_a_bad_one_is(
    s3_server: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(model, "s3://models/a")
    copy = fetch("s3://models/a", cache_dir=tmp_path / "cache")
    before = copy.stat().st_ino  # a new download would be a new file
    assert fetch("s3://models/a", cache_dir=tmp_path / "cache").stat().st_ino == before
    copy.write_bytes(bytes(100_000))
    assert fetch("s3://models/a", cache_dir=tmp_path / "cache").read_bytes() == model.read_bytes()
    model.write_bytes(b"newer")
    upload(model, "s3://models/a")
    assert fetch("s3://models/a", cache_dir=tmp_path / "cache").read_bytes() == b"newer"


def test_a_damaged_object_is_refused_and_the_old_copy_stays(s3_server: Any, tmp_path: Path, model: Path) -> None:
    upload(model, "s3://models/a")
    copy = fetch("s3://models/a", cache_dir=tmp_path / "cache")
    good = model.read_bytes()
    bad = bytes([good[0] ^ 1]) + good[1:]
    newer = hashlib.sha256(b"what should be there").hexdigest()
    boto3.client("s3").put_object(Bucket="models", Key="a", Body=bad, Metadata={"sha256": newer})
    with pytest.raises(StorageError, match=r"s3://models/a: damaged.*wrong checksum"):
        fetch("s3://models/a", cache_dir=tmp_path / "cache")
    assert copy.read_bytes() == good
    assert len(list(copy.parent.iterdir())) == 1


def test_objects_of_other_programs_have_no_checksum_and_are_taken(s3_server: Any, tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket="models", Key="a", Body=b"content")
    assert fetch("s3://models/a", cache_dir=tmp_path).read_bytes() == b"content"


def test_an_object_of_another_program_is_refused_where_the_server_knows_better(s3_server: Any, tmp_path: Path) -> None:
    boto3.client("s3").put_object(Bucket="models", Key="a", Body=b"content", ChecksumCRC32="AAAAAA==")
    with pytest.raises(StorageError, match=r"s3://models/a: damaged.*wrong checksum"):
        fetch("s3://models/a", cache_dir=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_denied(s3_server: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(model, "s3://models/a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong secret")
    message = r"s3://models/(a|quartet_write_test): access denied .*AWS_SECRET_ACCESS_KEY"
    with pytest.raises(StorageError, match=message) as caught:
        upload(model, "s3://models/a")
    assert not caught.value.passing
    with pytest.raises(StorageError, match=message):
        fetch("s3://models/a", cache_dir=tmp_path / "cache")
    with pytest.raises(StorageError, match=message):
        check_bucket("models")
    assert not (tmp_path / "cache").exists()


def test_credentials_renewed_in_a_file_are_taken(
    s3_server: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    credentials = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    text = "[default]\naws_access_key_id = tester\naws_secret_access_key = {}\n"
    credentials.write_text(text.format("expired"))
    with pytest.raises(StorageError, match="access denied"):
        upload(model, "s3://models/a")
    credentials.write_text(text.format("testing123"))
    upload(model, "s3://models/a")
    assert (s3_server.root / "models" / "a").read_bytes() == model.read_bytes()


def test_a_failure_does_not_make_the_next_request_costly(s3_server: Any, model: Path) -> None:
    """A new session would read megabytes of descriptions, beside the training, for each file that is refused."""
    check_bucket("models")
    before = s3._session()
    for place in ("s3://modles/a", "s3://modles/b"):
        with pytest.raises(StorageError, match="there is no bucket"):
            upload(model, place)
    assert s3._session() is before


def test_missing_bucket_and_missing_object(s3_server: Any, tmp_path: Path, model: Path) -> None:
    check_bucket("models")
    assert s3_server.keys() == []  # what was written to see whether it can be is gone
    with pytest.raises(StorageError, match=r"there is no bucket 'modles'\. Check S3_BUCKET_NAME"):
        upload(model, "s3://modles/a")
    with pytest.raises(StorageError, match="there is no bucket 'modles'"):
        fetch("s3://modles/a", cache_dir=tmp_path)
    with pytest.raises(StorageError, match="there is no bucket 'modles'"):
        check_bucket("modles")
    with pytest.raises(StorageError, match=r"s3://models/none: no such object"):
        fetch("s3://models/none", cache_dir=tmp_path)


def test_server_killed_in_the_middle_of_an_upload(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts are sent one after the other; the server dies when the second one is about to go."""
    path = tmp_path / "model.pth"
    content = os.urandom(12 << 20)
    path.write_bytes(b"old")
    upload(path, "s3://models/a")
    path.write_bytes(content)
    real_client = s3._client
    parts: list[object] = []

    def client(**options: Any) -> Any:
        made = real_client(**options)
        made.meta.events.register("before-send.s3.UploadPart", on_part)
        return made

    def on_part(**details: object) -> None:
        parts.append(details)
        if len(parts) == 2:
            s3_server.kill()

    monkeypatch.setattr(s3, "_client", client)
    with pytest.raises(StorageError, match=r"no proper answer from http://127\.0\.0\.1") as caught:
        upload(path, "s3://models/a")
    assert caught.value.passing
    assert path.read_bytes() == content
    assert len(parts) == 2  # trying again, with pauses that draw no random number, is the uploader's part

    monkeypatch.setattr(s3, "_client", real_client)
    s3_server.start()
    assert fetch("s3://models/a", cache_dir=tmp_path / "cache").read_bytes() == b"old"
    upload(path, "s3://models/a")
    assert fetch("s3://models/a", cache_dir=tmp_path / "cache").read_bytes() == content


def test_server_killed_in_the_middle_of_a_download(
    s3_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(os.urandom(12 << 20))
    upload(path, "s3://models/a")
    write = s3._HashingWriter.write

    def dying(self: s3._HashingWriter, data: bytes) -> int:
        if s3_server.process.returncode is None:
            s3_server.kill()
        return write(self, data)

    monkeypatch.setattr(s3._HashingWriter, "write", dying)
    with pytest.raises(StorageError, match="no proper answer"):
        fetch("s3://models/a", cache_dir=tmp_path / "cache")
    assert [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()] == []


def test_a_dead_bucket_is_reported_by_the_uploader_and_harms_nothing(
    s3_server: Any, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = model.read_bytes()
    uploader = BackgroundUploader(attempts=2, backoff=0.01)
    uploader.submit(model, "s3://models/good.pth")
    uploader.submit(model, "s3://modles/bad.pth")
    [failure] = uploader.close(timeout=60)
    assert (failure.path, failure.uri) == (model, "s3://modles/bad.pth")
    assert "there is no bucket 'modles'" in failure.reason
    assert [record.levelname for record in caplog.records if record.name == "mlcore"] == ["WARNING"]
    assert (s3_server.root / "models" / "good.pth").read_bytes() == content == model.read_bytes()


def test_unreachable_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StorageError, match=rf"no proper answer from http://127\.0\.0\.1:{port}.*AWS_ENDPOINT_URL"):
        check_bucket("models")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(StorageError, match=r"Expected AWS_ENDPOINT_URL=https://"):
        check_bucket("models")


@pytest.mark.usefixtures("no_credentials")
def test_no_credentials() -> None:
    with pytest.raises(StorageError, match=r"no credentials\. Set AWS_ACCESS_KEY_ID"):
        check_bucket("models")


def test_what_cannot_be_read_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pth: cannot be read"):
        upload(tmp_path / "none.pth", "s3://models/a")


@pytest.mark.parametrize(
    "uri", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3://b/../../etc/x", "s3://b/a//c"]
)
def test_malformed_addresses(uri: str, tmp_path: Path, model: Path) -> None:
    with pytest.raises(UserError, match="expected s3://bucket/key"):
        fetch(uri, cache_dir=tmp_path)
    with pytest.raises(UserError, match="expected s3://bucket/key"):
        upload(model, uri)


def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all requests from now on."""
    seen: list[str] = []
    real_client = s3._client

    def client(**options: Any) -> Any:
        made = real_client(**options)
        made.meta.events.register("before-send.s3", lambda event_name, **_: seen.append(event_name.split(".")[-1]))
        return made

    monkeypatch.setattr(s3, "_client", client)
    return seen


def test_what_is_there_already_is_not_sent_again(s3_server: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = requests(monkeypatch)
    upload(model, "s3://models/a")
    upload(model, "s3://models/a")
    assert seen.count("PutObject") == 1
    content = model.read_bytes()
    model.write_bytes(bytes(len(content)))  # the same size
    upload(model, "s3://models/a")
    assert (s3_server.root / "models" / "a").read_bytes() == bytes(len(content))
    assert seen.count("PutObject") == 2


def test_an_upload_beside_the_training_draws_no_random_number(
    s3_server: Any, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = tmp_path / "large.pth"
    large.write_bytes(bytes(12 << 20))
    seen = requests(monkeypatch)
    random.seed(1)
    before = random.getstate()
    for path in (model, large):
        upload(path, f"s3://models/{path.name}")
    s3_server.kill()
    with pytest.raises(StorageError, match="no proper answer"):
        upload(model, "s3://models/b")
    s3_server.start()
    assert "UploadPart" in seen
    assert random.getstate() == before


@pytest.mark.parametrize("place", ["models", "s3://models", "models/some/where/", "s3://models/some/where"])
def test_a_bucket_is_named_in_many_ways(s3_server: Any, place: str) -> None:
    check_bucket(place)
    assert to_address(place).startswith("s3://models")
    assert not to_address(place).endswith("/")
