"""Group of the processes that torchrun started, and the watch that names one which dies or hangs."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any

import torch
import torch.distributed as dist

from ssole.distributed.collectives import STATE, world_size
from ssole.errors import ConfigError

_BEATS = 10  # within the time after which a process is taken for dead
_FEW_BEATS = 3  # missed ones that tell which process is gone, once a collective has failed
_START = timedelta(minutes=10)  # that processes may take to start
_POLL = 0.05  # seconds between looks for the first process
_PATIENCE = 5.0  # seconds in which a process with an error leaves the group
_GONE = 1  # exit code of a process that ends because another is gone
_AGENT = "TORCHELASTIC_USE_AGENT_STORE"  # set where torchrun itself serves the store, whatever the processes do
_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_said: Counter[str] = Counter()  # how often this process has said a text


class ProcessError(RuntimeError):
    """Error for another process that died or hangs; the message names it."""


@dataclass(frozen=True)
class Launch:
    """Place of this process among those started together, from the environment that torchrun sets."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine."""
    local_world_size: int = 1
    restarts: int = 0
    """How often torchrun has restarted the processes, as counted on this machine."""
    may_restart: bool = False
    """Whether torchrun may restart the processes (`--max-restarts`)."""
    job: str | None = None
    """Name of torchrun's job (`--rdzv-id`), the same for all restarts and machines."""


