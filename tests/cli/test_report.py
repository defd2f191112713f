"""`ssole report`: what it prints, and refused input."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command

pytest.importorskip("bokeh", reason="the extra report is not installed")


def test_report_says_where_the_page_is(trained: Command) -> None:
    outcome = trained("report", "run", "--images", "30")
    assert outcome.code == 0, outcome.err
    assert "run/report.html (" in outcome.out
    assert Path("run/report.html").stat().st_size > 1_000_000
    outcome = trained("report", "run", "run", "--data", "unlabeled", "--images", "30", "--out", "both.html")
    assert outcome.code == 0, outcome.err
    assert Path("both.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "got none"),
        (["report", "nowhere"], "there is no nowhere"),
        (["report", "photos"], "photos is not a run folder"),
        (["report", "run", "--images", "3"], "20 to 50,000 images, got 3"),
        (["report", "run", "--columns", "nowhere.csv"], "nowhere.csv is not a CSV file"),
    ],
)
def test_wrong_input_to_report(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
