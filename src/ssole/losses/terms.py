"""Named terms: what training needs from a loss, whoever wrote it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

# Keys of a line of metrics.jsonl that are not terms of the loss.
RESERVED = {"step", "epoch", "effective_rank", "lr", "images_per_second", "data_wait", "seconds"}


def named_terms(loss: nn.Module, z: Tensor, *arguments: Tensor) -> dict[str, Tensor]:
    """Terms of a loss by name, the total first, under the name `loss`.

    They come from `loss.terms(z)` if there is such a method, else from `loss(z)`. Either may return a scalar, a mapping
    of names to scalars, or a NamedTuple of scalars. In the last two, the total is called `total` or `loss`.

    Args:
        loss: maps embeddings to a scalar or to named terms.
        z: embeddings (B, V, D).
        arguments: further arguments of the loss, such as labels.

    Raises:
        ValueError: anything else came back; the message says what.
    """
    method = getattr(loss, "terms", None)
    compute: Callable[..., object] = method if inspect.ismethod(method) else loss  # it may be a list of modules
    output = compute(z, *arguments)
    terms = _by_name(output)
    totals = {"total", "loss"} & terms.keys()
    scalars = all(isinstance(term, Tensor) and term.ndim == 0 for term in terms.values())
    if len(totals) != 1 or not scalars or RESERVED & terms.keys():
        raise ValueError(
            f"{type(loss).__name__} must return a scalar tensor, or scalar tensors by name, the total as 'total' or "
            f"'loss' (not both) and none as {', '.join(sorted(RESERVED))}; got {_described(output)}"
        )
    return {"loss": terms.pop(*totals), **terms}


def _by_name(output: object) -> dict[str, Any]:
    if isinstance(output, Tensor):
        return {"loss": output}
    if hasattr(output, "_asdict"):  # a NamedTuple
        return dict(output._asdict())
    return dict(output) if isinstance(output, Mapping) else {}


def _described(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return "{" + ", ".join(f"{name}: {_described(term)}" for name, term in output.items()) + "}"
    return f"a {type(output).__name__}"
