"""Fuzzing of everything that reads files of strangers: mutated files may only give a result or an error of ours.

    python scripts/fuzz.py --cases 2000
    python scripts/fuzz.py --seconds 3600 --out benchmarks/results/fuzz.json

Each case is a function of (target, seed, number), so a finding is repeated by its number:

    python scripts/fuzz.py --target images --seed 0 --first 1234 --cases 1 --verbose

Cases run in forked processes. A finding is an exception that is not of ssole, the death of the process, more than 5
seconds of processor time (or a minute without an answer), or more than 3 GiB of memory. Linux only.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from ssole.config import ConfigError, PretrainConfig, from_dict, load, to_dict
from ssole.data.decode import decode
from ssole.data.sources import open_source
from ssole.errors import DataError
from ssole.models.load import load as load_backbone
from ssole.report.record import Record
from ssole.runtime import environment
from ssole.search.index import DESCRIPTION, FEATURES, FORMAT, IMAGES, Index
from ssole.search.rows import unit_rows
from ssole.training.checkpoint import Progress, load_checkpoint, snapshot, write_checkpoint
from ssole.training.replay import replay, save_bundle
from ssole.training.run import Run, create_run, require_same_recipe, rewind
from ssole.training.step import Learner
from ssole.training.watch import NonFiniteLossError

SECONDS = 5.0  # of processor time in one case
SILENCE = 60.0  # seconds without an answer, after which a process is given up
MEMORY = 3 << 30  # bytes that a case may add
BATCH = 200  # cases of one process
OURS = (ConfigError, DataError)

Files = dict[str, bytes]
"""Files of a case by path; only one of them is mutated."""


@dataclass
class Target:
    """What reads files, and files that it reads without complaint."""

    seeds: list[Files]
    read: Callable[[Path, random.Random], object]
    """Reader of a folder with the files."""


# Mutations


NUMBERS = [0, 1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1]
WORDS = [
    b"-1", b"0", b"1e999", b"NaN", b"null", b"true", b"[]", b"{}", b'""', b"9" * 40, b"1" * 5000, b"\xff\xfe", b"\0",
    b"../../x", b"/dev/zero", b"\x1b[31m", "\u202e".encode(), b"!!python/object:os.system", b"&a [*a]", b"[" * 3000,
]  # fmt: skip


def mutate(data: bytes, r: random.Random, other: bytes) -> bytes:
    """Data with one to four mutations."""
    out = bytearray(data)
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        r.choice(MUTATIONS)(out, r, other)
    return bytes(out)


def place(out: bytearray, r: random.Random) -> int:
    """Position in the data; headers are likelier than the rest."""
    return r.randrange(min(len(out), r.choice((16, 64, 512, 1 << 30))) or 1)


def flip(out: bytearray, r: random.Random, other: bytes) -> None:
    if out:
        out[place(out, r)] ^= 1 << r.randrange(8)


def number(out: bytearray, r: random.Random, other: bytes) -> None:
    at, width = place(out, r), r.choice("BHIQ")
    value = struct.pack(r.choice("<>") + width, r.choice(NUMBERS) % (1 << 8 * struct.calcsize(width)))
    out[at : at + len(value)] = value


def cut(out: bytearray, r: random.Random, other: bytes) -> None:
    del out[place(out, r) :]


def remove(out: bytearray, r: random.Random, other: bytes) -> None:
    at = place(out, r)
    del out[at : at + r.choice((1, 4, 64, 1024))]


def repeat(out: bytearray, r: random.Random, other: bytes) -> None:
    at = place(out, r)
    out[at:at] = out[at : at + r.choice((1, 4, 64, 1024))] * r.choice((1, 2, 50))


def splice(out: bytearray, r: random.Random, other: bytes) -> None:
    at = r.randrange(len(other) or 1)
    out[place(out, r) :] = other[at:]


def noise(out: bytearray, r: random.Random, other: bytes) -> None:
    at = place(out, r)
    out[at : at + 16] = r.randbytes(r.choice((1, 16, 300)))


def word(out: bytearray, r: random.Random, other: bytes) -> None:
    """In place of a token, where the data are text: a number, a word or a quoted string."""
    at = end = place(out, r)
    while end < len(out) and end < at + 40 and out[end : end + 1].isalnum():
        end += 1
    out[at:end] = r.choice(WORDS)


MUTATIONS: list[Callable[[bytearray, random.Random, bytes], None]] = [
    flip, flip, number, number, cut, remove, repeat, splice, noise, word,
]  # fmt: skip


ODD: list[Any] = [
    -1, 0, 1, 2**31, 2**70, 0.5, -1e308, float("inf"), float("nan"), None, True, False, "", "x", "../../x", "\x1b[31m",
    [], {}, [[]], [0] * 50, {"a": 1}, "x" * 2000, "1", "resnet50", "cuda:9",
]  # fmt: skip


def change_value(name: str, data: bytes, r: random.Random) -> bytes:
    """JSON, YAML or a header of safetensors in which a value is another, missing, or new."""
    head, body, tail = b"", data, b""
    if name.endswith(".safetensors"):
        end = 8 + int.from_bytes(data[:8], "little")
        body, tail = data[8:end], data[end:]
    lines = body.splitlines(keepends=True) if name.endswith(".jsonl") else [body]
    chosen = r.randrange(len(lines))
    values = yaml.safe_load(lines[chosen]) if name.endswith(".yaml") else json.loads(lines[chosen])
    nested = values.get("__metadata__", {}).get("ssole") if isinstance(values, dict) and r.random() < 0.8 else None
    if nested is not None:  # JSON within JSON
        inner = json.loads(nested)
        _change(inner, r)
        values["__metadata__"]["ssole"] = json.dumps(inner)
    else:
        _change(values, r)
    text = yaml.safe_dump(values) if name.endswith(".yaml") else json.dumps(values)
    lines[chosen] = text.encode() + b"\n" * name.endswith(".jsonl")
    out = b"".join(lines)
    if name.endswith(".safetensors"):
        head = struct.pack("<Q", len(out))
    return head + out + tail


def _change(values: Any, r: random.Random) -> None:
    """Change something in nested values."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = r.choice(keys) if keys else None
        if key is not None and isinstance(values[key], (dict, list)) and values[key] and r.random() < 0.85:
            values = values[key]
            continue
        break
    act = r.randrange(6)
    if key is None or act == 0:
        if isinstance(values, dict):
            values[r.choice(("x", "checkpoint_path", ""))] = r.choice(ODD)
        else:
            values.append(r.choice(ODD))
    elif act == 1:
        del values[key]
    else:
        values[key] = r.choice(ODD)


