"""Sharing of an extraction among processes: each computes some of the batches, and all get all features, in order.

The batches are those of a single process, so the features are too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ssole import distributed
from ssole.data.store import ImageStore
from ssole.runtime import resolve_device


def own_device(device: torch.device | str) -> torch.device:
    """Device of a name, which is that of this process if processes share the work."""
    found = resolve_device(device)
    return distributed.own_device(found) if distributed.shares_work() else found


def store_options(progress: bool) -> dict[str, Any]:
    """Options of stores. Processes of one machine share a cache of images, in place of holding all of them each."""
    processes = distributed.launch().local_world_size if distributed.shares_work() else 1
    return {"progress": progress, "processes": processes, "cache": processes > 1}


def own_parts(parts: Sequence[Tensor]) -> list[Tensor]:
    """Parts that this process computes, one a round. If the last round has none for it, it computes a single image."""
    if not distributed.shares_work():
        return list(parts)
    world, rank = distributed.world_size(), distributed.rank()
    own = list(parts[rank::world])
    return own if rank <= (len(parts) - 1) % world else [*own, parts[-1][:1]]


def parts_of_all(turn: int, rows: Tensor, parts: Sequence[Tensor], images: Any) -> Iterator[tuple[int, Tensor]]:
    """Position of the first image and features of each part of a round, in order.

    Args:
        turn: number of the round.
        rows: features (B, F) of this process's own part.
        parts: positions of the images of all parts.
        images: store of the images, or a part of it. It takes note of images that others could not read.
    """
    if not distributed.shares_work():
        yield int(parts[turn][0]), rows
        return
    distributed.stopping_point()
    store = getattr(images, "store", images)
    if isinstance(store, ImageStore) and distributed.agree(len(store.unreadable)):
        store.take_unreadable(one for found in distributed.collect(store.unreadable) for one in found)
    world = distributed.world_size()
    if turn * world + distributed.rank() >= len(parts):
        rows = rows[:0]
    everything = distributed.gather(rows.contiguous(), equal=False)
    for part in parts[turn * world : (turn + 1) * world]:
        yield int(part[0]), everything[: len(part)]
        everything = everything[len(part) :]
