"""The discrete Gaussian against its exact probabilities, and every decision that a table cannot take."""

from __future__ import annotations

import hashlib
import math
import os
from bisect import bisect_right
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

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


class Law:
    """The sampler's law by 40 digits: each weight from the formula itself, each decision by real numbers."""

    def __init__(self, variance: Fraction) -> None:
        self.shift = DiscreteGaussian(variance)._shift
        self.twice = 2 * mpmath.mpf(variance.numerator) / variance.denominator
        self.variance = variance
        reached = mpmath.mpf(0)
        self.sums = []
        for block in self.blocks():
            weight = self.exp(self.peak(block) ** 2)
            self.sums += [reached + weight * self.low(block), reached + weight]
            reached += weight
        self.sums = [each / reached for each in self.sums]

    def blocks(self) -> list[int]:
        most = int(14 * math.sqrt(self.variance)) // (1 << self.shift) + 12
        return [block for i in range(most) for block in (i, -i - 1)]

    def exp(self, squares: int) -> mpmath.mpf:
        return mpmath.exp(-mpmath.mpf(squares) / self.twice)

    def peak(self, block: int) -> int:
        return block << self.shift if block >= 0 else ((-block - 1) << self.shift) + 1

    def low(self, block: int) -> mpmath.mpf:
        return mpmath.mpf(int(discrete._low(np.array([block]), self.shift, self.variance)[0])) / 4096

    def cell(self, uniform: mpmath.mpf) -> int:
        """Invert: the first cell up to which the probabilities are together above the number."""
        return bisect_right(self.sums, uniform)

    def draw(self, count: int, bits: discrete._Bits) -> list[int]:
        """Draw as `sample` says it does, of the same bits, number by number; single words are 0101..."""
        last = (1 << self.shift) - 1
        kind = np.min_scalar_type(last)
        firsts, drawn = [], []
        for start in range(0, count, discrete._CHUNK):
            size = min(discrete._CHUNK, count - start)
            firsts += bits.words(size, np.dtype(np.uint16)).tolist()
            drawn += (bits.words(size, kind) & kind.type(last)).tolist() if last else [0] * size
        cells = [self.decided(first) for first in firsts]
        rest = [i for i in range(count) if cells[i] < 0]
        for i, later in zip(rest, words(len(rest), bits), strict=True):
            cells[i] = self.cell((mpmath.mpf(firsts[i] << 48 | later >> 16) + mpmath.mpf(1) / 3) / 2**64)
        drawn = [(block_at(cell) << self.shift) + place for cell, place in zip(cells, drawn, strict=True)]
        doubtful = [i for i in rest if cells[i] % 2]
        coins = words(len(doubtful), bits)
        refused = [i for i, coin in zip(doubtful, coins, strict=True) if not self.kept(drawn[i], coin >> 44)]
        again = self.draw(len(refused), bits) if refused else []
        for i, new in zip(refused, again, strict=True):
            drawn[i] = new
        return drawn

    def decided(self, first: int) -> int:
        """Give the cell of all numbers that begin so; -1 if there are several, or places may be refused."""
        cell = self.cell(mpmath.mpf(first) / 2**16)
        return cell if cell % 2 == 0 and self.sums[cell] >= mpmath.mpf(first + 1) / 2**16 else -1

    def kept(self, place: int, tossed: int) -> bool:
        block = place >> self.shift
        low = self.low(block)
        coin = low + (1 - low) * (mpmath.mpf(tossed) + mpmath.mpf(1) / 3) / 2**20
        return bool(coin < self.exp(place**2 - self.peak(block) ** 2))


def block_at(cell: int) -> int:
    half = cell // 2
    return -(half + 1) // 2 if half % 2 else half // 2


def words(count: int, bits: discrete._Bits) -> list[int]:
    return [int(word) for word in bits.words(count, np.dtype(np.uint64))]


