"""Weights & Biases, online or offline."""

import base64
import importlib.util
import json
import logging
import os
import struct
import sys
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any, Literal

from mlcore.base.env import wandb_key_source
from mlcore.base.errors import UserError
from mlcore.base.files import ensure_folder
from mlcore.base.secrets import is_secret, mask_arguments, mask_secrets, note, shown
from mlcore.trackers.table import Row

__all__ = ["RUN_ID", "WandbTracker", "check_wandb", "read_wandb_file", "session_files"]

logger = logging.getLogger("mlcore")

RUN_ID = "wandb_run_id"
"""The key of the run's id in `state()`."""

_START_SECONDS = 8.0  # a healthy server answers in one or two
_FINISH_SECONDS = 10.0
_CHECK_SECONDS = 3.0

# What is in a `.wandb` file, which W&B writes both offline and online: LevelDB's log format
# (https://github.com/google/leveldb/blob/main/doc/log_format.md) with a header of 7 bytes and plain CRC-32; the records
# are W&B's protobuf messages. The wandb package itself reads them in its compiled service only.
_FILE_HEADER = 7
_BLOCK = 32768
_CHUNK_HEADER = struct.Struct("<IHB")  # checksum, length, kind
_FULL, _FIRST, _LAST = 1, 2, 4


