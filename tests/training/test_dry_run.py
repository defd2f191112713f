"""Trials: what their steps measure, how their batch grows, and that they change nothing."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch
from torch import nn

import tiny
from ssole.data.arrays import ArraySource
from ssole.data.store import ImageStore
from ssole.runtime import forget_peak_memory, peak_memory
from ssole.training.dry_run import DryRun, step_seconds
from ssole.training.needs import saved_bytes

CPU = torch.device("cpu")


def draw(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(tiny.images(size)).permute(0, 3, 1, 2).contiguous(), torch.arange(size)


def test_bytes_for_the_backward_pass_are_counted_once_each() -> None:
    first, second = nn.Linear(10, 20, bias=False), nn.Linear(20, 5, bias=False)
    x = torch.zeros(7, 10)
    with saved_bytes(nn.ModuleList([first, second])) as sizes:
        second(first(x).relu()).sum().backward()
    # the input, and the output of relu, which relu and the second layer share; no weights
    assert sum(sizes.values()) == 4 * (7 * 10 + 7 * 20)


def test_a_trial_leaves_the_weights_as_they_were() -> None:
    trial = DryRun(tiny.config(optim__lr=5.0), draw, CPU)
    before = [p.clone() for p in trial.learner.encoder.parameters()]
    trial.repeat(4)
    assert all(torch.equal(p, q) for p, q in zip(trial.learner.encoder.parameters(), before, strict=True))


def test_memory_that_was_freed_before_a_trial_is_not_counted() -> None:
    if not forget_peak_memory(CPU):
        pytest.skip("the system does not tell the peak")
    torch.ones(1 << 30, dtype=torch.uint8)
    before = peak_memory(CPU)
    trial = DryRun(tiny.config(), draw, CPU)
    trial.step(4)
    assert before is not None
    assert 0 < trial.memory(4) < before - (800 << 20)


def test_a_learner_is_freed_with_its_trial() -> None:
    trial = DryRun(tiny.config(), draw, CPU)
    trial.step(4)
    learner = weakref.ref(trial.learner)
    gc.collect()
    gc.disable()
    try:
        del trial
        assert learner() is None
    finally:
        gc.enable()


def test_the_optimizer_is_timed_apart_from_the_rest_of_the_step() -> None:
    trial = DryRun(tiny.config(), draw, CPU)
    trial.learner.optimizer.register_step_post_hook(lambda *_: time.sleep(0.3))
    begin = time.perf_counter()
    compute, update = trial.step(4)
    assert update >= 0.3
    assert 0 < compute <= time.perf_counter() - begin - update
    assert trial.learner.steps_done == 1


class Known(DryRun):
    """Dry run with steps of known cost: 10 ms an image and 1 s for the optimizer, 1 MB an image beside 100 MB."""

    batches: list[int]

    def __init__(self, limit: float) -> None:
        self._saved, self._used, self.batches = {}, {}, []
        self._limit, self._now = limit, 0.0

    def step(self, batch: int) -> tuple[float, float]:
        self.batches.append(batch)
        self._now += 0.01 * batch + 1
        self._saved[batch], self._used[batch] = 10**6 * batch, 10**8 + 10**6 * batch
        return 0.01 * batch, 1.0

    @property
    def _seconds_left(self) -> float:
        return self._limit - self._now


def test_a_batch_grows_to_the_whole_where_time_and_memory_allow() -> None:
    trial = Known(1000)
    assert trial.grow(100, most_bytes=10**12) == 100
    assert trial.batches == [4, 4, 8, 8, 16, 16, 32, 32, 64, 64]
    assert Known(1000).grow(3, most_bytes=0) == 3


def test_a_batch_stops_growing_for_time() -> None:
    # a step of 32 takes 1.32 s, four of them 5.3; growing to 16 has taken 2 * (1.04 + 1.08 + 1.16) = 6.6 by then
    assert Known(12).grow(1000, most_bytes=10**12) == 32
    assert Known(11).grow(1000, most_bytes=10**12) == 16


def test_a_batch_stops_growing_for_memory() -> None:
    trial = Known(1000)
    assert trial.grow(1000, most_bytes=1.6e8) == 32  # 64 would take 100 + 32 + 1.15 * 32 MB and may not
    assert trial.memory(64) == pytest.approx(1.32e8 + 1.15 * 32e6)
    assert trial.memory(32) == pytest.approx(1.32e8)


def test_the_mean_step_of_a_run_whose_first_part_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = DryRun(tiny.config(augment__early_size=4, augment__early_share=0.25), draw, CPU, seconds=0)
    monkeypatch.setattr(trial, "step", lambda batch, early=False: (0.1 * batch, 2.0) if early else (0.5 * batch, 2.0))
    assert trial.repeat(2) == pytest.approx([0.4 * 4 + 2.0] * 3)


def test_an_early_step_is_taken_and_its_memory_left_out() -> None:
    trial = DryRun(tiny.config(augment__early_size=4), draw, CPU)
    trial.step(4)
    before = dict(trial._saved)
    trial.step(4, early=True)
    assert trial._saved == before
    assert trial.learner.batch is not None
    assert trial.learner.batch.early


def test_the_median_step_of_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([9.0, 1.0, 3.0, 2.0])  # the first one warms up
    monkeypatch.setattr(DryRun, "step", lambda self, batch: (next(taken), 0.5))
    store = ImageStore(ArraySource(tiny.images(3)))  # fewer than a batch
    state = torch.get_rng_state()
    assert step_seconds(tiny.config(), store, CPU, limit=0) == 2.5
    assert torch.equal(torch.get_rng_state(), state)
