"""Verdict: each state, and constants that are those of the committed experiment."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ssole.evaluation import verdict as module
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.results import LABEL_FREE
from ssole.evaluation.verdict import assess, last_rise

ROOT = Path(__file__).parent.parent.parent
GOOD = {"centred_effective_rank": 80.0, "rankme": 90.0, "uniformity": -2.0}


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("verdict_fit", ROOT / "experiments" / "verdict_fit.py")
    assert spec is not None
    assert spec.loader is not None
    fit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fit)
    report = json.loads((ROOT / "benchmarks" / "results" / "verdict.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = fit.fit(report)
    return found


def test_constants_are_those_of_the_experiment(fitted: dict[str, Any]) -> None:
    assert fitted["compared"] == module.COMPARED >= 30
    assert fitted["correlation"] == module.CORRELATION
    assert list(module.CORRELATION) == list(LABEL_FREE)
    found = [fitted[name] for name in ("collapsed_uniformity", "starved_rankme", "improving_rise")]
    assert found == [module.COLLAPSED_UNIFORMITY, module.STARVED_RANKME, module.IMPROVING_RISE]
    assert fitted["rises"] == module.RISES >= 30
    assert fitted["rise_correlation"] == module.RISE_CORRELATION


def test_the_documentation_has_the_figures_of_the_experiment(fitted: dict[str, Any]) -> None:
    page = " ".join((ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    for sentence in (
        "{runs} small runs",
        "groups of ten runs or more, {compared} in all",
        "Of {poor} poor runs the verdict misses {missed}, and it calls {wronged} others poor",
        "Of {rises} runs that were repeated for four times as many steps, {rises_improved} gained",
        "rank correlation of {rise_correlation:+.2f} with that gain",
        "gained less; {rises_seen} of the others",
        "misjudged {pairs_misjudged} of",
        "rose by more than {rise_points:.1f} points",
        "uniformity above {collapsed_uniformity}",
        "RankMe below {starved_rankme}",
    ):
        text = sentence.format(**fitted, rise_points=100 * fitted["improving_rise"]).replace("-", "−")
        assert text in page.replace("-", "−"), text
    for name, value in fitted["correlation"].items():
        cells = f"| {value:+.2f} | {100 * fitted['recovered'][name]:.0f} % |"
        assert cells.replace("-", "−") in page, name


@pytest.mark.parametrize(
    ("change", "rise", "state", "words"),
    [
        ({}, 0.0, "healthy", "RankMe is 90.0: the 128 features vary in many directions"),
        ({}, module.IMPROVING_RISE, "healthy", "RankMe is 90.0"),
        ({}, 0.05, "still improving", "kNN accuracy rose by 5.0 points over the last fifth of training"),
        ({"centred_effective_rank": 1.9}, 0.1, "collapsed", "effective rank, centred is 1.9: all images look"),
        ({"uniformity": -0.01}, 0.1, "collapsed", "uniformity is -0.010: all features point in"),
        ({"rankme": 5.0}, 0.1, "dimension-starved", "RankMe is 5.0: the 128 features vary in few directions"),
    ],
)
def test_states(change: dict[str, float], rise: float, state: str, words: str) -> None:
    verdict = assess({**GOOD, **change}, 128, 4000, rise)
    assert verdict is not None
    assert verdict.state == state
    assert verdict.sentence.startswith(f"{state}: {words}")
    correlation = f"with kNN in {module.COMPARED} small runs: {module.CORRELATION['rankme']:+.2f})."
    assert (correlation in verdict.sentence) == (verdict.figure == "rankme")
    gained = f"the gain from four times as many steps, in {module.RISES} small runs: {module.RISE_CORRELATION:+.2f})."
    assert verdict.sentence.endswith(gained) == (verdict.state == "still improving")


def test_features_that_are_what_the_words_say() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(500, 128, generator=generator)
    few = noise[:, :3] @ torch.randn(3, 128, generator=generator)
    equal = torch.ones(500, 128) + 1e-3 * noise
    states = []
    for features in (noise, few, equal, torch.ones(500, 128)):
        verdict = assess(label_free_figures(features), 128, len(features))
        assert verdict is not None
        states.append(verdict.state)
    assert states == ["healthy", "dimension-starved", "collapsed", "collapsed"]


def test_narrow_networks_are_judged_by_their_width_and_no_figures_by_nothing() -> None:
    narrow = assess({"rankme": 12.0, "uniformity": -2.0}, 16, 4000)
    assert narrow is not None
    assert narrow.state == "healthy"
    assert assess({}, 128, 4000) is None


@pytest.mark.parametrize(("width", "least"), [(128, 41), (512, 41), (16, 6)])
def test_no_verdict_of_fewer_images_than_the_limit_on_rankme(width: int, least: int) -> None:
    for images in (1, 2, 3, least - 1, least):
        best = torch.eye(images, width)  # RankMe is the number of images
        verdict = assess(label_free_figures(best), width, images)
        assert verdict is not None
        assert verdict.state == ("healthy" if images == least else "no verdict")
        if images < least:
            plural = "image" if images == 1 else "images"
            said = f"no verdict: the figures are of {images} {plural}, and RankMe cannot exceed their number"
            assert verdict.sentence == f"{said}; give at least {least}."


def test_few_images_show_a_collapse_all_the_same() -> None:
    verdict = assess(label_free_figures(torch.ones(5, 128)), 128, 5)
    assert verdict is not None
    assert verdict.state == "collapsed"


def test_the_last_rise_of_accuracy() -> None:
    rows = [{"step": step, "knn20": value} for step, value in ((5, 0.5), (8, 0.6), (9, 0.9), (10, 0.7))]
    assert last_rise(rows) == last_rise([*rows[:2], {"step": 10, "loss": 1.0}, rows[3]]) == pytest.approx(0.1)
    assert last_rise(rows[3:]) == 0  # measured only once
    assert last_rise([]) == 0
