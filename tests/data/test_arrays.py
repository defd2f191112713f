"""Images in arrays, in NumPy's files and in torchvision's data sets."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from urllib.error import URLError

import numpy as np
import pytest
from image_files import ids

from ssole.data.arrays import ArraySource
from ssole.data.base import Source
from ssole.data.decode import decode
from ssole.data.sources import open_source
from ssole.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


def test_arrays():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    source = open_source(images)
    assert isinstance(source, Source)
    assert np.array_equal(source.read(1), images[1])
    assert ids(source) == ["array:0", "array:1"]
    assert source.labels is None
    labelled = ArraySource(images[..., 0], np.array([1, 0], np.int32), classes=("a", "b"), name="mine")
    assert labelled.labels.dtype == np.int64
    assert labelled.id(1) == "mine:1"
    assert open_source(labelled, split="test") is labelled


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), None, r"float32 \(2, 4, 4, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), None, "channels last"),
        (np.zeros((4, 4), np.uint8), None, r"\(4, 4\)"),
        (np.zeros((0, 4, 4, 3), np.uint8), None, r"\(0, 4, 4, 3\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), r"\(3,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2), "float64"),
    ],
)
def test_arrays_that_are_wrong(images, labels, said):
    with pytest.raises(DataError, match=said):
        ArraySource(images, labels)


def test_labels_without_a_name_are_refused():
    """Else an evaluation would look for the name of a label that has none."""
    with pytest.raises(DataError, match="a label is 5, and there are 2 names of classes"):
        ArraySource(IMAGES, np.array([0, 1, 5, 0, 1, -1]), classes=["cat", "dog"])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1), (6, 5, 4, 3), (6, 5, 4, 13)])
def test_npy(tmp_path, kind, shape):
    images = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape).astype(kind)
    np.save(tmp_path / "x.npy", images)
    source = open_source(str(tmp_path / "x.npy"))
    assert isinstance(source, Source)
    assert ids(source) == [f"x.npy:{i}" for i in range(6)]
    assert np.array_equal(source.read(4), images[4])
    assert isinstance(source.images, np.memmap)
    channels = shape[3] if len(shape) == 4 else 1
    tensor = decode(source.read(2), where="", channels=channels)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), images[2].reshape(5, 4, -1))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), r"x\.npy: .*float32 \(2, 4, 4, 3\)\. Scale"),
        (np.zeros((2, 4, 4, 3), np.int64), r"x\.npy: .*int64 \(2, 4, 4, 3\)\. If they lie in 0\.\.255, use .astype"),
        (np.array([{}, []], dtype=object), r"x\.npy as a NumPy file without pickled objects"),
        (b"", r"Cannot read .*x\.npy"),
        (b"\x93NUMPY junk", r"Cannot read .*x\.npy"),
    ],
)
def test_npy_that_is_wrong(tmp_path, content, said):
    if isinstance(content, bytes):
        (tmp_path / "x.npy").write_bytes(content)
    else:
        np.save(tmp_path / "x.npy", content, allow_pickle=True)
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / "x.npy")


def test_npy_that_was_cut(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"Cannot read .*x\.npy"):
        open_source(tmp_path / "x.npy")


@pytest.mark.parametrize("channels", [3, 4])
def test_one_image_is_no_array_of_images(channels):
    with pytest.raises(DataError, match=r"got uint8 \(40, 48, .\)\. If it is one image, give image\[None\]"):
        open_source(np.zeros((40, 48, channels), np.uint8))


def test_npy_splits(tmp_path):
    for split in ("train", "test"):
        np.save(tmp_path / f"{split}.npy", IMAGES)
    assert open_source(tmp_path / "test.npy", split="test").id(0) == "test.npy:0"
    with pytest.raises(DataError, match="No test split"):
        open_source(tmp_path / "train.npy", split="test")


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("train_images", "train_labels"), ("arr_0", None)],
)
def test_npz(tmp_path, images, labels):
    numbers = np.arange(6, dtype=np.uint8)
    arrays = {images: IMAGES, **({labels: numbers[:, None] if images == "train_images" else numbers} if labels else {})}
    np.savez_compressed(tmp_path / "d.npz", **arrays)
    source = open_source(tmp_path / "d.npz")
    assert source.id(5) == f"d.npz/{images}:5"
    assert np.array_equal(source.read(5), IMAGES[5])
    assert (source.labels is None) if labels is None else (source.labels.tolist() == list(range(6)))
    with pytest.raises(DataError, match=r"d\.npz has no test images"):
        open_source(tmp_path / "d.npz", split="test")


def test_npz_splits(tmp_path):
    arrays = {"x_train": IMAGES, "y_train": np.zeros(6, int), "x_val": IMAGES[:1], "x_test": IMAGES[1:3]}
    np.savez(tmp_path / "d.npz", **arrays, y_test=np.array([4, 5]), y_val=np.array([9]))
    test = open_source(tmp_path / "d.npz", split="test")
    assert ids(test) == ["d.npz/x_test:0", "d.npz/x_test:1"]
    assert np.array_equal(test.read(0), IMAGES[1])
    assert test.labels.tolist() == [4, 5]
    assert len(open_source(tmp_path / "d.npz")) == 6
    np.savez(tmp_path / "test.npz", x=IMAGES)
    assert len(open_source(tmp_path / "test.npz", split="test")) == len(open_source(tmp_path / "test.npz")) == 6


def test_npz_that_is_wrong(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez(path, pictures=IMAGES)
    with pytest.raises(DataError, match=r"d\.npz has no array called x_train.*\['pictures'\]"):
        open_source(path)
    np.savez(path, x=np.array([None, {}], dtype=object))
    with pytest.raises(DataError, match="without pickled objects"):
        open_source(path)
    np.savez(path, x=IMAGES, y=np.zeros(5, int))
    with pytest.raises(DataError, match=r"6 images need as many integer labels; got int64 \(5,\)"):
        open_source(path)
    np.save(out := io.BytesIO(), IMAGES)
    path.write_bytes(out.getvalue())
    with pytest.raises(DataError, match=r"one array, not an archive.*\.npy"):
        open_source(path)
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(DataError, match=r"Cannot read .*d\.npz"):
        open_source(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(DataError, match=r"d\.npz"):
        open_source(path)


def test_npz_that_does_not_fit_into_memory(tmp_path, monkeypatch):
    """Told from the archive's table, before anything is unpacked."""
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((1000, 8, 8), np.uint8))
    monkeypatch.setattr("ssole.memory.total_memory", lambda: 4000)
    with pytest.raises(DataError, match=r"\['x'\] of .*d\.npz: .* 80 % of the memory.*\.npy"):
        open_source(tmp_path / "d.npz")
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.zeros(1000, int))
    with pytest.raises(DataError, match=r"\['x', 'y'\] of .*d\.npz: .* 80 % of the memory"):
        open_source(tmp_path / "d.npz")


