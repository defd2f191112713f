"""`ssole.pretrain` and `ssole.resume`: what comes in, what is refused before anything is made, what comes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ssole
import tiny
from ssole import api, distributed
from ssole.config import ConfigError
from ssole.data.arrays import ArraySource
from ssole.errors import DataError
from ssole.training.run import Run


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs go to runs/ of the current folder unless told otherwise."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    torch.set_num_threads(1)


def pretrain(data: Any = None, **given: Any) -> Run:
    images = tiny.images() if data is None else data
    return ssole.pretrain(images, recipe=tiny.recipe(Path()), progress=False, **given)


def test_pretrain_load_embed_evaluate() -> None:
    """The tour of the README, on images of two colours."""
    photos = np.concatenate([tiny.images(40) // 4, tiny.images(40) // 4 + 128])
    run = pretrain(photos, out="runs/mine", steps=2)
    assert isinstance(run, Run)
    assert run.path == Path("runs/mine")
    assert run.finished
    assert ssole.load(run)(torch.zeros(3, 3, 8, 8)).shape == (3, 16)
    embeddings = ssole.embed(run, photos, progress=False)
    assert embeddings.array.shape == (80, 16)
    train, test = (ArraySource(photos[part::2], np.repeat([0, 1], 20)) for part in (0, 1))
    result = ssole.evaluate(run, train, test=test, protocol=["knn"], progress=False)
    assert set(result.rows) == {"trained", "raw pixels (8x8)", "untrained"}


def test_two_threads_train_one_after_the_other() -> None:
    """torch's generators and its choice of algorithms are those of the whole process."""
    alone, others = pretrain(out="alone", steps=2), []

    def meanwhile(backbone: nn.Module) -> dict[str, float]:
        others.append(pool.submit(pretrain, out="other", steps=2))
        assert not wait(others, timeout=1).done
        assert not Path("other").exists()
        return {}

    with ThreadPoolExecutor(1) as pool:
        runs = [pretrain(out="one", steps=2, evaluators={9: meanwhile}), others[0].result()]
    assert [run.backbone_path.read_bytes() for run in runs] == 2 * [alone.backbone_path.read_bytes()]


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)], ids=range(3)
)
def test_the_callers_modes_change_nothing(mode: Callable[[], AbstractContextManager[None]]) -> None:
    def train(out: str) -> bytes:
        with pytest.raises(RuntimeError):
            pretrain(out=out, evaluators={2: crash_in_python}, steps=4, checkpoint_every=1)
        return ssole.resume(out, data=tiny.images(), progress=False).backbone_path.read_bytes()

    with mode():
        within = train("within")
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled()
    assert within == train("without")


def test_runs_are_named_after_their_recipe_and_numbered() -> None:
    runs = [pretrain(steps=1) for _ in range(3)]
    assert [run.path for run in runs] == [Path("runs/tiny"), Path("runs/tiny-2"), Path("runs/tiny-3")]


def test_overrides_by_name_dotted_name_and_group() -> None:
    dotted: dict[str, Any] = {"optim.lr": 0.5, "augment.crops.0.size": 6}
    run = pretrain(views=3, steps=2, loss={"gamma": 0.25}, **dotted)
    config = run.config
    assert (config.steps, config.optim.lr, config.loss.gamma) == (2, 0.5, 0.25)
    assert (config.augment.crops[0].count, config.augment.crops[0].size) == (3, 6)


