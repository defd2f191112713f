"""The benchmark of reliability on a tiny run: its clocks, its pairs, and a run that is killed and resumed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_it_runs_and_writes_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", tiny.images())
    recipe = tiny.recipe(tmp_path, data=str(tmp_path / "images.npy"), steps=100_000)
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent / "src"))
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    benchmark, out = importlib.import_module("reliability"), tmp_path / "result.json"
    sizes = ["--steps", "12", "--short", "6", "--rounds", "1", "--kills", "1", "--most", "0.1"]
    monkeypatch.setattr(sys, "argv", ["reliability.py", "--recipe", recipe, *sizes, "--out", str(out)])
    benchmark.main()
    found = json.loads(out.read_text())
    parts = found["clocks"]["parts"]
    assert parts["checkpoints"]["calls"] == 3  # after steps 5, 10 and 12
    assert 0 < parts["guardian"]["share"] < 1
    assert found["pairs"]["guardian"]["ratio"]["median"] > 0
    assert len(found["recovery"]["resuming"]) == 1
    assert found["recovery"]["training_lost"][0] >= 0
