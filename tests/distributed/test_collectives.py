"""Losses and collectives in two or three gloo processes, beside one process, also for batches of different sizes."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ranks import run as in_processes
from ssole import distributed
from ssole.losses import LOSSES as PUBLIC
from ssole.losses import LeJEPALoss, SSOLELoss, SupervisedLoss, WMSELoss

B, D_IN, D = 7, 6, 12
SPLITS = {"equal": (0, 4, 8), "unequal": (0, 2, 7), "one image": (0, 1, 7)}


def batch(split: str, views: int) -> torch.Tensor:
    n = SPLITS[split][-1]
    return torch.randn(n, views, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(2)
    return nn.Linear(D_IN, D).to(dtype)


def run(
    work: Callable[[int], dict[str, torch.Tensor]], folder: Path, *, world: int = 2
) -> list[dict[str, torch.Tensor]]:
    in_processes(world, _process, work, folder)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(world)]


def _process(work: Callable[[int], dict[str, torch.Tensor]], folder: Path) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    try:
        result = work(rank)
    finally:
        dist.destroy_process_group()
    save_file({name: tensor.detach().contiguous() for name, tensor in result.items()}, folder / f"{rank}.safetensors")


class FirstTwo(WMSELoss):
    """W-MSE of the first two dimensions, as few images cannot be whitened in more."""

    def terms(self, z: torch.Tensor):
        return super().terms(z[..., :2])


LOSSES: dict[str, Callable[[], nn.Module]] = {
    **PUBLIC,
    "coupled": lambda: SSOLELoss(coupled=True, form="raw"),
    "temperature": lambda: SSOLELoss(temperature=0.3),
    "frobenius": lambda: SSOLELoss(temperature=0.3, low_rank_norm="frobenius"),
    "groupings": lambda: SSOLELoss(temperature=0.3, groupings=3),
    "w-mse": lambda: FirstTwo(subset_size=4),
    "supervised": lambda: SupervisedLoss(classes=3, dims=D),
}
# (name, split, views, dtype). An odd number of views gives the processes different numbers of views.
CASES = [
    ("ssole", "equal", 2, "float64"),
    ("ssole", "unequal", 3, "float64"),
    ("ssole", "unequal", 4, "float32"),
    ("ssole", "one image", 2, "float32"),
    ("coupled", "unequal", 2, "float64"),
    ("temperature", "unequal", 3, "float64"),
    ("temperature", "equal", 2, "float32"),
    ("ole", "unequal", 3, "float64"),
    *((name, "equal", 2, "float64") for name in PUBLIC if name not in ("ssole", "ole")),
    *((name, "unequal", 3, "float64") for name in PUBLIC if name not in ("ssole", "ole")),
]


def loss_of(name: str, z: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss with the same parameters and random draws everywhere, and the gradient of its parameters."""
    torch.manual_seed(3)
    module = LOSSES[name]()
    value = module(z, labels) if isinstance(module, SupervisedLoss) else module(z)
    value.backward()
    grads = [parameter.grad.flatten() for parameter in module.parameters()]
    return value, torch.cat(grads) if grads else torch.zeros(0)


def labels_of(split: str) -> torch.Tensor:
    return torch.arange(SPLITS[split][-1]) % 4 - 1


