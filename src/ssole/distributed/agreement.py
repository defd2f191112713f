"""Agreement between processes: work that the first one does for all, and small values that all of them know."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ssole.distributed.collectives import STATE, alone, rank, world_size
from ssole.distributed.group import launch
from ssole.errors import ConfigError

T = TypeVar("T")
_WAIT = 0.002  # seconds between looks at the store
_calls = count()


class ElsewhereError(RuntimeError):
    """Error on the other processes when work of the first one for all has failed; it says why."""


class Stopping(BaseException):
    """Request to stop, made by the signal of this number (0: not known yet), which all processes answer here."""

    def __init__(self, number: int = 0) -> None:
        super().__init__(number)
        self.number = number


def on_rank_0(work: Callable[[], T]) -> T:
    """Result of work that the first process does by itself, on every process. The others wait, however long it takes.

    JSON must be able to hold the result. Within the work, there is one process. If the work fails, the first process
    raises its error and the others an ElsewhereError; if a signal to the first ends it, which :func:`stopping_points`
    allowed, all raise Stopping.
    """
    if not shares_work():
        return work()
    key = f"call {next(_calls)}"
    if rank() == 0:
        try:
            with alone():
                stopping_point()
                answer = json.dumps({"value": work()})
        except BaseException as error:
            STATE.alone = False  # a signal may have cut the end of the context short
            stops = isinstance(error, Stopping)
            STATE.store.set(key, json.dumps({"error": f"{type(error).__name__}: {error}", "stops": stops}))
            raise
        STATE.store.set(key, answer)
    else:
        answer = _wait_for(key)
    values: dict[str, Any] = json.loads(answer)
    if values.get("stops"):
        raise Stopping
    if "error" in values:
        raise ElsewhereError(f"the first process failed: {values['error']}")
    result: T = values["value"]
    return result


def shares_work() -> bool:
    """Whether the processes of the group work together at this point.

    They do not in work that the first one does alone, nor in a group that the caller has made: there, this may be
    called by one process only.
    """
    return world_size() > 1 and STATE.store is not None


def collect(value: T) -> list[T]:
    """Values of all processes, in the order of rank. JSON must be able to hold them. Waits however long it takes."""
    if not shares_work():
        return [value]
    number = next(_calls)
    STATE.store.set(f"call {number} of {rank()}", json.dumps(value))
    return [json.loads(_wait_for(f"call {number} of {other}")) for other in range(world_size())]


def own_device(device: torch.device) -> torch.device:
    """Device of this process: with many, the GPU of its local rank, or the only one that it sees.

    One GPU that was named for many processes, fewer GPUs than processes, or two processes with one GPU are a
    ConfigError. All processes must call it.
    """
    place = launch()
    if place.world_size == 1:
        return device
    if device.type != "cuda":
        collect(None)
        return device
    if device.index is not None:
        raise ConfigError(f"device {device} is one GPU, and {place.world_size} processes were started: give cuda")
    count = torch.cuda.device_count()
    own = torch.device("cuda", 0 if count == 1 else place.local_rank)  # SLURM may show each process its own alone
    if own.index >= count:
        raise ConfigError(
            f"{place.local_world_size} processes were started on a machine with {count} GPUs: "
            "start one for each (torchrun --nproc-per-node)"
        )
    name = str(torch.cuda.get_device_properties(own).uuid)
    same = [rank for rank, other in enumerate(collect(name)) if other == name]
    if len(same) > 1:
        raise ConfigError(
            f"processes {same} have one GPU, {name}: start one process for each GPU (torchrun --nproc-per-node)"
        )
    torch.cuda.set_device(own)
    return own


def maximum(number: int) -> int:
    """Largest of the numbers that the processes give. It is a collective: all of them must call it."""
    if world_size() == 1:
        return number
    STATE.agreements += 1
    largest = torch.tensor(number)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


@contextmanager
def stopping_points(asked: Callable[[], int]) -> Iterator[None]:
    """Context of work that processes share. A request to stop ends it at the next :func:`stopping_point`.

    `asked` gives the number of the signal that has asked this process to stop, or 0.
    """
    STATE.asked = asked
    try:
        yield
    finally:
        STATE.asked = None


def stopping_point() -> None:
    """Raise Stopping on all processes if one of them was asked to stop. All of them must come here."""
    if STATE.asked is not None and (number := maximum(STATE.asked())):
        raise Stopping(number)


def broadcast(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors of the first process, by name, on every process. Those of the others are ignored."""
    if world_size() == 1:
        return dict(tensors)
    kinds = on_rank_0(lambda: [(k, list(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in tensors.items()])
    result = {}
    for name, shape, dtype in kinds:
        tensor = tensors[name].contiguous() if rank() == 0 else torch.empty(shape, dtype=getattr(torch, dtype))
        if tensor.numel():
            dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=0)
        result[name] = tensor
    return result


@contextmanager
def first_on_each_node() -> Iterator[None]:
    """Context that one process of each machine leaves before the others of it enter, so that it can fill a cache."""
    if not shares_work():
        yield
        return
    place, number = launch(), next(_calls)
    node = f"call {number} on the node of {place.rank - place.local_rank}"
    if place.local_rank:
        _wait_for(node)
    try:
        yield
    finally:
        if not place.local_rank:
            STATE.store.set(node, "done")


def _wait_for(key: str) -> str:
    while not STATE.store.check([key]):
        time.sleep(_WAIT)
    text: str = STATE.store.get(key).decode()
    return text
