"""What benchmarks stand on: fair turns, data loaders that neither start up nor work ahead while someone is timed."""

from __future__ import annotations

import importlib
import itertools
import json
import mmap
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("measure")


class WhoAndWhat(Dataset[torch.Tensor]):
    """(process, index) as items."""

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.tensor([os.getpid(), i])


def test_contestants_take_turns_and_the_first_round_warms_up(measure: ModuleType) -> None:
    blocks = []

    def contestant(name: str) -> float:
        blocks.append(name)
        return float(len(blocks))

    rates = measure.take_turns({"a": lambda: contestant("a"), "b": lambda: contestant("b")}, rounds=2)
    assert blocks == ["a", "b"] * 3
    assert rates == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_a_ratio_is_taken_within_each_round(measure: ModuleType) -> None:
    # the ratio of the medians would be 4.5 / 1.5 = 3 too, but 8 / 1 and 1 / 2 never met
    assert measure.ratio([1.0, 8.0], [1.0, 2.0]) == {"median": 2.5, "least": 1.0, "largest": 4.0}


def test_batches_go_round_until_stopped(measure: ModuleType) -> None:
    order = measure.UntilStopped(images=5, batch=3)
    batches = iter(order)
    assert list(itertools.islice(batches, 3)) == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    order.stopped = True
    assert list(batches) == []
    assert next(iter(order)) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single processor
def test_workers_live_on_between_blocks_and_idle_there(measure: ModuleType) -> None:
    order = measure.UntilStopped(images=100, batch=2)
    loader = DataLoader(WhoAndWhat(), batch_sampler=order, num_workers=2, persistent_workers=True)
    workers = []
    for _ in range(2):
        with measure.in_full_swing(loader) as batches:
            seen = [next(batches) for _ in range(3)]
        # two batches went before, one of each worker, and nothing is left of the last block
        assert [batch[:, 1].tolist() for batch in seen] == [[4, 5], [6, 7], [8, 9]]
        assert list(batches) == []
        workers.append({int(pid) for batch in seen for pid in batch[:, 0]})
    assert len(workers[0]) == 2
    assert workers[0] == workers[1]
    assert os.getpid() not in workers[0]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_of_a_call(measure: ModuleType) -> None:
    def call() -> None:
        for size in (40_000_000, 64_000_000):  # the first is given back to the system before the second is taken
            with mmap.mmap(-1, size) as block:  # not from malloc, which may have memory that earlier tests freed
                np.frombuffer(block, np.uint8)[:] = 1

    assert measure.peak_extra_bytes(call) == pytest.approx(64e6, rel=0.1)


def test_photographs_are_parts_of_photographs(measure: ModuleType) -> None:
    from sklearn.datasets import load_sample_images

    images = measure.photographs(4, 20, 30)
    assert images.shape == (4, 20, 30, 3)
    assert images.dtype == np.uint8
    for image, original in zip(images, itertools.cycle(load_sample_images().images), strict=False):
        corners = np.argwhere((original[:-19, :-29] == image[0, 0]).all(-1))
        assert any((original[y : y + 20, x : x + 30] == image).all() for y, x in corners)
    assert np.array_equal(images, measure.photographs(4, 20, 30))
    assert measure.photographs(1, 32, 32, shrink=4).shape == (1, 32, 32, 3)


def test_what_is_saved_names_hardware_and_versions(measure: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results" / "some.json"
    measure.save(path, {"rate": 1.5}, packages=["pillow", "no-such-package"])
    record = json.loads(path.read_text())
    environment = record["environment"]
    assert record["rate"] == 1.5
    assert {"processor", "threads", "cores", "load_average", "torch", "platform"} <= set(environment)
    assert environment["pillow"]
    assert environment["no-such-package"] is None
    assert "command" not in environment  # paths of a machine


def test_what_is_not_installed_is_said_to_be_left_out(measure: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.installed("torch")
    assert not measure.installed("no_such_package")
    assert "no_such_package is not installed and left out" in capsys.readouterr().out


def test_bars_show_medians(measure: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "figures" / "bars.svg"
    panels = {"2 views": {"ours": [1100.0, 1234.0, 1300.0], "theirs": [10.0, 20.0, 90.0]}}
    measure.draw_bars(path, panels, "views a second", {"ours": "blue", "theirs": "red"})
    drawing = path.read_text()  # text is drawn as shapes, each after a comment that holds it
    assert {text for text in ("ours", "theirs", "1,234", "20", "2 views") if f"<!-- {text} -->" not in drawing} == set()
