"""Feature extraction: preprocessing, order, leaving the model as it was; and processes that share an evaluation."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import ranks
import tiny
from ssole import distributed, evaluate
from ssole.data import reader
from ssole.data.store import ImageStore
from ssole.evaluation.features import extract, extract_views, own_batches, raw_pixels
from ssole.evaluation.preprocessing import Preprocessing
from ssole.runtime import resolve_precision
from ssole.training.run import Run

CPU = torch.device("cpu")

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_of_another_number_format_gets_its_input_in_it(dtype: torch.dtype, precision: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = random_images(*[(8, 8)] * 6)
    expected = extract(model, images, AT_8, precision="float32")
    found = extract(model.to(dtype), images, AT_8, precision=precision)
    assert found.dtype == torch.float32
    views = extract_views(model, images, torch.arange(6), lambda *a: [torch.zeros(6, 2, 3, 8, 8)], device=CPU)
    assert views.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


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


IMAGES = 700  # three batches, so that the last round lacks one


@contextlib.contextmanager
def counted(file: Path) -> Iterator[None]:
    """Context that writes how many images this process decodes, and how many it reads from stores."""
    plain, read = ImageStore.get, []

    def get(self: ImageStore, indices: torch.Tensor) -> Any:
        read.append(len(indices))
        return plain(self, indices)

    with mock.patch.object(reader, "decode", wraps=reader.decode) as decode, mock.patch.object(ImageStore, "get", get):
        yield
    file.write_text(f"{decode.call_count} {sum(read)}")


def commands(folder: Path, out: Path) -> None:
    """`ssole eval` and `ssole embed` of one run, and what each process prints."""
    out.mkdir(exist_ok=True)
    run, photos = str(folder / "run"), str(folder / "photos")
    printed = out / f"printed-{os.environ.get('RANK', '0')}.txt"
    with printed.open("w") as file, contextlib.redirect_stdout(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with counted(out / f"decoded-{os.environ.get('RANK', '0')}.txt"):
            assert tiny.main("eval", run, "--data", photos, "--save", str(out / "eval.json"), "--device", "cpu") == 0
        assert tiny.main("embed", run, "--data", photos, "--out", str(out / "embeddings.npz"), "--device", "cpu") == 0


def examine(folder: Path, out: Path) -> None:
    """`ssole doctor`, which the first process does alone from then on."""
    with (out / f"examined-{os.environ.get('RANK', '0')}.txt").open("w") as file, contextlib.redirect_stdout(file):
        found = ("--no-estimate", "--json", str(out / "doctor.json"))
        assert tiny.main("doctor", str(folder / "photos"), *found) == 0


def share(folder: Path) -> None:
    commands(folder, folder / "two")
    photos = str(folder / "photos")
    given = ("--recipe", str(folder / "tiny.yaml"), "--data", photos, "--out", str(folder / "told"))
    said = folder / f"trained-{os.environ['RANK']}.txt"
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        assert tiny.main("pretrain", *given) == 0
    found = []
    plain = ImageStore.prefetch

    def prefetch(self: ImageStore, indices: torch.Tensor) -> None:
        found.append(len(indices))
        plain(self, indices)

    ImageStore.prefetch = prefetch  # type: ignore[method-assign]
    run = tiny.start(folder / "trained on two", data=photos, eval_data=photos, knn_every=6)
    assert set(found) == {2}  # of a batch of 4, though all images have one size and would fit into memory
    assert run.finished
    examine(folder, folder / "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharing")
    photos = tiny.write_folder(folder / "photos", IMAGES)
    (photos / "cat" / "300.png").write_bytes(b"damaged")  # in the second batch, which the second process reads
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSOLE_CACHE", str(folder / "cache"))
        tiny.start(folder / "run", data=str(photos))
        commands(folder, folder / "one")
        examine(folder, folder / "one")
        tiny.recipe(folder)
        ranks.run(2, share, folder)
    return folder


@pytest.mark.slow
def test_the_result_is_that_of_one_process(folder: Path) -> None:
    one, two = (json.loads((folder / name / "eval.json").read_text()) for name in ("one", "two"))
    assert one["rows"] == two["rows"]
    assert one["notes"] == two["notes"]
    assert any("1 training images of" in note for note in one["notes"]), one["notes"]
    alone, shared = (np.load(folder / name / "embeddings.npz") for name in ("one", "two"))
    assert len(alone["array"]) == IMAGES - 1
    for name in alone.files:
        assert np.array_equal(alone[name], shared[name]), name


@pytest.mark.slow
def test_the_doctor_finds_what_it_finds_in_one_process(folder: Path) -> None:
    clock = dict.fromkeys(("seconds", "views", "decode"))
    one, two = (json.loads((folder / name / "doctor.json").read_text()) | clock for name in ("one", "two"))
    assert one == two
    assert "300.png" in (folder / "two" / "examined-0.txt").read_text()
    assert (folder / "two" / "examined-1.txt").read_text() == ""


@pytest.mark.slow
def test_an_image_is_decoded_by_one_process_for_all(folder: Path) -> None:
    assert not (folder / "one" / "decoded-1.txt").exists()
    (_, all_read), *both = (
        [int(word) for word in (folder / name).read_text().split()]
        for name in ("one/decoded-0.txt", "two/decoded-0.txt", "two/decoded-1.txt")
    )
    assert sum(decoded for decoded, _ in both) < 1.2 * IMAGES  # more than once only those that all begin with
    assert max(decoded for decoded, _ in both) < IMAGES
    assert max(read for _, read in both) < 0.7 * all_read  # of raw pixels too


@pytest.mark.slow
def test_the_first_process_alone_prints(folder: Path) -> None:
    one, first, second = (
        (folder / name).read_text() for name in ("one/printed-0.txt", "two/printed-0.txt", "two/printed-1.txt")
    )
    assert first.replace("/two/", "/one/").split() == one.split()
    assert second == ""
    assert "evaluate them: ssole eval" in (folder / "trained-0.txt").read_text()
    assert (folder / "trained-1.txt").read_text() == ""


@pytest.mark.slow
def test_accuracy_while_training_is_that_of_a_later_evaluation(folder: Path) -> None:
    run = Run(folder / "trained on two")
    rows = [row for row in run.metrics if "knn20" in row]
    assert [row["step"] for row in rows] == [6, 12]
    how: dict[str, Any] = {
        "protocol": "knn",
        "baselines": False,
        "device": "cpu",
        "precision": "float32",
        "progress": False,
    }
    result = evaluate(run, str(folder / "photos"), **how)
    assert rows[-1]["knn20"] == result.rows["trained"]["knn20"].value


@pytest.mark.slow
def test_one_process_has_all_parts() -> None:
    parts = list(torch.arange(10).split(4))
    assert own_batches(parts) == parts
    assert not distributed.shares_work()