def repair(name: str, data: bytes) -> bytes:
    """Data whose checksums and lengths fit again, without which no decoder would look further."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(data)
    if name.endswith(".safetensors") and len(data) > 8 and b"}" in data:
        end = data.rfind(b"}", 0, 8 + 65536) + 1
        return struct.pack("<Q", max(0, end - 8)) + data[8:]
    if name.endswith(".tar"):
        return _tar(data)
    return data


def _png(data: bytes) -> bytes:
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        length = int.from_bytes(out[at : at + 4], "big")
        if at + 12 + length > len(out):
            break
        out[at + 8 + length : at + 12 + length] = zlib.crc32(out[at + 4 : at + 8 + length]).to_bytes(4, "big")
        at += 12 + length
    return bytes(out)


def _tar(data: bytes) -> bytes:
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


# Targets


def encoded() -> dict[str, bytes]:
    """Small images in the formats that Pillow and tifffile write here."""
    import tifffile
    from PIL import Image, features

    random_ = np.random.default_rng(0)
    rgb = random_.integers(0, 256, (24, 20, 3), dtype=np.uint8)
    deep = random_.integers(0, 1 << 16, (24, 20, 4), dtype=np.uint16)
    image, found, turned = Image.fromarray(rgb), {}, Image.Exif()
    turned[0x0112] = 6

    def save(name: str, picture: Image.Image, kind: str, **options: Any) -> None:
        out = io.BytesIO()
        picture.save(out, kind, **options)
        found[name] = out.getvalue()

    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "PCX", "SGI", "ICO", "DDS", "MSP", "XBM", "IM"):
        save(kind.lower(), image.convert("1") if kind in ("MSP", "XBM") else image, kind)
    for kind, feature in (("WEBP", "webp"), ("JPEG2000", "jpg_2000"), ("AVIF", "avif")):
        if features.check(feature):
            save(kind.lower(), image, kind)
    save("palette.png", image.convert("P"), "PNG", transparency=0)
    save("alpha.png", image.convert("RGBA"), "PNG")
    save("grey16.png", Image.fromarray(deep[..., 0]), "PNG")
    save("progressive.jpeg", image, "JPEG", progressive=True, exif=turned)
    save("cmyk.jpeg", image.convert("CMYK"), "JPEG")
    save("animated.gif", image, "GIF", save_all=True, append_images=[image.rotate(90)])
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"):
        save(
            f"{compression}.tiff",
            image.convert("1" if compression == "group4" else "RGB"),
            "TIFF",
            compression=compression,
        )
    for name, options in {"plain": {}, "tiled": {"tile": (16, 16)}, "planar": {"planarconfig": "separate"}}.items():
        out = io.BytesIO()
        pixels = deep.transpose(2, 0, 1) if name == "planar" else deep
        tifffile.imwrite(out, pixels, photometric="minisblack" if name == "planar" else "rgb", **options)
        found[f"{name}16.tiff"] = out.getvalue()
    return found


def read_image(folder: Path, r: random.Random) -> None:
    (path,) = folder.iterdir()
    decode(path.read_bytes(), where="case", channels=r.choice((None, None, 1, 3, 4)), shrink_to=r.choice((None, 8)))


def read_data(folder: Path, r: random.Random) -> None:
    """Open the file called data.*, read its images and labels."""
    (path,) = folder.glob("data*")
    source = open_source(str(path))
    for i in range(min(len(source), 20)):
        source.id(i)
        try:
            decode(source.read(i), where=source.id(i))
        except DataError:
            continue


CONFIG: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "device": "cpu",
    "augment": {"crops": [{"count": 2, "size": 8}]},
    "model": {
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
        "projector_dim": 4,
        "projector_hidden": 4,
    },
}


def small(config: PretrainConfig) -> bool:
    """Whether a config's network and views are made in milliseconds: larger ones are the user's to ask for."""
    sizes = [crop.size * crop.count for crop in config.augment.crops]
    return config.model.backbone == "resnet18" and max(sizes) < 200 and config.projector.hidden < 4096


def read_recipe(folder: Path, r: random.Random) -> None:
    load(folder / "recipe.yaml")


def read_run(folder: Path, r: random.Random) -> None:
    run = Run(folder)
    record = Record.read(folder)
    record.cost(), record.command(), record.terms
    require_same_recipe(run)
    modules = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2)})
    load_checkpoint(run, modules, torch.optim.SGD(modules.parameters(), lr=0.1, momentum=0.9), last_step=20)
    rewind(run, 5)


def read_weights(folder: Path, r: random.Random) -> None:
    load_backbone(folder / "backbone.safetensors")


def read_bundle(folder: Path, r: random.Random) -> None:
    try:
        facts = json.loads((folder / "step.json").read_text())
        if facts["compiled"] is True or not small(from_dict(facts["settings"])):
            return
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    replay(folder)


def read_index(folder: Path, r: random.Random) -> None:
    index = Index(folder)
    found = [index.search(index.ids[0], 3), index.outliers(2, progress=False), index.select(2, progress=False)[0]]
    for number, one in enumerate([*found, *index.duplicates(0.5, progress=False)]):
        one.save(folder / f"found-{number}.csv")
    if index.labels is not None:
        index.labels.sum()


def folder_files(folder: Path) -> Files:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_files(folder: Path) -> Files:
    run = create_run(folder, from_dict(CONFIG))
    modules = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2)})
    optimizer = torch.optim.SGD(modules.parameters(), lr=0.1, momentum=0.9)
    modules["encoder"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    for step in (5, 10):
        write_checkpoint(run, snapshot(modules, optimizer)(), Progress(step=step, images=22, seconds=1.5))
    rows = [{"step": n, "epoch": 0, "loss": 0.5, "effective_rank": 2.0, "lr": 0.1, "seconds": n / 2} for n in range(12)]
    rows.append({"step": 11, "guardian": "lower rate", "rate": 0.5, "failed": 12, "reason": "the loss is nan"})
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run.path / "unreadable.jsonl").write_text(json.dumps({"index": 1, "id": "a", "reason": "b"}) + "\n")
    (run.path / "images.json").write_text(json.dumps({"images": 22, "ids": "0" * 32, "contents": {}}) + "\n")
    return folder_files(folder)


def bundle_files(folder: Path) -> Files:
    run = create_run(folder / "run", from_dict(CONFIG))
    learner = Learner(run.config, torch.device("cpu"))
    images = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    learner.step(images, torch.arange(4), epoch=0, lr=0.1)
    return folder_files(save_bundle(run, learner, NonFiniteLossError(1, "the loss is nan"), learner.batch))


def index_files(folder: Path) -> Files:
    """Index of a few rows, without a backbone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    np.save(folder / FEATURES, unit_rows(torch.randn(12, 4, generator=torch.Generator().manual_seed(0))))
    labels = {"label": [-1, *range(11)], "class": [None, *map(str, range(11))]}
    pq.write_table(pa.table({"id": [f"{n}.png" for n in range(12)], **labels}), folder / IMAGES)
    shape = {"images": 12, "features": 4}
    (folder / DESCRIPTION).write_text(json.dumps({"format": FORMAT, **shape, "backbone": "0", "data": "photos"}))
    return folder_files(folder)


