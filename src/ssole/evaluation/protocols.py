"""Protocols: what an evaluation measures, by name. Each is a function from a case to its figures.

A protocol has a version, which `evaluation.json` keeps: figures of one version can be compared. It grows whenever the
figures of equal features would change.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ssole.evaluation.accuracy import classified
from ssole.evaluation.case import Case
from ssole.evaluation.clustering import clustering_figures
from ssole.evaluation.features import extract_views
from ssole.evaluation.few_shot import INTERVAL, few_shot_accuracies
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.results import Outcome, Score
from ssole.evaluation.retrieval import retrieval_figures

NEIGHBOURS = (20, 10, 200)
SHOTS = (1, 5, 10)
VIEWED_IMAGES = 2000
"""Largest number of images for the label-free figures of views."""


@dataclass(frozen=True)
class Protocol:
    """Way to measure a case."""

    version: int
    measure: Callable[[Case], Outcome]
    labels: bool = True
    """Whether it needs labels."""


def _knn(case: Case) -> Outcome:
    (train, labels), (test, test_labels) = case.train, case.test
    k = [one for one in NEIGHBOURS if one <= len(train)]
    if not k:
        least = min(NEIGHBOURS)
        raise ValueError(f"there are {len(train)} training images, and kNN needs at least {least}: give more images")
    for left_out in sorted(set(NEIGHBOURS) - set(k)):
        case.note(f"no kNN of k = {left_out}: there are {len(train)} training images.")
    votes = knn_classify(train, labels, test, k=k, num_classes=case.classes, progress=case.progress)
    return Outcome.joined([classified(f"knn{one}", votes[one], test_labels) for one in k])


def _linear(case: Case) -> Outcome:
    outcome = classified("linear", case.probe.scores(case.test[0]), case.test[1])
    facts = {key: getattr(case.probe, key) for key in ("c", "converged", "iterations", "validation")}
    outcome.details["linear"] |= facts
    return outcome


def _few_shot(case: Case) -> Outcome:
    smallest = int(case.train[1].unique(return_counts=True)[1].min())
    outcome = Outcome()
    for shots in SHOTS:
        if shots > smallest:
            case.note(f"no {shots}-shot accuracy: the smallest class has {smallest} training images.")
            continue
        values = few_shot_accuracies(*case.train, *case.test, shots=shots, seed=case.seed, progress=case.progress)
        std = statistics.stdev(values)
        score = Score(value=statistics.fmean(values), std=std, n=len(case.test[1]), interval=INTERVAL * std)
        outcome.scores[f"few_shot{shots}"] = score
        outcome.details[f"few_shot{shots}"] = {"episodes": values}
    return outcome


def _cluster(case: Case) -> Outcome:
    figures = clustering_figures(*case.test, seed=case.seed, progress=case.progress)
    return Outcome.of(figures, len(case.test[1]))


def _retrieval(case: Case) -> Outcome:
    figures, queries = retrieval_figures(*case.test, seed=case.seed, progress=case.progress)
    return Outcome.of(figures, queries)


def _label_free(case: Case) -> Outcome:
    views = None
    if case.model is not None and case.views is not None:
        images = case.data.train
        sample = images.select(torch.linspace(0, len(images) - 1, min(len(images), VIEWED_IMAGES)).long())
        views = extract_views(case.model, sample, sample.positions, case.views, device=case.device)
    features, _ = case.train
    return Outcome.of(label_free_figures(features, views), len(features))


PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(2, _knn),  # 2: also k = 200
    "linear": Protocol(1, _linear),
    "few-shot": Protocol(1, _few_shot),
    "cluster": Protocol(1, _cluster),
    "retrieval": Protocol(1, _retrieval),
    "label-free": Protocol(2, _label_free, labels=False),  # 2: views at the size of 8, alpha-ReQ, LiDAR, neighbours
}


def chosen_protocols(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of protocols, each once, in the order given; an underscore may stand for a hyphen.

    Raises:
        ValueError: there is none, or an unknown one.
    """
    given = [names] if isinstance(names, str) else list(names)
    chosen = tuple(dict.fromkeys(str(name).replace("_", "-") for name in given))
    if not chosen or not set(chosen) <= PROTOCOLS.keys():
        raise ValueError(f"protocol is {names!r}; choose from {', '.join(PROTOCOLS)}")
    return chosen