def test_npz_members_without_a_suffix(tmp_path):
    np.save(out := io.BytesIO(), IMAGES)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", out.getvalue())
    assert np.array_equal(open_source(tmp_path / "d.npz").read(3), IMAGES[3])


@pytest.mark.parametrize(
    ("offset", "value"),
    [(6, b"\1"), (8, b"\x63")],  # within the entry in the archive's table and before the data: encrypted, compression
)
def test_npz_that_zipfile_does_not_read(tmp_path, offset, value):
    path = tmp_path / "d.npz"
    np.savez(path, x=IMAGES)
    data = bytearray(path.read_bytes())
    table = data.index(b"PK\1\2") + 2  # where the same fields come two bytes later
    data[offset : offset + 1] = data[table + offset : table + offset + 1] = value
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"Cannot read .*d\.npz"):
        open_source(path)


def test_npz_whose_header_asks_for_too_much(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1152921504606846976,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"Cannot read .*d\.npz"):
        open_source(tmp_path / "d.npz")


def test_channels_first_is_told_from_channels_last():
    with pytest.raises(DataError, match="channels last"):
        ArraySource(np.zeros((2, 3, 8, 8), np.uint8))
    assert ArraySource(np.zeros((2, 8, 8, 5), np.uint16)).read(0).shape == (8, 8, 5)


