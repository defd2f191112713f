"""Attentive probe: a class that one position decides, spatial features of several networks, refused input."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import nn

from ssole.evaluation.attentive import AttentiveProbe, Tokens, attentive_probe

SMALL_SWIN = {"depths": (1, 1), "embed_dim": 12, "num_heads": (1, 2)}


def hidden(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of noise; one, at a random place, carries a mark and the class, which the mean of all barely shows."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 16, 8, generator=generator)
    labels = torch.arange(n) % 2
    place = torch.randint(0, 16, (n,), generator=generator)
    tokens[torch.arange(n), place, 0] = 6
    tokens[torch.arange(n), place, 1] = 3.0 * (2 * labels - 1)
    return tokens, labels


def test_it_finds_the_position_that_tells() -> None:
    (train, labels), (test, test_labels) = hidden(600, 0), hidden(200, 1)
    before = torch.get_rng_state()
    scores = attentive_probe(train.half(), labels, classes=2, epochs=400).scores(test)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.allclose(scores.sum(1), torch.ones(200).double(), atol=1e-5)
    accuracy = float((scores.argmax(1) == test_labels).float().mean())
    by_mean = test.mean(1)[:, 1] > 0
    assert accuracy > 0.95
    assert float((by_mean == test_labels.bool()).float().mean()) < 0.85
    one, two = (attentive_probe(train[:40], labels[:40], classes=2).scores(test[:9]) for _ in range(2))
    assert torch.equal(one, two)


def test_equal_attention_is_the_mean() -> None:
    probe = AttentiveProbe(8, 3, 2).eval()
    nn.init.zeros_(probe.queries_HF)
    tokens = torch.randn(4, 5, 8)
    mean = tokens.mean(1, keepdim=True).expand(-1, 5, -1)
    assert torch.allclose(probe(tokens), probe(mean), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}, (2, 4, 16)),
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1, "embed_dim": 24, "num_heads": 2}, (2, 17, 24)),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4} | SMALL_SWIN, (2, 49, 24)),
    ],
)
def test_spatial_features_of_networks(name: str, options: dict[str, object], shape: tuple[int, ...]) -> None:
    model = timm.create_model(name, num_classes=0, **options).eval()
    tokens = Tokens(model)
    with torch.no_grad():
        rows = tokens(torch.rand(2, 3, 64, 64))
    assert tokens.width == shape[2]
    assert rows.shape == (2, shape[1] * shape[2])
    if name == "resnet18":
        pooled = rows.view(shape).mean(1)
        with torch.no_grad():
            torch.manual_seed(0)
            images = torch.rand(2, 3, 64, 64)
            pooled = tokens(images).view(shape).mean(1)
            assert torch.allclose(pooled, model(images), atol=1e-5)


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="Linear has no forward_features"):
        Tokens(nn.Linear(1, 1))

    class Odd(nn.Module):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    with pytest.raises(ValueError, match=re.escape("forward_features of Odd gives (2, 12); (B, F, h, w) is needed")):
        Tokens(Odd())(torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match=re.escape("takes tokens (N, T, F) of two or more images, got (3, 4)")):
        attentive_probe(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), classes=2)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        attentive_probe(torch.full((3, 4, 2), torch.inf), torch.zeros(3, dtype=torch.int64), classes=2)
