"""The command line in a temporary folder, with a recipe and images, and with a trained run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import Command, Outcome

import tiny


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `ssole ARGUMENTS` in this process, in a folder with tiny.yaml and images in photos/. Never a traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("ssole.training.dry_run.MAX_TRIAL_STEPS", 3)  # by which the time of a step is measured
    tiny.recipe(tmp_path)
    tiny.write_folder(tmp_path / "photos")

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        code = tiny.main(*arguments)
        outcome = Outcome(code, *capsys.readouterr())
        assert "Traceback" not in outcome.out + outcome.err
        return outcome

    return run


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run in run/, its images in labeled/, and others in unlabeled/."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.write_folder(folder / "labeled", 60)
    tiny.write_folder(folder / "unlabeled", 30, classes=(".",))
    how = ("--recipe", tiny.recipe(folder), "--data", str(folder / "labeled"), "--steps", "2")
    assert tiny.main("pretrain", *how, "--out", str(folder / "run")) == 0
    return folder


@pytest.fixture
def trained(command: Command, template: Path) -> Command:
    """`command` in a copy of the template."""
    for name in ("labeled", "unlabeled", "run"):
        shutil.copytree(template / name, name)
    for path in (Path("run/config.yaml"), Path("run/environment.json")):
        path.write_text(path.read_text().replace(str(template), str(Path.cwd())))
    return command
