"""A store that keeps what it decodes: the same images in fewer reads, shared, resumed, and never out of date."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import torch
from image_files import tar
from PIL import Image

from disk import FULL, READ_ONLY, Disk
from listed import Listed, png, pngs, wait_until_still
from ssole.data import cache, reader
from ssole.data import store as reading
from ssole.data.arrays import ArraySource
from ssole.data.base import SubsetSource
from ssole.data.cache import DISK_SHARE, ImageCache
from ssole.data.decode import decode
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError

Open = Callable[..., ImageCache]
RECORD = cache._RECORD.itemsize
N = 60
ITEMS = pngs(N)
SOURCE = Path(__file__).parents[2] / "src"


class Known(Listed):
    """Images that are somewhere, and can tell that they changed: what is decoded is kept from run to run."""

    def fingerprint(self) -> str:
        return hashlib.sha256(self.ids_fingerprint.encode() + b"".join(self.items)).hexdigest()


def images(items: list[bytes], **options: object) -> list[torch.Tensor]:
    """What a store without a cache gives."""
    with ImageStore(Known(items), max_unreadable=1, **options) as store:
        return store.get(range(len(items)))


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def records(folder: Path) -> np.ndarray:
    """The index of a cache."""
    return np.fromfile(folder / "index.bin", cache._RECORD)


def assert_kept_once(folder: Path) -> None:
    """Every image is in the cache, and there is nothing else: no bytes but those that align each image."""
    index = np.sort(records(folder), order="offset")
    sizes = index["shape"].prod(1) * index["itemsize"]
    assert (sizes > 0).all()
    ends = index["offset"] + sizes
    assert (index["offset"][1:] - ends[:-1] < 64).all()
    assert (index["offset"][1:] >= ends[:-1]).all()
    assert (index["offset"][0], ends[-1]) == (0, (folder / "pixels.bin").stat().st_size)


def caches(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.mark.parametrize("options", [{}, {"shrink_to": 6}, {"workers": 1}])
def test_images_are_those_of_a_store_without_a_cache(tmp_path: Path, options: dict[str, int]) -> None:
    expected = images(ITEMS, **options)
    for run in range(2):
        source = Known(ITEMS)
        with ImageStore(source, cache=tmp_path, **options) as store:
            source.reads.clear()
            for _ in range(3):
                assert_same(store.get(range(N)), expected)
            batch = [59, 3, 3, 8]
            store.prefetch(batch)
            assert_same(store.get(batch), [expected[i] for i in batch])
        assert sorted(source.reads) == (list(range(N)) if run == 0 else [])  # decoded once for all epochs and runs


def test_uniform_images_that_do_not_fit_are_kept_and_stacked(tmp_path: Path) -> None:
    items = [png(6, 5, i) for i in range(N)]
    for _ in range(2):
        with ImageStore(Known(items), cache=tmp_path, memory_limit=0) as store:
            assert not store.uniform
            assert torch.equal(store.get(range(N)), ImageStore(Known(items)).images)
            assert torch.equal(store.get(range(N)), ImageStore(Known(items)).images)
            assert len(store.cache) == N


def test_by_default_it_is_in_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    with ImageStore(Known(ITEMS), cache=True) as store:
        assert store.cache.folder.parent == tmp_path / "packed"
        about = json.loads((store.cache.folder / "about.json").read_text())
        assert (about["source"], about["images"]) == ("listed", N)


def test_nothing_is_kept_unasked_in_memory_or_of_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    arrays = np.zeros((4, 6, 5, 3), np.uint8)
    assert ImageStore(Known(ITEMS)).cache is None
    assert ImageStore(Known([png(6, 5, 0)] * 4), cache=True).cache is None
    assert ImageStore(ArraySource(arrays), cache=True, memory_limit=0).cache is None
    assert ImageStore(SubsetSource(ArraySource(arrays), np.array([1])), cache=True, memory_limit=0).cache is None
    assert caches(tmp_path) == []


def test_several_processes_share_a_cache_or_have_none(tmp_path: Path) -> None:
    """A cache that only one process could use would be there as often as there are processes."""
    same = [png(6, 5, i) for i in range(4)]
    shared = ImageStore(Known(same), cache=tmp_path, processes=2)
    assert (shared.uniform, len(caches(tmp_path))) == (False, 1)
    unknown = ImageStore(Listed(same), cache=tmp_path, processes=2)
    assert (unknown.uniform, unknown.cache) == (True, None)
    assert ImageStore(Listed(ITEMS), cache=tmp_path, processes=2).cache is None
    assert len(caches(tmp_path)) == 1
    shared.close()


def test_memory_is_divided_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    same = [png(6, 5, i) for i in range(4)]
    monkeypatch.setattr(reading, "default_memory_limit", lambda: 2 * 4 * 6 * 5 * 3)
    assert [ImageStore(Listed(same), processes=n).uniform for n in (1, 2, 3)] == [True, True, False]


def test_other_ways_of_decoding_have_other_caches(tmp_path: Path) -> None:
    for shrink_to in (None, 6, 7):
        with ImageStore(Known(ITEMS), cache=tmp_path, shrink_to=shrink_to) as store:
            assert_same(store.get(range(N)), images(ITEMS, shrink_to=shrink_to))
    ImageStore(Known(ITEMS, name="../other"), cache=tmp_path).close()
    assert len(caches(tmp_path)) == 4


# A source that changed


def fill(source: object, folder: Path) -> Path:
    with ImageStore(source, cache=folder) as store:
        store.get(range(len(source)))
        return store.cache.folder


def test_an_image_that_changed_is_noticed(tmp_path: Path) -> None:
    before = fill(Known(ITEMS), tmp_path)
    changed = [png(30, 20, 1000), *ITEMS[1:]]
    with pytest.warns(UserWarning, match=r"listed changed since .* decoded anew"):
        after = fill(Known(changed), tmp_path)
    assert caches(tmp_path) == [after]
    assert before != after
    with ImageStore(Known(changed), cache=tmp_path) as store:
        assert_same(store.get(range(N)), images(changed))


def test_a_folder_and_its_split_have_caches_side_by_side(tmp_path: Path) -> None:
    """They have one folder of images, whose ids differ."""
    for i in range(6):
        path = tmp_path / "photos" / ("train" if i < 4 else "test") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(4 + i, 4, i))
    sources = [open_source(tmp_path / "photos"), open_source(tmp_path / "photos" / "train")]
    for source in (*sources, *sources):
        with warnings.catch_warnings(), ImageStore(source, cache=tmp_path / "cache") as store:
            warnings.simplefilter("error")
            store.get(list(range(4)))
    assert len(caches(tmp_path / "cache")) == 2


def test_every_image_counts_where_a_source_cannot_tell_that_it_changed(tmp_path: Path) -> None:
    """Nothing but reading all of them would notice: so they are kept for one run only."""
    items = list(ITEMS)
    for i in range(3):
        items[5 + i] = png(30, 20, 1000 + i)
        source = Listed(items)
        with ImageStore(source, cache=tmp_path) as store:
            source.reads.clear()
            for _ in range(2):
                assert_same(store.get(range(N)), images(items))
            assert sorted(source.reads) == list(range(N))
            with ImageStore(Listed(items), cache=tmp_path) as beside:
                assert beside.cache.folder != store.cache.folder
            assert store.cache.folder.is_dir()
        assert caches(tmp_path) == []


def test_none_is_no_fingerprint(tmp_path: Path) -> None:
    class Remote(Listed):
        def fingerprint(self) -> None:
            return None

    assert not fill(Remote(ITEMS), tmp_path).exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["", "import os; os.kill(os.getpid(), 9)"])
def test_no_run_leaves_behind_what_no_other_can_use(tmp_path: Path, end: str) -> None:
    script = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(SOURCE)!r}]
from listed import Listed, pngs
from ssole.data.store import ImageStore
store = ImageStore(Listed(pngs(9)), cache={str(tmp_path)!r})
store.get(range(9))
{end}
"""
    subprocess.run([sys.executable, "-c", script], check=not end, timeout=120)
    assert len(caches(tmp_path)) == bool(end)
    kept = fill(Known(ITEMS), tmp_path)
    assert caches(tmp_path) == [kept]  # what the killed one left is gone