@pytest.mark.parametrize(
    ("variance", "blocks"),
    [*((v, 256) for v in VARIANCES), (Fraction(2072**2), 16), (Fraction(2**58), 16)],
    ids=lambda v: f"{float(v):.3g}",
)
def test_each_draw_is_what_the_law_says_of_the_very_bits(
    variance: Fraction, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of thousands of draws, in several parts, hundreds need more than the first bits.

    With few blocks, the first bits may be of a cell in which places can be refused.
    """
    monkeypatch.setattr(discrete, "_CHUNK", 7000)
    monkeypatch.setattr(discrete, "_BLOCKS", blocks)
    monkeypatch.setattr(discrete._Bits, "word", lambda bits: int("01" * 32, 2))
    with mpmath.workdps(40):
        expected = Law(variance).draw(20_000, discrete._Bits(entropy("bits")(32)))
    drawn = DiscreteGaussian(variance).sample(20_000, entropy("bits"))
    np.testing.assert_array_equal(drawn, expected)


@given(st.integers(0, 2**64 - 1), st.sampled_from(VARIANCES))
@settings(max_examples=100, deadline=None)
def test_each_cell_is_that_in_which_the_uniform_number_lies(word: int, variance: Fraction) -> None:
    with mpmath.workdps(40):
        expected = law(variance).cell((mpmath.mpf(word) + mpmath.mpf(1) / 3) / 2**64)  # on with 0101...
    found = DiscreteGaussian(variance)._cells(np.array([word], np.uint64), Fixed(int("01" * 32, 2)))
    assert found[0] == expected


@lru_cache
def law(variance: Fraction) -> Law:
    return Law(variance)


class Fixed(discrete._Bits):
    """Bits that are known, in place of a keystream: words in bulk, single ones, the last over and over."""

    def __init__(self, single: int | list[int], *bulk: int) -> None:
        self._single, self._bulk = [single] if isinstance(single, int) else single, list(bulk)

    def words(self, count: int, kind: np.dtype[Any]) -> Any:
        return np.full(count, self._bulk.pop(0), kind)

    def word(self) -> int:
        return self._single.pop(0) if len(self._single) > 1 else self._single[0]


@pytest.mark.parametrize("variance", VARIANCES, ids=lambda v: f"{float(v):.3g}")
def test_cells_are_found_as_by_bisection(variance: Fraction) -> None:
    noise = DiscreteGaussian(variance)
    near = np.concatenate([noise._table - np.uint64(1), noise._table[:-1] + np.uint64(1)])
    ends = discrete._begins() - np.uint64(1)
    drawn = discrete._Bits(bytes(32)).words(10**5, np.dtype(np.uint64))
    words = np.concatenate([near, discrete._begins(), ends, drawn])
    words = words[~np.isin(words, noise._table)]
    cells = noise._cells(words, discrete._Bits(bytes(32)))
    np.testing.assert_array_equal(cells, np.searchsorted(noise._table, words))


@pytest.mark.parametrize("variance", [Fraction(1, 1000), *VARIANCES], ids=lambda v: f"{float(v):.3g}")
def test_the_first_bits_decide_only_where_all_that_may_follow_agree(variance: Fraction) -> None:
    noise = DiscreteGaussian(variance)
    begins = discrete._begins()
    least, most = (np.searchsorted(noise._table, each) for each in (begins, begins | np.uint64(2**48 - 1)))
    on = np.isin(begins | np.uint64(2**48 - 1), noise._table)
    sure = (least == most) & ~on & (least % 2 == 0)
    np.testing.assert_array_equal(noise._direct != discrete._UNDECIDED, sure)
    np.testing.assert_array_equal(noise._direct[sure], discrete._block_of(least[sure]))
    assert sure.mean() > 0.95


@pytest.mark.parametrize("variance", [v for v in VARIANCES if v > 2**16 - 1])
def test_what_is_kept_unseen_would_be_kept_by_exp(variance: Fraction) -> None:
    """At the least likely place of each block: a coin below the bound is below the exponential."""
    noise = DiscreteGaussian(variance)
    width = 1 << noise._shift
    blocks = np.arange(-1300, 1300)
    lows = discrete._low(blocks, noise._shift, variance)
    for block, low in zip(blocks[::37].tolist(), lows[::37].tolist(), strict=True):
        ends = abs(block * width), abs(block * width + width - 1)
        with mpmath.workdps(60):
            chance = mpmath.exp(-mpmath.mpf(max(ends) ** 2 - min(ends) ** 2) / (2 * int(variance)))
            assert mpmath.mpf(low) / 4096 <= chance
            assert chance - mpmath.mpf(low) / 4096 < 0.01


@pytest.mark.parametrize("variance", [Fraction(1), Fraction(2072**2)])
def test_a_number_on_a_threshold_is_decided_by_more_bits(variance: Fraction) -> None:
    noise = DiscreteGaussian(variance)
    longer = discrete._cumulative(variance, noise._shift, 128)
    step = 1 if noise._shift else 2  # where every place is kept, odd cells are empty
    for cell in range(0, 10, step):
        threshold = longer[cell]
        assert threshold >> 64 == int(noise._table[cell])
        first, rest = threshold >> 64, threshold & (2**64 - 1)
        assert noise._cell(first, Fixed(rest - 1)) == cell
        assert noise._cell(first, Fixed(rest + 1)) == cell + step


@pytest.mark.parametrize("variance", VARIANCES[1:], ids=lambda v: f"{float(v):.3g}")
def test_a_number_beyond_the_table_is_drawn_too(variance: Fraction) -> None:
    """All bits 1 as far as the table goes: one draw in 2^64 is that far out, and is what it should be."""
    noise = DiscreteGaussian(variance)
    ones = 2**64 - 1
    with mpmath.workdps(80):
        uniform = 1 - (2 + mpmath.mpf(2) / 2**64) / 2**128  # its third 64 bits are those of the second again
        cell = Law(variance).cell(uniform)
    assert cell >= len(noise._table)
    bits = Fixed(ones - 2, ones, 0)
    drawn = noise._decide(np.array([0xFFFF], np.uint16), np.array([0], np.uint16), bits)
    assert drawn.tolist() == [block_at(cell) << noise._shift]


@given(st.integers(1, 2**58), st.integers(0, 2**56), st.integers(0, 2**32 - 1), st.integers(1, 4096))
@settings(deadline=None)
def test_a_comparison_with_an_exponential_is_exact(twice: int, excess: int, coin: int, spread: int) -> None:
    later = 0x5555555555555555
    found = discrete._below_exponential(coin, spread, excess, twice, Fixed(later))
    with mpmath.workdps(60):
        more = mpmath.mpf(later * (2**128 + 2**64 + 1)) / mpmath.mpf(2) ** 192
        assert found == ((coin + spread * more) / 2**32 < mpmath.exp(-mpmath.mpf(excess) / twice))


@pytest.mark.parametrize("variance", [v for v in VARIANCES if v > 2**16])
def test_coins_at_the_very_edge_are_decided_as_by_exp(variance: Fraction) -> None:
    """Coins next to the exponential, below and above, at the edges of what the quick bounds decide too."""
    noise, rng = DiscreteGaussian(variance), np.random.default_rng(0)
    width = 1 << noise._shift
    for block in (-900, -300, -3, -1, 0, 1, 7, 40, 300, 900):
        low = int(discrete._low(np.array([block]), noise._shift, variance)[0])
        peak = block * width if block >= 0 else -block * width - width + 1
        for within in {0, 1, width - 1, *rng.integers(width, size=5).tolist()}:
            place = block * width + within
            with mpmath.workdps(90):
                chance = mpmath.exp(-mpmath.mpf(place**2 - peak**2) / (2 * int(variance)))
                edge = int((chance * 4096 - low) / (4096 - low) * 2**20)
                square = int((mpmath.log(chance)) ** 2 / 2 * 4096 / (4096 - low) * 2**20)
            for nudge in (-3, -1, 0, 1, 3, square - 1, square, square + 1, square + 3):
                tossed = min(max(0, edge + nudge), 2**20 - 1)
                for later in (0x5555555555555555, 2**64 - 1):
                    kept = noise._kept(np.array([place]), Fixed(later, tossed << 44))[0]
                    with mpmath.workdps(90):
                        tail = mpmath.mpf(later * (2**128 + 2**64 + 1)) / mpmath.mpf(2) ** 192
                        coin = (low + (4096 - low) * (tossed + tail) / 2**20) / 4096
                        assert kept == (coin < chance), (block, within, nudge)


@pytest.mark.parametrize("spread", [1, 7, 4096])
def test_a_coin_that_meets_the_exponential_is_tossed_on(spread: int) -> None:
    """Its first 96 bits leave it open, so those after decide."""
    with mpmath.workdps(60):
        target = int(mpmath.exp(-mpmath.mpf(3) / 1000) * 2**96)
    coin = (target >> 64) - spread // 2
    word = (target - (coin << 64)) // spread
    assert discrete._below_exponential(coin, spread, 3, 1000, Fixed([word, 0]))
    assert not discrete._below_exponential(coin, spread, 3, 1000, Fixed([word, 2**64 - 1]))


@pytest.mark.parametrize("variance", [Fraction(9), Fraction(10**12), Fraction(2**58)])
def test_blurring_adds_what_sampling_draws(variance: Fraction) -> None:
    """Over several parts, and more undecided draws than a part has."""
    noise, count = DiscreteGaussian(variance), 4 * 10**6 + 3
    drawn = noise.sample(count, entropy("blur"))
    total = np.arange(count, dtype=np.uint32) * np.uint32(2654435761)
    expected = total + drawn.astype(np.uint32)
    noise.blur(total, entropy("blur"))
    np.testing.assert_array_equal(total, expected)


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
