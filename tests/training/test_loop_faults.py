"""Every write, rename, flush and removal in a run folder fails once: what was there is usable, and nothing is lost.

The operations of a run without faults are counted first. Then each of them fails in a run of its own, as on a full disk
or one that went read-only, and the run is resumed: its weights and metrics are those of the run without faults.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tiny
from disk import FULL, READ_ONLY, Disk
from ssole.config import ConfigError
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.run import Run

SETTINGS: dict[str, Any] = {"steps": 6, "checkpoint_every": 3, "log_every": 2}  # checkpoints of 0, 3, 5, 6


def losses(run: Run) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in run.metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """A run without faults, and its operations."""
    folder = tmp_path_factory.mktemp("whole")
    disk = Disk(folder)
    with disk.mounted():
        run = tiny.start(folder / "run", **SETTINGS)
    return run, disk.done


def test_the_operations_that_fail_below_are_all_there(whole: tuple[Run, list[str]]) -> None:
    _, done = whole
    kinds = {line.partition(" ")[0] for line in done}
    assert kinds == {"open", "write", "flush", "rename", "remove"}
    names = {Path(line.partition(" ")[2]).name.strip(".").partition(".")[0] for line in done}
    wanted = {"config", "environment", "images", "metrics", "backbone", "checkpoints", "run", "step-00000006"}
    assert wanted <= names
    assert len(done) > 60


@pytest.mark.slow
@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("part", range(10))
def test_a_run_goes_on_after_any_fault(whole: tuple[Run, list[str]], tmp_path: Path, part: int, error: OSError) -> None:
    expected, done = whole
    for number in range(part, len(done), 20 if error is READ_ONLY else 10):
        out = tmp_path / str(number) / "run"
        out.parent.mkdir()
        disk = Disk(out.parent, fails=number, error=error)
        with disk.mounted(), pytest.raises((OSError, ConfigError)) as told:
            tiny.start(out, **SETTINGS)
        assert error.strerror in str(told.value), done[number]
        if not (out / "config.yaml").exists():  # it failed before the first step, and left nothing
            assert not out.exists() or error is READ_ONLY
            shutil.rmtree(out, ignore_errors=True)
            run = tiny.start(out, **SETTINGS)
        else:
            if not isinstance(told.value, ConfigError):
                begun = (out / "metrics.jsonl").exists()
                words = f"go on with: ssole pretrain --resume {out}" if begun else "Once this is fixed, start it again"
                assert words in str(told.value), done[number]
            assert not Run(out).finished or done[number] == "flush run"
            steps = checkpoint_steps(Run(out))
            run = tiny.resume(out)
            assert not steps or steps[-1] >= saved_before(done[:number]), done[number]
        assert run.backbone_path.read_bytes() == expected.backbone_path.read_bytes(), done[number]
        assert losses(run) == losses(expected), done[number]
        assert not list(out.rglob("*.ssole-tmp")), done[number]


@pytest.mark.parametrize("name", ["step-00000000.safetensors", "metrics.jsonl"])
def test_where_no_run_is_left_the_advice_is_to_start_again(
    whole: tuple[Run, list[str]], tmp_path: Path, name: str
) -> None:
    disk = Disk(tmp_path, fails=next(number for number, line in enumerate(whole[1]) if name in line))
    words = rf"could not be written to {tmp_path}/run \(No space left on device\)\. Once this is fixed, start it again$"
    with disk.mounted(), pytest.raises(OSError, match=words):
        tiny.start(tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_when_a_run_goes_on_names_file_and_command(tmp_path: Path) -> None:
    with pytest.raises(PowerCut):
        tiny.start(tmp_path / "run", **SETTINGS, evaluators={5: power_cut})
    words = r"metrics\.jsonl could not be written to .*Earlier files are untouched\. .*: ssole pretrain --resume "
    with Disk(tmp_path, fails=0).mounted(), pytest.raises(OSError, match=words):  # leaving out rows after step 3
        tiny.resume(tmp_path / "run")


def saved_before(done: list[str]) -> int:
    """Step of the newest checkpoint whose JSON was renamed into place by these operations."""
    renamed = [line for line in done if line.startswith("rename") and ".json." in line and "step-" in line]
    return int(renamed[-1].partition("step-")[2][:8]) if renamed else 0


class PowerCut(Exception):
    pass


def power_cut(backbone: nn.Module) -> dict[str, float]:
    raise PowerCut


def test_metrics_up_to_the_checkpoint_survive_a_power_cut(
    whole: tuple[Run, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines that were not flushed to the disk are lost; none of them may be of a step before the checkpoint."""
    path, flushed, fsync = tmp_path / "run" / "metrics.jsonl", [0], os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        if os.readlink(f"/proc/self/fd/{handle}") == str(path):
            flushed[0] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", noted)
    with pytest.raises(PowerCut):
        tiny.start(tmp_path / "run", **SETTINGS | {"checkpoint_every": 4}, evaluators={5: power_cut})
    assert checkpoint_steps(Run(tmp_path / "run")) == [0, 4]
    assert 0 < flushed[0] <= path.stat().st_size
    os.truncate(path, flushed[0])
    run = tiny.resume(tmp_path / "run")
    assert losses(run) == losses(whole[0])


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    def remove(backbone: nn.Module) -> dict[str, float]:
        shutil.rmtree(tmp_path / "run")
        return {}

    with pytest.raises(OSError, match=r"the checkpoint of step 3 could not be written to .*run \(No such file or dir"):
        tiny.start(tmp_path / "run", **SETTINGS, evaluators={3: remove})
