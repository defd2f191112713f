"""TIFFs of many channels, pages and bits, as `decode` gives them: pixels, limits of size, and what is refused."""

from __future__ import annotations

import importlib.util
import io
import logging
import lzma
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
import torch
from image_files import DEEP, GREY, RGB, decoded, encode, own, tiff
from PIL import Image

from ssole.data.decode import decode
from ssole.data.tiff import MAX_SIDE, check_size, is_tiff, read_tiff, silence_tiff_libraries, tiff_header
from ssole.errors import DataError


def test_for_rgb_a_later_page_of_a_tiff_may_be_damaged() -> None:
    image = Image.fromarray(RGB)
    data = bytearray(encode(image, "TIFF", save_all=True, append_images=[image]))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        width = file.pages[1].tags["ImageWidth"].offset
    struct.pack_into("<H", data, width, 65000)  # another tag
    with pytest.raises((TypeError, ValueError)), Image.open(io.BytesIO(data)) as opened:
        opened.seek(1)
    assert np.array_equal(decoded(bytes(data)), RGB)


def test_pages_are_frames_where_each_has_the_channels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(own(tiff(frames, photometric="rgb"), 3), frames[0])
    assert np.array_equal(own(tiff(frames[..., 0], photometric="minisblack"), 1), frames[0, ..., :1])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_deep_tiff_is_that_of_a_common_one(orientation: int) -> None:
    """The oracle is Pillow's turning of the upper bits of the first three channels."""
    tag = [(274, "H", 1, orientation, True)]
    common = decoded(tiff((DEEP[..., :3] >> 8).astype(np.uint8), photometric="rgb", extratags=tag))
    deep = own(tiff(DEEP, photometric="minisblack", planarconfig="contig", extratags=tag), 6)
    assert np.array_equal(deep[..., :3] >> 8, common)


@pytest.mark.parametrize("byteorder", "<>")
def test_planes_of_16_bits_are_those_of_8(byteorder: Literal["<", ">"]) -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 40, 64), dtype=np.uint8)
    deep = tiff(planes.astype(np.uint16) * 257, photometric="rgb", planarconfig="separate", byteorder=byteorder)
    assert np.array_equal(decoded(deep), planes.transpose(1, 2, 0))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_fourth_channel_that_is_no_alpha_changes_no_colour(kind: Any, layout: Any, bigtiff: bool) -> None:
    """Infrared, for example. Pillow leaves it out as well, where it opens the file."""
    bands = np.random.default_rng(0).integers(0, 256, (8, 9, 4))
    stored = (bands * (np.iinfo(kind).max // 255)).astype(kind)
    how = {"photometric": "rgb", "planarconfig": layout, "extrasamples": ["unspecified"], "bigtiff": bigtiff}
    data = tiff(stored if layout == "contig" else stored.transpose(2, 0, 1), **how)
    assert np.array_equal(decoded(data), bands[..., :3].astype(np.uint8))


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("photometric", "extra"), [("minisblack", [2]), ("minisblack", [0]), ("miniswhite", [0]), ("rgb", [2, 0])]
)
def test_planes_beside_the_colours_are_read_as_pixels_beside_them(
    photometric: str, extra: list[int], compression: str | None
) -> None:
    """Pillow opens grey with alpha in planes, and gives white."""
    pixels = np.random.default_rng(0).integers(
        0, 256, (8, 9, (3 if photometric == "rgb" else 1) + len(extra)), np.uint8
    )
    how = {"photometric": photometric, "extrasamples": extra, "compression": compression}
    data = tiff(pixels.transpose(2, 0, 1), planarconfig="separate", **how)
    expected = decoded(tiff(pixels, planarconfig="contig", **how))
    assert np.array_equal(decoded(data), expected)
    assert expected.std() > 0
    whole = decode(data, where="here", channels=pixels.shape[2]).permute(1, 2, 0).numpy()
    assert np.array_equal(~whole if photometric == "miniswhite" else whole, pixels)


@pytest.mark.parametrize("kind", [np.float32, np.int16, np.uint32])
def test_deep_pixels_without_an_agreed_range(kind: type[np.generic]) -> None:
    with pytest.raises(DataError, match=rf"^here: {np.dtype(kind)} pixels have no agreed range"):
        decode(tiff(DEEP.astype(kind), photometric="minisblack", planarconfig="contig"), where="here", channels=6)


def test_a_tiff_whose_pages_differ_in_size_is_no_stack() -> None:
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(DEEP[..., 0])
        writer.write(DEEP[:3, :, 0])
    with pytest.raises(DataError, match=r"^here: "):
        decode(out.getvalue(), where="here", channels=2)


def test_a_compression_that_needs_a_package_names_it() -> None:
    if importlib.util.find_spec("imagecodecs") is not None:
        pytest.skip("imagecodecs is installed")
    pages = [Image.fromarray(GREY)] * 5
    data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:], compression="tiff_lzw")
    with pytest.raises(DataError, match=r"^here: .*LZW.*pip install imagecodecs"):
        decode(data, where="here", channels=5)


