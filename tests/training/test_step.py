"""The training step with losses other than SSOLE's, and what is trained and refused."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ranks
import tiny
from ssole import distributed
from ssole.errors import ConfigError, DataError
from ssole.training import step as step_module
from ssole.training.step import Learner
from ssole.training.watch import NonFiniteLossError
from ssole.views import make_views

CPU = torch.device("cpu")
IMAGES = torch.from_numpy(tiny.images()).permute(0, 3, 1, 2).contiguous()
IDS = torch.arange(4)


class Contrast(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        z = nn.functional.normalize(z.float(), dim=-1)
        align = (z[:, 0] - z[:, 1]).square().sum(-1).mean()
        spread = (z[:, 0] @ z[:, 0].T).square().mean()
        return {"loss": align + self.scale * spread, "align": align, "spread": spread}


def test_a_step_is_gradient_descent_on_the_views_of_its_epoch() -> None:
    learner, by_hand = (Learner(tiny.config(), CPU) for _ in range(2))
    learner.step(IMAGES[:4], IDS, epoch=3, lr=0.1)
    settings = by_hand.config
    (views,) = make_views(IMAGES[:4], IDS, recipe=settings.augment, seed=settings.seed, epoch=3)
    z = by_hand.encoder(views.flatten(0, 1).contiguous(memory_format=torch.channels_last)).unflatten(0, (4, 2))
    by_hand.loss(z).backward()
    torch.optim.SGD(
        [
            {"params": [p for p in by_hand.encoder.parameters() if p.ndim >= 2], "weight_decay": 1e-5},
            {"params": [p for p in by_hand.encoder.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.1,
        momentum=0.9,
    ).step()
    for a, b in zip(learner.encoder.parameters(), by_hand.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert learner.steps_done == 1


def test_weights_of_a_loss_are_trained_clipped_and_checked() -> None:
    given = Contrast()
    learner = Learner(tiny.config(), CPU, loss=given)
    loss = learner.loss
    assert isinstance(loss, Contrast)
    terms, z_BVD = learner.step(IMAGES[:4], IDS, epoch=0, lr=0.1)
    assert list(terms) == ["loss", "align", "spread"]
    assert z_BVD.shape == (4, 2, 8)
    assert float(loss.scale.detach()) == pytest.approx(1 - 0.1 * float(terms["spread"].detach()), rel=1e-4)
    assert float(given.scale.detach()) == 1  # of which a copy is trained
    with torch.no_grad():
        loss.scale.fill_(math.inf)
    with pytest.raises(NonFiniteLossError, match=r"step 1: it left weights that are not finite \(loss\.scale\)"):
        learner.check_weights()


def test_embeddings_that_are_not_finite_name_the_step_and_other_errors_stay_themselves() -> None:
    learner = Learner(tiny.config(), CPU)
    with pytest.raises(NonFiniteLossError, match=r"^step 1: embeddings of shape .* hold 1 NaN"):
        learner.loss_terms(torch.randn(4, 2, 8).index_put_((torch.tensor(0),) * 3, torch.tensor(math.nan)))

    class Wrong(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return z.mean(0)

    with pytest.raises(ValueError, match="Wrong must return a scalar tensor"):
        Learner(tiny.config(), CPU, loss=Wrong()).step(IMAGES[:4], IDS, epoch=0, lr=0.1)


# Smaller crops in the first part of a run


def test_an_early_step_is_one_on_smaller_crops() -> None:
    early, small, plain = (
        Learner(tiny.config(**changes), CPU)
        for changes in ({"augment__early_size": 6}, {"augment__crops": [{"size": 6}]}, {})
    )
    early.step(IMAGES[:4], IDS, epoch=0, lr=0.1, early=True)
    small.step(IMAGES[:4], IDS, epoch=0, lr=0.1)
    require_equal(early, small)
    state = small.modules.state_dict(), small.optimizer.state_dict()
    plain.modules.load_state_dict(state[0])
    plain.optimizer.load_state_dict(state[1])
    early.step(IMAGES[4:8], IDS, epoch=0, lr=0.1)
    plain.step(IMAGES[4:8], IDS, epoch=0, lr=0.1, early=True)  # of a recipe that has no first part
    require_equal(early, plain)


def require_equal(one: Learner, other: Learner) -> None:
    for a, b in zip(one.modules.state_dict().values(), other.modules.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_all_sizes_are_compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(step_module, "compile_encoder", lambda encoder, embeds, **_: [embed() for embed in embeds])
    learner = Learner(tiny.config(augment__early_size=6, precision="float32"), CPU)
    learner.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    learner.compile()
    assert seen == [(8, 3, 6, 6), (8, 3, 8, 8)]


# Losses by name


@pytest.mark.parametrize("name", ["ole", "simclr", "barlow-twins", "vicreg", "frossl", "mmcr", "lejepa"])
def test_every_loss_of_a_recipe_trains(name: str) -> None:
    settings = tiny.config(loss__name=name, model__projector_hidden=8, model__projector_dim=4)
    learner = Learner(settings, CPU)
    before = [p.detach().clone() for p in learner.encoder.parameters()]
    terms, _ = learner.step(IMAGES[:8], torch.arange(8), epoch=0, lr=0.1)
    assert math.isfinite(float(terms["loss"].detach()))
    assert len(terms) >= 2
    assert not all(torch.equal(a, b) for a, b in zip(before, learner.encoder.parameters(), strict=True))


def test_the_supervised_loss_sees_the_labels_of_its_images() -> None:
    labels = np.arange(22) % 3
    learner = Learner(tiny.config(loss__name="supervised"), CPU, labels=labels)
    seen = []
    original = learner.loss.terms
    learner.loss.terms = lambda z, y: seen.append(y.tolist()) or original(z, y)
    ids = torch.tensor([5, 0, 7, 1])
    terms, z_BVD = learner.step(IMAGES[ids], ids, epoch=0, lr=0.1)
    assert seen == [[2, 0, 1, 1]]
    assert z_BVD.shape == (4, 2, 16)  # features: there is no projector
    assert float(terms["loss"].detach()) > 0


@pytest.mark.parametrize("labels", [None, np.full(22, -1), np.zeros(22, np.int64)])
def test_the_supervised_loss_needs_labels(labels: np.ndarray[Any, Any] | None) -> None:
    with pytest.raises(DataError, match="'supervised' needs labels of at least two classes"):
        Learner(tiny.config(loss__name="supervised"), CPU, labels=labels)


def test_labels_that_are_ids_are_numbered_in_their_order() -> None:
    """Their largest plus one would be the size of the classifier."""
    labels = np.where(np.arange(tiny.IMAGES) % 3 == 0, 2_000_000_000, 5)
    labels[1] = -1
    learner = Learner(tiny.config(loss__name="supervised"), CPU, labels=labels)
    assert learner.labels is not None
    assert learner.labels.tolist() == [-1 if label < 0 else int(label > 5) for label in labels]
    assert max(parameter.shape[0] for parameter in learner.loss.parameters()) == 2


def test_any_loss_has_embeddings_in_float32() -> None:
    class Linear(nn.Module):
        """A loss that multiplies embeddings by weights of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, z: Tensor) -> Tensor:
            assert z.dtype == torch.float32
            return self.layer(z).square().mean()

    Learner(tiny.config(precision="bfloat16"), CPU, loss=Linear()).step(IMAGES[:4], IDS, epoch=0, lr=0.1)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_learns_alone_is_refused(parts: int) -> None:
    class Detached(Contrast):
        def forward(self, z: Tensor) -> dict[str, Tensor]:
            return super().forward(z.detach())

    learner = Learner(tiny.config(accumulate=parts), CPU, loss=Detached())
    with pytest.raises(ValueError, match=r"^the loss gives the encoder no gradient, .*do not detach the embeddings"):
        learner.step(IMAGES[:4], IDS, epoch=0, lr=0.1)


