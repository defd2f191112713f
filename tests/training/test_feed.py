"""Plan: each epoch is a permutation, and it can begin anywhere. Feed: batches in order, two ahead, waits measured."""

from __future__ import annotations

import time
from typing import cast

import pytest
import torch

import tiny
from listed import Listed, png
from ssole.config import PretrainConfig
from ssole.data.arrays import ArraySource
from ssole.data.store import AHEAD, ImageStore
from ssole.errors import DataError
from ssole.training.feed import Feed, Plan, StreamWaits, _resident, make_plan

CPU = torch.device("cpu")
PLAN = Plan(images=22, batch_size=4, seed=0, total=12)
SHORT = Plan(images=11, batch_size=3, seed=4, total=10)  # 3 steps an epoch


def test_an_epoch_shows_no_image_twice_and_another_epoch_another_order() -> None:
    steps = list(SHORT.batches(0))
    assert [step for step, _, _ in steps] == list(range(10))
    assert [epoch for _, epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    seen = [torch.cat([ids for _, of, ids in steps if of == epoch]).tolist() for epoch in range(3)]
    for ids in seen:
        assert len(set(ids)) == 9
        assert set(ids) <= set(range(11))
    assert len({tuple(ids) for ids in seen}) == 3
    assert [step for step in range(10) if SHORT.ends_epoch(step)] == [2, 5, 8]


@pytest.mark.parametrize("start", [0, 2, 3, 7, 10])
def test_batches_from_the_middle_are_those_of_the_whole(start: int) -> None:
    whole = [(step, epoch, ids.tolist()) for step, epoch, ids in SHORT.batches(0)]
    assert [(step, epoch, ids.tolist()) for step, epoch, ids in SHORT.batches(start)] == whole[start:]


def test_every_image_comes_in_the_long_run() -> None:
    plan = Plan(images=11, batch_size=3, seed=4, total=3 * 20)
    assert {i for _, _, ids in plan.batches(0) for i in ids.tolist()} == set(range(11))


def test_length() -> None:
    assert make_plan(PretrainConfig(epochs=7, batch_size=4), 22).total == 7 * 5
    assert make_plan(PretrainConfig(epochs=7, steps=3, batch_size=4), 22).total == 3
    assert make_plan(tiny.config(), tiny.IMAGES).steps_per_epoch == tiny.STEPS_PER_EPOCH


@pytest.mark.parametrize(("images", "hint"), [(5, "--batch-size 5 or less"), (1, "give more images")])
def test_fewer_images_than_a_batch(images: int, hint: str) -> None:
    with pytest.raises(DataError, match=f"a batch of 8 .* hold {images}: .*{hint}"):
        make_plan(PretrainConfig(batch_size=8), images)


class SlowStore:
    """A store of the numbers of its images, that takes its time and notes what is asked of it."""

    images = None

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls = seconds, []

    def prefetch(self, ids: torch.Tensor) -> None:
        self.calls.append(("prefetch", ids.tolist()))

    def get(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls.append(("get", ids.tolist()))
        time.sleep(self.seconds)
        return ids.clone()

    def hint(self) -> str:
        return "be quick"


@pytest.mark.parametrize("start", [0, 3, 11, 12])
def test_batches_are_those_of_the_plan(start: int) -> None:
    expected = list(PLAN.batches(start))
    found = list(Feed(SlowStore(0.0), CPU).batches(PLAN, start))
    assert [batch[:2] for batch in found] == [batch[:2] for batch in expected]
    for (*_, ids, images), (*_, planned) in zip(found, expected, strict=True):
        assert torch.equal(ids, planned)
        assert torch.equal(images, planned)


def test_two_batches_are_prefetched_beyond_the_one_in_use() -> None:
    store = SlowStore(0.0)
    planned = [ids.tolist() for *_, ids in PLAN.batches(0)]
    for step, *_ in Feed(store, CPU).batches(PLAN, 0):
        asked = [ids for call, ids in store.calls if call == "prefetch"]
        assert asked == planned[: step + 1 + AHEAD]
        assert [ids for call, ids in store.calls if call == "get"] == planned[: step + 1]


def test_the_wait_is_measured_and_work_between_batches_is_not() -> None:
    feed = Feed(SlowStore(0.05), CPU)
    assert feed.waited == 0
    for step, *_ in feed.batches(PLAN, 9):
        begin = feed.waited
        time.sleep(0.05)
        assert feed.waited == begin >= 0.05 * (step - 9 + 1)
    assert feed.waited >= 0.15
    assert feed.hint() == "be quick"


class FakeEvent:
    """Event of a GPU whose clock is `now`, in ms, and whose earlier work ends at `busy_until`."""

    now = busy_until = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at = max(FakeEvent.now, FakeEvent.busy_until)

    def query(self) -> bool:
        return FakeEvent.now >= self.at

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at - self.at


def test_a_gpu_waits_only_when_it_has_no_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    waits, stream = StreamWaits(), cast("torch.cuda.Stream", None)
    FakeEvent.now, FakeEvent.busy_until = 0.0, 900.0
    with waits.measured(stream):
        FakeEvent.now = 400.0  # the loop waits for 400 ms, beside the GPU's earlier work
    assert waits.seconds() == 0, "not known yet"
    FakeEvent.now = 1000.0
    with waits.measured(stream):
        FakeEvent.now = 1250.0
    assert waits.seconds() == waits.seconds() == 0.25
    FakeEvent.busy_until = 1300.0
    with waits.measured(stream):
        FakeEvent.now = 1400.0  # 50 ms of earlier work, then 100 ms of nothing
    assert waits.seconds() == pytest.approx(0.35)


@pytest.mark.parametrize("uniform", [True, False])
def test_images_are_those_of_the_store(uniform: bool) -> None:
    source = ArraySource(tiny.images()) if uniform else Listed([png(8 + i % 3, 9, i) for i in range(22)])
    with ImageStore(source) as store:
        for _, _, ids, images in Feed(store, CPU).batches(PLAN, 0):
            expected = store.get(ids)
            assert len(images) == 4
            assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))


