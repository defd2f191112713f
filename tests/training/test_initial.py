"""Runs that start from other weights: equal at step 0, named where they differ, exact on resuming."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - to see that none is run
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from ssole import api
from ssole.config import ConfigError, PretrainConfig
from ssole.models.backbone import create_encoder
from ssole.training.checkpoint import checkpoint_steps, newest_weights
from ssole.training.initial import InitialWeights, read_initial_weights
from ssole.training.run import Run
from tiny import Crash, crash


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run to start from."""
    return tiny.start(tmp_path_factory.mktemp("before") / "run", seed=5)


def initial(init: Path | str, **overrides: Any) -> InitialWeights:
    config = tiny.config(init=str(init), **overrides)
    found = read_initial_weights(config, create_encoder(config))
    assert found is not None
    return found


def loaded(config: PretrainConfig) -> dict[str, torch.Tensor]:
    """Weights of the encoder of a config that starts from others."""
    encoder = create_encoder(config)
    found = read_initial_weights(config, encoder)
    assert found is not None
    encoder.load_state_dict(found.weights, strict=False)
    return encoder.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def backbone_of(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix("backbone."): tensor for k, tensor in weights.items() if k.startswith("backbone.")}


def test_of_a_run_all_weights_are_equal_at_step_0(before: Run, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def look(backbone: nn.Module) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in backbone.state_dict().items()})
        return {}

    tiny.start(tmp_path / "run", init=str(before.path), optim__lr=1e-30, steps=1, evaluators={1: look})
    final = load_file(before.backbone_path)
    trained = {name for name in final if "running" not in name and "batches" not in name}
    assert all(torch.equal(seen[0][name], final[name]) for name in trained)
    weights = newest_weights(before)
    assert weights is not None
    encoder = loaded(tiny.config(init=str(before.path)))
    assert equal(encoder, {k.removeprefix("encoder."): t for k, t in weights.items() if k.startswith("encoder.")})


def test_a_backbone_file_has_no_projector_and_that_is_said(before: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = initial(before.backbone_path)
    assert equal(backbone_of(found.weights), load_file(before.backbone_path))
    assert all(name.startswith("projector.") for name in found.new)
    assert len(found.new) == 6  # three layers, each with a bias
    assert "new: projector.0.weight, projector.0.bias, projector.2.weight, projector.2.bias" in found.summary()


def test_a_projector_of_another_shape_starts_anew(before: Run) -> None:
    found = initial(before.path, model__projector_dim=5)
    assert "projector.4.weight" in found.new
    assert "projector.4.weight" in found.unused
    assert equal(backbone_of(found.weights), load_file(before.backbone_path))


@pytest.mark.parametrize("form", ["plain", "of DDP", "nested", "of an encoder", "with a classifier", "half"])
def test_files_of_torch(before: Run, tmp_path: Path, form: str) -> None:
    weights, file = load_file(before.backbone_path), tmp_path / "weights.pth"
    renamed = {"of DDP": "module.", "of an encoder": "module.backbone."}.get(form, "")
    content: Any = {renamed + name: tensor for name, tensor in weights.items()}
    if form == "nested":
        content = {"epoch": 3, "state_dict": content}
    if form == "with a classifier":
        content |= {"fc.weight": torch.zeros(10, 16), "fc.bias": torch.zeros(10)}
    if form == "half":
        content = {name: tensor.half() for name, tensor in content.items()}
        weights = {name: t.half().float() if t.is_floating_point() else t for name, t in weights.items()}
    torch.save(content, file)  # noqa: TID251 - as others do
    encoder = loaded(tiny.config(init=str(file)))
    found = backbone_of(encoder)
    assert all(torch.equal(found[name], weights[name]) for name in weights if "batches" not in name)
    assert initial(file).unused == (["fc.bias", "fc.weight"] if form == "with a classifier" else [])


def test_what_differs_is_named_and_refused(before: Run, tmp_path: Path) -> None:
    weights = load_file(before.backbone_path)
    del weights["layer4.0.bn2.weight"]
    weights["layer4.0.extra"] = torch.zeros(3)
    weights["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    file = tmp_path / "weights.safetensors"
    save_file(weights, file)
    with pytest.raises(ConfigError) as error:
        initial(file)
    for words in (
        "1 missing (layer4.0.bn2.weight)",
        "1 unexpected (layer4.0.extra)",
        "1 of another shape (conv1.weight is (64, 3, 7, 7) there and (64, 3, 3, 3) here)",
        "--init-partial",
    ):
        assert words in str(error.value)
    with pytest.raises(ConfigError) as error:
        initial(before.path, model__backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 24]})
    last = [name for name in weights if name.startswith("layer4") and "batches" not in name and "extra" not in name]
    assert all(name in str(error.value) for name in last)  # each of them, however many
    found = initial(file, init_partial=True)
    assert {"backbone.layer4.0.bn2.weight", "backbone.conv1.weight"} <= set(found.new)
    assert found.unused == ["conv1.weight", "layer4.0.extra"]
    for name in ("layer4.0.bn2.weight", "layer4.0.extra", "conv1.weight"):
        assert name in found.summary()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_bad_sources(before: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unstarted = tmp_path / "unstarted"
    unstarted.mkdir()
    (unstarted / "config.yaml").write_bytes((before.path / "config.yaml").read_bytes())
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # noqa: TID251
    with pytest.raises(Crash):
        tiny.start(tmp_path / "untrained", evaluators={3: crash})
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({k: t * float("nan") for k, t in load_file(before.backbone_path).items()}, tmp_path / "nan.safetensors")
    cases = {
        tmp_path / "nowhere": "there is no",
        tmp_path: "is not a run folder",
        unstarted: "has no checkpoint yet: go on with it by ssole pretrain --resume",
        tmp_path / "untrained": "untrained has no checkpoint yet: go on with it by ssole pretrain --resume",
        write(tmp_path / "weights.npz", b""): "a run folder, a file (.safetensors, .pth, .pt, .bin), or timm",
        write(tmp_path / "a.safetensors", b"no weights"): "is not a whole safetensors file",
        write(tmp_path / "a.pth", b"no weights"): "no file of weights that can be read safely",
        write(tmp_path / "evil.pth", pickle.dumps(Evil())): "no file of weights that can be read safely",
        tmp_path / "module.pt": "no file of weights that can be read safely",
        tmp_path / "other.safetensors": "does not fit the backbone resnet18: 65 missing",
        tmp_path / "nan.safetensors": "not finite: backbone.bn1.bias",
    }
    for source, words in cases.items():
        with pytest.raises(ConfigError, match=re.escape(words)):
            initial(source)
    with pytest.raises(ConfigError, match="has no weight of the backbone"):
        initial(tmp_path / "other.safetensors", init_partial=True)
    assert "ran" not in capsys.readouterr().out


def test_pretrained_weights_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"timm's pretrained weights of resnet18 cannot be had: .*--init model"):
        initial("timm")  # the tests are offline
    assert not (tmp_path / "run").exists()

    file, create = tmp_path / "model.safetensors", timm.create_model
    wanted = create("resnet18", num_classes=1000, layers=[1, 1, 1, 1], channels=[8, 8, 8, 16]).state_dict()
    save_file(wanted, file)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, pretrained_cfg_overlay={"file": file}))
    found = backbone_of(initial("timm", model__stem="timm").weights)
    assert found.keys() == {name for name in wanted if not name.startswith("fc.")}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    with pytest.raises(ConfigError, match=r"conv1\.weight is \(64, 3, 7, 7\) there .*--model\.stem timm"):
        initial("timm")


