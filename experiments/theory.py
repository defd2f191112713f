"""Pictures of docs/theory.md: what the losses reach, cannot see and pull at, drawn from the losses themselves.

    python experiments/theory.py

Writes docs/img/theory-*.png, in half a minute on one core. Needs matplotlib: pip install 'ssole[plot]'.

Shape suffixes: B images, V views, D embedding dimensions, F input features.
"""

from __future__ import annotations

import argparse
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssole import OLELoss, SSOLELoss, nuclear_norm
from ssole.losses.simclr import SimCLRLoss
from ssole.losses.ssole import collapse
from ssole.spectrum import effective_rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES = Path(__file__).parent.parent / "docs" / "img"
INK, FAINT = "#24292f", "#8c959f"
# Okabe and Ito's palette: told apart with every kind of colour vision, and in print
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eaeef2",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",  # a light card on light and dark pages alike
    "savefig.facecolor": "white",
}


def random_share(ratio: float) -> float:
    """Mean singular value E||X||_* / B of B random unit rows in D dimensions, for large B and D, ratio = B / D.

    The root of a Marchenko-Pastur variable has density sqrt((b^2 - s^2)(s^2 - a^2)) / (pi ratio s) on [a, b], with
    a = |1 - sqrt(ratio)| and b = 1 + sqrt(ratio). Its mean is an elliptic integral, for K and E of parameter m:

        (b / (3 pi ratio)) ((a^2 + b^2) E(m) - 2 a^2 K(m)),        m = 1 - a^2 / b^2
    """
    from scipy.special import ellipe, ellipkm1  # scikit-learn brings scipy

    low, high = abs(1 - math.sqrt(ratio)), 1 + math.sqrt(ratio)
    rest = (low / high) ** 2  # 1 - m; K is infinite at 0, where its factor is 0
    second = 2 * low**2 * ellipkm1(rest) if rest > 0 else 0.0
    return float(high / (3 * math.pi * ratio) * ((low**2 + high**2) * ellipe(1 - rest) - second))


def descend(loss: OLELoss, z_BVD: Tensor, *, steps: int, lr: float) -> tuple[Tensor, list[float]]:
    """Free embeddings after gradient descent with a step size that falls to 0, and the loss at each step."""
    z_BVD = z_BVD.clone().requires_grad_()
    values = []
    for step in range(steps):
        value = loss(z_BVD)
        (gradient,) = torch.autograd.grad(value, z_BVD)
        with torch.no_grad():
            # Times the number of rows: the gradient of a mean over them is the smaller the more there are.
            z_BVD -= lr * (1 - step / steps) * gradient * z_BVD.shape[:2].numel()
        values.append(value.item())
    return z_BVD.detach(), values


