"""Verdict: closed cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from ssole.evaluation.results import EvaluationResult, Score
from ssole.report.record import Record
from ssole.report.verdict import assess


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder: Path = tmp_path_factory.mktemp("verdict") / "run"
    return Record.read(tiny.start(folder, steps=2).path)


def evaluated(record: Record, trained: float, pixels: float, untrained: float = 0.2) -> Record:
    values = {"trained": trained, "raw pixels (8x8)": pixels, "untrained": untrained}
    rows = {name: {"knn20": Score.accuracy(value, 1000)} for name, value in values.items()}
    return replace(record, evaluation=EvaluationResult(rows=rows, train="a", test="b"))


@pytest.mark.parametrize(
    ("trained", "pixels", "level", "words"),
    [
        (0.8, 0.5, "good", "It worked: kNN k=20 80.0 %, against 50.0 % for raw pixels (8x8)."),
        (0.52, 0.5, "look", "No gain over the best baseline"),  # two errors of the difference are 4.5 points
        (0.55, 0.5, "good", "It worked"),
        (0.4, 0.5, "bad", "It did not work: kNN k=20 40.0 %, against 50.0 % for raw pixels (8x8)."),
    ],
)
def test_accuracy_against_the_best_baseline(
    record: Record, trained: float, pixels: float, level: str, words: str
) -> None:
    verdict = assess(evaluated(record, trained, pixels), None)
    assert verdict.level == level
    assert words in verdict.sentence
    assert verdict.figures[0].value == f"{100 * trained:.1f} %"
    assert verdict.figures[0].note == f"{100 * (trained - pixels):+.1f} points against raw pixels (8x8) (50.0 %)"


def test_three_numbers_even_without_images(record: Record) -> None:
    assert len(assess(evaluated(record, 0.8, 0.5), None).figures) == 3


def test_still_rising(record: Record) -> None:
    rising = [{"step": step, "knn20": value} for step, value in ((5, 0.5), (8, 0.6), (10, 0.7))]
    flat = [*rising[:2], {"step": 10, "knn20": 0.605}]
    assert "still rising" in assess(replace(evaluated(record, 0.8, 0.5), metrics=rising), None).sentence
    assert "still rising" not in assess(replace(evaluated(record, 0.8, 0.5), metrics=flat), None).sentence


def test_without_labels_or_images_it_says_what_to_do(record: Record) -> None:
    verdict = assess(record, None)
    assert verdict.level == "look"
    assert "run ssole eval" in verdict.sentence


def test_unfinished_comes_first(record: Record) -> None:
    verdict = assess(replace(evaluated(record, 0.8, 0.5), finished=False), None)
    assert (verdict.level, verdict.sentence[:13]) == ("look", "Not finished:")


def test_a_broken_network_is_bad_whatever_was_measured(record: Record) -> None:
    verdict = assess(evaluated(record, 0.8, 0.5), None, "features hold NaN")
    assert (verdict.level, verdict.sentence) == ("bad", "It did not work: features hold NaN.")
    assert assess(replace(record, finished=False), None, "features hold NaN").level == "look"


def sample_of(features: torch.Tensor) -> Any:
    return SimpleNamespace(train=SimpleNamespace(after=features, before=features), agreement=(0.9, 0.5))


def test_features_are_judged_without_labels_too(record: Record) -> None:
    good = torch.randn(300, 128, generator=torch.Generator().manual_seed(0))
    near, equal = torch.ones(300, 128) + 0.001 * good, torch.ones(300, 128)
    verdict = assess(record, sample_of(good))
    assert verdict.level == "look"
    assert verdict.label_free.startswith("healthy: RankMe is")
    assert "rank correlation of RankMe with kNN" in verdict.label_free
    for features, words in ((near, "Collapsed: uniformity is"), (equal, "Collapsed: effective rank, centred is 0.0")):
        verdict = assess(record, sample_of(features))
        assert verdict.level == "bad"
        assert words in verdict.sentence
    assert assess(record, sample_of(good[:5])).label_free.startswith("no verdict: the figures are of 5 images")
    measured = evaluated(record, 0.8, 0.5)  # an accuracy counts for more, but not that of equal features
    assert [assess(measured, sample_of(features)).level for features in (good, near, equal)] == ["good", "good", "bad"]
