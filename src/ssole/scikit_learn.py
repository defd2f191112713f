"""SSOLEFeatures: a trained backbone as a scikit-learn transformer, from images to features.

`ssole.SSOLEFeatures` imports this module when it is first asked for, because scikit-learn takes a second to import.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from torch import nn

from ssole.config import ConfigError
from ssole.data.arrays import ArraySource
from ssole.data.base import Source
from ssole.data.objects import ObjectSource
from ssole.data.sources import open_source
from ssole.errors import DataError
from ssole.evaluation.features import extract
from ssole.evaluation.models import model_and_preprocessing
from ssole.evaluation.preprocessing import Preprocessing
from ssole.runtime import Precision, resolve_device


class SSOLEFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Frozen features of images by a trained backbone, as a scikit-learn transformer.

        classifier = make_pipeline(SSOLEFeatures("runs/mine"), StandardScaler(), LogisticRegression())
        classifier.fit(paths, labels).predict(["new.jpg", "other.jpg"])

    Images are given as a list of paths (also as an array or a column of a data frame); as an array (N, H, W) or (N, H,
    W, C), uint8, uint16, or floating point in [0, 1]; as a list of arrays or Pillow images; or as a folder or any other
    data that pretraining takes, in the order of their ids. Each image gives one row: one that cannot be read is an
    error, because labels would otherwise belong to other images.

    It learns nothing from the images, so it needs no fitting. Copies and pickles hold the parameters alone and load the
    weights again, so the path must be there where they are used.

    Args:
        model: a run folder or Run, a ``backbone.safetensors``, a folder that `ssole export --to timm` (or hf) wrote, or
            anything else that :func:`ssole.evaluation.models.open_model` opens, such as ``timm:resnet18``; or a module
            that returns features (B, F) and has its preprocessing (``image_size``, ``mean``, ``std``).
        device: auto, cpu, cuda or cuda:N.
        precision: number format of the model's products: auto, float32 or bfloat16.
        batch_size: images in a forward pass.
        progress: show a bar when it takes more than two seconds.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int = 256,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.progress = progress

    def fit(self, X: Any, y: Any = None) -> SSOLEFeatures:
        """Check that the model can be loaded and that X are images; nothing is learned.

        Raises:
            ConfigError: the model cannot be loaded, the device does not exist, or a batch size below 1.
            DataError: X are no images.
        """
        if not isinstance(self.batch_size, (int, np.integer)) or self.batch_size < 1:
            raise ConfigError(f"batch_size must be an integer of at least 1, got {self.batch_size!r}")
        self._loaded()
        resolve_device(self.device)
        _source(X)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features (N, F) float32 of images.

        Raises:
            ConfigError: the model cannot be loaded, or the device does not exist.
            DataError: X are no images, or one of them cannot be read; the message names it.
            ValueError: features that are not finite.
        """
        model, preprocessing = self._loaded()
        with preprocessing.open_store(_source(X), max_unreadable=0, progress=self.progress) as store:
            features: NDArray[np.float32] = extract(
                model,
                store,
                preprocessing,
                batch_size=self.batch_size,
                device=resolve_device(self.device),
                precision=self.precision,
                progress=self.progress,
            ).numpy()
        return features

    @property
    def _n_features_out(self) -> int:
        """Number of features F, for the names that scikit-learn gives them."""
        model, preprocessing = self._loaded()
        black = np.zeros((1, preprocessing.image_size, preprocessing.image_size, len(preprocessing.mean)), np.uint8)
        return extract(model, preprocessing.open_store(ArraySource(black)), preprocessing, progress=False).shape[1]

    def _loaded(self) -> tuple[nn.Module, Preprocessing]:
        """The model and its preprocessing, loaded once for each value of the parameter."""
        kept, given = self.__dict__.get("_kept"), self.model
        if kept is None or kept[0] is not given:
            if not isinstance(given, nn.Module) and (Path(getattr(given, "path", given)) / "config.json").is_file():
                given = f"timm:local-dir:{given}"  # a folder that timm reads
            kept = self._kept = (self.model, *model_and_preprocessing(given))
        return kept[1], kept[2]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_kept"}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True
        tags.requires_fit = False
        return tags


def _source(X: Any) -> Source:
    """Source of images as :class:`SSOLEFeatures` takes them, one for each row."""
    if isinstance(X, (str, os.PathLike, Source)):
        return open_source(X)
    if isinstance(X, np.ndarray) and X.dtype.kind in "biufc":
        return ArraySource(_integers(X), name="X")
    values = np.asarray(X, dtype=object) if hasattr(X, "iloc") else X  # a column of a data frame, or one in a table
    if isinstance(values, np.ndarray):
        values = values.reshape(len(values)) if values.ndim == 2 and values.shape[1] == 1 else values
        if values.ndim != 1:
            raise DataError(f"images are given as one column of paths; got an array of shape {values.shape}")
        values = values.tolist()
    if isinstance(values, Collection) and not hasattr(values, "__getitem__"):
        values = list(values)
    source = ObjectSource(values, name="X")
    if not len(source):
        raise DataError("there are no images: X is empty")
    return source


def _integers(X: NDArray[Any]) -> NDArray[Any]:
    """Pixels in [0, 1] as uint8; integers as they are."""
    if X.dtype.kind != "f":
        return X
    if not np.isfinite(X).all():
        raise DataError(f"X holds NaN or infinity in {int((~np.isfinite(X)).sum())} of {X.size} pixels")
    if X.size and (X.min() < 0 or X.max() > 1):
        raise DataError(
            f"floating-point images have values in [0, 1]; X has {X.min():.4g} to {X.max():.4g}: divide it by its full "
            "range, or give uint8"
        )
    pixels: NDArray[np.uint8] = np.rint(X * 255).astype(np.uint8)
    return pixels
