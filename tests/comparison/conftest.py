"""The folder that comparisons are run in."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
from ssole.comparison import runner
from ssole.training import dry_run


@pytest.fixture
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of 80 images for training and 40 for testing, and the tiny recipe; no plots."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "MAX_TRIAL_STEPS", 3)  # by which the time of a step is measured
    monkeypatch.setattr(runner, "draw", lambda result: None)  # plots take as long as all training; tests/cli has some
    tiny.recipe(tmp_path)
    tiny.write_folder(tmp_path / "photos" / "train", 80)
    tiny.write_folder(tmp_path / "photos" / "test", 40)
