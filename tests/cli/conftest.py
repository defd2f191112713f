"""The command line in a temporary folder, with a recipe and images, and with a trained run."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, Outcome

import tiny


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `ssole ARGUMENTS` in this process, in a folder with tiny.yaml and images in photos/. Never a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    tiny.recipe(tmp_path)
    tiny.write_folder(tmp_path / "photos")

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = tiny.main(*arguments)
        outcome = Outcome(code, *capsys.readouterr())
        assert "Traceback" not in outcome.out + outcome.err
        return outcome

    return run


@pytest.fixture
def trained(command: Command) -> Command:
    """The same, with a run in run/, its images in labeled/, and others in unlabeled/."""
    tiny.write_folder(Path("labeled"), 60)
    tiny.write_folder(Path("unlabeled"), 30, classes=(".",))
    assert command("pretrain", "--recipe", "tiny.yaml", "--data", "labeled", "--steps", "2", "--out", "run").code == 0
    return command
