"""Charts: which lines are drawn, and the spectrum."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from ssole.report import charts
from ssole.report.charts import curves, singular_values, spectrum
from ssole.report.record import Record

pytest.importorskip("bokeh", reason="the extra report is not installed")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder: Path = tmp_path_factory.mktemp("charts") / "run"
    return Record.read(tiny.start(folder, steps=3).path)


def test_singular_values_are_those_of_centred_features() -> None:
    features = torch.randn(30, 5) + 7
    expected = np.linalg.svd(features.double().numpy() - features.double().numpy().mean(0), compute_uv=False)
    np.testing.assert_allclose(singular_values(features), expected / expected.sum(), rtol=1e-9)


def test_equal_features_have_no_spectrum() -> None:
    assert singular_values(torch.full((10, 4), 0.1)) == []
    assert spectrum({"run": (torch.ones(10, 4), torch.randn(10, 4))})["label"].startswith("Singular values")


def test_curves_of_one_run_and_of_two(record: Record) -> None:
    one = curves([record])
    assert list(one) == ["Loss and its terms", "Effective rank of embeddings", "Learning rate"]
    first, last = (record.series("loss")[1][at] for at in (0, -1))
    assert one["Loss and its terms"]["label"].startswith(
        f"Loss and its terms: loss from {first:.3g} to {last:.3g}, low"
    )
    two = curves([record, replace(record, name="other")])
    assert two["Learning rate"]["label"] == "Learning rate: run from 0.1 to 0, other from 0.1 to 0"
    assert "other, low rank from" in two["Loss and its terms"]["label"]


def test_terms_of_two_losses_have_dashes_that_differ(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_chart", lambda title, x, lines: lines)
    names = {"low_rank": "alignment", "high_rank": "spread"}
    rows = [{names.get(key, key): value for key, value in row.items()} for row in record.metrics]
    lines = curves([record, replace(record, name="other", metrics=rows)])["Loss and its terms"]
    dashes = {str(line[0]): line[3] for line in lines}
    for name, terms in ((record.name, ("loss", "low rank", "high rank")), ("other", ("loss", "alignment", "spread"))):
        assert [dashes[f"{name}, {term}"] for term in terms] == ["solid", "dashed", "dotted"]


def test_figures_without_labels_are_no_accuracies(record: Record) -> None:
    rows = [{"step": step, "knn20": 0.5, "rankme": 9.0} for step in (1, 2)]
    found = curves([replace(record, metrics=rows)])
    assert found["Accuracy while training"]["label"] == "Accuracy while training: kNN k=20 from 0.5 to 0.5"
    assert found["Label-free figures while training"]["label"].endswith(": RankMe from 9 to 9")


def test_one_point_is_no_curve(record: Record) -> None:
    assert curves([replace(record, metrics=record.metrics[:1])]) == {}
