"""Cost of checkpoints and of the guardian as shares of a run, and the time that a run needs to go on after SIGKILL.

    python benchmarks/reliability.py --out benchmarks/results/reliability.json

The run is that of the recipe digits-m, without its evaluations. Costs are measured twice: by a clock around every call
that a run makes for checkpoints and for the guardian, and in shorter runs, with and without these calls, that take
turns. The guardian's calls include all checks that losses, gradients and weights are finite. Then runs in processes of
their own are killed at random moments and resumed. Ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

from measure import ratio, save, take_turns
from ssole import api
from ssole.config import PretrainConfig, apply_overrides, load, to_dict
from ssole.training.checkpoint import checkpoint_steps, load_checkpoint
from ssole.training.guardian import Guardian
from ssole.training.loop import Given
from ssole.training.run import Run
from ssole.training.saving import Saver
from ssole.training.step import Learner
from ssole.training.watch import LossWatch

CALLS: dict[str, list[tuple[Any, str]]] = {
    "checkpoints": [(Saver, "_keep"), (Saver, "write_kept")],
    "guardian": [
        *((Guardian, name) for name in ("__init__", "read_metrics", "look")),
        *((LossWatch, name) for name in ("add", "check")),
        *((Learner, "check_weights"), (torch.nn.utils, "get_total_norm")),
    ],
}
"""What a run calls for either; calls within calls are counted once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits-m")
    parser.add_argument("--steps", type=int, help="of the run with clocks; by default the recipe's own")
    parser.add_argument("--short", type=int, default=45, help="steps of the runs in pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--most", type=float, default=10.0, help="seconds from the first checkpoint to a kill, at most")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    config = apply_overrides(load(args.recipe), {"knn_every": None})
    with tempfile.TemporaryDirectory() as folder:
        whole = config if args.steps is None else apply_overrides(config, {"steps": args.steps})
        clocks = with_clocks(whole, Path(folder, "clocks"))
        pairs = in_pairs(apply_overrides(config, {"steps": args.short, "compile": "never"}), Path(folder), args.rounds)
        recovery = after_kills(config, Path(folder), args.kills, args.most)
    for name, one in clocks["parts"].items():
        print(f"{name}: {one['share']:.3%} of a run of {clocks['seconds']:.0f} s, in {one['calls']} calls")
    for name, one in pairs.items():
        print(f"steps per second with all, beside none of {name}: {one['ratio']['median']:.4f}")
    print(f"from the start after a kill to the first new step: {statistics.median(recovery['resuming']):.1f} s")
    if args.out is not None:
        shape = {"recipe": args.recipe, "threads": torch.get_num_threads(), "short": args.short}
        save(
            args.out,
            {**shape, "clocks": clocks, "pairs": pairs, "recovery": recovery},
            packages=["torch", "safetensors"],
        )


def with_clocks(config: PretrainConfig, folder: Path) -> dict[str, Any]:
    """Share of a run's time in the calls for each part, and the size and loading time of its last checkpoint."""
    seconds, calls = Counter[str](), Counter[str]()
    with clocked(seconds, calls):
        run = api.start(config, folder, Given(progress=False))
    total = run.metrics[-1]["seconds"]
    weights = next(run.checkpoints.glob(f"*{checkpoint_steps(run)[-1]}.safetensors"))
    learner, loading = Learner(run.config, torch.device("cpu")), []
    for _ in range(5):
        begin = time.perf_counter()
        load_checkpoint(run, learner.modules, learner.optimizer)
        loading.append(time.perf_counter() - begin)
    return {
        "seconds": total,
        "steps": run.metrics[-1]["step"],
        "parts": {n: {"share": seconds[n] / total, "seconds": seconds[n], "calls": calls[n]} for n in CALLS},
        "checkpoint_bytes": weights.stat().st_size,
        "seconds_to_load_a_checkpoint": loading,
    }


@contextmanager
def clocked(seconds: Counter[str], calls: Counter[str]) -> Iterator[None]:
    """Context in which the calls are timed."""
    inside: list[str] = []

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if inside:
                return call(*arguments, **options)
            inside.append(part)
            begin = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                seconds[part] += time.perf_counter() - begin
                calls[part] += 1
                inside.clear()

        return wrapped

    with ExitStack() as stack:
        for part, places in CALLS.items():
            for owner, name in places:
                stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        yield


def in_pairs(config: PretrainConfig, folder: Path, rounds: int) -> dict[str, Any]:
    """Ratio of speeds with all calls and without those of a part."""
    number = iter(range(10**6))

    def rate(*without: str) -> float:
        settings = {"guardian": "off"} if "guardian" in without else {}
        with ExitStack() as stack:
            for owner, name in (place for part in without for place in CALLS[part] if place[0] is not Guardian):
                stack.enter_context(mock.patch.object(owner, name, return_value=torch.zeros(())))
            pair = folder / f"pair-{next(number)}"
            run = api.start(apply_overrides(config, settings), pair, Given(progress=False))
        return float(run.metrics[-1]["step"] / run.metrics[-1]["seconds"])

    contestants = {"all": rate, **{part: (lambda part=part: rate(part)) for part in CALLS}}
    rates = take_turns(contestants, rounds)
    return {part: {"ratio": ratio(rates["all"], rates[part]), "steps_per_second": rates[part]} for part in CALLS}


def after_kills(config: PretrainConfig, folder: Path, kills: int, most: float) -> dict[str, list[float]]:
    """Seconds of new runs and of resumed ones from the start of their process to its first step, and what was lost."""
    chance, recipe = random.Random(0), folder / "recipe.yaml"
    # each step is logged, so that the first one is seen at once
    recipe.write_text(yaml.safe_dump(to_dict(apply_overrides(config, {"log_every": 1, "compile": "never"}))))
    found = [after_kill(recipe, Run(folder / f"killed-{n}"), chance.uniform(0, most)) for n in range(kills)]
    return {name: [one[name] for one in found] for name in found[0]}


def after_kill(recipe: Path, run: Run, pause: float) -> dict[str, float]:
    """:func:`after_kills` for one run, killed so many seconds after its first checkpoint of a step."""
    child, begin = command("--recipe", str(recipe), "--out", str(run.path)), time.perf_counter()
    wait(child, lambda: run.path.exists() and bool(run.metrics))
    starting = time.perf_counter() - begin
    wait(child, lambda: any(checkpoint_steps(run)))
    time.sleep(pause)
    kill(child)
    last, kept, file = run.metrics[-1], checkpoint_steps(run)[-1], run.path / "metrics.jsonl"
    saved, old = next(row["seconds"] for row in run.metrics if row["step"] == kept), file.stat().st_ino
    child, begin = command("--resume", str(run.path)), time.perf_counter()
    # resuming first writes the metrics anew, without those after the checkpoint
    wait(child, lambda: file.stat().st_ino != old and run.metrics[-1]["step"] > kept)
    resuming = time.perf_counter() - begin
    kill(child)
    return {"starting": starting, "resuming": resuming, "training_lost": last["seconds"] - saved}


def kill(child: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process."""
    child.kill()
    child.wait()


def command(*arguments: str) -> subprocess.Popen[bytes]:
    """`ssole pretrain`, started in a process of its own."""
    program = [sys.executable, "-m", "ssole", "pretrain", *arguments]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def wait(child: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
    """Wait for a condition while a process runs."""
    while not until():
        if child.poll() is not None:
            raise RuntimeError(f"it ended with {child.returncode}")
        time.sleep(0.005)


if __name__ == "__main__":
    main()