def test_resuming_is_exact_and_needs_the_source_no_more(before: Run, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model__frozen_stages": 1, "optim__layer_decay": 0.7, "optim__name": "muon"}
    source = write(tmp_path / "source.safetensors", before.backbone_path.read_bytes())
    whole = tiny.start(tmp_path / "whole", init=str(source), **settings)
    for step in (3, 8):  # before and after the first checkpoint of the run's own
        with pytest.raises(Crash):
            tiny.start(tmp_path / f"crashed-{step}", init=str(source), **settings, evaluators={step: crash})
    source.unlink()
    for step in (3, 8):
        resumed = tiny.resume(tmp_path / f"crashed-{step}")
        assert resumed.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert not equal(load_file(whole.backbone_path), load_file(before.backbone_path))


def test_a_kill_before_the_first_weights_are_written(before: Run, tmp_path: Path) -> None:
    whole = tiny.start(tmp_path / "whole", init=str(before.path))
    with pytest.raises(Crash):
        tiny.start(tmp_path / "killed", init=str(before.path), evaluators={3: crash})
    killed = Run(tmp_path / "killed")
    assert checkpoint_steps(killed) == [0]
    for file in (*killed.checkpoints.iterdir(), killed.path / "metrics.jsonl", killed.path / "init.json"):
        file.unlink()
    assert tiny.resume(killed).backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert (killed.path / "init.json").read_bytes() == (whole.path / "init.json").read_bytes()


def test_frozen_weights_stay_to_the_bit(before: Run, tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", init=str(before.path), model__frozen_stages=2)
    start, end = load_file(before.backbone_path), load_file(run.backbone_path)
    same = {name for name in start if torch.equal(start[name], end[name])}
    frozen = {name for name in start if name.startswith(("conv1.", "bn1.", "layer1.", "layer2."))}
    assert frozen == same  # batch norms of the others have seen other images
    facts = json.loads((run.path / "init.json").read_text())
    assert facts["init"] == str(before.path)
    assert len(facts["loaded"]) == len(start) + 6


def test_a_whitened_stem_does_not_replace_loaded_weights(before: Run, tmp_path: Path) -> None:
    run = tiny.start(
        tmp_path / "run", init=str(before.path), model__stem_init="whitening", model__frozen_stages=0, steps=1
    )
    assert torch.equal(load_file(run.backbone_path)["conv1.weight"], load_file(before.backbone_path)["conv1.weight"])


def test_nothing_left_to_train(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="all weights are frozen"):
        tiny.start(tmp_path / "run", model__frozen_stages=4, model__projector_layers=0)
    assert not (tmp_path / "run").exists()


def test_relative_paths_and_runs_in_python(before: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(before.path.parent)
    recipe = tiny.recipe(tmp_path)
    run = api.pretrain(tiny.images(), recipe=recipe, init=before, out=tmp_path / "a", progress=False, steps=1)
    assert run.config.init == str(before.path)
    run = api.pretrain(tiny.images(), recipe=recipe, init="run", out=tmp_path / "b", progress=False, steps=1)
    assert run.config.init == str(before.path)