def train_encoder(loss: torch.nn.Module, images: int, *, dims: int, noise: float, steps: int, seed: int = 0) -> Tensor:
    """Embeddings (4096, D) of new images, after training a linear encoder on noisy views.

    Images are standard normal in 2 D features, a view adds normal noise, and embeddings have unit length.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = 2 * dims
    weight_FD = (normal(features, dims) / math.sqrt(features)).requires_grad_()
    bias_D = torch.zeros(dims, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weight_FD, bias_D], lr=0.01)
    for _ in range(steps):
        views_BVF = normal(images, 1, features) + noise * normal(images, 2, features)
        optimizer.zero_grad()
        loss(F.normalize(views_BVF @ weight_FD + bias_D, dim=-1)).backward()
        optimizer.step()
    with torch.no_grad():
        return F.normalize(normal(4096, features) @ weight_FD + bias_D, dim=-1)


def draw_ole(steps: int = 600) -> Figure:
    """OLE with one class per image: its loss against the proven minimum, and where a shared encoder collapses."""
    import matplotlib.pyplot as plt

    dims, noise = 8, 0.7
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3))
    for images, colour in ((8, GREEN), (16, BLUE), (64, ORANGE)):
        start = 0.3 * torch.randn(images, 2, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _, values = descend(OLELoss(), start, steps=steps, lr=0.05)
        left.plot(values, color=colour, linewidth=1.8, label=f"B = {images}")
        left.axhline((1 - math.sqrt(min(1, dims / images))) / 2, color=colour, linestyle=(0, (4, 3)), linewidth=1)
    left.set(title=f"OLE, free embeddings, V = 2, D = {dims}", xlabel="step   (dashed: proven minimum)", ylabel="loss")
    left.set_ylim(bottom=-0.02)
    left.legend()

    sizes = [8, 16, 24, 32, 40, 48, 64, 96, 128, 256]
    for name, loss, colour in (("OLE", OLELoss(), ORANGE), ("SSOLE", SSOLELoss(), BLUE)):
        trained = [train_encoder(loss, images, dims=dims, noise=noise, steps=steps) for images in sizes]
        ranks = [float(effective_rank(z)) for z in trained]
        right.semilogx(sizes, ranks, "o-", base=2, color=colour, markersize=4, label=name)
    border = 2 * (dims - 1) * (1 + 1 / noise**2)
    right.axvline(border, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
    right.annotate(f"B = {border:.1f}", (border, 7.6), xytext=(5, 0), textcoords="offset points", color="#57606a")
    right.set(title=f"Linear encoder, noisy views, D = {dims}", xlabel="images in a batch B", ylabel="effective rank")
    right.set_ylim(0, dims + 0.5)
    right.set_xticks([8, 16, 32, 64, 128, 256], ["8", "16", "32", "64", "128", "256"])
    right.legend(loc="lower left")
    return figure


def pairs_of_views(cosines: Tensor) -> Tensor:
    """Two unit views in the plane at each of the given cosines, (N, 2, 2)."""
    one = torch.stack([torch.ones_like(cosines), torch.zeros_like(cosines)], dim=-1)
    other = torch.stack([cosines, (1 - cosines**2).clamp(min=0).sqrt()], dim=-1)
    return torch.stack([one, other], dim=1)


def draw_signs() -> Figure:
    """Low-rank term of two views against their cosine, of raw views and of deviations from their mean."""
    import matplotlib.pyplot as plt

    cosines = torch.linspace(-1, 1, 41, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(4.6, 3.1))
    for loss, formula, colour in (
        (SSOLELoss(low_rank_features="raw"), (1 - cosines**2).clamp(min=0).sqrt(), ORANGE),
        (SSOLELoss(low_rank_features="deviations"), 1 - cosines, BLUE),
    ):
        # The low-rank term is a mean over images, and the loss needs two of them: each pair of views comes twice.
        values = [float(loss.terms(pair.expand(2, 2, 2)).low_rank) for pair in pairs_of_views(cosines).split(1)]
        axes.plot(cosines, formula, color=colour, linewidth=1.6)
        axes.plot(cosines, values, "o", color=colour, markersize=3.5, label=loss.low_rank_features)
    axes.set(title="Low-rank term, V = 2 (line: formula)", xlabel="cosine of the two views", ylabel="low_rank")
    axes.legend()
    return figure


def draw_random() -> Figure:
    """Nuclear norms of random unit rows: simulation, Marchenko-Pastur mean and greatest possible value."""
    import matplotlib.pyplot as plt

    dims, generator = 128, torch.Generator().manual_seed(0)
    ratios = 2.0 ** np.linspace(-4, 4, 17)
    sizes = [round(float(ratio) * dims) for ratio in ratios]
    rows = [F.normalize(torch.randn(4, size, dims, generator=generator), dim=-1).double() for size in sizes]
    simulated = np.array([float(nuclear_norm(x).mean()) / len(x[0]) for x in rows])
    fine = 2.0 ** np.linspace(-4, 4, 161)
    expected = np.array([random_share(float(ratio)) for ratio in fine])
    greatest = np.minimum(1, 1 / np.sqrt(fine))

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.1))
    left.plot(fine, greatest, color=FAINT, linestyle=(0, (4, 3)), label="greatest: min(1, √(D/B))")
    left.plot(fine, expected, color=BLUE, label="Marchenko-Pastur mean")
    left.plot(ratios, simulated, "o", color=ORANGE, markersize=4, label=f"simulation, D = {dims}")
    left.set(title="Nuclear norm of random unit rows", ylabel="r / B")
    left.legend()
    right.plot(fine, expected / greatest, color=BLUE)
    right.plot(ratios, simulated / np.minimum(1, 1 / np.sqrt(ratios)), "o", color=ORANGE, markersize=4)
    right.axhline(8 / (3 * math.pi), color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
    right.annotate("8 / 3π", (fine[0], 8 / (3 * math.pi)), xytext=(0, 3), textcoords="offset points", color="#57606a")
    right.set(title="Share of the greatest possible norm", ylabel="r / greatest r", ylim=(0.83, 1.005))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks([1 / 16, 1 / 4, 1, 4, 16], ["1/16", "1/4", "1", "4", "16"])
        axes.set_xlabel("B / D")
    return figure


def draw_high_rank() -> Figure:
    """c1 and c2 against the nuclear norm, and the least values that fewer dimensions allow."""
    import matplotlib.pyplot as plt

    images = 256
    r = torch.linspace(math.sqrt(images), images, 400, dtype=torch.float64)
    figure, axes = plt.subplots(figsize=(5.6, 3.3))
    for gamma, name, colour in ((1.0, "c1", ORANGE), (0.0, "c2", BLUE), (0.5, "high_rank at γ = 0.5", GREEN)):
        axes.plot(r / images, collapse(r, images, gamma), color=colour, label=name)
    for dims in (16, 64, 128):
        share = math.sqrt(dims / images)
        floor = float(collapse(torch.tensor(share * images), images, 0.5))
        axes.plot(share, floor, "o", color=GREEN, markersize=5)
        axes.annotate(f"D = {dims}", (share, floor), xytext=(5, 3), textcoords="offset points", color=GREEN)
    axes.set(title=f"High-rank term, B = {images} (dots: least value for D)", xlabel="r / B", ylabel="value")
    axes.legend()
    return figure


def pair_forces(angles: Tensor, images: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Repulsion of two images at each angle, the other images orthonormal: dr/dangle, -d NT-Xent/dangle."""
    angles = angles.clone().requires_grad_()
    basis = torch.eye(images, dtype=torch.float64)
    turned = angles.cos()[:, None] * basis[0] + angles.sin()[:, None] * basis[1]
    batches = torch.stack([torch.cat([basis[:1], row[None], basis[2:]]) for row in turned])
    (by_r,) = torch.autograd.grad(nuclear_norm(batches).sum(), angles, retain_graph=True)
    spread = SimCLRLoss(temperature=temperature)
    two_views = torch.stack([batches, batches], dim=2)
    (by_simclr,) = torch.autograd.grad(torch.stack([spread.terms(z).spread for z in two_views]).sum(), angles)
    return by_r, -by_simclr


