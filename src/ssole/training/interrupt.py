"""Ctrl-C and SIGTERM: finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from ssole.training.run import Run


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived; a checkpoint was written first."""

    def __init__(self, run: Run, step: int, signal_number: int) -> None:
        super().__init__(f"stopped after step {step}; go on with: ssole pretrain --resume {run.path}")
        self.signal_number = signal_number


@dataclass
class Stop:
    """Whether to stop."""

    requested: int = 0
    """The signal that asked for it, or 0."""


@contextmanager
def stop_signal(tell: Callable[[], None]) -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM into a request that the loop answers after its step; a second acts at once.

    `tell` is called on the first; it runs in a signal handler, so it must not print.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread only
        yield stop
        return

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = number
        for each, handler in before.items():
            signal.signal(each, handler)
        tell()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
