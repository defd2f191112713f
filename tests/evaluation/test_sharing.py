"""Processes that share an evaluation: its result is that of one process, and the first one alone writes and prints."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import ranks
import tiny
from ssole import distributed, evaluate
from ssole.data import reader
from ssole.data.store import ImageStore
from ssole.evaluation.sharing import own_batches
from ssole.training.run import Run

pytestmark = pytest.mark.slow

IMAGES = 700  # three batches, so that the last round lacks one


@contextlib.contextmanager
def counted(file: Path) -> Iterator[None]:
    """Context that writes how many images this process decodes, and how many it reads from stores."""
    plain, read = ImageStore.get, []

    def get(self: ImageStore, indices: torch.Tensor) -> Any:
        read.append(len(indices))
        return plain(self, indices)

    with mock.patch.object(reader, "decode", wraps=reader.decode) as decode, mock.patch.object(ImageStore, "get", get):
        yield
    file.write_text(f"{decode.call_count} {sum(read)}")


def commands(folder: Path, out: Path) -> None:
    """`ssole eval` and `ssole embed` of one run, and what each process prints."""
    out.mkdir(exist_ok=True)
    run, photos = str(folder / "run"), str(folder / "photos")
    printed = out / f"printed-{os.environ.get('RANK', '0')}.txt"
    with printed.open("w") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with counted(out / f"decoded-{os.environ.get('RANK', '0')}.txt"):
            assert tiny.main("eval", run, "--data", photos, "--save", str(out / "eval.json"), "--device", "cpu") == 0
        assert tiny.main("embed", run, "--data", photos, "--out", str(out / "embeddings.npz"), "--device", "cpu") == 0


def examine(folder: Path, out: Path) -> None:
    """`ssole doctor`, which the first process does alone from then on."""
    with (out / f"examined-{os.environ.get('RANK', '0')}.txt").open("w") as file, contextlib.redirect_stdout(file):
        found = ("--no-estimate", "--json", str(out / "doctor.json"))
        assert tiny.main("doctor", str(folder / "photos"), *found) == 0


def share(folder: Path) -> None:
    commands(folder, folder / "two")
    photos = str(folder / "photos")
    given = ("--recipe", str(folder / "tiny.yaml"), "--data", photos, "--out", str(folder / "told"))
    said = folder / f"trained-{os.environ['RANK']}.txt"
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        assert tiny.main("pretrain", *given) == 0
    found = []
    plain = ImageStore.prefetch

    def prefetch(self: ImageStore, indices: torch.Tensor) -> None:
        found.append(len(indices))
        plain(self, indices)

    ImageStore.prefetch = prefetch  # type: ignore[method-assign]
    run = tiny.start(folder / "trained on two", data=photos, eval_data=photos, knn_every=6)
    assert set(found) == {2}  # of a batch of 4, though all images have one size and would fit into memory
    assert run.finished
    examine(folder, folder / "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    photos = tiny.write_folder(folder / "photos", IMAGES)
    (photos / "cat" / "300.png").write_bytes(b"damaged")  # in the second batch, which the second process reads
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSOLE_CACHE", str(folder / "cache"))
        tiny.start(folder / "run", data=str(photos))
        commands(folder, folder / "one")
        examine(folder, folder / "one")
        tiny.recipe(folder)
        ranks.run(2, share, folder)
    return folder


def test_the_result_is_that_of_one_process(folder: Path) -> None:
    one, two = (json.loads((folder / name / "eval.json").read_text()) for name in ("one", "two"))
    assert one["rows"] == two["rows"]
    assert one["notes"] == two["notes"]
    assert any("1 training images of" in note for note in one["notes"]), one["notes"]
    alone, shared = (np.load(folder / name / "embeddings.npz") for name in ("one", "two"))
    assert len(alone["array"]) == IMAGES - 1
    for name in alone.files:
        assert np.array_equal(alone[name], shared[name]), name


def test_the_doctor_finds_what_it_finds_in_one_process(folder: Path) -> None:
    clock = dict.fromkeys(("seconds", "views", "decode"))
    one, two = (json.loads((folder / name / "doctor.json").read_text()) | clock for name in ("one", "two"))
    assert one == two
    assert "300.png" in (folder / "two" / "examined-0.txt").read_text()
    assert (folder / "two" / "examined-1.txt").read_text() == ""


def test_an_image_is_decoded_by_one_process_for_all(folder: Path) -> None:
    assert not (folder / "one" / "decoded-1.txt").exists()
    (_, all_read), *both = (
        [int(word) for word in (folder / name).read_text().split()]
        for name in ("one/decoded-0.txt", "two/decoded-0.txt", "two/decoded-1.txt")
    )
    assert sum(decoded for decoded, _ in both) < 1.2 * IMAGES  # more than once only those that all begin with
    assert max(decoded for decoded, _ in both) < IMAGES
    assert max(read for _, read in both) < 0.7 * all_read  # of raw pixels too


def test_the_first_process_alone_prints(folder: Path) -> None:
    one, first, second = (
        (folder / name).read_text() for name in ("one/printed-0.txt", "two/printed-0.txt", "two/printed-1.txt")
    )
    assert first.replace("/two/", "/one/").split() == one.split()
    assert second == ""
    assert "evaluate them: ssole eval" in (folder / "trained-0.txt").read_text()
    assert (folder / "trained-1.txt").read_text() == ""


def test_accuracy_while_training_is_that_of_a_later_evaluation(folder: Path) -> None:
    run = Run(folder / "trained on two")
    rows = [row for row in run.metrics if "knn20" in row]
    assert [row["step"] for row in rows] == [6, 12]
    how: dict[str, Any] = {
        "protocol": "knn",
        "baselines": False,
        "device": "cpu",
        "precision": "float32",
        "progress": False,
    }
    result = evaluate(run, str(folder / "photos"), **how)
    assert rows[-1]["knn20"] == result.rows["trained"]["knn20"].value


def test_one_process_has_all_parts() -> None:
    parts = list(torch.arange(10).split(4))
    assert own_batches(parts) == parts
    assert not distributed.shares_work()
