"""Verification figures: by hand, against scikit-learn, by the official LFW protocol; and their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from math import erf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, roc_curve

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.faces.verification import (
    IMPOSTORS_PER_FAR,
    Roc,
    Trials,
    UnresolvedFar,
    all_pairs_roc,
    best_threshold,
    bootstrap,
    closed_set_rank1,
    cosine,
    evaluate,
    lfw_accuracy,
    open_set_tpir,
    pair_indices,
    read_pairs,
    resamples,
    roc,
)

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
needs_lfw = pytest.mark.skipif(not (DATA / "lfw112_protocol").is_dir(), reason="no LFW at ../shared/data")

tied = st.lists(st.integers(-4, 4), min_size=1, max_size=40)
spread = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40)


# --- the curve, by hand -----------------------------------------------------------------------------------


def test_a_roc_by_hand() -> None:
    # accepted when score >= threshold:
    #   t = .9  genuine {.9}          -> TAR 1/3, impostor {}          -> FAR 0
    #   t = .6  genuine {.9, .6}      -> TAR 2/3, impostor {.6}        -> FAR 1/4   (a tie moves both)
    #   t = .5  genuine {.9, .6}      -> TAR 2/3, impostor {.6, .5}    -> FAR 2/4
    #   t = .4  all genuine           -> TAR 1,   the same             -> FAR 2/4
    #   t = .1  all                   -> TAR 1,                           FAR 1
    curve = roc([0.9, 0.6, 0.4], [0.6, 0.5, 0.1, 0.1])
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.6, 0.5, 0.4, 0.1]
    assert curve.far.tolist() == [0, 0, 1 / 4, 2 / 4, 2 / 4, 1]
    assert curve.tar.tolist() == [0, 1 / 3, 2 / 3, 2 / 3, 1, 1]
    # Mann-Whitney wins of 12: .9 beats 4; .6 beats 3 and ties 1 (3.5); .4 beats 2: 9.5
    assert curve.auc == pytest.approx(9.5 / 12)
    # FAR - FRR: -1, -2/3, -1/12, +1/6: on the segment from (1/4, 2/3) to (2/4, 2/3) FRR stays 1/3, FAR = 1/3
    assert curve.eer == pytest.approx(1 / 3)
    assert (curve.genuine, curve.impostor) == (3, 4)


def test_the_equal_error_rate_is_linear_on_a_slanted_segment() -> None:
    # vertices (0, 0), (1/3, 1/2), (1, 1): FAR - FRR = -1/6 and 1, so 1/7 of the way: 1/3 + 2/3 * 1/7 = 3/7
    assert roc([2, 1], [2, 1, 1]).eer == pytest.approx(3 / 7)


@pytest.mark.parametrize(
    ("genuine", "impostor", "auc", "eer"),
    [
        ([3, 2], [1, 0], 1.0, 0.0),  # perfectly separated: (0, 1) is a vertex
        ([1, 0], [3, 2], 0.0, 1.0),  # inverted: the curve runs through (1, 0)
        ([5, 5, 5], [5, 5], 0.5, 0.5),  # all equal: one slanted segment
        ([2], [3, 1, 1, 1], 0.75, 0.25),  # one genuine: TAR jumps 0 -> 1 at FAR 1/4
    ],
)
def test_extreme_curves(genuine: list[int], impostor: list[int], auc: float, eer: float) -> None:
    curve = roc(genuine, impostor)
    assert curve.auc == auc
    assert curve.eer == pytest.approx(eer, abs=1e-15)


def test_tar_at_far_is_a_vertex_never_interpolated() -> None:
    impostor = np.arange(100)  # one impostor more accepted with each unit the threshold falls
    curve = roc([95.5, 89.5, 50, 50], impostor)
    # FAR <= .10 allows impostors 90..99, so thresholds above 89: genuine 95.5 and 89.5 are in -> 2/4
    assert curve.tar_at(0.1) == 0.5
    assert curve.threshold_at(0.1) == 89.5
    # FAR <= .105 allows no eleventh impostor: the same vertex
    assert (curve.tar_at(0.105), curve.threshold_at(0.105)) == (0.5, 89.5)
    # FAR <= .5 allows 50..99, and the two genuine at 50 with them
    assert (curve.tar_at(0.5), curve.threshold_at(0.5)) == (1.0, 50)
    assert curve.tar_at(1.0) == 1.0


def test_the_threshold_that_accepts_nobody() -> None:
    curve = roc([1.0], np.ones(200))  # even the highest score is every impostor's
    assert (curve.tar_at(0.1), curve.threshold_at(0.1)) == (0.0, np.inf)


def test_a_far_the_impostors_cannot_resolve_is_refused() -> None:
    curve = roc(np.ones(5), np.zeros(1000))
    assert IMPOSTORS_PER_FAR == 10  # 1000 impostors resolve 10/1000
    assert curve.tar_at(0.01) == 1.0
    with pytest.raises(UnresolvedFar, match=r"FAR 0\.001 needs 10000 impostor trials .* 1000 .* below 0\.01"):
        curve.tar_at(1e-3)
    with pytest.raises(UnresolvedFar):
        curve.threshold_at(0.00999)
    assert curve.tar_at_far_table() == {"1e-1": 1.0, "1e-2": 1.0}
    assert roc([1], [0] * 9).tar_at_far_table() == {}


@pytest.mark.parametrize("far", [0.0, -0.1, 1.5, float("nan")])
def test_a_far_that_is_no_rate(far: float) -> None:
    with pytest.raises(InputError, match="not a rate") as caught:
        roc([1.0], [0.0] * 100).tar_at(far)
    assert not isinstance(caught.value, UnresolvedFar)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_that_are_no_number(bad: float) -> None:
    with pytest.raises(InputError, match="1 scores are NaN or infinite"):
        roc([1.0, bad], [0.0])


def test_empty_sides() -> None:
    with pytest.raises(InputError, match="no genuine pairs"):
        roc([], [0.0])
    with pytest.raises(InputError, match="no impostor pairs"):
        roc([0.0], [])


# --- the curve, against scikit-learn ----------------------------------------------------------------------


@given(st.tuples(tied, tied) | st.tuples(spread, spread))
def test_agrees_with_scikit_learn(sides: tuple[list[float], list[float]]) -> None:
    genuine, impostor = sides
    truth = np.repeat([1, 0], [len(genuine), len(impostor)])
    scores = np.array([*genuine, *impostor], dtype=float)
    far, tar, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    curve = roc(genuine, impostor)
    np.testing.assert_allclose(curve.far, far, atol=1e-12)
    np.testing.assert_allclose(curve.tar, tar, atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert curve.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    dense = np.linspace(0, 1, 20001)  # the crossing of FRR on the interpolated curve, found by brute force
    crossing = dense[np.argmax(dense >= 1 - np.interp(dense, far, tar))]
    vertical = np.abs(far - curve.eer).min() < 1e-9  # np.interp cannot see inside a vertical step
    assert vertical or abs(curve.eer - crossing) < 1e-4


@given(tied, tied)
def test_only_the_order_of_scores_matters(genuine: list[int], impostor: list[int]) -> None:
    plain = roc(genuine, impostor)
    bent = roc(np.exp(np.array(genuine) / 3), np.exp(np.array(impostor) / 3))
    assert (bent.auc, bent.eer) == (plain.auc, plain.eer)
    np.testing.assert_array_equal(bent.far, plain.far)
    np.testing.assert_array_equal(bent.tar, plain.tar)


@given(tied, tied)
def test_swapping_sides_mirrors_the_auc(genuine: list[int], impostor: list[int]) -> None:
    assert roc(genuine, impostor).auc + roc(impostor, genuine).auc == pytest.approx(1)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_a_weight_is_a_repetition(rows: list[tuple[int, bool, int]]) -> None:
    rows += [(0, True, 1), (1, False, 1)]  # some of each side
    scores, same, times = (np.array(column) for column in zip(*rows, strict=True))
    weighted = Trials(scores.astype(float), np.zeros(len(rows), int), 1 - same.astype(int)).roc(
        times.astype(float)
    )
    repeated = roc(np.repeat(scores[same], times[same]), np.repeat(scores[~same], times[~same]))
    assert weighted.auc == pytest.approx(repeated.auc)
    assert weighted.eer == pytest.approx(repeated.eer)
    at = np.searchsorted(-weighted.thresholds, -repeated.thresholds)
    np.testing.assert_allclose(weighted.far[at], repeated.far)
    np.testing.assert_allclose(weighted.tar[at], repeated.tar)


# --- scores of embeddings ---------------------------------------------------------------------------------


def people(
    identities: int, images: int, noise: float, seed: int = 0, dims: int = 16
) -> tuple[NDArray, NDArray]:
    """Embeddings [identities * images, dims] scattered about a random centre per identity, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(identities), images))
    centres = rng.normal(size=(identities, dims))
    return centres[labels] + noise * rng.normal(size=(len(labels), dims)), labels


