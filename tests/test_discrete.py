"""The discrete Gaussian against its exact probabilities, and every decision that a table cannot take."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privfr import discrete
from privfr.discrete import DiscreteGaussian
from privfr.errors import LocalProtocolError

DRAWS = 10**6
# Very small, around where blocks begin (2^16), and as large as a sum of 32 bits can bear.
VARIANCES = [
    Fraction(1, 20), Fraction(3, 10), Fraction(1), Fraction(9), Fraction(250**2), Fraction(2**16),
    Fraction(2**16 + 1), Fraction(2072**2), Fraction(10**12), Fraction(2**58),
]  # fmt: skip


def entropy(seed: str) -> Callable[[int], bytes]:
    return lambda n: hashlib.shake_256(seed.encode()).digest(n)


def exact_cdf(variance: Fraction, edges: list[int]) -> list[float]:
    """P(X < edge), by sums of 30 digits, or, where Poisson summation makes the difference to the normal
    distribution less than e^(-2 pi^2 v), by its integral with the Euler-Maclaurin correction of half a step.
    """
    sigma = math.sqrt(variance)
    if sigma < 3000:
        most = int(14 * sigma) + 12
        with mpmath.workdps(30):
            twice = 2 * mpmath.mpf(variance.numerator) / variance.denominator
            weights = [mpmath.exp(-mpmath.mpf(x * x) / twice) for x in range(most + 1)]
            total = weights[0] + 2 * mpmath.fsum(weights[1:])
            sums = np.cumsum([float(w / total) for w in [*weights[:0:-1], *weights]])
        return [float(sums[edge - 1 + most]) for edge in edges]
    return [float(stats.norm.cdf((edge - 0.5) / sigma)) for edge in edges]


@pytest.mark.parametrize("variance", VARIANCES, ids=lambda v: f"{float(v):.3g}")
def test_a_million_draws_match_the_exact_distribution(variance: Fraction) -> None:
    drawn = DiscreteGaussian(variance).sample(DRAWS, entropy(f"chi-square {variance}"))
    sigma = math.sqrt(variance)
    spread = np.linspace(-4.5 * sigma, 4.5 * sigma, 120)
    edges = sorted({round(x) for x in spread} | {0, 1})
    cells = np.diff([0.0, *exact_cdf(variance, edges), 1.0])
    counts = np.bincount(np.searchsorted(edges, drawn, side="right"), minlength=len(cells))
    often = cells * DRAWS >= 5
    expected = np.append(cells[often], cells[~often].sum()) * DRAWS
    found = np.append(counts[often], counts[~often].sum())
    if expected[-1] < 5:  # too rare for a chi-square: next to nothing may be there
        assert found[-1] <= 25
        expected, found = expected[:-1], found[:-1]
    # One test in a million would fail by chance; the draws are the same each time.
    assert stats.chi2.sf(float(((found - expected) ** 2 / expected).sum()), len(expected) - 1) > 1e-6


def test_blocks_of_integers_are_filled_evenly() -> None:
    """What rejection decides: within a block near integers are as likely as exp says, on either side of 0."""
    variance = Fraction(2072**2)
    drawn = DiscreteGaussian(variance).sample(DRAWS, entropy("blocks"))
    places = np.bincount(drawn & 15, minlength=16)
    assert stats.chisquare(places).pvalue > 1e-6
    assert abs(np.mean(drawn > 0) - np.mean(drawn < 0)) < 5 / math.sqrt(DRAWS)


@given(st.integers(0, 2**64 - 1), st.sampled_from(VARIANCES))
@settings(max_examples=100, deadline=None)
def test_each_draw_is_the_cell_in_which_the_uniform_number_lies(word: int, variance: Fraction) -> None:
    """Against an inversion with 40 digits: cells outwards from 0, by weights of the formula itself."""
    noise = DiscreteGaussian(variance)
    shift = noise._shift
    with mpmath.workdps(40):
        twice = 2 * mpmath.mpf(variance.numerator) / variance.denominator

        def weight(cell: int) -> mpmath.mpf:
            block = -((cell + 1) // 2) if cell % 2 else cell // 2
            peak = block << shift if block >= 0 else ((-block - 1) << shift) + 1
            return mpmath.exp(-(mpmath.mpf(peak) ** 2) / twice)

        weights = [weight(cell) for cell in range(int(30 * math.sqrt(variance)) // (1 << shift) + 12)]
        total, reached, cell = mpmath.fsum(weights), mpmath.mpf(0), 0
        uniform = (mpmath.mpf(word) + mpmath.mpf(1) / 3) / 2**64  # its later bits are 0101...
        while reached + weights[cell] <= uniform * total:
            reached += weights[cell]
            cell += 1
    found = int(noise._cells(np.array([word], np.uint64), Fixed(int("01" * 32, 2)))[0])  # type: ignore[arg-type]
    assert found == cell


class Fixed:
    """Words that are always the same, in place of a keystream."""

    def __init__(self, word: int) -> None:
        self._word = word

    def word(self) -> int:
        return self._word


@pytest.mark.parametrize("variance", VARIANCES, ids=lambda v: f"{float(v):.3g}")
def test_cells_are_found_as_by_bisection(variance: Fraction) -> None:
    noise = DiscreteGaussian(variance)
    near = np.concatenate([noise._table - np.uint64(1), noise._table[:-1] + np.uint64(1)])
    firsts = np.arange(1 << discrete._FIRST, dtype=np.uint64) << np.uint64(64 - discrete._FIRST)
    words = np.concatenate([near, firsts, firsts - np.uint64(1), discrete._Bits(bytes(32)).words(10**5)])
    words = words[~np.isin(words, noise._table)]
    np.testing.assert_array_equal(
        noise._cells(words, discrete._Bits(bytes(32))), np.searchsorted(noise._table, words)
    )


@pytest.mark.parametrize("variance", [v for v in VARIANCES if v > 2**16 - 1])
def test_what_is_kept_unseen_would_be_kept_by_exp(variance: Fraction) -> None:
    """At the least likely place of each block: the largest draw below the bound is below the exponential."""
    noise = DiscreteGaussian(variance)
    width = 1 << noise._shift
    for base, safe in zip(noise._bases.tolist()[::37], noise._safe.tolist()[::37], strict=True):
        near, far = (base, base + width - 1) if base >= 0 else (-base - width + 1, -base)
        with mpmath.workdps(60):
            chance = mpmath.exp(-mpmath.mpf(far**2 - near**2) / (2 * int(variance)))
            assert mpmath.mpf(safe) / 2**32 <= chance
            assert chance - mpmath.mpf(safe) / 2**32 < 0.01 or not safe


@pytest.mark.parametrize("variance", [Fraction(1), Fraction(2072**2)])
def test_a_number_on_a_threshold_is_decided_by_more_bits(variance: Fraction) -> None:
    noise = DiscreteGaussian(variance)
    longer = discrete._cumulative(variance, noise._shift, 128)
    for cell in range(5):
        threshold = longer[cell]
        assert threshold >> 64 == int(noise._table[cell])
        first, rest = threshold >> 64, threshold & (2**64 - 1)
        assert noise._cell(first, Fixed(rest - 1)) == cell
        assert noise._cell(first, Fixed(rest + 1)) == cell + 1


@given(st.integers(1, 2**58), st.integers(0, 2**56), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_comparison_with_an_exponential_is_exact(twice: int, excess: int, drawn: int) -> None:
    later = 0x5555555555555555
    found = discrete._below_exponential(drawn, excess, twice, Fixed(later))
    with mpmath.workdps(60):
        uniform = mpmath.mpf(drawn * 2**192 + later * (2**128 + 2**64 + 1)) / mpmath.mpf(2) ** 224
        assert found == (uniform < mpmath.exp(-mpmath.mpf(excess) / twice))


def test_the_quick_bounds_never_contradict_the_exact_comparison() -> None:
    """With words at the very edge of both bounds, `_kept` keeps what exp says."""
    noise = DiscreteGaussian(Fraction(2072**2))
    blocks = np.repeat(np.array([-3, -1, 0, 1, 7, 40, 300]), 64)
    width = 1 << noise._shift
    low = np.tile(np.arange(64) % width, 7).astype(np.uint64)
    places = (blocks << noise._shift) + low.astype(np.int64)
    peaks = np.where(blocks < 0, ((-blocks - 1) << noise._shift) + 1, blocks << noise._shift)
    chance = np.exp(-(places.astype(float) ** 2 - peaks.astype(float) ** 2) / (2 * 2072.0**2))
    for nudge in (-40, -3, 3, 40):
        high = np.clip(np.round(chance * 2**32) + nudge, 0, 2**32 - 1).astype(np.uint64)
        kept = places[noise._kept(places, high, discrete._Bits(bytes(32)))]
        sure = np.abs((high.astype(float) + 0.5) / 2**32 - chance) > 2**-32
        expected = places[sure & ((high.astype(float) + 0.5) / 2**32 < chance)]
        assert set(expected) <= set(kept)
        assert len(kept) <= len(expected) + (~sure).sum()


def test_draws_follow_the_entropy_and_nothing_else() -> None:
    noise = DiscreteGaussian(Fraction(100))
    first, again = (noise.sample(1000, entropy("same")) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, noise.sample(1000, entropy("other")))
    asked: list[int] = []
    noise.sample(10, lambda n: asked.append(n) or os.urandom(n))  # type: ignore[func-returns-value]
    assert asked == [32]


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(2**58 + 1), Fraction(2**18, 3)])
def test_a_variance_that_cannot_be_drawn_is_refused(variance: Fraction) -> None:
    with pytest.raises(LocalProtocolError, match="variance"):
        DiscreteGaussian(variance)
