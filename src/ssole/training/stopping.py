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
    """Error that ends a run after Ctrl-C, SIGTERM or SIGHUP and a checkpoint; the message says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class Stop:
    """Request to stop training, made by a signal."""

    def __init__(self) -> None:
        self.requested = 0  # or the number of the signal
        self.may_interrupt: Callable[[], bool] = lambda: False  # whether a signal may interrupt the work now

    def raise_if_requested(self) -> None:
        """Raise Stopping on all processes if one of them has a request. All of them must call it."""
        if number := distributed.maximum(self.requested):
            raise Stopping(number)

    def interruptible(self, work: Callable[[], T], *, may_interrupt: Callable[[], bool] = lambda: True) -> T | None:
        """Run work that a signal to this process interrupts at once; returns its result.

        Afterwards, all processes raise Stopping if a signal has arrived at any of them, before or meanwhile. The work
        must not wait for other processes, since they may have been interrupted.
        """
        result = None
        try:  # two of them, because a signal may also arrive in `finally`, before interrupting is over
            try:
                self.may_interrupt = may_interrupt
                if self.requested and may_interrupt():
                    raise Stopping
                result = work()
            finally:
                self.may_interrupt = lambda: False
        except Stopping:
            pass  # the line below raises it, on all processes
        self.raise_if_requested()
        return result

    def interruptible_by_any(self, work: Callable[[], T]) -> T | None:
        """As :meth:`interruptible`, for work in which processes wait for each other.

        A single process is interrupted at once. Several stop together at the next `distributed.stopping_point`.
        """
        self.raise_if_requested()
        with distributed.stopping_points(lambda: self.requested):
            return self.interruptible(work, may_interrupt=lambda: distributed.world_size() == 1)


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
            if stop.may_interrupt():
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
