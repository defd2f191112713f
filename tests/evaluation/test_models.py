"""Models that can be evaluated: each kind beside the network it should be equal to, and what cannot be opened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from coloured import MeanColour, coloured, evaluate_quietly
from safetensors.torch import save_file
from torch import nn

import ssole
import tiny
from ssole.config import ConfigError
from ssole.evaluation import models
from ssole.evaluation.embed import embed
from ssole.evaluation.embed_to_file import backbone_digest
from ssole.evaluation.models import OnnxModel, UnavailableError, is_run, name_of, open_model
from ssole.evaluation.preprocessing import Preprocessing
from ssole.training.run import Run

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.start(tmp_path_factory.mktemp("models") / "run", steps=2)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("Name or service not known. Try again later")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", no_network)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)


@pytest.mark.parametrize("suffix", [".pth", ".PTH", ".safetensors"])
def test_a_checkpoint_of_timm(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    whole = timm.create_model(NAME, num_classes=7).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix.lower() == ".pth":
        torch.save({"state_dict": whole.state_dict()}, path)  # noqa: TID251
    else:
        save_file(whole.state_dict(), path)
    model = open_model(f"timm:{NAME}={path}")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(images), whole.forward_head(whole.forward_features(images), pre_logits=True))
    assert Preprocessing.from_model(model).image_size == 224
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))} does not say .* give timm:NAME="):
        open_model(path)
    with pytest.raises(ConfigError, match=r"not those of timm:resnet18 \(missing: conv1.weight, .* and \d+ more; une"):
        open_model(f"timm:resnet18={path}")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_checkpoint_of_torchvision(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    whole = torchvision.models.get_model(name, num_classes=1000).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")  # noqa: TID251
    model = open_model(f"torchvision:{name}={tmp_path / 'weights.pth'}")
    last = [module for module in whole.modules() if isinstance(module, nn.Linear)][-1]
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(last(model(images)), whole(images), atol=1e-5)
    preprocessing = Preprocessing.from_model(model)
    assert (preprocessing.image_size, preprocessing.mean) == (224, (0.485, 0.456, 0.406))
    with pytest.raises(ConfigError, match="not those of torchvision:resnet34"):
        open_model(f"torchvision:resnet34={tmp_path / 'weights.pth'}")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_of_torchvision_that_normalise_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = torchvision.models.get_model(name, weights=None, init_weights=False).state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: weights)
    whole, model = torchvision.models.get_model(name, weights="DEFAULT").eval(), open_model(f"torchvision:{name}")
    whole.fc = nn.Identity()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(model(images), whole(images))


@pytest.mark.parametrize(("library", "name"), [("timm", "resnet18"), ("timm", "vit_tiny_patch16_224"), ("tv", "vgg11")])
def test_a_classifier_is_a_warning_that_says_how_to_remove_it(library: str, name: str) -> None:
    classes: dict[str, Any] = {"num_classes": 7}
    model = timm.create_model(name, **classes) if library == "timm" else torchvision.models.get_model(name, **classes)
    how = "reset_classifier(0)" if library == "timm" else 'set_submodule("classifier.6", torch.nn.Identity())'
    words = f"still has its classifier, so its features are 7 scores of classes. .* remove it: model.{re.escape(how)}$"
    with pytest.warns(UserWarning, match=words):
        open_model(model)
    if library == "timm":
        model.reset_classifier(0)
        assert open_model(timm.create_model(name, num_classes=0)).num_classes == 0
    else:
        model.set_submodule("classifier.6", nn.Identity())
    assert open_model(model) is model  # a warning would be an error


def test_exports_of_a_run_have_its_features(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    source = ssole.load(run)
    images = torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8)
    expected = source(Preprocessing.from_model(source)(images))
    ssole.export(run, to="onnx", out=tmp_path / "onnx")
    ssole.export(run, to="timm", out=tmp_path / "timm")
    registry: dict[str, object] = timm.models._registry._model_entrypoints
    monkeypatch.delitem(registry, "ssole_resnet")  # as in a process that exported nothing
    for given in (tmp_path / "onnx" / "model.onnx", f"timm:local-dir:{tmp_path / 'timm'}"):
        model = open_model(given)
        features = model(Preprocessing.from_model(model)(images))
        assert torch.allclose(features, expected, atol=1e-5), given


def test_one_number_may_stand_for_all_channels() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found, expected = (
        embed(model, tiny.images(), image_size=8, mean=mean, std=std, device="cpu", progress=False).array
        for mean, std in (((0.5,), (0.2,)), ((0.5,) * 3, (0.2,) * 3))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("channels", "to", "opened"), [(1, "onnx", "{}/model.onnx"), (4, "timm", "timm:local-dir:{}")])
def test_exports_see_all_channels_of_an_image(channels: int, to: Any, opened: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pixels = np.random.default_rng(0).integers(0, 256, (22, 12, 12, channels), dtype=np.uint8)
    colours: dict[str, Any] = {f"augment__{name}": 0.0 for name in ("saturation", "hue", "grey")}
    normal: dict[str, Any] = {"augment__mean": (0.5,) * channels, "augment__std": (0.3,) * channels}
    run = tiny.start(tmp_path / "run", data=pixels, steps=2, channels=channels, **colours, **normal)
    expected, found = (
        embed(given, pixels, device="cpu", precision="float32", progress=False).array
        for given in (run, opened.format(ssole.export(run, to=to)))
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_onnx_file_of_others(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")

    def write(shape: list[object]) -> Path:
        nodes = [onnx.helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
        x, y = (
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, one)
            for name, one in (("x", shape), ("y", shape[:2]))
        )
        opset = [onnx.helper.make_opsetid("", 13)]
        graph = onnx.helper.make_graph(nodes, "means", [x], [y])
        written = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.helper.set_model_props(written, {"preprocessing": "as usual"})  # not as ssole describes it
        onnx.save(written, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    images = torch.rand(3, 3, 8, 8)
    for shape in (["n", 3, 8, 8], [1, 3, 8, 8]):
        assert torch.allclose(OnnxModel(write(shape))(images), images.mean((2, 3)), atol=1e-6)
    with pytest.raises(ConfigError, match=r"model.onnx does not take images of shape \[3, 3, 9, 9\]: "):
        OnnxModel(write(["n", 3, 8, 8]))(torch.rand(3, 3, 9, 9))
    with pytest.raises(ValueError, match=r"image_size is \[8, 16\]; the side of a square is needed"):
        Preprocessing.from_model(open_model(write(["n", 3, 8, 16])), mean=[0.5] * 3, std=[0.5] * 3)
    model = open_model(write(["n", 3, 8, 8]).rename(tmp_path / "model.ONNX"))
    how = Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    digests = [backbone_digest(OnnxModel(write([batch, 3, 8, 8])), how) for batch in ("n", "n", "m")]
    assert digests[0] == digests[1] != digests[2]  # parts of an embedding must not be those of another file
    with pytest.raises(ValueError, match="preprocessing of OnnxModel is unknown: pass mean, std"):
        Preprocessing.from_model(model)
    half = (0.5, 0.5, 0.5)
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    found = evaluate_quietly({"graph": model, "module": MeanColour()}, train, test=test, mean=half, std=half)
    assert found.rows["graph"] == found.rows["module"]
    with pytest.raises(
        ConfigError, match=r"takes x tensor\(float\) \[4, 3, 8, 8\]; float images \(batch, channels, side"
    ):
        OnnxModel(write([4, 3, 8, 8]))
    (tmp_path / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="onnxruntime cannot read"):
        OnnxModel(tmp_path / "model.onnx")


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_row_is_left_out_and_one_line_says_why(run: Run) -> None:
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    given = {"mine": run, "ImageNet": f"timm:{NAME}", "other": "torchvision:resnet18"}
    result = evaluate_quietly(given, train, test=test, protocol="knn")
    assert list(result.rows) == ["mine", "raw pixels (8x8)", "untrained"]
    reason = "its pretrained weights cannot be had here (Name or service not known): left out."
    assert result.notes[:2] == [f"timm:{NAME}: {reason}", f"torchvision:resnet18: {reason}"]
    for lone in (f"timm:{NAME}", {"a": f"timm:{NAME}", "b": "torchvision:resnet18"}):
        with pytest.raises(UnavailableError, match="be had here"):
            evaluate_quietly(lone, train, test=test)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("timm:resnet17", "timm has no model 'resnet17': did you mean timm:resnet1"),
        ("timm:resnet18.a1_in2k", "did you mean timm:resnet18.a1_in1k"),
        ("timm:local-dir:nowhere", "there is no folder nowhere"),
        ("torchvision:resnet17", "torchvision has no model 'resnet17': did you mean torchvision:resnet1"),
        ("torchvision:squeezenet1_0=x.pth", "there is no file x.pth"),
        ("timm:resnet18=nowhere.pth", "there is no file nowhere.pth"),
        ("nowhere.onnx", "there is no file nowhere.onnx"),
        ("nowhere", "there is no nowhere: give a run folder"),
    ],
)
def test_what_does_not_exist(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        open_model(given)
    assert not isinstance(caught.value, UnavailableError)


@pytest.mark.parametrize("given", [lambda images: images.flatten(1), {"weight": torch.zeros(3, 3)}, [None]])
def test_what_is_no_model_is_named(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"a model is a torch module, a run, or text that names one, got a [fTN]"):
        evaluate_quietly(given, coloured(60, seed=0))


def test_names_and_kinds(run: Run) -> None:
    assert [name_of(one) for one in ("timm:a=b/c.pth", "timm:a", "runs/mine", "x/y.onnx", MeanColour(), run)] == [
        "timm:a=c.pth", "timm:a", "mine", "y.onnx", "MeanColour", "run",
    ]  # fmt: skip
    given = (run, str(run.path), "timm:a", "a.onnx", "a.ONNX", MeanColour())
    assert [is_run(one) for one in given] == [True, True] + 4 * [False]


def test_rows_of_a_dict_and_one_untrained_row_for_equal_beginnings(run: Run, tmp_path: Path) -> None:
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    longer, other = tiny.start(tmp_path / "longer", steps=3), tiny.start(tmp_path / "other", steps=2, seed=1)
    alone = [evaluate_quietly(one, train, test=test, protocol="knn").rows["trained"] for one in (run, longer)]
    both = evaluate_quietly({"a": run, "b": longer, "seeds": [run, other]}, train, test=test, protocol="knn")
    untrained = ["untrained, as a", "untrained, as seeds"]
    assert list(both.rows) == ["a", "b", "seeds", "raw pixels (8x8)", *untrained]
    assert [both.rows["a"], both.rows["b"]] == alone
    assert both.rows["seeds"]["knn10"].runs == 2
    pair = evaluate_quietly({"a": run, "b": longer}, train, test=test, protocol="knn")
    assert list(pair.rows) == ["a", "b", "raw pixels (8x8)", "untrained"]
    for nothing in ({}, [], {"a": []}):
        with pytest.raises(ConfigError, match="there is nothing to evaluate"):
            evaluate_quietly(nothing, train)


def test_a_missing_package_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr(models, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs onnxruntime: pip install 'ssole\[export\]'"):
        OnnxModel(tmp_path / "model.onnx")