def every_pair(labels: NDArray) -> tuple[NDArray, NDArray]:
    i, j = np.triu_indices(len(labels), 1)
    return i, j


def test_cosines_by_hand() -> None:
    scores = cosine(
        [[3, 4], [30, 40], [4, -3], [-6, -8], [1, 0]], np.array([0, 0, 0, 0]), np.array([1, 2, 3, 4])
    )
    np.testing.assert_allclose(scores, [1, 0, -1, 3 / 5], atol=2**-20)
    assert scores[:3].tolist() == [1, 0, -1]


def test_all_pairs_in_blocks_are_all_pairs_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = people(12, 7, 1.0)
    listed = Trials.listed(embeddings, labels, *every_pair(labels)).roc()
    monkeypatch.setattr(
        "privfr.faces.verification._BLOCK", 1000
    )  # 84 images: blocks of 11 rows, the last of 7
    blocked = all_pairs_roc(embeddings, labels)
    assert (blocked.genuine, blocked.impostor) == (12 * 21, 84 * 83 // 2 - 12 * 21)
    np.testing.assert_allclose(blocked.far, listed.far)
    np.testing.assert_allclose(blocked.tar, listed.tar)
    np.testing.assert_allclose(blocked.thresholds, listed.thresholds, rtol=0, atol=2**-19)


def test_a_collapsed_model_is_worth_nothing() -> None:
    # the same direction for everyone: equal cosines must tie although float32 sums may differ in the last bit
    direction = np.random.default_rng(0).normal(size=512)
    scale = np.linspace(0.1, 9, 60)[:, None]
    figures = evaluate(scale * direction, np.arange(60) % 6, samples=0)
    assert (figures.auc, figures.eer) == (0.5, 0.5)


def test_drawn_trials_are_all_pairs_up_to_the_limit() -> None:
    embeddings, labels = people(5, 4, 1.0)
    trials = Trials.drawn(embeddings, labels, limit=1000, seed=0)
    everything = Trials.listed(embeddings, labels, *every_pair(labels))
    assert sorted(trials.scores[trials.same]) == sorted(everything.scores[everything.same])
    assert sorted(trials.scores[~trials.same]) == sorted(everything.scores[~everything.same])


def test_drawn_trials_beyond_the_limit_are_distinct_fair_and_seeded() -> None:
    labels = np.repeat(np.arange(20), 5)
    embeddings = np.random.default_rng(0).normal(size=(100, 16))
    trials = Trials.drawn(embeddings, labels, limit=150, seed=3)
    assert (trials.same.sum(), (~trials.same).sum()) == (150, 150)
    pairs = set(zip(trials.scores, trials.identity_a, trials.identity_b, strict=True))
    assert len(pairs) == 300  # random cosines of two given people do not tie: no pair was drawn twice
    np.testing.assert_array_equal(trials.scores, Trials.drawn(embeddings, labels, 150, 3).scores)
    assert set(trials.scores) != set(Trials.drawn(embeddings, labels, 150, 4).scores)
    assert len(set(trials.identity_a) | set(trials.identity_b)) == 20


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (np.ones(4), np.zeros(4), r"shape \(4,\)"),
        (np.array([[1.0, 0], [0, 0]]), np.zeros(2), "row 1 has no direction"),
        (
            np.array([[1.0, 0], [np.nan, 0], [np.inf, 0]]),
            np.zeros(3),
            "row 1 has no direction.*; 2 such rows",
        ),
        (np.ones((3, 2)), np.zeros(2), r"labels: shape \(2,\) for 3 embeddings"),
        (np.ones((3, 2)), np.zeros(3), "no impostor pairs"),
        (np.ones((3, 2)), np.arange(3), "no genuine pairs"),
    ],
)
def test_embeddings_that_cannot_be_judged(embeddings: NDArray, labels: NDArray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(embeddings, labels)


def test_trials_of_uneven_length() -> None:
    with pytest.raises(InputError, match="one length"):
        Trials(np.zeros(3), np.zeros(3, int), np.zeros(2, int))


# --- Labeled Faces in the Wild ----------------------------------------------------------------------------

VIEW2 = (
    "2\t2\nAnn\t1\t2\nBo\t1\t3\nAnn\t1\tBo\t1\nBo\t2\tAnn\t10\n"
    "Cy\t1\t2\nDi\t1\t2\nCy\t1\tDi\t1\nDi\t2\tCy\t2\n"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_text(text)
    return path


def test_reading_view_2(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, VIEW2))
    assert pairs.first[:4] == ("Ann/Ann_0001", "Bo/Bo_0001", "Ann/Ann_0001", "Bo/Bo_0002")
    assert pairs.second[:4] == ("Ann/Ann_0002", "Bo/Bo_0003", "Bo/Bo_0001", "Ann/Ann_0010")
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.folds.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("header", ["", "2\n"])
def test_reading_view_1_with_or_without_its_header(tmp_path: Path, header: str) -> None:
    pairs = read_pairs(written(tmp_path, header + "Ann 1 2\nBo 1 3\nAnn 1 Bo 1\nBo 2 Ann 10\n\n"))
    assert len(pairs) == 4
    assert pairs.same.tolist() == [True, True, False, False]
    assert not pairs.folds.any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not hold pairs of both kinds"),
        ("Ann 1 2\n", "does not hold pairs of both kinds"),
        ("0 0\nAnn 1 2\nAnn 1 Bo 1\n", "does not hold pairs of both kinds"),
        ("Ann 1 2\nAnn 1 Bo\n", r"txt:2: image number 'Bo'"),
        ("Ann 1 2 3 4\n", r"txt:1: expected 'name i j'"),
        ("Ann 1\n", r"txt:1: expected 'name i j'"),
        ("1 1\nAnn 1 2\nAnn 1 Ann 2\n", r"txt:3: expected .* of two people"),
        ("Ann 0 2\nAnn 1 Bo 1\n", r"txt:1: image number '0'"),
        ("Ann 2 2\nAnn 1 Bo 1\n", r"txt:1: pairs an image with itself"),
        ("Ann 1 2\nAnn 1 Bo 1\nBo 1 2\n", r"txt:2: expected a same pair"),
        ("1 1\nAnn 1 Bo 1\nAnn 1 2\n", r"txt:2: expected a same pair"),
        ("1 1\n\nAnn 1 2\nBo 1 2\nAnn 1 Bo 1\n", r"txt:4: expected a different pair"),
        ("2 1\nAnn 1 2\nAnn 1 Bo 1\n", r"txt:3: 2 pairs, but the header promises 4"),
    ],
)
def test_malformed_pairs_files_are_named_to_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pairs(written(tmp_path, text))


