"""Kernel launches and waits of a training step on a CUDA GPU, counted without one.

    python benchmarks/launches.py --out benchmarks/results/launches.json

The step of `ssole.training` runs on fake CUDA tensors, which have shapes and no values, and a dispatch mode sees every
operator. An operator counts as the kernels that PyTorch launches for it: none for views and empty tensors, one for
most, more for those in `_KERNELS`. cuBLAS and cuDNN may add some of their own, so that a profile shows a few more.

FLOPs are those of convolutions and matrix products. Bytes are those of all operands and results, each once for each
operator: what a step moves if no cache helps.

With Muon, learning rates are tensors on the device, as they are where a step is captured as a CUDA graph.

What makes the host wait for the device is counted too: reading a value, operators whose result has a size that depends
on values, decompositions that check for errors on the host, and copies between host and device.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from measure import save
from ssole import rng
from ssole.config import PretrainConfig, load
from ssole.losses import kernels
from ssole.training import step as training_step
from ssole.training.step import Learner

DEVICE = torch.device("cuda", 0)
PARTS = ("views", "encoder", "loss", "optimizer")
_KERNELS = {"diag_embed": 2, "eye": 2, "masked_fill": 2, "sort": 3, "argsort": 3}
_NONE = {
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
    "lift_fresh",
}
_KEPT = (rng._words, kernels._kept_matrix)  # functions that keep tensors
_WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "unique_consecutive",
          "masked_select", "_linalg_eigh", "linalg_eig", "_linalg_svd", "linalg_inv_ex", "linalg_lu_factor_ex",
          "linalg_cholesky_ex"}  # fmt: skip
# Tensors and chunks of 65,536 elements that one launch of a `_foreach` operator takes, by the number of its lists.
_FOREACH_TENSORS, _FOREACH_CHUNKS, _CHUNK = (110, 64, 48, 36, 30), 320, 1 << 16


class Launches(TorchDispatchMode):
    """Counter of kernel launches by part of the step, of copies between host and device, and of what makes the host
    wait."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "other"
        self.by_part: dict[str, Counter[str]] = {}
        self.flops: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.waits: list[str] = []
        self.copies: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if wait := _wait(name, args, kwargs or {}):
            self.waits.append(f"{self.part}: {wait}")
        if name == "_to_copy" and _wait(name, args, {**(kwargs or {}), "non_blocking": False}):
            self.copies.append(self.part)
        if name == "_local_scalar_dense":
            return 1.0  # fake tensors have no values; optimizers read their count of steps, from the host's memory
        out = None if name.startswith("_fused") else func(*args, **(kwargs or {}))  # some have no fake form
        kernels = _kernels(func, name, args, out)
        self.by_part.setdefault(self.part, Counter())[name] += kernels
        if kernels:
            if func.overloadpacket in flop_registry:
                self.flops[self.part] += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.bytes[self.part] += sum(x.nbytes for x in _tensors([args, out]) if _on_device(x))
        return out

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Context in which operators belong to a part."""
        before, self.part = self.part, part
        yield
        self.part = before

    @property
    def totals(self) -> dict[str, int]:
        """Launches of each part."""
        return {part: self.by_part.get(part, Counter()).total() for part in PARTS}


def _kernels(func: Any, name: str, args: Any, out: Any) -> int:
    if name in _NONE or any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
        return 0  # a view
    if not any(_on_device(x) for x in _tensors([args, out])):
        return 0
    if name == "convolution_backward":
        return sum(x is not None for x in out)
    if name.startswith(("_foreach", "_fused")):
        lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        if not all(_same_layout(a, b) for x in lists[1:] if x[0].ndim for a, b in zip(lists[0], x, strict=True)):
            return len(lists[0])  # the slow route, one by one
        most = _FOREACH_TENSORS[min(len(lists), len(_FOREACH_TENSORS)) - 1]
        chunks = sum(-(-x.numel() // _CHUNK) for x in lists[0])
        return max(-(-len(lists[0]) // most), -(-chunks // _FOREACH_CHUNKS))
    return _KERNELS.get(name, 1)


def _same_layout(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same dtype and strides, where a dimension has more than one element."""
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return a.dtype == b.dtype and all(here == there for length, here, there in strides if length > 1)


