"""Nuclear norms on an accelerator, in few kernels: their launches take most of the time of a small batch.

Unit rows are formed in float64 and kept, where :mod:`ssole.losses.nuclear` saves the memory on a CPU. Both classes are
routes of its autograd function.

Shape suffixes: N any batch, m and n the matrix; B images, V views, D embedding dimensions, C = V - 1 contrasts or V.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssole.losses.roots import Root, inverse_root


@dataclass(frozen=True)
class Wide:
    """Route for wide matrices on an accelerator, as :class:`ssole.losses.nuclear._Wide` is on a CPU."""

    normalize: bool
    contrasts: Tensor | None = None
    root: Root = inverse_root

    def norms(self, x_Nmn: Tensor) -> tuple[Tensor, tuple[Tensor, ...], None]:
        """Norms (N,), and what the gradient needs."""
        lengths_Nm1, u_Nmn = self.unit(x_Nmn)
        c_NCn = self.contrasted(u_Nmn)
        norms_N, w_NCC = self.root(c_NCn @ c_NCn.mT)
        return norms_N, (lengths_Nm1, u_Nmn, c_NCn, w_NCC), None

    def gradient(
        self,
        _: None,
        x_Nmn: Tensor,
        lengths_Nm1: Tensor,
        u_Nmn: Tensor,
        c_NCn: Tensor,
        w_NCC: Tensor,
        grad_N: Tensor,
    ) -> Tensor:
        """Gradient with respect to `x_Nmn`."""
        return self.through_scaling(self.product(grad_N, w_NCC, c_NCn), lengths_Nm1, u_Nmn).to(x_Nmn.dtype)

    def unit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lengths of rows (..., 1) and the rows that the norms are of (..., n), in float64."""
        lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float64)
        return lengths, x / lengths if self.normalize else x.double()

    def contrasted(self, u_Nmn: Tensor) -> Tensor:
        """Contrasts of the rows. The first row is subtracted from all, so that those of equal rows are exactly zero."""
        if self.contrasts is None:
            return u_Nmn
        return torch.bmm(self.contrasts.expand(len(u_Nmn), -1, -1), u_Nmn - u_Nmn[:, :1])

    def product(self, grad_N: Tensor, w_NCC: Tensor, c_NCn: Tensor) -> Tensor:
        """Gradient with respect to the rows `u_Nmn`."""
        out_NCn = (grad_N[:, None, None] * w_NCC) @ c_NCn
        return out_NCn if self.contrasts is None else torch.bmm(self.contrasts.T.expand(len(c_NCn), -1, -1), out_NCn)

    def through_scaling(self, out: Tensor, lengths: Tensor, u: Tensor) -> Tensor:
        """Gradient with respect to the rows before they were scaled.

        Overwrites `out`, the gradient with respect to `u`.
        """
        if self.normalize:
            out.addcmul_(u, torch.linalg.vecdot(u, out)[..., None], value=-1).div_(lengths)
        return out


@dataclass(frozen=True)
class ImagesAndViews:
    """Route of images and views at once, on an accelerator. See :func:`ssole.losses.nuclear.image_and_view_norms`."""

    images: Wide
    """The contrasts and the root are of images only."""
    view_root: Root = inverse_root

    def norms(self, z_BVD: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, ...], None]:
        """Norms (B,) of images and (V,) of views, and what the gradient needs."""
        lengths_BV1, u_BVD = self.images.unit(z_BVD)
        c_BCD, u_VBD = self.images.contrasted(u_BVD), u_BVD.transpose(0, 1)
        n_B, images_BCC = self.images.root(c_BCD @ c_BCD.mT)
        r_V, views_VBB = self.view_root(u_VBD @ u_VBD.mT)
        return (n_B, r_V), (lengths_BV1, u_BVD, c_BCD, images_BCC, views_VBB), None

    def gradient(self, _: None, z_BVD: Tensor, *saved_and_grads: Tensor) -> Tensor:
        """Gradient with respect to `z_BVD`."""
        lengths_BV1, u_BVD, c_BCD, images_BCC, views_VBB, grad_B, grad_V = saved_and_grads
        out_BVD = self.images.product(grad_B, images_BCC, c_BCD)
        out_BVD.transpose(0, 1).baddbmm_(grad_V[:, None, None] * views_VBB, u_BVD.transpose(0, 1))
        return self.images.through_scaling(out_BVD, lengths_BV1, u_BVD).to(z_BVD.dtype)