def test_ome_tiff_reads_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The description of an OME-TIFF may say that planes lie in other files, which is not followed."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("other.tif", np.full((5, 7), 9, np.uint16))
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint16" SizeX="7" SizeY="5" SizeC="2" SizeZ="1" SizeT="1">'
        '<TiffData IFD="0" FirstC="0" PlaneCount="1"/><TiffData IFD="0" FirstC="1" PlaneCount="1">'
        '<UUID FileName="other.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
    )
    data = tiff(DEEP[..., 0], description=ome, metadata=None)
    assert np.array_equal(own(data, 1), DEEP[..., :1])
    with pytest.raises(DataError, match=r"1 channels, and 2"):
        decode(data, where="here", channels=2)


def with_tag(data: bytes, number: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag that has one short value."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages.first.tags[number].valueoffset
    return data[:offset] + struct.pack("<H", value) + data[offset + 2 :]


def tiff_of_segment(segment: bytes, compression: int) -> bytes:
    """A BigTIFF of 10 x 10 grey pixels whose only strip is already packed, in whatever way, into these bytes."""
    plain = with_tag(tiff(np.zeros((10, 10), np.uint8), bigtiff=True, photometric="minisblack"), 259, compression)
    with tifffile.TiffFile(io.BytesIO(plain)) as file:
        tags = file.pages.first.tags
        places = {tags[273].valueoffset: len(plain), tags[279].valueoffset: len(segment)}
        sizes = {tags[273].valueoffset: tags[273].dtype, tags[279].valueoffset: tags[279].dtype}
    out = bytearray(plain)
    for offset, number in places.items():
        packed = struct.pack("<Q" if sizes[offset] == 16 else "<I", number)
        out[offset : offset + len(packed)] = packed
    return bytes(out) + segment


@pytest.mark.parametrize("compression", [8, 32946])
def test_a_deflated_tiff_that_unpacks_to_more_than_its_size(compression: int) -> None:
    """Memory is what matters: not a hundredth of the 100 MB that are packed here may be taken."""
    whole = decode(tiff_of_segment(zlib.compress(bytes(range(100))), compression), where="here", channels=1)
    assert whole.flatten().tolist() == list(range(100))
    bomb = tiff_of_segment(zlib.compress(bytes(100_000_000), 9), compression)
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"^here: .*unpacks to more than its size.*bomb"):
            decode(bomb, where="here")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_tile_too_large_to_be_trusted() -> None:
    """The image is small, and is cut from one tile of 64 Gpixels."""
    data = tiff(np.zeros((16, 16), np.uint8), bigtiff=True, photometric="minisblack", tile=(16, 16), compression="zlib")
    for tag in (322, 323):
        data = with_tag(data, tag, 65520)
    with pytest.raises(DataError, match=r"^here: .*values, which could be a decompression bomb"):
        decode(data, where="here")


@pytest.mark.parametrize(
    ("compression", "said"),
    [
        (34925, "pip install imagecodecs"),
        (32773, "pip install imagecodecs"),
        (7, "JPEG is not read"),
        (50001, "WEBP is not read"),
    ],
)
def test_compressions_that_cannot_be_limited(compression: int, said: str) -> None:
    if importlib.util.find_spec("imagecodecs") is not None and "imagecodecs" in said:
        pytest.skip("imagecodecs is installed")
    with pytest.raises(DataError, match=rf"^here: .*{said}"):
        decode(tiff_of_segment(lzma.compress(bytes(100)), compression), where="here")


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("channels", [None, 3])
def test_palette_of_a_big_tiff(byteorder: str, channels: int | None) -> None:
    numbers = np.arange(35, dtype=np.uint8).reshape(5, 7)
    colours = np.random.default_rng(4).integers(0, 256, (3, 256), dtype=np.uint16)
    data = tiff(numbers, bigtiff=True, byteorder=byteorder, photometric="palette", colormap=colours * 257)
    tensor = decode(data, where="here", channels=channels)
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.numpy(), colours[:, numbers])
    with pytest.raises(DataError, match=r"the image has 3 channels, and 1 are"):
        decode(data, where="here", channels=1)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.uint16])
