"""The command line: what is understood, what is said, and exit codes. Nobody is ever shown a traceback."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import ssole
import tiny
from ssole import cli
from ssole.config import Crop, recipe_names
from ssole.training.run import Run


class Said(NamedTuple):
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `ssole ARGUMENTS` in this process, in a folder with tiny.yaml and images in photos/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    tiny.recipe(tmp_path)
    tiny.write_folder(tmp_path / "photos")

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        code = tiny.main(*arguments)
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.out + said.err
        return said

    return run


TINY = ("pretrain", "--recipe", "tiny.yaml", "--data", "photos")


# Finding one's way


def test_without_a_command_the_usage_is_shown(command: Command) -> None:
    for arguments, code in (((), 2), (("--help",), 0), (("-h",), 0)):
        said = command(*arguments)
        assert said.code == code
        for name in cli.COMMANDS:
            assert f"ssole {name}" in said.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"ssole {ssole.__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("evl", "eval"), ("pretain", "pretrain"), ("embeddings", "embed")])
def test_a_mistyped_command(command: Command, typed: str, meant: str) -> None:
    said = command(typed)
    assert said.code == 2
    assert f"no command '{typed}', did you mean '{meant}'?" in said.err


def test_help_of_pretrain_shows_recipes_and_explains_every_option(command: Command) -> None:
    said = command("pretrain", "--recipe", "imagenet100", "--help")
    assert said.code == 0
    assert all(name in said.out for name in recipe_names())
    assert re.search(r"--augment\.crops\.0\.size INT[ │\n]+Side of the square crop, .* \(default: 224\)", said.out)
    promised = "--data --recipe --out --epochs --steps --batch-size --views --seed --device --precision --deterministic"
    for option in (promised + " --checkpoint-every --resume").split():
        assert re.search(rf"^[│ ]*{option}\b", said.out, flags=re.MULTILINE), option
    explained = re.findall(r"^[│ ]+(--[a-z][\w.-]*)(?: \S+)*[ │\n]{2,}(\S+)", said.out, flags=re.MULTILINE)
    assert len(explained) > 40
    assert [option for option, words in explained if words == "(default:"] == []


@pytest.mark.parametrize("name", ["eval", "embed"])
def test_help_of_the_others_names_the_run_as_an_argument(command: Command, name: str) -> None:
    said = command(name, "--help")
    assert said.code == 0
    assert re.search(rf"^usage: ssole {name} .*\bRUN\b", said.out)
    assert "--run" not in said.out


# Training


def test_pretrain_says_what_it_made_and_what_to_do_with_it(command: Command) -> None:
    said = command(*TINY)
    assert said.code == 0, said.err
    assert "22 images, 12 steps of 4 x 2 views, on cpu in float32" in said.err
    assert re.search(r"step 12/12 .*images/s  loss \d\.\d+ \(low rank \d\.\d+, high rank \d\.\d+\)", said.err)
    assert re.search(r"^12 steps in .*, loss \d\.\d+, effective rank \d$", said.out, flags=re.MULTILINE)
    assert "weights: runs/tiny/backbone.safetensors\n" in said.out
    assert "ssole eval runs/tiny\n" in said.out
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
}


@pytest.mark.parametrize("options", OVERRIDES)
def test_every_override_lands_in_the_config(command: Command, options: str) -> None:
    said = command(*TINY, "--out", "run", *options.split())
    assert said.code == 0, said.err
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
    said = command("pretrain", "--recipe", "tiny.yaml", "--steps", "1", "--data", "a.parquet", "b.parquet")
    assert said.code == 0, said.err
    assert Run(Path("runs/tiny")).config.data == tuple(
        str(Path(name).absolute()) for name in ("a.parquet", "b.parquet")
    )


# What is refused


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
        (["--out", "taken"], ["taken", "not empty"]),
        (["--out", "tiny.yaml"], ["tiny.yaml"]),
    ],
    ids=" ".join,
)
def test_wrong_input_is_named_and_leaves_nothing(command: Command, options: list[str], words: list[str]) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    before = sorted(Path().rglob("*"))
    said = command(*TINY, *options)
    assert said.code == 2
    for word in words:
        assert word in said.err
    assert sorted(Path().rglob("*")) == before


def test_a_run_is_never_overwritten(command: Command) -> None:
    assert command(*TINY, "--out", "run").code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    said = command(*TINY, "--out", "run")
    assert said.code == 2
    assert "run already holds a run: go on with it (--resume run), or choose another folder (--out)" in said.err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_resume_tells_what_cannot_be_resumed(command: Command) -> None:
    said = command("pretrain", "--resume", "photos")
    assert (said.code, said.out) == (2, "")
    assert "photos is not a run folder: it has no config.yaml" in said.err
    assert "there is no nowhere" in command("pretrain", "--resume", "nowhere").err
    said = command("pretrain", "--resume", "photos", "--epochs", "3", "--optim.lr=1")
    assert said.code == 2
    assert "--resume goes on with the run's own settings; leave out --epochs, --optim.lr" in said.err


def test_resuming_a_finished_run_says_so(command: Command) -> None:
    assert command(*TINY, "--steps", "2").code == 0
    before = Path("runs/tiny/backbone.safetensors").stat().st_mtime_ns
    said = command("pretrain", "--resume", "runs/tiny")
    assert said.code == 0
    assert "runs/tiny has finished already" in said.out
    assert Path("runs/tiny/backbone.safetensors").stat().st_mtime_ns == before


def test_resuming_on_other_data(command: Command) -> None:
    assert command(*TINY, "--steps", "2").code == 0
    Path("runs/tiny/backbone.safetensors").unlink()
    sorted(Path("photos").rglob("*.png"))[0].unlink()
    said = command("pretrain", "--resume", "runs/tiny")
    assert said.code == 2
    assert "started on 22 images and the data now hold 21" in said.err


def test_divergence_names_the_step(command: Command) -> None:
    said = command(*TINY, "--optim.lr", "1e30")
    assert said.code == 1
    assert re.search(r"^error: step \d+: .*lower optim\.lr", said.err, flags=re.MULTILINE)
    assert not Run(Path("runs/tiny")).finished


def test_a_full_disk_is_told(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssole.training.loop.save_checkpoint", full)
    said = command(*TINY)
    assert said.code == 1
    assert "error: [Errno 28] No space left on device" in said.err


def test_memory_that_does_not_suffice_is_told(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("ssole.training.loop.embed_views", full)
    said = command(*TINY)
    assert said.code == 1
    assert "error: CUDA out of memory. Lower --batch-size" in said.err


# Unreadable images


def test_a_corrupt_image_is_left_out_listed_and_told(command: Command) -> None:
    Path("photos/cat/zzz.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    said = command(*TINY)
    assert said.code == 0, said.err
    assert "1 unreadable images were left out, such as cat/zzz.png: " in said.out
    assert "runs/tiny/unreadable.jsonl" in said.out
    (row,) = [json.loads(line) for line in Path("runs/tiny/unreadable.jsonl").read_text().splitlines()]
    assert row["id"] == "cat/zzz.png"
    assert row["reason"]


def test_when_every_image_is_corrupt(command: Command) -> None:
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"")
    said = command(*TINY)
    assert said.code == 2
    assert "of the 22 images in" in said.err
    assert "cannot be read" in said.err
    assert not Path("runs").exists()


def test_an_empty_folder(command: Command) -> None:
    Path("none").mkdir()
    said = command("pretrain", "--recipe", "tiny.yaml", "--data", "none")
    assert said.code == 2
    assert "none" in said.err
    assert not Path("runs").exists()


# Judging and embedding


@pytest.fixture
def trained(command: Command) -> Command:
    tiny.write_folder(Path("labeled"), 60)
    tiny.write_folder(Path("unlabeled"), 30, classes=(".",))
    assert command("pretrain", "--recipe", "tiny.yaml", "--data", "labeled", "--steps", "2", "--out", "run").code == 0
    return command


def test_eval_of_a_run_on_its_own_labeled_data(trained: Command) -> None:
    said = trained("eval", "run")
    assert said.code == 0, said.err
    for word in ("trained", "raw pixels", "untrained", "kNN k=20", "linear probe", "saved: run/evaluation.json"):
        assert word in said.out
    assert json.loads(Path("run/evaluation.json").read_text())


def test_eval_options(trained: Command) -> None:
    tiny.write_folder(Path("test"), 20)
    given = ["--data", "labeled", "--test", "test", "--protocol", "knn", "--save", "mine.json", "--device", "cpu"]
    said = trained("eval", "run/backbone.safetensors", *given)
    assert said.code == 0, said.err
    assert "linear probe" not in said.out
    assert Path("mine.json").is_file()


def test_eval_without_labels_says_so(trained: Command) -> None:
    said = trained("eval", "run", "--data", "unlabeled")
    assert said.code == 0, said.err
    assert "no labels" in said.out
    for word in ("RankMe", "alignment", "uniformity"):
        assert word in said.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval"], "RUN"),
        (["eval", "nowhere"], "there is no nowhere"),
        (["eval", "photos"], "photos is not a run folder"),
        (["eval", "run/backbone.safetensors"], "does not say which images to use: pass --data"),
        (["eval", "run", "--data", "phots"], "'phots'"),
        (["eval", "run", "--protocol", "svm"], "svm"),
        (["eval", "run", "--device", "tpu"], "auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["embed", "run", "--device", "cuda:99"], "'cuda:99' was asked for"),
        (["embed", "run", "--out", "file.csv"], "file.csv"),
        (["embed", "nowhere"], "there is no nowhere"),
    ],
)
def test_wrong_input_to_eval_and_embed(trained: Command, arguments: list[str], words: str) -> None:
    said = trained(*arguments)
    assert said.code == 2
    assert words in said.err


def test_a_run_on_images_in_memory_needs_data_to_be_judged(trained: Command) -> None:
    tiny.start(Path("array"), steps=1)
    said = trained("eval", "array")
    assert said.code == 2
    assert "array was trained on images in memory: pass --data" in said.err


def test_an_interrupted_run_cannot_be_judged_yet(trained: Command) -> None:
    Path("run/backbone.safetensors").unlink()
    said = trained("eval", "run")
    assert said.code == 2
    assert "run is not finished, so it has no backbone yet: go on with ssole pretrain --resume run" in said.err


def test_embed(trained: Command) -> None:
    said = trained("embed", "run", "--out", "all.npz")
    assert said.code == 0, said.err
    assert "60 images, 16 features each: all.npz" in said.out
    with np.load("all.npz", allow_pickle=False) as saved:
        assert saved["array"].shape == (60, 16)
        assert list(saved["classes"]) == ["cat", "dog"]
        assert [name.split("/")[0] for name in saved["ids"]] == [saved["classes"][label] for label in saved["labels"]]
    assert trained("embed", "run", "--data", "unlabeled", "--out", "some.npz").code == 0
    with np.load("some.npz", allow_pickle=False) as saved:
        assert "labels" not in saved
        assert len(saved["ids"]) == 30


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(trained: Command) -> None:
    Path("labeled/cat/zzz.png").write_bytes(b"")
    said = trained("embed", "run")
    assert said.code == 0, said.err
    (line,) = [line for line in said.err.splitlines() if "warning" in line]
    assert line.startswith("warning: 1 of 61 images cannot be read")
    assert ".py" not in line


# Views


def test_views_draws_a_row_for_each_image(command: Command) -> None:
    from PIL import Image

    said = command("views", "photos", "--recipe", "tiny.yaml", "--images", "3", "--out", "some.png")
    assert said.code == 0
    assert said.out == "3 images and their views by tiny.yaml: some.png\n"
    with Image.open("some.png") as sheet:
        assert sheet.height == 18 + 3 * 100 - 4
    single = next(Path("photos").rglob("*.png"))
    assert command("views", str(single), "--recipe", "aerial", "--out", "one.jpg").code == 0
    with Image.open("one.jpg") as sheet:
        assert sheet.size == (3 * 228 - 4, 18 + 224)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["photos", "--out", "some.xyz"], "--out names the picture to write, such as views.png; got some.xyz"),
        (["photos", "--out", "none/some.png"], "there is no folder none"),
        (["photos", "--images", "0"], "--images must be at least 1, got 0"),
        (["photos", "--recipe", "aerail"], "no recipe 'aerail'"),
        (["phots"], "phots"),
        (["photos", "--channels", "2"], "has 3 channels, and 2 are asked for"),
    ],
)
def test_wrong_input_to_views(command: Command, options: list[str], words: str) -> None:
    said = command("views", *options)
    assert said.code == 2
    assert words in said.err
    assert not list(Path().glob("*views*"))


def test_a_preset_on_the_command_line(command: Command) -> None:
    options = ("--out", "run", "--preset", "aerial", "--augment.hue", "0.2", "--steps", "1")
    assert command(*TINY, *options).code == 0
    augment = Run(Path("run")).config.augment
    assert (augment.turn, augment.hue) == (0.75, 0.2)
    assert augment.crops == Run(Path("run")).config.augment.crops
    assert "no preset 'arial'. Did you mean 'aerial'?" in command(*TINY, "--preset", "arial").err