def test_an_image_added_to_a_folder_is_noticed(tmp_path: Path) -> None:
    root, kept = tmp_path / "photos", tmp_path / "kept"
    write(root, 5)
    fill(open_source(root), kept)
    (root / "0.5.png").write_bytes(png(9, 9, 9))
    with pytest.warns(UserWarning, match="photos changed"):
        fill(open_source(root), kept)
    assert len(caches(kept)) == 1


def test_what_tells_sources_apart(tmp_path: Path) -> None:
    assert Known(ITEMS).fingerprint() == Known(list(ITEMS)).fingerprint()
    assert len({Known(items).fingerprint() for items in (ITEMS, ITEMS[:-1], ITEMS[::-1])}) == 3
    assert Known(ITEMS).identity == Known(ITEMS[::-1]).identity != Known(ITEMS[:-1]).identity  # a hash of the ids
    write(tmp_path / "photos", 2)
    assert open_source(tmp_path / "photos" / ".." / "photos").identity == str((tmp_path / "photos").resolve())
    source = Known(ITEMS)
    asked = []
    source.id = lambda i: asked.append(i) or str(i)
    with ImageStore(source, cache=tmp_path / "kept"):
        assert asked == [*asked[:32], *range(N)]  # the probes, and then each id once


def test_two_sets_of_one_name_and_ids_in_two_places(tmp_path: Path) -> None:
    sets = [Known(ITEMS), Known(ITEMS[::-1])]
    for number, source in enumerate(sets):
        source.identity = f"/data/{number}/train.parquet"
    kept = [fill(source, tmp_path) for source in sets]  # and there is no warning: it would be an error
    assert [fill(source, tmp_path) for source in sets] == kept
    assert caches(tmp_path) == sorted(kept)


