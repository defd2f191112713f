"""Runs on several gloo processes, in float64: they are those of one process, whatever happens on the way."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ranks
import tiny
from ssole import distributed
from ssole.config import ConfigError
from ssole.errors import DataError
from ssole.losses import SSOLELoss
from ssole.training import pace
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.feed import make_plan
from ssole.training.run import Run, create_run
from ssole.training.step import Learner
from ssole.training.stopping import Interrupted

pytestmark = pytest.mark.slow

STEPS, STOP, FAILURE = 20, 7, 8
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 8,
    "checkpoint_every": 5,
    "process_timeout": 60.0,
    "augment__crops": [{"count": 2, "size": 8}, {"count": 1, "size": 6}],
    "augment__early_size": 6,
    "model__stem_init": "whitening",
    "model__projector_norm": "batch",
    "model__projector_layers": 2,
}


class Centred(nn.Module):
    """A loss of one's own that knows nothing of processes: it compares all images, and keeps a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.ssole = SSOLELoss()  # which gathers embeddings by itself where there are several processes
        self.centre: torch.Tensor
        self.register_buffer("centre", torch.zeros(8, dtype=torch.float64))

    def forward(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        u = nn.functional.normalize(z, dim=-1) - self.centre
        self.centre.lerp_(u.detach().mean((0, 1)), 0.1)
        spread = (u[:, 0] @ u[:, 0].T).square().mean()
        return {"loss": self.ssole(z) + spread, "spread": spread}


def train(out: Path, **overrides: Any) -> Run:
    with ranks.double():
        return tiny.start(out, **{**SETTINGS, **overrides})


def stop(run: Path) -> None:
    """Train until one process of several gets SIGTERM in the middle of an epoch."""

    def step(self: Learner, *arguments: Any, **options: Any) -> Any:
        if self.steps_done == STOP - 1 and distributed.rank() == distributed.world_size() - 1:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *arguments, **options)

    plain = Learner.step
    with mock.patch.object(Learner, "step", step), pytest.raises(Interrupted, match=f"after step {STOP};"):
        train(run)


def resume(run: Path) -> None:
    with ranks.double():
        tiny.resume(run)


def fail_once(run: Path) -> None:
    """Train with a loss that is NaN in one step, on the last process alone."""
    failed: list[int] = []

    def loss_terms(self: Learner, *arguments: Any) -> Any:
        terms = plain(self, *arguments)
        last = distributed.rank() == distributed.world_size() - 1
        if self.steps_done == FAILURE - 1 and not failed:
            failed.append(1)
            return {**terms, "loss": terms["loss"] * math.nan} if last else terms
        return terms

    plain = Learner.loss_terms
    with mock.patch.object(Learner, "loss_terms", loss_terms):
        train(run)


def assert_same(run: Path, expected: Path) -> None:
    a, b = (Run(path).metrics for path in (run, expected))
    names = ("step", "epoch", "loss", "low_rank", "high_rank", "lr", "guardian", "rate", "failed")
    for ours, theirs in zip(a, b, strict=True):
        assert [ours.get(name) for name in names] == pytest.approx([theirs.get(name) for name in names], abs=1e-9)
        # a root of an eigenvalue: 1e-16 beside zero is 1e-8
        assert ours.get("effective_rank") == pytest.approx(theirs.get("effective_rank"), abs=1e-6)
    mine, others = (load_file(Run(path).backbone_path) for path in (run, expected))
    for name in others:
        torch.testing.assert_close(mine[name], others[name], rtol=1e-9, atol=1e-9)


def keep_pace(folder: Path) -> None:
    """A budget by clocks that differ, as if one process were far slower than the other."""
    config = replace(tiny.config(), budget="100s", steps=50)
    with distributed.processes(60):
        run = Run(Path(distributed.on_rank_0(lambda: str(create_run(folder, config).path))))
        seconds = iter(range(0, 10000, 1 + 5 * distributed.rank()))
        with mock.patch.object(pace, "monotonic", side_effect=map(float, seconds)):
            clock = pace.Pace(run, make_plan(config, tiny.IMAGES), config)
            clock.start(0, 0.0)
            step = 0
            while not clock.advance(step):
                step += 1
        ends = distributed.collect((step, clock.total))
    assert ends[0] == ends[1] != [49, 50]


def refuse(folder: Path) -> None:
    kind = ConfigError if os.environ["RANK"] == "0" else distributed.ElsewhereError
    with pytest.raises(kind, match="a batch of 9 images cannot be divided equally among 2 processes"):
        train(folder / "odd", batch_size=9)
    with pytest.raises(kind, match="not empty"):
        train(folder)  # holds other files
    one = {4: lambda backbone: {"x": 1.0}} if os.environ["RANK"] == "0" else None
    with pytest.raises(ConfigError, match=r"given evaluators of the steps \[4\], and another one of none"):
        train(folder / "evaluators", evaluators=one)


