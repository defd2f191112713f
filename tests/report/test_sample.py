"""Sample of a run's images: which images, which reasons for none, and views that find each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssole
import tiny
from ssole.data.arrays import ArraySource
from ssole.data.decode import decode
from ssole.data.sources import open_source
from ssole.report.record import Record
from ssole.report.sample import RunSample, open_examples, open_sample
from ssole.training.run import Run

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def opened(run: Run, data: Any = None, limit: int = 40) -> tuple[RunSample | None, str]:
    return open_sample(Record.read(run.path), data, limit=limit, device=CPU, progress=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root: Path = tmp_path_factory.mktemp("sample")
    return tiny.start(root / "run", data=str(tiny.write_folder(root / "images", 50)), steps=2)


def test_features_and_pictures_belong_to_their_images(run: Run) -> None:
    sample, _ = opened(run, limit=30)
    assert sample is not None
    assert sample.test is not None
    assert (sample.total, len(sample.train) + len(sample.test)) == (50, 30)
    whole = ssole.embed(run, run.config.data, progress=False)
    for part in (sample.train, sample.test):
        for row in range(len(part)):
            index = whole.ids.index(part.id(row))
            np.testing.assert_allclose(part.after[row], whole.array[index], atol=1e-5)
            assert whole.labels is not None
            assert part.labels[row] == whole.labels[index]
            assert part.pictures([row], 96)[0].size == (12, 12)
    assert not torch.allclose(sample.train.after, sample.train.before)
    assert sample.name_of(0) == "cat"
    assert sample.name_of(-1) == "no label"


def test_the_same_images_every_time(run: Run) -> None:
    first, second = opened(run, limit=30)[0], opened(run, limit=30)[0]
    assert first is not None
    assert second is not None
    assert [first.train.id(row) for row in range(len(first.train))] == [
        second.train.id(r) for r in range(len(second.train))
    ]


def test_images_are_as_unreadable_as_the_run_allows(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", 50)
    for name in ("cat/000", "cat/002", "dog/001", "dog/003", "cat/004"):
        (data / f"{name}.png").write_bytes(b"damaged")
    run = tiny.start(tmp_path / "run", data=str(data), steps=1, max_unreadable=0.1)
    for limit in (20, 50):  # the smaller sample may have a larger share of them, by chance
        sample, reason = opened(run, limit=limit)
        assert sample is not None, reason


def test_unreadable_images_are_left_out(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", 40)
    run = tiny.start(tmp_path / "run", data=str(data), steps=1)
    (data / "cat" / "000.png").write_bytes(b"damaged")
    sample, _ = opened(run, limit=100)
    assert sample is not None
    assert sample.test is not None
    names = [part.id(row) for part in (sample.train, sample.test) for row in range(len(part))]
    assert len(names) == 39
    assert "cat/000.png" not in names


@pytest.mark.parametrize("classes", [("one",), (".",)], ids=["one class", "no labels"])
def test_images_without_use_for_labels(classes: tuple[str, ...], run: Run, tmp_path: Path) -> None:
    sample, _ = opened(run, str(tiny.write_folder(tmp_path / "images", 30, classes=classes)))
    assert sample is not None
    assert sample.test is None
    assert not sample.labelled
    assert len(sample.train) == 30


def test_ids_for_labels_are_shown_as_they_are(run: Run) -> None:
    sample, _ = opened(run, ArraySource(tiny.images(40), np.array([7, 5000])[np.arange(40) % 2], name="ids"))
    assert sample is not None
    assert {sample.name_of(label) for label in sample.train.labels.tolist()} == {"7", "5000"}


def test_reasons_for_no_images(run: Run, tmp_path: Path) -> None:
    assert opened(run, str(tmp_path / "nowhere"))[0] is None
    assert "nowhere" in opened(run, str(tmp_path / "nowhere"))[1]
    assert "images in memory" in opened(tiny.start(tmp_path / "memory", steps=1))[1]
    unfinished = tiny.start(tmp_path / "unfinished", data=run.config.data, steps=1)
    unfinished.backbone_path.unlink()
    assert "not finished" in opened(unfinished)[1]


def test_agreement_is_whole_when_views_are_the_images(tmp_path: Path) -> None:
    """Views that are the whole image, and nothing else, find each other under any network."""
    plain = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "size": 12}
    names = ("hflip", "brightness", "contrast", "saturation", "hue", "grey", "blur", "solarize")
    off = {f"augment__{name}": 0.0 for name in names}
    run = tiny.start(tmp_path / "run", steps=1, augment__crops=[{"count": 2, **plain}], **off)
    sample, _ = opened(run, tiny.images())
    assert sample is not None
    assert sample.agreement == (1.0, 1.0)


def test_examples_are_images_of_the_data_as_training_sees_them(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", 8)
    run = tiny.start(tmp_path / "run", data=str(data), steps=2)
    record = Record.read(run.path)
    found = open_examples(record, None, limit=4)
    assert found is not None
    images, indices = found
    assert indices.tolist() == [0, 2, 4, 6]
    source = open_source(str(data))
    for index, image in zip(indices.tolist(), images, strict=True):
        assert torch.equal(image, decode(source.read(index), where=source.id(index)))
    sorted(data.rglob("*.png"))[2].write_bytes(b"no image")
    found = open_examples(record, None, limit=4)
    assert found is not None
    assert found[1].tolist() == [0, 4, 6]
    assert open_examples(record, str(tmp_path / "gone"), limit=4) is None
    in_memory = tiny.start(tmp_path / "memory", steps=2)
    assert open_examples(Record.read(in_memory.path), None, limit=4) is None
    assert open_examples(Record.read(in_memory.path), tiny.images(), limit=4) is not None


def test_test_images_of_classes_that_the_sample_lacks_are_left_out(run: Run, tmp_path: Path) -> None:
    tiny.write_folder(tmp_path / "train", 40)
    tiny.write_folder(tmp_path / "test", 40, classes=("cat", "cow"))
    sample, _ = opened(run, str(tmp_path))
    assert sample is not None
    assert sample.labelled
    assert sample.test is not None
    assert {sample.name_of(int(label)) for label in sample.test.labels} == {"cat"}
