"""Settings of the losses: one frozen dataclass a method, chosen by `loss.name`.

Fields are arguments of the classes in :mod:`ssole.losses`, which explain them. `projector` is the published one of each
method; the model takes it where `model.projector_*` are left open. `search` holds the range of each setting that
`ssole compare` searches, on a logarithmic scale. Sources are in docs/losses.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeAlias, get_args

from ssole.errors import check, check_non_negative, check_positive

SearchRanges: TypeAlias = dict[str, tuple[float, float]]
"""Lowest and highest value of each setting, by name."""


class Projector(NamedTuple):
    """Shape of a projector, an MLP with ReLU between its layers."""

    layers: int
    """Number of linear layers; 0 for no projector."""
    hidden: int
    """Width of the hidden layers."""
    dim: int
    """Embedding dimension D."""
    norm: Literal["none", "batch", "layer"]
    """Normalisation after each hidden layer."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """Base class of the settings of a loss."""

    projector: ClassVar[Projector] = Projector(3, 4096, 4096, "none")
    search: ClassVar[SearchRanges] = {}
    name: str
    """Name of the loss, which decides which other settings there are."""

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if name.endswith("_weight"):
                check_non_negative(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SSOLEConfig(_Settings):
    """SSOLE loss; `ssole.SSOLELoss` explains each field."""

    search: ClassVar[SearchRanges] = {"high_rank_weight": (0.2, 16.0), "temperature": (0.05, 1.0)}
    name: Literal["ssole"] = "ssole"
    """Loss: ssole, ole, simclr, barlow-twins, vicreg, frossl, mmcr, w-mse, lejepa or supervised. Choose it first."""
    high_rank_weight: float = 0.6
    """Weight of the high-rank term (spreads images apart); the low-rank term (brings views together) has weight 1."""
    gamma: float = 0.5
    """Share of the first of the high-rank term's two parts, in [0, 1]."""
    temperature: float | None = None
    """Temperature of the high-rank term, an extension: small values spread close images first. None: as published."""
    form: Literal["cosine", "raw"] = "cosine"
    """Form of the loss: terms on the scale of cosines, or the plain difference of nuclear norms."""
    low_rank_features: Literal["deviations", "raw"] = "deviations"
    """Ablation: `raw` uses the views themselves instead of their deviations from their mean."""
    low_rank_norm: Literal["nuclear", "frobenius"] = "nuclear"
    """Norm of an image's deviations: as published, or `frobenius`, an extension: 1 - the mean cosine of its views."""
    groupings: int = 1
    """Ways to make batches of one view of each image for the high-rank term, an extension for small batches."""
    detach_mean: bool = False
    """Ablation: no gradient through the mean over views."""
    coupled: bool = False
    """Ablation: one high-rank term over all views of all images, as in OLE."""
    gradient: Literal["exact", "reference"] = "exact"
    """Ablation: `reference` repeats the published code's error in the gradient of the low-rank term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.gamma <= 1, f"gamma must be in [0, 1], got {self.gamma}")
        positive = self.temperature is None or 0 < self.temperature < math.inf
        check(positive, f"temperature must be above 0 and finite, or null, got {self.temperature}")
        check(self.groupings >= 1, f"groupings must be at least 1, got {self.groupings}")


@dataclass(frozen=True, kw_only=True)
class OLEConfig(_Settings):
    """OLE loss without labels, each image its own class; the failing ancestor of SSOLE."""

    search: ClassVar[SearchRanges] = {"margin": (0.1, 3.0)}
    name: Literal["ole"] = "ole"
    margin: float = 1.0
    """Norm below which a class is not pushed down further."""

    def __post_init__(self) -> None:
        check_non_negative("margin", self.margin)


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(_Settings):
    """NT-Xent loss of SimCLR (Chen et al. 2020)."""

    projector: ClassVar[Projector] = Projector(2, 2048, 128, "batch")
    search: ClassVar[SearchRanges] = {"temperature": (0.05, 1.0)}
    name: Literal["simclr"] = "simclr"
    temperature: float = 0.1
    """Temperature tau; published: 0.1 on ImageNet with large batches, 0.5 on CIFAR-10."""

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)


@dataclass(frozen=True, kw_only=True)
class BarlowTwinsConfig(_Settings):
    """Barlow Twins loss (Zbontar et al. 2021)."""

    projector: ClassVar[Projector] = Projector(3, 8192, 8192, "batch")
    search: ClassVar[SearchRanges] = {"redundancy_weight": (1e-3, 0.1)}
    name: Literal["barlow-twins"] = "barlow-twins"
    redundancy_weight: float = 5e-3
    """Weight of the correlations between different dimensions."""


@dataclass(frozen=True, kw_only=True)
class VICRegConfig(_Settings):
    """VICReg loss (Bardes et al. 2022)."""

    projector: ClassVar[Projector] = Projector(3, 8192, 8192, "batch")
    search: ClassVar[SearchRanges] = {"variance_weight": (5.0, 100.0), "covariance_weight": (0.2, 25.0)}
    name: Literal["vicreg"] = "vicreg"
    invariance_weight: float = 25.0
    """Weight of the distance between views."""
    variance_weight: float = 25.0
    """Weight of the hinge on each dimension's standard deviation."""
    covariance_weight: float = 1.0
    """Weight of the covariances between different dimensions."""


