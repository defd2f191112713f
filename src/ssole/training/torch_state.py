"""What a run asks of torch, for as long as it lasts: determinism, and random layers that can be resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ssole.rng import Use, bits


@contextmanager
def torch_state(*, deterministic: bool) -> Iterator[None]:
    """Deterministic algorithms if wanted; on leaving, torch and its generators are as they were."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        if deterministic:
            torch.use_deterministic_algorithms(True)
            # a debugging aid, which would write every new tensor twice
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS then insists on
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def seed_layers(seed: int, step: int) -> None:
    """Make dropout and its like in a backbone functions of (seed, step): they draw from torch's own generator."""
    number = bits(seed, step, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), Use.LAYERS, 1)
    torch.manual_seed(int(number))
