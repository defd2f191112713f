"""Estimate of a run: its measurements, how they are extrapolated, and that it changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from ssole.config import ConfigError, PretrainConfig, load
from ssole.data.arrays import ArraySource
from ssole.doctor import estimate as module
from ssole.doctor.contents import Contents, contents
from ssole.doctor.estimate import estimate
from ssole.doctor.scan import Sample, draw_sample, scan
from ssole.errors import DataError
from ssole.training import dry_run
from ssole.training.dry_run import DryRun
from ssole.training.step import Learner

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> tuple[Sample, Contents]:
    torch.set_num_threads(1)
    source = ArraySource(tiny.images())
    images = scan(source, range(len(source)), progress=False).readable
    return draw_sample(source, images, shrink_to=100), contents(images)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIAL_SECONDS", 0.5)


def test_a_small_recipe_is_measured_whole(measured: tuple[Sample, Contents], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRIAL_SECONDS", 60.0)  # so that a busy machine does not keep the batch small
    monkeypatch.setattr(dry_run, "MAX_TRIAL_STEPS", 5)
    found = estimate(tiny.config(steps=50, batch_size=8), *measured, 22, CPU)
    assert (found.steps, found.batch_size, found.batch_measured, found.views) == (50, 8, 8, 2)
    assert (found.device, found.precision) == ("cpu", "float32")
    assert found.steps_measured == 5
    assert 0 < found.step_seconds.low <= found.step_seconds.median <= found.step_seconds.high
    assert found.seconds.median == pytest.approx(50 * found.step_seconds.median + found.decode_seconds)
    assert found.decode_seconds == pytest.approx(22 / measured[0].decode.value)
    assert 50 << 20 < found.memory_bytes < found.memory_available


class Known(DryRun):
    """Dry run with steps of known cost: 10 ms an image and 1 s for the optimizer, 1 MB an image beside 100 MB."""

    def __init__(self, config: PretrainConfig, *_: Any, **__: Any) -> None:
        self._saved, self._used, self._batch_size, self._augment = {}, {}, config.batch_size, config.augment
        self.learner = SimpleNamespace(modules=torch.nn.Linear(2, 3))  # type: ignore[assignment]
        self.compile_seconds = self._now = 0.0

    def step(self, batch: int) -> tuple[float, float]:
        self._now += 0.01 * batch + 1
        self._saved[batch], self._used[batch] = 10**6 * batch, 10**8 + 10**6 * batch
        return 0.01 * batch, 1.0

    @property
    def _seconds_left(self) -> float:
        return module.TRIAL_SECONDS - self._now


def test_the_generator_stays_as_it_was(measured: tuple[Sample, Contents]) -> None:
    state = torch.get_rng_state()
    estimate(tiny.config(), *measured, 22, CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_time_of_a_whole_step_is_scaled_without_the_optimizer(
    measured: tuple[Sample, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DryRun", Known)
    monkeypatch.setattr(module, "total_memory", lambda: 10**9)
    found = estimate(tiny.config(batch_size=1000, steps=10), *measured, 5000, CPU)
    assert found.batch_measured == 4  # for half a second of time
    assert found.step_seconds.median == pytest.approx(10 + 1)
    assert found.seconds.median == pytest.approx(10 * 11 + 5000 / measured[0].decode.value)
    images = 5000 * 3 * 12 * 12  # which are held in memory
    assert found.memory_bytes == pytest.approx(1.04e8 + 1.15 * 996e6 + images, rel=1e-6)
    assert found.memory_available == 10**9
    assert found.disk_bytes == 9 * 4 * (2 * 3 + 1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch's own, while compiling
def test_a_run_that_would_be_compiled_is_measured_compiled(
    measured: tuple[Sample, Contents], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved bytes are counted before. The compiler is not under test, so a quick one takes its place."""
    monkeypatch.setattr(module, "TRIAL_SECONDS", 60.0)
    monkeypatch.setattr(dry_run, "MAX_TRIAL_STEPS", 5)
    compiled = []

    def compile_eagerly(learner: Learner) -> bool:
        compiled.append(learner.encoder)
        learner.encoder.compile(backend="eager")
        return True

    monkeypatch.setattr(Learner, "compile", compile_eagerly)
    found = estimate(tiny.config(steps=50, compile="always"), *measured, 22, CPU)
    assert len(compiled) == 1
    assert found.compile_seconds > 0
    assert found.steps_measured == 5
    whole = 50 * found.step_seconds.median + found.decode_seconds + found.compile_seconds
    assert found.seconds.median == pytest.approx(whole)
    assert found.memory_bytes > 50 << 20
    assert estimate(tiny.config(steps=50), *measured, 22, CPU).compile_seconds == 0


def test_few_images_are_refused_as_training_refuses_them(measured: tuple[Sample, Contents]) -> None:
    with pytest.raises(DataError, match="a batch of 64 images was asked for and the data hold 22"):
        estimate(tiny.config(batch_size=64), *measured, 22, CPU)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__backbone_args": {"no_such_argument": 1}}, "resnet18 does not run with the recipe's settings"),
        ({"model__backbone": "vit_tiny_patch16_224", "model__backbone_args": {}}, "does not run"),
        ({"model__backbone": "resnot"}, "timm has no model 'resnot'"),
    ],
)
def test_a_network_that_does_not_run_is_refused(
    measured: tuple[Sample, Contents], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        estimate(tiny.config(**settings), *measured, 22, CPU)


@pytest.mark.parametrize("name", ["digits-m", "cifar10-cpu"])
def test_recipes_for_a_cpu_can_be_tried(name: str, measured: tuple[Sample, Contents]) -> None:
    torch.set_num_threads(2)
    config = load(name, batch_size=4, device="cpu", compile="never")
    assert np.isfinite(estimate(config, *measured, 22, CPU).seconds.high)


def test_a_budget_is_filled(measured: tuple[Sample, Contents], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DryRun", Known)
    found = estimate(tiny.config(batch_size=1000, budget="20m"), *measured, 5000, CPU)
    assert found.step_seconds.median == pytest.approx(10 + 1)
    assert 1200 - 11 <= found.seconds.median <= 1200
    assert found.steps == int((1200 - 5000 / measured[0].decode.value) / 11)


def test_a_loss_that_needs_labels(measured: tuple[Sample, Contents]) -> None:
    config = tiny.config(loss__name="supervised")
    assert estimate(config, *measured, 22, CPU, labels=np.arange(22) % 3).steps_measured > 0
    with pytest.raises(DataError, match="needs labels of at least two classes"):
        estimate(config, *measured, 22, CPU)
