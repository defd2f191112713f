"""What can be given as data: splits of folders, names, and errors for everything else."""

from __future__ import annotations

import pytest
from image_files import ids, png, special_files, tar, tree, value

from ssole.data.arrays import open_npy, open_npz
from ssole.data.base import Source
from ssole.data.folder import ListSource
from ssole.data.parquet import ParquetSource
from ssole.data.sources import open_source, open_test_images
from ssole.data.tars import TarSource
from ssole.errors import DataError


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation"])
def test_folder_splits(tmp_path, test):
    tree(tmp_path, "train/a/1.png", "train/b/2.png", f"{test}/a/3.png", "meta/4.png")
    assert ids(open_source(tmp_path)) == ["train/a/1.png", "train/b/2.png"]
    source = open_source(tmp_path, split="test")
    assert ids(source) == [f"{test}/a/3.png"]
    assert value(source, 0) == 2
    assert open_source(tmp_path).classes == ["a", "b"]


def test_splits_in_any_case(tmp_path):
    tree(tmp_path, "Train/a/1.png", "TEST/a/2.png", "val/a/3.png")
    assert ids(open_source(tmp_path)) == ["Train/a/1.png"]
    assert ids(open_source(tmp_path, split="test")) == ["TEST/a/2.png"]


def test_test_is_preferred_to_val(tmp_path):
    tree(tmp_path, "train/1.png", "test/2.png", "val/3.png")
    assert ids(open_source(tmp_path, split="test")) == ["test/2.png"]


def test_a_class_called_train_is_no_split(tmp_path):
    source = open_source(tree(tmp_path, "train/1.png", "car/2.png", "boat/3.png"))
    assert source.classes == ["boat", "car", "train"]


def test_folder_without_the_split_asked_for(tmp_path):
    tree(tmp_path / "whole", "a/1.png")
    tree(tmp_path / "half", "train/1.png")
    tree(tmp_path / "my-val", "1.png")
    with pytest.raises(DataError, match="not divided into splits"):
        open_source(tmp_path / "whole", split="test")
    with pytest.raises(DataError, match="no test split"):
        open_source(tmp_path / "half", split="test")
    assert len(open_source(tmp_path / "my-val", split="test")) == 1


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """Asked for through the functions, since whoever runs the tests may be allowed everything."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(DataError, match=r"Cannot list the folder .* \(Permission denied\)"):
        open_source(tmp_path)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(DataError, match="There is no dataset, folder or file named"):
        open_source(tmp_path / "gone")


def test_images_given_for_testing_are_never_the_training_images_of_a_damaged_test_split(tmp_path):
    tree(tmp_path, "train/1.png")
    assert ids(open_test_images(tmp_path)) == ["train/1.png"]  # there is no split
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match=r"test is empty"):
        open_test_images(tmp_path)
    tar(tmp_path / "download.tar", {"1.png": png(1)})
    with pytest.raises(DataError, match=r"test is empty"):  # the tar has no test split, but the folder has one
        open_test_images(tmp_path)
    (tmp_path / "download.tar").unlink()
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"test\.parquet as parquet"):
        open_test_images(str(tmp_path / "*.parquet"))


def test_digits_m(tmp_path, monkeypatch):
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path))
    source = open_source("digits-m", split="test")
    assert len(source) == 1600
    assert source.classes == list("0123456789")
    assert source.id(7) == "digits-m/test:7"


def test_what_does_not_exist(tmp_path, monkeypatch):
    tree(tmp_path, "pictures/1.png")
    with pytest.raises(DataError, match=r"named .*pictuers.*Did you mean .*pictures\?"):
        open_source(tmp_path / "pictuers")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Did you mean cifar10"):
        open_source("cifar-10")
    with pytest.raises(DataError, match="Did you mean digits-m"):
        open_source("digitsm")
    with pytest.raises(DataError, match=r"named '/no/such/place'"):
        open_source("/no/such/place")
    with pytest.raises(DataError, match="No file matches"):
        open_source("nothing-*.parquet")
    for text in ("", "~nobody/photos", "a" * 5000, "a\0b"):  # an empty text is not the working directory
        with pytest.raises(DataError, match="There is no dataset, folder or file named"):
            open_source(text)


def test_specs_of_a_wrong_kind(tmp_path):
    with pytest.raises(DataError, match=r"1\.png cannot be opened.*folder of images.*\.parquet.*got \['\.png'\]"):
        open_source(tree(tmp_path, "1.png") / "1.png")
    (tmp_path / "folder").mkdir()
    for several in ([tmp_path / "1.png", tmp_path / "folder"], f"{tmp_path}/f*"):
        with pytest.raises(DataError, match="folder is a folder, and only files can be given together"):
            open_source(several)
    with pytest.raises(DataError, match="got int"):
        open_source(3)
    with pytest.raises(DataError, match="'val'"):
        open_source("digits-m", split="val")


@pytest.mark.parametrize("suffix", [".jpg", ".txt", ".csv", ".npy", ".npz", ".parquet", ".tar"])
def test_special_files_are_refused_by_name(tmp_path, suffix):
    for file in special_files(tmp_path, suffix):
        for spec in (file, [file, file], f"{tmp_path}/*{file.name}"):
            with pytest.raises(DataError, match=rf"{file.name} is not a regular file but a pipe, socket or device"):
                open_source(spec)
    if suffix != ".jpg":
        kinds = {
            ".parquet": ParquetSource,
            ".tar": TarSource,
            ".npy": open_npy,
            ".npz": lambda f: open_npz(f, "train", whole=True),
        }
        with pytest.raises(DataError, match="not a regular file"):
            kinds.get(suffix, ListSource)(str(tmp_path / f"pipe{suffix}"))


def test_files_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(0))
    source = open_source(["~/a.png", "~/b.png"])
    assert [source.id(i) for i in range(2)] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]


class Own(Source):
    """The least that a source of one's own must have."""

    name = "own"

    def __len__(self):
        return 2

    def id(self, i):
        return f"x{i}"

    def read(self, i):
        return png(i)


def test_a_source_of_ones_own():
    source = open_source(Own())
    assert [value(source, i) for i in range(2)] == [0, 1]
    assert (source.labels, source.classes, source.hidden, dict(source.ignored)) == (None, None, 0, {})
    assert source.fingerprint() is None
    with pytest.raises(TypeError, match="abstract"):
        Source()


def test_shards_below_a_linked_folder_and_compressed_ones(tmp_path):
    tar(tmp_path / "elsewhere" / "1.tar", {"1.png": png(1)})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    assert len(open_source(tmp_path / "data")) == 1
    (tmp_path / "data" / "more.tar.gz").write_bytes(b"beside others it is left alone")
    assert len(open_source(tmp_path / "data")) == 1
    (tmp_path / "data" / "train").unlink()
    with pytest.raises(DataError, match=r"more\.tar\.gz is compressed|more\.tar\.gz is not a tar"):
        open_source(tmp_path / "data")


def test_one_image_is_no_data_set(tmp_path):
    (tmp_path / "one.png").write_bytes(png(1))
    with pytest.raises(
        DataError, match=r"one\.png cannot be opened .* One image is no data set: give its folder, /.*\.$"
    ):
        open_source(tmp_path / "one.png")
