"""A checkpoint brings back everything, and damage to the newest costs no more than the steps since the one before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from ssole.config import ConfigError, OptimConfig
from ssole.training.checkpoint import Progress, checkpoint_steps, load_checkpoint, save_checkpoint
from ssole.training.optim import OPTIMIZERS, create_optimizer
from ssole.training.run import Run, create_run


def encoder(seed: int) -> nn.ModuleDict:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    return nn.ModuleDict({"encoder": model.to(memory_format=torch.channels_last)})  # type: ignore[call-overload]


def trained(optimizer_name: str, steps: int = 3) -> tuple[nn.ModuleDict, torch.optim.Optimizer]:
    modules = encoder(0)
    model = modules["encoder"]
    optimizer = create_optimizer(model, OptimConfig(name=optimizer_name, lr=0.01))  # type: ignore[arg-type]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return modules, optimizer


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path / "run", tiny.config())


def save(run: Run, *steps: int) -> None:
    model, optimizer = trained("sgd")
    for step in steps:
        with torch.no_grad():
            model["encoder"][0].bias.fill_(step)  # type: ignore[index]
        save_checkpoint(run, model, optimizer, Progress(step=step, images=9, seconds=float(step)))


def load(run: Run) -> tuple[int, float]:
    """The step that was loaded, by what is said of it and by the weights."""
    model = encoder(1)
    progress = load_checkpoint(run, model, create_optimizer(model, OptimConfig()))
    assert progress is not None
    return progress.step, float(model["encoder"][0].bias.detach()[0])  # type: ignore[index]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_buffers_and_optimizer_come_back_in_value_type_and_memory_order(run: Run, name: str) -> None:
    model, optimizer = trained(name)
    progress = Progress(step=3, images=17, seconds=1.25)
    save_checkpoint(run, model, optimizer, progress)
    other = encoder(1)
    fresh = create_optimizer(other, OptimConfig(name=name, lr=0.01))  # type: ignore[arg-type]
    assert load_checkpoint(run, other, fresh) == progress
    for (key, a), b in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    before, after = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert before.keys() == after.keys()
    assert before  # there is something to compare
    for index, state in before.items():
        assert state.keys() == after[index].keys()
        for key, value in state.items():
            if isinstance(value, bool):
                assert after[index][key] is value, (index, key)
                continue
            assert torch.equal(value, after[index][key]), (index, key)
            assert (value.dtype, value.stride()) == (after[index][key].dtype, after[index][key].stride())


def test_a_run_without_checkpoints(run: Run) -> None:
    model = encoder(0)
    assert load_checkpoint(run, model, create_optimizer(model, OptimConfig())) is None


def test_the_newest_two_are_kept(run: Run) -> None:
    save(run, 1, 2, 3, 10)
    assert checkpoint_steps(run) == [3, 10]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "step-00000003.json",
        "step-00000003.safetensors",
        "step-00000010.json",
        "step-00000010.safetensors",
    ]
    assert load(run) == (10, 10.0)


def tensors_without_json(run: Run) -> None:
    (run.checkpoints / "step-00000006.json").unlink()


def temporary_file_of_a_killed_writer(run: Run) -> None:
    tensors_without_json(run)
    whole = run.checkpoints / "step-00000006.safetensors"
    whole.rename(run.checkpoints / ".step-00000006.safetensors.x1y2.ssole-tmp")


@pytest.mark.parametrize("kill", [tensors_without_json, temporary_file_of_a_killed_writer])
def test_a_kill_while_saving_leaves_the_checkpoint_before(run: Run, kill: Callable[[Run], None]) -> None:
    save(run, 4, 6)
    kill(run)
    assert checkpoint_steps(run) == [4]
    assert load(run) == (4, 4.0)
    save(run, 7)
    assert checkpoint_steps(run) == [4, 7]
    assert len(list(run.checkpoints.glob("step-*"))) == 4  # the half of step 6 is gone


def truncated_tensors(run: Run) -> None:
    path = run.checkpoints / "step-00000006.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def empty_tensors(run: Run) -> None:
    (run.checkpoints / "step-00000006.safetensors").write_bytes(b"")


def missing_tensors(run: Run) -> None:
    (run.checkpoints / "step-00000006.safetensors").unlink()


def truncated_json(run: Run) -> None:
    (run.checkpoints / "step-00000006.json").write_text('{"step": 6, "im')


def incomplete_json(run: Run) -> None:
    (run.checkpoints / "step-00000006.json").write_text(json.dumps({"step": 6}))


DAMAGE = [truncated_tensors, empty_tensors, missing_tensors, truncated_json, incomplete_json]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(run: Run, damage: Callable[[Run], None]) -> None:
    save(run, 4, 6)
    damage(run)
    with pytest.warns(UserWarning, match="the checkpoint of step 6 is damaged and left out: "):
        assert load(run) == (4, 4.0)
    save(run, 5)  # going on from 4
    assert checkpoint_steps(run) == [4, 5]
    assert load(run) == (5, 5.0)
    assert len(list(run.checkpoints.iterdir())) == 4


def test_when_all_are_damaged_nothing_starts_anew_silently(run: Run) -> None:
    save(run, 6)
    truncated_tensors(run)
    with (
        pytest.warns(UserWarning, match="step 6 is damaged"),
        pytest.raises(ConfigError, match="no checkpoint in"),
    ):
        load(run)


def test_a_run_whose_newest_checkpoint_was_damaged_ends_the_same(tmp_path: Path) -> None:
    whole = tiny.start(tmp_path / "whole")
    expected, rows = whole.backbone_path.read_bytes(), [row["loss"] for row in whole.metrics]
    assert checkpoint_steps(whole) == [10, 12]
    whole.backbone_path.unlink()
    damaged = whole.checkpoints / "step-00000012.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="step 12 is damaged"):
        tiny.resume(whole)
    assert whole.backbone_path.read_bytes() == expected
    assert [row["loss"] for row in whole.metrics] == rows


def test_leftovers_are_gone_after_resuming(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run")
    run.backbone_path.unlink()
    for left in (run.checkpoints / ".step-00000011.safetensors.ab.ssole-tmp", run.path / ".metrics.jsonl.cd.ssole-tmp"):
        left.write_text("half")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "lo')  # cut by the kill
    tiny.resume(run)
    assert [path.name for path in run.path.rglob(".*")] == [".lock"]
    assert [row["step"] for row in run.metrics] == list(range(1, 13))
