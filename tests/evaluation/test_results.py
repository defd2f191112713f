"""Results: what is shown and what is saved."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from coloured import MeanColour, coloured, evaluate_quietly

from ssole.evaluation.results import EvaluationResult, Score


def test_results_are_shown_and_saved(tmp_path: Path) -> None:
    from rich.console import Console

    result = evaluate_quietly(
        MeanColour(), coloured(240, seed=0), test=coloured(90, seed=1), protocol=("knn", "linear", "label_free")
    )
    saved = json.loads(result.save(tmp_path / "result.json").read_text())
    assert saved["rows"]["trained"]["linear"] == {"value": 1.0, "std": 0.0, "n": 90, "runs": 1, "interval": None}
    assert saved["details"]["trained"]["linear"][0]["c"] > 0
    assert "[ 30, 0, 0 ]" in (tmp_path / "result.json").read_text()  # a row of a confusion matrix is a line
    assert EvaluationResult.load(tmp_path / "result.json") == result
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert "100.0 % ± 0.0" in text
    assert "linear probe" in text
    assert "linear probe" in repr(result)
    assert "raw pixels (8x8)" in text
    assert Score.over_runs([Score.accuracy(0.5, 100)]).std == pytest.approx(0.05)


def test_names_are_saved_as_they_are(tmp_path: Path) -> None:
    result = EvaluationResult(rows={"run [1  2]": {}}, train="photos [a  b]", test=None)
    assert EvaluationResult.load(result.save(tmp_path / "result.json")) == result


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    from rich.console import Console

    score = {"knn20, [b]x[/b]": Score.accuracy(0.5, 100)}
    names = {"train": "a", "test": "photos [old], 3 images", "notes": ["photos [/x]: \x1b[31m"]}
    result = EvaluationResult(rows={"run [new]": score}, **names)  # type: ignore[arg-type]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table())
    text = " ".join(console.export_text().split())  # a title is broken to the width of the table
    for name in ("run [new]", "photos [old], 3 images", "photos [/x]: \\x1b[31m", "knn20, [b]x[/b]"):
        assert name in text


def result_of(plain: float, macro: float) -> EvaluationResult:
    scores = {"knn20": Score.accuracy(plain, 100), "knn20_macro": Score.accuracy(macro, 100)}
    scores["few_shot1"] = Score(value=0.5, std=0.1, n=100, interval=0.047)
    return EvaluationResult(rows={"trained": scores}, train="a", test="b")


def test_the_mean_of_classes_is_shown_where_it_differs() -> None:
    assert result_of(0.9, 0.895).cells()[0] == ["", "kNN k=20", "1-shot"]
    assert result_of(0.9, 0.6).cells() == [
        ["", "kNN k=20", "1-shot", "kNN k=20, mean of classes"],
        ["trained", "90.0 % ± 3.0", "50.0 % ± 4.7", "60.0 % ± 4.9"],  # of few-shot the interval
    ]


def test_the_error_of_another_file_does_not_hold_its_content(tmp_path: Path) -> None:
    (tmp_path / "features.npz").write_bytes(bytes(range(128, 256)) * 100)
    with pytest.raises(ValueError, match="is not a result of ssole eval") as caught:
        EvaluationResult.load(tmp_path / "features.npz")
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
