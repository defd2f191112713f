"""SGD probe: torch's own optimizer, scikit-learn's minimum, the choice of the rate, refused input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from ssole.evaluation.sgd_probe import BATCH, MOMENTUM, sgd_probe


def clusters(n: int, classes: int = 3, features: int = 5, spread: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, features, generator=generator) * 2
    return centres[labels] + spread * torch.randn(n, features, generator=generator) + 3, labels


@pytest.mark.parametrize("count", [100, 300])
def test_it_takes_the_steps_of_torch(count: int) -> None:
    """A linear layer of standardised features, trained by torch.optim.SGD on the same batches."""
    features, labels = clusters(count)
    probe = sgd_probe(features, labels, rates=[0.3], epochs=4)
    inputs = (features - features.mean(0)) / features.std(0, correction=0)
    layer = torch.nn.Linear(5, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    batch, generator, step = min(BATCH, count), torch.Generator().manual_seed(0), 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0, momentum=MOMENTUM)
    for _ in range(4):
        order = torch.randperm(count, generator=generator)
        for rows in order[: count // batch * batch].split(batch):
            optimizer.param_groups[0]["lr"] = (
                0.3 * batch / BATCH * (1 + math.cos(math.pi * step / (4 * (count // batch)))) / 2
            )
            optimizer.zero_grad()
            F.cross_entropy(layer(inputs[rows]), labels[rows]).backward()
            optimizer.step()
            step += 1
    assert torch.allclose(probe.scores(features), layer(inputs).double().softmax(1), atol=1e-5)
    assert (probe.rate, probe.validation) == (0.3, {})


def test_trained_long_it_reaches_the_minimum_of_scikit_learn() -> None:
    features, labels = clusters(256)
    scores = sgd_probe(features, labels, rates=[1.0], epochs=2000).scores(features)
    reference = LogisticRegression(C=1e6, max_iter=5000).fit(features.numpy(), labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(features.numpy())).float()
    losses = [float(F.nll_loss(one.log(), labels)) for one in (scores, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert float((scores.argmax(1) == expected.argmax(1)).float().mean()) > 0.99


def test_the_rate_is_the_best_on_held_out_images_and_constant_features_do_no_harm() -> None:
    features, labels = clusters(200)
    features = torch.cat([features, torch.full((200, 1), 7.0)], 1)
    probe = sgd_probe(features, labels, rates=(1e-7, 0.1, 0.3), epochs=20)
    assert list(probe.validation) == [1e-7, 0.1, 0.3]
    best = max(probe.validation.values())
    assert probe.rate == min(rate for rate, value in probe.validation.items() if value == best)
    assert torch.isfinite(probe.weight).all()
    assert (probe.scores(features).argmax(1) == labels).float().mean() > 0.8
    again = sgd_probe(features, labels, rates=(1e-7, 0.1, 0.3), epochs=20)
    assert torch.equal(again.weight, probe.weight)


def test_wrong_input() -> None:
    features, labels = clusters(20)
    with pytest.raises(ValueError, match="all 20 labels are 1"):
        sgd_probe(features, torch.ones(20, dtype=torch.int64))
    with pytest.raises(ValueError, match="must be above 0"):
        sgd_probe(features, labels, rates=(0.0, 1.0))
    with pytest.raises(ValueError, match="hold NaN or infinity in 20 of 20"):
        sgd_probe(features * torch.nan, labels)


def test_the_scores_of_large_logits_keep_their_order() -> None:
    """In float32 all classes but one would have probability 0, and the top 5 be undecided."""
    probe = sgd_probe(torch.randn(60, 4), torch.arange(60) % 6, rates=[1.0], epochs=1)
    probe = replace(probe, weight=torch.zeros(6, 4), bias=torch.arange(6.0) * 120)
    assert probe.scores(torch.zeros(1, 4)).argsort(1).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert (probe.scores(torch.zeros(1, 4)) > 0).all()
