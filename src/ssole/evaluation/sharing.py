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


def evaluation_device(device: torch.device | str) -> torch.device:
    """Device of a setting; if processes share the work, that of this process."""
    found = resolve_device(device)
    return distributed.own_device(found) if distributed.shares_work() else found


def own_batches(batches: Sequence[Tensor]) -> list[Tensor]:
    """Batches that this process computes, one in each round. If the last round has none for it, a single image."""
    if not distributed.shares_work():
        return list(batches)
    world, rank = distributed.world_size(), distributed.rank()
    own = list(batches[rank::world])
    return own if rank <= (len(batches) - 1) % world else [*own, batches[-1][:1]]


def batches_of_all(number: int, rows: Tensor, batches: Sequence[Tensor], images: Any) -> Iterator[tuple[int, Tensor]]:
    """Position of the first image, and the features, of each batch of a round, in order.

    ``rows`` are the features (B, F) of this process's own batch, and ``batches`` the positions of the images of all
    batches. ``images``, a store or a subset of one, is told which images other processes could not read.
    """
    if not distributed.shares_work():
        yield int(batches[number][0]), rows
        return
    distributed.stopping_point()
    store = getattr(images, "store", images)
    if isinstance(store, ImageStore) and distributed.maximum(len(store.unreadable)):
        store.take_unreadable(one for found in distributed.collect(store.unreadable) for one in found)
    world = distributed.world_size()
    if number * world + distributed.rank() >= len(batches):
        rows = rows[:0]
    gathered = distributed.gather(rows.contiguous(), equal=False)
    for batch in batches[number * world : (number + 1) * world]:
        yield int(batch[0]), gathered[: len(batch)]
        gathered = gathered[len(batch) :]
