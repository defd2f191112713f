"""SSOLEFeatures: features against `ssole.embed`, every form of images and models, scikit-learn's own checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

import ssole
import tiny
from ssole import SSOLEFeatures
from ssole.config import ConfigError
from ssole.training.run import Run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_folder(tmp_path_factory.mktemp("transformer") / "photos", 20)


@pytest.fixture(scope="module")
def run(photos: Path) -> Run:
    return tiny.start(photos.parent / "run", data=str(photos), steps=2)


@pytest.fixture
def features(run: Run) -> SSOLEFeatures:
    torch.set_num_threads(1)
    return SSOLEFeatures(run.path, device="cpu", precision="float32")


@pytest.fixture
def paths(photos: Path) -> list[str]:
    return [str(path) for path in sorted(photos.rglob("*.png"))]


def pixels(paths: list[str]) -> Any:
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


class Column(list[str]):
    """Column of a data frame, as pandas has it."""

    iloc = None


def test_features_are_those_of_embed(features: SSOLEFeatures, run: Run, photos: Path, paths: list[str]) -> None:
    expected = ssole.embed(run, photos, device="cpu", precision="float32", progress=False).array
    found = features.fit_transform(paths)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    array = pixels(paths)
    column = np.array(paths)
    forms: list[Any] = [
        photos, str(photos), [Path(path) for path in paths], column, column.astype(object), column[:, None],
        Column(paths), dict.fromkeys(paths, 0).keys(), array, (array / 255).astype(np.float32), array / 255.0,
        list(array),
    ]  # fmt: skip
    for form in forms:
        np.testing.assert_allclose(features.transform(form), expected, atol=1e-5)
    np.testing.assert_allclose(features.transform(paths[:1]), expected[:1], atol=1e-5)


def test_every_form_of_a_model(run: Run, paths: list[str]) -> None:
    expected = SSOLEFeatures(run, precision="float32").transform(paths)
    exported = ssole.export(run, to="timm")
    models = [run.path, str(run.path), run.backbone_path, ssole.load(run), exported, f"timm:local-dir:{exported}"]
    for model in models:
        np.testing.assert_allclose(SSOLEFeatures(model, precision="float32").transform(paths), expected, atol=1e-4)


def test_a_pipeline_on_paths_and_on_arrays(features: SSOLEFeatures, paths: list[str]) -> None:
    labels = [Path(path).parent.name for path in paths]
    pipeline = make_pipeline(features, LogisticRegression(max_iter=1000))
    on_paths = pipeline.fit(paths, labels).predict_proba(paths)
    assert set(pipeline.predict(paths[:3])) <= {"cat", "dog"}
    np.testing.assert_allclose(pipeline.fit(pixels(paths), labels).predict_proba(paths), on_paths, atol=1e-3)
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 10.0]}, cv=2).fit(np.array(paths), labels)
    assert search.best_params_["logisticregression__C"] in (0.1, 10.0)


def test_names_of_the_features(features: SSOLEFeatures) -> None:
    names = features.get_feature_names_out()
    assert (names[0], names[-1], len(names)) == ("ssolefeatures0", "ssolefeatures15", 16)


def test_copies_and_pickles_hold_the_parameters_alone(
    features: SSOLEFeatures, paths: list[str], tmp_path: Path
) -> None:
    expected = features.transform(paths)
    joblib.dump(features, tmp_path / "features.joblib")
    assert (tmp_path / "features.joblib").stat().st_size < 1000
    for other in (clone(features), joblib.load(tmp_path / "features.joblib")):
        assert other.get_params() == features.get_params()
        np.testing.assert_array_equal(other.transform(paths), expected)


def test_another_model_is_loaded_when_the_parameter_changes(
    features: SSOLEFeatures, run: Run, paths: list[str]
) -> None:
    before = features.transform(paths)
    features.set_params(model=ssole.untrained(run))
    assert np.abs(features.transform(paths) - before).max() > 1e-3


# The other checks fit 2-d arrays of numbers, which are no images; with the tag two_d_array = False scikit-learn leaves
# them out itself. What they hold is tested on images above: the type of the result, clones, pickles, errors.
@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_mixin_order,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_checks_of_scikit_learn(features: SSOLEFeatures, check: Any) -> None:
    check("SSOLEFeatures", features)


@pytest.mark.filterwarnings("ignore:Can't test estimator")
def test_check_estimator(features: SSOLEFeatures) -> None:
    estimator_checks.check_estimator(features)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "X is empty"),
        (np.zeros((0, 4, 4, 3), dtype=np.uint8), r"got uint8 \(0, 4, 4, 3\)"),
        (np.zeros((5, 7)), r"shape \(N, H, W\) or \(N, H, W, C\); got uint8 \(5, 7\)"),
        (np.zeros((5, 3, 8, 8), dtype=np.uint8), "Move the channels last"),
        (np.full((2, 8, 8, 3), 255.0), r"values in \[0, 1\]; X has 255 to 255"),
        (np.full((2, 8, 8, 3), np.nan), "NaN or infinity in 384 of 384 pixels"),
        (np.array([["a", "b"]]), r"one column of paths; got an array of shape \(1, 2\)"),
        (["nowhere.png"], r"nowhere\.png"),
        (3, "got int"),
        ((name for name in ["a.png"]), "got generator"),  # `fit` would use it up
        ("nowhere", "There is no dataset, folder or file named 'nowhere'"),
    ],
)
def test_what_is_no_image_is_named(features: SSOLEFeatures, images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features.transform(images)


def test_one_unreadable_image_is_an_error(features: SSOLEFeatures, paths: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"bad\.png"):
        features.transform([*paths, str(tmp_path / "bad.png")])


def test_models_that_cannot_be_loaded(run: Run, photos: Path, tmp_path: Path, paths: list[str]) -> None:
    with pytest.raises(ValueError, match="there is no nowhere"):
        SSOLEFeatures("nowhere").fit(paths)
    with pytest.raises(ValueError, match="is not a run folder"):
        SSOLEFeatures(photos).fit(paths)
    with pytest.raises(ValueError, match="the preprocessing of Identity is unknown"):
        SSOLEFeatures(torch.nn.Identity()).fit(paths)
    with pytest.raises(ValueError, match="device must be"):
        SSOLEFeatures(run, device="gpu").fit(paths)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="its pretrained weights cannot be had here"):
        SSOLEFeatures(tmp_path).fit(paths)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_a_batch_size_that_is_none_is_quoted(run: Run, paths: list[str], batch_size: Any) -> None:
    with pytest.raises(ConfigError, match=f"batch_size must be an integer of at least 1, got {batch_size!r}"):
        SSOLEFeatures(run, batch_size=batch_size).fit(paths)