def find_too_many(folder: Path) -> None:
    """Train on images of which each process finds no more unreadable than may be, and both together do."""
    os.environ["SSOLE_CACHE"] = str(folder / "cache")
    photos = tiny.write_folder(folder / f"photos {os.environ['RANK']}", 64)
    for number in (1, 3, 5, 7):  # not among those that are decoded first
        next(photos.glob(f"*/{2 * number:03}.png")).write_bytes(b"damaged")
    settings = {"batch_size": 64, "max_unreadable": 3 / 64, "augment__mean": [0.5] * 3, "augment__std": [0.2] * 3}
    with pytest.raises(DataError, match=r"4 of the 64 images in .* cannot be read, and at most 3 may be"):
        train(folder / "too many", data=str(photos), **{**settings, "steps": 1})


def written(folder: Path) -> list[str]:
    """Files below a folder that this process opens to write, renames or removes from now on."""
    found = []

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
        if changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            name = str(arguments[0])
            found.extend([f"{event} {name}"] if name.startswith(str(folder)) else [])

    sys.addaudithook(note)
    return found


def with_two(folder: Path) -> None:
    by_this_process = written(folder)
    train(folder / "two")
    train(folder / "own loss on two", loss=Centred())
    assert bool(by_this_process) == (os.environ["RANK"] == "0"), by_this_process
    stop(folder / "stopped")
    fail_once(folder / "failed on two")
    keep_pace(folder / "pace")
    refuse(folder)
    assert bool(by_this_process) == (os.environ["RANK"] == "0"), by_this_process  # all of the above
    find_too_many(folder)


def with_four(folder: Path) -> None:
    train(folder / "four")
    resume(folder / "stopped on two, then four")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of all runs, made by few processes, because starting one takes longer than the tiny run."""
    folder = tmp_path_factory.mktemp("runs")
    train(folder / "one")
    train(folder / "own loss on one", loss=Centred())
    ranks.run(2, with_two, folder)
    for then in ("one", "four"):
        shutil.copytree(folder / "stopped", folder / f"stopped on two, then {then}")
    resume(folder / "stopped on two, then one")
    ranks.run(4, with_four, folder)
    return folder


@pytest.mark.parametrize("name", ["two", "four"])
def test_a_run_on_many_processes_is_that_on_one(runs: Path, name: str) -> None:
    assert_same(runs / name, runs / "one")
    assert Run(runs / name).config == Run(runs / "one").config
    assert sorted(path.name for path in (runs / name).iterdir()) == sorted(
        path.name for path in (runs / "one").iterdir()
    )


def test_a_loss_of_ones_own_is_that_of_all_images(runs: Path) -> None:
    assert_same(runs / "own loss on two", runs / "own loss on one")
    one, two = (Run(runs / f"own loss on {world}").metrics for world in ("one", "two"))
    assert [row["spread"] for row in two] == pytest.approx([row["spread"] for row in one], abs=1e-9)


@pytest.mark.parametrize("then", ["one", "four"])
def test_a_signal_to_one_process_stops_all_and_any_number_go_on(runs: Path, then: str) -> None:
    assert checkpoint_steps(Run(runs / "stopped"))[-1] == STOP
    assert_same(runs / f"stopped on two, then {then}", runs / "one")


def test_a_failure_on_one_process_takes_all_back(runs: Path) -> None:
    fail_once(runs / "failed on one")
    assert_same(runs / "failed on two", runs / "failed on one")
    name = f"failures/step-{FAILURE:08d}/tensors.safetensors"
    one, two = (load_file(runs / f"failed on {world}" / name) for world in ("one", "two"))
    assert one.keys() == two.keys()
    assert len(two["ids"]) == SETTINGS["batch_size"]
    assert torch.equal(one["ids"], two["ids"])
    assert torch.equal(one["images"], two["images"])


def test_a_refused_run_leaves_nothing(runs: Path) -> None:
    """All processes raise, and follow the clock of the first one: `with_two` asserts both."""
    assert not (runs / "odd").exists()
    assert not (runs / "evaluators").exists()
    assert not (runs / "config.yaml").exists()
    assert (runs / "pace" / "schedule.jsonl").is_file()


def test_unreadable_images_of_all_processes_are_counted_together(runs: Path) -> None:
    run = Run(runs / "too many")
    assert len(run.unreadable) == 4  # both processes raised: `with_two` asserts it
    assert checkpoint_steps(run)[-1] == 1
