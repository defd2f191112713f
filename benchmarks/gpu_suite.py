"""What there is to measure on a GPU, most telling first; all of it in ten minutes, but for the speedruns.

    python benchmarks/gpu_suite.py step loss views profile --out benchmarks/results/h200
    python benchmarks/gpu_suite.py speedrun --data cifar10-train.parquet --test cifar10-test.parquet --out ...
    python benchmarks/gpu_suite.py imagenet-like --out ...
    python benchmarks/gpu_suite.py --tiny --device cpu --out /tmp/dry         a dry run of all of it, without a GPU

Runs from a checkout, with ssole installed or not. It needs torch, timm, torchvision, scikit-learn, pydantic and PyYAML,
and says how to bring the last two where there is no network. Each piece is a file in the folder `--out`, which has
every row from the moment it was measured. A piece that fails or takes longer than its limit ends there, and the next
begins.

Beside the rate of a network stands the model FLOP utilization (FLOPs of the encoder alone, of the GPU's bfloat16
peak), beside that of the loss the same of its matrix products, and beside that of the views the share of the memory's
bandwidth that writing them takes. `profile` gives the share of time in which the GPU works: a rate near that of another
loop proves little if both wait for kernels to be launched. It comes last, because launches may stay slower once a
profiler has looked.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pieces import (
    Record,
    Row,
    bandwidth_share,
    busy_share,
    covered,
    flops_of,
    kernel_intervals,
    profiled,
    require_modules,
    run_piece,
    seconds_of,
    utilization,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))  # of this checkout, whatever is installed

SPEEDRUN_SECONDS = 15 * 60.0
LIMITS = {"step": 200.0, "loss": 60.0, "views": 40.0, "imagenet-like": 180.0, "profile": 90.0}
"""Seconds of each piece; a speedrun takes ten minutes a seed, and what comes before and after."""
SHAPES = ((256, 2), (256, 4), (1024, 2), (512, 4), (1024, 4))
"""Images and views in a step. Goals of the first three are in `GOALS_MS`."""
FORMS = {
    "eager": {"compile": "never", "cuda_graph": "never"},
    "graph": {"compile": "never", "cuda_graph": "auto"},
    "compiled, graph": {"compile": "always", "cuda_graph": "auto"},
}
GOALS_MS = {(256, 2): 10.5, (256, 4): 19.0, (1024, 2): 40.0}


@dataclass(frozen=True)
class Suite:
    """Settings of all pieces. `tiny` makes them as small as they can be."""

    device: torch.device
    folder: Path
    tiny: bool = False
    data: str | None = None
    test: str | None = None
    seeds: tuple[int, ...] = (0,)
    budget: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    out: Path | None = None
    """Where the metrics of the speedruns are kept; None for nowhere."""

    def config(self, recipe: str, **changes: Any) -> Any:
        """Config of a recipe on the device."""
        from ssole.config import load

        small: dict[str, Any] = {}
        if self.tiny:
            small = {
                "model.backbone": "resnet18",
                "model.backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
                "model.projector_dim": 8,
                "model.projector_hidden": 8,
                "batch_size": 4,
                "precision": "float32",
                "compile": "never",
                "log_every": 1,
            }
        return load(recipe, device=str(self.device), **{**changes, **small, **self.overrides})

    @property
    def repeats(self) -> int:
        """How often a thing is timed."""
        return 2 if self.tiny else 9

    @cached_property
    def small_images(self) -> Tensor:
        """Images of 32 px on the device, (N, 3, 32, 32)."""
        from measure import photographs

        images = photographs(16 if self.tiny else 20_000, 32, 32, shrink=4)
        return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(self.device)

    @cached_property
    def decoded(self) -> tuple[Any, Any, float]:
        """Train and test images as sources of arrays, and the seconds that decoding took. Done once."""
        from ssole.data.arrays import ArraySource
        from ssole.data.sources import open_source
        from ssole.data.store import ImageStore

        begun = time.perf_counter()
        sources = []
        for spec in (self.data, self.test):
            store = ImageStore(open_source(spec))
            assert store.images is not None
            sources.append(ArraySource(store.images.permute(0, 2, 3, 1).numpy(), store.labels, name=str(len(sources))))
        return sources[0], sources[1], time.perf_counter() - begun


def loss_rows(suite: Suite) -> Iterator[Row]:
    """Forward + backward, then the textbook version, which may be slow; the goal is 100x and 2 ms at (256, 8, 4096)."""
    from loss import embeddings, gradient, oracle, textbook
    from ssole.losses import SSOLELoss

    loss, taken = SSOLELoss(check_input=False), {}
    shapes = [(256, 8, 4096), (256, 2, 512), (256, 4, 512), (1024, 2, 512), (512, 4, 1024)]
    shapes = [(8, 2, 16), (8, 5, 16)] if suite.tiny else shapes
    for shape in shapes:
        ours = loss_call(suite, shape, loss)
        ours()
        taken[shape] = 1e3 * statistics.median(seconds_of(ours, suite.device) for _ in range(3 * suite.repeats))
        flops = flops_of(ours)
        yield {
            "shape": shape,
            "ms": taken[shape],
            "graph_ms": graph_milliseconds(ours, suite),
            "waits": waits(ours, suite.device),
            "gflops": flops / 1e9,
            "utilization": utilization(flops, taken[shape] / 1e3, suite.device),
        }
    for shape in shapes:
        theirs, z = loss_call(suite, shape, textbook), embeddings(shape).to(suite.device)
        textbook_ms = 1e3 * min(seconds_of(theirs, suite.device) for _ in range(2))
        exact = oracle(z)
        yield {
            "shape": shape,
            "textbook_ms": textbook_ms,
            "speedup": textbook_ms / taken[shape],
            "gradient_error": relative(gradient(loss, z), exact),
            "textbook_gradient_error": relative(gradient(textbook, z), exact),
        }


def loss_call(suite: Suite, shape: tuple[int, int, int], loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Function that takes a loss of new embeddings and its gradient."""
    from loss import embeddings

    z = embeddings(shape).to(suite.device)
    return lambda: loss(z.detach().requires_grad_()).backward()


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def waits(run: Callable[[], None], device: torch.device) -> str | None:
    """Lines that make the host wait in a call; None if none does, or without a GPU."""
    from ssole.training.graph import with_waits

    return None if device.type != "cuda" else ", ".join(with_waits(run)[1]) or None


