"""Every kind of image, made in memory with known pixels; test_tiff.py has what is special in TIFFs."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from image_files import DEEP, GREY, RGB, decoded, deep_png, encode, own, tiff
from PIL import Image

from ssole.data.decode import decode, mean_and_std, moments
from ssole.errors import DataError

ALPHA = np.array([[0, 51, 102, 153, 204, 229, 255]] * 5, dtype=np.uint8)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "TGA", "WEBP", "PCX", "SGI"])
def test_lossless_rgb(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decoded(encode(Image.fromarray(RGB), kind, **options)), RGB)


def test_jpeg_is_close():
    smooth = np.tile(np.linspace(30, 220, 32, dtype=np.uint8)[:, None, None], (1, 32, 3))
    assert np.abs(decoded(encode(Image.fromarray(smooth), "JPEG", quality=95)).astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind, orientation):
    """The stored pixels are turned so that the EXIF standard's rule turns them back."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[8:, :8] = (0, 255, 0)
    upright[:8, 16:] = (0, 0, 255)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert decoded(data).shape == upright.shape
    assert np.abs(decoded(data).astype(int) - upright).max() <= 10


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0junk", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_damaged_exif_does_not_hide_the_pixels(exif):
    assert np.array_equal(decoded(encode(Image.fromarray(RGB), exif=exif)), RGB)


def test_palette():
    image = Image.fromarray(RGB).quantize(35)
    assert np.array_equal(decoded(encode(image)), np.asarray(image.convert("RGB")))
    assert np.array_equal(decoded(encode(image, "GIF")), np.asarray(image.convert("RGB")))


def test_palette_with_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert decoded(encode(image, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert decoded(encode(image, transparency=bytes([255, 51]))).tolist() == [[[10, 20, 30], [212, 214, 216]]]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_grey(kind):
    flat = np.full((8, 8), 77, np.uint8)
    assert np.array_equal(decoded(encode(Image.fromarray(flat), kind)), grey3(flat))


def test_grey_with_alpha():
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
    assert np.abs(decoded(encode(image)) - over_white(grey3(GREY), ALPHA)).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_rgba_is_laid_over_white(kind):
    image = Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], axis=-1))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.abs(decoded(encode(image, kind, **options)) - over_white(RGB, ALPHA)).max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_grey_with_alpha_is_refused(channels):
    with pytest.raises(DataError, match="x: 16 bits of grey with transparency cannot be read: remove the transparency"):
        decode(deep_png(DEEP[..., :2]), where="x", channels=channels)


def test_one_transparent_colour():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert decoded(encode(image, transparency=(4, 5, 6))).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind):
    """JPEG from Pillow is Adobe's inverted CMYK. A pure cyan and a half black, each (255 - ink) (1 - black)."""
    ink = np.zeros((16, 32, 4), np.uint8)
    ink[:, :16] = (255, 0, 0, 0)
    ink[:, 16:] = (0, 0, 0, 128)
    out = decoded(encode(Image.fromarray(ink, "CMYK"), kind)).astype(int)
    assert np.abs(out[:, :16] - (0, 255, 255)).max() <= 4
    assert np.abs(out[:, 16:] - 127).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_one_bit(kind):
    bits = np.array([[True, False, True], [False, False, True]])
    assert np.array_equal(decoded(encode(Image.fromarray(bits), kind)), grey3(bits * np.uint8(255)))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_uses_its_full_range(kind):
    values = np.array([[0, 128, 129, 257, 32896, 65535]], np.uint16)
    expected = grey3(np.round(values * (255 / 65535)).astype(np.uint8))
    assert np.array_equal(decoded(encode(Image.fromarray(values), kind)), expected)


def test_16_bit_big_endian_tiff():
    image = Image.frombytes("I;16B", (3, 1), struct.pack(">3H", 0, 257 * 9, 65535))
    assert decoded(encode(image, "TIFF"))[0, :, 0].tolist() == [0, 9, 255]


def test_16_bit_rgb_png():
    pixels = np.array([[[0, 257 * 100, 65535], [257, 514, 771]]], np.uint16)
    assert decoded(deep_png(pixels)).tolist() == [[[0, 100, 255], [1, 2, 3]]]


