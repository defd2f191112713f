"""At least 25 interruptions at random moments: `scripts/soak.py`, which does hundreds when it is run by itself."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks at /proc")


@pytest.mark.slow
def test_runs_that_were_interrupted_end_as_one_that_was_not(tmp_path: Path) -> None:
    """In a process of its own: forks of one that has threads may hang."""
    program = [sys.executable, str(ROOT / "scripts" / "soak.py"), "--kills", "25", "--out", str(tmp_path / "soak.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "soak.json").read_text())
    assert result["interruptions"] >= 25
    assert result["problems"] == []
    assert result["seconds_from_sigterm_to_the_end"].get("largest", 0) < 10


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "scripts" / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


def test_the_count_of_steps_knows_what_was_taken_again(soak: ModuleType, tmp_path: Path) -> None:
    steps = [1, 2, 3, 2, 3, 4, 1, 2]
    (tmp_path / "steps.jsonl").write_text(
        "".join(json.dumps([step, 0, [n], 2, 0.0]) + "\n" for n, step in enumerate(steps))
    )
    kept, again = soak.kept_steps(tmp_path)
    assert [(row[0], row[2]) for row in kept] == [(1, [6]), (2, [7])]
    assert again == 6
