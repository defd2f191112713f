"""A bounded share of `scripts/fuzz.py`, and that it finds what it looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks at /proc")

# Readers that are wrong in every way that counts, in a process of its own: forks of one that has threads may hang.
FAULTY = """
import collections, json, os, sys, tempfile
from pathlib import Path
import fuzz

def fault(act):
    return fuzz.Target([{"a": b"abc"}], lambda folder, r: act())

def loop():
    while True:
        pass

def refuse():
    raise fuzz.DataError("no")

fuzz.SECONDS = 0.2
targets = {
    "good": fault(lambda: None),
    "refuses": fault(refuse),
    "raises": fault(lambda: {}["x"]),
    "loops": fault(loop),
    "dies": fault(lambda: os.kill(os.getpid(), 11)),
    "eats": fault(lambda: bytearray(2 * fuzz.MEMORY)),
}
found = {}
for name, target in targets.items():
    tally = fuzz.Tally()
    fuzz.run_batch(target, name, 0, range(3), Path(tempfile.mkdtemp()), tally)
    found[name] = [tally.cases, dict(tally.outcomes), [what.split(":")[0] for what in tally.findings]]
print(json.dumps(found))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "scripts")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_no_mutated_file_does_harm(tmp_path: Path) -> None:
    done = run(str(ROOT / "scripts" / "fuzz.py"), "--cases", "100", "--seed", "7", "--out", str(tmp_path / "fuzz.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "fuzz.json").read_text())
    assert (result["cases"], result["found"]) == (1000, 0)
    for name, tally in result["targets"].items():
        assert tally["read"] > 0, name  # not all cases are refused at the first look
        assert tally["refused"] > 0, name


@pytest.mark.slow
def test_every_kind_of_harm_is_found() -> None:
    done = run("-c", FAULTY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["good"] == [3, {"read": 3}, []]
    assert found["refuses"] == [3, {"refused": 3}, []]
    assert found["raises"] == [3, {"found": 3}, ["KeyError"]]
    assert found["loops"] == [3, {"found": 3}, ["slow"]]
    assert found["dies"] == [3, {"found": 3}, ["the process died (11)"]]
    assert found["eats"] == [3, {"found": 3}, ["memory"]]
