"""Thresholds and texts of findings."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

import tiny
from ssole.config import PretrainConfig, load
from ssole.data.store import ImageStore
from ssole.doctor.contents import ASPECTS, Contents, Copies, Leak, Range
from ssole.doctor.estimate import Estimate, Quantiles
from ssole.doctor.findings import (
    check_contents,
    check_duplicates,
    check_estimate,
    check_leakage,
    check_readable,
    check_recipe,
    check_statistics,
    share_to_allow,
)
from ssole.doctor.report import SecondSet
from ssole.doctor.scan import ChannelStatistics, Rate, Unreadable

SIDES = Range(min=8, median=12, max=20)
CONTENTS = Contents(
    formats={},
    modes={},
    width=SIDES,
    height=SIDES,
    shorter_side=SIDES,
    bytes=SIDES,
    total_bytes=0,
    aspects=dict.fromkeys(ASPECTS, 0),
    one_size=False,
    blank=[],
    misnamed=[],
)
SECOND = Quantiles(low=1, median=1, high=1)


@pytest.mark.parametrize(
    ("images", "broken", "level"),
    [(1000, 0, "ok"), (1000, 10, "look"), (1000, 11, "stop"), (50, 1, "look"), (50, 2, "stop"), (1, 1, "stop")],
)
def test_as_many_may_be_unreadable_as_a_run_allows(images: int, broken: int, level: str) -> None:
    unreadable = [Unreadable(i, f"{i}", "damaged") for i in range(broken)]
    found = check_readable(images, images, unreadable, max_unreadable=PretrainConfig.max_unreadable)
    assert found.level == level
    assert (f"{broken} of {images:,}" in found.text) is (broken > 0)
    assert bool(found.advice) is (level != "ok")


def test_the_recipes_own_limit_of_unreadable_images_counts() -> None:
    unreadable = [Unreadable(i, f"{i}", "damaged") for i in range(50)]
    assert check_readable(1000, 1000, unreadable, max_unreadable=0.05).level == "look"
    found = check_readable(1000, 1000, unreadable, max_unreadable=0.045)
    assert found.level == "stop"
    assert "more than 4.5 %" in found.advice
    assert found.advice.endswith("or allow them: --max-unreadable 0.05")
    assert "--max" not in check_readable(50, 50, unreadable, max_unreadable=0.01).advice  # not one image is left


@pytest.mark.parametrize(("broken", "images"), [(6, 315), (7, 100), (29, 100), (57, 100), (99, 100), (3, 30)])
def test_the_share_that_is_advised_suffices(broken: int, images: int) -> None:
    unreadable = [Unreadable(i, f"{i}", "damaged") for i in range(broken)]
    share = share_to_allow(broken, images, 0)
    assert check_readable(images, images, unreadable, max_unreadable=share).level == "look"
    assert broken / images <= share < broken / images + 0.011


def test_the_store_of_images_has_the_same_limit_by_default() -> None:
    limit = inspect.signature(ImageStore).parameters["max_unreadable"].default
    assert limit == PretrainConfig().max_unreadable


def test_copies_are_reported() -> None:
    groups = [Copies("a", ["b", "c"]), Copies("d", ["e"])]
    exact, near = check_duplicates(groups, [], 1000, 1000)
    assert (exact.level, exact.topic, near.level, near.topic) == ("look", "exact_copies", "ok", "near_copies")
    assert "3 of 1,000 images (0.3 %)" in exact.text
    exact, near = check_duplicates([], groups, 10_000, 10_000)
    assert (exact.level, near.level) == ("ok", "look")
    assert "under 0.1 %" in near.text


@pytest.mark.parametrize(
    ("leaked", "level", "words"),
    [
        ([], "ok", "no image of test"),
        ([Leak("a", "b", False)], "look", "from test, also found here: 1 of 50 images (2.0 %), 1 nearly"),
        ([Leak("a", "b", False), Leak("c", "d", True)], "stop", ", 1 exactly and 1 nearly"),
    ],
)
def test_exact_leakage_stops(leaked: list[Leak], level: str, words: str) -> None:
    found = check_leakage(SecondSet(name="test", images=50, examined=50, unreadable=[], leaked=leaked), 90, 90)
    assert found.level == level
    assert words in found.text


def test_a_second_set_of_which_images_cannot_be_read_is_not_said_to_be_clean() -> None:
    unreadable = [Unreadable(i, f"{i}", "damaged") for i in range(5)]
    found = check_leakage(SecondSet(name="test", images=50, examined=50, unreadable=unreadable, leaked=[]), 90, 90)
    assert (found.level, found.topic) == ("look", "leakage")
    assert found.text.endswith("of test cannot be read: 5 of 50 images (10 %)")


def test_channels_that_no_run_can_normalise() -> None:
    statistics = ChannelStatistics(mean=[0.5, 0.0, 1.0], std=[0.2, 0.0, 0.0], images=9)
    (found,) = check_statistics(statistics, load("small-images").augment, 9)
    assert (found.level, found.topic) == ("stop", "constant")
    assert found.text.endswith("channels 1, 2")
    assert not list(check_statistics(statistics, load("cifar10").augment, 9))  # it has a mean and std of its own
    assert not list(check_statistics(dataclasses.replace(statistics, std=[0.2] * 3), load("small-images").augment, 9))


def test_a_channel_that_is_constant_in_a_sample_may_vary_in_other_images() -> None:
    statistics = ChannelStatistics(mean=[0.5, 0.0], std=[0.2, 0.0], images=256)
    (found,) = check_statistics(statistics, load("small-images").augment, 1000)
    assert (found.level, found.topic) == ("look", "constant")
    assert found.text == "have the same value in all of 256 images measured: channels 1"


def test_odd_images_are_reported_only_if_there_are_any() -> None:
    assert list(check_contents(CONTENTS, 100)) == []
    odd = dataclasses.replace(CONTENTS, blank=["a"], misnamed=["b", "c"], aspects=CONTENTS.aspects | {"wide": 6})
    assert [finding.topic for finding in check_contents(odd, 100)] == ["blank", "misnamed", "aspect"]
    few_wide = dataclasses.replace(CONTENTS, aspects=CONTENTS.aspects | {"wide": 2, "tall": 3})
    assert list(check_contents(few_wide, 100)) == []


@pytest.mark.parametrize(
    ("images", "settings", "topics"),
    [
        (5000, {}, []),
        (999, {}, ["few"]),
        (3, {}, ["too_few"]),
        (5000, {"augment__crops__0__size": 12}, []),
        (5000, {"augment__crops__0__size": 13}, ["enlarged"]),
    ],
)
def test_images_and_recipe_must_fit(images: int, settings: dict[str, Any], topics: list[str]) -> None:
    found = list(check_recipe(tiny.config(**settings), "tiny", CONTENTS, images))
    assert [finding.topic for finding in found] == topics
    assert [finding.level for finding in found] == ["stop" if topic == "too_few" else "look" for topic in topics]


@pytest.mark.parametrize(
    ("memory", "decode", "levels"),
    [
        (79, 1000, {"memory": "ok"}),
        (81, 1000, {"memory": "look"}),
        (101, 1000, {"memory": "stop"}),
        (10, 63, {"memory": "ok", "decoding": "look"}),
        (10, 65, {"memory": "ok"}),
    ],
)
def test_memory_and_decoding(memory: int, decode: float, levels: dict[str, str]) -> None:
    cost = Estimate(
        device="cpu",
        precision="float32",
        steps=1,
        batch_size=64,
        views=2,
        step_seconds=SECOND,
        decode_seconds=1,
        compile_seconds=0,
        seconds=SECOND,
        steps_measured=3,
        batch_measured=64,
        memory_bytes=memory,
        memory_available=100,
        disk_bytes=10,
        disk_available=10,
    )
    found = check_estimate(cost, Rate(value=decode, threads=2, images=9), "tiny")
    assert {finding.topic: finding.level for finding in found} == levels
    full = dataclasses.replace(cost, disk_available=9)
    found = check_estimate(full, Rate(value=decode, threads=2, images=9), "tiny")
    assert {finding.topic: finding.level for finding in found} == levels | {"disk": "look"}


def test_a_sample_is_not_said_to_be_all() -> None:
    exact, near = check_duplicates([], [], 1_280_000, 100_000)
    assert exact.text == "none of the 100,000 images examined, of 1,280,000, is an exact copy of another"
    assert near.text == "none of the 100,000 images examined, of 1,280,000, looks the same as a different one"
    second = SecondSet(name="test", images=50, examined=50, unreadable=[], leaked=[])
    words = "none of 50 images of test is among 100,000 images examined here"
    assert check_leakage(second, 1_280_000, 100_000).text == words


@pytest.mark.parametrize(("images", "words"), [(99, "99 images are far too few"), (100, "100 images are few")])
def test_a_hundred_images_are_few_and_less_are_far_too_few(images: int, words: str) -> None:
    (finding,) = check_recipe(tiny.config(), "tiny", CONTENTS, images)
    assert finding.text == f"{words} for learning a representation"
