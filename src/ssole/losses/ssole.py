"""The SSOLE loss, which aligns the views of each image and spreads images over all directions.

Shape suffixes: B images, V views, D embedding dimensions, C = V - 1 contrasts.
"""

from __future__ import annotations

import math
import warnings
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssole import distributed
from ssole.losses.base import EmbeddingLoss, check_count, check_embeddings, check_number, to_unit_length
from ssole.losses.kernels import helmert, where_float64_is
from ssole.losses.nuclear import all_modes_norm, image_and_view_norms, nuclear_norm, unit_norms
from ssole.losses.roots import Root, frobenius_root, inverse_root, kernel_root


class SSOLETerms(NamedTuple):
    """Terms of the SSOLE loss: scalar tensors, differentiable. Extreme values below are those of the cosine form."""

    total: Tensor
    """Loss: low_rank + high_rank_weight * high_rank."""
    low_rank: Tensor
    """Misalignment of an image's views: 0 when they are equal, 1 when orthogonal."""
    high_rank: Tensor
    """Collapse of the batch: 0 for orthonormal embeddings, 1 when all are equal."""
    mean_low_nuclear: Tensor
    """Mean over images of the norm n_i of the low-rank features."""
    mean_high_nuclear: Tensor
    """Mean over views (or mixed batches) of the nuclear norm of the batch of embeddings."""


