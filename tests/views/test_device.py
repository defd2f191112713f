"""The route of accelerators, run on a CPU: the views of the other routes, drawn batch by batch or an epoch at once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from view_cases import FULL, PLAIN

from ssole.config import Crop, ViewRecipe
from ssole.views import augment, device, make_views

CPU = torch.device("cpu")
TWO_GROUPS = dataclasses.replace(FULL, crops=(Crop(count=2, size=24), Crop(count=3, size=9)))


def on_a_device(
    images: torch.Tensor | list[torch.Tensor],
    ids: torch.Tensor,
    recipe: ViewRecipe,
    rows: list[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """`make_views` as it runs on an accelerator; seed 1, epoch 0."""
    channels, sizes = images[0].shape[0], torch.tensor(augment.image_sizes(images))
    rows = rows or device.batch_rows(recipe, ids, sizes, channels, seed=1, epoch=0)
    outs = [torch.full((len(ids) * crop.count, channels, crop.size, crop.size), torch.nan) for crop in recipe.crops]
    augment._make_on_device(images, rows, outs, recipe)
    return [out.unflatten(0, (len(ids), crop.count)) for out, crop in zip(outs, recipe.crops, strict=True)]


@pytest.mark.parametrize("recipe", [FULL, TWO_GROUPS, PLAIN, dataclasses.replace(FULL, hue=0, turn=0, blur=0)])
@pytest.mark.parametrize("form", ["tensor", "listed", "deep"])
def test_views_are_those_of_a_cpu(
    photos: torch.Tensor, recipe: ViewRecipe, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "_DEVICE_BLOCK", 100_000)
    monkeypatch.setattr(augment, "_PADDED_TOGETHER", 3)
    ids, images = torch.arange(8), photos
    if form == "listed":
        images = [photo[:, : 40 + 3 * i, : 80 - 4 * i] for i, photo in enumerate(photos)]
    elif form == "deep":
        images = (photos.to(torch.int32) * 257).to(torch.uint16)
    expected = make_views(images, ids, recipe=recipe, seed=1, epoch=0)
    for views, wanted in zip(on_a_device(images, ids, recipe), expected, strict=True):
        torch.testing.assert_close(views, wanted, atol=2e-4, rtol=0)


def test_solarized_views_are_those_of_a_cpu(photos: torch.Tensor) -> None:
    recipe, ids = dataclasses.replace(FULL, solarize=0.5, grey=0.5), torch.arange(8)
    (expected,) = make_views(photos, ids, recipe=recipe, seed=1, epoch=0)
    (views,) = on_a_device(photos, ids, recipe)
    # Solarize is a threshold: rounding may change single pixels.
    assert ((views - expected).abs() > 2e-4).float().mean() <= 1e-4


@pytest.mark.parametrize("channels", [1, 5])
def test_other_numbers_of_channels(photos: torch.Tensor, channels: int) -> None:
    images, ids = torch.cat([photos, photos.flip(0)], dim=1)[:, :channels].contiguous(), torch.arange(8)
    recipe = dataclasses.replace(FULL, saturation=0, hue=0, grey=0, mean=(0.5,) * channels, std=(0.25,) * channels)
    (expected,) = make_views(images, ids, recipe=recipe, seed=1, epoch=0)
    torch.testing.assert_close(on_a_device(images, ids, recipe)[0], expected, atol=2e-4, rtol=0)


def test_an_epoch_at_once_gives_the_same_rows_as_batch_by_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any order, for a last batch of another size, and after going back to an epoch, as resuming does."""
    monkeypatch.setattr(device, "_VIEWS_AT_ONCE", 64)
    table = device.EpochRows(TWO_GROUPS, 50, 3, seed=7)
    table._size = torch.Size([40, 56])
    memory = set()
    for epoch in (0, 1, 0):
        table._draw(epoch, torch.device("cpu"))
        for batch in torch.randperm(50).split(16):
            expected = device.batch_rows(TWO_GROUPS, batch, torch.tensor([[40, 56]]), 3, seed=7, epoch=epoch)
            for rows, wanted in zip(table._tables, expected, strict=True):
                assert torch.equal(rows[batch], wanted)
        memory.add(tuple(rows.data_ptr() for rows in table._tables))
    assert len(memory) == 1


def test_batches_draw_their_own_rows_where_an_epoch_has_none() -> None:
    images, ids = (
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device="meta"),
        torch.zeros(4, dtype=torch.int64, device="meta"),
    )
    known = device.EpochRows(FULL, 50_000, 3, seed=0)
    known._epoch, known._size = 0, torch.Size([8, 8])
    assert known.lookup(images, ids, 0) == []  # looked up in no tables
    assert known.lookup(images[..., 1:], ids, 0) is None  # another size
    assert known.lookup(list(images), ids, 0) is None
    assert known.lookup(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4), 0) is None
    assert device.EpochRows(FULL, None, 3, seed=0).lookup(images, ids, 0) is None
    assert device.EpochRows(FULL, 10_000_000, 3, seed=0).lookup(images, ids, 0) is None  # does not fit