def test_integer_image_within_16_bits():
    image = Image.fromarray(np.array([[0, 257 * 7, 65535]], np.int32))
    assert decoded(encode(image, "TIFF"))[0, :, 0].tolist() == [0, 7, 255]


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.array([[0, 70_000]], np.int32), "70000"),
        (np.array([[-1, 5]], np.int32), "-1"),
        (np.array([[0.5]], np.float32), "float"),
    ],
)
def test_pixels_without_an_agreed_range(pixels, said):
    with pytest.raises(DataError, match=f"^here: .*{said}"):
        decode(encode(Image.fromarray(pixels), "TIFF"), where="here")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert (decoded(data) == (200, 0, 0)).all()


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays(channels):
    array = {None: GREY, 1: GREY[..., None], 3: RGB, 4: np.concatenate([RGB, ALPHA[..., None]], axis=-1)}[channels]
    expected = {None: grey3(GREY), 1: grey3(GREY), 3: RGB, 4: over_white(RGB, ALPHA)}[channels]
    array = array.copy()
    array.flags.writeable = False
    assert np.abs(decoded(array) - expected).max() <= (1 if channels == 4 else 0)
    assert np.array_equal(decoded(np.asfortranarray(array)), decoded(array))
    before = array.copy()
    decode(array, where="here").zero_()  # the result is a copy
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_image(array):
    with pytest.raises(DataError) as raised:
        decode(array, where="here")
    assert "here: " in str(raised.value)
    assert str(array.dtype) in str(raised.value)
    assert str(array.shape) in str(raised.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"  \n<!DOCTYPE html><html><body>404</body></html>", "HTML"),
        (b"\xef\xbb\xbf<HTML>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\1\2 not an image", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JFIF|damaged|not an image"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, reason):
    with pytest.raises(DataError, match=rf"^here: (?s:.*)({reason})"):
        decode(data, where="here")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated(kind):
    """Half of the file is missing."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(DataError, match=r"^here: "):
        decode(data[: len(data) // 2], where="here")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damage_anywhere_gives_an_image_or_a_data_error(kind):
    random = np.random.default_rng(2)
    data = encode(Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)), kind)
    outcomes = set()
    for _ in range(300):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), 3):
            damaged[position] = random.integers(0, 256)
        try:
            outcomes.add(decode(bytes(damaged), where="here").shape[0])
        except DataError as error:
            outcomes.add(str(error)[:6])
    assert outcomes <= {3, "here: "}
    assert "here: " in outcomes


def test_decompression_bomb(monkeypatch):
    """A small file that claims more pixels than Pillow's limit; far above it, whatever the warning filter says."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = encode(Image.new("RGB", (50, 41)))
    with pytest.raises(DataError, match=r"^here: .*2050 pixels.*MAX_IMAGE_PIXELS"):
        decode(data, where="here")


def claiming(width: int, height: int, *, depth: int = 8, kind: int = 0) -> bytes:
    """A PNG that claims a size; decoding it would take that much memory."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("channels", [None, 1])
@pytest.mark.parametrize("sides", [(1, 178_000_000), (65_536, 2), (2, 65_536)])
def test_a_side_too_long_to_be_trusted(sides, channels):
    tracemalloc.start()
    with pytest.raises(DataError, match=r"^here: The image has a side of \d+ pixels, more than 65535, .*into tiles"):
        decode(claiming(*sides), where="here", channels=channels)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_is_of_bytes_too(monkeypatch):
    """16 bits in four channels take twice the bytes of as many RGBA pixels."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"^here: The image has 12000 bytes of values, which could be a decompression"):
        decode(claiming(30, 50, depth=16, kind=6), where="here", channels=4)
    long = encode(Image.new("L", (65_535, 1)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    assert decode(long, where="here").shape == (3, 1, 65_535)


@pytest.mark.parametrize("value", [1, 77, 128, 254])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_constant_has_no_standard_deviation(value, dtype):
    """Not even of rounding, by which training would divide."""
    images = [torch.from_numpy(np.full((3, 33, 31), value, dtype)) for _ in range(16)]
    mean, std = mean_and_std([moments(image) for image in images])
    assert std == [0.0, 0.0, 0.0]
    assert mean == pytest.approx([value / np.iinfo(dtype).max] * 3)
    flat = np.full((3, 33, 31), value, dtype)
    flat[:, :, ::2] += 1  # the least that can be seen
    assert min(mean_and_std([moments(torch.from_numpy(flat))])[1]) > 1e-6


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_shrinking_keeps_proportions_and_colours(kind, orientation):
    """Of a large image of four flat quarters, turned by its EXIF or not; a small one is left alone."""
    large = np.zeros((400, 600, 3), np.uint8)
    large[:200, :300], large[:200, 300:], large[200:, :300] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(large), kind, exif=exif)
    whole = decoded(data)
    for side in (40, 64, 199, 300):
        small = decode(data, where="here", shrink_to=side).permute(1, 2, 0).numpy()
        assert small.shape == ((side, round(1.5 * side), 3) if orientation == 1 else (round(1.5 * side), side, 3))
        for y, x in ((1, 1), (1, 3), (3, 1), (3, 3)):
            near, far = (im[y * im.shape[0] // 4, x * im.shape[1] // 4].astype(int) for im in (small, whole))
            assert np.abs(near - far).max() <= 4
    for side in (400, 1000):
        assert torch.equal(decode(data, where="here", shrink_to=side), decode(data, where="here"))


# ------------------------------------------------------------------------------- as many channels as there are


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("layout", ["array", "pages", "planes", "pixels", "big-endian pages", "deflated pixels"])
def test_tiff_and_arrays_of_any_channels(kind, channels, layout):
    pixels = (DEEP[..., :channels] >> (8 if kind == np.uint8 else 0)).astype(kind)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if layout == "array":
        data = pixels
    elif layout == "pages":
        data = tiff(planes, photometric="minisblack")
    elif layout == "big-endian pages":
        data = tiff(planes, photometric="minisblack", byteorder=">", bigtiff=True)
    elif channels == 1:
        data = tiff(planes[0], photometric="minisblack")
    elif layout == "planes":
        data = tiff(planes, photometric="minisblack", planarconfig="separate")
    else:
        compression = "zlib" if layout == "deflated pixels" else None
        data = tiff(pixels, photometric="minisblack", planarconfig="contig", compression=compression)
    out = own(data, channels)
    assert out.dtype == kind
    assert np.array_equal(out, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_keeps_its_depth(channels):
    pixels = DEEP[..., :channels]
    out = own(deep_png(pixels), channels)
    assert out.dtype == np.uint16
    assert np.array_equal(out, pixels)


def test_16_bit_tiff_of_colours_is_scaled_for_rgb():
    """Pillow keeps the upper 8 bits of these; what it does not open is rounded."""
    assert np.abs(decoded(tiff(DEEP[..., :3], photometric="rgb")).astype(int) - DEEP[..., :3] / 257).max() <= 1
    assert np.array_equal(decoded(DEEP[..., :3]), np.round(DEEP[..., :3] / 257).astype(np.uint8))
    assert np.array_equal(decoded(DEEP[..., 0]), grey3(np.round(DEEP[..., 0] / 257).astype(np.uint8)))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), GREY[..., None]),
        (Image.fromarray(GREY > 99), ((GREY > 99) * np.uint8(255))[..., None]),
        (Image.fromarray(np.dstack([RGB, ALPHA])), np.dstack([RGB, ALPHA])),
        (Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]), np.dstack([GREY, ALPHA])),
        (Image.fromarray(RGB).quantize(35), np.asarray(Image.fromarray(RGB).quantize(35).convert("RGB"))),
        (Image.fromarray(DEEP[..., 0]), DEEP[..., :1]),
    ],
)
def test_own_channels_of_common_images(image, expected):
    assert np.array_equal(own(encode(image), expected.shape[2]), expected)


