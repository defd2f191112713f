"""Soak of interruptions: runs that are killed, stopped and failed at random moments end as one that nobody disturbed.

    python scripts/soak.py --kills 300 --out benchmarks/results/soak.json

Each round trains one tiny run, in processes that are interrupted until it finishes: by SIGKILL, SIGTERM, SIGTERM twice,
SIGSTOP and SIGCONT before SIGKILL, or SIGKILL while a checkpoint is written. In every other round a loss that is not
finite is injected, so that the guardian is interrupted too. Then weights, optimizer and metrics are compared bit by
bit, and every (epoch, image, view) that the result was trained on is counted. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ssole import cli
from ssole.runtime import environment
from ssole.training.feed import make_plan
from ssole.training.run import Run
from ssole.training.step import Learner

IMAGES, STEPS, VIEWS = 46, 40, 2
RECIPE: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 4,
    "log_every": 1,
    "checkpoint_every": 3,
    "checkpoint_seconds": 0.0,
    "device": "cpu",
    "precision": "float32",
    "deterministic": True,
    "augment": {"crops": [{"count": VIEWS, "size": 8}]},
    "model": {
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        "projector_dim": 8,
        "projector_hidden": 8,
    },
    "optim": {"lr": 0.1, "final_lr": 0.05},
}
FAILS = (14, 0.06)  # in rounds with a failure: the step, and the learning rate above which it fails
CLOCK = {"seconds", "images_per_second", "data_wait"}
KINDS = ("kill", "kill while saving", "stop, continue, kill", "term", "term twice")
PATIENCE = 120.0  # seconds, after which a process counts as hanging


class Child:
    """Process that trains the run of a folder, from its newest checkpoint if it has one."""

    def __init__(self, folder: Path, *, fails: bool) -> None:
        self.begin = time.monotonic()
        self.out = folder / "run"
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                code = _train(folder, fails=fails)
            except Exception:  # noqa: BLE001 - what follows ends the process without a word
                traceback.print_exc()
            finally:
                os._exit(code)
        self.status: int | None = None

    def ended(self) -> bool:
        """Whether the process has ended; its exit code, or minus the number of a signal, is `status` then."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def wait(self, until: Callable[[], bool] = lambda: False, seconds: float = PATIENCE) -> bool:
        """Wait for the end of the process or a condition. Returns whether the process has ended."""
        deadline = time.monotonic() + seconds
        while not self.ended() and not until():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.0005)
        return self.ended()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process is known to have ended."""
        if self.status is None:
            os.kill(self.pid, number)

    def saves(self) -> bool:
        """Whether a file of a checkpoint is being written."""
        try:
            return any(name.endswith(".ssole-tmp") for name in os.listdir(self.out / "checkpoints"))
        except FileNotFoundError:
            return False


def _train(folder: Path, *, fails: bool) -> int:
    """Exit code of `ssole pretrain` in this process, which notes each step that it has taken."""
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    steps = os.open(folder / "steps.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    take, terms_of = Learner.step, Learner.loss_terms

    def step(self: Learner, images: Any, ids: torch.Tensor, *, epoch: int, **options: Any) -> Any:
        result = take(self, images, ids, epoch=epoch, **options)
        row = [self.steps_done, epoch, ids.tolist(), result.z_BVD.shape[1], time.monotonic()]
        os.write(steps, (json.dumps(row) + "\n").encode())
        return result

    def loss_terms(self: Learner, z_BVD: torch.Tensor, *labels: torch.Tensor) -> Any:
        terms = terms_of(self, z_BVD, *labels)
        if self.steps_done + 1 == FAILS[0] and self.optimizer.param_groups[0]["lr"] > FAILS[1]:
            terms["loss"] = terms["loss"] * math.nan
        return terms

    Learner.step = step  # type: ignore[method-assign]
    if fails:
        Learner.loss_terms = loss_terms  # type: ignore[method-assign]
    out = folder / "run"
    given = ["--recipe", str(folder.parent / "recipe.yaml"), "--data", str(folder.parent / "images.npy")]
    try:
        cli.main(
            ["pretrain", *(["--resume", str(out)] if (out / "config.yaml").exists() else [*given, "--out", str(out)])]
        )
    except SystemExit as end:
        return int(end.code or 0)
    return 1


def interrupt(child: Child, kind: str, r: random.Random, most: float, waits: dict[str, list[float]]) -> str | None:
    """Interrupt a process at a random moment. What went wrong, or None."""
    if child.wait(seconds=r.uniform(0, most)):
        return None
    if kind == "kill while saving":
        child.wait(until=child.saves)
    if kind == "stop, continue, kill":
        child.send(signal.SIGSTOP)
        time.sleep(r.uniform(0, 0.1))
        child.send(signal.SIGCONT)
        child.wait(seconds=r.uniform(0, 0.1))
    if not kind.startswith("term"):
        child.send(signal.SIGKILL)
        return None if child.wait() else "it outlived SIGKILL"
    child.send(signal.SIGTERM)
    begin = time.monotonic()
    if kind == "term twice" and not child.wait(seconds=0.002):
        child.send(signal.SIGTERM)
    if not child.wait():
        child.send(signal.SIGKILL)
        return "it hung after SIGTERM"
    waits[kind].append(time.monotonic() - begin)
    return None if child.status in (0, 143, -signal.SIGTERM) else f"it ended with {child.status} after SIGTERM"


def kept_steps(folder: Path) -> tuple[list[Any], int]:
    """Steps that the result was trained on, and how many were taken again after an interruption or a failure."""
    kept: dict[int, Any] = {}
    total = 0
    for line in (folder / "steps.jsonl").read_text().splitlines():
        row = json.loads(line)
        kept = {step: other for step, other in kept.items() if step < row[0]} | {row[0]: row}
        total += 1
    return list(kept.values()), total - len(kept)


def differences(folder: Path, whole: Path) -> list[str]:
    """What differs from the run that nobody disturbed, or from what the plan says each step should see."""
    run, other, found = Run(folder / "run"), Run(whole / "run"), []
    last = f"step-{STEPS:08d}.safetensors"
    if run.backbone_path.read_bytes() != other.backbone_path.read_bytes():
        found.append("weights")
    if (run.checkpoints / last).read_bytes() != (other.checkpoints / last).read_bytes():
        found.append("optimizer")
    one, two = ([{k: v for k, v in row.items() if k not in CLOCK} for row in x.metrics] for x in (run, other))
    if one != two:
        found.append("metrics")
    seen = collections.Counter(
        (epoch, image, view)
        for _, epoch, ids, views, _ in kept_steps(folder)[0]
        for image in ids
        for view in range(views)
    )
    plan = make_plan(run.config, IMAGES)
    planned = {(epoch, int(i), view) for _, epoch, ids in plan.batches(0) for i in ids for view in range(VIEWS)}
    if seen != dict.fromkeys(planned, 1):
        found.append("images or views")
    if left := [path.name for path in run.path.rglob("*.ssole-tmp")]:
        found.append(f"leftovers {left}")
    return found


def undisturbed(folder: Path, *, fails: bool) -> float:
    """Seconds of the run that nobody disturbs."""
    folder.mkdir()
    child = Child(folder, fails=fails)
    if not child.wait() or child.status != 0:
        raise RuntimeError((folder / "log.txt").read_text())
    rows = Run(folder / "run").metrics
    assert sum("guardian" in row for row in rows) == fails
    return time.monotonic() - child.begin


def soak(kills: int, seed: int, root: Path, *, verbose: bool = False) -> dict[str, Any]:
    """Result of at least so many interruptions, in whole rounds."""
    torch.set_num_threads(1)
    for name in ("filelock", "rich.live", "safetensors.torch", "tifffile", "timm", "torch.utils.tensorboard"):
        with suppress(ImportError):
            importlib.import_module(name)  # once, and not in each process
    np.save(root / "images.npy", np.random.default_rng(0).integers(0, 256, (IMAGES, 12, 12, 3), dtype=np.uint8))
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    os.environ["SSOLE_CACHE"] = str(root / "cache")
    most = max(undisturbed(root / f"whole-{fails}", fails=fails) for fails in (False, True))
    r, counts, problems = random.Random(seed), collections.Counter[str](), []
    waits: dict[str, list[float]] = {"term": [], "term twice": [], "recovery": []}
    rounds, again = 0, 0
    while counts.total() < kills:
        fails, folder = rounds % 2 == 1, root / f"round-{rounds}"
        folder.mkdir()
        rounds += 1
        while True:
            kind, child = r.choice(KINDS), Child(folder, fails=fails)
            problem = interrupt(child, kind, r, 0.7 * most, waits)
            problems += [f"round {rounds}, {kind}: {problem}"] if problem else []
            if child.status == 0:
                break
            if child.status not in (143, -signal.SIGTERM, -signal.SIGKILL):
                problems.append(f"round {rounds}: exit code {child.status}: {(folder / 'log.txt').read_text()[-500:]}")
                break
            counts[kind] += 1
            waits["recovery"] += _recovery(folder, child)
        if child.status == 0:
            problems += [f"round {rounds}: {what} differ" for what in differences(folder, root / f"whole-{fails}")]
            again += kept_steps(folder)[1]
        if verbose:
            print(f"{rounds} rounds, {counts.total()} interruptions, {len(problems)} problems", flush=True)
    return {
        "seed": seed,
        "interruptions": counts.total(),
        "kinds": dict(counts),
        "rounds": rounds,
        "problems": problems,
        "steps": rounds * STEPS,
        "steps_taken_again": again,
        "seconds_of_an_undisturbed_run": round(most, 2),
        "seconds_from_sigterm_to_the_end": _summary(waits["term"]),
        "seconds_from_two_sigterms_to_the_end": _summary(waits["term twice"]),
        "seconds_from_start_to_first_step": _summary(waits["recovery"]),
        "environment": environment(),
    }


def _recovery(folder: Path, child: Child) -> list[float]:
    """Seconds from the start of a process to the end of its first step, if it took one."""
    path = folder / "steps.jsonl"
    times = [json.loads(line)[4] for line in path.read_text().splitlines()] if path.exists() else []
    return [next(t for t in times if t > child.begin) - child.begin] if times and times[-1] > child.begin else []


def _summary(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"n": 0}
    return {"n": len(seconds), "median": round(statistics.median(seconds), 3), "largest": round(max(seconds), 3)}


def main() -> int:
    """Entry point; exit code 1 if anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(args.kills, args.seed, Path(folder), verbose=args.verbose)
    print(json.dumps({name: value for name, value in result.items() if name != "environment"}, indent=1))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