def launch() -> Launch:
    """Place of this process; that of a single process unless torchrun, or a launcher like it, started several."""
    values = os.environ
    restarts = int(values.get("TORCHELASTIC_RESTART_COUNT", 0))
    job = values.get("TORCHELASTIC_RUN_ID", "none")  # what torchrun calls a job without a name
    may_restart = int(values.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
    one = Launch(restarts=restarts, may_restart=may_restart, job=None if job == "none" else job)
    if int(values.get("WORLD_SIZE", 1)) == 1 or any(name not in values for name in _NEEDED):
        return one
    rank, world = int(values["RANK"]), int(values["WORLD_SIZE"])
    local = int(values.get("LOCAL_RANK", rank)), int(values.get("LOCAL_WORLD_SIZE", world))
    return replace(one, rank=rank, world_size=world, local_rank=local[0], local_world_size=local[1])


def is_torchrun() -> bool:
    """Whether torchrun started this process, alone or with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def says_first(text: str) -> bool:
    """Whether this process is the first to print this text, such as an error that all of them have.

    If one process prints it twice, the second counts as another text. True also if the others cannot be asked.
    """
    place = launch()
    asks = _store.cache_info().currsize or os.environ.get(_AGENT) == "True"
    if place.world_size == 1 or not asks:
        return True
    _said[text] += 1
    words = f"said {place.restarts} {_said[text]} {hashlib.sha256(text.encode()).hexdigest()}"
    try:
        return int(_store().add(words, 1)) == 1
    except RuntimeError:  # nobody serves the store any more
        return True


@contextmanager
def processes(timeout: float) -> Iterator[None]:
    """Context in which the processes that torchrun started are one group; nothing for a single process.

    Collectives on CPU tensors go by gloo, those on GPU tensors by NCCL. A process that is not heard of for `timeout`
    seconds, or that lets the others wait as long, ends them all: each says which one it was. A ProcessError if a
    collective fails because of that; a ConfigError if `torch.distributed` is initialised already.
    """
    place = launch()
    if world_size() > 1 or (place.world_size > 1 and dist.is_initialized()):
        words = "torch.distributed is initialised already: leave that to ssole, and start the processes by torchrun"
        raise ConfigError(words)
    if place.world_size == 1:
        yield
        return
    group = _meet(_store(), place)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(seconds=timeout)
    dist.init_process_group(backend, store=group, rank=place.rank, world_size=place.world_size, timeout=limit)
    watch = _Watch(group, place, timeout)
    STATE.store = group
    watch.start()
    failed = True
    try:
        yield
        dist.all_reduce(torch.zeros(1))  # the first process may serve the store, which the others still need
        failed = False
    except RuntimeError as error:
        if not _is_lost_contact(error):
            raise
        raise ProcessError(f"{watch.blame()}. Go on with --resume") from error
    finally:
        watch.stop()
        STATE.store = None
        _leave(failed)


def _leave(failed: bool) -> None:
    """Leave the group. After an error, NCCL may wait for processes that never come: the error shall be seen soon."""
    if not failed:
        dist.destroy_process_group()
        return
    leaving = threading.Thread(target=dist.destroy_process_group, daemon=True, name="ssole-leave")
    leaving.start()
    leaving.join(timeout=_PATIENCE)


@lru_cache(maxsize=1)  # one for the whole life of a process: torchrun's environment names one address
def _store() -> Any:
    # here, as some builds of torch have no processes
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    store, _, _ = next(rendezvous("env://", timeout=_START))
    while isinstance(store, PrefixStore):  # by the restarts of each machine, which may differ
        store = store.underlying_store
    return store


def _meet(store: Any, place: Launch) -> Any:
    """Part of the store for one start of the processes, under a random name that the first process chooses.

    torchrun keeps the store when it restarts the processes, so the name in it may be an old one. Each other process
    writes a random word under the name that it finds, and accepts the name once the first process has returned the
    word. It returns them when all processes have written one. A ProcessError or RuntimeError if some are late.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    if place.rank == 0:
        name = uuid.uuid4().hex
        store.set("ssole group", name)
        words = [store.get(f"{name}/from {rank}") for rank in range(1, place.world_size)]
        for rank, word in enumerate(words, start=1):
            store.set(f"{name}/for {rank}", word)
        return PrefixStore(name, store)
    word, end = uuid.uuid4().hex.encode(), time.monotonic() + _START.total_seconds()
    while time.monotonic() < end:
        name = store.get("ssole group").decode()
        store.set(f"{name}/from {place.rank}", word)
        answer = f"{name}/for {place.rank}"
        if store.check([answer]) and store.get(answer) == word:
            return PrefixStore(name, store)
        time.sleep(_POLL)
    raise ProcessError(f"process 0 did not come within {_START}")


def _is_lost_contact(error: RuntimeError) -> bool:
    """Whether an error comes from a collective or the store: gloo raises a plain `RuntimeError`."""
    words = ("gloo", "NCCL", "Connection")
    return isinstance(error, dist.DistError) or (type(error) is RuntimeError and any(w in str(error) for w in words))


class _Watch(threading.Thread):
    """Thread that sends heartbeats, and watches for those of the other processes.

    It counts its own beats and not the clock, which also runs while a machine is suspended.
    """

    def __init__(self, store: Any, place: Launch, timeout: float) -> None:
        super().__init__(daemon=True, name="ssole-watch")
        self._store, self._place, self._timeout = store, place, timeout
        self._every = timeout / _BEATS
        self._ended = threading.Event()
        self._heard: dict[int, str] = {}
        self._missed = dict.fromkeys(range(place.world_size), 0)

    def run(self) -> None:
        name = f"{socket.gethostname()} {os.getpid()}"
        for beat in count():
            try:
                self._store.set(f"beat {self._place.rank}", f"{beat} {STATE.agreements} {name}")
                self._listen()
            except RuntimeError:  # nobody serves the store any more
                self._give_up("the first process, or torchrun, cannot be reached")
            if dead := self._silent(_BEATS):
                self._give_up(self._words(dead))
            if self._ended.wait(self._every):
                return

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=self._timeout)

    def blame(self) -> str:
        """Processes to blame for a collective that failed: the silent ones, or else those that are behind."""
        end = time.monotonic() + (_FEW_BEATS + 2) * self._every
        while not (dead := self._silent(_FEW_BEATS)) and time.monotonic() < end:
            time.sleep(self._every / 4)
        if dead:
            return self._words(dead)
        done = {rank: int(words.split()[1]) for rank, words in self._heard.items()}
        behind = [rank for rank, calls in done.items() if calls == min(done.values())]
        return (
            f"the processes lost contact, or one let the others wait for {self._timeout:g} s; furthest behind: "
            f"{self._named(behind)}"
        )

    def _listen(self) -> None:
        others = [rank for rank in self._missed if rank != self._place.rank]
        known = [rank for rank in others if self._store.check([f"beat {rank}"])]
        words = self._store.multi_get([f"beat {rank}" for rank in known]) if known else []
        new = {rank: word.decode() for rank, word in zip(known, words, strict=True)}
        for rank in others:
            same = new.get(rank) == self._heard.get(rank)
            self._missed[rank] = self._missed[rank] + 1 if same else 0
        self._heard |= new

    def _silent(self, beats: int) -> list[int]:
        return [rank for rank, missed in self._missed.items() if missed >= beats]

    def _named(self, ranks: list[int]) -> str:
        words = {rank: self._heard.get(rank, "").split() for rank in ranks}
        where = {rank: f"pid {w[3]} on {w[2]}" if w else "which never started" for rank, w in words.items()}
        return ", ".join(f"process {rank} ({place})" for rank, place in where.items())

    def _words(self, dead: list[int]) -> str:
        return (
            f"{self._named(dead)} of {self._place.world_size} died or hangs: no sign of life for up to "
            f"{self._timeout:g} s"
        )

    def _give_up(self, reason: str) -> None:
        """End this process at once: its main thread may wait in a collective, where nothing reaches it."""
        if self._ended.is_set():
            return
        sys.stderr.write(f"error: process {self._place.rank} stops: {reason}. Go on with --resume\n")
        sys.stderr.flush()
        os._exit(_GONE)