def test_a_cache_in_use_is_not_removed(tmp_path: Path) -> None:
    source, changed = Known(ITEMS), Known([png(30, 20, 1000), *ITEMS[1:]])
    with ImageStore(source, cache=tmp_path) as store:
        store.get(range(30))
        in_use = store.cache.folder
        after = fill(changed, tmp_path)  # without a warning
        assert caches(tmp_path) == sorted([in_use, after])
        store.get(range(N))
        assert len(store.cache) == N
    with pytest.warns(UserWarning, match="changed"):
        fill(changed, tmp_path)
    assert caches(tmp_path) == [after]


def test_what_decodes_otherwise_decodes_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import PIL

    fill(Known(ITEMS), tmp_path)
    for owner, name, value in ((cache, "DECODER", 1000), (PIL, "__version__", "1000")):
        monkeypatch.setattr(owner, name, value)
        with pytest.warns(UserWarning, match="how they are decoded"):
            fill(Known(ITEMS), tmp_path)
    monkeypatch.setattr("ssole.__version__", "1000")
    fill(Known(ITEMS), tmp_path)  # the version of the package alone changes no pixels: no warning


# Room


def test_a_cache_that_cannot_hold_all_keeps_what_fits_and_says_so(tmp_path: Path) -> None:
    expected = images(ITEMS)
    size = sum(image.nbytes for image in expected)
    source = Known(ITEMS)
    with pytest.warns(UserWarning, match=r"images of listed will take about .*, and their cache .* are kept"):
        store = ImageStore(source, cache=tmp_path, cache_limit=size // 2)
    for _ in range(2):
        assert_same(store.get(range(N)), expected)  # and warns no more: here a warning is an error
    assert 10 < len(store.cache) < 40
    assert (store.cache.folder / "pixels.bin").stat().st_size <= size // 2
    source.reads.clear()
    store.get(range(N))
    assert len(source.reads) == N - len(store.cache)
    assert "only" in store.hint() or "threads" in store.hint()
    store.close()


def free(monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
    """Make it a disk with room for so many bytes, of which caches take some."""

    def disk_usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=size - sum(pixels.stat().st_size for pixels in folder.glob("*/pixels.bin")))

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def test_the_default_limit_is_a_share_of_the_disk_however_often_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(monkeypatch, tmp_path, 1 << 30)
    for _ in range(3):
        with ImageStore(Known(ITEMS), cache=tmp_path) as store:
            assert store.cache.limit == DISK_SHARE * (1 << 30)
            store.get(range(N))


def test_the_caches_used_least_recently_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.bin").write_bytes(b"no cache of ours")
    sources = [Known(ITEMS, name=name) for name in "abcd"]
    a, b, c = (fill(source, tmp_path) for source in sources[:3])
    size = (a / "pixels.bin").stat().st_size
    free(monkeypatch, tmp_path, 9 * size)  # of which all caches may take 4.5
    d = fill(sources[3], tmp_path)  # nothing is removed, for the warning would be an error
    with ImageStore(sources[1], cache=tmp_path):
        for age, folder in enumerate((b, c, a, d)):
            os.utime(folder / "about.json", (1e9 + age, 1e9 + age))
        with pytest.warns(UserWarning, match=f"in {c} are removed, as used least recently, .* those of e"):
            e = fill(Known(ITEMS, name="e"), tmp_path)
    assert caches(tmp_path) == sorted([a, b, d, e, tmp_path / "other"])
    free(monkeypatch, tmp_path, 3 * size)
    with pytest.warns(UserWarning, match="as used least recently") as told:
        f = fill(Known(ITEMS, name="f"), tmp_path)
    assert caches(tmp_path) == sorted([f, tmp_path / "other"])
    assert sum("as used least recently" in str(one.message) for one in told) == 4


def test_a_cache_that_is_deleted_while_in_use_keeps_no_more(tmp_path: Path) -> None:
    expected = images(ITEMS)
    with ImageStore(Known(ITEMS), cache=tmp_path) as store:
        store.get(range(30))
        kept = len(store.cache)
        shutil.rmtree(store.cache.folder)
        with pytest.warns(UserWarning, match=r"was deleted.* decoded in every epoch"):
            assert_same(store.get(range(N)), expected)
        assert_same(store.get(range(N)), expected)
        assert len(store.cache) == kept
        assert caches(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*file.*SSOLE_CACHE"):
        store = ImageStore(Known(ITEMS), cache=tmp_path / "file")
    assert_same(store.get(range(N)), images(ITEMS))
    store.close()


def test_a_negative_limit() -> None:
    with pytest.raises(DataError, match="cache_limit must be at least 0 bytes; got -1"):
        ImageStore(Known(ITEMS), cache_limit=-1)


# Unreadable images


def broken(*bad: int) -> list[bytes]:
    return [b"broken" if i in bad else item for i, item in enumerate(ITEMS)]


def test_unreadable_images_are_replaced_listed_and_not_kept(tmp_path: Path) -> None:
    items = broken(0, 7, 8, 59)
    expected = images(items)
    for run in range(2):
        source = Known(items)
        with ImageStore(source, cache=tmp_path, max_unreadable=0.1) as store:
            source.reads.clear()
            for _ in range(2):
                assert_same(store.get(range(N)), expected)
            assert [(i, name) for i, name, _ in store.unreadable] == [(i, f"item {i}") for i in (0, 7, 8, 59)]
            assert all(reason.startswith("not an image") for _, _, reason in store.unreadable)
            assert len(store.cache) == N - 4
            if run == 1:
                assert set(source.reads) <= {0, 7, 8, 59}


@pytest.mark.parametrize("culprit", ["read", "decode"])
def test_what_could_not_be_read_is_tried_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    """A server that was down, or a decoder that is installed by now."""

    class Down(Listed):
        def read(self, i: int) -> bytes:
            if i == 8:
                raise DataError("item 8: not today.")
            return super().read(i)

    def lacking(data: bytes, *, where: str, **options: object) -> torch.Tensor:
        if where == "item 8":
            raise DataError("item 8: not today.")
        return decode(data, where=where, **options)

    expected = images(ITEMS)
    with monkeypatch.context() as patch:
        if culprit == "decode":
            patch.setattr(reader, "decode", lacking)
        with ImageStore((Down if culprit == "read" else Known)(ITEMS), cache=tmp_path) as store:
            assert_same(store.get([8]), [expected[9]])
            assert store.unreadable == [(8, "item 8", "not today.")]
    with ImageStore(Known(ITEMS), cache=tmp_path) as store:
        assert_same(store.get([8, 6]), [expected[i] for i in (8, 6)])
        assert store.unreadable == []


# Channels


def grey16(height: int, width: int, seed: int) -> tuple[bytes, np.ndarray]:
    """A grey PNG of 16 bits, and its values."""
    values = np.random.default_rng(seed).integers(0, 65536, (height, width), dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue(), values


def test_sixteen_bits_and_one_channel_survive(tmp_path: Path) -> None:
    encoded, values = zip(*(grey16(6 + i % 2, 5, i) for i in range(10)), strict=True)
    for run in range(2):
        source = Known(list(encoded))
        with ImageStore(source, cache=tmp_path, channels=1) as store:
            source.reads.clear()
            for _ in range(2):
                for found, expected in zip(store.get(range(10)), values, strict=True):
                    assert found.dtype == torch.uint16
                    assert np.array_equal(found.numpy(), expected[None])
            assert len(source.reads) == (10 if run == 0 else 0)
            even = store.get(range(0, 10, 2))
            assert (even.dtype, even.shape) == (torch.uint16, (5, 1, 6, 5))
    with ImageStore(Known(list(encoded)), cache=tmp_path) as store:  # as RGB they are another cache
        assert store.get([0]).dtype == torch.uint8


def test_uniform_images_of_sixteen_bits_and_their_statistics() -> None:
    encoded, values = zip(*(grey16(6, 5, i) for i in range(10)), strict=True)
    store = ImageStore(Known(list(encoded)), channels=1)
    assert (store.images.dtype, store.images.shape) == (torch.uint16, (10, 1, 6, 5))
    mean, std = store.channel_statistics()
    assert mean == [pytest.approx((np.stack(values) / 65535).mean())]
    assert std == [pytest.approx((np.stack(values) / 65535).std())]


def test_images_of_both_depths_come_in_sixteen_bits() -> None:
    shallow = io.BytesIO()
    Image.new("L", (6, 5), 200).save(shallow, "PNG")
    deep, values = grey16(5, 6, 0)
    with ImageStore(Known([deep, shallow.getvalue()]), channels=1) as store:
        both = store.get([0, 1])
        assert (both.dtype, both.shape) == (torch.uint16, (2, 1, 5, 6))
        assert np.array_equal(both[0].numpy(), values[None])
        assert set(both[1].flatten().tolist()) == {200 * 257}
        assert store.get([1]).dtype == torch.uint8
        assert store.channel_statistics()[0] == [pytest.approx((values.mean() / 65535 + 200 / 255) / 2)]


def test_images_of_other_channels_than_asked_for_are_unreadable() -> None:
    with pytest.raises(DataError, match=r"60 images in listed .*at most 1(?s:.*)the image has 3 channels, and 5 are"):
        ImageStore(Known(ITEMS), channels=5)


# Several processes

STORE_OF_A_FOLDER = """
import sys, time, torch
from ssole.data.base import Source
from ssole.data.store import ImageStore
from ssole.data.sources import open_source

class Slow(Source):
    "The images of a folder, one every so many seconds."

    def __init__(self, root, seconds):
        self.inner, self.seconds = open_source(root), seconds
        self.name, self.identity = self.inner.name, self.inner.identity

    def __len__(self):
        return len(self.inner)

    def id(self, i):
        return self.inner.id(i)

    def read(self, i):
        time.sleep(self.seconds)
        return self.inner.read(i)

    def fingerprint(self):
        return self.inner.fingerprint()

root, cache, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
store = ImageStore(Slow(root, seconds), cache=cache, workers=2)
print("open", flush=True)
order = torch.randperm(len(store), generator=torch.Generator().manual_seed(seed))
for _ in range(2):
    images = store.get(order)
    sums = {int(i): int(image.to(torch.int64).sum()) for i, image in zip(order, images)}
    print(*[sums[i] for i in range(len(store))], flush=True)
"""


def write(root: Path, n: int) -> None:
    root.mkdir()
    for i in range(n):
        (root / f"{i:04}.png").write_bytes(ITEMS[i % N])


def start(root: Path, cache: Path, seconds: float, seed: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STORE_OF_A_FOLDER, str(root), str(cache), str(seconds), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def sums(root: Path) -> list[int]:
    source = open_source(root)
    with ImageStore(source) as store:
        return [int(image.to(torch.int64).sum()) for image in store.get(range(len(source)))]


@pytest.mark.slow
def test_two_runs_at_once_share_one_cache(tmp_path: Path) -> None:
    root, cache = tmp_path / "photos", tmp_path / "cache"
    write(root, 300)
    runs = [start(root, cache, 0.005, seed) for seed in (1, 2)]
    expected = sums(root)
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, err
        _, *epochs = out.splitlines()
        assert [[int(value) for value in epoch.split()] for epoch in epochs] == [expected, expected]
    (folder,) = caches(cache)
    assert_kept_once(folder)


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_fills_the_cache(tmp_path: Path) -> None:
    root, cache = tmp_path / "photos", tmp_path / "cache"
    write(root, 300)
    run = start(root, cache, 0.02, 1)
    try:
        assert run.stdout.readline() == "open\n", run.stderr.read()
        (folder,) = caches(cache)
        while (kept := int(np.count_nonzero(records(folder)["itemsize"]))) < 20:
            time.sleep(0.01)
    finally:
        run.kill()
        run.communicate()
    assert kept < 300
    run = start(root, cache, 0.0, 2)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 0, err
    assert [[int(value) for value in line.split()] for line in out.splitlines()[1:]] == [sums(root)] * 2
    assert caches(cache) == [folder]
    assert_kept_once(folder)  # what had been kept was not decoded again


# Closing


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files where Linux lists them")
def test_no_file_stays_open(tmp_path: Path) -> None:
    def files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = files()
    with ImageStore(Known(ITEMS), cache=tmp_path) as store:
        store.get(range(N))
        assert len(os.listdir("/proc/self/fd")) > before
    del store
    assert files() == before
    forgotten = ImageStore(Known(ITEMS), cache=tmp_path)
    forgotten.get(range(N))
    del forgotten
    assert files() == before


def test_closing_leaves_what_is_not_yet_decoded(tmp_path: Path) -> None:
    source = Known(ITEMS * 10, seconds=0.005)
    store = ImageStore(source, cache=tmp_path, workers=2)
    source.reads.clear()
    store.prefetch(range(600))
    store.get([0])
    store.close()
    assert wait_until_still(source) < 300
    with pytest.raises(RuntimeError):
        store.get([599])


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "parquet"])
def test_any_file_that_changed_is_noticed(tmp_path: Path, kind: str) -> None:
    """Whatever the kind of source, and wherever in it: not only the images that are looked at by default."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, root = 40, tmp_path / "data"
    root.mkdir()
    if kind in ("folder", "list"):
        files = [root / f"{i:02}.png" for i in range(n)]
        for i, file in enumerate(files):
            file.write_bytes(png(9, 9, i))
        (tmp_path / "data.txt").write_text("".join(f"data/{file.name}\n" for file in files))
    elif kind == "tar":
        files = [tar(root / f"{i:02}.tar", {"a.png": png(9, 9, i)}) for i in range(n)]
    else:
        files = [root / f"{i:02}.parquet" for i in range(n)]
        for i, file in enumerate(files):
            pq.write_table(pa.table({"image": [{"bytes": png(9, 9, i), "path": None}]}), file)

    def now() -> str | None:
        return open_source(tmp_path / "data.txt" if kind == "list" else root).fingerprint()

    before = now()
    assert before is not None
    assert now() == before
    os.utime(files[17], ns=(0, files[17].stat().st_mtime_ns + 1000))
    assert now() != before


# One cache by itself: what is kept comes back, to the bit and without a copy, whatever a kill or a full disk left.


def image(i: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    random = np.random.default_rng(i)
    high = 256 if dtype == torch.uint8 else 65536
    return torch.from_numpy(random.integers(0, high, (1 + i % 4, 5 + i % 3, 7))).to(dtype)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens the cache in `tmp_path`, and closes it in the end."""
    with contextlib.ExitStack() as stack:

        def open_cache_here(images: int = 10, *, limit: int = 1 << 30) -> ImageCache:
            kept = ImageCache(tmp_path, images, limit=limit)
            stack.callback(kept.close)
            return kept

        yield open_cache_here


@pytest.fixture
def full(opened: Open) -> ImageCache:
    """Ten images kept."""
    kept = opened()
    for i in range(10):
        kept.keep(i, image(i))
    return kept


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_what_is_kept_comes_back(opened: Open, dtype: torch.dtype) -> None:
    kept = opened(20)
    for i in range(0, 20, 2):
        assert kept.get(i) is None
        kept.keep(i, image(i, dtype))
    for one in (kept, opened(20)):
        assert len(one) == 10
        for i in range(20):
            found = one.get(i)
            assert (found is None) == bool(i % 2)
            if found is not None:
                assert found.dtype == dtype
                assert torch.equal(found, image(i, dtype))


def test_a_transposed_image_is_kept_as_it_looks(opened: Open) -> None:
    kept = opened(1)
    kept.keep(0, image(3).permute(2, 0, 1))
    assert torch.equal(kept.get(0), image(3).permute(2, 0, 1))


def test_images_are_not_copied_and_writing_to_one_leaves_the_file_alone(full: ImageCache, opened: Open) -> None:
    kept = full
    first, again = kept.get(3), kept.get(3)
    assert first.data_ptr() == again.data_ptr()
    first.zero_()
    assert torch.equal(opened().get(3), image(3))


def test_a_system_that_promises_no_memory_gets_copies(
    full: ImageCache, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    full.close()
    mapped = mmap.mmap

    def refuse(handle: int, length: int, *, access: int, **options: int) -> mmap.mmap:
        if access == mmap.ACCESS_COPY:
            raise OSError(12, "Cannot allocate memory")
        return mapped(handle, length, access=access, **options)

    monkeypatch.setattr(mmap, "mmap", refuse)
    kept = opened()
    first, again = kept.get(3), kept.get(3)
    assert first.data_ptr() != again.data_ptr()
    assert torch.equal(first, image(3))


def test_two_caches_of_one_folder_see_what_the_other_keeps_and_keep_nothing_twice(opened: Open, tmp_path: Path) -> None:
    one, other = (opened(4) for _ in range(2))
    one.keep(0, image(0))
    assert torch.equal(other.get(0), image(0))
    other.keep(1, image(1))
    one.keep(1, image(1))
    assert torch.equal(one.get(1), image(1))
    assert (tmp_path / "pixels.bin").stat().st_size == 64 + image(1).nbytes  # two images, the second from 64 on


def test_many_threads(opened: Open, tmp_path: Path) -> None:
    kept = opened(200)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(200).tolist():
            if kept.get(i) is None:
                kept.keep(i, image(i))
            if not torch.equal(kept.get(i), image(i)):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(kept) == 200
    assert_kept_once(tmp_path)


def test_mapping_does_not_move_a_write(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that maps the file must not move its position between another one's seek and write."""
    kept = opened(2)
    write = cache._write
    waiting: list[threading.Thread] = []

    def slow_write(file: IO[bytes], offset: int, data: memoryview) -> None:
        if file is kept._pixels:
            kept._map = np.empty(0, np.uint8)
            waiting.append(threading.Thread(target=kept.get, args=(0,)))
            file.seek(offset)
            waiting[-1].start()
            waiting[-1].join(timeout=0.2)
            assert file.tell() == offset
        write(file, offset, data)

    kept.keep(0, image(0))
    monkeypatch.setattr(cache, "_write", slow_write)
    kept.keep(1, image(1))
    for thread in waiting:
        thread.join()
    assert torch.equal(kept.get(0), image(0))
    assert torch.equal(kept.get(1), image(1))


def test_a_record_that_is_half_written_is_not_believed(opened: Open) -> None:
    """Another thread completes the record between the look at it and the look at whether it was checked."""
    kept = opened(1)
    kept.keep(0, image(0))
    whole, half = kept._records.copy(), kept._records.copy()
    half["shape"] = 0

    class Completed:
        """Records of which the first look sees half."""

        def __getitem__(self, i: int) -> np.void:
            kept._checked[i] = True
            return half[i]  # type: ignore[no-any-return]

    kept._checked[0] = False
    kept._records = Completed()  # type: ignore[assignment]
    assert kept.get(0) is None
    kept._records = whole
    assert torch.equal(kept.get(0), image(0))


def assert_right_or_decoded_again(kept: ImageCache, opened: Open) -> None:
    """Every image is right or not found; those are kept again, and then all are right in another process too."""
    for i in range(10):
        found = kept.get(i)
        assert found is None or torch.equal(found, image(i))
        kept.keep(i, image(i))
    again = opened()
    assert all(torch.equal(again.get(i), image(i)) for i in range(10))


@pytest.mark.parametrize("cut", [1, RECORD - 1, RECORD, 2 * RECORD, 3 * RECORD + 1, 10 * RECORD])
def test_an_index_that_was_cut_short(full: ImageCache, opened: Open, tmp_path: Path, cut: int) -> None:
    full.close()
    index = tmp_path / "index.bin"
    os.truncate(index, index.stat().st_size - cut)
    kept = opened()
    whole = 10 - -(-cut // RECORD)
    assert all(torch.equal(kept.get(i), image(i)) for i in range(whole))
    assert all(kept.get(i) is None for i in range(whole, 10))
    assert_right_or_decoded_again(kept, opened)


@pytest.mark.parametrize("filler", [b"\0", b"\1", b"\xff", b"\x7f"])
@pytest.mark.parametrize("part", [slice(0, RECORD), slice(3, 5), slice(8, 20), slice(20, 24), slice(24, RECORD)])
def test_an_index_with_rubbish_in_a_record(
    full: ImageCache, opened: Open, tmp_path: Path, filler: bytes, part: slice
) -> None:
    """And in the same part of two records, one of them the last."""
    full.close()
    index = tmp_path / "index.bin"
    data = bytearray(index.read_bytes())
    for i in (4, 9):
        record = slice(i * RECORD + part.start, i * RECORD + part.stop)
        data[record] = filler * (part.stop - part.start)
    index.write_bytes(data)
    kept = opened()
    assert all(torch.equal(kept.get(i), image(i)) for i in range(10) if i not in (4, 9))
    assert_right_or_decoded_again(kept, opened)


def test_an_index_that_ends_in_rubbish(full: ImageCache, opened: Open, tmp_path: Path) -> None:
    full.close()
    with open(tmp_path / "index.bin", "ab") as index:
        index.write(b"\1" * 5 * RECORD)
    kept = opened()
    assert all(torch.equal(kept.get(i), image(i)) for i in range(10))


def test_pixels_that_are_not_those_written_are_decoded_again(full: ImageCache, opened: Open, tmp_path: Path) -> None:
    full.close()
    with open(tmp_path / "pixels.bin", "r+b") as pixels:
        pixels.seek(5)
        pixels.write(b"\0\0\0\0")
    os.truncate(tmp_path / "pixels.bin", (tmp_path / "pixels.bin").stat().st_size - 1)
    kept = opened()
    assert kept.get(0) is None  # changed
    assert kept.get(9) is None  # cut
    for i in (0, 9):
        kept.keep(i, image(i))
    again = opened()
    assert all(torch.equal(again.get(i), image(i)) for i in range(10))


def test_the_limit_holds_and_is_told_once(opened: Open, tmp_path: Path) -> None:
    kept = opened(limit=300)
    kept.keep(0, image(0))
    kept.keep(1, image(1))  # 35 and 84 bytes; the third takes 147, from 192 on
    with pytest.warns(UserWarning, match="reached its limit"):
        kept.keep(2, image(2))
    for i in range(3, 10):
        kept.keep(i, image(i))  # and warns no more: here a warning is an error
    assert kept.full
    assert (tmp_path / "pixels.bin").stat().st_size <= 300
    assert 1 <= len(kept) < 10
    assert all(kept.get(i) is None or torch.equal(kept.get(i), image(i)) for i in range(10))


def test_a_disk_that_refuses_is_told_once_and_what_is_kept_stays(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = opened()
    kept.keep(0, image(0))

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_write", refuse)
    with pytest.warns(UserWarning, match="No space left on device"):
        kept.keep(1, image(1))
    kept.keep(2, image(2))  # and warns no more
    assert torch.equal(kept.get(0), image(0))
    assert kept.get(1) is None


def test_a_file_system_without_locks_is_told_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise NotImplementedError("no flock here")  # as filelock does

    kept = opened()
    monkeypatch.setattr(kept._process_lock, "acquire", refuse)
    with pytest.warns(UserWarning, match="no flock here"):
        kept.keep(0, image(0))
    kept.keep(1, image(1))  # and warns no more


@pytest.mark.parametrize("fails", range(6))
def test_a_write_that_fails_half_way_costs_that_image_alone(
    opened: Open, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Each image is two writes: its pixels and its record."""
    kept, done, write = opened(), [0], cache._write

    def half(file: io.FileIO, offset: int, data: memoryview) -> None:
        done[0] += 1
        if done[0] == fails + 1:
            write(file, offset, data[: len(data) // 2])
            raise OSError(5, "Input/output error")
        write(file, offset, data)

    monkeypatch.setattr(cache, "_write", half)
    whole = fails // 2
    for i in range(whole):
        kept.keep(i, image(i))
    with pytest.warns(UserWarning, match="Input/output error"):
        kept.keep(whole, image(whole))
    for again in (kept, opened()):
        assert all(torch.equal(again.get(i), image(i)) for i in range(whole))
        assert all(again.get(i) is None for i in range(whole, 3))
    later = opened()
    for i in range(3):
        later.keep(i, image(i))
    assert all(torch.equal(later.get(i), image(i)) for i in range(3))


@pytest.mark.parametrize("error", [FULL, READ_ONLY], ids=["full", "read-only"])
def test_whatever_fails_on_the_disk_the_images_are_right_and_the_next_run_keeps_them(
    tmp_path: Path, error: OSError
) -> None:
    """Each open, write, flush, rename and removal fails in a run of its own, and so do all after it."""
    items = ITEMS[:5]
    expected, disk = images(items), Disk(tmp_path / "whole")
    with disk.mounted(), ImageStore(Known(items), cache=tmp_path / "whole") as store:
        assert_same(store.get(range(5)), expected)
    assert {line.partition(" ")[0] for line in disk.done} == {"open", "write", "flush", "rename"}
    for number in range(len(disk.done)):
        folder = tmp_path / str(number)
        failing = Disk(folder, fails=number, error=error)
        with failing.mounted(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with ImageStore(Known(items), cache=folder) as store:
                for _ in range(2):
                    assert_same(store.get(range(5)), expected)
        assert failing.failed
        said = [str(one.message) for one in told if issubclass(one.category, UserWarning)]
        assert len(said) == 1, disk.done[number]
        assert re.search(f"{error.strerror}.*decoded in every epoch: .*SSOLE_CACHE", said[0]), disk.done[number]
        with ImageStore(Known(items), cache=folder) as store:
            for _ in range(2):
                assert_same(store.get(range(5)), expected)
            assert len(store.cache) == 5, disk.done[number]


def test_after_close_nothing_is_found_or_kept_and_what_was_handed_out_stays(full: ImageCache) -> None:
    kept = full
    found = kept.get(3)
    kept.close()
    kept.close()
    assert kept.get(3) is None
    kept.keep(3, image(3))
    assert torch.equal(found, image(3))


def test_a_cache_for_one_run_that_windows_holds_is_left_whole_for_later_runs_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "about.json").touch()
    one = ImageCache(tmp_path, 1, limit=1 << 20, temporary=True)
    unlink = Path.unlink

    def held(path: Path, missing_ok: bool = False) -> None:
        if path.name == "pixels.bin":
            raise PermissionError(13, "mapped")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", held)
    one.close()
    assert {path.name for path in tmp_path.iterdir()} >= {"about.json", "index.bin", "pixels.bin"}