def weight_files() -> Files:
    from safetensors.torch import save

    from ssole.models.backbone import create_encoder
    from ssole.models.load import backbone_metadata

    config = from_dict(CONFIG)
    tensors = {name: t.contiguous() for name, t in create_encoder(config).backbone.state_dict().items()}
    return {"backbone.safetensors": save(tensors, metadata=backbone_metadata(config))}


def data_files() -> dict[str, list[Files]]:
    """Tars, parquet files, lists and arrays of a few images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = encoded()["png"]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in {
            "a/1.png": png,
            "a/1.cls": b"3",
            "b.png": png,
            "b.json": b'{"label": 2}',
            "c.jpg": png,
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    table, parquet = pa.table({"image": [{"bytes": png, "path": "x"}] * 6, "label": list(range(6))}), []
    for options in (
        {},
        {"compression": "zstd", "use_dictionary": False},
        {"row_group_size": 2, "data_page_version": "2.0"},
    ):
        out = io.BytesIO()
        pq.write_table(table, out, **options)
        parquet.append({"data.parquet": out.getvalue()})
    array, arrays = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8), []
    for name, save in {
        "data.npy": lambda out: np.save(out, array),
        "data.npz": lambda out: np.savez(out, images=array, labels=np.arange(6)),
    }.items():
        out = io.BytesIO()
        save(out)
        arrays.append({name: out.getvalue()})
    pictures = {"x/1.png": png, "x/2.png": png}
    lists = [{"data.txt": b"x/1.png\nx/2.png\n"}, {"data.csv": b"path,label\nx/1.png,cat\nx/2.png,dog\n"}]
    return {
        "tars": [{"data.tar": archive.getvalue()}],
        "parquet": parquet,
        "arrays": arrays,
        "lists": [files | pictures for files in lists],
    }


def targets(folder: Path) -> dict[str, Target]:
    """Targets by name; `folder` is for making their files."""
    recipe = {"recipe.yaml": yaml.safe_dump(to_dict(from_dict(CONFIG))).encode()}
    shipped = {"recipe.yaml": Path(sys.modules["ssole"].__path__[0], "recipes", "imagenet100.yaml").read_bytes()}
    made = {
        "images": Target([{name: data} for name, data in encoded().items()], read_image),
        "recipes": Target([recipe, shipped], read_recipe),
        "runs": Target([run_files(folder / "fuzzed")], read_run),
        "weights": Target([weight_files()], read_weights),
        "indices": Target([index_files(folder / "index")], read_index),
        "bundles": Target([bundle_files(folder / "bundle")], read_bundle),
    }
    return made | {name: Target(seeds, read_data) for name, seeds in data_files().items()}


# Cases


def make_case(target: Target, name: str, seed: int, case: int) -> tuple[Files, random.Random]:
    """Files of a case."""
    r = random.Random(f"{name} {seed} {case}")
    files = dict(r.choice(target.seeds))
    changed = r.choice([path for path in files if not path.startswith("x/")])
    other = r.choice(list(r.choice(target.seeds).values()))
    if changed.endswith((".json", ".jsonl", ".yaml", ".safetensors")) and r.random() < 0.6:
        files[changed] = change_value(changed, files[changed], r)
    else:
        data = mutate(files[changed], r, other)
        files[changed] = repair(changed, data) if r.random() < 0.7 else data
    return files, r


class Slow(BaseException):
    """A case took too much processor time."""


def run_case(target: Target, files: Files, r: random.Random, folder: Path) -> str:
    """Outcome of a case: `read`, `refused`, or the exception that is not ours and where it was raised."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(folder, r)
        return "read"
    except OURS:
        return "refused"
    except MemoryError:
        return "memory"
    except Slow:
        return "slow: " + where(sys.exc_info()[2])
    except BaseException as error:  # noqa: BLE001 - any other is what is looked for
        return f"{type(error).__name__}: {where(error.__traceback__)}: {str(error)[:120]!r}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        shutil.rmtree(folder, ignore_errors=True)


