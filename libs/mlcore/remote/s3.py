"""Files in an S3 bucket: wherever a checkpoint's path is accepted, `s3://bucket/key` is too.

Credentials, region and server come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION,
AWS_ENDPOINT_URL for a server that is not Amazon's) or from the usual AWS files. Every object carries the SHA-256 of its
file in its own metadata, so a damaged one is refused whatever checksums the server knows.
"""

import contextlib
import hashlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mlcore.base.env import load_env
from mlcore.base.errors import UserError
from mlcore.base.files import atomic_write, ensure_folder
from mlcore.base.signals import deferred

__all__ = ["CACHE", "StorageError", "check_bucket", "fetch", "is_remote", "stored_file", "to_address", "upload"]

CACHE = Path("outputs") / "s3"
"""Where downloads go, by bucket and key; what is made from a checkpoint then lies beside it, as in a run folder."""

_log = logging.getLogger(__name__)

_SCHEME = "s3://"
_TRIAL = "quartet_write_test"  # key of what `check_bucket` writes and deletes
_DECISION = "decision.json"  # what a run's validation chose, see `mlcore.run.decision`
_CHECKPOINTS = (".pth", ".ckpt")
_PART = 64 << 20  # bytes; S3 takes up to 10,000 parts, so files up to 640 GB
_DENIED = {"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_DAMAGED = {"BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}


class StorageError(UserError):
    """A bucket that does not give or take a file; the message names the object and says what to do.

    Attributes:
        passing: Whether trying again later may help (a network fault), or not (no permission, no such bucket).
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class _Object(NamedTuple):
    """One object in a bucket."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.bucket}/{self.key}"


class _HashingWriter:
    """Passes bytes on and sums them up; not seekable, so that they come in order."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, data: bytes) -> int:
        """Hash and write `data`."""
        self.digest.update(data)
        return self._file.write(data)


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` names an object in a bucket, not a local file."""
    return str(uri).startswith(_SCHEME)


def to_address(text: str) -> str:
    """`s3://bucket` or `s3://bucket/prefix` of what a user calls a place: the same, or without `s3://`."""
    return _SCHEME + text.removeprefix(_SCHEME).strip("/")


def stored_file(text: str) -> Path:
    """`type=` of an argument that is a file: a local path as it is; `s3://bucket/key` is downloaded first.

    A copy that is there already is used again if its checksum is that of the object. With the checkpoint of a run comes
    its decision, if the bucket has one.

    Raises:
        UserError: The object is missing, damaged or cannot be reached; the message says what to do.
    """
    if not is_remote(text):
        return Path(text)
    load_env()  # credentials
    path = fetch(text, cache_dir=CACHE)
    print(f"{text} -> {path}", file=sys.stderr)
    if path.suffix in _CHECKPOINTS:
        _fetch_beside(text.removesuffix(f"/{path.name}").removesuffix("/checkpoints"), _DECISION)
    return path


def _fetch_beside(folder: str, name: str) -> None:
    """Download an object that need not be there; then no former copy of it stays either."""
    try:
        fetch(f"{folder}/{name}", cache_dir=CACHE)
    except StorageError as error:
        if error.passing:
            raise
        (CACHE / folder.removeprefix(_SCHEME) / name).unlink(missing_ok=True)


def fetch(uri: str, *, cache_dir: Path) -> Path:
    """A local file with the content of the object `uri`, `s3://bucket/key`.

    It is downloaded to `cache_dir/bucket/key`, checked against its SHA-256, and only then put in place; a copy that is
    there already and has the right checksum is not downloaded again.

    Raises:
        UserError: `uri` is malformed, or the disk is full.
        StorageError: The object is missing, damaged, or cannot be reached.
    """
    source = _parse(uri)
    path = Path(cache_dir) / source.bucket / source.key
    with _explained(source):
        client = _client()
        size, expected = _stored(client, source)
        if expected is not None and path.is_file() and path.stat().st_size == size and _sha256(path) == expected:
            return path
        ensure_folder(path.parent)
        with atomic_write(path, size=size) as file:
            writer = _HashingWriter(file)
            client.download_fileobj(source.bucket, source.key, writer, Config=_transfer(threads=True))
            if file.tell() != size or expected not in (None, writer.digest.hexdigest()):
                raise _damaged(source)
    return path


def upload(path: Path, uri: str) -> None:
    """Copy the local file `path` to `uri`, where it appears only when complete; `path` itself is only read.

    An object with the same checksum is not sent again. Made to go on beside the training: boto3's threads, which would
    be waited for at the end of the process, are not used, and each request is tried once, because pauses between
    attempts would draw from the generator whose state is part of a checkpoint. `BackgroundUploader` tries again.

    Args:
        path: The file.
        uri: `s3://bucket/key`.

    Raises:
        UserError: `path` cannot be read, or `uri` is malformed.
        StorageError: The bucket does not take the file.
    """
    target = _parse(uri)
    try:
        source = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read for the copy to {uri} ({error.strerror}).") from error
    with source, _explained(target):  # one open file: replacing `path` meanwhile changes neither checksum nor content
        state = os.fstat(source.fileno()).st_size, hashlib.file_digest(source, "sha256").hexdigest()
        source.seek(0)
        client = _client(attempts=1)
        if _is_there(client, target, state):
            return
        extra = {"Metadata": {"sha256": state[1]}}
        client.upload_fileobj(source, target.bucket, target.key, ExtraArgs=extra, Config=_transfer(threads=False))
        kept, _ = _stored(client, target)
        if kept != state[0]:
            raise StorageError(
                f"{target}: the server keeps {kept} bytes of {state[0]}. It may not understand streamed "
                "checksums: set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and try again.",
                passing=True,
            )


