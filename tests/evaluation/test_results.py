"""Results: what is shown and what is saved."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from coloured import MeanColour, coloured, evaluate_quietly

from ssole.evaluation.results import Score


def test_results_are_shown_and_saved(tmp_path: Path) -> None:
    from rich.console import Console

    result = evaluate_quietly(
        MeanColour(), coloured(240, seed=0), test=coloured(90, seed=1), protocol=("knn", "linear", "label_free")
    )
    saved = json.loads(result.save(tmp_path / "result.json").read_text())
    assert saved["rows"]["trained"]["linear"] == {"value": 1.0, "std": 0.0, "n": 90, "runs": 1}
    assert saved["probes"]["trained"][0]["c"] > 0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert "100.0 % ± 0.0" in text
    assert "linear probe" in text
    assert "raw pixels (8x8)" in text
    assert Score.over_runs([Score.accuracy(0.5, 100)]).std == pytest.approx(0.05)
