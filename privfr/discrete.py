"""The discrete Gaussian, sampled exactly.

P(x) = exp(-x^2 / 2 v) / sum over all integers, for whole x (Canonne, Kamath & Steinke 2020, arXiv
2004.00010). Floating-point samplers only come near their distribution, and what they miss by has been used to
undo the noise (Mironov 2012, doi 10.1145/2382196.2382264; Jin et al. 2022, arXiv 2112.05307). Here every
decision compares a uniform number with a probability, bit by bit, as far as it takes to tell them apart:
first 16 bits, which decide for all but one number in thirty, then 64 against a table of whole numbers, and in
the rare case that these are equal, more against a table that is computed to as many.

A wide distribution is cut into blocks of 2^m integers: a block is drawn by its largest probability, a place
in it uniformly, and the place is kept with the ratio of its probability to that largest one (von Neumann's
rejection). The coin for it is thrown with the block: each block is two cells of the table, in one of which
the coin is so low that every place is kept. Nearly all numbers fall there.

The time that sampling takes tells something of what was drawn, as that of any table look-up does.
"""

from __future__ import annotations

import decimal
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from privfr.errors import LocalProtocolError

__all__ = ["DiscreteGaussian"]

Whole = NDArray[np.int64]
Words = NDArray[np.uint64]
Unsigned = NDArray[np.unsignedinteger[Any]]

# Most blocks in a standard deviation: more take a larger table, fewer are less even.
_BLOCKS = 256
# Numbers drawn at a time: what they take stays in the processor's second cache.
_CHUNK = 1 << 16
# First bits of the number by which a cell is looked up, and of the coin by which a place may be kept.
_FIRST = 16
_COIN = 12
_LATER = np.uint64(64 - _FIRST)
# In place of a block, where the first bits do not decide.
_UNDECIDED = -(1 << 15)
_U16, _U64 = np.dtype(np.uint16), np.dtype(np.uint64)


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
        drawn = np.zeros(count, np.int64)
        self.blur(drawn, entropy)
        return drawn

    def blur(self, total: Whole | NDArray[np.uint32], entropy: Callable[[int], bytes]) -> None:
        """Add what `sample` draws to [n], in place: to int64, or to uint32 modulo 2^32."""
        self._blur(total, _Bits(entropy(32)))

    @cached_property
    def _shift(self) -> int:
        """The m of blocks of 2^m integers."""
        return ((int(self.variance) // _BLOCKS**2).bit_length() + 1) // 2

    @cached_property
    def _table(self) -> Words:
        return np.array(_cumulative(self.variance, self._shift, 64), np.uint64)

    @cached_property
    def _starts(self) -> Whole:
        """For each value of the first bits the first cell that a number which begins so can lie in."""
        return np.searchsorted(self._table, _begins())

    @cached_property
    def _direct(self) -> NDArray[np.int16]:
        """For each value of the first bits the block of all numbers that begin so, less than 2^11 from 0.

        `_UNDECIDED` if they are of several cells, or of one in which not all places are kept.
        """
        last = np.searchsorted(self._table, _begins() | ~(_begins()[-1]), side="right")
        decided = (self._starts == last) & (self._starts & 1 == 0)
        return np.where(decided, _block_of(self._starts), _UNDECIDED).astype(np.int16)

    def _blur(self, total: NDArray[Any], bits: _Bits) -> None:
        """Add what the first bits decide, part by part, and then the rest."""
        rest = []
        for start in range(0, total.size, _CHUNK):
            part = total[start : start + _CHUNK]
            firsts, places = bits.words(part.size, _U16), self._places(part.size, bits)
            blocks = np.empty(part.size, np.int16)
            np.take(self._direct, firsts, out=blocks, mode="clip")  # all are in range; "raise" makes a copy
            undecided = np.flatnonzero(blocks == _UNDECIDED)
            rest.append((undecided + start, firsts[undecided], places[undecided]))
            blocks[undecided] = places[undecided] = 0
            drawn: NDArray[Any] = blocks.astype(total.dtype)
            drawn <<= self._shift
            drawn += places.astype(total.dtype)
            part += drawn
        if rest:
            where, begun, within = (np.concatenate(each) for each in zip(*rest, strict=True))
            total[where] += self._decide(begun, within, bits).astype(total.dtype)

    def _places(self, count: int, bits: _Bits) -> Unsigned:
        """Draw places in a block."""
        last = (1 << self._shift) - 1
        kind = np.min_scalar_type(last)
        return bits.words(count, kind) & kind.type(last) if last else np.zeros(count, kind)

    def _decide(self, firsts: Unsigned, places: Unsigned, bits: _Bits) -> Whole:
        """Draw by more bits what the first ones do not decide, places in a block being drawn."""
        later = bits.words(firsts.size, _U64) >> np.uint64(_FIRST)
        cells = self._cells(firsts.astype(np.uint64) << _LATER | later, bits)
        drawn = (_block_of(cells) << self._shift) + places.astype(np.int64)
        doubtful = np.flatnonzero(cells & 1)
        refused = doubtful[~self._kept(drawn[doubtful], bits)]
        again = np.zeros(refused.size, np.int64)
        self._blur(again, bits)
        drawn[refused] = again
        return drawn

    def _cells(self, words: Words, bits: _Bits) -> Whole:
        """Find for each uniform number, of which 64 bits are drawn, the first threshold that is above it."""
        cells: Whole = self._starts[words >> _LATER]
        for _ in range(3):  # few are further, and bisection takes seven times as long
            cells += self._table[cells] < words
        far = np.flatnonzero(self._table[cells] < words)
        cells[far] = np.searchsorted(self._table, words[far])
        for i in np.flatnonzero(self._table[cells] == words):
            cells[i] = self._cell(int(words[i]), bits)
        return cells

    def _cell(self, word: int, bits: _Bits) -> int:
        """Find the cell of a uniform number whose first 64 bits equal a threshold's.

        It may lie beyond those of `_table`, which ends where 64 bits do.
        """
        known = 64
        while True:
            known, word = known + 64, word << 64 | bits.word()
            thresholds = _cumulative(self.variance, self._shift, known)
            cell = bisect_left(thresholds, word)
            if thresholds[cell] != word:
                return cell

    def _kept(self, places: Whole, bits: _Bits) -> NDArray[np.bool_]:
        """Tell which places are kept, of those where the coin is not low.

        With c = (x^2 - peak^2) / 2v, the peak being the place of its block that is nearest to 0, a place is
        kept if the coin, which is uniform from `low` to 1, is below exp(-c). 1 - c <= exp(-c) <= 1 - c +
        c^2/2 decides all but a few in 64-bit integers, in 2^-32ths.
        """
        twice = 2 * int(self.variance)
        blocks = places >> self._shift
        peaks = _peaks(blocks, self._shift)
        sizes: Whole = np.abs(places)
        excess = (sizes - peaks) * (sizes + peaks)
        low = _low(blocks, self._shift, self.variance)
        spread = ((1 << _COIN) - low).astype(np.uint64)  # the coin's range, and that of its bits to come
        tossed = bits.words(places.size, _U64) >> np.uint64(32 + _COIN)
        coins = (low.astype(np.uint64) << np.uint64(32 - _COIN)) + spread * tossed
        spare = max(0, twice.bit_length() - 31)
        unit = np.uint64(twice >> spare)
        cut = np.minimum(excess >> spare, 1 << 31).astype(np.uint64)
        one, half, whole = np.uint64(1), np.uint64(32), np.uint64(1 << 32)
        above = ((cut + one) << half) // unit + one
        below = (cut << half) // (unit + one)
        keep: NDArray[np.bool_] = coins + spread + above <= whole
        capped = np.minimum(above, whole - one)
        square = capped * capped >> np.uint64(33)
        for i in np.flatnonzero(~keep & (coins + below < whole + square + one)):
            keep[i] = _below_exponential(int(coins[i]), int(spread[i]), int(excess[i]), twice, bits)
        return keep


class _Bits:
    """Uniform words: the ChaCha20 keystream of a key that is used for nothing else. None is given twice."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()

    def words(self, count: int, kind: np.dtype[Any]) -> Unsigned:
        """Draw [count] of an unsigned type."""
        words = np.empty(count, kind.newbyteorder("<"))
        self._stream.update_into(bytes(words.nbytes), words.view(np.uint8).data)
        return words.astype(kind, copy=False)

    def word(self) -> int:
        """Draw 64 bits."""
        return int.from_bytes(self._stream.update(bytes(8)), "little")


def _begins() -> Words:
    """All values of the first bits, followed by zeros."""
    return np.arange(1 << _FIRST, dtype=np.uint64) << _LATER


def _block_of(cells: Whole) -> Whole:
    """Give the block of each cell. They go outwards, two cells each: block 0, -1, 1, -2, 2, ..."""
    return (cells >> 2) ^ -(cells >> 1 & 1)  # ~n for the n-th below 0


def _peaks(blocks: Whole, shift: int) -> Whole:
    """Size of the place of each block that is nearest to 0; the farthest is 2^shift - 1 further out."""
    return np.where(blocks < 0, (~blocks << shift) + 1, blocks << shift)


def _low(blocks: Whole, shift: int, variance: Fraction) -> Whole:
    """For each block a number of 2^-12ths: with a coin below it, all places of the block are kept.

    Of e^-c, the ratio of the least probability to the largest, at least 1 - c.
    """
    reach = (1 << shift) - 1
    unit = max(1, 2 * int(variance) >> _COIN)
    return np.maximum(0, (1 << _COIN) + -reach * (2 * _peaks(blocks, shift) + reach) // unit)


def _below_exponential(coin: int, spread: int, excess: int, twice: int, bits: _Bits) -> bool:
    """Tell whether a number is below exp(-excess / twice), uniform from coin to coin + spread 2^-32ths."""
    known = 32
    while excess:
        known, coin = known + 64, (coin << 64) + spread * bits.word()
        digits = known // 3 + 20
        context = decimal.Context(prec=digits, Emin=-(10**9))
        power = context.exp(context.divide(-excess, twice))
        least, most = _around(power, digits - 5, known, context)
        if coin + spread <= least or coin > most:
            return coin + spread <= least
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

    Two cells are a block of 2^shift integers, weighed by its place nearest to 0: exp(-(hB)^2 / 2v) for block
    h >= 0 of B = 2^shift, exp(-((-h-1)B + 1)^2 / 2v) for h < 0. The first is of coins below `_low`.
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
    for the less than 10^6 blocks there are; what is left out at the end is below 10^(15-digits).
    """
    context = decimal.Context(prec=digits, Emin=-(10**9))
    width = 1 << shift
    upward = _weights(variance, width, 0, context)
    downward = _weights(variance, width, 1, context)
    end = decimal.Decimal((0, (1,), -digits))
    weights = [next(upward), next(downward)]
    side, other = upward, downward
    while weights[-1] >= end:
        weights.append(next(side))
        side, other = other, side
    shares = _low(_block_of(2 * np.arange(len(weights))), shift, variance) / (1 << _COIN)
    sums: list[decimal.Decimal] = []
    total = decimal.Decimal(0)
    for weight, share in zip(weights, shares.tolist(), strict=True):
        sums.append(context.fma(weight, decimal.Decimal(share), total))
        total = context.add(total, weight)
        sums.append(total)
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