def test_white_at_zero(kind: type[np.generic], bigtiff: bool) -> None:
    grey = DEEP[..., 0] > 30_000 if kind is bool else DEEP[..., 0].astype(kind)
    data = tiff(~grey, bigtiff=bigtiff, photometric="miniswhite")  # of integers the largest minus the value
    pixels = grey * np.uint8(255) if kind is bool else grey
    assert np.array_equal(own(data, 1)[..., 0], pixels)
    assert np.array_equal(decoded(data), decoded(pixels))


@pytest.mark.parametrize(("number", "name"), [(5, "SEPARATED"), (6, "YCBCR"), (8, "CIELAB"), (999, "999")])
def test_colour_spaces_that_only_pillow_knows(number: int, name: str) -> None:
    data = tiff(DEEP[..., :4], photometric="separated")
    for bytes_of_tiff in (data, tiff(DEEP[..., :4], photometric="separated", bigtiff=True)):
        with pytest.raises(DataError, match=rf"^here: a TIFF of the kind {name} .*convert the image to RGB"):
            decode(with_tag(bytes_of_tiff, 262, number), where="here", channels=4)


def test_few_bits_of_a_big_tiff_are_not_taken_for_eight() -> None:
    data = with_tag(tiff(np.zeros((4, 8), np.uint8), bigtiff=True, photometric="minisblack"), 258, 4)
    with pytest.raises(DataError, match=r"^here: 4-bit pixels are not read"):
        decode(data, where="here")


# The functions themselves


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"II*\0more", True),
        (b"MM\0*more", True),
        (b"II+\0more", True),
        (b"MM\0+more", True),
        (b"II\0*more", False),
        (b"MM*\0more", False),
        (b"II*", False),
        (b"\x89PNG", False),
        (b"", False),
    ],
)
def test_a_tiff_is_known_by_its_first_bytes(data: bytes, expected: bool) -> None:
    assert is_tiff(data) is expected


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_header(kind: type[np.integer], byteorder: str) -> None:
    data = tiff(DEEP.astype(kind), photometric="minisblack", planarconfig="contig", byteorder=byteorder)
    assert tiff_header(data) == (f"6 x {np.dtype(kind)}", 7, 5)


def test_without_a_number_of_channels_the_first_page_is_taken_as_it_is() -> None:
    pages = tiff(DEEP.transpose(2, 0, 1).copy(), photometric="minisblack")
    assert np.array_equal(read_tiff(pages, None, where="here"), DEEP[..., :1])
    assert np.array_equal(read_tiff(pages, 6, where="here"), DEEP)
    with pytest.raises(DataError, match=r"^here: the image has 6 pages of 1 channels, and 5 are asked for\.$"):
        read_tiff(pages, 5, where="here")


def test_a_tiff_without_the_tag_of_its_kind_has_black_at_zero() -> None:
    data = tiff(DEEP[..., :1], photometric="minisblack")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        place = file.pages.first.tags[262].offset
    untagged = data[:place] + struct.pack("<H", 65000) + data[place + 2 :]  # a number that no tag has
    assert np.array_equal(read_tiff(untagged, 1, where="here"), DEEP[..., :1])


def test_the_limit_of_bytes_is_that_of_the_largest_rgba_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses more than twice its limit of pixels; four bytes each."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    check_size((5, 1), 8000, "here")
    with pytest.raises(Image.DecompressionBombError, match=r"^The image has 8001 bytes of values"):
        check_size((5, 1), 8001, "here")
    check_size((MAX_SIDE, 1), 1, "here")
    with pytest.raises(Image.DecompressionBombError, match=r"a side of 65536 pixels, more than 65535"):
        check_size((1, MAX_SIDE + 1), 1, "here")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # trusts all ...
    check_size((MAX_SIDE + 1, 1), 10**12, "here")
    with pytest.raises(DataError, match=r"^here: the image has no pixels\.$"):  # ... but nothing is no image
        check_size((0, 5), 0, "here")


def test_libraries_print_nothing_about_a_damaged_tiff(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encode(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (start,) = file.pages.first.dataoffsets
    data[start : start + 20] = b"\xff" * 20
    silence_tiff_libraries()
    with pytest.raises(DataError, match=r"^here: "):
        decode(bytes(data), where="here")
    assert capfd.readouterr() == ("", "")
    for name in ("tifffile", "PIL"):
        assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger(name).handlers)
