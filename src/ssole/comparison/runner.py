"""Runner of all trials of a comparison, in a fixed order; the result is saved after each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole import __version__
from ssole.comparison.images import Images, sample
from ssole.comparison.plan import (
    ArmPlan,
    Rung,
    cost_lines,
    draw_settings,
    ranked,
    rungs,
    settings_text,
    short_search_notes,
    shortened,
    steps_for_share,
)
from ssole.comparison.plots import draw
from ssole.comparison.request import Arm, Request
from ssole.comparison.result import RESULT_FILE, ArmResult, Comparison, SearchTrial
from ssole.comparison.trial import RANKED_BY, Trial, other_version_error, run_trial, score_run
from ssole.config import PretrainConfig, apply_overrides
from ssole.data.base import Spec
from ssole.data.store import ImageStore
from ssole.evaluation.online import knn_evaluator
from ssole.evaluation.preprocessing import Preprocessing
from ssole.files import read_json
from ssole.progress import say
from ssole.runtime import environment
from ssole.training.images import keep_or_compare_images
from ssole.training.run import Change, Run

if TYPE_CHECKING:
    from ssole.training.monitor import Evaluator

CURVE_POINTS = 8
CURVE_IMAGES = (10_000, 2_000)
"""Most train and test images for a point of the curve of accuracy. The figures of the table use all images."""


@dataclass(kw_only=True)
class Runner:
    """Runner of a comparison: the search of each arm, then one run of each arm for seed 0, then for seed 1, ..."""

    request: Request
    arms: Sequence[Arm]
    """Its arms, with mean and std measured on the images."""
    plan: Mapping[str, ArmPlan]
    """Steps by arm."""
    folder: Path
    data: Spec
    """The training images as they were given."""
    images: Images
    progress: bool
    """Whether to print the cost, and to show progress."""
    allow_changes: Collection[Change] = ()
    """Kinds of change since the start that are accepted."""

    def __post_init__(self) -> None:
        plan, images = self.plan, self.images
        self._train: Spec = images.train if images.is_part else self.data  # run folders name data where they can
        self._results = {name: ArmResult(steps=one.steps, error=one.error) for name, one in plan.items()}
        self._are_checked = False
        self._versions = _versions(self.folder) or [__version__]
        self._curve_stores: dict[Preprocessing, list[ImageStore]] = {}
        self._notes = [*images.notes, *short_search_notes(self.request, plan, len(images.search_train))]

    def run(self) -> Comparison:
        """Run all trials that have not finished, and save the result."""
        for line in (*cost_lines(self.request, self.plan), *self._notes):
            self._say(line)
        able = [arm for arm in self.arms if self.plan[arm.name].error is None]
        for arm in able:
            self._search(arm)
        for seed in range(self.request.seeds):
            for arm in able:
                if self._results[arm.name].error is None:
                    self._run_seed(arm, seed)
        try:
            draw(self._result())
        except ImportError:
            self._notes.append("No plots: they need matplotlib, pip install 'ssole[plot]'.")
        return self._saved()

    def _search(self, arm: Arm) -> None:
        """Search the settings of an arm, and record those chosen in its result."""
        result = self._results[arm.name]
        candidates = list(range(self.request.search))  # best first, from the second rung on
        for number, rung in enumerate(rungs(self.request.search)):
            scores: dict[int, float] = {}
            for trial in candidates:  # the next best takes the place of one that fails
                if len(scores) == rung.trials:
                    break
                found = self._search_trial(arm, trial, number, rung)
                result.search.append(found)
                if found.score is not None:
                    scores[trial] = found.score
                self._saved()
            if not scores:
                last = result.search[-1].error
                reason = f"all trials in round {number + 1} of its search failed, the last one by {last}"
                self._results[arm.name] = replace(result, error=reason)
                return
            candidates = ranked(scores)
        if candidates:
            result.chosen.update(draw_settings(arm, candidates[0]))
            self._say(f"{arm.name}: chosen {settings_text(result.chosen)}")

    def _search_trial(self, arm: Arm, trial: int, number: int, rung: Rung) -> SearchTrial:
        """Train a trial in the rung number `number`, and score it on the validation images."""
        train, validation = self.images.search_train, self.images.validation
        record = self._trial(
            arm,
            f"search-{number}-trial-{trial}",
            draw_settings(arm, trial),
            steps=steps_for_share(self._results[arm.name].steps, rung.share),
            seed=self.request.seeds,  # which no run of the result has
            data=train,
            measure=partial(score_run, data=train, test=validation, protocol="knn", progress=False),
        )
        score = None if record.error is not None else record.scores[RANKED_BY]
        return SearchTrial(trial=trial, steps=record.steps, settings=record.settings, score=score, error=record.error)

    def _run_seed(self, arm: Arm, seed: int) -> None:
        """Train the run of an arm with this seed on all training images, and evaluate it on the test images."""
        result, images = self._results[arm.name], self.images
        protocol = ("knn", "linear", "label-free")
        record = self._trial(
            arm,
            f"seed-{seed}",
            result.chosen,
            steps=result.steps,
            seed=seed,
            data=self._train,
            measure=partial(score_run, data=images.train, test=images.test, protocol=protocol, progress=self.progress),
            with_curve=True,
        )
        result.runs.append(record)
        self._saved()

    def _trial(
        self,
        arm: Arm,
        name: str,
        settings: Mapping[str, Any],
        *,
        steps: int,
        seed: int,
        data: Spec,
        measure: Callable[[Run], dict[str, float]],
        with_curve: bool = False,
    ) -> Trial:
        """Record of a trial of an arm, in a folder of this name."""
        whole = self._results[arm.name].steps
        config = apply_overrides(shortened(arm.config, steps, whole), {**settings, "seed": seed})
        self._say(f"{arm.name}, {name}, {steps} steps: {settings_text(settings)}")
        record = run_trial(
            self.folder / arm.name / name,
            config,
            data,
            measure,
            settings=settings,
            loss=arm.module,
            evaluators=partial(self._curve_evaluator, config) if with_curve else dict,
            progress=self.progress,
            check=self._check_unchanged,
            allow_changes=self.allow_changes,
        )
        outcome = f"kNN {100 * record.scores[RANKED_BY]:.1f} %" if record.error is None else f"failed: {record.error}"
        self._say(f"{arm.name}, {name}: {outcome}")
        return record

    def _check_unchanged(self) -> None:
        """Raise an error if images or version of ssole differ from those of the finished trials. Checked only once."""
        if self._are_checked:
            return
        if __version__ not in self._versions:
            if "version" not in self.allow_changes:
                raise other_version_error(self.folder, self._versions[0], __version__)
            self._versions.append(__version__)
        for name, source in (("images.json", self.images.train), ("test-images.json", self.images.test)):
            keep_or_compare_images(Run(self.folder), source, name=name, allowed="images" in self.allow_changes)
        self._are_checked = True

    def _curve_evaluator(self, config: PretrainConfig) -> dict[int, Evaluator]:
        """Evaluator of kNN accuracy along a run, on a sample of the images."""
        assert config.steps is not None
        preprocessing = Preprocessing.from_config(config)
        if preprocessing not in self._curve_stores:
            both = zip((self.images.train, self.images.test), CURVE_IMAGES, strict=True)
            self._curve_stores[preprocessing] = [
                preprocessing.open_store(sample(source, most), progress=False, max_unreadable=config.max_unreadable)
                for source, most in both
            ]
        train, test = self._curve_stores[preprocessing]
        every = max(1, config.steps // CURVE_POINTS)
        return {every: knn_evaluator(train, test, preprocessing, precision=config.precision)}

    def _result(self) -> Comparison:
        images = self.images
        parts = {name: getattr(images, name) for name in ("train", "test", "search_train", "validation")}
        if not self.request.search:
            parts = {name: parts[name] for name in ("train", "test")}
        versions = " and ".join(self._versions)
        return Comparison(
            path=self.folder,
            arms=self._results,
            request=self.request.to_dict(),
            environment=environment(command=False) | {"ssole": versions},
            data={name: f"{source.name}, {len(source):,} images" for name, source in parts.items()},
            notes=self._notes + ([f"Runs of ssole {versions} are compared."] if " and " in versions else []),
        )

    def _saved(self) -> Comparison:
        result = self._result()
        result.save()
        return result

    def _say(self, line: str) -> None:
        say(line, enabled=self.progress)


def _versions(folder: Path) -> list[str]:
    """Versions of ssole that trained the runs in a comparison's folder."""
    path = folder / RESULT_FILE
    found = read_json(path).get("environment") if path.is_file() else None
    return str(found["ssole"]).split(" and ") if isinstance(found, dict) and "ssole" in found else []