@pytest.mark.parametrize(("size", "fits"), [(0, True), (249, True), (250, False), (999, False)])
def test_a_set_on_a_gpu_leaves_room_for_the_network(monkeypatch: pytest.MonkeyPatch, size: int, fits: bool) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 8000))
    images, gpu = torch.empty(size, dtype=torch.uint8), torch.device("cuda", 1)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)  # here is no GPU to copy to
    assert (_resident(images, gpu) is images) == fits


@pytest.mark.cuda
@pytest.mark.skipif("not torch.cuda.is_available()", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("sizes", [1, 3])
@pytest.mark.parametrize("memory_limit", [None, 0])
@pytest.mark.parametrize("free", [1 << 40, 0])
def test_images_on_a_gpu_are_those_of_the_store(
    monkeypatch: pytest.MonkeyPatch, sizes: int, memory_limit: int | None, free: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    source = Listed([png(31 + i % sizes, 29, i) for i in range(22)])
    with ImageStore(source, memory_limit=memory_limit) as store:
        busy = torch.randn(4096, 4096, device="cuda")
        for _, _, ids, images in Feed(store, torch.device("cuda")).batches(PLAN, 0):
            busy = busy @ busy.softmax(0)  # so that a copy that nobody waits for would come too late
            for found, expected in zip(images, store.get(ids), strict=True):
                assert found.is_cuda
                assert torch.equal(found.cpu(), expected)


@pytest.mark.cuda
@pytest.mark.skipif("not torch.cuda.is_available()", reason="needs an NVIDIA GPU")
def test_the_wait_of_a_gpu_is_that_of_its_stream() -> None:
    feed = Feed(SlowStore(0.05), torch.device("cuda"))
    for _ in feed.batches(PLAN, 0):
        pass
    torch.cuda.synchronize()
    assert 0.3 < feed.waited < 1.5, "nothing else to do: 12 batches of 50 ms"
    feed = Feed(SlowStore(0.05), torch.device("cuda"))
    for _ in feed.batches(PLAN, 0):
        torch.cuda._sleep(400_000_000)  # about 0.2 s
    torch.cuda.synchronize()
    assert feed.waited < 0.15, "the first batches alone"