def test_cmyk_counts_as_rgb():
    assert own(encode(Image.new("CMYK", (4, 4)), "TIFF"), 3).tolist() == [[[255] * 3] * 4] * 4


@pytest.mark.parametrize(
    ("data", "has"),
    [
        (encode(Image.fromarray(RGB)), "3 channels"),
        (encode(Image.fromarray(GREY), "JPEG"), "1 channels"),
        (deep_png(DEEP[..., :3]), "3 channels"),
        (tiff(DEEP.transpose(2, 0, 1).copy(), photometric="minisblack"), "6 pages of 1 channels"),
        (tiff(DEEP, photometric="minisblack", planarconfig="contig"), "6 channels"),
        (DEEP, "6 channels"),
        (GREY, "1 channels"),
    ],
)
def test_other_channels_than_asked_for(data, has):
    with pytest.raises(DataError, match=rf"^here: the image has {has}, and 5 are asked for"):
        decode(data, where="here", channels=5)


def test_many_channels_are_no_rgb():
    for data in (DEEP, tiff(DEEP, photometric="minisblack", planarconfig="contig")):
        with pytest.raises(DataError, match=r"^here: RGB is made of .* has 6 .*channels=6"):
            decode(data, where="here")


def test_channels_below_one():
    with pytest.raises(ValueError, match=r"at least 1.*got 0"):
        decode(RGB, where="here", channels=0)


