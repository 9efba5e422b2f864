"""A headless Chromium, driven through the two pipes that it offers for that."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = shlex.split("""--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --remote-debugging-pipe
--disable-background-networking --disable-component-update --no-first-run --no-proxy-server""")


class Page:
    """An empty tab.

    Attributes:
        requested: Addresses that it asked for.
        complaints: What the console says of it: errors, and what its policy refused.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._rest, self._count = b"", 0
        self._session: dict[str, str] = {}
        self.requested: list[str] = []
        self.complaints: list[Any] = []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self._session = {"sessionId": session}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """Have Chromium do something; what it answers."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._message()).get("id") != self._count:
            if message["method"] == "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            elif message["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.complaints.append(message["params"])
        assert "result" in message, message
        return message["result"]

    def _message(self) -> Any:
        while b"\0" not in self._rest:
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, "Chromium has ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, url: str, ready: str) -> None:
        """Go somewhere, and wait until an expression is true there."""
        self.call("Page.navigate", url=url)
        self.wait(ready)

    def wait(self, expression: str) -> None:
        """Wait until an expression is true, looking again and again."""
        self.evaluate(
            f"new Promise(done => {{ const look = () => ({expression}) ? done() : setTimeout(look, 20); look(); }})"
        )

    def drop(self, path: Path, selector: str) -> None:
        """Drop a file on an element, as a person does."""
        x, y = self.evaluate(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector('{selector}').getBoundingClientRect())"
        )
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=event, x=x, y=y, data=data)


@contextlib.contextmanager
def page(folder: Path) -> Iterator[Page]:
    """A tab of a Chromium that keeps its files in `folder`; without Chromium the test is skipped."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium")
    (to_read, commands), (answers, to_write) = os.pipe(), os.pipe()
    pipes = ["bash", "-c", f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}', program]
    log = (folder / "chromium.log").open("wb")
    with (
        log,
        subprocess.Popen(
            [*pipes, *FLAGS, f"--user-data-dir={folder / 'profile'}"], pass_fds=(to_read, to_write), stderr=log
        ) as process,
    ):
        os.close(to_read)
        os.close(to_write)
        try:
            yield Page(commands, answers)
        finally:
            process.kill()
            os.close(commands)
            os.close(answers)