def graph_milliseconds(run: Callable[[], None], suite: Suite) -> float | None:
    """Milliseconds of a call that is replayed as a CUDA graph: without what launching costs. None without a GPU, or if
    it cannot be captured."""
    if suite.device.type != "cuda":
        return None
    from ssole.training.graph import captured, on_side_stream

    try:
        on_side_stream(run, suite.device)
        if (reason := waits(run, suite.device)) is not None:  # a capture that fails would spoil later ones
            raise RuntimeError(f"the host waits at {reason}")
        replay = captured(run, suite.device)
    except RuntimeError as error:
        print(f"  not captured: {error}", flush=True)
        return None
    replay()
    return 1e3 * seconds_of(lambda: [replay() for _ in range(20)], suite.device) / 20


def views_rows(suite: Suite) -> Iterator[Row]:
    """Views a second; the goals are 1 M at 32 px and 50 k at 224 px."""
    for size, batch in ((32, 2048), (224, 256)):
        call, size, batch = views_call(suite, size, batch)
        call()
        seconds = statistics.median(seconds_of(call, suite.device) for _ in range(suite.repeats)) / 10
        data = batch * size**2 * (2 * 3 * 4)  # two views in float32, which is what must be written at least
        yield {
            "size": size,
            "images": batch,
            "views_per_second": 2 * batch / seconds,
            "bandwidth": bandwidth_share(data, seconds, suite.device),
        }


def views_call(suite: Suite, size: int, batch: int) -> tuple[Callable[[], None], int, int]:
    """Function that makes two views of a batch ten times, their size, and the images in a batch."""
    import ssole
    from measure import photographs

    recipe = "cifar10" if size == 32 else "imagenet100"
    if suite.tiny:
        images, size, batch = suite.small_images[:4], size // 4, 4
    elif size == 32:
        images = suite.small_images[:batch]
    else:
        images = torch.from_numpy(photographs(batch, 300, 400)).permute(0, 3, 1, 2).contiguous().to(suite.device)
    config = suite.config(recipe, **{"augment.crops": [{"count": 2, "size": size}]})
    ids = torch.arange(batch, device=suite.device)

    def call() -> None:
        for epoch in range(10):
            ssole.make_views(images, ids, recipe=config.augment, seed=0, epoch=epoch)

    return call, size, batch


