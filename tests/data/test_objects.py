"""Data sets of the user's own: what items may be, labels, errors, threads."""

from __future__ import annotations

import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import pytest
import torch
from image_files import ids, png, special_files, value
from PIL import Image

from ssole.data.base import Source
from ssole.data.decode import decode
from ssole.data.objects import ObjectSource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


class Items:
    """A data set in the manner of torch."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


@pytest.mark.parametrize(
    "item",
    [
        RGB,
        Image.fromarray(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        (RGB, 3),
        [Image.fromarray(RGB), "label"],
        {"label": 1, "image": Image.fromarray(RGB)},
        {"img": RGB},
    ],
)
def test_items(item):
    source = open_source(Items([item]))
    assert isinstance(source, Source)
    assert ids(source) == ["Items:0"]
    assert np.array_equal(decode(source.read(0), where="").permute(1, 2, 0).numpy(), RGB)


def test_encoded_items_and_paths(tmp_path):
    (tmp_path / "1.png").write_bytes(png(1))
    source = open_source(Items([png(0), str(tmp_path / "1.png"), (tmp_path / "1.png", 5), bytearray(png(2))]))
    assert [value(source, i) for i in range(4)] == [0, 1, 1, 2]


def test_a_list_of_paths_is_known_by_them(tmp_path):
    files = [tmp_path / "b.png", tmp_path / "a.jpg"]
    for number, file in enumerate(files):
        file.write_bytes(png(number))
    source = open_source(files)
    assert ids(source) == [str(file) for file in files]
    assert [value(source, 0), value(source, 1)] == [0, 1]
    with pytest.raises(DataError, match=r"b\.png and 1 more image files have no test split"):
        open_source(files, split="test")
    with pytest.raises(DataError, match=r"no file .*gone"):
        open_source([*files, tmp_path / "gone.png"])
    (tmp_path / "x.csv").write_text("path\n")
    with pytest.raises(DataError, match=r"cannot be opened as one.*\['.csv', '.png'\]"):
        open_source([files[0], tmp_path / "x.csv"])


def test_special_files_among_items_are_unreadable(tmp_path):
    special = special_files(tmp_path, ".png")
    for source in (open_source(Items(special)), ObjectSource(special)):
        for i in range(len(special)):
            with pytest.raises(DataError, match=rf"^{source.id(i)}: cannot read the file \(not a regular file"):
                source.read(i)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "YCbCr"])
def test_pillow_images_mean_the_same_as_their_files(mode):
    """The oracle is what decoding a lossless file of them gives."""
    if mode == "I;16":
        image = Image.fromarray(np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800)
    else:
        image = Image.fromarray(RGB).convert(mode)
    source = open_source([image])
    out = io.BytesIO()
    image.save(out, "TIFF")
    if mode == "YCbCr" and int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("Pillow cannot read back the YCbCr TIFF that it writes")
    assert torch.equal(decode(source.read(0), where=""), decode(out.getvalue(), where=""))


def test_large_items_are_shrunk_by_the_store():
    """As ImageFolder gives them: what a store keeps of whole photographs is what training can use."""
    large = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for item in (Image.fromarray(large), large, torch.from_numpy(large).permute(2, 0, 1)):
        store = ImageStore(open_source(Items([(item, 0)] * 3)), shrink_to=30, progress=False)
        assert store.images.shape == (3, 3, 30, 40)


def test_orientation_of_pillow_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as lazy:
        assert decode(open_source([lazy]).read(0), where="").shape == (3, 7, 5)
    loaded = Image.open(tmp_path / "x.png")
    loaded.load()
    assert open_source([loaded]).read(0).shape == (7, 5, 3)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "gif"])
def test_a_list_of_opened_images_does_not_grow(tmp_path, kind):
    """Pixels would stay with the images that were opened, and not decoded, by whoever made the list."""
    files = [tmp_path / f"{i}.{kind}" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("L", (8, 8), 20 * i).save(file)
    images = [Image.open(file) for file in files]
    source = open_source(images)
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda i: value(source, i), [0, 1, 2] * 20)) == [0, 20, 40] * 20
    assert all(image.tile for image in images)  # which Pillow empties on decoding
    for i, image in enumerate(images):
        with image:  # it can still be used
            assert image.convert("L").getpixel((0, 0)) == pytest.approx(20 * i, abs=1)


def test_a_later_frame_is_itself(tmp_path):
    frames = [Image.new("L", (4, 4), 100 * i) for i in range(3)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "x.tif") as image:
        image.seek(2)
        assert value(open_source([image]), 0) == 200


def test_fingerprint_of_paths_alone(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file in files:
        file.write_bytes(png(0))
    before = open_source(files).fingerprint()
    assert before == open_source(list(map(str, files))).fingerprint()
    files[1].write_bytes(png(0) + b" ")
    assert open_source(files).fingerprint() not in (None, before)
    assert open_source([RGB, RGB]).fingerprint() is None
    assert open_source([RGB, RGB]).files() is None  # unknown, so that resuming does not compare what may be random
    assert ObjectSource(["https://example.org/1.png"]).fingerprint() is None


def test_deep_tensors_keep_their_depth():
    deep = torch.arange(5 * 2 * 3, dtype=torch.int32).reshape(5, 2, 3).to(torch.uint16)
    source = open_source([deep])
    assert torch.equal(decode(source.read(0), where="", channels=5), deep)


def test_a_tensor_of_images():
    images = torch.randint(0, 256, (3, 3, 4, 5), dtype=torch.uint8)
    source = open_source(images)
    assert torch.equal(decode(source.read(2), where=""), images[2])


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_labels_come_from_attributes_alone(name, kind):
    class Counting(Items):
        asked = 0

        def __getitem__(self, i):
            self.asked += 1
            return self.items[i]

    items = Counting([RGB] * 3, **{name: kind([1, 0, 1])}, classes=["a", "b"])
    source = open_source(items)
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [1, 0, 1]
    assert source.classes == ["a", "b"]
    assert items.asked == 1  # the first, to see of which kind they are


@pytest.mark.parametrize(
    ("targets", "why"),
    [
        ([[1], [2, 3], []], r"targets of the data set are no array"),
        ([1, 2], r"targets of the data set are int64 \(2,\), and labels are one integer for each image"),
        ([0.5, 1.0, 2.0], r"are float64 \(3,\), and"),
        (["a", "b", "c"], r"are texts \(3,\), and"),
        ([[0], [1], [2]], r"are int64 \(3, 1\), and"),
        (object(), r"are object \(\), and"),
    ],
)
def test_attributes_that_are_no_labels(targets, why):
    source = open_source(Items([RGB] * 3, targets=targets))
    assert source.labels is None
    assert re.search(why, source.why_unlabelled)


@pytest.mark.parametrize(("item", "is_told"), [((RGB, 1), True), ({"img": RGB, "label": 1}, True), ((RGB,), False)])
def test_labels_in_the_items_are_not_read_and_that_is_told(item, is_told):
    source = open_source([item] * 3)
    assert source.labels is None
    assert (source.why_unlabelled is not None) == is_told


def test_an_attribute_that_raises_gives_no_labels():
    """As of a torchvision data set whose split has none."""

    class Unlabelled(Items):
        @property
        def targets(self):
            raise NotImplementedError("this split has no targets")

    labelled = open_source(Unlabelled([RGB] * 3, labels=[1, 0, 1]))
    assert (labelled.labels.tolist(), labelled.why_unlabelled) == ([1, 0, 1], None)
    reason = open_source(Unlabelled([RGB] * 3)).why_unlabelled
    assert reason == "targets of the data set are no array (this split has no targets)"


def test_labels_beyond_63_bits_are_numbered():
    source = open_source(Items([RGB] * 3, targets=np.array([2**64 - 1, 4, 2**64 - 1], np.uint64)))
    assert source.labels.tolist() == [1, 0, 1]
    assert source.classes == ["4", str(2**64 - 1)]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int8])
def test_labels_of_any_integer_type_have_names(dtype):
    source = open_source(Items([RGB] * 3, targets=np.array([0, 1, 1], dtype), classes=["a", "b"]))
    assert (source.labels.tolist(), source.classes) == ([0, 1, 1], ["a", "b"])
    assert open_source(Items([], targets=np.empty(0, dtype), classes=["a", "b"])).classes == ["a", "b"]


def test_classes_that_do_not_name_the_labels():
    source = open_source(Items([RGB] * 3, targets=[0, 1, 2], classes=["a", "b"]))
    assert source.labels.tolist() == [0, 1, 2]
    assert source.classes is None


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (torch.rand(3, 4, 4), r"float32 \(3, 4, 4\).*leave the transform out"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), r"bfloat16 \(3, 4, 4\).*leave the transform out"),
        ((np.zeros((4, 4, 3)), 1), r"float64 \(4, 4, 3\).*leave the transform out"),
        (np.zeros((4, 4, 3), np.int64), r"int64 \(4, 4, 3\)\.$"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"uint8 \(2, 4, 4, 3\)\. For an array of images with labels, give ssole"),
        (object(), "got object"),
        (3, "got int"),
        (None, "got NoneType"),
    ],
)
def test_items_of_a_wrong_kind_are_told_at_once(item, said):
    with pytest.raises(DataError, match=rf"^Items:0: an item must .*{said}"):
        open_source(Items([item]))


def test_a_mapping_without_an_image_is_unreadable():
    with pytest.raises(DataError, match=r"Items:1: none of the item's keys \['text'\] is image"):
        open_source(Items([RGB, {"text": 1}])).read(1)


@pytest.mark.parametrize("spec", [3, {"a": RGB}, (x for x in [RGB]), {1, 2}])
def test_what_is_no_data_set(spec):
    with pytest.raises(DataError, match=rf"__len__ and __getitem__.*got {type(spec).__name__}"):
        open_source(spec)


def test_whatever_an_item_raises_is_its_reason():
    class Broken(Items):
        def __getitem__(self, i):
            if i == 0:
                raise RuntimeError("the disk is on fire")
            return self.items[i]

    source = open_source(Broken([RGB] * 4))
    with pytest.raises(DataError, match=r"^Broken:0: .*RuntimeError: the disk is on fire"):
        source.read(0)
    store = ImageStore(source, max_unreadable=0.3)
    assert store.unreadable == [(0, "Broken:0", "getting the item failed (RuntimeError: the disk is on fire).")]


def test_a_damaged_lazy_image_is_unreadable(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:5000])
    with Image.open(tmp_path / "x.png") as lazy:
        source = open_source(Items([lazy, RGB]))
        with pytest.raises(DataError, match=r"^Items:0: the image is damaged"):
            decode(source.read(0), where=source.id(0))
    with pytest.raises(DataError, match=r"^Items:0: the image is damaged"):
        source.read(0)  # its file is closed by now


@pytest.mark.parametrize("thread_safe", [False, True])
def test_items_are_asked_for_one_at_a_time_unless_told(thread_safe):
    together = threading.Barrier(2)

    class Slow(Items):
        inside = 0
        most = 0

        def __getitem__(self, i):
            self.inside += 1
            self.most = max(self.most, self.inside)
            if thread_safe and i:
                together.wait(timeout=30)
            else:
                time.sleep(0.01)
            self.inside -= 1
            return RGB

    items = Slow([None] * 5)
    source = ObjectSource(items, thread_safe=thread_safe, name="mine")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(source.read, [1, 2, 3, 4]))
    assert (items.most > 1) == thread_safe
    assert source.id(3) == "mine:3"