def _wait(name: str, args: Any, kwargs: Mapping[str, Any]) -> str:
    """What makes the host wait in a call of an operator; empty if nothing does."""
    tensors = list(_tensors(args))
    if name in _WAITS and any(_on_device(x) for x in tensors):
        return name
    if name in ("index", "index_put", "index_put_") and any(
        x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None
    ):
        return f"{name} by a mask"
    if name == "_to_copy" and tensors and "device" in kwargs:
        if kwargs.get("non_blocking") and getattr(tensors[0], "is_in_pinned_memory", False):
            return ""
        here, there = tensors[0].device.type, torch.device(kwargs["device"] or tensors[0].device).type
        return f"copy from {here} to {there}" if here != there else ""
    if name == "copy_" and len({x.device.type for x in tensors}) > 1:
        return "copy_ between host and device"
    return ""


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from _tensors(branch)


def _on_device(x: Tensor) -> bool:
    return x.device.type == "cuda"


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Context in which tensors are fake, and those on `DEVICE` need no GPU."""
    for kept in _KEPT:
        kept.cache_clear()  # real tensors, kept from other work
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(nn.Module, "to", _move),
        mock.patch.object(Tensor, "backward", backward),
        mock.patch.object(Tensor, "pin_memory", _pinned),
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
    ):
        yield
    for kept in _KEPT:
        kept.cache_clear()  # fake ones


def _pinned(tensor: Tensor) -> Tensor:
    """`Tensor.pin_memory`, which needs a driver."""
    pinned = tensor.clone()
    pinned.is_in_pinned_memory = True  # type: ignore[attr-defined]
    return pinned


def _move(
    module: nn.Module, device: torch.device | None = None, memory_format: Any = torch.preserve_format
) -> nn.Module:
    """`nn.Module.to`, which cannot exchange fake parameters."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    layout = memory_format if tensor.ndim == 4 else torch.preserve_format
                    moved = tensor.detach().to(device=device, memory_format=layout)
                    table[name] = nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved
    return module


