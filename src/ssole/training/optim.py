"""Optimizers by name, Muon among them, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ssole.config import ConfigError, OptimConfig
from ssole.models.stages import layer_factors
from ssole.runtime import resolve_precision

Groups = list[dict[str, Any]]


def _lars(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """LARS, with the rate of each matrix adapted to its norm, also without weight decay; vectors as in SGD."""
    from timm.optim.lars import Lars

    groups = [group | {"always_adapt": group["params"][0].ndim >= 2} for group in groups]
    optimizer: torch.optim.Optimizer = Lars(groups, lr=config.lr, momentum=config.momentum)
    return optimizer


def _muon(groups: Groups, config: OptimConfig) -> torch.optim.Optimizer:
    """Muon, in bfloat16 where the hardware multiplies it natively, else in float32: emulation is 100 times slower."""
    device = groups[0]["params"][0].device
    dtype = resolve_precision("auto", device) or torch.float32
    batched = device.type != "cpu"
    return Muon(groups, lr=config.lr, momentum=config.momentum, betas=config.betas, dtype=dtype, batched=batched)


OPTIMIZERS: dict[str, Callable[[Groups, OptimConfig], torch.optim.Optimizer]] = {
    # fused: one pass a weight
    "sgd": lambda groups, config: torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True),
    "lars": _lars,
    "adamw": lambda groups, config: torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True),
    "muon": _muon,
}


def create_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimizer of a model. Biases and norm scales (1-d parameters) get no weight decay; position embeddings do.

    With `config.layer_decay`, the model is that of a learner, which has an encoder with a backbone. Raises a
    ConfigError if that does not say what its layers are, or if nothing is left to train.
    """
    factors: dict[str, float] = {}
    if config.layer_decay is not None:
        backbone: nn.Module = model.get_submodule("encoder.backbone")
        factors = {f"encoder.backbone.{k}": v for k, v in layer_factors(backbone, config.layer_decay).items()}
    rates: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rates.setdefault(factors.get(name, 1.0), []).append(parameter)
    if not rates:
        raise ConfigError("all weights are frozen: lower model.frozen_stages, or give the model a projector")
    groups: Groups = []
    for factor, parameters in rates.items():
        matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        for chosen, decay in ((matrices, config.weight_decay), (others, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "lr_factor": factor})
    return OPTIMIZERS[config.name](groups, config)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, each times its own factor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr * group["lr_factor"])
        else:
            group["lr"] = lr * group["lr_factor"]


def use_tensor_rates(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Store learning rates as tensors on a device, which a CUDA graph reads at each replay."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), device=device)


def learning_rate(step: float, total: int, config: OptimConfig) -> float:
    """Learning rate of a step, of `total`: linear warmup to `lr`, then a half cosine to `final_lr` at the last step.

    Step 0 has lr / warmup_steps, so that it already moves the weights. With a budget of time, a step may stand between
    two whole numbers.
    """
    warmup, lr, final_lr = config.warmup_steps, config.lr, config.final_lr
    if step < warmup:
        return min(lr, lr * (step + 1) / warmup)
    progress = (step - warmup) / max(1, total - 1 - warmup)
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * min(1.0, progress)))


# Coefficients (a, b, c) of the steps x <- a x + b x^3 + c x^5 that bring singular values to about 1, as in timm's Muon.
STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
_EPS = 1e-7  # added to AdamW's denominators, and the smallest norm that momentum is divided by
_LEAST_SIDE, _MOST_ASPECT = 4, 128  # of matrices that are worth orthogonalising


