"""The server behind `quartet serve`: a page of ours, a JSON endpoint, and what keeps both to themselves.

One prediction at a time, a few requests wait, the rest is told so. Requests for other names than this server's (DNS
rebinding) and posts of other sites' pages are refused; the page may load nothing from elsewhere.
"""

import asyncio
import ipaddress
import logging
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlcore.base.errors import UserError
from mlcore.base.files import format_bytes
from mlcore.run.predictor import Predictor
from mlcore.run.restore import run_folder
from mlcore.run.scorer import decision_of
from mlcore.use.answering import Answering, Upload

__all__ = ["Limits", "Service", "listening", "run_server"]

_log = logging.getLogger(__name__)

_TEXT = 64 * 1024  # bytes of a field that is no file
_SETTINGS: dict[str, Any] = {
    "http": "h11",
    "ws": "none",
    "loop": "asyncio",
    "lifespan": "off",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "limit_concurrency": 64,
    "timeout_graceful_shutdown": 5,  # seconds, for answers under way when the server stops
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_PAGE: list[str | tuple[str, str]] = [
    ("mlcore.use", "page"),
    ("mlcore.report", "templates"),
]  # folders whose files are served


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is taken.

    Attributes:
        upload: Bytes of a request.
        waiting: Requests that wait while one is answered.
        seconds: For an upload, and again for its answer.
    """

    upload: int = 256 * 2**20
    waiting: int = 4
    seconds: float = 300.0


class Service:
    """The application.

    Args:
        predictor: The model.
        folder: A private, empty folder for what comes and what is shown.
        limits: What is taken.
        names: By which clients may call the server, beside "localhost" and addresses.
    """

    def __init__(self, predictor: Predictor, folder: Path, limits: Limits, *, names: Sequence[str] = ()) -> None:
        self._predictor, self._folder, self._limits = predictor, folder, limits
        self._answering = Answering(predictor, _private(folder / "shown"))
        self._too_large = f"too large: this server takes at most {format_bytes(limits.upload)} at once"
        self._places = threading.BoundedSemaphore(limits.waiting + 1)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")  # torch is used by one thread
        routes = [
            Route("/api/about", self._about),
            Route("/api/predict", self._predict, methods=["POST"]),
            Route("/made/{token}/{name:path}", self._made),
            Mount("/", StaticFiles(packages=_PAGE, html=True)),
        ]
        handlers: Mapping[Any, Any] = dict.fromkeys((HTTPException, UserError, ClientDisconnect, Exception), _refusal)
        self.app: ASGIApp = _Guard(Starlette(routes=routes, exception_handlers=handlers), {"localhost", *names})

    def close(self) -> None:
        """Wait for the prediction under way; those that wait are not made any more."""
        self._worker.shutdown(cancel_futures=True)

    def _about(self, _request: Request) -> JSONResponse:
        """What the page needs to know."""
        app, decision = self._predictor.app, decision_of(self._predictor.about or self._predictor.identity)
        return JSONResponse(
            {
                "title": app.title,
                "name": run_folder(self._predictor.source).name,
                "decision": "" if decision is None else decision.words,
                "takes": self._answering.takes,
                "fields": self._answering.fields,
                "upload": self._limits.upload,
            }
        )

    def _made(self, request: Request) -> Response:
        path = self._answering.made(**request.path_params)
        if path is None or not path.is_file():
            raise HTTPException(404, "this picture or file is not there, or no longer kept; predict again")
        if path.suffix == ".png":
            return Response(path.read_bytes(), media_type="image/png")
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    async def _predict(self, request: Request) -> Response:
        self._check(request.headers)
        if not self._places.acquire(blocking=False):
            raise HTTPException(503, f"busy: one prediction at a time, and {self._limits.waiting} wait; try again soon")
        folder = _private(self._folder / secrets.token_hex(8))
        try:
            work = self._worker.submit(self._answering, await self._received(request, folder))
        except BaseException:
            self._release(folder)
            raise
        work.add_done_callback(lambda _: self._release(folder))
        try:
            async with asyncio.timeout(self._limits.seconds):
                return JSONResponse(await asyncio.wrap_future(work))
        except TimeoutError:  # what has begun goes on, and keeps its place in the queue
            raise HTTPException(504, f"there was no answer within {self._limits.seconds:g} s") from None

    def _release(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._places.release()

    def _check(self, headers: Headers) -> None:
        """Refuse before anything of the body is read."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limits.upload:
            raise HTTPException(413, self._too_large)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise HTTPException(415, "expected a form (multipart/form-data), as `curl -F file=@NAME` sends it")

    async def _received(self, request: Request, folder: Path) -> Upload:
        """The file, under a name of ours, and the texts."""
        left = self._limits.upload

        async def counted() -> Message:
            nonlocal left
            message = await request.receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, self._too_large)
            return message

        try:
            async with asyncio.timeout(self._limits.seconds):
                form = await Request(request.scope, counted).form(max_files=1, max_fields=8, max_part_size=_TEXT)
        except TimeoutError:
            raise HTTPException(408, f"the upload took longer than {self._limits.seconds:g} s") from None
        try:
            return await run_in_threadpool(self._upload, form, folder)
        finally:
            await form.close()

    def _upload(self, form: FormData, folder: Path) -> Upload:
        values = {name: value for name, value in form.items() if isinstance(value, str)}
        files = {name: value for name, value in form.items() if isinstance(value, UploadFile) and value.filename}
        self._answering.check_fields([*values, *files])
        if "file" not in files:
            return Upload(values=values)
        name = str(files["file"].filename)
        path = folder / f"upload{self._answering.suffix_of(name)}"
        with path.open("xb") as target:
            shutil.copyfileobj(files["file"].file, target, 1 << 20)
        return Upload(path=path, name=name, values=values)


