"""`ssole pretrain`: help, options that reach the config, refused input, resuming, unreadable images."""

from __future__ import annotations

import itertools
import json
import re
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, Command

import tiny
from ssole.config import Crop, recipe_names
from ssole.training.run import Run


def test_help_of_pretrain_shows_recipes_and_explains_every_option(command: Command) -> None:
    outcome = command("pretrain", "--recipe", "imagenet100", "--help")
    assert outcome.code == 0
    assert all(name in outcome.out for name in recipe_names())
    assert re.search(r"--augment\.crops\.0\.size INT[ │\n]+Side of the square crop, .* \(default: 224\)", outcome.out)
    promised = "--data --recipe --out --epochs --steps --batch-size --views --seed --device --precision --deterministic"
    for option in (promised + " --checkpoint-every --resume").split():
        assert re.search(rf"^[│ ]*{option}\b", outcome.out, flags=re.MULTILINE), option
    explained = re.findall(r"^[│ ]+(--[a-z][\w.-]*)(?: \S+)*[ │\n]{2,}(\S+)", outcome.out, flags=re.MULTILINE)
    assert len(explained) > 40
    assert [option for option, words in explained if words == "(default:"] == []


def test_pretrain_prints_its_result_and_the_next_command(command: Command) -> None:
    outcome = command(*TINY)
    assert outcome.code == 0, outcome.err
    assert "22 images, 12 steps of 4 x 2 views, on cpu in float32; it needs " in outcome.err
    needed = re.search(r"it needs ([\d.]+) KiB of disk", outcome.err)
    assert needed is not None
    taken = sum(path.stat().st_size for path in Path("runs/tiny").rglob("*.safetensors"))
    assert taken < 1024 * float(needed[1]) < 3 * taken  # of the three checkpoints at once, one is gone
    assert re.search(r"step 12/12 .*images/s  loss \d\.\d+ \(low rank \d\.\d+, high rank \d\.\d+\)", outcome.err)
    assert re.search(r"^12 steps in .*, loss \d\.\d+, effective rank \d$", outcome.out, flags=re.MULTILINE)
    assert "weights: runs/tiny/backbone.safetensors\n" in outcome.out
    assert "ssole eval runs/tiny\n" in outcome.out
    assert Run(Path("runs/tiny")).finished


OVERRIDES: dict[str, dict[str, object]] = {
    "--optim.lr 0.25 --optim.betas 0.5 0.75 --optim.clip-grad-norm 3 --augment.hflip 0 --seed 7 --steps 1": {
        "optim.lr": 0.25,
        "optim.betas": (0.5, 0.75),
        "optim.clip_grad_norm": 3.0,
        "augment.hflip": 0.0,
        "seed": 7,
        "steps": 1,
    },
    "--optim.lr=0.001 --optim.name=adamw --batch-size=2 --checkpoint-every=1 --log-every=2 --epochs=1": {
        "optim.lr": 0.001,
        "optim.name": "adamw",
        "batch_size": 2,
        "checkpoint_every": 1,
        "log_every": 2,
        "epochs": 1,
        "steps": None,
    },
    "--views 3 --augment.crops.0.size 6 --augment.crops.0.scale 0.5 0.9 --no-deterministic --steps 1": {
        "augment.crops": (Crop(count=3, size=6, scale=(0.5, 0.9)),),
        "deterministic": False,
    },
    "--model.projector-norm layer --model.backbone-args.layers 1 1 1 2 --loss.form raw --loss.coupled --steps 1": {
        "model.projector_norm": "layer",
        "model.backbone_args": {"layers": [1, 1, 1, 2], "channels": [8, 8, 8, 16]},
        "loss.form": "raw",
        "loss.coupled": True,
    },
    "--batch_size 2 --precision bfloat16 --device auto --knn-every 9 --steps 1": {
        "batch_size": 2,
        "precision": "bfloat16",
        "device": "auto",
        "knn_every": 9,
    },
    "--eval-every 1 --eval-data eval --steps 1": {"knn_every": 1},
}


@pytest.mark.parametrize("options", OVERRIDES)
def test_every_override_reaches_the_config(command: Command, options: str) -> None:
    tiny.write_folder(Path("eval"), 40)
    outcome = command(*TINY, "--out", "run", *options.split())
    assert outcome.code == 0, outcome.err
    config = Run(Path("run")).config
    assert {name: attrgetter(name)(config) for name in OVERRIDES[options]} == OVERRIDES[options]


