"""Feature extraction: preprocessing, order, and leaving the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ssole.evaluation.features import extract, extract_views, raw_pixels
from ssole.evaluation.preprocessing import Preprocessing
from ssole.runtime import resolve_precision

HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
AT_8 = Preprocessing(image_size=8, **HALF)


class Images:
    """Differently sized images, as a store gives them."""

    def __init__(self, images: list[torch.Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def get(self, indices: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        chosen = [self.images[i] for i in indices.tolist()]
        return torch.stack(chosen) if len({image.shape for image in chosen}) == 1 else chosen


def random_images(*sizes: tuple[int, int]) -> Images:
    return Images([torch.randint(256, (3, *size), dtype=torch.uint8) for size in sizes])


def test_images_of_the_right_size_pass_untouched() -> None:
    images = random_images(*[(8, 8)] * 70)
    features = extract(nn.Flatten(), images, AT_8, batch_size=16, precision="float32")
    expected = (torch.stack(images.images).double() / 255 - 0.5) / 0.25
    assert features.dtype == torch.float32
    np.testing.assert_allclose(features, expected.flatten(1), atol=1e-6)


def test_sizes_may_differ_and_order_is_kept() -> None:
    images = random_images((8, 8), (20, 9), (8, 30), (8, 8), (40, 40), (5, 6))
    together = extract(nn.Flatten(), images, AT_8, batch_size=4, precision="float32")
    for row, image in zip(together, images.images, strict=True):
        alone = extract(nn.Flatten(), Images([image]), AT_8, precision="float32")
        torch.testing.assert_close(row, alone[0])


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].eval()  # a frozen layer inside a training model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = random_images(*[(8, 8)] * 6)
    once, again = (extract(model, images, AT_8) for _ in range(2))
    assert torch.equal(once, again)
    assert [layer.training for layer in model] == [True, False, True, True, True]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    (once * nn.Parameter(torch.ones(4))).sum().backward()  # usable by autograd afterwards


def test_the_model_is_left_as_it_was_when_it_fails() -> None:
    class Broken(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of order")

    model = Broken()
    with pytest.raises(RuntimeError, match="out of order"):
        extract(model, random_images((8, 8)), AT_8)
    assert model.training
    assert torch.is_grad_enabled()


def test_bfloat16_is_close_to_float32() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = random_images(*[(8, 8)] * 6)
    narrow, wide = (extract(model, images, AT_8, precision=precision) for precision in ("bfloat16", "float32"))
    assert narrow.dtype == torch.float32
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Identity(), r"the model gave shape \(1, 3, 8, 8\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 2).requires_grad_(False)), "NaN or infinity in 1 of 1 rows"),
    ],
)
def test_features_that_are_none_are_refused(model: nn.Module, message: str) -> None:
    if isinstance(model, nn.Sequential):
        model[1].weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=message):
        extract(model, random_images((8, 8)), AT_8)


def test_a_model_that_drops_images_is_refused() -> None:
    """Its rows would be the features of other images, or of none."""

    class First(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:1].flatten(1)

    with pytest.raises(ValueError, match=r"the model gave shape \(1, 192\) for a batch of 3"):
        extract(First(), random_images((8, 8), (8, 8), (8, 8)), AT_8)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="there are no images"):
        extract(nn.Flatten(), Images([]), AT_8)
    with pytest.raises(ValueError, match=r"mean is \(0.5,\)"):
        Preprocessing(image_size=8, mean=(0.5,), std=(1.0, 1.0, 1.0))


def test_raw_pixels_are_the_normalised_pixels_shrunk_to_32() -> None:
    images = random_images((16, 16), (64, 64), (48, 40))
    at_16 = Preprocessing(image_size=16, **HALF)
    assert raw_pixels(images, at_16).shape == (3, 3 * 16 * 16)
    assert raw_pixels(images, Preprocessing(image_size=224, **HALF)).shape == (3, 3 * 32 * 32)
    expected = (images.images[0].double() / 255 - 0.5) / 0.25
    np.testing.assert_allclose(raw_pixels(images, at_16)[0], expected.flatten(), atol=1e-6)


def test_precision_is_resolved() -> None:
    assert resolve_precision("float32", "cpu") is None
    assert resolve_precision("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert resolve_precision("auto", "cpu") in (None, torch.bfloat16)
    assert resolve_precision("auto", "mps") is None
    with pytest.raises(ValueError, match="precision is 'half'"):
        resolve_precision("half", "cpu")  # type: ignore[arg-type]


def test_precision_without_a_capability_query_reads_cpuinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssole import runtime as precision

    answer = precision._cpu_multiplies_bfloat16()
    if not Path("/proc/cpuinfo").exists() or not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("there is one way only to ask this machine")
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    precision._cpu_multiplies_bfloat16.cache_clear()
    try:
        assert precision._cpu_multiplies_bfloat16() == answer
    finally:
        precision._cpu_multiplies_bfloat16.cache_clear()


def test_features_of_views_keep_image_and_view_apart() -> None:
    images, ids = random_images(*[(4, 4)] * 300), torch.arange(300) + 1000

    def views(batch: torch.Tensor | list[torch.Tensor], chosen: torch.Tensor) -> list[torch.Tensor]:
        assert isinstance(batch, torch.Tensor)
        return [torch.stack([batch.float() + 1000 * v + chosen.view(-1, 1, 1, 1) for v in range(3)], 1)]

    features = extract_views(nn.Flatten(), images, ids, views, device=torch.device("cpu"))
    first = torch.stack(images.images).flatten(1) + ids[:, None]
    assert features.shape == (300, 3, 48)
    for v in range(3):
        assert torch.equal(features[:, v], first + 1000 * v)
    with pytest.raises(ValueError, match="makes one view of an image"):
        extract_views(nn.Flatten(), images, ids, lambda *a: [views(*a)[0][:, :1]], device=torch.device("cpu"))
