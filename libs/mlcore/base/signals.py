"""Stopping a run from outside without losing work."""

import logging
import signal
import threading
from typing import Any

_log = logging.getLogger(__name__)


class StopSignal:
    """SIGTERM and SIGINT set a flag that the loop reads at step boundaries; a second SIGINT interrupts at once."""

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True
        _log.info("%s received: saving at the end of this step", signal.Signals(number).name)
