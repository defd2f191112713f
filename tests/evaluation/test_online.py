"""Measurements while training: the same weights with and without, other data with and without labels, refused input."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import ssole
import tiny
from ssole.errors import DataError
from ssole.evaluation.datasets import open_data
from ssole.evaluation.online import NEIGHBOURS
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import LABEL_FREE
from ssole.training.monitor import Monitor
from ssole.training.stopping import Interrupted

STEPS = 7
AT_8 = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def plain(tmp_path: Path) -> bytes:
    """Weights of the run that measures nothing."""
    return tiny.start(tmp_path / "plain", steps=STEPS).backbone_path.read_bytes()


def measured_steps(run: ssole.Run, name: str) -> list[int]:
    return [row["step"] for row in run.metrics if name in row]


def test_the_weights_are_the_same_to_the_bit(tmp_path: Path, plain: bytes) -> None:
    labelled = str(tiny.write_folder(tmp_path / "labelled", 40))
    run = tiny.start(tmp_path / "run", steps=STEPS, eval_data=labelled, knn_every=3)
    assert measured_steps(run, "knn20") == [3, 6, STEPS]
    assert run.backbone_path.read_bytes() == plain
    final = ssole.evaluate(run, labelled, protocol="knn", baselines=False, device="cpu", progress=False)
    assert [row["knn20"] for row in run.metrics if "knn20" in row][-1] == final.rows["trained"]["knn20"].value
    every_epoch = tiny.start(tmp_path / "epochs", steps=STEPS, eval_data=labelled)
    assert measured_steps(every_epoch, "knn20") == [tiny.STEPS_PER_EPOCH, STEPS]
    assert every_epoch.backbone_path.read_bytes() == plain


def test_a_resumed_run_goes_on_measuring(tmp_path: Path, plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_folder(tmp_path / "labelled", 40)
    monkeypatch.chdir(tmp_path)

    def evaluate(self: Monitor, *arguments: Any) -> None:
        plain_evaluate(self, *arguments)
        signal.raise_signal(signal.SIGTERM)

    plain_evaluate = Monitor.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "evaluate", evaluate)
        with pytest.raises(Interrupted):
            tiny.start(Path("run"), steps=STEPS, eval_data="labelled", knn_every=3)
    monkeypatch.chdir("/")  # the path is kept whole
    run = tiny.resume(tmp_path / "run")
    assert measured_steps(run, "knn20") == [3, 6, STEPS]
    assert run.backbone_path.read_bytes() == plain


def test_without_labels_ranks_are_measured(tmp_path: Path, plain: bytes) -> None:
    unlabelled = str(tiny.write_folder(tmp_path / "unlabelled", 30, classes=(".",)))
    run = tiny.start(tmp_path / "run", steps=STEPS, eval_data=unlabelled, knn_every=STEPS)
    row = next(row for row in run.metrics if "rankme" in row)
    assert set(row) - {"step", "epoch", "seconds"} <= set(LABEL_FREE)
    assert run.backbone_path.read_bytes() == plain


def test_too_few_readable_images_do_not_stop_training(tmp_path: Path, plain: bytes) -> None:
    photos = tiny.write_folder(tmp_path / "photos", 26)  # six of them are held out
    store = open_data(str(photos), None, AT_8, seed=0, progress=False).train
    assert len(store) == NEIGHBOURS
    (photos / store.store.ids[int(store.positions[3])]).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="no kNN accuracy: only 19 training images can be read"):
        run = tiny.start(tmp_path / "run", steps=STEPS, eval_data=str(photos), knn_every=STEPS)
    assert measured_steps(run, "knn20") == []
    assert run.backbone_path.read_bytes() == plain


def test_what_cannot_be_measured_is_said_before_training(tmp_path: Path) -> None:
    few = str(tiny.write_folder(tmp_path / "few", 12))
    for given, error, words in (
        (str(tmp_path / "nowhere"), DataError, "nowhere"),
        (few, ValueError, r"are \d+ training images \(few\): give at least 20 labelled images"),
    ):
        with pytest.raises(error, match=words):
            tiny.start(tmp_path / "run", steps=1, eval_data=given)
        assert not (tmp_path / "run").exists()
