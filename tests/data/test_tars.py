"""Tar shards: which members make an image, their labels, the index and what becomes of damaged tars."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from image_files import ids, png, tar, value
from pyarrow import feather

from ssole.data import tars as index_module
from ssole.data.base import Source
from ssole.data.sources import open_source
from ssole.data.tars import TarSource
from ssole.errors import DataError


def shard(path: Path, first: int, count: int = 3) -> Path:
    """Greys of the numbers from `first` on, each with a label."""
    members = {}
    for number in range(first, first + count):
        members[f"{number:06}.png"] = png(number)
        members[f"{number:06}.cls"] = str(number % 2).encode()
    return tar(path, members)


def no_building(monkeypatch):
    def refuse(location):
        raise AssertionError(f"{location} is indexed again")

    monkeypatch.setattr(index_module, "build_index", refuse)


def test_samples_are_members_with_one_key(tmp_path):
    members = {
        "./": b"",
        "./a/1.png": png(1),
        "./a/1.cls": b"3\n",
        "./b/1.json": json.dumps({"label": 5, "caption": "x"}).encode(),
        "./b/1.JPG": png(2),
        "./b/2.png": png(3),
        "./b/2.txt": b"7",
        "c.txt": b"a caption",
        "c.png": png(4),
        "readme": b"",
        "meta/notes.md": b"",
        "._c.png": b"",
        "only.cls": b"1",
    }
    source = open_source(str(tar(tmp_path / "x.tar", members)))
    assert isinstance(source, Source)
    assert ids(source) == ["x.tar:./a/1.png", "x.tar:./b/1.JPG", "x.tar:./b/2.png", "x.tar:c.png"]
    assert [value(source, i) for i in (3, 0, 2, 1)] == [4, 1, 3, 2]
    assert source.labels.tolist() == [3, 5, 7, -1]
    assert source.classes is None
    assert source.ignored == {".txt": 1, "": 1, ".md": 1}
    assert source.hidden == 1


@pytest.mark.parametrize("order", [("1.mask.png", "1.png"), ("1.png", "1.mask.png")])
def test_of_several_images_with_a_key_the_plain_one_is_taken(tmp_path, order):
    source = open_source(tar(tmp_path / "x.tar", {name: png(len(name)) for name in order}))
    assert ids(source) == ["x.tar:1.png"]
    assert value(source, 0) == len("1.png")
    assert source.ignored == {".png": 1}
    several = open_source(tar(tmp_path / "y.tar", {"1.left.png": png(1), "1.right.png": png(2)}))
    assert ids(several) == ["y.tar:1.left.png"]


def test_a_member_appended_later_replaces_the_first(tmp_path):
    path = tar(tmp_path / "x.tar", {"1.png": png(1)})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("1.png")
        info.size = len(png(2))
        archive.addfile(info, io.BytesIO(png(2)))
    source = open_source(path)
    assert len(source) == 1
    assert value(source, 0) == 2
    assert source.ignored == {}


def test_label_names(tmp_path):
    members = {"1.png": png(), "1.cls": b"dog", "2.png": png(), "2.json": b'{"label": "cat"}', "3.png": png()}
    source = open_source(tar(tmp_path / "x.tar", members))
    assert source.classes == ["cat", "dog"]
    assert source.labels.tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("1.json", b"{"),
        ("1.json", b"[]"),
        ("1.json", b'{"label": true}'),
        ("1.json", b'{"label": [1]}'),
        ("1.json", b"[" * 100_000),
        ("1.json", b'{"label": "\\ud800"}'),
        ("1.txt", b"\xff"),
        ("1.txt", b"4" * 100),
        ("1.cls", b""),
    ],
)
def test_what_is_no_label(tmp_path, name, data):
    source = open_source(tar(tmp_path / "x.tar", {name: data, "1.png": png(1)}))
    assert source.labels is None
    assert value(source, 0) == 1
    assert sum(source.ignored.values()) == 1


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_and_long_names(tmp_path, format):
    names = ["1.png", "/".join(["deep" * 10] * 4) + "/2.png"]
    names += ["x" * 300 + ".png", "été/3.png"] if format != tarfile.USTAR_FORMAT else []
    source = open_source(tar(tmp_path / "x.tar", {name: png(i) for i, name in enumerate(names)}, format=format))
    assert ids(source) == [f"x.tar:{name}" for name in names]
    assert [value(source, i) for i in range(len(names))] == list(range(len(names)))


def test_names_that_lead_out_are_only_names(tmp_path):
    (tmp_path / "in").mkdir()
    members = {"../../escape.png": png(1), "/absolute.png": png(2), "..png": png(3)}
    source = open_source(tar(tmp_path / "in" / "x.tar", members))
    assert ids(source) == ["x.tar:../../escape.png", "x.tar:/absolute.png"]
    assert [value(source, 0), value(source, 1)] == [1, 2]
    assert {path.name for path in tmp_path.rglob("*")} == {"in", "x.tar", ".x.tar.ssole-index"}


def test_links_in_a_tar_are_not_followed(tmp_path):
    path = tmp_path / "x.tar"
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(path, "w") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "soft.png"),
            (tarfile.LNKTYPE, "hard.png"),
            (tarfile.FIFOTYPE, "pipe.png"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.png")
            archive.addfile(info)
    with pytest.raises(DataError, match=r"holds no images.*only 3 link"):
        open_source(path)


def test_every_way_of_naming_shards(tmp_path, monkeypatch):
    for i in range(12):
        shard(tmp_path / f"shard-{i:02}.tar", 10 * i, 2)
    everything = [f"shard-{i:02}.tar:{10 * i + k:06}.png" for i in range(12) for k in range(2)]
    for spec in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/shard-{{00..11}}.tar", sorted(tmp_path.glob("*.tar"))):
        source = open_source(spec)
        assert ids(source) == everything
        assert source.labels.tolist() == [0, 1] * 12
        assert value(source, 23) == 111
    assert len(open_source(f"{tmp_path}/shard-{{03,0{{5,7}}}}.tar")) == 6
    monkeypatch.chdir(tmp_path)
    assert ids(open_source("shard-{00..11}.tar")) == everything
    with pytest.raises(DataError, match=r"no file .*shard-12\.tar"):
        open_source("shard-{00..12}.tar")


def test_location_is_that_of_all_files(tmp_path, monkeypatch):
    """Two data sets of one name and length have different locations."""
    for folder in ("a", "b"):
        for i in range(2):
            shard(tmp_path / folder / f"{i}.tar", 0)
    monkeypatch.chdir(tmp_path / "a")
    assert open_source(["1.tar", "0.tar"]).identity == f"{tmp_path}/a/0.tar\n{tmp_path}/a/1.tar"
    assert open_source("../b").identity == f"{tmp_path}/b/0.tar\n{tmp_path}/b/1.tar"


def test_splits(tmp_path):
    for split in ("train", "test"):
        shard(tmp_path / split / "0.tar", 0, 1)
    assert ids(open_source(tmp_path)) == ["train/0.tar:000000.png"]
    assert ids(open_source(f"{tmp_path}/*/0.tar", split="test")) == ["test/0.tar:000000.png"]
    shard(tmp_path / "alone" / "0.tar", 0, 1)
    with pytest.raises(DataError, match="No test split"):
        open_source(tmp_path / "alone", split="test")


def test_tables_beside_shards_and_tars_beside_images(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shard(tmp_path / "0.tar", 0)
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "0.parquet")
    assert isinstance(open_source(tmp_path), TarSource)
    pq.write_table(pa.table({"image": [png()]}), tmp_path / "0.parquet")
    with pytest.raises(DataError, match=r"both 1 parquet files of images and 1 tars"):
        open_source(tmp_path)
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "0.parquet")
    (tmp_path / "1.png").write_bytes(png())
    source = open_source(tmp_path)
    assert ids(source) == ["1.png"]
    assert source.ignored == {".tar": 1, ".parquet": 1}


# ------------------------------------------------------------------------------------------------------- the index


def test_the_index_is_kept_until_the_tar_changes(tmp_path, monkeypatch):
    path = shard(tmp_path / "x.tar", 0)
    open_source(path)
    with monkeypatch.context() as patch:
        no_building(patch)
        source = open_source(path)
        assert [value(source, i) for i in range(3)] == [0, 1, 2]
        assert source.labels.tolist() == [0, 1, 0]
        os.utime(path, ns=(0, 0))
        with pytest.raises(AssertionError, match="indexed again"):
            open_source(path)
    shard(path, 10, 4)
    assert value(open_source(path), 3) == 13


def test_the_index_is_of_this_tar_also_where_size_and_time_are_the_same(tmp_path):
    path = shard(tmp_path / "x.tar", 0)
    os.utime(path, ns=(0, 0))
    size = path.stat().st_size
    open_source(path)
    shard(path, 10)
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == size
    assert open_source(path).id(0) == "x.tar:000010.png"


def test_only_shards_that_are_new_are_indexed(tmp_path, monkeypatch):
    shard(tmp_path / "0.tar", 0)
    open_source(tmp_path)
    shard(tmp_path / "1.tar", 10)
    build, built = index_module.build_index, []
    monkeypatch.setattr(index_module, "build_index", lambda file: built.append(Path(file).name) or build(file))
    source = open_source(tmp_path)
    assert built == ["1.tar"]
    assert [value(source, i) for i in range(6)] == [0, 1, 2, 10, 11, 12]


def test_the_index_is_made_again_when_other_suffixes_are_images(tmp_path, monkeypatch):
    """Such as after a plug-in of Pillow for another format was installed."""
    path = tar(tmp_path / "x.tar", {"1.png": png(1), "2.new": png(2)})
    assert ids(open_source(path)) == ["x.tar:1.png"]
    monkeypatch.setattr(index_module, "image_suffixes", lambda: frozenset({".png", ".new"}))
    assert ids(open_source(path)) == ["x.tar:1.png", "x.tar:2.new"]


@pytest.mark.parametrize("damage", [b"", b"nonsense", "half"])
def test_a_damaged_index_is_made_again(tmp_path, damage):
    path = shard(tmp_path / "x.tar", 0)
    open_source(path)
    (kept,) = tmp_path.glob(".*.ssole-index")
    kept.write_bytes(kept.read_bytes()[:300] if damage == "half" else damage)
    assert len(open_source(path)) == 3


def test_the_index_goes_to_the_cache_where_the_folder_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path / "cache"))
    path = shard(tmp_path / "data" / "x.tar", 0)
    save = index_module._save

    def read_only(place, *arguments, **facts):
        if place.parent == path.parent:
            raise PermissionError(13, "Permission denied")
        save(place, *arguments, **facts)

    monkeypatch.setattr(index_module, "_save", read_only)
    assert len(open_source(path)) == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["x.tar"]
    no_building(monkeypatch)
    assert len(open_source(path)) == 3


def test_no_index_can_be_kept_at_all(tmp_path, monkeypatch):
    def refuse(*arguments, **facts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_module, "_save", refuse)
    with pytest.warns(UserWarning, match=r"The index of x\.tar is made anew each time: .*No space left on device"):
        assert len(open_source(shard(tmp_path / "x.tar", 0))) == 3


@pytest.mark.parametrize("operation", ["write_feather", "fsync", "replace"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_fault_of_the_disk_while_the_index_is_written(tmp_path, monkeypatch, operation, times):
    """Each write, flush and rename fails: beside the tar, and also in the cache folder."""
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path / "cache"))
    owner = feather if operation == "write_feather" else os
    path, plain, failed = shard(tmp_path / "data" / "x.tar", 0), getattr(owner, operation), []

    def fail(*arguments, **options):
        if len(failed) < times:
            failed.append(arguments)
            if owner is feather:
                Path(arguments[1]).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, operation, fail)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert len(open_source(path)) == 3
    assert len(failed) == times
    assert len(said) == times - 1  # nothing to say if it went to the cache folder
    kept = [entry for entry in tmp_path.rglob("*") if entry.is_file() and entry != path]
    assert len(kept) == 2 - times  # one index, and no part of one
    assert len(open_source(path)) == 3


def test_a_hundred_shards_reopen_in_a_second(tmp_path, monkeypatch):
    original = shard(tmp_path / "0.tar", 0, 50)
    (tmp_path / "many").mkdir()
    for i in range(100):
        shutil.copy(original, tmp_path / "many" / f"{i:03}.tar")
    open_source(tmp_path / "many")
    no_building(monkeypatch)
    tries = []
    while len(tries) < 5 and min(tries, default=9) > 1:  # a busy machine only makes it look slower
        start = time.perf_counter()
        assert len(open_source(tmp_path / "many")) == 5000
        tries.append(time.perf_counter() - start)
    assert min(tries) < 1


def test_reading_from_many_threads(tmp_path):
    source = open_source(shard(tmp_path / "x.tar", 0, 60))
    wanted = list(range(60)) * 10
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: value(source, i), wanted)) == wanted


# ---------------------------------------------------------------------------------------------------- damaged tars


def test_compressed(tmp_path):
    path = shard(tmp_path / "x.tar", 0)
    (tmp_path / "y.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "z.tar").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("y.tar.gz", "z.tar"):
        with pytest.raises(DataError, match=rf"{name} is compressed.*gunzip"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>" * 100, bytes(100)])
def test_what_is_no_tar(tmp_path, data):
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.tar is not a tar archive"):
        open_source(tmp_path / "x.tar")


def test_a_tar_without_members(tmp_path):
    with pytest.raises(DataError, match=r"x\.tar holds no images.*only nothing"):
        open_source(tar(tmp_path / "x.tar", {}))


@pytest.mark.parametrize(
    ("length", "whole"),
    [
        (2048 + 512 + 10, 1),  # within an image
        (2048 + 512 + len(png(1)), 2),  # within the zeros that fill its last block
        (2048 + 1024 + 20, 2),  # within the header of its label
        (4096, 2),  # between two members, so that only the mark of the end is missing
        (4096 + 100, 2),  # within the header of an image
    ],
)
def test_of_a_truncated_tar_the_whole_members_are_used(tmp_path, length, whole):
    """A sample takes 2048 bytes here: two headers of 512 bytes, and as much for an image and for a label."""
    path = shard(tmp_path / "x.tar", 0, 5)
    os.truncate(path, length)
    for _ in ("indexed", "from the index"):
        with pytest.warns(UserWarning, match=r"x\.tar breaks off or is damaged"):
            source = open_source(path)
        assert [value(source, i) for i in range(len(source))] == list(range(whole))


def test_a_damaged_header_in_the_middle(tmp_path):
    path = shard(tmp_path / "x.tar", 0, 5)
    data = bytearray(path.read_bytes())
    data[8 * 512 + 148 : 8 * 512 + 156] = b"\xff" * 8  # the checksum of the third image's header
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged after byte 4096"):
        assert len(open_source(path)) == 2


def test_a_member_of_negative_size_does_not_lead_back(tmp_path):
    """The loop of CVE-2025-8194: a header whose size leads the reader to the header itself again."""
    path = shard(tmp_path / "x.tar", 0, 3)
    data = bytearray(path.read_bytes())
    header = data[2048 : 2048 + 512]
    header[124:136] = (-512 % 256**12).to_bytes(12, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[2048 : 2048 + 512] = header
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"breaks off or is damaged"):
        source = open_source(path)
    assert ids(source) == ["x.tar:000000.png"]


def test_a_tar_that_is_cut_while_it_is_in_use(tmp_path):
    source = open_source(shard(tmp_path / "x.tar", 0))
    os.truncate(tmp_path / "x.tar", 8 * 512 + 512 + 10)
    assert value(source, 1) == 1
    with pytest.raises(DataError, match=r"^x\.tar:000002\.png: x\.tar gave 10 bytes in place of \d+; it was cut"):
        source.read(2)
    (tmp_path / "x.tar").unlink()
    with pytest.raises(DataError, match=r"^x\.tar:000002\.png: cannot read the file \(No such file"):
        source.read(2)


def test_patterns_that_are_wrong(tmp_path):
    with pytest.raises(DataError, match="more than 100000 files"):
        open_source("shard-{0..99999999}.tar")
    with pytest.raises(DataError, match="more than 100000 files"):
        open_source("shard-{0..999}-{0..999}.tar")
    with pytest.raises(DataError, match="No file matches"):
        open_source(f"{tmp_path}/*.tar")


def headers_without_end(count: int) -> bytes:
    """Many headers that say something about a next one."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 0
    return info.tobuf() * count