def steps_of(
    suite: Suite, config: Any, images: Tensor | None = None, *, early: bool = False
) -> tuple[Callable[[int], None], float, Any]:
    """Function that takes so many training steps on images in memory, FLOPs of the encoder in one, and the learner.

    `early` steps are those of the first part of a run.
    """
    from ssole.rng import epoch_order
    from ssole.training.step import Learner

    images, batch = suite.small_images if images is None else images, config.batch_size
    learner = Learner(config, suite.device, images=len(images))
    crops = (config.augment.early if early else config.augment).crops
    views = [torch.randn(batch, c.count, 3, c.size, c.size, device=suite.device) for c in crops]
    flops = flops_of(lambda: learner.embedder(views).float().sum().backward())  # of a compiled one they cannot be seen
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.wants_compiling(1000):
        learner.compile()
    count = max(1, len(images) // batch)
    order = epoch_order(0, 0, len(images)).to(suite.device)
    ids = [order[n * batch : (n + 1) * batch] for n in range(count)]

    def steps(n: int) -> None:
        for _ in range(n):
            done = learner.steps_done
            epoch, chosen = done // count, ids[done % count]
            learner.step(images.index_select(0, chosen), chosen, epoch=epoch, lr=1e-4, early=early)
        learner.watch.check()

    steps(8)  # of which a graph is captured
    return steps, flops, learner


def step_rows(suite: Suite) -> Iterator[Row]:
    """A training step of ResNet-18 at 32 px, views included; the goals are `GOALS_MS`, and 58 k views/s at the best."""
    from ssole.runtime import forget_peak_memory

    for form, (batch, views) in forms_and_shapes(suite):
        config = step_config(suite, form, batch, views)
        about = {"batch_size": config.batch_size, "views": views, "form": form}
        try:
            yield about | step_row(suite, config)
        except Exception as error:  # noqa: BLE001 - such as no compiler, or too little memory: the others shall run
            yield about | {"failed": f"{type(error).__name__}: {error}"[:300]}
        forget_peak_memory(suite.device)  # frees that of the learner and its graph, which hold each other


def step_config(suite: Suite, form: str, batch: int, views: int) -> Any:
    """Config of a step of ResNet-18 at 32 px."""
    crops = [{"count": views, "size": 8 if suite.tiny else 32}]
    return suite.config("cifar10", **{"batch_size": batch, "augment.crops": crops, **FORMS[form]})


def step_row(suite: Suite, config: Any, images: Tensor | None = None, *, n: int = 30, early: bool = False) -> Row:
    """Figures of a training step, from blocks of `n` steps; arguments as of :func:`steps_of`."""
    steps, flops, learner = steps_of(suite, config, images, early=early)
    n = 2 if suite.tiny else n
    seconds = statistics.median(seconds_of(lambda: steps(n), suite.device) for _ in range(3)) / n
    images_and_views = config.batch_size, config.augment.views
    return {
        "ms": 1e3 * seconds,
        "goal_ms": GOALS_MS.get(images_and_views),
        "views_per_second": math.prod(images_and_views) / seconds,
        "encoder_gflops": flops / 1e9,
        "utilization": utilization(flops, seconds, suite.device),
        "captured": learner.is_captured,
        "compiled": learner.is_compiled,
    }


def forms_and_shapes(suite: Suite) -> Iterator[tuple[str, tuple[int, int]]]:
    """What to measure, most telling first; compiling takes half a minute and more."""
    if suite.device.type != "cuda":
        yield from (("eager", shape) for shape in SHAPES[:2])
        return
    yield from ((form, shape) for shape in SHAPES for form in ("eager", "graph"))
    yield ("compiled, graph", SHAPES[1])


def profile_rows(suite: Suite) -> Iterator[Row]:
    """Busy shares; then 50 steps of the `cifar10` recipe: the slowest operators, launches, and calls that wait."""
    yield from busy_rows(suite)
    config = suite.config("cifar10", **{"augment.crops": [{"count": 4, "size": 8}]} if suite.tiny else {})
    steps, _, learner = steps_of(suite, config)
    n = 2 if suite.tiny else 50 if learner.is_captured else 20
    found, seconds = profiled(lambda: steps(n), suite.device)
    intervals = kernel_intervals(found)
    averages = found.key_averages()
    counts = {event.key: event.count for event in averages}
    yield {
        "ms_a_step": 1e3 * seconds / n,
        "kernels_a_step": len(intervals) / n,
        "busy_share": covered(intervals) / (1e6 * seconds) if intervals else None,
        "launches_a_step": sum(c for key, c in counts.items() if "LaunchKernel" in key) / n,
        "synchronizing_a_step": sum(c for key, c in counts.items() if "Synchronize" in key) / n,
        "copies_a_step": sum(c for key, c in counts.items() if "cudaMemcpy" in key) / n,
    }
    time_of = "self_device_time_total" if intervals else "self_cpu_time_total"
    for event in sorted(averages, key=lambda event: -getattr(event, time_of))[:30]:
        yield {
            "operator": event.key[:100],
            "ms_a_step": getattr(event, time_of) / 1e3 / n,
            "calls_a_step": event.count / n,
        }


def busy_rows(suite: Suite) -> Iterator[Row]:
    """Share of time in which the GPU works: in steps, the loss and the views."""
    from ssole.losses import SSOLELoss
    from ssole.runtime import forget_peak_memory

    for form, (batch, views) in forms_and_shapes(suite):
        if (batch, views) in SHAPES[:2] and FORMS[form]["compile"] == "never":
            steps = steps_of(suite, step_config(suite, form, batch, views))[0]
            about = {"what": "step", "batch_size": batch, "views": views, "form": form}
            yield about | {"busy_share": busy_share(lambda steps=steps: steps(5), suite.device)}
            del steps
            forget_peak_memory(suite.device)
    shape = (8, 2, 16) if suite.tiny else (256, 8, 4096)
    ours = loss_call(suite, shape, SSOLELoss(check_input=False))
    ours()
    yield {"what": "loss", "shape": shape, "busy_share": busy_share(lambda: [ours() for _ in range(10)], suite.device)}
    for size, batch in ((32, 2048), (224, 256)):
        call, size, _ = views_call(suite, size, batch)
        call()
        yield {"what": "views", "size": size, "busy_share": busy_share(call, suite.device)}


def speedrun_rows(suite: Suite) -> Iterator[Row]:
    """The recipe `cifar10-speedrun` by seed: 90 % kNN in under 10 minutes of wall clock, decoding included."""
    import ssole
    from ssole.api import start
    from ssole.training.loop import Given

    train, test, decoding = suite.decoded
    yield {"seconds_of_decoding": decoding}
    config = speedrun_config(suite, suite.seeds[0])
    yield from projection_rows(suite, config, train)
    for seed in suite.seeds:
        config = speedrun_config(suite, seed)
        begun = time.perf_counter()
        try:
            run = start(config, suite.folder / f"speedrun-{seed}", Given(progress=False), data=train)
        finally:  # also of a run that is cut off
            keep_metrics(suite, suite.folder / f"speedrun-{seed}")
        trained = time.perf_counter() - begun
        last = [row for row in run.metrics if "loss" in row][-1]
        done = {
            "seed": seed,
            "seconds": decoding + trained,
            "steps": last["step"],
            "views_per_second": last["images_per_second"] * config.augment.views,
        }
        yield done
        result = ssole.evaluate(
            run.path, train, test=test, baselines=False, device=suite.device, progress=False,
            protocol=("linear",) if suite.tiny else ("knn", "linear"),
        )  # fmt: skip
        yield done | {
            "accuracy": {name: score.value for (row,) in [result.rows.values()] for name, score in row.items()},
            "seconds_of_evaluation": time.perf_counter() - begun - trained,
        }


def keep_metrics(suite: Suite, run: Path) -> None:
    """Keep the lines of a run's metrics and schedule, which tell why its accuracy is what it is."""
    for file in (run / "metrics.jsonl", run / "schedule.jsonl"):
        if suite.out is not None and file.is_file():
            shutil.copyfile(file, suite.out / f"{run.name}-{file.name}")


def speedrun_config(suite: Suite, seed: int) -> Any:
    """Config of the speedrun, with another budget if one was given."""
    changes: dict[str, Any] = {"seed": seed, "data": "cifar10"}
    if suite.tiny:
        changes |= {"budget": None, "steps": 4, "augment.crops": [{"count": 2, "size": 8}], "augment.early_size": 4}
    elif suite.budget is not None:
        changes["budget"] = suite.budget
    return suite.config("cifar10-speedrun", **changes)


def projection_rows(suite: Suite, config: Any, train: Any) -> Iterator[Row]:
    """An epoch of the speedrun in each part of the run, and what follows for ten minutes: known before it has ended."""
    from ssole.runtime import forget_peak_memory

    images = torch.from_numpy(train.images).permute(0, 3, 1, 2).contiguous().to(suite.device)
    epoch = max(1, len(images) // config.batch_size)
    later = step_row(suite, config, images, n=epoch)
    yield {"part": "later", **later}
    share, early = 0.0, later
    forget_peak_memory(suite.device)  # frees the first learner and its graph before the second has its own
    if config.augment.early is not None:
        share, early = config.augment.early_share, step_row(suite, config, images, n=epoch, early=True)
        yield {"part": "early", **early}
    forget_peak_memory(suite.device)
    ms, gflops = (share * early[name] + (1 - share) * later[name] for name in ("ms", "encoder_gflops"))
    views = config.batch_size * config.augment.views
    yield {
        "part": "whole run, projected",
        "ms": ms,
        "views_per_second": 1e3 * views / ms,
        "utilization": utilization(1e9 * gflops, ms / 1e3, suite.device),
        "million_views_in_ten_minutes": 0.6 * views / ms,
        "epochs_in_ten_minutes": 6e5 / ms / epoch,
    }


def imagenet_rows(suite: Suite) -> Iterator[Row]:
    """ResNet-50 at 224 px from files, decoded once into the packed cache, beside the step alone: 90 % of it."""
    from measure import ratio
    from step import Roofline, compete

    count, steps, blocks = (8, 2, 1) if suite.tiny else (4_000, 40, 5)
    files = write_photographs(suite.folder / "photographs", count)
    size = 16 if suite.tiny else 224
    calm = {"optim.lr": 0.01, "optim.final_lr": 0.0, "log_every": 20, "batch_size": 128}
    crops = [{"count": 2, "size": size}]
    config = suite.config("imagenet100", **{**calm, "model.backbone": "resnet50", "augment.crops": crops})
    roofline = Roofline(config, batches=1)
    views = roofline.views[0]
    flops = flops_of(lambda: roofline.learner.embedder(views).float().sum().backward())
    rates = compete(config, str(files), {"roofline": roofline}, steps=steps, blocks=blocks)  # type: ignore[arg-type]
    seconds = config.batch_size / statistics.median(rates["ssole"])
    yield {
        "encoder": config.model.backbone,
        "batch_size": config.batch_size,
        "images_per_second": rates,
        "of_the_roofline": ratio(rates["ssole"], rates["roofline"]),
        "encoder_gflops": flops / 1e9,
        "utilization": utilization(flops, seconds, suite.device),
    }


def write_photographs(folder: Path, n: int) -> Path:
    """JPEGs of different sizes and sides, as photographs have."""
    from PIL import Image

    from measure import photographs

    folder.mkdir(parents=True)
    for number, image in enumerate(photographs(n, 300, 400)):
        part = image[: 300 - number % 40, : 400 - number % 60]
        upright = part.transpose(1, 0, 2) if number % 4 == 0 else part
        Image.fromarray(upright).save(folder / f"{number:05}.jpg", quality=90)
    return folder


PIECES: dict[str, Callable[[Suite], Iterator[Row]]] = {
    "step": step_rows,
    "loss": loss_rows,
    "views": views_rows,
    "speedrun": speedrun_rows,
    "imagenet-like": imagenet_rows,
    "profile": profile_rows,
}


def about(suite: Suite) -> dict[str, Any]:
    """Hardware and versions."""
    from ssole.runtime import environment

    gpu = torch.cuda.get_device_name(suite.device) if suite.device.type == "cuda" else None
    return {"gpu": gpu, "tiny": suite.tiny, "environment": environment(command=False)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", help=f"which of {', '.join(PIECES)}; by default all that can run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--data", help="speedrun: parquet file of the training images")
    parser.add_argument("--test", help="speedrun: parquet file of the test images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="speedrun: of the runs")
    parser.add_argument("--budget", help="speedrun: time of each run, in place of the recipe's, such as 5m")
    parser.add_argument("--limit", type=float, help="seconds that a piece may take, in place of its own limit")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--tiny", action="store_true", help="as small as can be: a test of the suite, not a measurement"
    )
    args = parser.parse_args()
    if unknown := [name for name in args.pieces if name not in PIECES]:
        parser.error(f"no piece {unknown[0]!r}: there are {', '.join(PIECES)}")
    has_data = bool(args.data and args.test)
    chosen = args.pieces or [name for name in PIECES if has_data or name != "speedrun"]
    if "speedrun" in chosen and not has_data:
        parser.error("the speedrun needs --data and --test")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU is available to torch")
    require_modules()
    from ssole.runtime import torch_state

    with torch_state(deterministic=False), tempfile.TemporaryDirectory() as folder:  # cuDNN's choices as in runs
        os.environ["SSOLE_CACHE"] = f"{folder}/cache"  # decoded images go with the files they came from
        suite = Suite(
            device, Path(folder), args.tiny, args.data, args.test, tuple(args.seeds), args.budget, out=args.out
        )
        ended = []
        for name in chosen:
            limit = args.limit or LIMITS.get(name, SPEEDRUN_SECONDS * len(args.seeds))
            record = Record(args.out / f"{name}.json", {"piece": name, **about(suite)})
            ended.append(run_piece(name, lambda name=name: PIECES[name](suite), record, limit))
    raise SystemExit(0 if all(ended) else 1)


if __name__ == "__main__":
    main()
