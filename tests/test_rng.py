"""Random draws: pure functions of their coordinates, uniform, fair and independent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from ssole.rng import Use, bits, epoch_order, scalar_bits, uniforms_of_uses

IDS, VIEWS = torch.arange(5000), torch.arange(4)


def uniforms(seed: int, epoch: int, ids: torch.Tensor, views: torch.Tensor, use: Use, n: int) -> torch.Tensor:
    return uniforms_of_uses(seed, epoch, ids, views, {use: n})[use]


def test_a_draw_does_not_depend_on_its_batch() -> None:
    whole = uniforms(7, 3, IDS, VIEWS, Use.CROP, 6)
    some = torch.tensor([4999, 17, 0, 17])
    assert torch.equal(uniforms(7, 3, some, VIEWS[1:3], Use.CROP, 2), whole[some][:, 1:3, :2])


def test_several_uses_at_once_are_the_same_draws() -> None:
    draws = {Use.JITTER: 9, Use.CROP: 22, Use.TURN: 1}
    together = uniforms_of_uses(7, 3, IDS, VIEWS, draws)
    assert list(together) == list(draws)
    for use, n in draws.items():
        assert torch.equal(together[use], uniforms(7, 3, IDS, VIEWS, use, n))


@pytest.mark.filterwarnings("ignore")  # of torch's own, while compiling
def test_draws_compile_as_one_graph() -> None:
    draws = {Use.JITTER: 9, Use.CROP: 22}
    compiled = torch.compile(uniforms_of_uses, backend="aot_eager", fullgraph=True)
    found, expected = compiled(7, 3, IDS, VIEWS, draws), uniforms_of_uses(7, 3, IDS, VIEWS, draws)
    assert all(torch.equal(found[use], expected[use]) for use in draws)


def test_the_format_is_pinned() -> None:
    """SplitMix64 in Python integers, independent of the tensor code: a change of the format changes every run."""
    mask = (1 << 64) - 1

    def fold(key: int, word: int) -> int:
        x = ((key ^ word) + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    coordinates = (123, 45, 678, 3, int(Use.GREY), 2)
    key = 0
    for word in coordinates:
        key = fold(key, word)
    drawn = bits(123, 45, torch.tensor([678]), torch.tensor([3]), {Use.GREY: 3})[0, 0, 2]
    assert int(drawn) & mask == key
    zero = torch.zeros(1, dtype=torch.int64)
    assert scalar_bits(-3, 45, Use.LAYERS) == int(bits(-3, 45, zero, zero, {Use.LAYERS: 1}))


def test_uniform_and_never_one() -> None:
    u = uniforms(0, 0, IDS, VIEWS, Use.JITTER, 5).flatten().numpy()
    assert u.min() >= 0
    assert u.max() < 1
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("other", ["seed", "epoch", "id", "view", "use", "draw"])
def test_every_coordinate_gives_independent_draws(other: str) -> None:
    base: dict[str, Any] = {"seed": 0, "epoch": 0, "use": Use.CROP}
    u = uniforms(base["seed"], base["epoch"], IDS, VIEWS, base["use"], 2)
    if other in base:
        changed = {**base, other: Use.HFLIP if other == "use" else 1}
        v = uniforms(changed["seed"], changed["epoch"], IDS, VIEWS, changed["use"], 2)
    else:
        v = u.roll(1, dims={"id": 0, "view": 1, "draw": 2}[other])
    correlation = np.corrcoef(u.flatten().numpy(), v.flatten().numpy())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(u.numel())


def test_every_bit_is_fair() -> None:
    drawn = bits(1, 1, IDS, VIEWS, {Use.CROP: 2}).flatten()
    share = torch.stack([(drawn >> bit) & 1 for bit in range(64)]).double().mean(dim=1)
    assert (share - 0.5).abs().max() < 5 * 0.5 / len(drawn) ** 0.5


def test_negative_and_huge_seeds_are_accepted() -> None:
    for seed in (-1, 2**63, 2**64 + 5):
        assert uniforms(seed, 0, IDS[:2], VIEWS, Use.CROP, 1).shape == (2, 4, 1)


def test_epoch_order_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    orders = [epoch_order(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert torch.equal(order.sort().values, torch.arange(1000))
    assert torch.equal(orders[0], epoch_order(0, 0, 1000))
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