def all_cases(rank: int) -> dict[str, torch.Tensor]:
    result = {}
    for name, split, views, dtype_name in CASES:
        dtype = getattr(torch, dtype_name)
        start, stop = SPLITS[split][rank : rank + 2]
        x = batch(split, views)[start:stop].to(dtype)
        model = DistributedDataParallel(network(dtype))
        z = model(x)
        z.retain_grad()
        loss, own = loss_of(name, z, labels_of(split)[start:stop])
        key = f"{name} {split} {views} {dtype_name}"
        result |= {f"{key} value": loss, f"{key} weight": model.module.weight.grad, f"{key} z": z.grad}
        result |= {f"{key} own": own}
    torch.manual_seed(rank)
    z = batch("equal", 2)[4 * rank : 4 * rank + 4]
    result["other seeds"] = torch.stack([LeJEPALoss()(z), FirstTwo(subset_size=4)(z)])
    return result


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The high-rank term has")
def test_loss_and_gradient_under_ddp_equal_one_process(tmp_path):
    ranks = run(all_cases, tmp_path)
    for name, split, views, dtype_name in CASES:
        key, dtype = f"{name} {split} {views} {dtype_name}", getattr(torch, dtype_name)
        model = network(dtype)
        z = model(batch(split, views).to(dtype))
        z.retain_grad()
        loss, own = loss_of(name, z, labels_of(split))
        tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
        for rank in ranks:
            torch.testing.assert_close(rank[f"{key} value"], loss.detach(), **tolerance)
            torch.testing.assert_close(rank[f"{key} weight"], model.weight.grad, **tolerance)
            torch.testing.assert_close(rank[f"{key} own"], own, **tolerance)
        # Gradients of z are not averaged, so each process holds world_size times its share.
        torch.testing.assert_close(torch.cat([rank[f"{key} z"] for rank in ranks]) / 2, z.grad, **tolerance)
    # Also where generators differ, processes draw the same slices and sub-batches.
    assert torch.equal(ranks[0]["other seeds"], ranks[1]["other seeds"])


def more_processes_than_views(rank: int) -> dict[str, torch.Tensor]:
    z = batch("equal", 2).float()[3 * rank : 3 * rank + 3].requires_grad_()
    loss = SSOLELoss(temperature=0.3)(z)
    loss.backward()
    return {"loss": loss, "z": z.grad}


def test_more_processes_than_views(tmp_path):
    ranks = run(more_processes_than_views, tmp_path, world=3)
    z = batch("equal", 2).float().requires_grad_()
    loss = SSOLELoss(temperature=0.3)(z)
    loss.backward()
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], loss.detach())
    torch.testing.assert_close(torch.cat([rank["z"] for rank in ranks]) / 3, z.grad)


def bad_label_of_one(rank: int) -> dict[str, torch.Tensor]:
    module, labels = SupervisedLoss(classes=3, dims=D_IN), torch.tensor([0, 1 + 2 * rank, 2])
    with pytest.raises(ValueError, match=r"1 labels are outside -1 .* to 2, such as 3"):
        module(torch.ones(3, 2, D_IN), labels)
    return {}


def test_a_bad_label_of_one_process_is_the_same_error_on_all(tmp_path):
    run(bad_label_of_one, tmp_path)


def collectives(rank: int) -> dict[str, torch.Tensor]:
    x = torch.arange(6.0).reshape(3, 2)[: rank + 1 if rank else 0].clone().requires_grad_()  # 0 rows and 2 rows
    gathered = distributed.gather(x)
    y = torch.tensor([1.0 + rank, 10.0], requires_grad=True)
    total = distributed.all_reduce(y)
    # The loss differs between processes: gradients must be those of the sum over processes.
    ((rank + 1) * gathered.square().sum() + (rank + 3) * total.square().sum()).backward()
    try:
        distributed.gather(torch.ones(2, 3 + rank))
        message = "nothing raised"
    except ValueError as error:
        message = str(error)
    assert "[[2, 3], [2, 4]]" in message
    identity = torch.tensor([distributed.rank(), distributed.world_size()])
    return {"gathered": gathered, "x": x.grad, "total": total, "y": y.grad, "identity": identity}


def test_collectives_have_true_adjoints(tmp_path):
    for rank, result in enumerate(run(collectives, tmp_path)):
        x = torch.arange(4.0).reshape(2, 2)
        assert result["identity"].tolist() == [rank, 2]
        assert torch.equal(result["gathered"], x)
        assert torch.equal(result["x"], (1 + 2) * 2 * x if rank else torch.zeros(0, 2))
        assert torch.equal(result["total"], torch.tensor([3.0, 20.0]))
        assert torch.equal(result["y"], (3 + 4) * 2 * torch.tensor([3.0, 20.0]))


def test_without_a_process_group_there_is_one_process():
    x = torch.ones(2, 3)
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.gather(x) is x
    assert distributed.all_reduce(x) is x