def backward(root: Tensor, on_node: Callable[[Any], None] = lambda node: None) -> None:
    """`Tensor.backward`, whose engine asks the driver for streams: gradients of all leaves are accumulated.

    Args:
        on_node: called before each node of the graph.
    """
    waiting: Counter[Any] = Counter()
    stack, seen = [root.grad_fn], {root.grad_fn}
    while stack:
        for node in (node for node, _ in stack.pop().next_functions if node is not None):
            waiting[node] += 1
            if node not in seen:
                seen.add(node)
                stack.append(node)
    gradients: dict[Any, dict[int, Tensor]] = {root.grad_fn: {0: torch.ones_like(root)}}
    ready: list[Any] = [root.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            on_node(node)
            given = gradients.pop(node, {})
            if hasattr(node, "variable"):  # a leaf, which takes the gradient as it is if it has the leaf's layout
                leaf, gradient = node.variable, given[0]
                gradient = gradient if _same_layout(leaf, gradient) else torch.empty_like(leaf).copy_(gradient)
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                continue
            # A node in Python has `apply`, one in C++ is called itself.
            inputs = [given.get(i) for i in range(len(node._input_metadata))]
            found = getattr(node, "apply", node)(*inputs) if given else [None] * len(node.next_functions)
            found = found if isinstance(found, (tuple, list)) else [found]
            for (target, i), gradient in zip(node.next_functions, found, strict=False):
                if target is None:
                    continue
                if gradient is not None:
                    expected = target._input_metadata[i]
                    gradient = gradient.sum_to_size(tuple(expected.shape)).to(expected.dtype)
                    slots = gradients.setdefault(target, {})
                    slots[i] = slots[i] + gradient if i in slots else gradient
                waiting[target] -= 1
                if not waiting[target]:
                    ready.append(target)


def launches(config: PretrainConfig, *, image_size: int = 32, images: int = 50_000) -> Launches:
    """Launches of one training step of a config, the second of a run."""
    with fake_cuda():
        learner = Learner(config, DEVICE, images=images)
        learner._graph = None  # its operators are launched here as in a capture, with learning rates on the device
        batch = torch.zeros(config.batch_size, 3, image_size, image_size, dtype=torch.uint8, device=DEVICE)
        ids = torch.zeros(config.batch_size, dtype=torch.int64, device=DEVICE)
        learner.go_on_from(1)  # without the whitening of the first step
        with Launches():
            learner.step(batch, ids, epoch=0, lr=0.1)
        with Launches() as counter, _parts_named(learner, counter):
            learner.step(batch, ids, epoch=0, lr=0.1)
    return counter


def knn_flops(config: PretrainConfig, train: int = 50_000, test: int = 10_000) -> float:
    """FLOPs of a measurement of kNN accuracy while training: features of all images, and their products."""
    size, some = config.augment.image_size, 100
    with fake_cuda(), torch.no_grad():
        backbone = Learner(config, DEVICE).encoder.backbone.eval()
        with Launches() as counter:
            features = backbone(torch.zeros(some, 3, size, size, device=DEVICE))
    return counter.flops["other"] * (train + test) / some + 2.0 * train * test * features.shape[1]


@contextmanager
def _parts_named(learner: Learner, counter: Launches) -> Iterator[None]:
    """Context in which the counter knows which part of a step runs."""
    embed, terms, make_views = learner.embedder.embed, learner.loss_terms, training_step.make_views
    update = learner.optimizer.step
    encoder: set[Any] = set()

    def named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with counter.during(part):
                return function(*args, **kwargs)

        return call

    def embed_and_note(views: list[Tensor], step: int) -> Tensor:
        with counter.during("encoder"):
            z = embed(views, step)
        stack = [z.grad_fn]
        while stack:
            node = stack.pop()
            if node is not None and node not in encoder:
                encoder.add(node)
                stack += [target for target, _ in node.next_functions]
        return z

    def backward_by_part(root: Tensor) -> None:
        def note(node: Any) -> None:
            counter.part = "encoder" if node in encoder else "loss"

        with counter.during("loss"):
            backward(root, note)

    with (
        mock.patch.object(learner._rows, "lookup", named("views", learner._rows.lookup)),
        mock.patch.object(training_step, "make_views", named("views", make_views)),
        mock.patch.object(learner.embedder, "embed", embed_and_note),
        mock.patch.object(learner, "loss_terms", named("loss", terms)),
        mock.patch.object(learner.optimizer, "step", named("optimizer", update)),
        mock.patch.object(Tensor, "backward", backward_by_part),
    ):
        yield


SETTINGS: dict[str, dict[str, Any]] = {
    "V = 2": {},
    "V = 4": {"augment.crops": [{"count": 4, "size": 32}]},
    "V = 8": {"augment.crops": [{"count": 8, "size": 32}]},
    "V = 2 + 2, of 32 and 24 px": {"augment.crops": [{"count": 2, "size": 32}, {"count": 2, "size": 24}]},
    "V = 2, SGD": {"optim.name": "sgd"},
    "V = 4, projector of two layers": {
        "augment.crops": [{"count": 4, "size": 32}],
        "model.projector_layers": 2,
    },
    "V = 4, temperature 0.2": {"augment.crops": [{"count": 4, "size": 32}], "loss.temperature": 0.2},
    "V = 4, loss of cifar10": {
        "augment.crops": [{"count": 4, "size": 32}],
        "loss.temperature": 0.5,
        "loss.low_rank_norm": "frobenius",
    },
}
_PUBLISHED = {"loss.temperature": None, "loss.low_rank_norm": "nuclear"}


def settings(**overrides: Any) -> PretrainConfig:
    """ResNet-18 at 32 px with SimCLR's views and Muon; loss and three projector layers as published."""
    crops = [{"count": 2, "size": 32}]
    return load(
        "cifar10",
        precision="bfloat16",
        batch_size=256,
        **{"augment.crops": crops, "model.projector_layers": 3, **_PUBLISHED, **overrides},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--operators", action="store_true", help="also print how often each operator launches a kernel")
    args = parser.parse_args()
    rows = {}
    print(f"| launches a step | {' | '.join(PARTS)} | all | waits |\n|---|{'---|' * len(PARTS)}---|---|")
    for name, changes in SETTINGS.items():
        counted = launches(settings(**changes))
        rows[name] = {
            **counted.totals,
            "all": sum(counted.totals.values()),
            "waits": counted.waits,
            "gflop": {part: round(counted.flops[part] / 1e9, 1) for part in PARTS},
            "gigabytes": {part: round(counted.bytes[part] / 1e9, 2) for part in PARTS},
        }
        figures = " | ".join(str(count) for count in rows[name].values() if isinstance(count, int))
        print(f"| {name} | {figures} | {len(counted.waits)} |", flush=True)
        print(f"    GFLOP {rows[name]['gflop']}, GB {rows[name]['gigabytes']}")
        if args.operators:
            for part, operators in counted.by_part.items():
                print(f"    {part}: {', '.join(f'{op} {n}' for op, n in operators.most_common() if n)}")
            print(f"    waits: {counted.waits}")
    speedrun = load("cifar10-speedrun", precision="bfloat16")
    step, knn = launches(speedrun), knn_flops(speedrun)
    online = {"step_gflop": round(sum(step.flops.values()) / 1e9, 1), "knn_gflop": round(knn / 1e9, 1)}
    online["knn_in_steps"] = round(knn / sum(step.flops.values()), 1)
    print(f"cifar10-speedrun: {online}")
    if args.out:
        save(args.out, {"rows": rows, "online, cifar10-speedrun": online}, packages=("timm",))


if __name__ == "__main__":
    main()
