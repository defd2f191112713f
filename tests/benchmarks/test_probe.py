"""The benchmark of kNN and the linear probe: it takes as many threads as it is told."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_number_of_threads_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def began(*_: object) -> None:
        found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        raise InterruptedError

    found: list[int] = []

    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    probe = importlib.import_module("probe")
    monkeypatch.setattr(probe, "synthetic", lambda n: (torch.rand(n, 2), torch.arange(n) % 2))
    monkeypatch.setattr(probe, "interleaved", began)
    monkeypatch.setattr(sys, "argv", ["probe.py", "--threads", "3"])
    with pytest.raises(InterruptedError):
        probe.main()
    assert torch.get_num_threads() == 3
    assert set(found) == {3}
