"""Help, version, unknown commands, errors and exit codes, for all commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from commands import TINY, Command

import ssole
from ssole.cli import COMMANDS
from ssole.training.run import Run


def test_without_a_command_the_usage_is_shown(command: Command) -> None:
    for arguments, code in (((), 2), (("--help",), 0), (("-h",), 0)):
        outcome = command(*arguments)
        assert outcome.code == code
        for name in COMMANDS:
            assert f"ssole {name}" in outcome.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"ssole {ssole.__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("evl", "eval"), ("pretain", "pretrain"), ("embeddings", "embed")])
def test_a_mistyped_command(command: Command, typed: str, meant: str) -> None:
    outcome = command(typed)
    assert outcome.code == 2
    assert f"no command '{typed}', did you mean '{meant}'?" in outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_with_its_summary(command: Command, name: str) -> None:
    summary = (COMMANDS[name].__doc__ or "").partition("\n")[0]
    assert 0 < len(summary) <= 100
    assert re.search(rf"^  ssole {name} +{re.escape(summary)}$", command("--help").out, flags=re.MULTILINE)
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: ssole {name} ")
    assert f"\n\n{summary}\n" in outcome.out.replace(" \n", "\n")


@pytest.mark.parametrize("name", ["eval", "embed"])
def test_help_of_commands_on_a_run_names_it_as_an_argument(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert re.search(rf"^usage: ssole {name} .*\bRUN\b", outcome.out)
    assert "--run" not in outcome.out


def test_divergence_names_the_step(command: Command) -> None:
    outcome = command(*TINY, "--optim.lr", "1e30")
    assert outcome.code == 1
    assert re.search(r"^error: step \d+: .*lower optim\.lr", outcome.err, flags=re.MULTILINE)
    assert not Run(Path("runs/tiny")).finished


def test_a_full_disk_is_an_error_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssole.training.loop.save_checkpoint", full)
    outcome = command(*TINY)
    assert outcome.code == 1
    assert "error: [Errno 28] No space left on device" in outcome.err


def test_lack_of_memory_is_an_error_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("ssole.training.step.Learner.embed", full)
    outcome = command(*TINY)
    assert outcome.code == 1
    assert "error: CUDA out of memory. Lower --batch-size" in outcome.err


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(trained: Command) -> None:
    Path("labeled/cat/zzz.png").write_bytes(b"")
    outcome = trained("embed", "run")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "warning" in line]
    assert line.startswith("warning: 1 of 61 images cannot be read")
    assert ".py" not in line
