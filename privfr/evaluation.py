"""A recogniser judged on faces it was not trained on: all pairs, or a listed protocol such as LFW's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces, require_identities
from privfr.faces.recogniser import Recogniser
from privfr.faces.verification import (
    Interval,
    Pairs,
    TenFold,
    Trials,
    UnresolvedFar,
    best_threshold,
    bootstrap,
    closed_set_rank1,
    evaluate,
    lfw_accuracy,
    open_set_tpir,
    pair_indices,
)

__all__ = ["Evaluation", "Identification", "evaluate_on", "listed_trials"]

# Fewest pairs a fold for an interval: a resample of people could leave smaller folds empty.
_RESAMPLED = 50


@dataclass(frozen=True)
class Identification:
    """Search instead of comparison: every second identity is enrolled with half of its pictures.

    rank1: share of enrolled people's other pictures found first (closed set).  tpir_at_fpir: share found
    and above the threshold that lets this share of strangers pass (open set), where strangers suffice.
    """

    rank1: float
    tpir_at_fpir: dict[str, float]
    enrolled: int
    probes: int
    strangers: int


@dataclass(frozen=True)
class Evaluation:
    """Verification figures of one model on one data set.

    eer, auc, tar_at_far: over all pairs, or over the listed ones.  accuracy: of a listed protocol, in
    [0, 1]; the ten-fold protocol where it has folds, else at the best threshold.  intervals: 95 %, over
    identities.
    """

    eer: float
    auc: float
    tar_at_far: dict[str, float]
    genuine: int
    impostor: int
    intervals: dict[str, Interval]
    accuracy: float | None = None
    folds: TenFold | None = None
    identification: Identification | None = field(default=None)


def evaluate_on(
    recogniser: Recogniser, faces: Faces, pairs: Pairs | None = None, *, samples: int = 200, seed: int = 0
) -> Evaluation:
    """Judge a recogniser on faces, over all their pairs or the listed ones.

    samples: identity resamples behind the intervals; 0 for none.  Raises `InputError` where the faces
    allow no comparison, and for pictures that the pairs name and the faces lack.
    """
    if pairs is not None:
        return _on_pairs(recogniser, faces, pairs, samples, seed)
    require_identities(faces, 2, "verification")
    if faces.counts.max() < 2:
        raise InputError("no person here has two pictures, so there is no genuine pair; add some")
    embeddings = recogniser.embed(faces.images)
    found = evaluate(embeddings, faces.labels, seed, samples)
    return Evaluation(
        found.eer, found.auc, found.tar_at_far, found.genuine, found.impostor, found.intervals,
        identification=_identify(embeddings, faces),
    )  # fmt: skip


def listed_trials(recogniser: Recogniser, faces: Faces, pairs: Pairs) -> Trials:
    """Score the listed pairs; only the pictures they name are embedded."""
    i, j = pair_indices(pairs, faces)
    needed, position = np.unique(np.concatenate([i, j]), return_inverse=True)
    embeddings = recogniser.embed(faces.images[needed])
    first, second = np.split(position, 2)
    return Trials.listed(embeddings, faces.labels[needed], first, second)


def _on_pairs(recogniser: Recogniser, faces: Faces, pairs: Pairs, samples: int, seed: int) -> Evaluation:
    trials = listed_trials(recogniser, faces, pairs)
    curve = trials.roc()

    def resampled(weights: NDArray[np.float64]) -> float:
        return lfw_accuracy(trials.scores, trials.same, pairs.folds, weights).accuracy

    folds = (
        lfw_accuracy(trials.scores, trials.same, pairs.folds) if len(set(pairs.folds.tolist())) > 1 else None
    )
    accuracy = folds.accuracy if folds else _best_accuracy(trials)
    intervals = {}
    if samples:
        a, b = trials.identity_a, trials.identity_b
        intervals["eer"] = bootstrap(lambda w: trials.roc(w).eer, a, b, samples, seed)
        intervals["auc"] = bootstrap(lambda w: trials.roc(w).auc, a, b, samples, seed)
        if folds and np.bincount(pairs.folds).min() >= _RESAMPLED:
            intervals["accuracy"] = bootstrap(resampled, a, b, samples, seed)
    return Evaluation(
        curve.eer,
        curve.auc,
        curve.tar_at_far_table(),
        curve.genuine,
        curve.impostor,
        intervals,
        accuracy,
        folds,
    )


def _best_accuracy(trials: Trials) -> float:
    return float(np.mean((trials.scores >= best_threshold(trials.scores, trials.same)) == trials.same))


def _identify(embeddings: NDArray[np.float32], faces: Faces) -> Identification | None:
    """Enrol every second identity that has two pictures, by the first half of them; None where none has."""
    order = np.argsort(faces.labels, kind="stable")
    rank = np.empty(len(faces), np.int64)
    rank[order] = np.arange(len(faces)) - np.repeat(np.cumsum(faces.counts) - faces.counts, faces.counts)
    known = (faces.labels % 2 == 0) & (faces.counts[faces.labels] >= 2)
    gallery = known & (rank < faces.counts[faces.labels] // 2)
    probe, stranger = known & ~gallery, faces.labels % 2 == 1
    if not gallery.any():
        return None
    enrolled, owners = embeddings[gallery], faces.labels[gallery]
    everyone, tpir = probe | stranger, {}
    for name in ("1e-1", "1e-2"):
        try:
            tpir[name] = open_set_tpir(
                enrolled, owners, embeddings[everyone], faces.labels[everyone], float(name)
            )
        except UnresolvedFar:
            break
    rank1 = closed_set_rank1(enrolled, owners, embeddings[probe], faces.labels[probe])
    return Identification(rank1, tpir, len(np.unique(owners)), int(probe.sum()), int(stranger.sum()))