class Spread(nn.Module):
    """A loss of one's own, with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        z = nn.functional.normalize(z.float(), dim=-1)
        align = (z[:, 0] - z[:, 1]).square().sum(-1).mean()
        return {"loss": align + self.scale * (z[:, 0] @ z[:, 0].T).square().mean(), "align": align}


def test_a_loss_of_ones_own_trains_and_resumes_exactly() -> None:
    settings: dict[str, Any] = {"steps": 8, "checkpoint_every": 2, "deterministic": True}
    whole = pretrain(out="whole", loss=Spread(), **settings)
    assert (whole.config.loss.name, whole.config.loss.module) == ("custom", "Spread")
    assert whole.config.model.projector_dim == 8  # the recipe's projector stays
    assert all({"loss", "align"} <= row.keys() for row in whole.metrics)

    with pytest.raises(RuntimeError):
        pretrain(out="half", loss=Spread(), evaluators={5: crash_in_python}, **settings)
    with pytest.raises(ConfigError, match=r"code from Python \(Spread\).* pass loss=module to ssole.pretrain or ssole"):
        ssole.resume("half", data=tiny.images(), progress=False)
    with pytest.raises(ConfigError, match="half began with the loss 'Spread', and the one given is 'SSOLELoss'"):
        ssole.resume("half", data=tiny.images(), loss=ssole.SSOLELoss(), progress=False)
    half = ssole.resume("half", data=tiny.images(), loss=Spread(), progress=False)
    assert half.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    last = "checkpoints/step-00000008.safetensors"
    assert (half.path / last).read_bytes() == (whole.path / last).read_bytes()


class Noise(nn.Module):
    """A loss of one's own with a setting, and a buffer that is drawn anew for each of them."""

    queue: torch.Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.form = weight, lambda x: x
        self.register_buffer("queue", torch.randn(4))

    def extra_repr(self) -> str:
        return f"{self.form}"

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.weight * (z[:, 0] - z[:, 1]).square().mean()


def test_a_loss_with_other_settings_does_not_go_on() -> None:
    def resume(folder: str, weight: float, **options: Any) -> Run:
        return ssole.resume(folder, data=tiny.images(), loss=Noise(weight), progress=False, **options)

    for folder in ("refused", "allowed", "old"):
        with pytest.raises(RuntimeError):
            pretrain(out=folder, loss=Noise(1.0), evaluators={5: crash_in_python}, steps=8)
    words = r"refused was started with the loss Noise\(.*, and this is Noise\(.*; they differ in weight\. Undo"
    with pytest.raises(ConfigError, match=words):
        resume("refused", 500.0)
    assert resume("refused", 1.0).finished  # another queue is none: that of the checkpoint takes its place
    with pytest.warns(UserWarning, match=r"allowed was started with the loss Noise\("):
        assert resume("allowed", 500.0, allow_changes=["settings"]).finished
    record = Path("old/environment.json")
    facts = json.loads(record.read_text())
    assert facts.pop("loss").startswith("Noise(")
    assert list(facts.pop("loss_attributes")) == ["weight"]
    record.write_text(json.dumps(facts))  # as of a version that kept no such record
    assert resume("old", 500.0).finished


def crash_in_python(backbone: nn.Module) -> dict[str, float]:
    raise RuntimeError


def test_a_recipe_cannot_name_code() -> None:
    with pytest.raises(ConfigError, match="which no recipe or run folder holds"):
        pretrain(out="run", **{"loss.name": "custom"})


