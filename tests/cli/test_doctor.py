"""`ssole doctor`: exit codes, the JSON, the help, and wrong input."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
from commands import Command
from examined import KEYS
from PIL import Image

from ssole.cli.doctor import Doctor
from ssole.doctor import examine

FINE = ("doctor", "photos", "--no-estimate", "--device", "cpu")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes time is measured for a moment."""
    monkeypatch.setattr("ssole.doctor.scan.SAMPLE_SECONDS", 0.4)


def test_the_command_and_its_exit_codes(command: Command) -> None:
    outcome = command(*FINE, "--json", "report.json", "--preview", "views.png")
    assert outcome.code == 0, outcome.err
    assert "saved: report.json" in outcome.out
    assert json.loads(Path("report.json").read_text())["preview"] == "views.png"
    with Image.open("views.png") as image:
        assert image.format == "PNG"
    assert command(*FINE, "--against", "photos").code == 1
    outcome = command(*FINE, "--json", "no/report.json")
    assert outcome.code == 2
    assert "there is no folder" in outcome.err
    outcome = command("doctor", "photo")
    assert outcome.code == 2
    assert "Did you mean photos?" in outcome.err
    outcome = command("doctor")
    assert outcome.code == 2
    assert "which images? For example: ssole doctor photos/" in outcome.err


def test_json_on_standard_output_is_alone_there(command: Command) -> None:
    outcome = command(*FINE, "--json", "-")
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found.keys() == KEYS
    assert (found["images"], found["estimate"]) == (22, None)
    assert "photos: 22 images" in outcome.err


def test_several_data_and_options_reach_the_examination(command: Command) -> None:
    files = sorted(map(str, Path("photos").rglob("*.png")))[:6]
    options = ("--no-estimate", "--device", "cpu", "--recipe", "tiny.yaml", "--limit", "4", "--json", "-")
    outcome = command("doctor", *files, *options)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["images"], found["examined"], found["recipe"]) == (6, 4, "tiny.yaml")


def test_the_command_has_the_limit_of_the_function() -> None:
    assert Doctor().limit == inspect.signature(examine).parameters["limit"].default


def test_the_help_explains_every_option(command: Command) -> None:
    outcome = command("doctor", "--help")
    assert outcome.code == 0
    for option in ("DATA", "--against TEST", "--recipe NAME", "--device", "--preview FILE", "--json FILE", "--limit"):
        assert option in outcome.out
    assert "ssole doctor photos/" in outcome.out
