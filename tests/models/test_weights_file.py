"""Weight files of others: safe reading, and loading whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssole.config import ConfigError
from ssole.models.weights_file import load_whole, read_weights


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_are_found_wherever_training_scripts_put_them(tmp_path: Path, key: str | None, prefix: str) -> None:
    expected = network().state_dict()
    weights = {prefix + name: value for name, value in expected.items()}
    torch.save(weights if key is None else {"epoch": 3, key: weights}, tmp_path / "w.pth")  # noqa: TID251
    found = read_weights(tmp_path / "w.pth")
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_safetensors(tmp_path: Path) -> None:
    for name in ("w.safetensors", "W.SAFETENSORS"):
        save_file(network().state_dict(), tmp_path / name)
        assert read_weights(tmp_path / name).keys() == network().state_dict().keys()
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        read_weights(tmp_path / "w.safetensors")


def test_a_file_that_needs_pickle_is_refused_and_none_of_its_code_runs(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"weights": Harmful()}, tmp_path / "w.pth")  # noqa: TID251
    with pytest.raises(ConfigError, match=r"no file of weights that can be read safely .*save model.state_dict\(\)"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "words"), [({"epoch": 3, "lr": 0.1}, "epoch, lr"), ([1, 2], "list"), ({}, "nothing")]
)
def test_a_file_without_weights(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "w.pth")  # noqa: TID251
    with pytest.raises(ConfigError, match=f"holds no weights by name, but {words}"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(ConfigError, match="there is no file"):
        read_weights(tmp_path / "other.pth")


def test_weights_of_another_network_are_named_and_nothing_is_loaded() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    weights["2.weight"], weights["0.bias"] = torch.zeros(1), torch.zeros(7)
    del weights["1.running_mean"]
    words = (
        r"the weights in FILE are not those of NET \(missing: 1.running_mean; unexpected: 2.weight; of another "
        r"shape: 0.bias is \(7,\) there and \(4,\) here\): name the architecture"
    )
    with pytest.raises(ConfigError, match=words):
        load_whole(model, weights, source="FILE", network="NET")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_classifier_beside_and_counts_of_batches_do_not_matter() -> None:
    model = network()
    weights = {name: torch.full_like(value, 2) for name, value in model.state_dict().items() if "num_b" not in name}
    load_whole(model, {**weights, "fc.weight": torch.zeros(1)}, source="FILE", network="NET", extra_prefixes=("fc.",))
    assert float(model.state_dict()["0.weight"].min()) == 2
