"""`ssole.compare`: what it trains, how it goes on after being stopped, what it refuses; and experiment files."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import METHODS, compare

import ssole
import tiny
from ssole.comparison import runner
from ssole.comparison.compare import read_experiment, resume_comparison
from ssole.comparison.request import make_arms
from ssole.comparison.trial import Trial, read_trial
from ssole.config import ConfigError, ViewRecipe, apply_overrides, load
from ssole.config.budget import Budget
from ssole.data.arrays import ArraySource
from ssole.errors import DataError
from ssole.losses import SimCLRLoss
from ssole.training.run import Run
from ssole.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("in_a_folder")


def test_runs_are_those_of_pretrain() -> None:
    compare()
    alone = ssole.pretrain("photos", recipe="tiny.yaml", out="alone", steps=6, seed=1, progress=False)
    assert alone.backbone_path.read_bytes() == Path("out/ssole/seed-1/backbone.safetensors").read_bytes()


@pytest.mark.slow
def test_without_a_recipe_the_settings_suit_the_images() -> None:
    resized = {"crops": [{"count": 2, "size": 8}]}
    result = compare(recipe=None, budget="1steps", seeds=1, out=None, batch_size=4, augment=resized)
    assert result.path.name == "compare-small-images"
    config = Run(result.path / "ssole/seed-0").config
    assert config.reasons == ()
    assert config.optim == load("small-images").optim


def test_mean_and_std_that_a_recipe_leaves_open_are_measured() -> None:
    tiny.recipe(Path(), augment={"crops": [{"count": 2, "size": 8}], "mean": None, "std": None})
    compare(seeds=1, budget="2steps")
    found = Run(Path("out/ssole/seed-0")).config.augment
    assert found.mean is not None
    assert found.mean != ViewRecipe().mean


@pytest.mark.slow
def test_a_sample_of_the_images_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    result = compare(images=30, budget="18steps", seeds=1, search=2)
    assert result.data["train"] == "train (sample), 30 images"
    assert result.data["test"].endswith("40 images")
    ids = json.loads(Path("out/ssole/seed-0/images.json").read_text())
    whole = compare(out="whole", seeds=1)
    assert ids != json.loads((whole.path / "ssole/seed-0/images.json").read_text())
    monkeypatch.setattr(runner, "run_trial", lambda folder, *_, **__: read_trial(folder))
    again = resume_comparison("out", progress=False)  # the folder knows the number
    assert again.arms["ssole"].runs == result.arms["ssole"].runs
    with pytest.raises(ConfigError, match="images: 30 before, 31 now"):
        compare(images=31, budget="18steps", seeds=1, search=2)


@pytest.mark.slow
def test_it_goes_on_after_being_stopped_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(out="whole", search=2)
    started: list[str] = []
    train = runner.run_trial

    def stopping(folder: Path, *arguments: Any, **given: Any) -> Trial:
        started.append(folder.name)
        if len(started) in (2, 6):
            raise KeyboardInterrupt
        return train(folder, *arguments, **given)

    monkeypatch.setattr(runner, "run_trial", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted, match="go on with: ssole compare --resume out"):
            compare(search=2)
    monkeypatch.setattr(runner, "run_trial", train)
    again = resume_comparison("out", progress=False)
    for name in METHODS:
        assert again.arms[name].chosen == whole.arms[name].chosen
        assert [run.scores for run in again.arms[name].runs] == [run.scores for run in whole.arms[name].runs]
    made = {path: path.stat().st_mtime_ns for path in Path("out").rglob("trial.json")}
    resume_comparison("out", progress=False)  # a finished one is only read
    assert made == {path: path.stat().st_mtime_ns for path in Path("out").rglob("trial.json")}


def test_a_url_is_opened_with_the_query_that_the_folder_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def watched(data: Any, test: Any, **_: Any) -> Any:
        opened.extend([data, test])
        raise DataError("stop here")

    monkeypatch.setattr("ssole.comparison.compare.open_images", watched)
    urls = ["https://host/train.parquet?signature=abc", "https://host/test.parquet?signature=def"]
    with pytest.raises(DataError, match="stop here"):
        compare(data=urls[0], test=urls[1])
    assert opened == urls


def test_arrays_and_published_projectors() -> None:
    labels = np.arange(60) % 2
    data, test = (ArraySource(tiny.images(60), labels, name=name) for name in ("train", "test"))
    arms = {"ssole": {"model.projector_layers": 1, "model.projector_dim": 32}, "simclr": {"loss.name": "simclr"}}
    result = compare(arms, data, test=test, projector="published", batch_size=20, seeds=1, **{"loss.name": "ssole"})
    assert result.best is not None
    config = Run(Path("out/simclr/seed-0")).config
    assert config.projector == config.loss.projector
    assert Run(Path("out/ssole/seed-0")).config.projector.dim == 32
    with pytest.raises(ConfigError, match=r"images in memory: call ssole\.compare again"):
        resume_comparison("out")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"methods": ["ssole", "simcrl"]}, ConfigError, "no loss 'simcrl'. Did you mean 'simclr'?"),
        ({"methods": ["ssole"]}, ConfigError, "two different methods or more, got ssole"),
        ({"methods": ["ssole", "ssole"]}, ConfigError, "two different methods or more, got ssole, ssole"),
        ({"methods": {"a/b": {}, "c": {}}}, ConfigError, "the name of an arm is a folder's too: .* got 'a/b'"),
        ({"methods": {"..": {}, "c": {}}}, ConfigError, r"got '\.\.'"),
        ({"budget": "soon"}, ConfigError, "a budget is a time or a number, .* got 'soon'"),
        ({"budget": "0steps"}, ConfigError, "got '0steps'"),
        ({"seeds": 0}, ConfigError, "at least 1 seed, got 0"),
        ({"images": 1}, ConfigError, "at least 2 training images, got 1"),
        ({"search": 1}, ConfigError, "2 trials or more, or 0 for none, got 1"),
        ({"data": "photos/nowhere"}, DataError, "nowhere"),
        ({"data": tiny.images()}, DataError, "methods are scored by labels, and array has none"),
        ({"batchsize": 3}, ConfigError, "Did you mean 'batch_size'?"),
        ({"batch_size": 81}, DataError, "hold 80"),
        ({"model.backbone": "resnet_18"}, ConfigError, "no model 'resnet_18'"),
        ({"seed": 5}, ConfigError, "seed of the settings would have no effect: runs have the seeds 0, 1"),
        ({"eval_data": "photos/test"}, ConfigError, "eval_data of the settings would have no effect"),
        ({"init": "nowhere"}, ConfigError, r"init: there is no .*nowhere"),
        ({"test": "photos/train/cat"}, DataError, "has none"),
    ],
)
def test_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        compare(**given)
    assert not list(Path().glob("out/*/*"))


def test_too_few_images_for_knn_are_met_before_anything_is_trained() -> None:
    tiny.write_folder(Path("few"), 22)  # of which 4 are held out
    with pytest.raises(DataError, match=r"ranked by kNN with k = 20, and few \(train\) has 18 images with labels"):
        compare(data="few", batch_size=8, seeds=1)
    assert not list(Path().glob("out/*/*"))


def test_a_start_that_failed_is_not_in_the_way() -> None:
    with pytest.raises(DataError, match="a batch of 99 images was asked for"):
        compare(batch_size=99, seeds=1)
    assert compare(seeds=1, budget="1steps").best is not None


def test_the_length_of_a_recipe_in_epochs_is_that_of_the_images_trained_on() -> None:
    tiny.write_folder(Path("one"), 50)  # 10 of them are held out
    with pytest.raises(DataError, match="a batch of 41 images was asked for and the data hold 40"):
        compare(data="one", budget=None, batch_size=41, epochs=2, steps=None)
    result = compare(["ssole", "simclr"], data="one", budget=None, batch_size=8, epochs=1, steps=None, seeds=1)
    assert [arm.steps for arm in result.arms.values()] == [5, 5]


def test_another_comparison_in_the_folder_is_refused() -> None:
    compare(seeds=1)
    with pytest.raises(
        ConfigError, match=r"another comparison.*seeds: 1 before, 2 now; budget.amount: 6.0 before, 7.0"
    ):
        compare(seeds=2, budget="7steps")
    with pytest.raises(ConfigError, match=r"arms.simclr.config.optim.lr: 0.1 before, 0.2 now"):
        compare(seeds=1, **{"optim.lr": 0.2})
    with pytest.raises(ConfigError, match="photos is not empty"):
        compare(out="photos")
    with pytest.raises(ConfigError, match="photos is not the folder of a comparison"):
        resume_comparison("photos")


def test_two_processes_on_one_folder_are_refused() -> None:
    from filelock import FileLock

    compare(seeds=1)
    with FileLock("out/.lock"), pytest.raises(ConfigError, match="another process"):
        compare(seeds=1)


def test_a_class_that_training_lacks_is_met_before_anything_is_trained() -> None:
    Path("photos/train/dog").rename("photos/train/cow")
    with pytest.raises(DataError, match=r"have classes that the training images .* lack: 'dog'"):
        compare(search=2)
    assert not Path("out").exists()


def test_what_python_alone_knows_is_not_resumed_by_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> Trial:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_trial", stopped)
    with pytest.raises(Interrupted, match=r"go on with: the same call of ssole\.compare with out='out'"):
        compare({"ssole": {"loss.name": "ssole"}, "mine": SimCLRLoss()})


def test_integers_beyond_the_named_classes_are_quoted() -> None:
    images = tiny.images(40)
    named = ArraySource(images, np.arange(40) % 2, classes=["cat", "dog"], name="named")
    numbered = ArraySource(images[:20], np.arange(20) % 2 * 7, name="numbered")
    with pytest.raises(
        DataError, match=r"classes that the training images \(named\) lack: 7\. Training has 'cat', 'dog'"
    ):
        compare(data=named, test=numbered)


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_are_complete(path: Path) -> None:
    values = read_experiment(path)
    for_all = {name: value for name, value in values.items() if name not in inspect.signature(ssole.compare).parameters}
    base = apply_overrides(load(values["recipe"]), for_all)
    arms = make_arms(values["methods"], base, projector="recipe")
    assert len({str(arm.config) for arm in arms}) == len(arms)  # no two arms train the same
    shared = [arm for arm in arms if arm.config.projector.layers and "model.projector_hidden" not in arm.pinned]
    assert all(arm.config.projector.hidden == base.projector.hidden for arm in shared)
    if "budget" in values:
        assert Budget.parse(values["budget"]).amount > 1


def test_settings_for_all_arms_stand_beside_the_options(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("set: {batch_size: 8}\nseeds: 2\nmethods: [ssole, simclr]\n")
    assert read_experiment(tmp_path / "a.yaml") == {"batch_size": 8, "seeds": 2, "methods": ["ssole", "simclr"]}


def test_a_setting_whose_name_is_a_number_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("set: {1: 2}\n")
    with pytest.raises(ConfigError, match="unknown setting '1'"):
        load("digits-m", **read_experiment(tmp_path / "a.yaml"))


def test_a_recipe_may_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small.yaml").write_text("steps: 3\n")
    (tmp_path / "a.yaml").write_text("recipe: mine/small.yaml\nmethods: [ssole, simclr]\n")
    assert load(read_experiment(tmp_path / "a.yaml")["recipe"]).steps == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: [ssole]", r"a\.yaml: unknown key 'method'\. Did you mean 'methods'\?"),
        ("set: 3", "set must be a mapping of settings, got 3"),
        ("[ssole]", "must hold a mapping of settings"),
        ("methods: {a: {loss.gamma: 0.5}, a: {loss.gamma: 1.0}}", r"a\.yaml .* line 1 has 'a' a second time"),
        ("set: {seeds: 5}", "seeds is no setting of the arms but an option"),
    ],
)
def test_a_wrong_experiment_is_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_experiment(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: ssole", "methods are a list of losses, or arms by name with their settings, got 'ssole'"),
        ("methods: 5", "got 5"),
        ("methods: [1, 2]", "methods are named by texts, got 1"),
        ("methods: {a: , b: }", "the arm 'a' needs settings, such as loss.name: simclr, or a loss module; got None"),
        ("seeds: two", "seeds must be a whole number, got 'two'"),
        ("budget: 600", "a budget is a time or a number, .*: got 600"),
        ("recipe: 7", "a recipe is a name, or the path of a YAML file, got 7"),
        ("projector: publshed", "got 'publshed'"),
    ],
)
def test_values_of_a_wrong_kind(tmp_path: Path, text: str, words: str) -> None:
    whole = "recipe: digits-m\nmethods: [ssole, simclr]\n"
    key = text.partition(":")[0]
    lines = [line for line in whole.splitlines() if not line.startswith(key)]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, text]))
    with pytest.raises(ConfigError, match=words):
        ssole.compare(**read_experiment(tmp_path / "a.yaml"), out=tmp_path / "out", progress=False)
