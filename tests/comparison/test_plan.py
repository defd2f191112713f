"""Plan of a comparison: steps by arm, measured once, and what is said of their cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparing import compare

from ssole.comparison.compare import resume_comparison

pytestmark = pytest.mark.usefixtures("in_a_folder")


def test_times_become_steps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssole.comparison import plan

    monkeypatch.setattr(plan, "step_seconds", lambda config, *_, **__: 0.5 if config.loss.name == "ssole" else 0.25)
    result = compare(budget="2s", seeds=1)
    assert {name: arm.steps for name, arm in result.arms.items()} == {"ssole": 4, "simclr": 8}
    Path("timed.yaml").write_text(Path("tiny.yaml").read_text() + "budget: 2s\n")
    timed = compare(recipe="timed.yaml", budget=None, out="timed", seeds=1)  # the recipe's own budget
    assert {name: arm.steps for name, arm in timed.arms.items()} == {"ssole": 4, "simclr": 8}
    monkeypatch.setattr(plan, "step_seconds", lambda *_, **__: 9.0)
    assert resume_comparison("out", progress=False).arms["ssole"].steps == 4


def test_it_says_what_it_will_cost_before_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    compare(progress=True, search=2, seeds=1)
    said = capsys.readouterr().err
    cost = said.index("ssole: 4 steps of search, 1 run of 6 steps")
    assert cost < said.index("ssole, search-0-trial-0")
    assert "in all about" in said
    assert "less than one epoch" in said