def check_bucket(place: str) -> None:
    """Write an empty object to `place` (see `to_address`) and delete it again: what runs upload can get there.

    Who may write but not delete can upload, too: that is logged, and the object, always the same one, stays.

    Raises:
        StorageError: It cannot be written, or no answer came within three seconds of connecting or reading.
    """
    from botocore.exceptions import ClientError

    target = _parse(f"{to_address(place)}/{_TRIAL}")
    with _explained(target), deferred():  # no signal leaves the object there
        client = _client(attempts=1, timeout=3.0)
        client.put_object(Bucket=target.bucket, Key=target.key, Body=b"")
        try:
            client.delete_object(Bucket=target.bucket, Key=target.key)
        except ClientError as error:
            _log.warning("%s: written to see whether it can be, and not deleted again (%s)", target, error)


def _stored(client: Any, where: _Object) -> tuple[int, str | None]:
    """Size in bytes and SHA-256 of an object; None for one that another program has put there."""
    head = client.head_object(Bucket=where.bucket, Key=where.key)
    metadata = {name.lower(): value for name, value in head["Metadata"].items()}  # HTTP does not keep the case
    return int(head["ContentLength"]), metadata.get("sha256")


def _is_there(client: Any, where: _Object, state: tuple[int, str]) -> bool:
    """Whether the bucket is known to have the bytes of this size and SHA-256."""
    from botocore.exceptions import ClientError

    try:
        return _stored(client, where) == state
    except ClientError:  # not there; without the right to list, that is told as "denied"
        return False


def _parse(uri: str) -> _Object:
    bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
    # ".." would leave the cache folder; S3 allows such keys, but nobody means them.
    if not bucket or any(part in ("", ".", "..") for part in key.split("/")):
        raise UserError(f"{uri}: not an object's address; expected s3://bucket/key, such as s3://models/run1/best.pth")
    return _Object(bucket, key)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_kept = threading.local()


def _session() -> Any:
    """This thread's session (one takes tenths of a second to make), a new one where what it is made of has changed."""
    import boto3

    sources = _credential_sources()
    if getattr(_kept, "sources", None) != sources:
        _kept.session, _kept.sources = boto3.session.Session(), sources
    return _kept.session


def _credential_sources() -> tuple[dict[str, str], list[tuple[int, ...]]]:
    """What tells that somebody has given other credentials: the environment, and the states of the usual AWS files."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    states: list[tuple[int, ...]] = []
    for name, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        try:
            found = Path(variables.get(name) or f"~/.aws/{usual}").expanduser().stat()
            states.append((found.st_ino, found.st_mtime_ns, found.st_size))
        except (OSError, RuntimeError):  # no such file, or nobody's home
            states.append(())
    return variables, states


def _client(*, attempts: int = 4, timeout: float = 20.0) -> Any:
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=min(timeout, 5.0),
        read_timeout=timeout,
    )
    return _session().client("s3", config=config)


def _transfer(*, threads: bool) -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART, multipart_chunksize=_PART, max_concurrency=4, use_threads=threads)


@contextlib.contextmanager
def _explained(target: _Object) -> Iterator[None]:
    """Turn what boto3 raises into a message for the user."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _refused(error, target) from error
    except (BotoCoreError, Boto3Error) as error:
        raise _unreachable(error, target) from error
    except ValueError as error:  # AWS_ENDPOINT_URL that is no address
        if "endpoint" not in str(error).lower():
            raise
        raise StorageError(f"{target}: {error}. Expected AWS_ENDPOINT_URL=https://host[:port].") from error


def _refused(error: Any, target: _Object) -> StorageError:
    """The server answered, but with an error."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _DENIED or status == 403:
        return StorageError(
            f"{target}: access denied ({code}). Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and what they may "
            f"do in the bucket {target.bucket!r}."
        )
    if code == "NoSuchBucket" or (status == 404 and not _bucket_exists(target.bucket)):
        return StorageError(
            f"{target}: there is no bucket {target.bucket!r}. Check S3_BUCKET_NAME and AWS_ENDPOINT_URL, or create it."
        )
    if status == 404:
        return StorageError(f"{target}: no such object in the bucket. Check the key.")
    if code in _DAMAGED:
        return StorageError(f"{target}: the server got other bytes than were sent (wrong checksum).", passing=True)
    return StorageError(f"{target}: the server refused ({code}: {error}).", passing=status >= 500)


def _bucket_exists(bucket: str) -> bool:
    """HEAD answers carry no error code, so a missing object and a missing bucket look the same."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _client(attempts=1).head_bucket(Bucket=bucket)
    except (ClientError, BotoCoreError):
        return False
    return True


def _damaged(source: _Object) -> StorageError:
    return StorageError(
        f"{source}: damaged in the bucket or on the way (wrong checksum); the download was thrown away. "
        "Try again; if it stays so, upload the file once more."
    )


def _unreachable(error: Exception, target: _Object) -> StorageError:
    """No answer, or a broken one."""
    from botocore.exceptions import FlexibleChecksumError, NoCredentialsError, NoRegionError, PartialCredentialsError

    if isinstance(error, FlexibleChecksumError):  # a checksum that the server keeps, of an object of another program
        return _damaged(target)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return StorageError(f"{target}: no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (in .env).")
    if isinstance(error, NoRegionError):
        return StorageError(f"{target}: no region. Set AWS_DEFAULT_REGION, such as us-east-1.")
    server = os.environ.get("AWS_ENDPOINT_URL") or "Amazon S3"
    return StorageError(
        f"{target}: no proper answer from {server} ({error}). Check the network and AWS_ENDPOINT_URL.", passing=True
    )