def test_a_mask_of_infinities_is_no_failure() -> None:
    loss = Contrast()
    loss.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    loss.register_module("part", nn.Module())
    loss.part.register_buffer("mask", loss.mask)  # the same once more
    loss.register_buffer("count", torch.zeros(2))
    learner = Learner(tiny.config(), CPU, loss=loss)
    learner.check_weights()
    learner.loss.count[0] = math.nan
    with pytest.raises(NonFiniteLossError, match=r"not finite \(loss\.count\)"):
        learner.check_weights()


def test_a_loss_that_cannot_be_copied() -> None:
    loss = nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 2)))
    with pytest.raises(ConfigError, match=r"the loss Sequential cannot be copied .*parametrizations"):
        Learner(tiny.config(), CPU, loss=loss)
    locked = Contrast()
    locked.lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"the loss Contrast cannot be copied .*no open files or locks"):
        Learner(tiny.config(), CPU, loss=locked)


def test_a_loss_of_ones_own_that_needs_labels() -> None:
    loss = Contrast()
    loss.needs_labels = True
    with pytest.raises(DataError, match="the loss Contrast needs labels, and the images have none"):
        Learner(tiny.config(), CPU, loss=loss)


def spoil_one() -> None:
    """Weights of which one is NaN, in the last of several processes alone."""
    with distributed.processes(60):
        learner = Learner(tiny.config(), CPU)
        learner.check_weights()
        name, tensor = next(iter(learner.encoder.named_buffers()))
        if last := distributed.rank() == distributed.world_size() - 1:
            tensor.fill_(math.nan)
        with pytest.raises(NonFiniteLossError, match=name if last else "of another process"):
            learner.check_weights()


@pytest.mark.slow
def test_weights_that_are_not_finite_in_one_process_are_an_error_in_all() -> None:
    ranks.run(2, spoil_one)  # or it would go back alone, and wait for the others