@dataclass(frozen=True, kw_only=True)
class FroSSLConfig(_Settings):
    """FroSSL loss (Skean et al. 2024)."""

    projector: ClassVar[Projector] = Projector(3, 2048, 1024, "batch")
    search: ClassVar[SearchRanges] = {"invariance_weight": (0.3, 10.0)}
    name: Literal["frossl"] = "frossl"
    invariance_weight: float = 1.0
    """Weight of the distance between views and their mean."""


@dataclass(frozen=True, kw_only=True)
class MMCRConfig(_Settings):
    """MMCR loss (Yerxa et al. 2023)."""

    projector: ClassVar[Projector] = Projector(3, 8192, 512, "batch")
    search: ClassVar[SearchRanges] = {"local_weight": (0.01, 1.0)}
    name: Literal["mmcr"] = "mmcr"
    local_weight: float = 0.0
    """Weight of the nuclear norm of each image's views."""


@dataclass(frozen=True, kw_only=True)
class WMSEConfig(_Settings):
    """W-MSE loss (Ermolov et al. 2021)."""

    projector: ClassVar[Projector] = Projector(2, 1024, 64, "batch")
    search: ClassVar[SearchRanges] = {"shrinkage": (0.003, 0.3)}
    name: Literal["w-mse"] = "w-mse"
    subset_size: int | None = None
    """Images whitened together. None: twice the embedding dimension."""
    iterations: int = 1
    """Number of random splits into sub-batches."""
    shrinkage: float = 0.0
    """Share of the identity in the covariance, in [0, 1)."""

    def __post_init__(self) -> None:
        large = self.subset_size is None or self.subset_size >= 2
        check(large, f"subset_size must be at least 2, or null, got {self.subset_size}")
        check(self.iterations >= 1, f"iterations must be at least 1, got {self.iterations}")
        check(0 <= self.shrinkage < 1, f"shrinkage must be in [0, 1), got {self.shrinkage}")


@dataclass(frozen=True, kw_only=True)
class LeJEPAConfig(_Settings):
    """LeJEPA loss, with SIGReg (Balestriero and LeCun 2025)."""

    projector: ClassVar[Projector] = Projector(3, 2048, 64, "batch")
    search: ClassVar[SearchRanges] = {"sigreg_weight": (0.01, 0.3)}
    name: Literal["lejepa"] = "lejepa"
    sigreg_weight: float = 0.05
    """Share of SIGReg against the distance between views, in [0, 1]."""
    slices: int = 1024
    """Number of random directions."""
    knots: int = 17
    """Points at which the characteristic functions are compared."""
    domain: float = 5.0
    """Largest of these points, which are evenly spaced from -domain."""

    def __post_init__(self) -> None:
        check(0 <= self.sigreg_weight <= 1, f"sigreg_weight must be in [0, 1], got {self.sigreg_weight}")
        check(self.slices >= 1, f"slices must be at least 1, got {self.slices}")
        check(self.knots >= 2, f"knots must be at least 2, got {self.knots}")
        check_positive("domain", self.domain)


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig(_Settings):
    """Cross-entropy with the labels, on the same views: the upper bound of the other methods."""

    projector: ClassVar[Projector] = Projector(0, 1, 1, "none")  # none, so widths have no effect
    name: Literal["supervised"] = "supervised"


@dataclass(frozen=True, kw_only=True)
class CustomConfig(_Settings):
    """Record of a loss that was given as a module, `ssole.pretrain(..., loss=module)`. A recipe cannot name code."""

    name: Literal["custom"] = "custom"
    module: str = ""
    """Name of the module's class, for the record."""


LossConfig = (
    SSOLEConfig
    | OLEConfig
    | SimCLRConfig
    | BarlowTwinsConfig
    | VICRegConfig
    | FroSSLConfig
    | MMCRConfig
    | WMSEConfig
    | LeJEPAConfig
    | SupervisedConfig
    | CustomConfig
)
"""Settings of any loss."""

LOSS_CONFIGS: dict[str, type[LossConfig]] = {cls.name: cls for cls in get_args(LossConfig)}
"""Config classes by the name that a recipe gives the loss."""