def growth(rows_BD: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Singular values of unit rows, and the rate of each along steps of unit length that raise r or lower NT-Xent."""
    u, singular, vh = torch.linalg.svd(rows_BD, full_matrices=False)

    def rates(objective: Tensor) -> Tensor:
        (step,) = torch.autograd.grad(objective, leaf)
        along: Tensor = (u.mT @ (step / step.norm())) * vh
        return along.sum(-1)

    leaf = rows_BD.clone().requires_grad_()
    by_r = rates(nuclear_norm(F.normalize(leaf, dim=-1)))
    by_simclr = rates(-SimCLRLoss(temperature=temperature).terms(torch.stack([leaf, leaf], dim=1)).spread)
    return singular, by_r, by_simclr


def draw_gradient() -> Figure:
    """Repulsion of two images against their angle, and growth of the directions of a batch."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3))
    angles = torch.linspace(0.5, 179.5, 180, dtype=torch.float64).deg2rad()
    kinds = ((0.1, ORANGE), (0.5, GREEN))
    for temperature, colour in kinds:
        by_r, by_simclr = pair_forces(angles, 32, temperature)
        left.plot(angles.rad2deg(), by_simclr / by_simclr.max(), color=colour, label=f"NT-Xent, τ = {temperature}")
    left.plot(angles.rad2deg(), by_r / by_r.max(), color=BLUE, label="nuclear norm")
    left.axhline(0, color=FAINT, linewidth=0.8)
    left.set(
        title="Repulsion of two images, B = 32", xlabel="angle between them, degrees", ylabel="force / its maximum"
    )
    left.set_xticks(range(0, 181, 45))
    left.legend()

    generator = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(0, -3, 32, dtype=torch.float64)
    rows = F.normalize(torch.randn(128, 32, generator=generator, dtype=torch.float64) * spectrum, dim=-1)
    for temperature, colour in kinds:
        singular, by_r, by_simclr = growth(rows, temperature)
        right.semilogx(singular, by_simclr, "o", color=colour, markersize=4, label=f"NT-Xent, τ = {temperature}")
    right.semilogx(singular, by_r, "o", color=BLUE, markersize=4, label="nuclear norm")
    right.axhline(0, color=FAINT, linewidth=0.8)
    right.set(title="Growth of the directions of a batch", xlabel="singular value", ylabel="rate, for unit steps")
    right.legend()
    return figure


PICTURES = {
    "ole": draw_ole,
    "signs": draw_signs,
    "random": draw_random,
    "high-rank": draw_high_rank,
    "gradient": draw_gradient,
}


def main() -> None:
    """Parse, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PICTURES, help="one picture instead of all")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the pictures")
    options = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.filterwarnings("ignore", message="The high-rank term has")  # more rows than dimensions, on purpose
    with matplotlib.rc_context(STYLE):
        for name in [options.only] if options.only else PICTURES:
            path = options.out / f"theory-{name}.png"
            PICTURES[name]().savefig(path, dpi=110)
            print(path)


if __name__ == "__main__":
    main()
