"""The benchmark of search, run small: it times searches that find what brute force finds."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_it_runs_and_writes_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    search = importlib.import_module("search")
    out = tmp_path / "search.json"
    arguments = ["--images", "500", "--features", "8", "--rounds", "2", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["search.py", *arguments])
    search.main()
    assert "choosing an image" in capsys.readouterr().out
    seconds = json.loads(out.read_text())["seconds"]
    assert len(seconds["1 query"]["ssole, float32"]) == 2

    rows = search.unit(np.random.default_rng(1).standard_normal((50, 4), dtype=np.float32))
    index = search.write_index(tmp_path / "index", rows, "float32")
    assert index.nearest(rows[:3], 2)[1].tolist() == np.argsort(-(rows[:3] @ rows.T), axis=1)[:, :2].tolist()
