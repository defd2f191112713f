"""Protocols: what an evaluation measures, by name. Each is a function from a case to its figures.

A protocol has a version, which `evaluation.json` keeps: figures of one version can be compared. It grows whenever the
figures of equal features would change.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssole import distributed
from ssole.evaluation.accuracy import accuracy, classified
from ssole.evaluation.attentive import NoTokensError, Tokens, attentive_probe
from ssole.evaluation.case import Case
from ssole.evaluation.clustering import clustering_figures
from ssole.evaluation.corruptions import CORRUPTIONS, STRENGTHS, CorruptedImages
from ssole.evaluation.datasets import Subset
from ssole.evaluation.features import DecodedImages, extract_views, for_each_batch
from ssole.evaluation.few_shot import INTERVAL, few_shot_accuracies
from ssole.evaluation.fine_tune import EPOCHS, balanced_split, fine_tune, split_digest
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.results import Outcome, Score
from ssole.evaluation.retrieval import retrieval_figures
from ssole.evaluation.sgd_probe import RATES, sgd_probe
from ssole.progress import progress_bar

NEIGHBOURS = (20, 10, 200)
SHOTS = (1, 5, 10)
VIEWED_IMAGES = CORRUPTED_IMAGES = 2000
"""Largest number of images for the label-free figures of views, and of test images that are corrupted."""
TOKEN_BYTES = 1 << 30
"""Largest memory for the spatial features of train images, and of test images."""


@dataclass(frozen=True)
class Protocol:
    """Way to measure a case."""

    version: int
    measure: Callable[[Case], Outcome]


def _knn(case: Case) -> Outcome:
    (train, labels), (test, test_labels) = case.train, case.test
    k = [one for one in NEIGHBOURS if one <= len(train)]
    if not k:
        least = min(NEIGHBOURS)
        raise ValueError(f"there are {len(train)} training images, and kNN needs at least {least}: give more images")
    for left_out in sorted(set(NEIGHBOURS) - set(k)):  # a note without the row's name: it is the same for every row
        case.notes.append(f"no kNN of k = {left_out}: there are {len(train)} training images.")
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
            case.notes.append(f"no {shots}-shot accuracy: the smallest class has {smallest} training images.")
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
    (features, _), views = case.train, None
    if case.model is not None and case.views is not None:
        sample = case.data.train.readable_part().thinned(VIEWED_IMAGES)
        views = extract_views(case.model, sample, sample.positions, case.views, device=case.device)
    outcome = Outcome.of(label_free_figures(features, views), len(features))
    outcome.details["rankme"] = {"features": features.shape[1]}
    return outcome


def _sgd(case: Case) -> Outcome:
    probe = sgd_probe(*case.train, num_classes=case.classes, seed=case.seed, progress=case.progress)
    if probe.rate in (RATES[0], RATES[-1]):
        case.note(f"the SGD probe chose the rate {probe.rate:g}, an end of the range tried.")
    outcome = classified("sgd", probe.scores(case.test[0]), case.test[1])
    outcome.details["sgd"] |= {"rate": probe.rate, "validation": probe.validation}
    return outcome


def _attentive(case: Case) -> Outcome:
    assert case.data.test is not None
    if case.model is None:
        return Outcome()
    try:
        tokens = Tokens(case.model)
        (train, labels), (test, test_labels) = (_tokens(case, tokens, one) for one in (case.data.train, case.data.test))
    except NoTokensError as error:
        case.note(f"no attentive probe: {error}.")
        return Outcome()
    probe = attentive_probe(
        train, labels, classes=case.classes, seed=case.seed, device=case.device, progress=case.progress
    )
    return classified("attentive", probe.scores(test), test_labels)


def _tokens(case: Case, tokens: Tokens, subset: Subset) -> tuple[Tensor, Tensor]:
    """Tokens (N, T, F) float16 and labels of as many images, evenly spaced, as a gigabyte holds."""
    first = case.extract(tokens, subset.select(torch.arange(1)), progress=False)
    count = min(len(subset), TOKEN_BYTES // (2 * first.shape[1]))
    if count < len(subset):
        case.note(f"attentive probe: {count} of {len(subset)} {case.kind(subset)}, to bound memory.")
    chosen = subset.thinned(count)
    kept = torch.empty(len(chosen), first.shape[1], dtype=torch.float16)

    def keep(start: int, rows: Tensor) -> None:
        halves = rows.half()
        if bool((halves.isinf() & rows.isfinite()).any()):
            raise NoTokensError("its spatial features go beyond 65,504, the largest number of float16")
        kept[start : start + len(rows)] = halves

    for_each_batch(
        tokens, chosen, case.preprocessing, keep, device=case.device, precision=case.precision, progress=case.progress
    )
    rows, labels = chosen.readable_rows(kept)
    return rows.view(len(rows), -1, tokens.width), labels


def _semi(case: Case) -> Outcome:
    if case.model is None:
        return Outcome()
    assert case.data.test is not None
    features, _ = case.train  # before, because it finds out which images can be read
    train, outcomes = case.data.train.readable_part(), []
    for share, epochs in EPOCHS.items():
        chosen = balanced_split(train.labels, share, seed=case.seed)
        try:
            model = fine_tune(
                case.model,
                train.select(chosen),
                case.preprocessing,
                features=features.shape[1],
                classes=case.classes,
                epochs=epochs,
                seed=case.seed,
                device=case.device,
                progress=case.progress,
            )
        except ValueError as error:
            case.note(f"no fine-tuning: {error}.")
            return Outcome()
        with distributed.alone():  # each process has tuned a network, and on GPUs their last digits differ
            logits = case.extract(model, case.data.test, progress=case.progress)
        logits, labels = case.data.test.readable_rows(logits)
        name = f"semi{round(100 * share)}"
        outcome = classified(name, logits.softmax(1, dtype=torch.float64), labels)
        outcome.details[name] |= {"images": len(chosen), "split": split_digest(train.positions[chosen])}
        outcomes.append(outcome)
    return Outcome.joined(outcomes)


def _robustness(case: Case) -> Outcome:
    assert case.data.test is not None
    sample = case.data.test.thinned(CORRUPTED_IMAGES)
    size, channels = case.preprocessing.image_size, case.preprocessing.channels or 3

    def accuracy_of(images: DecodedImages, *, progress: bool) -> float:
        features, labels = sample.readable_rows(case.features_of(images, progress=progress))
        return accuracy(case.probe.scores(features.to(case.device)), labels)

    found: dict[str, Any] = {"clean": accuracy_of(sample, progress=case.progress)}
    names = [name for name, one in CORRUPTIONS.items() if channels in (1, 3) or not one.pictures]
    with progress_bar("corruptions", len(names) * STRENGTHS, enabled=case.progress) as advance:
        for name in names:
            found[name] = []
            for strength in range(1, STRENGTHS + 1):
                images = CorruptedImages(subset=sample, size=size, name=name, strength=strength, seed=case.seed)
                found[name].append(accuracy_of(images, progress=False))  # the bar of all corruptions is shown
                advance()
    mean = statistics.fmean(value for name in names for value in found[name])
    figures = {"robustness": mean} | ({"robustness_kept": mean / found["clean"]} if found["clean"] else {})
    outcome = Outcome.of(figures, len(sample.readable_part()))
    outcome.details["robustness"] = found
    return outcome


PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(2, _knn),  # 2: also k = 200
    "linear": Protocol(2, _linear),  # 2: the minimum also of fits with a weak penalty
    "sgd": Protocol(1, _sgd),
    "attentive": Protocol(1, _attentive),
    "semi-supervised": Protocol(1, _semi),
    "few-shot": Protocol(1, _few_shot),
    "cluster": Protocol(1, _cluster),
    "retrieval": Protocol(1, _retrieval),
    "robustness": Protocol(3, _robustness),  # 2: the 15 corruptions of CIFAR-10-C; 3: linear 2
    "label-free": Protocol(3, _label_free),  # 2: views at the size of 8, alpha-ReQ, LiDAR, neighbours; 3: zero rows
}


def chosen_protocols(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of protocols, each once, in the order given; an underscore may stand for a hyphen.

    None at all, or an unknown one, is a ValueError.
    """
    given = [names] if isinstance(names, str) else list(names)
    chosen = tuple(dict.fromkeys(str(name).replace("_", "-") for name in given))
    if not chosen or not set(chosen) <= PROTOCOLS.keys():
        raise ValueError(f"protocol is {names!r}; choose from {', '.join(PROTOCOLS)}")
    return chosen
