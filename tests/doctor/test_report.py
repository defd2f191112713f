"""The report as data: its verdict, and the keys of its JSON, which are described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from examined import CONTENTS_KEYS, ESTIMATE_KEYS, KEYS, damage, made, report_on

from ssole import __version__
from ssole.doctor.contents import Copies
from ssole.doctor.report import Finding


@pytest.mark.usefixtures("soon")
def test_keys_of_the_json(folder: Path, tmp_path: Path) -> None:
    report = report_on(damage(folder), measure=True, against=folder)
    path = tmp_path / "report.json"
    report.save(path)
    found = json.loads(path.read_text(encoding="ascii"))
    assert found.keys() == KEYS
    assert found["contents"].keys() == CONTENTS_KEYS
    assert found["estimate"].keys() == ESTIMATE_KEYS
    assert found["format"] == 1
    assert found["against"].keys() == {"name", "images", "examined", "unreadable", "leaked"}
    assert found["against"]["leaked"][0].keys() == {"id", "twin", "exact"}
    assert found["unreadable"][0].keys() == {"index", "id", "reason"}
    assert found["suggestion"].keys() == {"recipe", "reasons", "overrides", "command"}
    assert found["statistics"].keys() == {"mean", "std", "images"}
    assert found["decode"].keys() == found["views"].keys() == {"value", "threads", "images"}
    assert all(finding.keys() == {"level", "topic", "text", "advice"} for finding in found["findings"])


def test_every_key_is_described() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [key for key in sorted(KEYS | CONTENTS_KEYS | ESTIMATE_KEYS) if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    ("levels", "verdict"),
    [
        ([], "ok"),
        (["ok", "ok"], "ok"),
        (["ok", "look", "ok"], "look"),
        (["look", "stop", "ok"], "stop"),
        (["stop", "look"], "stop"),
    ],
)
def test_the_verdict_is_the_worst_of_the_findings(levels: list[Any], verdict: str) -> None:
    found = made(findings=[Finding(level, "topic", "text") for level in levels])
    assert found.verdict == verdict
    assert json.loads(found.to_json())["verdict"] == verdict


def test_json_is_one_ascii_text_whatever_the_names_of_files(tmp_path: Path) -> None:
    name = "é 雪 \udcff.png"  # the last byte of this name is no text
    found = made(exact_copies=[Copies(name, ["b"])])
    found.save(tmp_path / "report.json")
    text = (tmp_path / "report.json").read_bytes()
    assert text.isascii()
    assert text.endswith(b"}\n")
    saved = json.loads(text)
    assert saved["exact_copies"] == [{"first": name, "copies": ["b"]}]
    assert saved["ssole"] == __version__
    assert saved == found.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_number_that_json_lacks_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        made(seconds=float("nan")).save(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []
