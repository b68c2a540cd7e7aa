"""The discrete Gaussian, sampled exactly.

P(x) = exp(-x^2 / 2 v) / sum over all integers, for whole x (Canonne, Kamath & Steinke 2020, arXiv
2004.00010). Floating-point samplers only come near their distribution, and what they miss by has been used to
undo the noise (Mironov 2012, doi 10.1145/2382196.2382264; Jin et al. 2022, arXiv 2112.05307). Here every
decision compares a uniform number with a probability, bit by bit, as far as it takes to tell them apart:
first 64 bits against a table of whole numbers, and in the rare case that these are equal, more bits against a
table that is computed to as many.

A wide distribution is cut into blocks of 2^m integers: a block is drawn by its largest probability, a place
in it uniformly, and the place is kept with the ratio of its probability to that largest one (von Neumann's
rejection).

The time that sampling takes tells something of what was drawn, as that of any table look-up does.
"""

from __future__ import annotations

import decimal
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from privfr.errors import LocalProtocolError

__all__ = ["DiscreteGaussian"]

Whole = NDArray[np.int64]
Words = NDArray[np.uint64]

# A standard deviation of so many blocks or fewer keeps the table in the processor's nearest cache.
_BLOCKS = 256
_CHUNK = 1 << 16
# First bits by which a cell is looked up.
_FIRST = 16


@dataclass(frozen=True)
class DiscreteGaussian:
    """Noise of one variance parameter.

    variance: the v above, positive, at most 2^58; a whole number where it is above 2^16. The variance itself
    is a little less, by nothing that matters from v = 1 on (Canonne et al., corollary 9).
    """

    variance: Fraction

    def __post_init__(self) -> None:
        """Check the range."""
        whole = self.variance.denominator == 1
        if not 0 < self.variance <= 1 << 58 or (self.variance > _BLOCKS**2 and not whole):
            raise LocalProtocolError(
                f"noise of variance {self.variance}: it is positive, at most 2^58, and whole above 2^16"
            )

    def sample(self, count: int, entropy: Callable[[int], bytes]) -> Whole:
        """Draw int64 [count], independent of each other.

        entropy: n -> n unpredictable bytes; asked once, for the 32 of a ChaCha20 key.
        """
        bits = _Bits(entropy(32))
        drawn, done = np.empty(count, np.int64), 0
        while done < count:
            found = self._draw(min(_CHUNK, count - done), bits)
            drawn[done : done + found.size] = found
            done += found.size
        return drawn

    @cached_property
    def _shift(self) -> int:
        """The m of blocks of 2^m integers."""
        return ((int(self.variance) // _BLOCKS**2).bit_length() + 1) // 2

    @cached_property
    def _table(self) -> Words:
        return np.array(_cumulative(self.variance, self._shift, 64), np.uint64)

    def _draw(self, count: int, bits: _Bits) -> Whole:
        """Draw `count` candidates; gives those that are kept."""
        cells = self._cells(bits.words(count), bits)
        places = self._bases[cells]
        if not self._shift:
            return places
        words = bits.words(count)
        places += (words & np.uint64((1 << self._shift) - 1)).astype(np.int64)
        draws = words >> np.uint64(32)
        keep = draws < self._safe[cells]
        doubtful = np.flatnonzero(~keep)
        keep[doubtful] = self._kept(places[doubtful], draws[doubtful], bits)
        kept: Whole = places[keep]
        return kept

    def _cells(self, words: Words, bits: _Bits) -> NDArray[np.intp]:
        """Find for each uniform number, of which 64 bits are drawn, the first threshold that is above it.

        By its first bits, where no threshold begins with the same.
        """
        cells: NDArray[np.intp] = self._direct[words >> np.uint64(64 - _FIRST)]
        among = np.flatnonzero(cells < 0)
        cells[among] = np.searchsorted(self._table, words[among])
        for i in among[self._table[cells[among]] == words[among]]:
            cells[i] = self._cell(int(words[i]), bits)
        return cells

    @cached_property
    def _direct(self) -> NDArray[np.intp]:
        """For each value of the first bits the cell of all numbers that begin so, -1 if they have several."""
        spare = np.uint64(64 - _FIRST)
        begins = np.arange(1 << _FIRST, dtype=np.uint64) << spare
        cells = np.searchsorted(self._table, begins)
        ends = np.searchsorted(self._table, begins | np.uint64((1 << (64 - _FIRST)) - 1), side="right")
        return np.where(cells == ends, cells, -1)

    @cached_property
    def _bases(self) -> Whole:
        """Lowest place of each cell's block. Cells go outwards: block 0, -1, 1, -2, 2, ..."""
        cells = np.arange(len(self._table))
        bases: Whole = np.where(cells & 1, -1, 1) * ((cells + 1) >> 1) << self._shift
        return bases

    @cached_property
    def _safe(self) -> Words:
        """For each cell a number below 2^32: with draws below it all places of the block are kept."""
        last = (1 << self._shift) - 1
        found = []
        for base in self._bases.tolist():
            near, far = (base, base + last) if base >= 0 else (-base - last, -base)
            twice = 2 * int(self.variance)
            found.append(max(0, (1 << 32) + (((near - far) * (near + far)) << 32) // twice))
        return np.array(found, np.uint64)

    def _cell(self, word: int, bits: _Bits) -> int:
        """Find the cell of a uniform number whose first 64 bits equal a threshold's."""
        known = 64
        while True:
            known, word = known + 64, word << 64 | bits.word()
            thresholds = _cumulative(self.variance, self._shift, known)
            cell = bisect_left(thresholds, word)
            if thresholds[cell] != word:
                return cell

    def _kept(self, places: Whole, draws: Words, bits: _Bits) -> NDArray[np.bool_]:
        """Tell which places are kept: with probability exp(-D / 2v), by uniform numbers of 32 bits so far.

        D = x^2 - peak^2, the peak being the place of its block that is nearest to 0. With c = D / 2v in
        2^-32ths, 1 - c <= exp(-c) <= 1 - c + c^2/2 decides all but a few in 64-bit integers.
        """
        blocks = places >> self._shift
        peaks = np.where(blocks < 0, (~blocks << self._shift) + 1, blocks << self._shift)
        sizes = np.abs(places)
        excess = (sizes - peaks) * (sizes + peaks)
        twice = 2 * int(self.variance)
        spare = max(0, twice.bit_length() - 31)
        unit = np.uint64(twice >> spare)
        cut = np.minimum(excess >> spare, 1 << 31).astype(np.uint64)
        one, half, whole = np.uint64(1), np.uint64(32), np.uint64(1 << 32)
        above = ((cut + one) << half) // unit + one
        below = (cut << half) // (unit + one)
        keep: NDArray[np.bool_] = draws + above < whole
        capped = np.minimum(above, whole - one)
        square = capped * capped >> np.uint64(33)
        for i in np.flatnonzero(~keep & (draws + below < whole + square + one)):
            keep[i] = _below_exponential(int(draws[i]), int(excess[i]), twice, bits)
        return keep


class _Bits:
    """Uniform words: the ChaCha20 keystream of a key that is used for nothing else."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

    def words(self, count: int) -> Words:
        return np.frombuffer(self._stream.update(bytes(8 * count)), "<u8")

    def word(self) -> int:
        return int.from_bytes(self._stream.update(bytes(8)), "little")


def _below_exponential(drawn: int, excess: int, twice: int, bits: _Bits) -> bool:
    """Tell whether a uniform number, of which the first 32 bits are drawn, is below exp(-excess / twice)."""
    known = 32
    while excess:
        known, drawn = known + 64, drawn << 64 | bits.word()
        digits = known // 3 + 20
        context = decimal.Context(prec=digits, Emin=-(10**9))
        power = context.exp(context.divide(-excess, twice))
        low, high = _around(power, digits - 5, known, context)
        if drawn < low or drawn > high:
            return drawn < low
    return True


def _around(value: decimal.Decimal, digits: int, bits: int, context: decimal.Context) -> tuple[int, int]:
    """Give the whole parts of 2^bits times the smallest and largest that a value of so many sure digits can
    be.
    """
    slack = decimal.Decimal((0, (1,), -digits))
    scaled = context.multiply(value, 1 << bits)
    least, most = (context.multiply(scaled, 1 + sign * slack) for sign in (-1, 1))
    return int(least), int(most)


@lru_cache(maxsize=64)
def _cumulative(variance: Fraction, shift: int, bits: int) -> list[int]:
    """Whole parts of 2^bits times the cumulative probabilities of the cells, up to the first of 2^bits - 1.

    A cell is a block of 2^shift integers, weighed by its place nearest to 0: exp(-(hB)^2 / 2v) for block h >=
    0 of B = 2^shift, exp(-((-h-1)B + 1)^2 / 2v) for h < 0.
    """
    digits = bits // 3 + 40
    while True:
        found = _attempt(variance, shift, bits, digits)
        if found is not None:
            return found
        digits += 40


def _attempt(variance: Fraction, shift: int, bits: int, digits: int) -> list[int] | None:
    """Compute as `_cumulative` says, or find that a threshold is too near to a whole number for the digits.

    Errors: decimal's exp and each multiplication are correct to 1 in the last digit. The j-th weight comes of
    fewer than j^2 + 2j multiplications of errors 10^(1-digits), the sum of its errors below 10^(13-digits)
    for the less than 10^6 cells there are; what is left out at the end is below 10^(15-digits).
    """
    context = decimal.Context(prec=digits, Emin=-(10**9))
    width = 1 << shift
    upward = _weights(variance, width, 0, context)
    downward = _weights(variance, width, 1, context)
    end = decimal.Decimal((0, (1,), -digits))
    sums: list[decimal.Decimal] = []
    total = decimal.Decimal(0)
    side, other = upward, downward
    while True:
        weight = next(side)
        if weight < end and len(sums) > 1:
            break
        total = context.add(total, weight)
        sums.append(total)
        side, other = other, side
    thresholds = []
    for each in sums:
        low, high = _around(context.divide(each, total), digits - 18, bits, context)
        if min(low, (1 << bits) - 1) != min(high, (1 << bits) - 1):
            return None
        thresholds.append(min(low, (1 << bits) - 1))
        if thresholds[-1] == (1 << bits) - 1:
            return thresholds
    return None


def _weights(
    variance: Fraction, width: int, first: int, context: decimal.Context
) -> Iterator[decimal.Decimal]:
    """Give exp(-p^2 / 2v) for p = first, first + width, ... by two multiplications each.

    The exponents' second differences are constant: w[j+1] = w[j] r[j], r[j+1] = r[j] s.
    """

    def exponential(numerator: int) -> decimal.Decimal:
        over = context.divide(-numerator * variance.denominator, 2 * variance.numerator)
        return context.exp(over)

    weight = exponential(first * first)
    ratio = exponential((first + width) ** 2 - first * first)
    change = exponential(2 * width * width)
    while True:
        yield weight
        weight, ratio = context.multiply(weight, ratio), context.multiply(ratio, change)