class Muon(torch.optim.Optimizer):
    """Muon with the updates of `timm.optim.Muon`, by fewer kernels: a GPU waits longer for their launch than for them.

    Momentum M <- momentum M + (1 - momentum) gradient moves a weight matrix W (m outputs, n inputs) by

        W <- (1 - lr weight_decay) W - lr 0.2 sqrt(max(m, n)) polar(M)

    with polar(M) = U V^T for M = U S V^T, nearly, by Newton-Schulz steps. A convolution is a matrix of n = channels x
    positions. AdamW updates vectors and very narrow matrices. The state has the names of timm's. Source: Jordan et al.
    2024 (https://kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025 (arXiv:2502.16982), which makes
    steps as large as AdamW's.

    Args:
        groups: parameters or groups of them, on one device. A group may have a weight decay of its own.
        lr: a number, or a scalar tensor on that device.
        dtype: of the Newton-Schulz steps.
        batched: whether matrices of one shape are one batch. A CPU gains nothing from that.
    """

    def __init__(
        self,
        groups: Any,
        *,
        lr: float | Tensor,
        momentum: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
        batched: bool = True,
    ) -> None:
        # `fused` tells torch to place the count of steps of a loaded state where AdamW's kernel needs it.
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "fused": True}
        super().__init__(groups, defaults)
        self._dtype, self._batched = dtype, batched

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient. Returns the result of the closure, which is called first."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            used = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in used if is_matrix(p)]
            if matrices:
                self._update_matrices(matrices, group)
            if others := [p for p in used if not is_matrix(p)]:
                self._update_others(others, group)
        return loss

    def _update_matrices(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for p in weights:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in weights]
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(momenta, [p.grad for p in weights if p.grad is not None], 1 - group["momentum"])

        batches: dict[Any, list[int]] = {}
        for i, p in enumerate(weights):
            batches.setdefault(p.shape if self._batched else i, []).append(i)
        polars = [polar(_batch([_as_matrix(momenta[i]) for i in batch]), self._dtype) for batch in batches.values()]
        # The layout of weights, without which the sums below would take a kernel for each weight.
        polars = [x.to(torch.float32, memory_format=torch.contiguous_format) for x in polars]
        torch._foreach_mul_(polars, [0.2 * math.sqrt(max(x.shape[-2:])) for x in polars])
        torch._foreach_mul_(polars, -group["lr"])
        moved = [weights[i] for batch in batches.values() for i in batch]
        matrices = [matrix for x in polars for matrix in (x if x.ndim == 3 else [x])]
        torch._foreach_add_(moved, [_as_weight(matrix, p) for matrix, p in zip(matrices, moved, strict=True)])

    def _update_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
                self.state[p] |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPS,
            maximize=False,
        )


def is_matrix(parameter: Tensor) -> bool:
    """Whether a parameter is orthogonalised: no vector, and no narrow matrix as of a depthwise layer."""
    if parameter.ndim < 2 or 1 in parameter.shape[:2]:
        return False
    outputs = parameter.shape[0]
    least, most = sorted((outputs, parameter.numel() // outputs))
    return least >= _LEAST_SIDE and most <= _MOST_ASPECT * least


def polar(m: Tensor, dtype: torch.dtype) -> Tensor:
    """U V^T of m = U S V^T, nearly: singular values from 0.003 of the norm on become 0.97 to 1.15."""
    tall = m.shape[-2] > m.shape[-1]
    x = (m.mT if tall else m).to(dtype)
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    wide = x.shape[-1] >= 2 * x.shape[-2]
    x = _polar_of_wide(x) if wide and dtype != torch.bfloat16 else _polar(x)
    return x.mT if tall else x


def _polar(x: Tensor) -> Tensor:
    """The steps on x (m, n) itself, of norm 1, with two products of m x m x n each."""
    add_product = _add_product(x)
    for a, b, c in STEPS:
        gram = x @ x.mT
        x = add_product(x, add_product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _polar_of_wide(x: Tensor) -> Tensor:
    """The same steps on the Gram matrix of x (m, n): two products of m x m x n for all steps together.

    With G = x x^T and S = a + b G + c G^2, a step is x <- S x and G <- S G S. In float32 that is faster than `_polar`,
    twice from n = 4 m on, and as exact. bfloat16 is too coarse for G, which has the squares of the singular values.
    """
    gram = x @ x.mT
    product = step = None
    for a, b, c in STEPS:
        if step is not None:
            gram = step @ gram @ step
        step = _add_product(x)(gram, gram, gram, beta=b, alpha=c)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        product = step if product is None else step @ product
    assert product is not None
    return product @ x


def _add_product(x: Tensor) -> Callable[..., Tensor]:
    return torch.addmm if x.ndim == 2 else torch.baddbmm


def _batch(matrices: list[Tensor]) -> Tensor:
    """Matrices (m, n) as one tensor (N, m, n); a single one as it is, because a CPU multiplies it faster so."""
    return torch.stack(matrices) if len(matrices) > 1 else matrices[0]


def _as_matrix(weight: Tensor) -> Tensor:
    """A weight as a matrix (outputs, inputs). Without a copy if a convolution is channels_last: channels come last."""
    return weight if weight.ndim == 2 else weight.movedim(1, -1).flatten(1)


def _as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    """A matrix (outputs, inputs) in the shape of a weight: the inverse of `_as_matrix`."""
    inputs, *positions = like.shape[1:]
    return matrix if like.ndim == 2 else matrix.unflatten(1, (*positions, inputs)).movedim(-1, 1)