def test_a_pairs_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.txt: cannot be read"):
        read_pairs(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(InputError, match=r"binary\.txt: cannot be read"):
        read_pairs(tmp_path / "binary.txt")


def faces_of(files: list[str]) -> Faces:
    names = sorted({file.split("/")[0] for file in files})
    labels = np.array([names.index(file.split("/")[0]) for file in files], dtype=np.int64)
    return Faces(np.zeros((len(files), 1, 1, 3), np.uint8), labels, tuple(names), tuple(files))


def test_pairs_find_their_faces_whatever_the_extension(tmp_path: Path) -> None:
    pairs = read_pairs(written(tmp_path, "Ann 1 2\nAnn 1 Bo 1\n"))
    i, j = pair_indices(pairs, faces_of(["Bo/Bo_0001.png", "Ann/Ann_0002.jpg", "Ann/Ann_0001.jpeg"]))
    assert (i.tolist(), j.tolist()) == ([2, 2], [1, 0])
    with pytest.raises(InputError, match=r"Ann/Ann_0002: .*; 2 images missing"):
        pair_indices(pairs, faces_of(["Ann/Ann_0001.jpg"]))


@needs_lfw
def test_the_official_files() -> None:
    view2 = read_pairs(DATA / "lfw112_protocol/pairs.txt")
    assert len(view2) == 6000
    assert np.bincount(view2.folds).tolist() == [600] * 10
    assert np.bincount(view2.folds[view2.same]).tolist() == [300] * 10
    files = sorted(f"{path.parent.name}/{path.name}" for path in (DATA / "lfw112").glob("*/*.jpg"))
    faces = faces_of(files)
    i, j = pair_indices(view2, faces)  # every image is there
    np.testing.assert_array_equal(faces.labels[i] == faces.labels[j], view2.same)
    of_fold = [set(faces.labels[np.r_[i, j]][np.r_[view2.folds, view2.folds] == fold]) for fold in range(10)]
    assert len(set.union(*of_fold)) == sum(map(len, of_fold))  # no one is in two folds
    for name, count in (("pairsDevTrain.txt", 2200), ("pairsDevTest.txt", 1000)):
        view1 = read_pairs(DATA / "lfw112_protocol" / name)
        assert (len(view1), int(view1.same.sum()), int(view1.folds.max())) == (count, count // 2, 0)
        pair_indices(view1, faces)


@pytest.mark.parametrize(
    ("scores", "same", "expected"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 2.5),  # separable: the middle of the gap
        ([4, 3, 2, 1], [1, 0, 1, 0], 3.5),  # 3 of 4 right in (3, 4] and in (1, 2]: the higher, its middle
        ([2, 1], [1, 1], 1),  # accept all: the lowest score
        ([2, 2, 1], [1, 1, 1], 1),
    ],
)
def test_the_best_threshold_by_hand(scores: list[float], same: list[int], expected: float) -> None:
    assert best_threshold(scores, same) == expected


def test_the_best_threshold_where_none_is_best_accepted() -> None:
    threshold = best_threshold([2.0, 1.0], [0, 0])
    assert 2.0 < threshold < 2.0 + 1e-12


def brute_force_lfw(scores: NDArray, same: NDArray, folds: NDArray) -> list[float]:
    """The protocol as one reads it: try a threshold in every gap of the training scores, highest first."""
    accuracies = []
    for fold in sorted(set(folds.tolist())):
        train = [(s, g) for s, g, f in zip(scores, same, folds, strict=True) if f != fold]
        levels = sorted({s for s, _ in train}, reverse=True)
        gaps = [(high + low) / 2 for high, low in pairwise(levels)]
        best, chosen = -1, 0.0
        for candidate in [levels[0] + 1e-9, *gaps, levels[-1]]:
            right = sum((s >= candidate) == g for s, g in train)
            if right > best:
                best, chosen = right, candidate
        test = [(s >= chosen) == g for s, g, f in zip(scores, same, folds, strict=True) if f == fold]
        accuracies.append(sum(test) / len(test))
    return accuracies


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 1000]))
def test_lfw_accuracy_is_the_protocol(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    same, folds = rng.random(60) < 0.5, rng.permutation(60) % 5
    scores = rng.integers(levels, size=60) + levels * 0.5 * same  # few levels: heavy ties
    ours = lfw_accuracy(scores, same, folds)
    expected = brute_force_lfw(scores, same, folds)
    assert list(ours.per_fold) == pytest.approx(expected)
    assert ours.accuracy == pytest.approx(np.mean(expected))
    assert ours.standard_error == pytest.approx(np.std(expected, ddof=1) / np.sqrt(5))


def test_ten_fold_by_hand() -> None:
    # fold 0's threshold comes from fold 1 (scores 8 | 2 -> 5): 7 >= 5 right, 6 >= 5 wrong  -> 1/2
    # fold 1's from fold 0 (7 | 6 -> 6.5): both right -> 1.  mean 3/4, sd sqrt(2/16), / sqrt 2 = 1/4
    result = lfw_accuracy([7, 6, 8, 2], [1, 0, 1, 0], [0, 0, 1, 1])
    assert result.thresholds == (5, 6.5)
    assert result.per_fold == (0.5, 1.0)
    assert (result.accuracy, result.std) == (0.75, pytest.approx(0.125**0.5))
    assert result.standard_error == pytest.approx(0.25)


@pytest.mark.parametrize("seed", range(8))
def test_a_weight_of_lfw_accuracy_is_a_repetition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    same, folds, times = rng.random(200) < 0.5, np.arange(200) % 4, rng.integers(0, 3, 200)
    scores = rng.normal(size=200) + same
    weighted = lfw_accuracy(scores, same, folds, times)
    repeated = lfw_accuracy(*(np.repeat(column, times) for column in (scores, same, folds)))
    assert weighted.per_fold == pytest.approx(repeated.per_fold)
    assert weighted.thresholds == repeated.thresholds


def test_lfw_accuracy_refuses() -> None:
    with pytest.raises(InputError, match="two or more folds"):
        lfw_accuracy([1, 2], [0, 1], [0, 0])
    with pytest.raises(InputError, match="one length"):
        lfw_accuracy([1, 2], [0, 1], [0])
    with pytest.raises(InputError, match="NaN"):
        lfw_accuracy([1, float("nan")], [0, 1], [0, 1])


# --- identification ---------------------------------------------------------------------------------------


def at(*degrees: float) -> NDArray:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_rank_1_by_hand() -> None:
    # templates: identity 7 the mean of 0 and 40 degrees = 20; identity 9 at 90. They meet at 55 degrees.
    gallery, labels = at(0, 90, 40), [7, 9, 7]
    # 50 -> 7 right; 60 -> 9, wrong for a probe of 7; 80 -> 9 right. The nearest single image would
    # have said 7 for 60 (40 is 20 away, 90 is 30 away): the template decides.
    assert closed_set_rank1(gallery, labels, at(50, 60, 80), [7, 7, 9]) == pytest.approx(2 / 3)


def test_templates_weigh_pictures_not_lengths() -> None:
    # a long embedding must not pull the template: mean of directions 0 and 80 is 40, not about 1
    gallery = at(0, 80, 95) * np.array([[100], [1], [1]])
    assert closed_set_rank1(gallery, [0, 0, 1], at(60), [0]) == 1.0


def test_a_tie_is_a_miss() -> None:
    assert closed_set_rank1(np.ones((4, 3)), [0, 1, 2, 3], np.ones((4, 3)), [0, 1, 2, 3]) == 0.0


def test_rank_1_needs_everyone_enrolled() -> None:
    with pytest.raises(InputError, match="2 probes have no identity"):
        closed_set_rank1(at(0, 90), [0, 2], at(0, 1, 2), [0, 1, 3])


def test_open_set_by_hand() -> None:
    # gallery: 0 at 0 degrees, 1 at 90. Unenrolled probes at 10, 11, .. 29 degrees, nearest to 0.
    # FPIR .5 of 20 lets 10 of them pass (10..19): the threshold is the lowest score above cos(20).
    strangers, others = at(*range(10, 30)), np.full(20, 5)
    # mated: 5 degrees of 0: right, passes; 19.5 of 0: right, just passes; 25 of 0: right, but below it;
    # 5 degrees but of identity 1: high score, wrong at rank 1; 85 degrees of 1: right, passes -> 3 of 5
    probes, labels = at(5, 19.5, 25, 5, 85), [0, 0, 0, 1, 1]
    found = open_set_tpir(at(0, 90), [0, 1], np.r_[probes, strangers], np.r_[labels, others], 0.5)
    assert found == 3 / 5
    with pytest.raises(UnresolvedFar):
        open_set_tpir(at(0, 90), [0, 1], np.r_[probes, strangers], np.r_[labels, others], 0.49)
    with pytest.raises(InputError, match="FPIR 1 is not a rate"):
        open_set_tpir(at(0, 90), [0, 1], np.r_[probes, strangers], np.r_[labels, others], 1.0)


def test_open_set_counts_a_tie_as_a_miss() -> None:
    # 45 degrees is as near to 0 as to 90, and nearer than any stranger (140 .. 159) is to either
    probes, labels = np.r_[at(45, 1), at(*range(140, 160))], np.r_[0, 0, np.full(20, 5)]
    assert open_set_tpir(at(0, 90), [0, 1], probes, labels, 0.5) == 1 / 2


def test_open_set_needs_both_kinds_of_probe() -> None:
    with pytest.raises(InputError, match="no impostor"):
        open_set_tpir(at(0, 90), [0, 1], at(0), [0], 0.5)


def test_searching_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = people(10, 8, 1.0)
    arguments = (embeddings[:30], labels[:30], embeddings[30:], labels[30:])
    whole = closed_set_rank1(*arguments)
    monkeypatch.setattr("privfr.faces.verification._BLOCK", 70)
    assert 0.2 < whole < 1
    assert closed_set_rank1(*arguments) == whole


# --- uncertainty ------------------------------------------------------------------------------------------


def test_resample_weights_are_products_of_multiplicities() -> None:
    a, b = np.array([1, 2, 5, 1, 5, 5]), np.array([1, 2, 5, 2, 2, 1])
    draws = np.array(list(resamples(a, b, 500, seed=0)))
    one, two, five = draws[:, :3].T  # a genuine pair weighs its identity's multiplicity
    np.testing.assert_array_equal(one + two + five, 3)  # three identities, three draws
    np.testing.assert_array_equal(draws[:, 3:], np.stack([one * two, five * two, five * one], axis=1))
    assert one.mean() == pytest.approx(1, abs=0.1)


def test_resamples_always_hold_both_kinds_of_pair() -> None:
    # of identities 1, 2, 3 only 1 has a genuine pair and only 2 with 3 an impostor pair: all must be drawn
    draws = np.array(list(resamples(np.array([1, 2]), np.array([1, 3]), 50, seed=0)))
    np.testing.assert_array_equal(draws, 1)


def test_resamples_are_reproducible() -> None:
    a, b = np.arange(50) % 10, np.arange(50) // 5
    first, again, other = (np.array(list(resamples(a, b, 20, seed))) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def crowd(rng: np.random.Generator, identities: int = 40, images: int = 4) -> Trials:
    """Scores that people share in: genuine N(2 + u_a, 1), impostor N(u_a + u_b, 1), people's u ~ N(0, 1)."""
    labels = np.repeat(np.arange(identities), images)
    i, j = every_pair(labels)
    keep = (labels[i] == labels[j]) | (rng.random(len(i)) < 0.1)
    a, b = labels[i][keep], labels[j][keep]
    effect = rng.normal(size=identities)
    mean = np.where(a == b, 2 + effect[a], effect[a] + effect[b])
    return Trials(mean + rng.normal(size=len(a)), a, b)


def test_intervals_cover_the_truth_and_pair_resampling_does_not() -> None:
    # genuine - impostor ~ N(2, (1 + 1) + (2 + 1)): the true AUC is Phi(2 / sqrt 5)
    truth = 0.5 * (1 + erf(2 / np.sqrt(5) / np.sqrt(2)))
    rng, covered, naive, wider = np.random.default_rng(1), 0, 0, 0
    for _ in range(60):
        trials = crowd(rng)
        pair = np.arange(len(trials.scores))
        ours, theirs = (
            bootstrap(lambda w, t=trials: t.roc(w).auc, a, b, samples=100, seed=2)
            for a, b in ((trials.identity_a, trials.identity_b), (pair, pair))
        )
        covered += ours.low <= truth <= ours.high
        naive += theirs.low <= truth <= theirs.high
        wider += ours.high - ours.low > theirs.high - theirs.low
    assert covered >= 51  # nominal 57 of 60
    assert naive <= 42
    assert wider >= 58


def test_more_people_narrow_the_interval() -> None:
    widths = []
    for identities in (15, 120):
        trials = crowd(np.random.default_rng(0), identities)
        interval = bootstrap(
            lambda w, t=trials: t.roc(w).eer, trials.identity_a, trials.identity_b, samples=100
        )
        widths.append(interval.high - interval.low)
    assert widths[1] < widths[0] / 1.5


def test_a_paired_difference_is_surer_than_two_intervals() -> None:
    trials = crowd(np.random.default_rng(3))
    worse = Trials(trials.scores - 0.5 * trials.same, trials.identity_a, trials.identity_b)
    people_of = (trials.identity_a, trials.identity_b)
    difference = bootstrap(lambda w: trials.roc(w).auc - worse.roc(w).auc, *people_of, samples=200)
    apart = [bootstrap(lambda w, t=t: t.roc(w).auc, *people_of, samples=200) for t in (trials, worse)]
    assert 0 < difference.low < difference.high
    assert difference.high - difference.low < min(each.high - each.low for each in apart)


def test_a_ratio_of_lfw_accuracies() -> None:
    rng = np.random.default_rng(4)
    a = rng.integers(100, size=600)
    b = np.where(np.arange(600) % 2, a, (a + 1 + rng.integers(98, size=600)) % 100)
    same, folds, noise = a == b, np.arange(600) // 2 % 10, rng.normal(size=600)

    def accuracy(gap: float, weights: NDArray | None = None) -> float:
        return lfw_accuracy(noise + gap * same, same, folds, weights).accuracy

    def gained(weights: NDArray | None = None) -> float:
        before, federated, central = (accuracy(gap, weights) for gap in (0.5, 2.0, 3.0))
        return (federated - before) / (central - before)

    interval = bootstrap(gained, a, b, samples=100)
    assert 0.3 < interval.low < gained() < interval.high < 1


@pytest.mark.parametrize(("samples", "level"), [(0, 0.95), (10, 0.0), (10, 1.0)])
def test_intervals_of_nothing(samples: int, level: float) -> None:
    with pytest.raises(InputError, match="bootstrap"):
        bootstrap(lambda w: 0.0, np.zeros(2, int), np.arange(2), samples, 0, level)


def test_an_interval_is_the_percentiles_of_the_statistic() -> None:
    a, b = np.array([1, 2, 3, 1]), np.array([1, 2, 3, 2])
    draws = [weights[0] for weights in resamples(a, b, 100, seed=3)]
    interval = bootstrap(lambda weights: float(weights[0]), a, b, samples=100, seed=3, level=0.6)
    assert (interval.low, interval.high) == tuple(np.quantile(draws, [0.2, 0.8]))
    assert interval.level == 0.6


def test_a_wider_level_is_wider() -> None:
    trials = crowd(np.random.default_rng(6))
    narrow, wide = (
        bootstrap(lambda w: trials.roc(w).auc, trials.identity_a, trials.identity_b, 200, level=level)
        for level in (0.5, 0.95)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


# --- in one call ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judged() -> Iterator[tuple[NDArray, NDArray, Roc]]:
    embeddings, labels = people(30, 6, 0.9)
    yield embeddings, labels, Trials.listed(embeddings, labels, *every_pair(labels)).roc()


def test_evaluate_says_it_all_in_plain_types(judged: tuple[NDArray, NDArray, Roc]) -> None:
    embeddings, labels, curve = judged
    figures = evaluate(embeddings, labels, samples=50)
    assert (figures.genuine, figures.impostor, figures.identities) == (30 * 15, 180 * 179 // 2 - 450, 30)
    assert (figures.eer, figures.auc) == (pytest.approx(curve.eer), pytest.approx(curve.auc))
    assert list(figures.tar_at_far) == ["1e-1", "1e-2", "1e-3"]  # 15,660 impostors do not resolve 1e-4
    assert set(figures.intervals) == {"eer", "auc", "tar@1e-1", "tar@1e-2", "tar@1e-3"}
    assert figures.intervals["eer"].low < figures.eer < figures.intervals["eer"].high
    assert figures.interval_pairs == 180 * 179 // 2
    assert json.loads(json.dumps(asdict(figures)))["intervals"]["auc"]["level"] == 0.95


def test_evaluate_is_reproducible(judged: tuple[NDArray, NDArray, Roc]) -> None:
    embeddings, labels, _ = judged
    assert evaluate(embeddings, labels, 1, 20) == evaluate(embeddings, labels, 1, 20)
    assert evaluate(embeddings, labels, 1, 20) != evaluate(embeddings, labels, 2, 20)


def test_evaluate_judges_all_pairs_and_draws_intervals_from_some(
    judged: tuple[NDArray, NDArray, Roc], monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, labels, curve = judged
    monkeypatch.setattr("privfr.faces.verification._INTERVAL_PAIRS", 2000)
    figures = evaluate(embeddings, labels, samples=20)
    assert figures.impostor == curve.impostor
    assert figures.eer == pytest.approx(curve.eer)
    assert figures.interval_pairs == 450 + 2000
    assert "1e-3" in figures.tar_at_far
    assert "tar@1e-3" not in figures.intervals  # 2000 do not resolve it


def test_evaluate_without_intervals(judged: tuple[NDArray, NDArray, Roc]) -> None:
    figures = evaluate(judged[0], judged[1], samples=0)
    assert (figures.intervals, figures.interval_pairs) == ({}, 0)
