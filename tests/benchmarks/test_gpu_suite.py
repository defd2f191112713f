"""The GPU suite, run as small as can be on the CPU: what it computes must be right before a GPU is at hand."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
NOT_ON_A_BARE_IMAGE = ["tyro", "imagehash", "platformdirs", "bracex", "tensorboard"]
NOT_ON_A_BARE_IMAGE += ["bokeh", "jinja2", "onnx", "matplotlib", "lightly", "kornia"]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    torch.set_num_threads(1)
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


def tiny(suite: ModuleType, folder: Path, **changes: Any) -> Any:
    return suite.Suite(torch.device("cpu"), folder, tiny=True, **changes)


def run_without(modules: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The suite in a process of its own, in which modules cannot be imported."""
    code = f"""
import importlib.util, runpy, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.split(".")[0] in {modules} else found(name, *rest)
sys.modules.update(dict.fromkeys({modules}))
sys.argv = ["gpu_suite.py", *{list(arguments)}]
sys.path.insert(0, {str(BENCHMARKS)!r})
runpy.run_path({str(BENCHMARKS / "gpu_suite.py")!r}, run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_bare_image_is_enough_for_all_pieces(tmp_path: Path) -> None:
    data = ["--data", parquet(tmp_path / "train.parquet", 40), "--test", parquet(tmp_path / "test.parquet", 10)]
    arguments = ["--tiny", "--device", "cpu", "--seeds", "0", "--out", str(tmp_path / "out"), *data]
    done = run_without(NOT_ON_A_BARE_IMAGE, *arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    records = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    metrics = (tmp_path / "out" / "speedrun-0-metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4]
    assert set(records) == {"loss", "views", "step", "profile", "speedrun", "imagenet-like"}
    for record in records.values():
        assert record["complete"]
        assert record["tiny"]
        assert record["environment"]["torch"]
    loss, step = records["loss"]["rows"], records["step"]["rows"]
    assert [row["shape"] for row in loss] == 2 * [[8, 2, 16], [8, 5, 16]]
    assert min(row["ms"] for row in loss[:2]) > 0  # first of all, whatever becomes of the textbook version
    assert min(row["gflops"] for row in loss[:2]) > 0
    assert max(row["gradient_error"] for row in loss[2:]) < 1e-5
    assert loss[2]["speedup"] == pytest.approx(loss[2]["textbook_ms"] / loss[0]["ms"])
    assert [row["views_per_second"] * row["ms"] / 1e3 for row in step] == pytest.approx([8, 16])
    assert step[1]["encoder_gflops"] == pytest.approx(2 * step[0]["encoder_gflops"], rel=0.1)
    assert not any(row["captured"] or row["compiled"] or "failed" in row for row in step)
    decoding, later, early, projected, trained, speedrun = records["speedrun"]["rows"]
    assert projected["ms"] == pytest.approx((later["ms"] + early["ms"]) / 2)
    assert projected["million_views_in_ten_minutes"] == pytest.approx(600 * projected["views_per_second"] / 1e6)
    assert early["encoder_gflops"] < later["encoder_gflops"]
    assert trained.items() < speedrun.items()
    assert speedrun["seconds"] > decoding["seconds_of_decoding"] > 0
    assert speedrun["accuracy"]["linear"] >= 0.5  # of dark and bright images
    assert records["imagenet-like"]["rows"][0]["of_the_roofline"]["median"] > 0
    busy = ["step", "step", "loss", "views", "views"]
    assert [row.get("what") for row in records["profile"]["rows"][:6]] == [*busy, None]
    assert records["profile"]["rows"][6]["operator"]


@pytest.mark.parametrize("module", ["pydantic", "yaml"])
def test_what_is_missing_is_said_with_the_command_that_brings_it(tmp_path: Path, module: str) -> None:
    done = run_without([module], "loss", "--tiny", "--device", "cpu", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    package = {"pydantic": "pydantic", "yaml": "pyyaml"}[module]
    assert f"python -m pip download --only-binary :all: --python-version 3.{sys.version_info[1]} " in done.stderr
    assert f"--dest wheels {package}\n" in done.stderr
    assert f"--no-index --find-links wheels {package}" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "flops", "memory"),
    [("NVIDIA H200", 0.5, 0.25), ("NVIDIA A100-SXM4-80GB", 0.5 * 989 / 312, 0.6), ("X", 0, 0)],
)
def test_shares_of_the_peak(
    suite: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, flops: float, memory: float
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    device = torch.device("cuda")
    assert suite.utilization(989e12, 2.0, device) == (pytest.approx(flops) if flops else None)
    assert suite.bandwidth_share(int(1.2e12), 1.0, device) == (pytest.approx(memory) if memory else None)
    assert suite.utilization(1.0, 1.0, torch.device("cpu")) is None


def test_each_row_is_on_the_disk_when_the_next_fails(suite: ModuleType, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"n": 1}
        assert json.loads((tmp_path / "x.json").read_text())["rows"] == [{"n": 1}]
        raise RuntimeError("out of luck")

    record = suite.Record(tmp_path / "x.json", {"piece": "x"})
    assert not suite.run_piece("x", rows, record, 60.0)
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["rows"], found["failed"], found["piece"]) == ([{"n": 1}], "RuntimeError: out of luck", "x")


def test_a_piece_ends_at_its_limit(suite: ModuleType, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"n": 1}
        while True:
            pass

    record = suite.Record(tmp_path / "x.json", {})
    assert not suite.run_piece("x", rows, record, 0.2)
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["rows"], found["stopped"]) == ([{"n": 1}], "after 0 s")


def test_no_handler_of_errors_takes_the_limit_for_one(suite: ModuleType, tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        with suppress(Exception):
            while True:
                pass
        yield {"n": 1}

    assert not suite.run_piece("x", rows, suite.Record(tmp_path / "x.json", {}), 0.2)
    assert json.loads((tmp_path / "x.json").read_text())["rows"] == []


def test_a_step_that_fails_is_a_row(suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(suite: Any, config: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(suite, "step_row", fail)
    rows = list(suite.step_rows(tiny(suite, tmp_path)))
    assert [row["failed"] for row in rows] == ["RuntimeError: Failed to find C compiler"] * 2
    assert [row["views"] for row in rows] == [2, 4]


def test_the_metrics_of_a_speedrun_that_is_cut_off_are_kept(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = importlib.import_module("pieces")
    folder, out = tmp_path / "runs", tmp_path / "out"
    out.mkdir()

    def start(config: Any, path: Path, *rest: Any, **options: Any) -> Any:
        path.mkdir(parents=True)
        (path / "metrics.jsonl").write_text("{}\n")
        raise pieces.TimeUp

    monkeypatch.setattr("ssole.api.start", start)
    monkeypatch.setattr(suite, "projection_rows", lambda *given: iter(()))
    short = tiny(suite, folder, out=out)
    short.__dict__["decoded"] = (None, None, 1.0)
    with pytest.raises(pieces.TimeUp):
        list(suite.speedrun_rows(short))
    assert (out / "speedrun-0-metrics.jsonl").read_text() == "{}\n"


def test_a_speedrun_may_have_less_time(suite: ModuleType, tmp_path: Path) -> None:
    short = suite.Suite(torch.device("cpu"), tmp_path, budget="5m")
    assert suite.speedrun_config(short, 3).budget == "5m"
    assert suite.speedrun_config(short, 3).seed == 3


def test_decoding_is_done_once(suite: ModuleType, tmp_path: Path) -> None:
    files = {name: parquet(tmp_path / f"{name}.parquet", n) for name, n in (("data", 6), ("test", 4))}
    small = tiny(suite, tmp_path, **files)
    train, test, seconds = small.decoded
    assert (len(train), len(test)) == (6, 4)
    assert train.labels.tolist() == [0, 1] * 3
    assert small.decoded[2] == seconds > 0


def test_the_busy_share_counts_overlapping_work_once(suite: ModuleType) -> None:
    assert suite.covered([(5, 6), (0, 2), (1, 3), (1.5, 1.6), (6, 8)]) == 6
    assert suite.covered([]) == 0


def test_flops_are_those_of_products(suite: ModuleType) -> None:
    x, w = torch.randn(3, 5), torch.randn(5, 7, requires_grad=True)
    assert suite.flops_of(lambda: (x @ w).sum().backward()) == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["loss"], "no CUDA GPU"),
        (["speedrun"], "needs --data and --test"),
        (["lost"], "no piece 'lost': there are step, loss"),
    ],
)
def test_what_cannot_be_measured_is_said(
    suite: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_suite.py", *arguments, "--out", "x"])
    with pytest.raises(SystemExit):
        suite.main()
    assert message in capsys.readouterr().err
