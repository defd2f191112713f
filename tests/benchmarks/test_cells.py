"""Benchmark of cells: recall of a known case, and a whole run of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")


def test_recall() -> None:
    from cells import recall

    assert recall(np.array([[1, 2], [3, 4]]), np.array([[2, 1], [4, 5]])) == 0.75


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="the extra search is not installed")
    from cells import main

    given = {"images": 3000, "features": 8, "queries": 4, "rounds": 2, "threads": 1, "out": tmp_path / "cells.json"}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["cells.py", *words])
    main()
    found = json.loads((tmp_path / "cells.json").read_text())
    assert found["cells"] == 219  # about 4 roots of 3,000
    assert 0.5 < found["recall"] <= 1
