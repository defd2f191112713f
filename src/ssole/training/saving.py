"""Saver: which states of a run are written as checkpoints, and when.

The state after each regular step is copied, on its device. It is written at once if that was asked for, if it is the
last, or if the one before was written `checkpoint_seconds` ago. Otherwise it waits: for a stop or a failure, which
write it, or for the next regular step, which replaces it. So a run goes back to the same states, whatever the clock
says.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from ssole import distributed
from ssole.training.checkpoint import Progress, Snapshot, checkpoint_steps, snapshot, write_checkpoint
from ssole.training.pace import Pace
from ssole.training.run import Run
from ssole.training.step import Learner


class Saver:
    """Writer of the checkpoints of a run, in the first process; a context manager around its training loop.

    On an accelerator a thread writes, so that training goes on meanwhile. What it fails at is raised by the next call,
    or on leaving the context. Before each checkpoint, `flush` is called, which puts the metrics so far on the disk.
    """

    def __init__(self, run: Run, learner: Learner, pace: Pace, flush: Callable[[], None]) -> None:
        self._run, self._learner, self._pace, self._flush = run, learner, pace, flush
        self._kept: tuple[Progress, Snapshot] | None = None
        self._written_at = -math.inf
        threaded = learner.device.type != "cpu"
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ssole-checkpoint") if threaded else None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and distributed.rank() == 0:
            try:
                self._write_kept()
            except Exception as other:  # noqa: BLE001 - of a full disk or a lost GPU; the error at hand is the first
                warnings.warn(f"the state after the last epoch could not be written: {other}", stacklevel=2)
        if self._pool is not None:
            self._pool.shutdown()
        self.wait()

    def save(self, done: Progress, *, must: bool) -> None:
        """Keep the state of the learner, and write it if it is time to.

        Nothing is kept if a loss or weight is not finite, which is a NonFiniteLossError. An OSError leaves the
        checkpoints before this one untouched.
        """
        self._learner.check_weights()
        distributed.on_rank_0(lambda: self._keep(done, must=must))

    def _keep(self, done: Progress, *, must: bool) -> None:
        if not self._pace.is_regular(done.step):
            self.write_kept()
        self._kept = None  # its memory serves the next
        state = snapshot(self._learner.modules, self._learner.optimizer)
        if must or time.monotonic() - self._written_at >= self._learner.config.checkpoint_seconds:
            self._write(done, state)
        else:
            self._kept = done, state

    def write_kept(self) -> None:
        """Write the state that is kept and was not written, if there is one, and wait until it is on the disk."""
        distributed.on_rank_0(self._write_kept)

    def _write_kept(self) -> None:
        if self._kept is not None:
            self._write(*self._kept)
            self._kept = None
        self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint at hand is on the disk; its error is raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, done: Progress, state: Snapshot) -> None:
        self.wait()
        tensors = state()
        self._flush()
        self._written_at = time.monotonic()
        regular = {step for step in checkpoint_steps(self._run) if self._pace.is_regular(step)}
        write = partial(write_checkpoint, self._run, tensors, done, is_regular=regular.__contains__)
        if self._pool is None:
            write()
        else:
            self._writing = self._pool.submit(write)
