"""Means, paired differences and ranks; the table and the file."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from comparing import comparison, three
from rich.console import Console
from scipy import stats

from ssole.comparison.result import Difference, Summary


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    result = three(tmp_path)
    assert result.best == "best"  # an arm with a failed run is not ranked
    assert result.difference("best") is None
    difference = result.difference("clear")
    assert difference is not None
    pairs = np.array([0.10, 0.11, 0.09])
    assert difference.mean == pytest.approx(pairs.mean())
    assert difference.standard_error == pytest.approx(pairs.std(ddof=1) / math.sqrt(3))
    assert difference.clear
    near = result.difference("near")
    assert near is not None
    assert not near.clear
    assert result.difference("broken") is None
    partly = result.difference("partly")
    assert partly is not None
    assert (partly.n, partly.standard_error, partly.clear) == (1, None, False)


@pytest.mark.parametrize("pairs", [[0.10, 0.11, 0.09], [0.3, -0.1], [0.01, 0.02, 0.015, 0.001, 0.03]])
def test_the_p_value_is_that_of_a_t_test_of_the_pairs(pairs: list[float]) -> None:
    error = np.std(pairs, ddof=1) / math.sqrt(len(pairs))
    difference = Difference(best="a", mean=float(np.mean(pairs)), standard_error=float(error), n=len(pairs))
    assert difference.p_value == pytest.approx(stats.ttest_1samp(pairs, 0).pvalue)
    assert difference.clear == (difference.p_value < 0.05)


def test_three_pairs_need_more_than_twice_the_error() -> None:
    assert not Difference(best="a", mean=4.2, standard_error=1, n=3).clear
    assert Difference(best="a", mean=4.4, standard_error=1, n=3).clear
    assert Difference(best="a", mean=1.0, standard_error=0, n=3).p_value == 0
    assert Difference(best="a", mean=0, standard_error=0, n=3).p_value is None


def test_summaries_have_mean_std_and_n(tmp_path: Path) -> None:
    summary = three(tmp_path).arms["clear"].summary()
    assert summary["knn20"] == Summary(mean=pytest.approx(0.52), std=pytest.approx(0.02), n=3)
    assert summary["images_per_second"].mean == 250
    assert Summary.of([1.0]) == Summary(mean=1.0, std=None, n=1)


def test_the_file_is_json_and_complete(tmp_path: Path) -> None:
    saved = json.loads(three(tmp_path).save().read_text())
    assert saved["best"] == "best"
    assert saved["arms"]["clear"]["difference_to_best"]["clear"] is True
    assert saved["arms"]["clear"]["runs"][2]["scores"]["knn20"] == 0.54
    assert saved["arms"]["broken"]["error"].startswith("RuntimeError")


def test_the_table_names_the_best_and_every_failure(tmp_path: Path) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(three(tmp_path).table())
    text = console.export_text()
    rows = [line.split()[1] for line in text.splitlines() if line.startswith("│")]
    assert rows == ["best", "near", "clear", "broken", "partly"]
    assert "62.0±1.7" in text
    assert "10.0±0.6" in text
    assert ", unclear" in text
    assert r"broken failed: RuntimeError: [red]no such \x1bthing" in text
    assert "A note." in text
    assert "62.0±1.7" in repr(three(tmp_path))
    console.print(comparison(tmp_path).table())  # before anything has finished