class SSOLELoss(EmbeddingLoss[SSOLETerms]):
    r"""Self-supervised orthogonal low-rank embedding loss, in float64 inside and with exact gradients.

    With unit rows, Z_i the (V, D) views of image i, Z^(v) the (B, D) batch in view v, and ||.||_* the nuclear norm:

        n_i = ||Z_i - mean over views||_*         low_rank  = mean_i (n_i / (V - 1))^2
        r_v = ||Z^(v)||_*                         high_rank = mean_v [gamma c1(r_v) + (1 - gamma) c2(r_v)]
        c1(r) = (B^2 / r^2 - 1) / (B - 1)
        c2(r) = (B cos^2(asin(r / B) - asin(1 / sqrt(B))) - 1) / (B - 1)
        total = low_rank + high_rank_weight * high_rank

    With a `temperature` t, an extension of this project, r_v is the nuclear norm in the feature space of a kernel:

        r_v = tr(K^(1/2)),     K_ij = k(cosine of z_i and z_j in view v),     k(c) = (exp(c / t) - 1) / (exp(1 / t) - 1)

    Both ends stay: r = B for orthogonal images and sqrt(B) for equal ones. A small t weighs images that are close more
    than those far apart, as the temperature of SimCLR does, and r is no longer bounded by the dimension. For
    t to infinity k(c) = c, which is the published loss.

    With `low_rank_norm="frobenius"`, another extension, n_i is the Frobenius norm, and low_rank = mean_i n_i^2/(V - 1)
    is 1 minus the mean cosine of two views of an image. Its pull along each direction of deviation is in proportion to
    the deviation, where that of the nuclear norm is equal along all. For V = 2 both are the same.

    With `groupings` G above 1, a third one for small batches, the high-rank term is the mean over G V batches, each of
    one view of every image (:func:`mixed_batches`). Over random views its expected value is that of the published term.
    It varies less, since it compares images across views as well.

    Views at one common cosine c give low_rank = 1 - c. The two terms are decoupled: low rank within an image only, high
    rank within a view only. Source: Huang, Qiu and Sapiro, "SSOLE" (ICLR 2025), after OLE (Lezama et al.
    2018).

    In a process group B is the global batch, as for every :class:`~ssole.losses.base.EmbeddingLoss`.

    Except for `normalize` and `check_input`, the arguments are the fields of `ssole.config.SSOLEConfig`.

    Args:
        high_rank_weight: weight of the high-rank term, finite and at least 0.
        gamma: share of c1 against c2, in [0, 1].
        normalize: whether to scale every embedding to unit length first, as the formulas assume.
        temperature: t above, positive; None for the published loss.
        form: "cosine" as above, or "raw": mean_i n_i - high_rank_weight * mean_v r_v (`gamma` then has no effect).
        low_rank_features: "deviations" as above, or "raw" for n_i = ||Z_i||_*, which is the same for (z, z) and
            (z, -z). Its cosine form is (n_i^2 - V) / (V^2 - V): 0 for equal views, 1 for orthogonal ones.
        low_rank_norm: "nuclear" as published, or "frobenius" as above, which needs deviations.
        detach_mean: whether to treat the mean over views as a constant. The exact gradient of n_i is orthogonal to the
            mean, so this changes nothing; `gradient="reference"` implies it.
        groupings: G above, at least 1; 1 for the published loss. The high-rank term takes G times as long.
        coupled: whether to take the high-rank term once over all B V rows, as OLE does, instead of view by view.
        gradient: "exact", or "reference", AN ABLATION ONLY. It reproduces a defect of the published code, which
            detaches the mean over views and keeps every mode of an SVD, also the deviations' null mode. The vectors of
            that mode are arbitrary and add a random unit rank-one matrix to the gradient of each n_i (an error of 100 %
            at V = 2, of 1 / sqrt(3) at V = 4).
        check_input: whether to look for NaN, infinity and zero vectors. An accelerator must wait for this check. False
            keeps a training step free of synchronization: check the loss value later instead (on a CPU, NaN ends in a
            LinAlgError). torch.compile skips it.
    """

    def __init__(
        self,
        high_rank_weight: float = 0.6,
        gamma: float = 0.5,
        normalize: bool = True,
        *,
        temperature: float | None = None,
        form: Literal["cosine", "raw"] = "cosine",
        low_rank_features: Literal["deviations", "raw"] = "deviations",
        low_rank_norm: Literal["nuclear", "frobenius"] = "nuclear",
        groupings: int = 1,
        detach_mean: bool = False,
        coupled: bool = False,
        gradient: Literal["exact", "reference"] = "exact",
        check_input: bool = True,
    ) -> None:
        super().__init__(check_input=check_input)
        if any(isinstance(value, Tensor) and value.requires_grad for value in (high_rank_weight, gamma, temperature)):
            raise ValueError("high_rank_weight, gamma and temperature get no gradient: pass numbers, and no parameters")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}")
        if temperature is not None and not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive and finite, or None, got {temperature}")
        if temperature is not None and not normalize:
            raise ValueError("a temperature needs embeddings of unit length: leave out normalize=False")
        for name, value, allowed in (
            ("form", form, ("cosine", "raw")),
            ("low_rank_features", low_rank_features, ("deviations", "raw")),
            ("low_rank_norm", low_rank_norm, ("nuclear", "frobenius")),
            ("gradient", gradient, ("exact", "reference")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if low_rank_norm == "frobenius" and low_rank_features == "raw":
            raise ValueError("the Frobenius norm of unit rows is a constant: leave out low_rank_features='raw'")
        if coupled and groupings != 1:
            raise ValueError("coupled takes all views of all images at once: leave out groupings")
        self.high_rank_weight = check_number("high_rank_weight", high_rank_weight)
        self.gamma = gamma
        self.normalize = normalize
        self.temperature = temperature
        self.form = form
        self.low_rank_features = low_rank_features
        self.low_rank_norm = low_rank_norm
        self.groupings = check_count("groupings", groupings, 1)
        self.detach_mean = detach_mean or gradient == "reference"
        self.coupled = coupled
        self.gradient = gradient
        self._warned = False

    def terms(self, z: Tensor) -> SSOLETerms:
        """Named terms of the loss, with the arguments and errors of `forward`."""
        check_embeddings(z)
        with torch.autocast(z.device.type, enabled=False):
            z_BVD = where_float64_is(z if z.dtype == torch.float64 else z.float())
            terms = self._compute(z_BVD, self._global_batch(z_BVD))
        return SSOLETerms(*(term.to(z_BVD.dtype).to(z.device) for term in terms))

    def _compute(self, z_BVD: Tensor, batch_BVD: Tensor) -> SSOLETerms:
        """Terms of the embeddings of this process and of all processes."""
        images, views, dims = batch_BVD.shape
        rows = images * views if self.coupled else images
        if self.temperature is None:
            self._warn_if_too_many_rows(rows, dims)
        contrasts = helmert(z_BVD) if self.low_rank_features == "deviations" else None
        as_published = not self.coupled and self.groupings == 1 and distributed.world_size() == 1
        if as_published and self._by_gram(z_BVD) and max(images, views) <= dims:
            n_B, r_V = image_and_view_norms(
                z_BVD, contrasts, normalize=self.normalize, root=self._image_root, view_root=self._view_root
            )
        else:
            n_B, r_V = self._image_norms(z_BVD, contrasts), self._view_norms(batch_BVD)

        if self.form == "raw":
            low, high_V = distributed.all_reduce(n_B.sum()) / images, -r_V
        else:
            squares = distributed.all_reduce(n_B.square().sum())
            if contrasts is None:
                low = (squares / images - views) / (views**2 - views)
            else:
                low = squares / (images * (views - 1) ** (2 if self.low_rank_norm == "nuclear" else 1))
            high_V = collapse(r_V, rows, self.gamma)
        high = high_V.mean()
        mean_n = distributed.all_reduce(n_B.sum()) / images
        return SSOLETerms(torch.add(low, high, alpha=self.high_rank_weight), low, high, mean_n, r_V.mean())

    @property
    def _image_root(self) -> Root:
        """Root function by which the routes by Gram matrices compute the norms of images."""
        return inverse_root if self.low_rank_norm == "nuclear" else frobenius_root

    @property
    def _view_root(self) -> Root:
        """Root function by which the routes by Gram matrices compute the norms of views."""
        return inverse_root if self.temperature is None else partial(kernel_root, temperature=self.temperature)

    def _image_norms(self, z_BVD: Tensor, contrasts: Tensor | None) -> Tensor:
        """n_i of this process's images, (B,)."""
        if self._by_gram(z_BVD) and z_BVD.shape[1] <= z_BVD.shape[2]:
            return unit_norms(z_BVD, contrasts, normalize=self.normalize, root=self._image_root)
        if self.low_rank_norm == "nuclear":
            return self._norms_as_written(z_BVD, contrasts)
        n_B: Tensor = torch.linalg.vector_norm(self._rows(z_BVD, contrasts), dim=(1, 2))
        return n_B

    def _view_norms(self, batch_BVD: Tensor) -> Tensor:
        """r_v of the global batch, (V,); (G V,) of mixed batches; (1,) when coupled."""
        if self.coupled:
            return self._matrix_norms(batch_BVD.flatten(0, 1)[None])
        batches = batch_BVD.transpose(0, 1) if self.groupings == 1 else mixed_batches(batch_BVD, self.groupings)
        # Each process takes every world_size-th batch; the sum over processes puts them together.
        mine = slice(distributed.rank(), None, distributed.world_size())
        r_mine = self._matrix_norms(batches[mine]).double()  # also where there is none
        r = r_mine.new_zeros(len(batches))
        r[mine] = r_mine
        return distributed.all_reduce(r)

    def _matrix_norms(self, x_Nmn: Tensor) -> Tensor:
        if len(x_Nmn) == 0:  # there are more processes than views
            return x_Nmn.sum((1, 2))
        if self.temperature is not None:
            _, rows, dims = x_Nmn.shape
            x_Nmn = F.pad(x_Nmn, (0, max(0, rows - dims)))  # changes no cosine; rows are the short side
            return unit_norms(x_Nmn, normalize=True, root=self._view_root)
        return unit_norms(x_Nmn, normalize=self.normalize) if self._by_gram(x_Nmn) else self._norms_as_written(x_Nmn)

    def _by_gram(self, x: Tensor) -> bool:
        """Whether the quick route by Gram matrices serves: not for the reference, nor for float64 on the CPU."""
        return self.gradient == "exact" and not (x.dtype == torch.float64 and x.device.type == "cpu")

    def _norms_as_written(self, x_Nmn: Tensor, contrasts: Tensor | None = None) -> Tensor:
        """Nuclear norms (N,) of explicitly formed rows (:meth:`_rows`), where the Gram routes do not serve."""
        x_Nmn = self._rows(x_Nmn, contrasts)
        return all_modes_norm(x_Nmn) if self.gradient == "reference" else nuclear_norm(x_Nmn)

    def _rows(self, x_Nmn: Tensor, contrasts: Tensor | None) -> Tensor:
        """The scaled rows, or their deviations from the mean where `contrasts` are given."""
        if self.gradient == "exact":
            x_Nmn = x_Nmn.double()
        if self.normalize:
            x_Nmn = to_unit_length(x_Nmn)
        if contrasts is None:
            return x_Nmn
        if self.gradient == "reference":
            return x_Nmn - x_Nmn.mean(1, keepdim=True).detach()
        return contrasts @ (x_Nmn - x_Nmn[:, :1])  # exactly 0 where all rows are equal

    def _warn_if_too_many_rows(self, rows: int, dims: int) -> None:
        if rows <= dims or self._warned or torch.compiler.is_compiling():
            return
        self._warned = True
        warnings.warn(
            f"The high-rank term has {rows} rows but only {dims} dimensions, so it cannot reach 0: r is at most "
            "sqrt(rows * dimensions). The formula is kept; a wider projector or a smaller batch avoids this.",
            stacklevel=4,
        )


def mixed_batches(z_BVD: Tensor, groupings: int) -> Tensor:
    """Batches (G V, B, D) of one view of each image: in grouping g, batch v holds view (v + o_gi) mod V of image i.

    The offsets o_gi = floor(V frac(i g golden ratio)) are 0 for g = 0, where batch v is view v. The multiples of the
    golden ratio spread evenly over the unit interval, and with them the pairs of views in which two images meet.
    """
    images, views, dims = z_BVD.shape
    golden_ratio = (1 + math.sqrt(5)) / 2
    numbers_GB = torch.outer(*(torch.arange(n, device=z_BVD.device, dtype=torch.float64) for n in (groupings, images)))
    offsets_GB = (numbers_GB * golden_ratio % 1 * views).long()
    view_GBV = (offsets_GB[..., None] + torch.arange(views, device=z_BVD.device)) % views
    z_GBVD = z_BVD.expand(groupings, -1, -1, -1).gather(2, view_GBV[..., None].expand(-1, -1, -1, dims))
    return z_GBVD.transpose(1, 2).reshape(groupings * views, images, dims)


def collapse(r: Tensor, rows: int, gamma: float) -> Tensor:
    """High-rank measure gamma c1 + (1 - gamma) c2 of nuclear norms `r`: 1 at r = sqrt(rows), 0 at r = rows.

    Value and slope are finite for every finite r. With s = r / rows and q = 1 - s^2 the formulas of SSOLELoss become

        c1 = q / (s^2 (rows - 1))        c2 = q (rows - 2) / (rows - 1) + 2 s sqrt(q / (rows - 1))
    """
    s = r.double() / rows
    square = s.square()
    q = 1 - square
    # Unit rows have s >= 1 / sqrt(rows). Without normalization s may be 0: the clamp keeps the slope of c1 in float32.
    c1 = q / square.clamp(min=1e-24)
    # sqrt(q) has infinite slope at s = 1, the optimum. s has a rounding error of a few eps, so closer values count as
    # the optimum. There and beyond c2 is 0 with slope 0, the minimum-norm subgradient at the tip of a cone.
    below = F.threshold(q, 16 * torch.finfo(torch.float64).eps, 0)
    c2 = torch.addcmul(below * (rows - 2), s, below.sqrt(), value=2 * math.sqrt(rows - 1))
    return torch.add(c1 * (gamma / (rows - 1)), c2, alpha=(1 - gamma) / (rows - 1))
