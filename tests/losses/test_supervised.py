"""SupervisedLoss against a loop over views, unknown labels, its parameters and errors."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import embeddings, gradient

from ssole.losses import SupervisedLoss

LABELS = torch.tensor([2, 0, -1, 1, 2, -1])


def loss() -> SupervisedLoss:
    torch.manual_seed(0)
    return SupervisedLoss(classes=3, dims=4)


def plain_terms(z, labels, weight, bias) -> tuple[float, float]:
    entropies, right = [], 0
    for image, label in zip(z, labels, strict=True):
        for row in image if label >= 0 else []:
            logits = [
                sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weight, bias, strict=True)
            ]
            entropies.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[label])
            right += logits.index(max(logits)) == label
    return sum(entropies) / len(entropies), right / len(entropies)


def test_against_a_loop():
    z, module = embeddings(6, 3, 4), loss()
    cross_entropy, accuracy = plain_terms(
        z.tolist(), LABELS.tolist(), module.head.weight.tolist(), module.head.bias.tolist()
    )
    terms = module.terms(z, LABELS)
    assert terms.total.item() == pytest.approx(cross_entropy, rel=1e-12)
    assert terms.accuracy.item() == pytest.approx(accuracy)
    assert 0 < accuracy < 1


def test_unknown_images_are_left_out():
    z, module = embeddings(6, 2, 4), loss()
    known = LABELS >= 0
    assert module(z, LABELS).item() == pytest.approx(module(z[known], LABELS[known]).item(), rel=1e-12)
    assert not gradient(lambda x: module(x, LABELS), z)[~known].any()
    nothing = torch.full((6,), -1)
    assert module(z, nothing) == 0
    assert not gradient(lambda x: module(x, nothing), z).any()


def test_the_classifier_is_trained():
    module, z = loss(), embeddings(6, 2, 4, spread=0.1, dtype=torch.float32)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        module(z, LABELS).backward()
        optimizer.step()
    assert set(dict(module.named_parameters())) == {"head.weight", "head.bias"}
    assert module.terms(z, LABELS).accuracy == 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs the labels"),
        ([0] * 6, "labels must be a torch.Tensor, got list"),
        (LABELS[:5], r"int64 of shape \(6,\), got torch.int64 of shape \(5,\)"),
        (LABELS.float(), "torch.float32"),
        (LABELS + 1, "2 labels are outside -1 .* to 2, such as 3"),
        (LABELS - 1, "2 labels are outside -1 .* to 2, such as -2"),
    ],
)
def test_bad_labels_are_quoted(labels, message):
    with pytest.raises(ValueError, match=message):
        loss()(embeddings(6, 2, 4), labels)


def test_other_dimensions_are_quoted():
    with pytest.raises(ValueError, match=r"dims=4 dimensions, got shape \(6, 2, 5\)"):
        loss()(embeddings(6, 2, 5), LABELS)
