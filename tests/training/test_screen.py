"""Screen of a run: lines where there is no terminal, and a bar with figures on one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssole.training import screen as module
from ssole.training.screen import Screen

Capture = pytest.CaptureFixture[str]


class Clock:
    """Time that is what we say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich takes anything for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_line_comes_every_fifteen_seconds_with_the_time_that_is_left(clock: Clock, capsys: Capture) -> None:
    screen = Screen(total=100, done=0, show=True)
    screen.start("a title")
    for step in range(1, 41):  # of a second each
        clock.now += 1
        screen.advance(step, 100)
        screen.note("training", f"loss {step}")
    screen.stop()
    assert capsys.readouterr().err.splitlines() == [
        "a title",
        "step 16/100  loss 16  84 s left",
        "step 32/100  loss 32  68 s left",
    ]


def test_the_time_that_is_left_is_of_the_steps_since_the_run_went_on(clock: Clock, capsys: Capture) -> None:
    screen = Screen(total=100, done=60, show=True)
    screen.start("a title")
    clock.now += 20
    screen.advance(70, 100)  # 2 s a step
    screen.note("training", "loss 1")
    assert capsys.readouterr().err.splitlines()[1:] == ["step 70/100  loss 1  60 s left"]


def test_what_was_waited_for_is_no_time_of_steps(clock: Clock, capsys: Capture) -> None:
    screen = Screen(total=10, done=0, show=True)
    screen.start("a title")
    with screen.waiting("compiling"):
        clock.now += 1000
    clock.now += 20
    screen.advance(5, 10)
    screen.note("training", "loss 1")
    assert capsys.readouterr().err.splitlines() == ["a title", "compiling", "step 5/10  loss 1  20 s left"]


def test_the_newest_figures_of_each_kind_stand_beside_each_other(clock: Clock, capsys: Capture) -> None:
    screen = Screen(total=2, done=0, show=True)
    screen.start("a title")
    for step in (1, 2):
        clock.now += 1
        screen.advance(step, 2)
        screen.note("training", f"loss {step}")
        screen.note("evaluation", f"kNN {step}")
    assert capsys.readouterr().err == "a title\n"  # the last figures come when they are complete
    screen.stop()
    assert capsys.readouterr().err == "step 2/2  loss 2  kNN 2\n"


def test_a_run_that_ends_before_its_last_step_has_no_last_figures(clock: Clock, capsys: Capture) -> None:
    screen = Screen(total=3, done=0, show=True)
    screen.advance(2, 3)
    screen.note("training", "loss 1")
    screen.stop()
    assert capsys.readouterr().err == ""


def test_a_total_that_changes_is_shown(clock: Clock, capsys: Capture) -> None:
    """As in a budget of time, whose steps are counted on the way."""
    screen = Screen(total=3, done=0, show=True)
    screen.advance(7, 7)
    screen.note("training", "loss 1")
    screen.stop()
    assert capsys.readouterr().err == "step 7/7  loss 1\n"


@pytest.mark.usefixtures("on_a_terminal")
def test_nothing_is_shown_if_so_told(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen(total=1, done=0, show=False)
    screen.start("a title")
    with screen.waiting("compiling"):
        pass
    clock.now += 99
    screen.advance(1, 1)
    screen.note("training", "loss 1")
    screen.print_line("a line")
    screen.show_stopping()
    screen.stop()
    assert capfd.readouterr() == ("", "")


def test_a_line_steers_no_terminal_and_is_not_wrapped(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    Screen(total=1, done=0, show=True).print_line("[red]" + "x" * 50 + "\x1b[31m 12.png")
    assert capsys.readouterr().err == "[red]" + "x" * 50 + "\\x1b[31m 12.png\n"


@pytest.mark.usefixtures("on_a_terminal")
def test_on_a_terminal_a_bar_with_the_figures_and_no_lines(clock: Clock, capsys: Capture) -> None:
    screen = Screen(total=50, done=10, show=True)
    screen.start("a title")
    for step in (11, 30):
        clock.now += 60
        screen.advance(step, 50)
        screen.note("training", f"loss {step}")
    with screen.waiting("evaluating"):
        pass
    screen.note("training", "loss 30, as before")
    screen.advance(31, 50)
    screen.stop()
    said = capsys.readouterr()
    shown = plain(said.err)
    assert said.out == ""
    assert shown.startswith("a title")
    assert "step" in shown
    assert "31/50" in shown
    assert shown.rstrip().endswith("loss 30, as before")
    assert "step 30/50  loss" not in shown


@pytest.mark.usefixtures("on_a_terminal")
def test_on_a_terminal_a_signal_is_told_below_the_bar(capfd: pytest.CaptureFixture[str]) -> None:
    screen = Screen(total=50, done=0, show=True)
    screen.start("a title")
    screen.show_stopping()
    screen.stop()
    assert "stopping after this step; Ctrl-C again to stop at once" in plain(capfd.readouterr().err)


def test_without_a_terminal_a_signal_is_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    Screen(total=50, done=0, show=True).show_stopping()
    assert capfd.readouterr() == ("", "stopping after this step\n")


def test_a_terminal_that_has_gone_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = OSError(5, "Input/output error")

    class Gone:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise gone

        def flush(self) -> None:
            raise gone

        def isatty(self) -> bool:
            return False

    def refuse(handle: int, data: bytes) -> int:
        raise gone

    monkeypatch.setattr("sys.stderr", Gone())
    monkeypatch.setattr("os.write", refuse)
    screen = Screen(total=1, done=0, show=True)
    screen.start("a title")
    screen.show_stopping()
    screen.advance(1, 1)
    screen.note("training", "loss 1")
    screen.stop()


@pytest.mark.slow
def test_a_pipe_that_is_closed_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `ssole pretrain ... 2>&1 | head`; rich would end the process."""
    monkeypatch.chdir(tmp_path)
    code = (
        "from ssole.progress import say; from ssole.training.screen import Screen\n"
        "screen = Screen(3, 0, True); screen.start('title')\n"
        "for _ in range(3): screen.print_line('line'); say('word')\n"
        "screen.stop(); open('done', 'w').close()"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=writing, check=False)
    os.close(writing)
    assert done.returncode == 0
    assert Path("done").exists()
