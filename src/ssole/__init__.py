"""Self-supervised orthogonal low-rank embedding: good image features from unlabeled images, on modest hardware."""

from __future__ import annotations

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

from ssole.api import pretrain, resume
from ssole.comparison.compare import compare
from ssole.comparison.result import Comparison
from ssole.comparison.tune import tune
from ssole.config import ConfigError, Crop, PretrainConfig, ViewRecipe
from ssole.errors import DataError
from ssole.evaluation.embed import Embeddings, embed
from ssole.evaluation.evaluate import evaluate
from ssole.export.export import export
from ssole.extending import extend
from ssole.losses import OLELoss, SSOLELoss, nuclear_norm
from ssole.models.load import load, untrained
from ssole.report.report import report
from ssole.search.index import Index
from ssole.search.matches import Matches
from ssole.search.search import build_index as index
from ssole.search.search import search
from ssole.training.run import Run
from ssole.views import make_views

if TYPE_CHECKING:
    from ssole.scikit_learn import SSOLEFeatures

__all__ = [
    "Comparison",
    "ConfigError",
    "Crop",
    "DataError",
    "Embeddings",
    "Index",
    "Matches",
    "OLELoss",
    "PretrainConfig",
    "Run",
    "SSOLEFeatures",
    "SSOLELoss",
    "ViewRecipe",
    "compare",
    "embed",
    "evaluate",
    "export",
    "extend",
    "index",
    "load",
    "make_views",
    "nuclear_norm",
    "pretrain",
    "report",
    "resume",
    "search",
    "tune",
    "untrained",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """`SSOLEFeatures`, imported when it is asked for: scikit-learn would make `import ssole` slow."""
        if name != "SSOLEFeatures":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from ssole.scikit_learn import SSOLEFeatures

        return SSOLEFeatures

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
