"""The store: the same images whether kept or decoded on demand, whatever the workers; and what unreadable ones do."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from listed import Listed, png, wait_until_still
from ssole.data.arrays import ArraySource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 6, 5, 3), dtype=np.uint8)


def channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_uniform_images_are_kept_decoded(workers):
    source = Listed(list(IMAGES))
    store = ImageStore(source, workers=workers)
    assert store.uniform
    assert torch.equal(store.images, channels_first(IMAGES))
    before = len(source.reads)
    batch = store.get([5, 0, 5, 999])
    assert torch.equal(batch, channels_first(IMAGES)[[5, 0, 5, 999]])
    store.prefetch([1])
    assert len(source.reads) == before
    batch.zero_()  # a batch is a copy
    assert torch.equal(store.images, channels_first(IMAGES))
    assert store.unreadable == []


def test_images_that_do_not_fit_are_decoded_on_demand():
    source = Listed(list(IMAGES))
    store = ImageStore(source, memory_limit=IMAGES.nbytes - 1)
    assert not store.uniform
    assert store.images is None
    assert ImageStore(source, memory_limit=IMAGES.nbytes).uniform
    for indices in ([3, 1, 3], torch.tensor([3, 1, 3]), np.array([3, 1, 3]), range(3)):
        assert torch.equal(store.get(indices), channels_first(IMAGES)[[int(i) for i in indices]])


@pytest.mark.parametrize("odd", [0, 1, 500, 999])
def test_images_of_two_sizes(odd):
    """One image that differs, where no probe looks too; a batch is stacked if its own images agree."""
    items = list(IMAGES)
    items[odd] = np.full((9, 4, 3), 7, np.uint8)
    store = ImageStore(Listed(items))
    assert not store.uniform
    batch = store.get([odd, 2])
    assert isinstance(batch, list)
    assert [tuple(image.shape) for image in batch] == [(3, 9, 4), (3, 6, 5)]
    assert (batch[0] == 7).all()
    assert torch.equal(store.get([2, 3]), channels_first(IMAGES)[2:4])
    assert store.get([odd]).shape == (1, 3, 9, 4)
    assert len(store) == 1000


def test_prefetch_decodes_once_and_ahead():
    source = Listed(list(IMAGES))
    store = ImageStore(source, memory_limit=0)
    source.reads.clear()
    store.prefetch([1, 2, 3])
    store.prefetch([3, 4])
    store.get([1, 2, 3])
    store.get([4, 3])
    assert sorted(source.reads) == [1, 2, 3, 4]
    store.prefetch([5])
    store.prefetch([6])
    store.get([1])  # dropped by now: nothing is kept for ever
    assert sorted(source.reads)[:2] == [1, 1]


def test_order_of_a_batch_does_not_depend_on_workers():
    indices = np.random.default_rng(1).integers(0, 1000, 300).tolist()
    for workers in (1, 4):
        store = ImageStore(Listed(list(IMAGES)), memory_limit=0, workers=workers)
        store.prefetch(indices)
        assert torch.equal(store.get(indices), channels_first(IMAGES)[indices])


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("bad", [[0], [17], [998, 999], [3, 4, 5], [0, 999]])
def test_an_unreadable_image_is_replaced_by_the_next_readable(limit, bad):
    items = [b"broken" if i in bad else image for i, image in enumerate(IMAGES)]
    store = ImageStore(Listed(items), memory_limit=limit)
    assert store.uniform == (limit is None)
    good = [i for i in range(1000) if i not in bad]
    expected = channels_first(IMAGES)[[next((g for g in good if g >= i), good[0]) for i in range(1000)]]
    order = np.random.default_rng(2).permutation(1000)
    assert torch.equal(store.get(order), expected[order])
    assert [(i, name) for i, name, _ in store.unreadable] == [(i, f"item {i}") for i in bad]
    assert np.flatnonzero(store.readable).tolist() == good
    assert all("not an image" in reason and "item" not in reason for _, _, reason in store.unreadable)


@pytest.mark.parametrize("limit", [None, 0])
def test_too_many_unreadable_images(limit):
    items = [b"" if i % 40 == 39 else image for i, image in enumerate(IMAGES)]  # 25 of 1,000
    with pytest.raises(
        DataError, match=r"11 of the 1000 images in listed(?s:.*)at most 10 (?s:.*)item \d*9: .*0 bytes"
    ):
        ImageStore(Listed(items), memory_limit=limit, workers=1).get(range(1000))
    store = ImageStore(Listed(items), memory_limit=limit, max_unreadable=0.025)
    store.get(range(1000))
    assert len(store.unreadable) == 25


def test_unreadable_images_that_other_processes_found_count_too():
    store = ImageStore(Listed([b"broken" if i == 1 else image for i, image in enumerate(IMAGES)]), memory_limit=0)
    store.get([1])
    store.take_unreadable((i, f"item {i}", "broken") for i in range(10, 19))
    assert len(store.unreadable) == 10
    with pytest.raises(DataError, match=r"11 of the 1000 images in listed(?s:.*)at most 10 "):
        store.take_unreadable([(1, "item 1", "broken"), (40, "item 40", "broken")])


def test_limits_at_the_edges():
    one_bad = [b"x", *IMAGES[:9]]
    assert len(ImageStore(Listed(one_bad)).unreadable) == 1  # 1 % of ten images is rounded up to one
    with pytest.raises(DataError, match="1 of the 10 images"):
        ImageStore(Listed(one_bad), max_unreadable=0)
    for limit in (0, None):
        with pytest.raises(DataError, match=r"2 of the 2 images .*at most 1"):
            ImageStore(Listed([b"x", b"y"]), memory_limit=limit, max_unreadable=1)


def test_an_error_that_is_not_the_images_is_not_swallowed():
    class Broken(Listed):
        def read(self, i):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        ImageStore(Broken(list(IMAGES)))


def test_an_unreadable_image_takes_the_label_of_its_stand_in():
    items = [b"broken" if i in (3, 4, 999) else image for i, image in enumerate(IMAGES)]
    source = Listed(items)
    source.labels = np.arange(1000)
    store = ImageStore(source)
    assert store.labels.tolist() == [0, 1, 2, 5, 5, *range(5, 999), 0]
    assert source.labels.tolist() == list(range(1000))


def test_ids_and_labels():
    store = ImageStore(ArraySource(IMAGES, np.arange(1000), name="a"))
    assert store.labels.tolist() == list(range(1000))
    assert store.ids[999] == "a:999"


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize(
    ("indices", "error", "said"),
    [([1000], IndexError, "1000"), ([-1], IndexError, "-1"), ([0.5], DataError, "float"), ([[1]], DataError, "(1, 1)"),
     (torch.ones(3, dtype=torch.bool), DataError, "bool")],
)  # fmt: skip
def test_bad_indices(limit, indices, error, said):
    store = ImageStore(Listed(list(IMAGES)), memory_limit=limit)
    with pytest.raises(error) as raised:
        store.get(indices)
    assert said in str(raised.value)


def test_no_indices():
    assert ImageStore(Listed(list(IMAGES))).get([]).shape == (0, 3, 6, 5)
    assert ImageStore(Listed(list(IMAGES)), memory_limit=0).get(torch.empty(0, dtype=torch.int64)) == []


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"shrink_to": 0}, {"max_unreadable": 1.5}, {"max_unreadable": -0.1}]
)
def test_bad_options(options):
    with pytest.raises(DataError, match=next(iter(options))):
        ImageStore(Listed(list(IMAGES)), **options)


def test_empty_source():
    with pytest.raises(DataError, match="listed holds no images"):
        ImageStore(Listed([]))


def test_silent_when_not_on_a_terminal(capfd):
    ImageStore(Listed(list(IMAGES)))
    out, err = capfd.readouterr()
    assert out == err == ""


def test_an_interrupt_while_everything_is_decoded_is_heard_at_once():
    calls = itertools.count()  # which no two threads find at the same number

    class Interrupting(Listed):
        def read(self, i):
            if next(calls) == 60:
                os.kill(os.getpid(), signal.SIGINT)
            return super().read(i)

    source = Interrupting(list(IMAGES), seconds=0.002)
    with pytest.raises(KeyboardInterrupt):
        ImageStore(source, workers=2)
    assert wait_until_still(source) < 500


def test_channel_statistics():
    mean, std = ImageStore(ArraySource(IMAGES)).channel_statistics()
    assert mean == pytest.approx((IMAGES / 255).mean((0, 1, 2)))
    assert std == pytest.approx((IMAGES / 255).std((0, 1, 2)))
    mean, std = ImageStore(ArraySource(IMAGES)).channel_statistics(sample=4)
    assert mean == pytest.approx((IMAGES[[0, 250, 500, 750]] / 255).mean((0, 1, 2)))
    with pytest.raises(DataError, match="sample must be at least 1"):
        ImageStore(ArraySource(IMAGES)).channel_statistics(sample=0)


def test_channel_statistics_give_each_image_the_same_weight():
    dark, bright = np.zeros((2, 2, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    mean, std = ImageStore(Listed([dark, bright])).channel_statistics()
    assert (mean, std) == ([0.5] * 3, [0.5] * 3)


def test_hint_names_what_is_missing():
    assert ImageStore(Listed(list(IMAGES))).hint() is None  # in memory
    assert "cache" in ImageStore(Listed([png(5, 6, 1), png(6, 5, 2)]), workers=999).hint()


def test_hint_comes_once_all_that_can_be_read_is_kept(tmp_path: Path):
    items = [b"broken" if i == 30 else png(5 + i % 2, 6, i) for i in range(40)]
    with ImageStore(Listed(items), cache=tmp_path) as store:
        store.get(range(20))
        assert store.hint() is None  # the cache is being filled
        store.get(range(40))
        assert "decoded images are read from" in store.hint()


def test_a_store_is_closed_by_its_with_statement():
    with ImageStore(Listed([png(5, 6, 1), png(6, 5, 2)])) as store:
        store.get([0, 1])
    with pytest.raises(RuntimeError):
        store.get([0])
    with ImageStore(Listed(list(IMAGES))) as store:
        pass
    assert store.get([3]).shape == (1, 3, 6, 5)  # in memory


@pytest.mark.skipif("SSOLE_CIFAR10_PARQUET" not in os.environ, reason="SSOLE_CIFAR10_PARQUET names no parquet file")
def test_cifar10():
    source = open_source(os.environ["SSOLE_CIFAR10_PARQUET"])
    store = ImageStore(source)
    assert store.uniform
    assert store.images.shape[1:] == (3, 32, 32)
    assert len(source.classes) == 10
    counts = np.bincount(source.labels)
    assert len(counts) == 10
    assert counts.min() == counts.max()
    assert 0.4 < store.images.double().mean() / 255 < 0.55
