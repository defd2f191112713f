"""The GPU measurements, run small on the CPU: what they compute must be right before a GPU is at hand."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("gpu_suite")


def parquet(path: Path, n: int) -> str:
    random = np.random.default_rng(n)
    rows = []
    for label in range(n):
        pixels = random.integers(0, 64, (12, 12, 3)) + 190 * (label % 2)
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": None}, "label": label % 2})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_the_cifar10_piece_gives_a_rate_and_a_curve(suite: ModuleType, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    figures = suite.cifar10_piece(
        parquet(tmp_path / "train.parquet", 40),
        parquet(tmp_path / "test.parquet", 10),
        minutes=0.0,
        out=tmp_path,
        device="cpu",
        precision="float32",
        batch_size=4,
        **{
            "augment.crops": [{"count": 2, "size": 8}],
            "model.backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
            "model.projector_dim": 8,
            "model.projector_hidden": 8,
        },
    )
    assert figures["steps"] == suite.PROBE_STEPS
    assert figures["views_per_image"] == 2
    assert figures["images_per_second"] > 0
    assert [row["step"] for row in figures["curve"]] == list(range(6, 61, 6))
    assert figures["curve"][-1]["knn20"] == 1.0  # dark and bright images: any features tell them apart


def test_the_views_piece_gives_rates_and_shares(suite: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(suite, "REPEATS", 1)
    monkeypatch.setattr(suite, "STEPS_AT_ONCE", 2)
    small_model = {
        "model.backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        "model.projector_dim": 8,
        "model.projector_hidden": 8,
    }
    figures = suite.views_piece(batches={8: 6, 40: 2}, device="cpu", precision="float32", **small_model)
    assert [(row["size"], row["images"]) for row in figures["rows"]] == [(8, 6), (40, 2)]
    for row in figures["rows"]:
        assert row["views_per_second"] == pytest.approx(1e3 * row["images"] * 2 / row["views_ms"])
        assert row["share_of_views"] == pytest.approx(row["views_ms"] / (row["views_ms"] + row["rest_of_step_ms"]))
        assert 0 < row["share_of_views"] < 1


def test_the_step_piece_compares_with_the_roofline(suite: ModuleType) -> None:
    torch.set_num_threads(1)
    figures = suite.step_piece({"tiny": (tiny.config(), tiny.images())}, steps=2, blocks=2)
    (row,) = figures["rows"]
    assert (row["encoder"], row["views"], row["batch_size"]) == ("tiny", 2, 4)
    assert len(row["images_per_second"]["ssole"]) == len(row["images_per_second"]["roofline"]) == 2
    assert 0 < row["of_the_roofline"]["least"] <= row["of_the_roofline"]["median"]


def test_the_step_piece_has_images_in_memory_and_in_files(suite: ModuleType, tmp_path: Path) -> None:
    configs = suite.step_configs(tmp_path / "photographs", small=3, large=4)
    (resnet18, small), (resnet50, large) = configs.values()
    assert (resnet18.model.backbone, resnet18.augment.image_size, small.shape) == ("resnet18", 32, (3, 32, 32, 3))
    assert (resnet50.model.backbone, resnet50.augment.image_size) == ("resnet50", 224)
    assert 40 % resnet18.log_every == 40 % resnet50.log_every == 0  # the steps of a block
    sizes = []
    for path in sorted(Path(large).iterdir()):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes == [(400 - number, 300 - number) for number in range(4)]


def test_the_suite_says_that_it_needs_a_gpu(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", "loss", "--out", "x.json"])
    with pytest.raises(SystemExit):
        suite.main()
    assert "no CUDA GPU" in capsys.readouterr().err
