"""How well embeddings tell people apart: verification, LFW, identification, and how sure one can be.

A trial is a pair of images and its score, higher meaning more alike; it is accepted when score >= threshold.
FAR is the share of impostor pairs accepted, TAR that of genuine pairs, FRR = 1 - TAR (ISO/IEC 19795-1).

Cosines are rounded to steps of 2^-20, about what float32 arithmetic can tell apart. A collapsed model, whose
cosines are 1 but for the last bit, then scores AUC 0.5, not 0 or 1 by luck of the order a BLAS sums in;
and the ROC of *all* pairs follows exactly from two histograms, in bounded memory, for any number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privfr.errors import InputError

if TYPE_CHECKING:
    from privfr.faces.datasets import Faces

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.int64]

FARS = {name: float(name) for name in ("1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6")}
"""The false accept rates a report gives, by the name it gives them."""

IMPOSTORS_PER_FAR = 10
"""A FAR is resolved by 10/FAR impostor trials or more: it then rests on ten or more of them, for a relative
standard error of about 1/sqrt(10), a third, were they independent."""

_GRID = 1 << 20
_BLOCK = 1 << 22  # scores held at once; 32 MiB as int64
_INTERVAL_PAIRS = 200_000
_MISS = -2.0  # below every cosine


class UnresolvedFar(InputError):
    """There are too few impostor trials to speak of this false accept rate."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval; `level` is its nominal coverage (0.95)."""

    low: float
    high: float
    level: float


# --- scores ----------------------------------------------------------------------------------------------


def _unit(embeddings: ArrayLike, what: str = "embeddings") -> NDArray[np.float32]:
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or not rows.size:
        raise InputError(f"{what}: shape {rows.shape}; give one row per image, [n, d]")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms[:, 0]) | (norms[:, 0] == 0))
    if len(bad):
        raise InputError(
            f"{what}: row {bad[0]} has no direction (zero, NaN or infinite); {len(bad)} such rows"
        )
    return np.asarray(rows / norms, dtype=np.float32)


def _labels(labels: ArrayLike, count: int, what: str = "labels") -> Indices:
    array = np.asarray(labels, dtype=np.int64)
    if array.shape != (count,):
        raise InputError(f"{what}: shape {array.shape} for {count} embeddings; give one label per embedding")
    return array


def _codes(cosines: NDArray[np.float32]) -> Indices:
    """Scores as integers 0..2*_GRID, in steps of 1/_GRID from -1."""
    return np.clip(np.rint(cosines * _GRID).astype(np.int64), -_GRID, _GRID) + _GRID


