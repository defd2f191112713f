"""Functions in several gloo processes, as torchrun would start them; and runs in float64 for exact comparisons."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from ssole.models.backbone import Encoder
from ssole.training import embedder

_PRELOADED = ["pytest", "safetensors.torch", "ssole.api", "ssole.cli", "timm", "torch._dynamo", "tyro"]


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {name: str(value) for name, value in values.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Call `work(*arguments)` in so many processes; in this one, if it is one."""
    if world == 1:
        work(*arguments)
        return
    start(world, work, *arguments, join=True)


def start(world: int, work: Callable[..., None], *arguments: Any, join: bool = False) -> list[Any]:
    """Processes that have begun to call `work(*arguments)`."""
    # a server that has imported what takes long, and from which the processes are forked
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
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
