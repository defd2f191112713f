"""Stopping by a signal: the request, where it is answered at once, and its error."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ssole import distributed


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP arrived, and a checkpoint was written; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Stopping(BaseException):
    """A request to stop arrived where it is answered at once; the loop then saves what is done."""


@dataclass
class Stop:
    """Request to stop training, made by a signal."""

    requested: int = 0
    """Number of the signal, or 0."""
    leaves: bool = field(default=False, init=False)
    """Whether a request is raised as an error now."""

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context that a request leaves at once: for work that may take long, and can be left or done again.

        Not with many processes: the others would wait for one that left.

        Raises:
            Stopping: a signal has arrived, before or meanwhile.
        """
        if distributed.world_size() > 1:
            yield
            return
        if self.requested:
            raise Stopping
        self.leaves = True
        try:
            yield
        finally:
            self.leaves = False


_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # of Ctrl-C, of `kill` and schedulers, and of a terminal that was closed
_AT_ONCE = 1.0  # seconds in which another signal is the same request: schedulers and terminals send several


@contextmanager
def stop_signal(notify: Callable[[], None]) -> Iterator[Stop]:
    """Handler of Ctrl-C, SIGTERM and SIGHUP: the first sets a request for the loop to answer, a second acts at once.

    Another of the three within a second of the first is part of the same request. SIGHUP stays ignored under `nohup`.
    `notify` is called on the first one. It runs inside a signal handler, so it must not print.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    first = 0.0

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not stop.requested:
            stop.requested, first = number, time.monotonic()
            notify()
            if stop.leaves:
                raise Stopping
        elif number == stop.requested or time.monotonic() - first > _AT_ONCE:
            # in place of restoring all handlers on the first signal: Python reports one that was on its way as an error
            signal.signal(number, before[number])
            signal.raise_signal(number)

    known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]  # Windows has no SIGHUP
    before = {number: signal.getsignal(number) for number in known}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