def test_epochs_replace_the_steps_of_the_recipe() -> None:
    assert len(pretrain(epochs=1).metrics) == tiny.STEPS_PER_EPOCH


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"batchsize": 8}, ConfigError, "Did you mean 'batch_size'?"),
        ({"optim.learning": 1.0}, ConfigError, "optim.learning"),
        ({"views": 1}, ConfigError, "at least 2 views"),
        ({"epochs": "many"}, ConfigError, "epochs: .*'many'"),
        ({"batch_size": 23}, DataError, "batch of 23 .* hold 22: pass --batch-size 22 or less"),
        ({"device": "tpu"}, ConfigError, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"device": "mps"}, ConfigError, "device must be auto, cpu, cuda or cuda:N, got 'mps': .* use cpu"),
        ({"device": "cuda:99"}, ConfigError, r"'cuda:99' was asked for and torch sees \d+ CUDA devices"),
        ({"model.backbone": "resnet_18"}, ConfigError, "no model 'resnet_18'. Did you mean 'resnet18"),
        ({"model.backbone_args": {"layer": [1]}}, ConfigError, "backbone_args do not fit resnet18: .*'layer'"),
        (
            {"model": {"backbone": "vit_tiny_patch16_224", "backbone_args": {}}},
            ConfigError,
            "does not take images of 8 x 8 pixels: .*img_size",
        ),
        ({"loss": "simclr"}, ConfigError, 'a module, or settings such as loss={"name": "simclr"}, got \'simclr\''),
        ({"loss": ssole.SSOLELoss}, ConfigError, "a module, or settings such as .*, got <class"),
        ({"loss": ssole.SSOLELoss(), "loss.name": "simclr"}, ConfigError, "loss.name has no effect on SSOLELoss"),
        ({"backbone": "resnet18"}, ConfigError, "a module of your own, got 'resnet18'; a network of timm is a setting"),
        ({"model": {"backbone": "convnext_atto", "stem": "3x3", "backbone_args": {}}}, ConfigError, "use stem 'timm'"),
    ],
)
def test_what_is_refused_leaves_no_folder(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pretrain(out="run", **given)
    assert not Path("run").exists()


def test_unknown_recipe_and_data() -> None:
    with pytest.raises(ConfigError, match=r"there is no recipe file 'nope\.yaml'"):
        ssole.pretrain(tiny.images(), recipe="nope.yaml")
    with pytest.raises(ConfigError, match=r"no recipe 'cifar-10'\. Did you mean 'cifar10'"):
        ssole.pretrain(tiny.images(), recipe="cifar-10")
    with pytest.raises(DataError, match="no dataset, folder or file named 'photo'"):
        pretrain("photo")
    Path("empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        pretrain("empty")
    assert not Path("runs").exists()


def test_nothing_is_overwritten() -> None:
    Path("mine").mkdir()
    pretrain(out="mine", steps=1)  # an empty folder will do
    before = sorted(Path("mine").rglob("*"))
    with pytest.raises(ConfigError, match="mine already holds a run: go on with it"):
        pretrain(out="mine", steps=1)
    assert sorted(Path("mine").rglob("*")) == before
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("x")
    with pytest.raises(ConfigError, match="thesis is not empty, and nothing is overwritten"):
        pretrain(out="thesis")
    with pytest.raises(ConfigError, match=r"cannot make the run folder thesis/chapter\.tex: .*\.tex is a file"):
        pretrain(out="thesis/chapter.tex")


def test_what_can_be_refused_at_once_is_refused_before_images_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    run = pretrain(out="mine", steps=1)
    monkeypatch.setattr(api, "ImageStore", lambda *given, **options: pytest.fail("images are decoded"))
    with pytest.raises(ConfigError, match="mine already holds a run"):
        pretrain(out=str(run.path))
    with pytest.raises(DataError, match="a batch of 99 images was asked for"):
        pretrain(out="new", batch_size=99)


def test_images_that_moved_can_be_named_again() -> None:
    data = tiny.write_folder(Path("photos"))
    run = pretrain(data, steps=2)
    run.backbone_path.unlink()
    data.rename("moved")
    with pytest.raises(
        DataError, match=r"images of .*tiny are no longer there \(.*photos\): pass --data, or ssole\.resume"
    ):
        ssole.resume(run)
    assert ssole.resume(run, data="moved", progress=False).finished


def test_torchrun_goes_on_with_the_run_of_the_same_command_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = pretrain(out="mine", steps=2)
    run.backbone_path.unlink()
    monkeypatch.setattr(distributed, "launch", lambda: distributed.group.Launch(restarts=1, may_restart=True))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["ssole", "pretrain", "--out", "mine"])
        with pytest.raises(ConfigError, match="mine already holds a run"):
            pretrain(out="mine", steps=1)
    assert pretrain(out="mine", steps=2) == run
    assert run.finished


def test_resuming_images_in_memory_asks_for_them() -> None:
    run = pretrain()
    assert run.config.data == "in memory: ndarray (22, 12, 12, 3)"
    run.backbone_path.unlink()
    with pytest.raises(DataError, match=r"trained on images in memory: pass them, ssole\.resume\(run, data=images\)"):
        ssole.resume(run)
    assert ssole.resume(run, data=tiny.images(), progress=False).finished


def test_resuming_what_is_no_run() -> None:
    with pytest.raises(ConfigError, match="there is no nowhere: give a run folder"):
        ssole.resume("nowhere")
    Path("config.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        ssole.resume(".")
    Path("config.yaml").write_text("[\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        ssole.resume(".")


def test_paths_become_absolute() -> None:
    tiny.write_folder(Path("photos"))
    assert pretrain("photos", steps=1).config.data == str(Path("photos").absolute())


def test_files_named_from_the_working_directory_are_the_same_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_folder(Path("photos"))
    run = Run(pretrain(sorted(map(str, Path("photos").rglob("*.png"))), steps=1).path.absolute())
    run.backbone_path.unlink()
    monkeypatch.chdir(tmp_path)
    assert ssole.resume(run, progress=False).finished


# Large photographs


def test_photographs_are_kept_no_larger_than_crops_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    store = api.ImageStore

    def spy(*arguments: Any, **options: Any) -> Any:
        kept.append(store(*arguments, **options))
        return kept[-1]

    monkeypatch.setattr(api, "ImageStore", spy)
    crops = [{"count": 2, "size": 8, "scale": [0.25, 1.0], "ratio": [1.0, 1.0]}, {"count": 1, "size": 6}]
    pretrain(tiny.write_folder(Path("photos"), size=60), steps=1, augment={"crops": crops})
    # a quarter of the area at 8 pixels needs 16; a fifth at 6, and 3:4, needs 15.5
    assert kept[0].images.shape == (22, 3, 16, 16)
    pretrain(tiny.write_folder(Path("small"), size=12), steps=1, augment={"crops": crops})
    assert kept[1].images.shape == (22, 3, 12, 12)  # smaller ones are never enlarged


# kNN while training


def folder_with_splits() -> str:
    for split in ("train", "test"):
        tiny.write_folder(Path("data") / split, 30)
    return "data"


def test_knn_is_measured_on_the_test_split_and_changes_nothing() -> None:
    data = folder_with_splits()
    run = pretrain(data, knn_every=5, steps=7)
    rows = [row for row in run.metrics if "knn20" in row]
    assert [row["step"] for row in rows] == [5, 7]
    assert all(0 <= row["knn20"] <= 1 for row in rows)
    assert run.backbone_path.read_bytes() == pretrain(data, steps=7).backbone_path.read_bytes()


def test_own_evaluators_take_the_place_of_knn() -> None:
    def answer(backbone: nn.Module) -> dict[str, float]:
        return {"answer": 42.0}

    run = pretrain(folder_with_splits(), knn_every=5, steps=7, evaluators={3: answer})
    assert [row["step"] for row in run.metrics if "answer" in row] == [3, 6, 7]
    assert not [row for row in run.metrics if "knn20" in row]


def test_resuming_without_the_evaluators_of_the_start_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrain(steps=2, evaluators={2: lambda backbone: {"answer": 42.0}})
    run.backbone_path.unlink()
    ssole.resume(run, data=tiny.images())
    assert "was measured every 2 steps by functions that are not given now: pass evaluators" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluators", "words"),
    [
        ([5], r"evaluators are \{steps: function\}, got \[5\]"),
        ({"5": tiny.crash}, r"a whole number of at least 1; got '5'"),
        ({0: tiny.crash}, r"a whole number of at least 1; got 0"),
        ({2: "knn"}, r"the evaluator of every 2 steps is a function of the backbone; got 'knn'"),
    ],
)
def test_evaluators_that_cannot_be_called_are_refused_at_once(evaluators: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ssole.pretrain("nowhere", evaluators=evaluators)  # before any image is looked for


def test_figures_of_an_evaluator_may_be_numpys_or_tensors() -> None:
    def answer(backbone: nn.Module) -> dict[str, Any]:
        return {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": 3}

    run = pretrain(steps=2, evaluators={2: answer})
    assert {name: run.metrics[-1][name] for name in "abc"} == {"a": 0.5, "b": 2.0, "c": 3.0}


@pytest.mark.parametrize("wrong", [{"step": 3.0}, None])
def test_figures_that_would_spoil_the_metrics_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"an evaluator gives figures by name, and none as .*step; got"):
        pretrain(steps=2, evaluators={1: lambda _: wrong})


def without_splits() -> str:
    return str(tiny.write_folder(Path("flat"), 30))


def without_labels() -> str:
    for split in ("train", "test"):
        tiny.write_folder(Path("plain") / split, 30, classes=(".",))
    return "plain"


def called_test() -> str:
    return str(tiny.write_folder(Path("test"), 30))


def too_few() -> str:
    for split in ("train", "test"):
        tiny.write_folder(Path("few") / split, 18)
    return "few"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (without_splits, "not divided into splits"),
        (without_labels, "no labels"),
        (called_test, "the test images are those of training"),
        (too_few, "18 training images"),
        (tiny.images, "images in memory have no test split"),
    ],
)
def test_when_knn_cannot_be_measured_it_is_said_and_training_goes_on(
    capsys: pytest.CaptureFixture[str], data: Any, reason: str
) -> None:
    run = ssole.pretrain(data(), recipe=tiny.recipe(Path()), knn_every=1, steps=2)
    assert run.finished
    told = capsys.readouterr().err
    assert "no kNN accuracy while training: " in told
    assert reason in told
    assert not [row for row in run.metrics if "knn20" in row]


def test_images_of_five_channels_and_sixteen_bits_from_files_to_features(tmp_path: Path) -> None:
    """Normalised by what was measured, trained on, evaluated and embedded at full depth."""
    import tifffile

    random = np.random.default_rng(0)
    for name, level in (("dark", 100), ("bright", 40_000)):
        (tmp_path / "stacks" / name).mkdir(parents=True)
        for number in range(12):
            stack = level + random.integers(0, 90, (5, 10, 12))
            file = tmp_path / "stacks" / name / f"{number}.tif"
            tifffile.imwrite(file, stack.astype(np.uint16), photometric="minisblack")
    config = {"preset": "channels", "channels": 5, "steps": 2}
    run = tiny.start(tmp_path / "run", data=str(tmp_path / "stacks"), **config)
    mean, std = run.config.augment.mean, run.config.augment.std
    assert mean == pytest.approx([(100 + 40_000 + 2 * 44.5) / 2 / 65535] * 5, rel=1e-3)
    assert std == pytest.approx([(40_000 - 100) / 2 / 65535] * 5, rel=1e-2)

    model = ssole.load(run)
    assert model.channels == 5
    assert model(torch.zeros(2, 5, 8, 8)).shape == (2, 16)
    embeddings = ssole.embed(run, tmp_path / "stacks", precision="float32")
    # differences of a few of 65,535 levels survive: in 8 bits all images of a class would be equal
    assert len(np.unique(embeddings.array, axis=0)) == 24
    result = ssole.evaluate(run, tmp_path / "stacks", protocol=["linear"], progress=False)
    assert result.rows["trained"]["linear"].value == 1
    again = tiny.resume(run, data=str(tmp_path / "stacks"))
    assert again.finished
    with pytest.raises(DataError, match="has 3 channels, and 5 are asked for"):
        tiny.start(tmp_path / "rgb", data=str(tiny.write_folder(tmp_path / "photos")), **config)


def test_a_channel_without_content_is_told(tmp_path: Path) -> None:
    images = np.zeros((12, 10, 10, 2), np.uint8)
    images[..., 0] = np.arange(12)[:, None, None]
    with pytest.raises(DataError, match="channel 1 of array has the same value everywhere"):
        tiny.start(tmp_path / "run", data=images, preset="channels", channels=2)


def test_images_of_one_grey_are_refused(tmp_path: Path) -> None:
    grey = np.full((16, 12, 12, 3), 77, np.uint8)
    with pytest.raises(DataError, match="channel 0 of array has the same value everywhere"):
        tiny.start(tmp_path / "run", data=ArraySource(grey), augment__mean=None, augment__std=None)
    assert not (tmp_path / "run").exists()


def test_a_budget_of_less_than_an_epoch_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "step_seconds", lambda *_, **__: 20.0)
    monkeypatch.setattr(api, "train", lambda run, *_, **__: run)  # which would go on for the five minutes
    with pytest.warns(UserWarning, match=r"a budget of 5m is 1\d steps of 20 s, .*only part of the 80 images"):
        run = tiny.start(tmp_path / "run", data=tiny.images(80), budget="5m")
    assert run.config.steps is not None
    assert 10 <= run.config.steps < 15
    with pytest.raises(ConfigError, match=r"a budget of 1m is \d steps of 20 s, .*: give more time"):
        tiny.start(tmp_path / "none", data=tiny.images(80), budget="1m")
    assert not (tmp_path / "none").exists()
