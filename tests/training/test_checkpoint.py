"""A checkpoint brings back everything, and damage to the newest costs no more than the steps since the one before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from ssole.config import ConfigError, OptimConfig
from ssole.training import checkpoint
from ssole.training.checkpoint import (
    Progress,
    Snapshot,
    checkpoint_steps,
    copies,
    flat_copies,
    load_checkpoint,
    newest_weights,
    require_space,
    snapshot,
    write_checkpoint,
)
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
        write_checkpoint(run, snapshot(model, optimizer)(), Progress(step=step, images=9, seconds=float(step)))


def load(run: Run) -> tuple[int, float]:
    """The step that was loaded, by what is said of it and by the weights."""
    model = encoder(1)
    progress = load_checkpoint(run, model, create_optimizer(model, OptimConfig()))
    assert progress is not None
    return progress.step, float(model["encoder"][0].bias.detach()[0])  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not tell what is mapped")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_that_was_loaded_is_not_held_since_windows_removes_no_mapped_file(run: Run, name: str) -> None:
    write_checkpoint(run, snapshot(*trained(name))(), Progress(step=3, images=17, seconds=1.25))
    modules, optimizer = trained(name, steps=0)
    load_checkpoint(run, modules, optimizer)
    assert str(run.checkpoints) not in Path("/proc/self/maps").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_buffers_and_optimizer_come_back_in_value_type_and_memory_order(run: Run, name: str) -> None:
    model, optimizer = trained(name)
    progress = Progress(step=3, images=17, seconds=1.25)
    write_checkpoint(run, snapshot(model, optimizer)(), progress)
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
            assert torch.equal(value, after[index][key]), (index, key)
            assert (value.dtype, value.stride()) == (after[index][key].dtype, after[index][key].stride())


def test_a_run_without_checkpoints(run: Run) -> None:
    model = encoder(0)
    with pytest.raises(ConfigError, match=r"no checkpoint in .* can be read: start anew in another folder"):
        load_checkpoint(run, model, create_optimizer(model, OptimConfig()))
    assert newest_weights(run) is None


@pytest.mark.parametrize(
    ("saved", "kept"),
    [((5, 10, 12), [10, 12]), ((5, 12, 13), [5, 13]), ((5, 10, 12, 13, 14), [10, 14]), ((2, 3), [2, 3])],
)
def test_the_newest_regular_one_is_kept_beside_those_of_interruptions(
    run: Run, saved: tuple[int, ...], kept: list[int]
) -> None:
    model, optimizer = trained("sgd")
    for step in saved:
        done = Progress(step=step, images=9, seconds=0.0)
        write_checkpoint(run, snapshot(model, optimizer)(), done, is_regular=lambda step: step % 5 == 0)
    assert checkpoint_steps(run) == kept


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


def other_step_in_json(run: Run) -> None:
    """A checkpoint of an earlier version, without checksums, that claims to be complete."""
    (run.checkpoints / "step-00000006.json").write_text(json.dumps({"step": 10**6, "images": 9, "seconds": 1.0}))


def deep_json(run: Run) -> None:
    (run.checkpoints / "step-00000006.json").write_text("[" * 10**5)


def list_in_json(run: Run) -> None:
    (run.checkpoints / "step-00000006.json").write_text("[1, 2]")


def weights_of_another_network(run: Run) -> None:
    whole = run.checkpoints / "step-00000006.safetensors"
    save_file({"encoder.0.weight": torch.zeros(3)}, whole)
    (run.checkpoints / "step-00000006.json").write_text(json.dumps({"step": 6, "images": 9, "seconds": 1.0}))


def pipe(run: Run) -> None:
    missing_tensors(run)
    os.mkfifo(run.checkpoints / "step-00000006.safetensors")


DAMAGE = [other_step_in_json, deep_json, list_in_json, weights_of_another_network, pipe]
DAMAGE += [truncated_tensors, empty_tensors, missing_tensors, truncated_json, incomplete_json]


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


def test_other_modules_are_asked_for_where_no_checkpoint_fits(run: Run) -> None:
    save(run, 6)
    model = encoder(1)
    model["loss"] = nn.PReLU()
    with pytest.warns(UserWarning, match="loss.weight"), pytest.raises(ConfigError, match="give the loss and backbone"):
        load_checkpoint(run, model, create_optimizer(model, OptimConfig()))


def test_state_that_is_no_tensor_is_named(run: Run) -> None:
    class Counting(nn.Identity):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 1}

    with pytest.raises(ConfigError, match=r"state loss\._extra_state is a dict, .* let get_extra_state return one"):
        require_space(run, nn.ModuleDict({"loss": Counting()}))


@pytest.mark.parametrize("lost", ["checksum", "tensors"])
def test_weights_whose_checksum_was_lost_are_damaged(run: Run, lost: str) -> None:
    save(run, 6)
    path = run.checkpoints / "step-00000006.json"
    values = json.loads(path.read_text())
    del values[lost]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"newest checkpoint .* cannot be read: .* is not what was written"):
        newest_weights(run)


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_any_changed_byte_is_found(run: Run, suffix: str) -> None:
    save(run, 4, 6)
    path = run.checkpoints / f"step-00000006.{suffix}"
    data = path.read_bytes()
    places = range(len(data)) if suffix == "json" else range(0, len(data), len(data) // 100)
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.warns(UserWarning, match="the checkpoint of step 6 is damaged and left out: "):
            assert load(run) == (4, 4.0), place
    path.write_bytes(data)
    assert load(run) == (6, 6.0)


def test_a_checkpoint_of_the_first_version_is_read(run: Run) -> None:
    save(run, 6)
    (run.checkpoints / "step-00000006.json").write_text(json.dumps({"step": 6, "images": 9, "seconds": 1.0}))
    assert load(run) == (6, 6.0)


def test_a_run_that_has_gone_further_than_it_is_to_is_told(run: Run) -> None:
    save(run, 4, 6)
    model = encoder(1)
    with pytest.raises(ConfigError, match=r"the run has done 6 steps, and config\.yaml now ends it after 5: undo that"):
        load_checkpoint(run, model, create_optimizer(model, OptimConfig()), last_step=5)
    assert load_checkpoint(run, model, create_optimizer(model, OptimConfig()), last_step=6).step == 6


def test_other_files_in_the_folder_are_left_alone(run: Run) -> None:
    stray = [
        run.checkpoints / name for name in ("step-7 (1).json", "step-00000007 (1).json", "step-x.json", "notes.txt")
    ]
    for path in stray:
        path.write_text("of a sync client")
    save(run, 4, 6, 8)
    assert checkpoint_steps(run) == [6, 8]
    assert load(run) == (8, 8.0)
    assert all(path.exists() for path in stray)


def test_a_disk_without_room_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("ssole.training.checkpoint.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"need at least .* more, and the disk has 9\.8 KiB free: make room"):
        tiny.start(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


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
    (run.path / "failures" / "step-00000012").mkdir(parents=True)
    for name in ("checkpoints/.step-00000011.safetensors", ".metrics.jsonl", "failures/step-00000012/.step.json"):
        left = run.path / f"{name}.ab.ssole-tmp"
        left.write_text("half")
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "lo')  # cut by the kill
    tiny.resume(run)
    assert [path.name for path in run.path.rglob(".*")] == [".lock"]
    assert [row["step"] for row in run.metrics] == list(range(1, 13))


def test_one_copy_of_all_bytes_gives_every_tensor_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "flag": torch.tensor(True),
        "half": torch.randn(3).bfloat16(),
        "filters": torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "bytes": torch.arange(5, dtype=torch.uint8),
    }
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "cpu", None)  # nothing travels to the host yet
        taken = [flat_copies(tensors), copies(tensors)]
    for found in (one() for one in taken):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].is_contiguous()
            assert torch.equal(found[name], tensor)
        save_file(found, tmp_path / "copies.safetensors")
        assert all(
            torch.equal(found[name], tensor) for name, tensor in load_file(tmp_path / "copies.safetensors").items()
        )
    tensors["filters"].zero_()
    assert all(one()["filters"].any() for one in taken)  # of the time when they were taken


def test_copies_without_room_on_the_gpu_travel_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    class OnGPU(torch.Tensor):
        device = torch.device("cuda")

        def cpu(self) -> torch.Tensor:
            return self.as_subclass(torch.Tensor)

    monkeypatch.setattr(checkpoint, "flat_copies", refuse)
    filters = torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    found = copies({"there": filters.as_subclass(OnGPU), "here": torch.ones(3)})()
    assert torch.equal(found["there"], filters)
    assert found["there"].is_contiguous()
    assert found["here"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("free", "stays"), [(4 * 80 + 4, True), (4 * 80, False)])
def test_copies_stay_on_a_gpu_only_if_there_is_much_room(
    monkeypatch: pytest.MonkeyPatch, free: int, stays: bool
) -> None:
    travelled: list[str] = []

    def flat(tensors: Mapping[str, torch.Tensor]) -> Snapshot:
        def on_host() -> dict[str, torch.Tensor]:
            travelled.extend(tensors)
            return {name: torch.zeros(20) for name in tensors}

        return on_host

    monkeypatch.setattr(checkpoint, "flat_copies", flat)
    monkeypatch.setattr(checkpoint, "free_memory", lambda device: free)
    taken = copies({"there": torch.empty(20, device="meta"), "here": torch.ones(3)})
    assert travelled == ([] if stays else ["there"])
    assert taken().keys() == {"there", "here"}
    assert taken()["here"].tolist() == [1, 1, 1]