def cosine(embeddings: ArrayLike, i: Indices, j: Indices) -> NDArray[np.float64]:
    """Scores of listed pairs, float64 [m] on the 2^-20 grid; embeddings [n, d] of any length."""
    units = _unit(embeddings)
    scores = np.empty(len(i))
    rows = max(1, _BLOCK // units.shape[1])
    for start in range(0, len(i), rows):
        part = slice(start, start + rows)
        scores[part] = _codes(np.einsum("nd,nd->n", units[i[part]], units[j[part]]))
    return (scores - _GRID) / _GRID


def all_pairs_roc(embeddings: ArrayLike, labels: ArrayLike) -> Roc:
    """The ROC over all n(n-1)/2 pairs of embeddings [n, d] with identity labels [n], no pair left out."""
    units = _unit(embeddings)
    n = len(units)
    identity = _labels(labels, n)
    counts = np.zeros((2, 2 * _GRID + 1), dtype=np.int64)
    rows, column = max(1, _BLOCK // n), np.arange(n)
    for start in range(0, n, rows):
        block = slice(start, start + rows)
        codes = _codes(units[block] @ units[start:].T)
        once = column[start:] > column[block, None]
        same = identity[start:] == identity[block, None]
        counts[0] += np.bincount(codes[once & same], minlength=counts.shape[1])
        counts[1] += np.bincount(codes[once & ~same], minlength=counts.shape[1])
    bins = np.flatnonzero(counts.any(axis=0))[::-1]
    genuine, impostor = counts.sum(axis=1).tolist()
    cumulative = np.cumsum(counts[:, bins], axis=1).astype(np.float64)
    return _curve((bins - _GRID) / _GRID, cumulative[0], cumulative[1], genuine, impostor)


@dataclass(frozen=True, eq=False)
class Trials:
    """Scored pairs and whose they are.

    scores: float [m], higher = more alike.  identity_a, identity_b: int [m], the two identities of each pair;
    the pair is genuine where they are equal.  NaN or infinite scores raise InputError.
    """

    scores: Floats
    identity_a: Indices
    identity_b: Indices

    def __post_init__(self) -> None:
        """Refuse what no metric is defined on."""
        if not (self.scores.shape == self.identity_a.shape == self.identity_b.shape == (len(self.scores),)):
            raise InputError("trials: scores, identity_a and identity_b must be three vectors of one length")
        if not np.isfinite(self.scores).all():
            raise InputError(f"trials: {np.sum(~np.isfinite(self.scores))} scores are NaN or infinite")

    @classmethod
    def listed(cls, embeddings: ArrayLike, labels: ArrayLike, i: Indices, j: Indices) -> Trials:
        """The cosine trials of the listed pairs (i, j) of embeddings [n, d] with identity labels [n]."""
        identity = np.asarray(labels, dtype=np.int64)
        return cls(cosine(embeddings, i, j), identity[i], identity[j])

    @classmethod
    def drawn(cls, embeddings: ArrayLike, labels: ArrayLike, limit: int, seed: int) -> Trials:
        """All genuine and all impostor pairs; of a kind with more than `limit`, that many, from `seed`."""
        identity, rng = _labels(labels, len(_unit(embeddings))), np.random.default_rng(seed)
        pairs = [_pairs(identity, same, limit, rng) for same in (True, False)]
        i, j = np.concatenate(pairs, axis=1)
        return cls.listed(embeddings, identity, i, j)

    @cached_property
    def same(self) -> NDArray[np.bool_]:
        """bool [m]: which pairs are genuine."""
        return np.equal(self.identity_a, self.identity_b)

    @cached_property
    def _ranking(self) -> tuple[Indices, Indices, NDArray[np.bool_]]:
        """The order of falling score, the end of each run of equal scores, `same` in that order."""
        order = np.argsort(-self.scores, kind="stable")
        return order, _run_ends(self.scores[order]), self.same[order]

    def roc(self, weights: Floats | None = None) -> Roc:
        """The ROC, each pair counted `weights` [m] times (a resample); scores are sorted once per object."""
        order, ends, same = self._ranking
        ranked = np.ones(len(order)) if weights is None else weights[order]
        genuine = np.cumsum(np.where(same, ranked, 0.0))[ends]
        impostor = np.cumsum(np.where(same, 0.0, ranked))[ends]
        count = int(np.count_nonzero(same))
        return _curve(self.scores[order[ends]], genuine, impostor, count, len(same) - count)


def _run_ends(ranked: Floats) -> Indices:
    """Last position of each run of equal values."""
    return np.flatnonzero(np.append(ranked[1:] != ranked[:-1], [True] * bool(len(ranked))))


def _pairs(identity: Indices, same: bool, limit: int, rng: np.random.Generator) -> Indices:
    """Image indices [2, m] of the pairs of one kind.

    With the images ordered by identity, image p makes its genuine pairs with start..p-1 and its impostor
    pairs with 0..start-1 (`start`: its identity's first image), so pairs can be numbered and drawn unlisted.
    """
    order = np.argsort(identity, kind="stable")
    start = np.searchsorted(identity[order], identity[order])
    partners = np.arange(len(order)) - start if same else start
    ends = np.cumsum(partners)
    total = int(ends[-1])
    if total <= limit:
        picks = np.arange(total)
    else:
        picks = np.sort(rng.choice(total, limit, replace=False, shuffle=False))
    p = np.searchsorted(ends, picks, side="right")
    q = picks - (ends - partners)[p] + (start[p] if same else 0)
    return np.stack([order[q], order[p]])


# --- verification ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Roc:
    """A receiver operating characteristic: the vertices (far, tar) reached as the threshold falls.

    thresholds: float64 [k+1], falling, first +inf (nobody accepted), then every distinct score.
    far, tar: float64 [k+1], rising from 0 to 1.  genuine, impostor: numbers of trials (unweighted).
    """

    thresholds: NDArray[np.float64]
    far: NDArray[np.float64]
    tar: NDArray[np.float64]
    genuine: int
    impostor: int

    @property
    def auc(self) -> float:
        """P(genuine > impostor) + P(equal)/2, Mann-Whitney's: the trapezoidal area under the vertices."""
        return float(np.sum(np.diff(self.far) * (self.tar[1:] + self.tar[:-1])) / 2)

    @property
    def eer(self) -> float:
        """Equal error rate: FAR where it meets FRR, linear between the two vertices about the crossing.

        On the ROC itself, that is, not on its convex hull, which would flatter.
        """
        excess = self.far + self.tar - 1.0  # FAR - FRR, from -1 to 1
        after = int(np.argmax(excess >= 0))
        below, above = excess[after - 1], excess[after]
        return float(self.far[after - 1] + (self.far[after] - self.far[after - 1]) * below / (below - above))

    def _at(self, far: float) -> int:
        if not 0 < far <= 1:
            raise InputError(f"FAR {far:g} is not a rate in (0, 1]")
        if self.impostor * far < IMPOSTORS_PER_FAR * (1 - 1e-9):
            needed, least = IMPOSTORS_PER_FAR / far, IMPOSTORS_PER_FAR / self.impostor
            raise UnresolvedFar(
                f"FAR {far:g} needs {needed:.0f} impostor trials ({IMPOSTORS_PER_FAR}/FAR); the "
                f"{self.impostor} there are resolve none below {least:.3g}: ask a larger or score more pairs"
            )
        return int(np.searchsorted(self.far, far, side="right")) - 1

    def tar_at(self, far: float) -> float:
        """The best TAR of any threshold whose FAR is at most `far`: a vertex, never interpolated.

        UnresolvedFar where impostor < IMPOSTORS_PER_FAR / far.
        """
        return float(self.tar[self._at(far)])

    def threshold_at(self, far: float) -> float:
        """The lowest threshold whose FAR is at most `far`; +inf where only accepting nobody achieves it."""
        return float(self.thresholds[self._at(far)])

    def tar_at_far_table(self) -> dict[str, float]:
        """TAR at each of FARS that the impostor trials resolve, and at no other."""
        table = {}
        for name, far in FARS.items():
            try:
                table[name] = self.tar_at(far)
            except UnresolvedFar:
                break
        return table


def _curve(thresholds: Floats, genuine: Floats, impostor: Floats, genuines: int, impostors: int) -> Roc:
    """A Roc of cumulative weights at falling thresholds."""
    for kind, total in (("genuine", genuine), ("impostor", impostor)):
        if not len(total) or not total[-1] > 0:
            raise InputError(f"no {kind} pairs: a ROC needs pairs of one person and pairs of two")
    return Roc(
        np.concatenate([[np.inf], thresholds]),
        np.concatenate([[0.0], impostor / impostor[-1]]),
        np.concatenate([[0.0], genuine / genuine[-1]]),
        genuines,
        impostors,
    )


def roc(genuine: ArrayLike, impostor: ArrayLike) -> Roc:
    """The ROC of genuine scores [g] and impostor scores [i].  An empty side, NaN or inf raise InputError."""
    sides = [np.asarray(side, dtype=np.float64).ravel() for side in (genuine, impostor)]
    second = np.repeat([0, 1], [len(side) for side in sides])
    return Trials(np.concatenate(sides), np.zeros_like(second), second).roc()


# --- Labeled Faces in the Wild ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Pairs:
    """Listed image pairs. first, second: "Name/Name_0001", no extension; same: bool [m]; folds: int64 [m]."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: NDArray[np.bool_]
    folds: Indices

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.first)


@dataclass(frozen=True)
class TenFold:
    """Mean accuracy of the folds, its sample deviation and standard error; each fold's own figures."""

    accuracy: float
    std: float
    standard_error: float
    thresholds: tuple[float, ...]
    per_fold: tuple[float, ...]


def read_pairs(path: str | Path) -> Pairs:
    """Read an official LFW pairs file (Huang, Ramesh, Berg, Learned-Miller, TR 07-49, 2007).

    "name i j" is a same pair, "name1 i name2 j" a different one. View 2 opens with "folds n" and holds, per
    fold, n same then n different pairs; View 1, with or without its header "n", is one fold.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a pairs file ({error})") from error
    rows = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    header = [int(word) for word in rows.pop(0)[1]] if rows and _is_header(rows[0][1]) else None
    parsed = [_parse_pair(words, f"{path}:{number}") for number, words in rows]
    names = [(first.rpartition("/")[0], second.rpartition("/")[0]) for first, second in parsed]
    same = np.array([first == second for first, second in names], dtype=bool)
    *several, each = header or [int(same.sum())]
    folds = several[0] if several else 1
    if not (0 < same.sum() < len(same) and folds and each):
        raise InputError(f"{path}: does not hold pairs of both kinds")
    position = np.arange(len(same))
    expected = position % (2 * each) < each if header else position < each
    wrong = np.flatnonzero(same != expected)
    if len(wrong):
        kind = "a same pair (name i j)" if expected[wrong[0]] else "a different pair (name1 i name2 j)"
        raise InputError(f"{path}:{rows[wrong[0]][0]}: expected {kind} here: same pairs come first in a fold")
    promised = folds * 2 * each
    if header and len(same) != promised:
        raise InputError(f"{path}:{rows[-1][0]}: {len(same)} pairs, but the header promises {promised}")
    fold = position // (2 * each) if header else np.zeros_like(position)
    return Pairs(tuple(p[0] for p in parsed), tuple(p[1] for p in parsed), same, fold)


def _is_header(words: list[str]) -> bool:
    return len(words) <= 2 and all(word.isascii() and word.isdigit() for word in words)


def _parse_pair(words: list[str], where: str) -> tuple[str, str]:
    if len(words) == 3:
        words = [words[0], words[1], words[0], words[2]]
    elif len(words) != 4 or words[0] == words[2]:
        raise InputError(f"{where}: expected 'name i j' or 'name1 i name2 j', of two people")
    for number in (words[1], words[3]):
        if not (number.isascii() and number.isdigit() and int(number)):
            raise InputError(f"{where}: image number {number!r} is not a whole number from 1 up")
    first, second = (f"{name}/{name}_{int(number):04d}" for name, number in (words[:2], words[2:]))
    if first == second:
        raise InputError(f"{where}: pairs an image with itself")
    return first, second


def pair_indices(pairs: Pairs, faces: Faces) -> tuple[Indices, Indices]:
    """Where the two images of each pair stand in `faces`, int64 [m] each; any file extension will do."""
    at = {str(PurePosixPath(file).with_suffix("")): index for index, file in enumerate(faces.files)}
    missing = [name for name in dict.fromkeys(pairs.first + pairs.second) if name not in at]
    if missing:
        raise InputError(
            f"{missing[0]}: named by the pairs but not among the faces; {len(missing)} images missing"
        )
    first, second = (
        np.array([at[name] for name in side], dtype=np.int64) for side in (pairs.first, pairs.second)
    )
    return first, second


def best_threshold(scores: ArrayLike, same: ArrayLike, weights: ArrayLike | None = None) -> float:
    """The threshold of highest (weighted) accuracy on these pairs, as chosen on LFW View 1.

    Tie rule: of several best intervals between neighbouring scores the highest, which is the strictest, and
    its middle; the lowest score where accepting all is best, the next float above the highest where none is.
    """
    values, genuine, _, weight = _ranked(scores, same, np.zeros(np.shape(scores)), weights)
    ends = _run_ends(values)
    gain = np.concatenate([[0.0], np.cumsum(np.where(genuine, weight, -weight))[ends]])
    accepted, levels = int(np.argmax(gain)), values[ends]  # argmax takes the first: the fewest accepted
    if accepted == 0:
        return float(np.nextafter(levels[0], np.inf))
    return float(levels[accepted - 1 : accepted + 1].mean())


def _ranked(
    scores: ArrayLike, same: ArrayLike, folds: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[Any], NDArray[np.float64]]:
    """The pairs of positive weight, in falling order of score."""
    values, genuine, fold = (
        np.asarray(scores, dtype=np.float64),
        np.asarray(same, dtype=bool),
        np.asarray(folds),
    )
    weight = np.ones(values.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if not values.size or not genuine.shape == fold.shape == weight.shape == (len(values),):
        raise InputError("accuracy: scores, same, folds and weights must be vectors of one length, not empty")
    if not np.isfinite(values).all():
        raise InputError(f"accuracy: {np.sum(~np.isfinite(values))} scores are NaN or infinite")
    order = np.argsort(-values, kind="stable")
    order = order[weight[order] > 0]
    return values[order], genuine[order], fold[order], weight[order]


def lfw_accuracy(
    scores: ArrayLike, same: ArrayLike, folds: ArrayLike, weights: ArrayLike | None = None
) -> TenFold:
    """Accuracy by the LFW View 2 protocol: each fold is judged at the best threshold of all the others.

    scores: float [m]; same: bool [m]; folds: int [m], two or more distinct; weights: float [m], how often a
    resample counts each pair. Tie rule as in `best_threshold`; std has ddof 1 as in TR 07-49. A fold that a
    resample leaves empty is left out of the mean.
    """
    values, genuine, fold, weight = _ranked(scores, same, folds, weights)
    thresholds, accuracies = [], []
    for held in np.unique(fold):
        out, rest = fold == held, fold != held
        if not rest.any():
            raise InputError("LFW accuracy needs two or more folds; View 1 has one: use best_threshold")
        thresholds.append(best_threshold(values[rest], genuine[rest], weight[rest]))
        right = (values[out] >= thresholds[-1]) == genuine[out]
        accuracies.append(float(weight[out] @ right / weight[out].sum()))
    mean, std = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1))
    return TenFold(mean, std, std / len(accuracies) ** 0.5, tuple(thresholds), tuple(accuracies))


# --- identification --------------------------------------------------------------------------------------


def _search(
    gallery: ArrayLike, gallery_labels: ArrayLike, probes: ArrayLike, probe_labels: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Per probe: is its identity enrolled, its score there (_MISS if not), the best score of any other."""
    units, queries = _unit(gallery, "gallery"), _unit(probes, "probes")
    enrolled = _labels(gallery_labels, len(units), "gallery_labels")
    wanted = _labels(probe_labels, len(queries), "probe_labels")
    names, row = np.unique(enrolled, return_inverse=True)
    templates = np.zeros((len(names), units.shape[1]), dtype=np.float32)
    np.add.at(templates, row, units)
    templates = _unit(templates, "gallery templates")
    column = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
    mated = names[column] == wanted
    own, other = np.full(len(queries), _MISS), np.empty(len(queries))
    rows = max(1, _BLOCK // len(names))
    for start in range(0, len(queries), rows):
        part = np.arange(start, min(start + rows, len(queries)))
        scores = (_codes(queries[part] @ templates.T) - _GRID) / _GRID
        known = np.flatnonzero(mated[part])
        own[part[known]] = scores[known, column[part[known]]]
        scores[known, column[part[known]]] = _MISS
        other[part] = scores.max(axis=1)
    return mated, own, other


def closed_set_rank1(
    gallery: ArrayLike, gallery_labels: ArrayLike, probes: ArrayLike, probe_labels: ArrayLike
) -> float:
    """Share of probes [p, d] nearest to their own identity's template; a tie with another identity is a miss.

    A template is the mean of the identity's normalised gallery embeddings [g, d], normalised again: scores
    are cosines (FedFR's code leaves the mean un-normalised, which favours people of uniform pictures).
    Every probe's identity must be enrolled, else InputError.
    """
    mated, own, other = _search(gallery, gallery_labels, probes, probe_labels)
    if not mated.all():
        raise InputError(
            f"closed-set search: {np.sum(~mated)} probes have no identity in the gallery; drop them"
        )
    return float(np.mean(own > other))


def open_set_tpir(
    gallery: ArrayLike, gallery_labels: ArrayLike, probes: ArrayLike, probe_labels: ArrayLike, fpir: float
) -> float:
    """TPIR at FPIR `fpir` in (0, 1): share of enrolled probes right at rank 1 and at or above the threshold.

    The threshold is the lowest at which no more than a share `fpir` of unenrolled people's probes raise any
    candidate. Templates and ties as in `closed_set_rank1`; UnresolvedFar for fewer than 10/fpir such probes.
    """
    if not 0 < fpir < 1:
        raise InputError(f"FPIR {fpir:g} is not a rate in (0, 1)")
    mated, own, other = _search(gallery, gallery_labels, probes, probe_labels)
    return roc(np.where(own > other, own, _MISS)[mated], other[~mated]).tar_at(fpir)


# --- uncertainty -----------------------------------------------------------------------------------------


def resamples(
    identity_a: Indices, identity_b: Indices, count: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """`count` bootstrap weights [m] of pairs (identity_a, identity_b): identities drawn with replacement.

    Pairs that share a person are not independent, so people are resampled, not pairs. A genuine pair weighs
    its identity's multiplicity, as in the subsets bootstrap (Bolle, Ratha, Pankanti, CVIU 93, 2004), an
    impostor pair the product of its two: the vertex bootstrap (Snijders, Borgatti, Connections 22, 1999)
    without pairs of a person with their own copy. Product weights are conservative (Owen, Ann. Appl. Stat. 1,
    2007): where people hardly recur, as in LFW's list, the impostors' part of an interval is up to sqrt(3)
    too wide. Fogliato, Patil, Perona (IJCV 2024, arXiv 2306.01198) compare the alternatives for faces.

    A resample without any genuine, or any impostor, pair is drawn again. One identity a pair, given twice
    (a = b = arange(m)), is the ordinary bootstrap of pairs.
    """
    names, code = np.unique(np.concatenate([identity_a, identity_b]), return_inverse=True)
    a, b = np.split(code, 2)
    alone = a == b
    kinds = [np.flatnonzero(kind) for kind in (alone, ~alone) if kind.any()]
    rng = np.random.default_rng(seed)
    while count > 0:
        times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names)).astype(
            np.float64
        )
        weights = times[a] * np.where(alone, 1.0, times[b])
        if all(weights[kind].any() for kind in kinds):
            yield weights
            count -= 1


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], float],
    identity_a: Indices,
    identity_b: Indices,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of any statistic of pair weights [m] over `resamples` of the pairs' identities.

    For one list: `bootstrap(lambda w: t.roc(w).eer, t.identity_a, t.identity_b)`. Two models scored on
    the same pairs meet the same resamples: `lambda w: t1.roc(w).auc - t2.roc(w).auc`, or any ratio of
    `lfw_accuracy(scores, same, folds, w).accuracy`. Where no error was seen the interval has no width.
    """
    if samples < 1 or not 0 < level < 1:
        raise InputError(f"bootstrap: samples {samples} must be at least 1 and level {level:g} in (0, 1)")
    return _percentile([statistic(w) for w in resamples(identity_a, identity_b, samples, seed)], level)


def _percentile(values: list[float], level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


# --- in one call -----------------------------------------------------------------------------------------


def likeness(embeddings: ArrayLike, labels: ArrayLike) -> float:
    """Mean cosine of pictures of different people: near 0 for a network that spreads people out.

    At 1 everybody has the same embedding (collapse, as FedAvg without negatives ends: Yu et al. 2020, arXiv
    2004.10342).
    """
    units = _unit(embeddings).astype(np.float64)
    identity = np.unique(_labels(labels, len(units)), return_inverse=True)[1]
    sums = np.zeros((identity.max() + 1, units.shape[1]))
    np.add.at(sums, identity, units)
    pairs = len(units) ** 2 - float(np.sum(np.bincount(identity).astype(np.float64) ** 2))
    return float((np.sum(sums.sum(0) ** 2) - np.sum(sums**2)) / pairs)


@dataclass(frozen=True)
class Verification:
    """What a report says of a model; plain types only.

    eer, auc, tar_at_far: over all pairs, `genuine` and `impostor` many; TAR only at the FARs they resolve.
    intervals: of "eer", "auc", "tar@1e-3"... from interval_pairs pairs, fewer than all where they are many.
    """

    eer: float
    auc: float
    tar_at_far: dict[str, float]
    genuine: int
    impostor: int
    identities: int
    intervals: dict[str, Interval]
    interval_pairs: int


def evaluate(
    embeddings: ArrayLike, labels: ArrayLike, seed: int = 0, samples: int = 200, level: float = 0.95
) -> Verification:
    """Verification figures of embeddings [n, d] with identity labels [n], over all pairs.

    Intervals come from `samples` identity resamples (0: none) of all pairs, at most 200,000 of a kind.
    """
    whole = all_pairs_roc(embeddings, labels)
    draws: list[dict[str, float]] = []
    pairs = 0
    if samples:
        trials = Trials.drawn(embeddings, labels, _INTERVAL_PAIRS, seed)
        pairs = len(trials.scores)
        weights = resamples(trials.identity_a, trials.identity_b, samples, seed)
        draws = [_figures(trials.roc(weight)) for weight in weights]
    names = draws[0] if draws else ()
    return Verification(
        whole.eer,
        whole.auc,
        whole.tar_at_far_table(),
        whole.genuine,
        whole.impostor,
        len(np.unique(np.asarray(labels))),
        {name: _percentile([draw[name] for draw in draws], level) for name in names},
        pairs,
    )


def _figures(curve: Roc) -> dict[str, float]:
    tars = {f"tar@{name}": tar for name, tar in curve.tar_at_far_table().items()}
    return {"eer": curve.eer, "auc": curve.auc, **tars}
