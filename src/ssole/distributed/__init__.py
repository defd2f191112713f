"""Processes: their group, differentiable collectives, and work that the first one does for all.

This is the only user of `torch.distributed`.

`collectives.py` has sums and concatenations over processes; `group.py` joins the processes that torchrun started, and
watches them; `agreement.py` lets the first process decide for all. Without a process group there is one process, and
nothing needs to be initialised. Losses, layers, training and `api` call it; it imports no other part of the package.
Values and gradients must stay those of one process; everything else may change freely.
"""

from __future__ import annotations

from ssole.distributed.agreement import (
    ElsewhereError,
    Stopping,
    broadcast,
    collect,
    first_on_each_node,
    maximum,
    on_rank_0,
    own_device,
    shares_work,
    stopping_point,
    stopping_points,
)
from ssole.distributed.collectives import all_reduce, alone, average_gradients, gather, mean, rank, world_size
from ssole.distributed.group import ProcessError, is_torchrun, launch, processes, says_first

__all__ = [
    "ElsewhereError", "ProcessError", "Stopping", "all_reduce", "alone", "average_gradients", "broadcast",
    "collect", "first_on_each_node", "gather", "is_torchrun", "launch", "maximum", "mean", "on_rank_0",
    "own_device", "processes", "rank", "says_first", "shares_work", "stopping_point", "stopping_points", "world_size",
]  # fmt: skip
