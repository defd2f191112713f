"""Transfer: a column for each data set, those that cannot be had left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from coloured import MeanColour, coloured, evaluate_quietly

import tiny
from ssole.config import ConfigError
from ssole.data.arrays import ArraySource
from ssole.errors import DataError
from ssole.evaluation.results import EvaluationResult
from ssole.evaluation.transfer import transfer

QUIET = {"device": "cpu", "progress": False, "precision": "float32"}


def test_each_data_set_has_a_column_with_the_accuracy_of_its_own_evaluation(tmp_path: Path) -> None:
    easy, hard = coloured(90, seed=0), coloured(90, seed=1, noise=6)
    unlabelled = ArraySource(easy.images, name="plain")
    given = {"easy": easy, "hard": hard, "gone": str(tmp_path / "gone"), "plain": unlabelled}
    result = transfer(MeanColour(), given, **QUIET)
    assert list(result.rows) == ["trained", "raw pixels (8x8)"]
    assert list(result.rows["trained"]) == ["easy, linear probe", "hard, linear probe"]
    for name, data in (("easy", easy), ("hard", hard)):
        alone = evaluate_quietly(MeanColour(), data, protocol="linear").rows
        assert {row: scores[f"{name}, linear probe"] for row, scores in result.rows.items()} == {
            row: scores["linear"] for row, scores in alone.items()
        }
    assert result.cells()[0] == ["", "easy, linear probe", "hard, linear probe"]
    assert any(note.startswith("gone is left out: There is no dataset, folder or file named") for note in result.notes)
    assert "plain is left out: it has no labels." in result.notes
    assert any(note.startswith("easy: No test split") for note in result.notes)
    assert EvaluationResult.load(result.save(tmp_path / "transfer.json")) == result


def test_a_row_without_a_figure_stays_empty() -> None:
    result = transfer(MeanColour(), {"easy": coloured(60, seed=0)}, protocol="attentive", **QUIET)
    assert result.rows == {"trained": {}, "raw pixels (8x8)": {}}
    assert any(note.startswith("easy: trained: no attentive probe") for note in result.notes)


def test_names_of_paths_and_wrong_input(tmp_path: Path) -> None:
    folder = str(tiny.write_folder(tmp_path / "animals", 40))
    result = transfer(MeanColour(), [folder], protocol="knn", baselines=False, **QUIET)
    assert list(result.rows["trained"]) == ["animals, kNN k=20"]
    assert transfer(MeanColour(), folder, protocol="knn", baselines=False, **QUIET) == result
    other = str(tiny.write_folder(tmp_path / "more" / "animals", 40))
    result = transfer(MeanColour(), [folder, other], protocol="knn", baselines=False, **QUIET)
    assert list(result.rows["trained"]) == [f"{folder}, kNN k=20", f"{other}, kNN k=20"]
    with pytest.raises(ConfigError, match="transfer needs data sets"):
        transfer(MeanColour(), [], **QUIET)
    with pytest.raises(DataError, match="none of the data sets can be had"):
        transfer(MeanColour(), [str(tmp_path / "gone")], **QUIET)