# ------------------------------------------------------------------------------------------------- torchvision


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_placed_by_hand(tmp_path, monkeypatch):
    """Real files in the layout that the message of a failed download asks for."""
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    raw = tmp_path / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part, count in (("train", 3), ("t10k", 2)):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(_idx(images[:count]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(_idx(np.array([7, 0, 2], np.uint8)[:count]))
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(b""))
    source = open_source("MNIST")
    assert len(source) == 3
    assert source.labels.tolist() == [7, 0, 2]
    assert source.classes[7] == "7 - seven"
    assert np.array_equal(source.read(2), images[2])
    assert len(open_source("mnist", split="test")) == 2
    assert source.id(0) == "mnist/train:0"


class _Fake:
    """A torchvision dataset in the layout of STL-10 or CIFAR, that is there only once it has been downloaded."""

    def __init__(self, root, *, download=False, **arguments):
        if not download:
            raise RuntimeError("Dataset not found or corrupted.")
        self.root, self.arguments = root, arguments
        if "split" in arguments:
            self.data = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
            self.labels = np.array([-1, -1] if arguments["split"] == "unlabeled" else [1, 0])
        else:
            self.data, self.targets = np.zeros((2, 4, 5, 3), np.uint8), [3, 4]
        self.classes = list("abcde")


def test_torchvision_layouts(tmp_path, monkeypatch):
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.STL10", _Fake)
    monkeypatch.setattr("torchvision.datasets.CIFAR10", _Fake)
    cifar = open_source("cifar10")
    assert cifar.labels.tolist() == [3, 4]
    assert cifar.read(0).shape == (4, 5, 3)
    labelled, unlabelled = open_source("stl10"), open_source("stl10-unlabeled")
    assert np.array_equal(labelled.read(1), _Fake("", download=True, split="").data[1].transpose(1, 2, 0))
    assert labelled.labels.tolist() == [1, 0]
    assert unlabelled.labels is None
    assert unlabelled.classes is None
    assert open_source("stl10-unlabeled", split="test").labels.tolist() == [1, 0]


@pytest.mark.parametrize("error", [URLError("no route"), RuntimeError("Error downloading"), TimeoutError("timed out")])
def test_a_failed_download_says_what_to_place_where(tmp_path, monkeypatch, error):
    def fail(root, **arguments):
        raise error if arguments.get("download") else RuntimeError("Dataset not found or corrupted.")

    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR100", fail)
    with pytest.raises(DataError) as raised:
        open_source("cifar100")
    for part in ("cifar100", str(error), "cifar-100-python.tar.gz", str(tmp_path / "torchvision")):
        assert part in str(raised.value)


def claiming(shape: str) -> bytes:
    """A .npy whose header claims a shape, before a thousand bytes."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(1000)


SHAPES = ["(-1, 10, 10)", "(-2, -5, 10, 10)", "(10, -10, -10)", "(10**11, 100, 100)", f"({2**62}, {2**62}, 4)"]
SHAPES += [f"({2**64}, 1, 1)", "(1e3, 1, 1)", "('a',)", "10", "()", "(" * 3000, "(1000000000000, 1, 1)", "(0, 10, 10)"]


@pytest.mark.parametrize("kind", ["npy", "npz"])
@pytest.mark.parametrize("shape", SHAPES, ids=range(len(SHAPES)))
def test_shapes_that_a_file_does_not_hold_are_an_error(tmp_path, kind, shape):
    path = tmp_path / f"a.{kind}"
    if kind == "npy":
        path.write_bytes(claiming(shape))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", claiming(shape))
    with pytest.raises(DataError, match=r"a\.np[yz]"):
        open_source(path)


def test_labels_beyond_63_bits_are_numbered():
    labels = np.array([2**64 - 1, 5, 2**64 - 1, 2**63], np.uint64)
    source = ArraySource(np.zeros((4, 2, 2), np.uint8), labels)
    assert source.labels.tolist() == [2, 0, 2, 1]
    assert source.classes == ["5", str(2**63), str(2**64 - 1)]
    plain = ArraySource(np.zeros((4, 2, 2), np.uint8), np.array([7, 5, 7, 6], np.uint64))
    assert plain.labels.tolist() == [7, 5, 7, 6]
    assert plain.classes is None


@pytest.mark.parametrize("labels", [np.zeros((6, 14), int), np.zeros(6), np.array(["a"] * 6)])
def test_npz_labels_that_are_no_classes_are_left_out(tmp_path, labels):
    np.savez(tmp_path / "d.npz", x=IMAGES, y=labels)
    with pytest.warns(UserWarning, match=r"y is left out, because labels are one integer for each image, and it has "):
        source = open_source(tmp_path / "d.npz")
    assert len(source) == 6
    assert source.labels is None
