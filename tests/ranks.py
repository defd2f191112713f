"""Functions in several gloo processes, as torchrun would start them; and runs in float64 for exact comparisons."""

from __future__ import annotations

import multiprocessing
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ssole.models.backbone import Encoder
from ssole.training import embedder

PRELOADED = ["pytest", "safetensors.torch", "ssole.api", "ssole.cli", "timm", "torch._dynamo", "tyro"]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {name: str(value) for name, value in values.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """Port that nobody uses, below those that the system gives to outgoing connections.

    A process that comes before the one it connects to tries again and again. From the ports of outgoing connections it
    may get the very port that it looks for, which the other can then no longer open.
    """
    for port in random.SystemRandom().sample(range(15_000, 30_000), 100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("none of 100 ports is free")


def run(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in so many processes; in this one, if it is one."""
    if world == 1:
        work(*arguments)
        return
    start(world, work, *arguments, join=True)


def start(world: int, work: Callable[..., None], *arguments: Any, join: bool = False) -> list[Any]:
    """Processes that have begun to call `work(*arguments)`."""
    # a server that has imported what takes long, and from which the processes are forked
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    arguments_of_all = (world, free_port(), work, arguments)
    options = {"nprocs": world, "start_method": "forkserver", "join": join}
    context = torch.multiprocessing.start_processes(_process, arguments_of_all, **options)
    return [] if context is None else context.processes


def _process(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment(rank, world, port))
    work(*arguments)


@contextmanager
def double() -> Iterator[None]:
    """Context in which encoders have weights in float64, and turn their input into it."""
    plain = embedder.create_encoder

    def forward(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        return self.projector(self.backbone(images.double()))

    with (
        mock.patch.object(embedder, "create_encoder", lambda *given: plain(*given).double()),
        mock.patch.object(Encoder, "forward", forward),
    ):
        yield