def test_epochs_replace_the_steps_of_a_recipe(command: Command) -> None:
    assert command(*TINY, "--epochs", "1").code == 0
    run = Run(Path("runs/tiny"))
    assert (run.config.epochs, run.config.steps) == (1, None)
    assert len(run.metrics) == tiny.STEPS_PER_EPOCH
    assert command(*TINY, "--epochs", "1", "--steps", "2").code == 0
    assert len(Run(Path("runs/tiny-2")).metrics) == 2


def test_several_parquet_files(command: Command) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    files = [path.read_bytes() for path in sorted(Path("photos").rglob("*.png"))]
    for name, part in (("a.parquet", files[:11]), ("b.parquet", files[11:])):
        parquet.write_table(pa.table({"image": [{"bytes": data, "path": None} for data in part]}), name)
    outcome = command("pretrain", "--recipe", "tiny.yaml", "--steps", "1", "--data", "a.parquet", "b.parquet")
    assert outcome.code == 0, outcome.err
    assert Run(Path("runs/tiny")).config.data == tuple(
        str(Path(name).absolute()) for name in ("a.parquet", "b.parquet")
    )


def test_images_of_many_channels_without_a_recipe(command: Command) -> None:
    np.save("five.npy", np.random.default_rng(0).integers(0, 255, (64, 40, 40, 5), dtype=np.uint8))
    outcome = command("pretrain", "--data", "five.npy", "--channels", "5", "--steps", "1", "--batch-size", "4")
    assert outcome.code == 0, outcome.err
    (config,) = (Run(path).config for path in Path("runs").iterdir())
    assert config.channels == 5


def test_a_preset_on_the_command_line(command: Command) -> None:
    options = ("--out", "run", "--preset", "aerial", "--augment.hue", "0.2", "--steps", "1")
    assert command(*TINY, *options).code == 0
    augment = Run(Path("run")).config.augment
    assert (augment.turn, augment.hue) == (0.75, 0.2)
    assert augment.crops == Run(Path("run")).config.augment.crops
    assert "no preset 'arial'. Did you mean 'aerial'?" in command(*TINY, "--preset", "arial").err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "1"], ["--lr", "--optim.lr"]),
        (["--optim.learning-rate", "1"], ["--optim.learning-rate"]),
        (["--bach-size", "4"], ["--bach-size", "--batch-size"]),
        (["--epochs", "ten"], ["--epochs", "'ten'"]),
        (["--optim.name", "adam"], ["'adam'", "adamw"]),
        (["--optim.lr", "-1"], ["optim", "lr must be positive", "-1.0"]),
        (["--views", "1"], ["at least 2 views", "makes 1"]),
        (["--batch-size", "64"], ["batch of 64", "hold 22", "--batch-size 22"]),
        (["--device", "tpu"], ["'tpu'", "auto, cpu, cuda or cuda:N"]),
        (["--device", "cuda:99"], ["'cuda:99'", "CUDA devices"]),
        (["--model.backbone", "resnet_18"], ["'resnet_18'", "resnet18"]),
        (["--recipe", "cifar-10"], ["'cifar-10'", "Did you mean 'cifar10'"]),
        (["--recipe", "nowhere.yaml"], ["'nowhere.yaml'"]),
        (["--recipe"], ["--recipe"]),
        (["--data", "phots"], ["'phots'", "photos"]),
        (["--data", "tiny.yaml"], ["tiny.yaml", "folder of images"]),
        (["--steps", "1", "extra"], ["extra"]),
        (["--loss.name", "simclr", "--loss.gamma", "0.3"], ["simclr has no setting --loss.gamma.", "the loss ssole"]),
        (["--budget", "soon"], ["'soon'", "10m"]),
        (["--budget", "200steps"], ["is a time", "'200steps'"]),
        (["--budget", "10m", "--steps", "3"], ["leave out either budget or steps"]),
        (["--budget", "10m", "--epochs", "3"], ["leave out either budget or epochs"]),
        (["--budget", "0.01s"], ["a budget of 0.01s is 0 steps of"]),
        (["--out", "taken"], ["taken", "not empty"]),
        (["--out", "tiny.yaml"], ["tiny.yaml"]),
    ],
    ids=" ".join,
)
def test_wrong_input_is_named_and_leaves_nothing(command: Command, options: list[str], words: list[str]) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    before = sorted(Path().rglob("*"))
    outcome = command(*TINY, *options)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err
    assert sorted(Path().rglob("*")) == before