def check_wandb() -> None:
    """Ask the server once whether it takes the key.

    Raises:
        UserError: The package or a key is missing, the server does not answer within three seconds or refuses the key.
    """
    otherwise = "or log offline with --wandb_mode offline; `wandb sync` uploads that later"
    if importlib.util.find_spec("wandb") is None:
        raise UserError("W&B: the package is not installed: pip install wandb, or leave out --use_wandb")
    if wandb_key_source() is None:
        raise UserError(f"W&B: no key: set WANDB_API_KEY in .env, or run `wandb login`, {otherwise}")
    server = (os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").rstrip("/")
    key = os.environ.get("WANDB_API_KEY")  # one of `wandb login` was asked about then
    sent = base64.b64encode(f"api:{key}".encode()).decode()
    headers = {"Content-Type": "application/json", **({"Authorization": f"Basic {sent}"} if key else {})}
    query = json.dumps({"query": "query Viewer { viewer { id } }"}).encode()
    try:
        if not server.startswith(("http://", "https://")):
            raise ValueError("no address; expected https://host")
        request = urllib.request.Request(f"{server}/graphql", data=query, headers=headers)  # noqa: S310 - checked
        with urllib.request.urlopen(request, timeout=_CHECK_SECONDS) as answer:  # noqa: S310 - as above
            refused = json.load(answer)["data"]["viewer"] is None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        refused = getattr(error, "code", None) in (401, 403)
        if not refused:
            told = f"W&B: {server} cannot be reached ({error}): check the network and WANDB_BASE_URL, {otherwise}"
            raise UserError(told) from error
    if key and refused:
        raise UserError(f"W&B: {server} does not take WANDB_API_KEY: give the key of {server}/authorize, {otherwise}")


class WandbTracker:
    """Logs rows under explicit steps to one W&B run, which resumed sessions continue.

    Each session asks first which steps the run has (the server online; the session files of earlier offline sessions,
    which W&B keeps in a folder each) and logs nothing twice: `history` fills what an earlier session could not deliver,
    and rows that a killed session had already delivered are left out when they are made again.

    Args:
        folder: The run's folder; W&B writes to `folder/wandb`.
        project: The project's name on the server.
        entity: The team or user it belongs to; None for the key's own default.
        name: The run's display name.
        config: The resolved configuration; secrets are masked here.
        mode: "online" needs a key (WANDB_API_KEY or `wandb login`); without one the run is logged offline, which is
            said, and `wandb sync` uploads it later.
        run_id: The run to continue: `state()[RUN_ID]` of the checkpoint.
        history: The rows up to the checkpoint, from `mlcore.trackers.table.read_history`.

    Raises:
        Exception: Whatever W&B raises, after at most 8 s, if it cannot start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        entity: str | None = None,
        name: str,
        config: Mapping[str, object],
        mode: Literal["online", "offline"] = "online",
        run_id: str | None = None,
        history: Iterable[Row] = (),
    ) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # with a dead network it holds up the exit for 10 s
        for variable, value in os.environ.items():  # notes, tags and the like go into its files
            if variable.startswith("WANDB_") and variable != "WANDB_BASE_URL" and not is_secret(variable):
                note(variable, value)
                os.environ[variable] = shown(value)
        import wandb

        if mode == "online" and wandb_key_source() is None:
            logger.info("W&B: no key found (WANDB_API_KEY or `wandb login`): logging offline to %s", folder / "wandb")
            mode = "offline"
        self._wandb: Any = wandb
        for place in (Path("wandb", "settings"), Path(".wandb", "settings")):
            if place.is_file():
                logger.warning("W&B: %s is not read: whoever wrote it could send the key elsewhere", place.absolute())
        with _masked_command_line():
            with chdir(os.sep):  # it takes settings, the server's address among them, from whatever folder it is in
                wandb.setup(settings=wandb.Settings(silent=True))  # before init, which would greet on the console
            self._run: Any = wandb.init(
                dir=str(ensure_folder(Path(folder)).absolute()),  # its service is in another folder
                project=shown(project),
                entity=entity,
                name=shown(name),
                config=mask_secrets(config),
                mode=mode,
                id=run_id,
                resume="allow",
                reinit="create_new",  # another run of this process may be open, see `mlcore.run.session` on variants
                settings=wandb.Settings(
                    silent=True,
                    disable_git=True,  # it would run git with the settings of whatever the current folder is in
                    console="off",
                    init_timeout=_START_SECONDS,
                    finish_timeout=_FINISH_SECONDS,
                    finish_timeout_raises=True,
                ),
            )
        self._id = str(self._run.id)
        self._next_step = self._first_missing_step(Path(folder), mode)
        for step, values in history:
            self.log(step, values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add `values` to the row `step`, unless an earlier session has delivered that row."""
        if step >= self._next_step:
            self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        """Add the picture in the file `path` to the row `step`."""
        if step >= self._next_step:
            self._run.log({name: self._wandb.Image(str(path))}, step=step)

    def close(self, *, status: str) -> None:
        """Finish the run.

        Raises:
            TimeoutError: The server has not taken everything within 10 s; `wandb sync` of the session's folder does
                the rest.
        """
        session = self._run.settings.sync_dir
        try:
            self._run.finish(exit_code=0 if status == "finished" else 1)
        except TimeoutError as error:
            advice = f"`wandb sync {session}` uploads the rest"
            raise TimeoutError(f"the upload took more than {_FINISH_SECONDS:.0f} s; {advice}") from error

    def state(self) -> dict[str, str]:
        """The run's id."""
        return {RUN_ID: self._id}

    def _first_missing_step(self, folder: Path, mode: str) -> int:
        if mode == "online":
            return int(self._run.starting_step)
        steps = (step for file in session_files(folder, self._id) for step, _ in read_wandb_file(file))
        return max(steps, default=-1) + 1


@contextmanager
def _masked_command_line() -> Iterator[None]:
    """W&B writes the command line into its files and sends it to the server."""
    kept, sys.argv = sys.argv, mask_arguments(sys.argv)
    try:
        yield
    finally:
        sys.argv = kept


def session_files(folder: Path, run_id: str) -> list[Path]:
    """The file of each session of the run `run_id` in `folder`/wandb, in the order in which they were started."""
    files = Path(folder).glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")
    return sorted(files, key=lambda path: path.parent.name.removeprefix("offline-"))  # run-<date>_<time>-<id>


def read_wandb_file(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The rows of one session's file, in the order logged; W&B's own columns (`_...`) and non-numbers are left out."""
    from wandb.proto import wandb_internal_pb2 as messages

    rows: list[tuple[int, dict[str, float]]] = []
    for data in _records(Path(path).read_bytes()):
        record = messages.Record.FromString(data)  # type: ignore[attr-defined]
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            cells = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            numbers = {name: float(cell) for name, cell in cells.items() if isinstance(cell, int | float)}
            row = {name: number for name, number in numbers.items() if not name.startswith("_")}
            rows.append((int(cells["_step"]), row))
    return rows


def _records(data: bytes) -> Iterator[bytes]:
    """The records of one file; ends quietly where a killed writer stopped."""
    position, record = _FILE_HEADER, b""
    while position + _CHUNK_HEADER.size <= len(data):
        room = _BLOCK - position % _BLOCK
        if room < _CHUNK_HEADER.size:  # the rest of a block too short for a header is padding
            position += room
            continue
        checksum, length, kind = _CHUNK_HEADER.unpack_from(data, position)
        position += _CHUNK_HEADER.size
        chunk = data[position : position + length]
        if len(chunk) < length or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != checksum:
            return
        position += length
        record = chunk if kind in (_FULL, _FIRST) else record + chunk
        if kind in (_FULL, _LAST):
            yield record
