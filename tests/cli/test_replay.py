"""`ssole replay`: what it prints, and its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command

import tiny
from ssole.training.watch import NonFiniteLossError


def test_a_failed_step_is_taken_again(command: Command, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError) as error:
        tiny.start(tmp_path / "run", optim__lr=1e30)
    bundle = tmp_path / "run" / "failures" / f"step-{error.value.step:08d}"
    told = command("replay", str(bundle))
    assert told.code == 0, told.err
    assert told.out.startswith(
        f"step {error.value.step} failed in the run: {error.value.what}\nhere: {error.value.what}\n"
    )
    assert "first layers that are not finite:\n  encoder.backbone." in told.out
    assert told.out.endswith("\nthe same as in the run\n")

    facts = json.loads((bundle / "step.json").read_text())
    (bundle / "step.json").write_text(json.dumps(facts | {"what": "the loss is inf"}))
    told = command("replay", str(bundle))
    assert told.code == 1
    assert told.out.endswith("not the same as in the run\n")

    elsewhere = {"torch": "2\x1b[31m"}
    facts |= {"what": "\x1b]0;a title\x07", "environment": facts["environment"] | elsewhere}
    (bundle / "step.json").write_text(json.dumps(facts))
    told = command("replay", str(bundle))
    assert told.code == 1, told.err
    assert r"failed in the run: \x1b]0;a title\x07" in told.out
    assert r"2\x1b[31m" in told.out
    assert "\x1b" not in told.out + told.err


def test_what_is_no_bundle_is_told(command: Command, tmp_path: Path) -> None:
    told = command("replay", str(tmp_path))
    assert told.code == 2
    assert "is no replay bundle: it has no step.json" in told.err
