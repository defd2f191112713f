"""Every epoch is a permutation of the images, and a plan can begin anywhere."""

from __future__ import annotations

import pytest
import torch

import tiny
from ssole.config import PretrainConfig
from ssole.errors import DataError
from ssole.training.plan import Plan, make_plan

PLAN = Plan(images=11, batch_size=3, seed=4, total=10)  # 3 steps an epoch


def test_an_epoch_shows_no_image_twice_and_another_epoch_another_order() -> None:
    steps = list(PLAN.batches(0))
    assert [step for step, _, _ in steps] == list(range(10))
    assert [epoch for _, epoch, _ in steps] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    seen = [torch.cat([ids for _, of, ids in steps if of == epoch]).tolist() for epoch in range(3)]
    for ids in seen:
        assert len(set(ids)) == 9
        assert set(ids) <= set(range(11))
    assert len({tuple(ids) for ids in seen}) == 3
    assert [step for step in range(10) if PLAN.ends_epoch(step)] == [2, 5, 8]


@pytest.mark.parametrize("start", [0, 2, 3, 7, 10])
def test_batches_from_the_middle_are_those_of_the_whole(start: int) -> None:
    whole = [(step, epoch, ids.tolist()) for step, epoch, ids in PLAN.batches(0)]
    assert [(step, epoch, ids.tolist()) for step, epoch, ids in PLAN.batches(start)] == whole[start:]


def test_every_image_comes_in_the_long_run() -> None:
    plan = Plan(images=11, batch_size=3, seed=4, total=3 * 20)
    assert {i for _, _, ids in plan.batches(0) for i in ids.tolist()} == set(range(11))


def test_length() -> None:
    assert make_plan(PretrainConfig(epochs=7, batch_size=4), 22).total == 7 * 5
    assert make_plan(PretrainConfig(epochs=7, steps=3, batch_size=4), 22).total == 3
    assert make_plan(tiny.config(), tiny.IMAGES).steps_per_epoch == tiny.STEPS_PER_EPOCH


@pytest.mark.parametrize(("images", "advice"), [(5, "--batch-size 5 or less"), (1, "give more images")])
def test_fewer_images_than_a_batch(images: int, advice: str) -> None:
    with pytest.raises(DataError, match=f"a batch of 8 .* hold {images}: .*{advice}"):
        make_plan(PretrainConfig(batch_size=8), images)