def test_images_without_their_option(command: Command) -> None:
    outcome = command("pretrain", "photos", "--steps", "1")
    assert outcome.code == 2
    assert outcome.err == "error: got 'photos' before any option: images go with --data, as in --data photos\n"


def test_a_budget_of_time(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves by 4 s in each step."""
    monkeypatch.setattr("ssole.api.step_seconds", lambda *_, **__: 4.0)
    monkeypatch.setattr("ssole.training.pace.monotonic", itertools.count(0.0, 4.0).__next__)
    outcome = command(*TINY, "--budget", "60s")
    assert outcome.code == 0, outcome.err
    assert "22 images, 60s, about" in outcome.err
    run = Run(Path("runs/tiny"))
    assert run.config.budget == "60s"
    last = run.metrics[-1]
    assert 10 <= last["step"] <= 15  # some seconds were spent before
    assert last["lr"] < 0.03 * run.config.optim.lr  # the last of ten steps, the fewest there can be, has 0.024
    outcome = command("pretrain", "--resume", "runs/tiny", "--budget", "9s")
    assert (outcome.code, "leave out --budget" in outcome.err) == (2, True)


def test_what_cannot_be_resumed_says_why(command: Command) -> None:
    outcome = command("pretrain", "--resume", "photos")
    assert (outcome.code, outcome.out) == (2, "")
    assert "photos is not a run folder: it has no config.yaml" in outcome.err
    assert "there is no nowhere" in command("pretrain", "--resume", "nowhere").err
    outcome = command("pretrain", "--resume", "photos", "--epochs", "3", "--optim.lr=1")
    assert outcome.code == 2
    assert "--resume keeps the run's own settings; leave out --epochs, --optim.lr; ssole extend trains" in outcome.err


def test_resuming_a_finished_run_says_so(command: Command) -> None:
    assert command(*TINY, "--steps", "2").code == 0
    before = Path("runs/tiny/backbone.safetensors").stat().st_mtime_ns
    outcome = command("pretrain", "--resume", "runs/tiny")
    assert outcome.code == 0
    assert "runs/tiny has finished already" in outcome.out
    assert Path("runs/tiny/backbone.safetensors").stat().st_mtime_ns == before


def test_metrics_that_were_changed_do_not_end_a_finished_run(command: Command) -> None:
    assert command(*TINY, "--steps", "2").code == 0
    metrics = Path("runs/tiny/metrics.jsonl")
    metrics.write_text(metrics.read_text().replace("effective_rank", "effective_rang"))
    outcome = command("pretrain", "--resume", "runs/tiny")
    assert outcome.code == 0
    assert "weights: runs/tiny/backbone.safetensors" in outcome.out


@pytest.mark.filterwarnings("default")
def test_replaced_pictures_are_refused_until_allowed(command: Command) -> None:
    assert command(*TINY, "--steps", "2").code == 0
    Path("runs/tiny/backbone.safetensors").unlink()
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(path.read_bytes() + b"more")
    outcome = command("pretrain", "--resume", "runs/tiny")
    assert outcome.code == 2
    assert "22 of 22 images that were compared have other contents now, such as cat/000.png" in outcome.err
    assert "--allow-changes images" in outcome.err
    outcome = command("pretrain", "--resume", "runs/tiny", "--allow-changes", "images", "--data", "photos")
    assert outcome.code == 0, outcome.err
    assert Run(Path("runs/tiny")).finished


def test_changes_are_allowed_on_resuming_alone(command: Command) -> None:
    outcome = command(*TINY, "--allow-changes", "images")
    assert outcome.code == 2
    assert "--allow-changes goes with --resume RUN" in outcome.err


def test_a_corrupt_image_is_left_out_listed_and_reported(command: Command) -> None:
    Path("photos/cat/zzz.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    outcome = command(*TINY)
    assert outcome.code == 0, outcome.err
    assert "1 unreadable images were left out, such as cat/zzz.png: " in outcome.out
    assert "runs/tiny/unreadable.jsonl" in outcome.out
    (row,) = [json.loads(line) for line in Path("runs/tiny/unreadable.jsonl").read_text().splitlines()]
    assert row["id"] == "cat/zzz.png"
    assert row["reason"]


def test_when_every_image_is_corrupt(command: Command) -> None:
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"")
    outcome = command(*TINY)
    assert outcome.code == 2
    assert "of the 22 images in" in outcome.err
    assert "cannot be read" in outcome.err
    assert not Path("runs").exists()
