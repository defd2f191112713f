"""`ssole eval`: accuracy of a run's features, beside raw pixels and the untrained network."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import tyro

from ssole.cli.common import DataWords, OptionalFile, RunPath, data_spec, parse, run_config, run_data

Words = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--protocol"], metavar="NAME,NAME")]


@dataclass(frozen=True, kw_only=True)
class EvalArgs:
    """Options of `ssole eval`."""

    run: RunPath
    """Run folder, or its backbone.safetensors."""
    data: DataWords = ()
    """Labelled images, in any form that pretraining takes. By default, the data of the run."""
    test: DataWords = ()
    """Images to test on. By default, the test split of the data, or else a held-out part of them."""
    protocols: Words = ("knn", "linear")
    """What to measure, separated by commas: knn, linear, few-shot, cluster, retrieval, label-free."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the held-out part, where one has to be made, and of the probe's validation split."""
    save: OptionalFile = None
    """Also write the result as JSON. By default, to RUN/evaluation.json when RUN is a folder."""


def evaluate(argv: Sequence[str]) -> int:
    """Measure how good the features of a run are, beside raw pixels and the same network untrained.

    Examples:
      ssole eval runs/mine
      ssole eval runs/mine --data photos/ --test photos-to-test-on/
      ssole eval runs/mine --protocols knn,few-shot,cluster

    With labels: accuracy of weighted kNN and of a linear probe on the frozen features.
    Without labels: effective rank, alignment and uniformity of the features.
    """
    from rich.console import Console

    from ssole.evaluation.evaluate import evaluate as measure
    from ssole.evaluation.label_free import VIEWS
    from ssole.views import make_views

    args = parse(evaluate, EvalArgs, argv, name="eval")
    config = run_config(args.run)
    recipe = None if config is None else config.augment.main_views(VIEWS)
    result = measure(
        args.run,
        data_spec(args.data) or run_data(config, args.run),
        test=data_spec(args.test),
        protocol=[name for words in args.protocols for name in words.split(",")],
        views=None if recipe is None else partial(make_views, recipe=recipe, seed=args.seed, epoch=0),
        seed=args.seed,
        device=args.device,
    )
    Console().print(result.table())
    save = args.save or (args.run / "evaluation.json" if args.run.is_dir() else None)
    if save is not None:
        try:
            result.save(save)
        except OSError as error:
            if args.save is not None:
                raise
            why = f"{save} could not be written ({error.strerror})"
            warnings.warn(f"{why}: --save FILE saves the result elsewhere", stacklevel=1)
            return 0
        print(f"saved: {save}")
    return 0