def where(trace: Any) -> str:
    """Last line of the package in a traceback."""
    frames = [f for f in traceback.extract_tb(trace) if "/ssole/" in f.filename]
    return f"{frames[-1].filename.rpartition('/ssole/')[2]}:{frames[-1].lineno}" if frames else "?"


def work(target: Target, name: str, seed: int, cases: Iterable[int], folder: Path, out: int) -> None:
    """Child process: run cases, and tell of each when it begins and how it ended."""

    def stop(*_: Any) -> None:
        raise Slow

    signal.signal(signal.SIGPROF, stop)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    for case in cases:
        os.write(out, f"{case}\n".encode())
        files, r = make_case(target, name, seed, case)
        begin = time.process_time()
        outcome = run_case(target, files, r, folder / str(case))
        os.write(out, (json.dumps([case, outcome, time.process_time() - begin]) + "\n").encode())


@dataclass
class Tally:
    """Outcomes of a target."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[int]] = field(default_factory=dict)
    """Numbers of the cases, by what happened."""
    slowest: float = 0.0
    """Processor seconds."""

    def add(self, case: int, outcome: str, seconds: float = 0.0) -> None:
        self.cases += 1
        self.slowest = max(self.slowest, seconds)
        if outcome in ("read", "refused"):
            self.outcomes[outcome] += 1
        else:
            self.outcomes["found"] += 1
            self.findings.setdefault(outcome, []).append(case)


def run_batch(target: Target, name: str, seed: int, cases: range, folder: Path, tally: Tally) -> None:
    """Run cases in forked processes: another one after each that dies or hangs."""
    while cases:
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.close(reading)
                work(target, name, seed, cases, folder, writing)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        begun, hung = _follow(reading, tally)
        os.close(reading)
        if hung:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if begun is None and status == 0:
            return
        begun = cases[0] if begun is None else begun
        tally.add(begun, "no answer" if hung else f"the process died ({status})")
        cases = range(begun + 1, cases.stop)


def _follow(reading: int, tally: Tally) -> tuple[int | None, bool]:
    """Read a child's answers: the case that it had begun when it ended or fell silent, and whether it fell silent."""
    begun, text = None, b""
    while True:
        if not select.select([reading], [], [], SILENCE)[0]:
            return begun, True
        if not (data := os.read(reading, 65536)):
            return begun, False
        *lines, text = (text + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            if isinstance(told, int):
                begun = told
            else:
                tally.add(*told)
                begun = None


def fuzz(
    names: list[str], *, seed: int, first: int, cases: int | None, seconds: float, verbose: bool
) -> dict[str, Any]:
    """Result of so many cases of each target, or of as many as fit into a time."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["SSOLE_CACHE"] = f"{temporary}/cache"
        made = targets(Path(temporary))
        tallies = {name: Tally() for name in names or made}
        at, end = first, first + cases if cases is not None else sys.maxsize
        while at < end and time.monotonic() - begin < seconds:
            batch = range(at, min(at + BATCH, end))
            for name, tally in tallies.items():
                run_batch(made[name], name, seed, batch, Path(temporary, "cases"), tally)
            at = batch.stop
            if verbose:
                print({name: dict(tally.outcomes) for name, tally in tallies.items()}, flush=True)
    return {
        "seed": seed,
        "cases": sum(tally.cases for tally in tallies.values()),
        "found": sum(tally.outcomes["found"] for tally in tallies.values()),
        "seconds": round(time.monotonic() - begin),
        "targets": {
            name: {"cases": t.cases, **t.outcomes, "slowest_seconds": round(t.slowest, 2), "findings": t.findings}
            for name, t in tallies.items()
        },
        "environment": environment(),
    }


def main() -> int:
    """Entry point; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", default=[], help="only this target; may be given several times")
    parser.add_argument("--cases", type=int, help="cases of each target")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no batch after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    parser.add_argument("--verbose", action="store_true")
    args = parser.parse_args()
    if args.cases is None and args.seconds == float("inf"):
        parser.error("give --cases or --seconds")
    result = fuzz(
        args.target, seed=args.seed, first=args.first, cases=args.cases, seconds=args.seconds, verbose=args.verbose
    )
    for name, tally in result["targets"].items():
        print(f"{name:8} {tally['cases']:8,} cases, slowest {tally['slowest_seconds']} s")
        for outcome, numbers in tally["findings"].items():
            print(f"    {len(numbers)} x {outcome}, such as case {numbers[0]}")
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if result["found"] else 0


if __name__ == "__main__":
    sys.exit(main())