class _Guard:
    """Sets the headers of every answer, and refuses what a page of another site asks for.

    Such a page can make its name stand for this machine (DNS rebinding), but then its requests bear that name; an
    address cannot be made to stand for another machine. What it posts here otherwise bears its own origin.
    """

    def __init__(self, app: ASGIApp, names: set[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        reason = self._foreign(Headers(scope=scope))
        app = JSONResponse({"problem": reason}, status_code=403) if reason else self._app
        await app(scope, receive, with_headers)

    def _foreign(self, headers: Headers) -> str:
        """Why a request is refused; empty where it is not."""
        host = headers.get("host", "").lower()
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name not in self._names:
                ipaddress.ip_address(name)
            own = urlsplit(headers.get("origin", f"http://{host}").lower()).netloc == host
        except ValueError:
            return f"this server is not called '{host[:80]}'; use its address, or name it with --host"
        return "" if own else "a page of another site asked; open this server's own page"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        UserError: The address is none of this machine, or the port is taken.
    """
    if not 0 <= port < 65536:
        raise UserError(f"--port {port}: expected a number from 0 to 65535")
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise UserError(f"cannot listen at {host}, port {port} ({error.strerror}); give another --port") from None


def run_server(
    predictor: Predictor,
    sock: socket.socket,
    limits: Limits,
    *,
    host: str,
    ready: Callable[[uvicorn.Server], None] = lambda _: None,
) -> None:
    """Serve until a signal comes, or `should_exit` of the server is set; nothing is left of what came.

    Args:
        predictor: The model.
        sock: Listens.
        limits: What is taken.
        host: As the user named it; clients may call the server by it, too.
        ready: Is given the server before it begins.
    """
    with tempfile.TemporaryDirectory(prefix="quartet-serve-") as folder:
        service = Service(predictor, Path(folder), limits, names=[host, socket.gethostname()])
        server = uvicorn.Server(uvicorn.Config(service.app, **_SETTINGS))
        ready(server)
        where, port = sock.getsockname()[:2]
        _log.info("open http://%s:%d (Ctrl-C stops)", f"[{where}]" if ":" in where else where, port)
        if not ipaddress.ip_address(where.partition("%")[0]).is_loopback:
            _log.warning("whoever reaches this machine can use the page; there is no password")
        try:
            server.run(sockets=[sock])
        finally:
            service.close()


def _private(folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    return folder


def _refusal(_request: Request, error: Exception) -> Response:
    """What is wrong, in one sentence; of a fault of ours no more than that, the terminal has it."""
    status, reason = 500, "the server failed at this; what it printed says why"
    if isinstance(error, HTTPException):
        status, reason = error.status_code, error.detail
    elif isinstance(error, UserError):
        status, reason = 422, str(error)
    elif isinstance(error, ClientDisconnect):
        status, reason = 400, "the upload broke off"
    return JSONResponse(
        {"problem": reason}, status_code=status, headers={"Retry-After": "5"} if status == 503 else None
    )
