"""`ssole tune`: settings chosen without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from ssole.cli.common import DataWords, OptionalFolder, OptionalName, TrialChanges, data_spec, show
from ssole.errors import quoted, without_secrets


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Choose learning rate, loss weights and strength of the augmentation without labels.

    It finds little of what labels would: 7 % of the possible gain in four searches (CIFAR-10: -1.3 points of kNN
    accuracy against the recipe's own settings, where the best trial had +0.7; digits-m: +1.9 of +7.5). Use it where a
    recipe was made for other images than yours. With labels, even a few, use ssole compare.

    Examples:
      ssole tune --data photos/ --budget 30m --out runs/tuned
      ssole pretrain --data photos/ --recipe runs/tuned/tuned.yaml
    """

    data: DataWords = ()
    """Images, in any form that pretraining takes; no labels are used. By default, the recipe's own."""
    recipe: OptionalName = None
    """Settings to begin with: a recipe's name, or the path of a YAML file. By default, those that suit the data."""
    budget: Annotated[str, tyro.conf.arg(metavar="TIME")] = "30m"
    """Length of all trials together: 30m, 2h, 2000steps or 300kimages."""
    trials: int = 8
    """Number of trials, the recipe's own settings among them."""
    out: OptionalFolder = None
    """Folder for runs and recipe, by default runs/tune-RECIPE. With it, the same command goes on where it stopped."""
    allow_changes: TrialChanges = ()
    """Kinds of change since the first trial to accept. By default, every change is an error that shows it."""

    def __call__(self) -> int:
        from ssole.comparison.plan import settings_text
        from ssole.comparison.tune import FIGURE
        from ssole.comparison.tune import tune as run
        from ssole.data.describe import why_not_reopened
        from ssole.evaluation.results import METRICS
        from ssole.evaluation.verdict import COMPARED, CORRELATION

        given = {name: getattr(self, name) for name in ("recipe", "budget", "trials", "out", "allow_changes")}
        found = run(data_spec(self.data), **given)
        for number, trial in enumerate(found.trials):
            outcome = f"failed: {trial.error}" if trial.error is not None else f"{trial.scores[FIGURE]:.4g}"
            show(f"{'*' if number == found.chosen else ' '} trial {number}: {outcome}  {settings_text(trial.settings)}")
        trust = f"rank correlation with kNN was {CORRELATION[FIGURE]:+.2f} in {COMPARED} small runs"
        show(f"* has the best {METRICS[FIGURE]}, whose {trust}")
        show("such a choice found 7 % of what labels would have gained, in four searches (docs/compare.md)")
        show(f"recipe: {found.recipe}")
        # the recipe names the images too, but those behind a URL are fetched only if the user names it
        words = " ".join(map(quoted, self.data))
        option = without_secrets(f"--data {words} ") if why_not_reopened(self.data) is not None else ""
        show(f"train with it: ssole pretrain {option}--recipe {quoted(found.recipe)}")
        return 0
