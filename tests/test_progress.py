"""Bars appear on a terminal, after a while; elsewhere there is a line a minute."""

from __future__ import annotations

import io
import sys

import pytest
import rich.console
import rich.progress  # before its console is replaced below

from ssole import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to a terminal."""
    written = io.StringIO()
    console = rich.console.Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(rich.console, "Console", lambda **_: console)
    return written


def work(total: int, *, enabled: bool = True) -> None:
    with progress.progress_bar("counting sheep", total, enabled=enabled) as advance:
        for _ in range(total):
            advance()


def test_long_work_has_a_bar(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    work(7)
    assert "counting sheep" in terminal.getvalue()
    assert "7/7" in terminal.getvalue()


def test_output_to_a_pipe_that_was_closed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    with pytest.raises(BrokenPipeError):
        progress.output_console().print("table")


def test_short_work_has_none(terminal: io.StringIO) -> None:
    work(7)
    assert terminal.getvalue() == ""


def test_none_where_it_is_not_wanted(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    work(7, enabled=False)
    assert terminal.getvalue() == ""


def test_none_in_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    work(7)
    with progress.spinner("counting", enabled=True):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("dumb", [False, True])
def test_in_a_file_or_on_a_terminal_that_cannot_draw_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dumb: bool
) -> None:
    if dumb:
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    minutes = iter(range(0, 600, 30))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(minutes)))
    work(8)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "counting sheep: 3 of 8, about 2.5 min left",
        "counting sheep: 6 of 8, about 60 s left",
    ]


def test_a_line_has_no_characters_that_steer_a_terminal(capsys):
    progress.say("loaded \x1b[2Ja.safetensors\n- next")
    assert capsys.readouterr().err == "loaded \\x1b[2Ja.safetensors\n- next\n"
