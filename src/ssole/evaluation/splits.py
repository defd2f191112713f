"""Dividing labelled images when nobody has done it."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified_split(labels: Tensor, share: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (kept, held out), both ascending: of each class, ``share`` of its images at random is held out.

    At least one image of every class of two or more is held out, and at least one is kept; a class of one image is
    kept. A function of the arguments alone, on every machine.

    Args:
        labels: (N,) integers.
        share: in (0, 1).
        seed: of the random choice.

    Raises:
        ValueError: when share is outside (0, 1), or nothing could be held out.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share to hold out is {share}; it must be between 0 and 1")
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    order = shuffled[labels.cpu()[shuffled].sort(stable=True).indices]
    _, counts = labels.cpu().unique(return_counts=True)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for members in order.split(counts.tolist()):
        held[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    if not held.any():
        raise ValueError(f"no class of the {len(labels)} images has two of them: nothing can be held out")
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
