"""Stopping by a signal: the request, where it is answered at once, and its error."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from ssole import distributed
from ssole.distributed import Stopping

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """End of a run by Ctrl-C, SIGTERM or SIGHUP, after a checkpoint; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Stop:
    """Request to stop training, made by a signal.

    Attributes:
        requested: number of the signal, or 0.
        interrupts: function that tells whether a signal may interrupt the work now.
    """

    def __init__(self) -> None:
        self.requested = 0
        self.interrupts: Callable[[], bool] = lambda: False

    def agree(self) -> None:
        """Raise Stopping on all processes if one of them has a request. All of them must call it."""
        if number := distributed.agree(self.requested):
            raise Stopping(number)

    def at_once(self, work: Callable[[], T], *, interrupts: Callable[[], bool] = lambda: True) -> T | None:
        """Run work that a signal to this process interrupts at once; returns its result.

        Afterwards all processes agree whether any of them was asked to stop. In the work, no process may wait for
        another, which may have left.

        Raises:
            Stopping: a signal has arrived at one of the processes, before or meanwhile.
        """
        result = None
        try:
            try:
                self.interrupts = interrupts
                if self.requested and interrupts():
                    raise Stopping
                result = work()
            finally:
                self.interrupts = lambda: False
        except Stopping:
            pass  # the line below raises it, on all processes
        self.agree()
        return result

    def together(self, work: Callable[[], T]) -> T | None:
        """As :meth:`at_once`, for work that processes share.

        A single process leaves it at once. Several leave it together, at the next `distributed.stopping_point`, or at
        once where the first one works for all.
        """
        self.agree()
        with distributed.stopping_points(lambda: self.requested):
            return self.at_once(work, interrupts=lambda: distributed.world_size() == 1)


_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # of Ctrl-C, of `kill` and schedulers, and of a terminal that was closed
_AT_ONCE = 1.0  # seconds in which another signal is the same request: schedulers and terminals send several
_PASSED_ON = 5.0  # seconds in which torchrun passes on a signal that a scheduler has sent to all processes of a job


@contextmanager
def stop_signal(notify: Callable[[], None]) -> Iterator[Stop]:
    """Handler of Ctrl-C, SIGTERM and SIGHUP: the first sets a request for the loop to answer, a second acts at once.

    Another of the three within a second of the first is part of the same request, and so is the same within five where
    torchrun may pass it on. SIGHUP stays ignored under `nohup`.
    `notify` is called on the first one. It runs inside a signal handler, so it must not print.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return
    first, repeats = 0.0, _PASSED_ON if distributed.is_torchrun() else 0.0

    def request(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not stop.requested:
            stop.requested, first = number, time.monotonic()
            notify()
            if stop.interrupts():
                raise Stopping
        elif time.monotonic() - first >= (repeats if number == stop.requested else _AT_ONCE):
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
