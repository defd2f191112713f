"""Record of a run: series, cost, command, and folders of other ages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from ssole.config import ConfigError
from ssole.report.record import Record, unique_names


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    folder: Path = tmp_path_factory.mktemp("record") / "run"
    return Record.read(tiny.start(folder, steps=3, evaluators={2: lambda backbone: {"mine": 0.5}}).path)


def test_series_and_names(record: Record) -> None:
    assert record.terms == ["loss", "low_rank", "high_rank"]
    assert record.evaluated == ["mine"]
    assert record.series("mine") == ([2, 3], [0.5, 0.5])
    steps, values = record.series("loss")
    assert steps == [1, 2, 3]
    assert all(value > 0 for value in values)
    assert record.series("unknown") == ([], [])
    assert record.steps == 3


def test_cost_of_an_hour(record: Record) -> None:
    rows = [{"step": 100, "loss": 1.0, "seconds": 3600.0, "data_wait": 0.25}]
    cost = replace(record, metrics=rows).cost()
    assert cost["time"] == "60.0 min"
    assert cost["images seen"] == "400, as 800 views"
    assert cost["waiting for data"] == "25 % of the time"
    assert cost["energy, estimated"] == "65 Wh, if the machine draws 65 W (a CPU at work)"
    unknown = replace(record, metrics=[]).cost()
    assert (unknown["speed"], unknown["energy, estimated"]) == ("not recorded", "not recorded")
    for seconds, energy in ((19_385.0, "350 Wh, if"), (1e7, "180,000 Wh, if"), (1.0, "0.018 Wh, if")):
        longer = replace(record, metrics=[{"step": 1, "loss": 1.0, "seconds": seconds}])
        assert longer.cost()["energy, estimated"].startswith(energy)
    assert replace(record, metrics=[{"step": 1, "seconds": "long"}]).cost()["time"] == "not recorded"


def test_command(record: Record) -> None:
    given = replace(record, environment={"command": ["/usr/bin/ssole", "pretrain", "--data", "my photos"]})
    assert given.command() == "ssole pretrain --data 'my photos'"
    recipe = f"ssole pretrain --recipe {record.path / 'config.yaml'}"
    for odd in ({}, {"command": [5]}, {"command": {"a": 1}}, {"command": ["ssole", 7]}, {"command": "ssole"}):
        assert replace(record, environment=odd).command() == recipe


def test_what_may_be_missing_and_what_may_not(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", steps=1)
    for name in ("environment.json", "metrics.jsonl", "images.json"):
        (run.path / name).unlink()
    found = Record.read(run.path)
    assert (found.environment, found.metrics, found.images, found.terms) == ({}, [], None, [])
    (run.path / "evaluation.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a result of ssole eval"):
        Record.read(run.path)
    with pytest.raises(ConfigError, match="is not a run folder"):
        Record.read(tmp_path)


@pytest.mark.parametrize("name", ["environment.json", "images.json"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", steps=1)
    (run.path / name).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        Record.read(run.path)


def test_runs_of_one_name_can_be_told_apart(tmp_path: Path) -> None:
    first, second = (Record.read(tiny.start(tmp_path / parent / "run", steps=1).path) for parent in "ab")
    alone = unique_names([first])
    assert [record.name for record in alone] == ["run"]
    names = [record.name for record in unique_names([first, second, first])]
    assert names == [str(first.path), str(second.path), f"{first.path} (2)"]
