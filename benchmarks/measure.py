"""What benchmarks share: taking turns, data loaders in full swing, memory, records and bars."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import itertools
import json
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssole.runtime import environment

Rates = dict[str, list[float]]
"""What each contestant gave in each round: its rate, or its seconds."""


def take_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """One block of every contestant, then the next round, so that a slow spell of the machine hits all alike.

    Each contestant runs a block and gives its rate, or its seconds. The first round warms up and is left out.
    """
    rates: Rates = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, block in contestants.items():
            rate = block()
            if number:
                rates[name].append(rate)
    return rates


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median, least and largest of the ratio within each round."""
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "least": min(each), "largest": max(each)}


class UntilStopped:
    """Batches of indices for a DataLoader, round and round, until `stopped` is set.

    A worker that is ahead of its reader works on while others are timed, and its next block begins with batches that
    cost nothing. So a block ends with `stopped`, and :func:`in_full_swing` waits for what its workers had begun.
    """

    def __init__(self, images: int, batch: int) -> None:
        self._images, self._batch = images, batch
        self.stopped = False

    def __iter__(self) -> Iterator[list[int]]:
        self.stopped = False
        order = itertools.cycle(range(self._images))
        while not self.stopped:
            yield list(itertools.islice(order, self._batch))


@contextmanager
def in_full_swing(loader: Any) -> Iterator[Iterator[Any]]:
    """The batches of a DataLoader over :class:`UntilStopped`, its workers started and busy; idle again on leaving."""
    batches = iter(loader)
    for _ in range(max(1, loader.num_workers)):  # the first of each worker: from here on all are busy
        next(batches)
    yield batches
    loader.batch_sampler.stopped = True
    for _ in batches:
        pass


def peak_extra_bytes(run: Callable[[], object]) -> int | None:
    """Most memory that a call of `run` holds at once beyond what was there before, by the kernel's own high-water
    mark; Linux with glibc only, None elsewhere.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None

    def kilobytes(field: str) -> int:
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(field)))

    run()  # what is set up once is not the call's
    ctypes.CDLL(None).malloc_trim(0)  # memory kept from earlier runs would be used again unseen
    reset.write_text("5")
    before = kilobytes("VmRSS")
    run()
    return 1024 * (kilobytes("VmHWM") - before)


def photographs(n: int, height: int, width: int, *, shrink: int = 1) -> NDArray[np.uint8]:
    """uint8 (n, height, width, 3): random parts of scikit-learn's two photographs (427x640), reduced `shrink` times."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    originals = [Image.fromarray(image) for image in load_sample_images().images]
    reduced = [np.asarray(image.reduce(shrink)) for image in originals]
    random = np.random.default_rng(0)
    parts = []
    for number in range(n):
        image = reduced[number % len(reduced)]
        top, left = random.integers(0, (image.shape[0] - height + 1, image.shape[1] - width + 1))
        parts.append(image[top : top + height, left : left + width])
    return np.stack(parts)


def uniform_images(data: str | None, n: int) -> NDArray[np.uint8]:
    """uint8 (N, H, W, 3): all images of a data set whose images have one size, or n photographs of 32x32 pixels."""
    if data is None:
        return photographs(n, 32, 32, shrink=4)
    from ssole.data.sources import open_source
    from ssole.data.store import ImageStore

    images = ImageStore(open_source(data)).images
    if images is None:
        raise SystemExit(f"{data}: images of one size that fit into memory are needed")
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


class Pictures:
    """Pillow images made of an array when asked for, as torchvision's CIFAR-10 has them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images
        self.transform: Callable[[Any], Any] = lambda image: image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[i])), 0


def installed(package: str) -> bool:
    """Whether a contestant can run; says so when it cannot."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed and left out")
    return found


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(path: Path, figures: dict[str, Any], *, packages: Iterable[str]) -> None:
    """Write figures with date, hardware and versions as JSON."""
    record = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **figures,
        "environment": {
            **environment(command=False),
            **{name: version(name) for name in packages},
            "cores": os.cpu_count(),
            "load_average": os.getloadavg()[0],
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"saved {path}")


def draw_bars(path: Path, panels: Mapping[str, Rates], unit: str, colours: Mapping[str, str]) -> None:
    """A panel of horizontal bars for each: medians, and whiskers from the least to the largest round."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from pictures import STYLE

    with matplotlib.rc_context(STYLE):
        rows = max(len(rates) for rates in panels.values())
        height = 0.34 * rows + 0.9
        figure, grid = plt.subplots(
            (len(panels) + 1) // 2,
            2,
            figsize=(8.6, height * ((len(panels) + 1) // 2)),
            layout="constrained",
            squeeze=False,
        )
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, rates) in zip(grid.flat, panels.items(), strict=False):
            medians = [statistics.median(values) for values in rates.values()]
            spread = [
                [median - min(values), max(values) - median]
                for median, values in zip(medians, rates.values(), strict=True)
            ]
            axes.barh(
                list(rates), medians, color=[colours[name] for name in rates],
                xerr=np.transpose(spread), error_kw={"linewidth": 1, "capsize": 2},
            )  # fmt: skip
            for row, values in enumerate(rates.values()):
                axes.annotate(
                    f"{medians[row]:,.0f}", (max(values), row), xytext=(5, 0), textcoords="offset points", va="center"
                )
            axes.set_title(title)
            axes.set_xlabel(unit)
            axes.set_xlim(0, 1.25 * max(max(values) for values in rates.values()))
            axes.grid(visible=False, axis="y")
            axes.invert_yaxis()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=200, bbox_inches="tight")
        plt.close(figure)
    print(f"saved {path}")
