"""What a run does, step by step, and what it leaves behind."""

from __future__ import annotations

import importlib.util
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import ssole
import tiny
from ssole import api
from ssole.config import ConfigError, from_dict
from ssole.data.arrays import ArraySource
from ssole.data.base import Source
from ssole.data.sources import open_source
from ssole.models.backbone import small_stem
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.feed import make_plan
from ssole.training.optim import learning_rate
from ssole.training.run import Run
from ssole.training.step import Learner
from ssole.training.watch import NonFiniteLossError
from ssole.views import make_views


def weights(run: Run) -> bytes:
    return run.backbone_path.read_bytes()


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics if "loss" in row]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run that nothing was done to."""
    return tiny.start(tmp_path_factory.mktemp("plain") / "run")


# What is left behind


def test_the_run_folder(plain: Run) -> None:
    names = {path.name for path in plain.path.iterdir()}
    board = {"tensorboard"} if importlib.util.find_spec("tensorboard") else set()
    files = {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "backbone.safetensors"}
    files |= {"images.json", ".lock"}
    assert names == files | board
    assert checkpoint_steps(plain) == [10, 12]
    assert not [path for path in plain.path.rglob("*") if path.suffix in {".pt", ".pth", ".pkl"}]


def test_settings_are_those_that_were_asked_for_and_all_of_them(plain: Run) -> None:
    expected = tiny.config(data="in memory: ndarray (22, 12, 12, 3)")
    assert plain.config == expected
    assert from_dict(yaml.safe_load((plain.path / "config.yaml").read_text())) == expected


def test_environment(plain: Run) -> None:
    told = plain.environment
    assert (told["torch"], told["timm"], told["ssole"]) == (torch.__version__, timm.__version__, ssole.__version__)
    assert told["threads"] == 1
    assert {"python", "platform", "processor", "cuda", "command"} <= told.keys()


def test_metrics(plain: Run) -> None:
    rows, weight = plain.metrics, plain.config.loss.high_rank_weight
    assert [row["step"] for row in rows] == list(range(1, tiny.STEPS + 1))
    assert [row["epoch"] for row in rows] == [step // tiny.STEPS_PER_EPOCH for step in range(tiny.STEPS)]
    for row in rows:
        assert row["loss"] == pytest.approx(row["low_rank"] + weight * row["high_rank"], rel=1e-5)
        assert 1 <= row["effective_rank"] <= 4
        assert row["images_per_second"] > 0
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_every_so_many_steps_and_the_last_are_logged(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", log_every=5)
    assert [row["step"] for row in run.metrics] == [5, 10, 12]


def test_tensorboard_shows_the_metrics(plain: Run) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = events.EventAccumulator(str(plain.path / "tensorboard"))
    board.Reload()
    shown = board.Scalars("loss")
    assert [event.step for event in shown] == list(range(1, tiny.STEPS + 1))
    assert [event.value for event in shown] == pytest.approx(losses(plain))


def test_the_final_weights_are_the_encoders_backbone_and_not_its_initial_ones(plain: Run) -> None:
    encoder = load_file(plain.checkpoints / "step-00000012.safetensors")
    backbone = {name.removeprefix("encoder.backbone."): t for name, t in encoder.items() if ".backbone." in name}
    final = load_file(plain.backbone_path)
    assert final.keys() == backbone.keys()
    assert all(torch.equal(final[name], backbone[name]) for name in final)
    initial = ssole.untrained(plain).backbone.state_dict()
    assert not torch.equal(final["conv1.weight"], initial["conv1.weight"])


def test_load_gives_what_a_plain_timm_model_with_these_weights_gives(plain: Run) -> None:
    model = small_stem(timm.create_model("resnet18", num_classes=0, **plain.config.model.backbone_args)).eval()
    model.load_state_dict(load_file(plain.backbone_path), strict=True)
    images = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(ssole.load(plain)(images), model(images))


# What training sees and does


def test_equal_runs_give_equal_bytes_and_other_seeds_others(plain: Run, tmp_path: Path) -> None:
    assert weights(tiny.start(tmp_path / "again")) == weights(plain)
    assert weights(tiny.start(tmp_path / "other", seed=1)) != weights(plain)


def test_training_starts_from_a_whitened_stem_when_asked(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", model__stem_init="whitening", steps=1, optim__lr=1e-9)
    stem = load_file(run.backbone_path)["conv1.weight"]
    assert torch.allclose(stem[27:54], -stem[:27], atol=1e-6)  # 3x3x3 directions, each with its negative
    lengths = stem[:27].flatten(1).norm(dim=1)
    assert (lengths.diff() > -1e-6).all()  # the less a direction varies, the more it is amplified
    assert not torch.allclose(stem, ssole.untrained(run).backbone.conv1.weight, atol=1e-3)


class Unlabeled(Source):
    """The tiny images, from a source that does not say a word about labels but what the protocol asks for."""

    name, labels, classes = "unlabeled", None, None

    def __len__(self) -> int:
        return tiny.IMAGES

    def id(self, i: int) -> str:
        return str(i)

    def read(self, i: int) -> np.ndarray[Any, Any]:
        return tiny.images()[i]


@pytest.mark.parametrize("labels", [np.arange(22) % 3, np.zeros(22, np.int64)])
def test_labels_make_no_difference(plain: Run, tmp_path: Path, labels: np.ndarray[Any, Any]) -> None:
    assert weights(tiny.start(tmp_path / "labels", data=ArraySource(tiny.images(), labels))) == weights(plain)


@pytest.mark.parametrize("one_size", [True, False])
def test_unreadable_images_have_no_label_in_supervised_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_size: bool
) -> None:
    """The pixels in such a place are those of the next image, which may be of another class.

    Whether all images are in memory, as they may be if they have one size, makes no difference: many processes, which
    share a cache, have none there.
    """
    photos = tiny.write_folder(tmp_path / "photos", 22)
    sizes = iter(range(12, 100))
    for path in photos.rglob("*.png"):
        Image.new("RGB", (12 if one_size else next(sizes), 12)).save(path)
    source = open_source(photos)
    labels = source.labels.copy()
    bad = 7
    (photos / source.id(bad)).write_bytes(b"no image")
    seen: dict[int, int] = {}
    step = Learner._take

    def take(self: Learner, images: Any, ids: torch.Tensor, epoch: int) -> Any:
        assert self.labels is not None
        seen.update(zip(ids.tolist(), self.labels[ids].tolist(), strict=True))
        return step(self, images, ids, epoch)

    monkeypatch.setattr(Learner, "_take", take)
    tiny.start(tmp_path / "run", data=source, loss__name="supervised", max_unreadable=0.1)
    assert seen == {i: -1 if i == bad else label for i, label in enumerate(labels.tolist())}
    assert source.labels.tolist() == labels.tolist()  # which are the caller's


def test_without_labels_training_is_the_same(plain: Run, tmp_path: Path) -> None:
    assert weights(tiny.start(tmp_path / "none", data=Unlabeled())) == weights(plain)


def test_every_step_sees_its_images_in_the_views_of_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(images: torch.Tensor, ids: torch.Tensor, *, seed: int, epoch: int, **others: Any) -> list[torch.Tensor]:
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), tiny.images()[ids])
        seen.append((seed, epoch, ids.tolist()))
        return make_views(images, ids, seed=seed, epoch=epoch, **others)

    monkeypatch.setattr("ssole.training.step.make_views", spy)
    run = tiny.start(tmp_path / "run", seed=5)
    plan = make_plan(run.config, tiny.IMAGES)
    assert seen == [(5, epoch, ids.tolist()) for _, epoch, ids in plan.batches(0)]


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_the_schedule_is_what_the_optimizer_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    used: list[set[float]] = []
    kind = getattr(torch.optim, optimizer)
    step = kind.step

    def spy(self: torch.optim.Optimizer, *arguments: Any) -> Any:
        used.append({group["lr"] for group in self.param_groups})
        return step(self, *arguments)

    monkeypatch.setattr(kind, "step", spy)
    schedule = {"lr": 0.05, "final_lr": 0.01, "warmup_steps": 4}
    run = tiny.start(tmp_path / "run", optim={"name": optimizer.lower(), **schedule})
    expected = [learning_rate(k, tiny.STEPS, run.config.optim) for k in range(tiny.STEPS)]
    assert used == [{rate} for rate in expected]
    assert [row["lr"] for row in run.metrics] == expected
    assert expected[0] == pytest.approx(0.05 / 4)
    assert expected[-1] == pytest.approx(0.01)


def gradient_norms(monkeypatch: pytest.MonkeyPatch, out: Path, clip: float | None) -> list[float]:
    norms: list[float] = []
    step = torch.optim.SGD.step

    def spy(self: torch.optim.SGD, *arguments: Any) -> Any:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", spy)
        tiny.start(out, optim__clip_grad_norm=clip)
    return norms


def test_gradients_are_clipped_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = gradient_norms(monkeypatch, tmp_path / "free", None)
    clipped = gradient_norms(monkeypatch, tmp_path / "clipped", 0.01)
    assert min(free) > 0.02  # so that clipping has something to do at every step
    assert clipped == pytest.approx([0.01] * tiny.STEPS, rel=1e-3)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_the_layers_and_not_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    seen = set()
    forward = nn.Conv2d.forward

    def spy(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        out = forward(self, x)
        if self.training and not out.is_meta:  # the estimate of memory has a network without values
            seen.add((out.dtype, self.weight.dtype))
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", spy)
    run = tiny.start(tmp_path / "run", precision=precision, steps=2)
    assert seen == {(dtype, torch.float32)}
    assert all(math.isfinite(loss) for loss in losses(run))
    assert {tensor.dtype for tensor in load_file(run.backbone_path).values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_other_backbones(tmp_path: Path, name: str) -> None:
    """MobileNets give more features than `num_features` says; vision transformers need to be told the image size."""
    arguments = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}
    model = {"backbone": name, "backbone_args": arguments if name.startswith("vit") else {}}
    run = tiny.start(tmp_path / "run", model=model, steps=2)
    backbone = ssole.load(run)
    assert backbone(torch.zeros(2, 3, 8, 8)).shape == (2, backbone.num_features)


# Torch is left as it was


def test_deterministic_holds_for_the_run_alone(tmp_path: Path) -> None:
    during = []
    state, switches = torch.get_rng_state(), dict(os.environ)
    tiny.start(
        tmp_path / "run",
        evaluators={12: lambda _: during.append(torch.are_deterministic_algorithms_enabled()) or {}},
    )
    assert during == [True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(os.environ) == switches


def test_without_it_nothing_is_switched(tmp_path: Path) -> None:
    during = []
    tiny.start(
        tmp_path / "run",
        deterministic=False,
        steps=1,
        evaluators={1: lambda _: during.append(torch.are_deterministic_algorithms_enabled()) or {}},
    )
    assert during == [False]


def test_resuming_with_another_number_of_threads_is_told(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run")
    run.backbone_path.unlink()
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="began with 1 threads and goes on with 2"):
        api.resume(run, data=tiny.images(), progress=False)


# Evaluators


def test_evaluators_are_called_on_time_and_change_nothing(plain: Run, tmp_path: Path) -> None:
    called: list[tuple[str, int]] = []

    def reckless(name: str) -> Callable[[nn.Module], dict[str, float]]:
        def evaluate(backbone: nn.Module) -> dict[str, float]:
            backbone.eval()  # and not back, which the loop must do
            torch.manual_seed(random.randrange(1000))
            with torch.no_grad():
                backbone(torch.rand(2, 3, 8, 8))
            called.append((name, len(called)))
            return {name: 0.5}

        return evaluate

    run = tiny.start(tmp_path / "run", evaluators={4: reckless("often"), 6: reckless("seldom")})
    assert [name for name, _ in called] == ["often", "seldom", "often", "often", "seldom"]
    assert [row["step"] for row in run.metrics if "often" in row] == [4, 8, 12]
    assert [row["step"] for row in run.metrics if "seldom" in row] == [6, 12]
    assert weights(run) == weights(plain)
    assert losses(run) == losses(plain)


def test_the_last_step_is_evaluated_in_any_case(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", evaluators={5: lambda _: {"x": 1.0}})
    assert [row["step"] for row in run.metrics if "x" in row] == [5, 10, 12]


def test_evaluation_does_not_count_as_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    ahead, clock = [0.0], time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + ahead[0])

    def hour(_: nn.Module) -> dict[str, float]:
        ahead[0] += 3600
        return {"x": 1.0}

    run = tiny.start(tmp_path / "run", evaluators={4: hour})
    assert all(row["seconds"] < 1000 for row in run.metrics)
    assert all(row["images_per_second"] > 48 / 1000 for row in run.metrics if "loss" in row)


def test_an_evaluator_needs_a_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"at least 1; got 0"):
        tiny.start(tmp_path / "run", evaluators={4: lambda _: {}, 0: lambda _: {}})


# Divergence


def poison(backbone: nn.Module) -> dict[str, float]:
    """A weight that is not finite, from outside, as an overflowing gradient would leave it."""
    with torch.no_grad():
        next(backbone.parameters())[0, 0, 0, 0] = math.nan
    return {}


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"^step 8: .*NaN.*lower optim\.lr") as error:
        tiny.start(tmp_path / "run", evaluators={7: poison}, checkpoint_every=3)
    run = Run(tmp_path / "run")
    assert error.value.step == 8
    assert checkpoint_steps(run) == [5, 6]
    assert [row["step"] for row in run.metrics if "loss" in row] == list(range(1, 8))
    assert not run.finished


def test_a_learning_rate_that_explodes(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"^step [234]: "):
        tiny.start(tmp_path / "run", optim__lr=1e30, checkpoint_every=1)
    run = Run(tmp_path / "run")
    assert not run.finished
    for step in checkpoint_steps(run):
        tensors = load_file(run.checkpoints / f"step-{step:08d}.safetensors")
        assert all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point())


@pytest.mark.parametrize("step", [3, 12])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, step: int) -> None:
    """The loss of the step was finite; what it left is not."""
    with pytest.raises(NonFiniteLossError, match=f"^step {step}: it left weights that are not finite"):
        tiny.start(tmp_path / "run", evaluators={step: poison}, checkpoint_every=3)
    run = Run(tmp_path / "run")
    assert step not in checkpoint_steps(run)
    assert not run.finished


def test_an_evaluator_that_leaves_the_backbone_elsewhere_is_an_error(tmp_path: Path) -> None:
    def moving(backbone: nn.Module) -> dict[str, float]:
        backbone.to("meta")
        return {"x": 1.0}

    with pytest.raises(RuntimeError, match=r"^an evaluator left .*weight on meta: bring the backbone back to cpu$"):
        tiny.start(tmp_path / "run", evaluators={2: moving})


def test_an_evaluator_that_looks_at_the_backbone_changes_nothing(tmp_path: Path) -> None:
    def looking(backbone: nn.Module) -> dict[str, float]:
        backbone.requires_grad_(False)
        return {"mean": float(backbone(torch.rand(4, 3, 8, 8)).mean())}

    plain, looked_at = tiny.start(tmp_path / "plain"), tiny.start(tmp_path / "looked at", evaluators={2: looking})
    assert looked_at.backbone_path.read_bytes() == plain.backbone_path.read_bytes()
    assert sum("mean" in row for row in looked_at.metrics) == tiny.STEPS // 2


def test_files_that_look_like_images_and_are_not_read_are_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny.write_folder(tmp_path / "images", 20)
    for number in range(3):
        (data / "cat" / f"{number}.HEIC").write_bytes(b"no image")
    api.start(tiny.config(data=str(data), steps=1), tmp_path / "run", api.Given(progress=True))
    assert "not read, though they look like images: 3 .heic (" in capsys.readouterr().err
