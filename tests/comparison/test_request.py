"""Arms, and the file that a comparison's folder remembers its request by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

import tiny
from ssole.comparison.request import Request, load_request, make_arms, save_request
from ssole.config import ConfigError
from ssole.config.budget import Budget


def request() -> Request:
    arms = make_arms(["ssole", "vicreg"], tiny.config(), projector="recipe")
    budget = Budget.parse("9steps")
    return Request(arms=arms, data=("a", "b"), test=None, budget=budget, seeds=2, search=4)


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    assert load_request(tmp_path) == request()
    save_request(tmp_path, request())  # the same again


def test_a_folder_whose_comparison_has_not_begun_is_free(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    save_request(tmp_path, dataclasses.replace(request(), seeds=5))  # the first had a setting that failed
    assert load_request(tmp_path).seeds == 5
    (tmp_path / ".plan.json.0123abcd.ssole-tmp").touch()  # of a process that was killed
    save_request(tmp_path, request())
    (tmp_path / "plan.json").touch()
    with pytest.raises(ConfigError, match="not empty, and nothing is overwritten"):
        save_request(tmp_path, request(), what="tuning")
    (tmp_path / "plan.json").rename(tmp_path / "photo.png")
    with pytest.raises(ConfigError, match="not empty, and nothing is overwritten"):
        save_request(tmp_path, request())


def test_a_request_of_an_older_version_goes_on(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    (tmp_path / "plan.json").touch()  # it has begun
    path = tmp_path / "comparison.yaml"
    saved = yaml.safe_load(path.read_text())
    for arm in saved["arms"].values():
        del arm["config"]["augment"]["early_share"]  # a setting that it did not have
    path.write_text(yaml.safe_dump(saved))
    save_request(tmp_path, request())
    assert load_request(tmp_path) == request()


def test_all_differences_are_named(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    (tmp_path / "plan.json").touch()  # it has begun
    other = make_arms(["ssole", "simclr"], tiny.config(), projector="recipe")
    with pytest.raises(ConfigError, match=r"arms.vicreg: settings before, nothing now; arms.simclr: nothing before"):
        save_request(tmp_path, dataclasses.replace(request(), arms=other))


@pytest.mark.parametrize("text", ["a: 1", "arms: 3", "arms: {}"])
def test_a_damaged_file_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "comparison.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"comparison\.yaml is damaged .*another folder"):
        load_request(tmp_path)
