"""Semi-supervised fine-tuning: balanced splits, a task it can learn, the network left as it was, refused input."""

from __future__ import annotations

import threading

import pytest
import torch
from coloured import coloured
from torch import nn

from ssole.data.store import ImageStore
from ssole.evaluation.datasets import Subset
from ssole.evaluation.fine_tune import balanced_split, fine_tune, shifted, split_digest
from ssole.evaluation.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)


def test_splits_are_balanced_and_fixed() -> None:
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 98 + [3] * 2)
    split = balanced_split(labels, 0.1)
    assert labels[split].bincount().tolist() == [25, 25, 25, 2]
    assert torch.equal(split, split.sort().values)
    assert torch.equal(split, balanced_split(labels, 0.1))
    assert not torch.equal(split, balanced_split(labels, 0.1, seed=1))
    assert balanced_split(labels, 0.001).tolist() == sorted(balanced_split(labels, 0.001).tolist())
    assert labels[balanced_split(labels, 0.001)].tolist() == [0, 1, 2, 3]
    assert split_digest(torch.tensor([0, 1])) == "9d34149fbd1fe777eb238799054c8cbfbce372255f219f8740838def9bfd02db"
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share of the labels is {share}"):
            balanced_split(labels, share)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_it_learns_and_leaves_the_network_and_the_random_state_as_they_were() -> None:
    source = coloured(30, seed=0)
    labels = torch.from_numpy(source.labels)
    images = Subset(store=ImageStore(source, progress=False), positions=torch.arange(30), labels=labels)
    preprocessing = Preprocessing(image_size=8, mean=HALF, std=HALF)
    model, random = network().eval(), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, two = (fine_tune(model, images, preprocessing, features=8, classes=3, epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), random)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    other = coloured(60, seed=1)
    inputs = preprocessing(torch.from_numpy(other.images).permute(0, 3, 1, 2))
    assert float((one(inputs).argmax(1) == torch.from_numpy(other.labels)).float().mean()) > 0.9
    assert torch.equal(one(inputs), two(inputs))
    wide = fine_tune(network().double(), images, preprocessing, features=8, classes=3, epochs=1)  # in float32
    assert wide(inputs).dtype == torch.float32
    with pytest.raises(ValueError, match="Identity has no parameters to fine-tune"):
        fine_tune(nn.Identity(), images, preprocessing, features=8, classes=3, epochs=1)
    program = nn.Flatten()
    program.session = threading.Lock()  # type: ignore[assignment]  # as an ONNX session, it cannot be copied
    with pytest.raises(ValueError, match="Flatten has no parameters to fine-tune"):
        fine_tune(program, images, preprocessing, features=8, classes=3, epochs=1)


def test_shifts_move_whole_images() -> None:
    images = torch.arange(256.0).view(1, 1, 16, 16).expand(40, 1, 16, 16)
    moved = shifted(images, torch.Generator().manual_seed(0))
    corners = {(int(one[0, 8, 8]) // 16 - 8, int(one[0, 8, 8]) % 16 - 8) for one in moved}
    assert corners <= {(y, x) for y in range(-2, 3) for x in range(-2, 3)}
    assert len(corners) > 10
    for one in moved:
        y, x = int(one[0, 8, 8]) // 16 - 8, int(one[0, 8, 8]) % 16 - 8
        assert torch.equal(one[0, 4:12, 4:12], images[0, 0, 4 + y : 12 + y, 4 + x : 12 + x])
    assert shifted(torch.zeros(1, 1, 7, 7), torch.Generator()).shape == (1, 1, 7, 7)