@pytest.mark.parametrize("data", [deep_png(DEEP[..., :3]), tiff(DEEP, photometric="minisblack", planarconfig="contig")])
def test_a_deep_image_too_large_to_be_trusted(monkeypatch, data):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"^here: .*bomb.*MAX_IMAGE_PIXELS"):
        decode(data, where="here", channels=6)


@pytest.mark.parametrize(
    "data",
    [
        deep_png(DEEP[..., :3]),
        tiff(DEEP[..., :3], photometric="minisblack", planarconfig="contig", compression="zlib"),
        tiff(DEEP[..., :3].transpose(2, 0, 1).copy(), photometric="minisblack"),
    ],
)
def test_damage_anywhere_in_a_deep_image(data):
    random = np.random.default_rng(2)
    with pytest.raises(DataError, match=r"^here: "):
        decode(data[: len(data) // 2], where="here", channels=3)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(data)
        for position in random.integers(0, len(data), 3):
            damaged[position] = random.integers(0, 256)
        try:
            outcomes.add(decode(bytes(damaged), where="here", channels=3).shape[0])
        except DataError as error:
            outcomes.add(str(error)[:6])
    assert outcomes <= {3, "here: "}


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_shrinking_a_deep_image(channels):
    """Pillow's resizing of each channel as floats is the oracle."""
    y, x = np.mgrid[0:60, 0:80]
    waves = [np.sin(x / (4 + c)) + np.cos(y / (5 + c)) for c in range(channels)]
    pixels = np.stack([(w * 16000 + 32768) for w in waves], axis=-1).astype(np.uint16)
    data = tiff(pixels, photometric="minisblack", planarconfig="contig")
    small = own(data, channels, shrink_to=30)
    assert small.dtype == np.uint16
    for c in range(channels):
        plane = Image.fromarray(pixels[..., c].astype(np.float32))
        expected = np.asarray(plane.resize((40, 30), Image.Resampling.BICUBIC))
        assert np.abs(small[..., c] - expected).max() < 0.02 * 65535
    assert np.array_equal(own(data, channels, shrink_to=60), pixels)


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_are_shrunk_like_images(channels):
    """The oracle is the same picture as a PNG."""
    random = np.random.default_rng(5)
    colours = random.integers(0, 256, (60, 90, 4), dtype=np.uint8)[:, :, : channels or 3]
    array = colours[:, :, 0] if channels == 1 else colours
    small = decode(array, where="here", shrink_to=20, channels=channels)
    assert small.shape == (channels or 3, 20, 30)
    assert torch.equal(small, decode(encode(Image.fromarray(array)), where="here", shrink_to=20, channels=channels))
    assert torch.equal(decode(array, where="here", shrink_to=60), decode(array, where="here"))


def test_transparent_colours_do_not_show_when_an_array_is_shrunk():
    """Black that is wholly transparent is white, and so is every mixture of it with white."""
    array = np.zeros((40, 40, 4), np.uint8)
    array[::2] = 255
    assert (decode(array, where="here", shrink_to=15) == 255).all()


@pytest.mark.parametrize("channels", [None, 3])
def test_wrong_suffixes_do_not_matter(channels):
    """A format is known by its bytes alone; decode is never told the name's suffix."""
    for kind in ("PNG", "BMP", "TIFF"):
        tensor = decode(encode(Image.fromarray(RGB), kind), where="photo.jpg", channels=channels)
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), RGB)
