"""`ssole report`: what it prints, and refused input."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from commands import Command

import tiny

pytest.importorskip("bokeh", reason="the extra report is not installed")


def test_report_says_where_the_page_is(trained: Command) -> None:
    outcome = trained("report", "run", "--images", "30")
    assert outcome.code == 0, outcome.err
    assert "run/report.html (" in outcome.out
    assert Path("run/report.html").stat().st_size > 1_000_000
    outcome = trained("report", "run", "run", "--data", "unlabeled", "--images", "30", "--out", "both.html")
    assert outcome.code == 0, outcome.err
    assert Path("both.html").is_file()


@pytest.mark.slow
def test_a_live_report_ends_with_ctrl_c(trained: Command, tmp_path: Path) -> None:
    shutil.rmtree("labeled")  # without images, the page is made sooner
    server = tiny.command("report", "run", "--live", "--images", "30", cwd=tmp_path)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    with urlopen(url, timeout=120) as answer:
        assert "<title>run: did training work?" in answer.read().decode("utf-8")
    with pytest.raises(HTTPError, match="403"):
        urlopen(url[:-1], timeout=60)
    server.send_signal(signal.SIGINT)
    out, err = server.communicate(timeout=60)
    assert (server.returncode, err) == (0, "")
    assert out.endswith("\nended\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "got none"),
        (["report", "nowhere"], "there is no nowhere"),
        (["report", "photos"], "photos is not a run folder"),
        (["report", "run", "--images", "3"], "20 to 50,000 images, got 3"),
        (["report", "run", "--live", "--out", "x.html"], "writes no file: leave out --out"),
        (["report", "nowhere", "--live"], "there is no nowhere"),
        (["report", "run", "--live", "--port", "-1"], "cannot listen on port -1"),
        (["report", "run", "--columns", "nowhere.csv"], "nowhere.csv is not a CSV file"),
    ],
)
def test_wrong_input_to_report(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