def zeros(data: bytes) -> bytes:
    """A hole, as after a disk lost a part: the end of a tar looks the same."""
    return data[:2048] + bytes(4096) + data[6144:]


def chain_of_headers(data: bytes) -> bytes:
    return data[:2048] + headers_without_end(5000)


def long_hole(data: bytes) -> bytes:
    return data[:2048] + bytes(2 << 20)


@pytest.mark.parametrize("damage", [zeros, chain_of_headers, long_hole])
def test_members_before_any_damage_are_kept_and_the_loss_is_told(tmp_path, damage):
    path = tar(tmp_path / "a.tar", {f"{i}.png": png(i) for i in range(8)})  # 1024 bytes each
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(
        UserWarning, match=r"a\.tar breaks off or is damaged after byte \d+: what comes after that is lost"
    ):
        source = TarSource(path)
    assert ids(source) == ["a.tar:0.png", "a.tar:1.png"]
    assert [value(source, i) for i in range(2)] == [0, 1]


def test_images_with_dots_in_their_names_are_not_left_out_in_silence(tmp_path):
    names = [f"scan 2026.05.{n}.png" for n in range(12)]
    path = tar(tmp_path / "a.tar", {name: png(n) for n, name in enumerate(names)})
    with pytest.warns(UserWarning, match=r"11 of 12 images are left out .* rename images with more dots"):
        assert len(TarSource(path)) == 1
