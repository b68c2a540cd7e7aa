"""Updates as integers: what secure aggregation adds up, since a mask hides only numbers modulo 2^k.

A client's summand (see `privfr.vector`) becomes a vector of integers, the *lanes*, each of which is kept
modulo 2^k. The modulus has room for the sum of all clients, so no addition wraps, and the law becomes

    decode(sum of the encoded updates mod 2^k) == weighted mean of the updates, to within `error_bound`

Layout of the lanes
    weight: base 2^(bits-1) digits, lowest first, so that its sum is exact
    saturated: 1 if a metric or a coordinate of this client had to be clipped, else 0
    metrics: in the spec's order, each round(weight/max_weight * value/METRIC_CLIP * L)
    vector: each round(weight/max_weight * value/clip * L); if rotated, zero padded to whole blocks

where L = 2^(bits-1) - 1. Every step is element-wise, in a fixed order, so that every machine gets the
same bits.

With `Noise` the sum is differentially private, client by client: no client's vector, as integers, is longer
than `radius`, and discrete Gaussian noise is added to the integers, modulo 2^k as everything is. Weights are
then 1, there are no metrics and `saturated` is 0: nothing that depends on pictures is left out of the
account.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfr.discrete import DiscreteGaussian
from privfr.errors import BadFrame, InputError, LocalProtocolError
from privfr.vector import Aggregate, Update, Vector, l2_norm

__all__ = ["METRIC_CLIP", "Coding", "FixedPoint", "Noise", "add_packed", "pack", "unpack"]

Lanes = NDArray[np.uint32]
Reals = NDArray[np.float64]

# Largest |metric| that is not clipped: the loss of a margin head of scale 30 stays below.
METRIC_CLIP = 128.0

# Numbers in one block of the rotation; a vector shorter than this is one block of the next power of two.
ROTATION_BLOCK = 4096

# Numbers worked on at a time, so that temporaries stay in the processor's cache: whole rotation blocks,
# and whole groups of 8 lanes.
CHUNK = 1 << 16

# Largest relative error of one float32 operation.
HALF_ULP = 2.0**-24


class Noise(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What makes a sum differentially private. See `privfr.privacy.client` for how it is chosen.

    radius: largest L2 norm of one client's vector, in integer steps.  variance: of the discrete Gaussian
    added to each lane of the vector, in squared steps; by every client, or, if `central`, once to the sum by
    whoever adds up. Raises `InputError` for values that cannot be.
    """

    radius: int
    variance: int
    central: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 1 <= self.radius <= 1 << 40:
            raise InputError(f"the noise's radius is {self.radius}: give a whole number from 1 to 2^40")
        if not 1 <= self.variance <= 1 << 58:
            raise InputError(f"the noise's variance is {self.variance}: give a whole number from 1 to 2^58")


class Coding(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How an update becomes integers; all clients of a round must use the same.

    clip: largest |coordinate| of an update, after the rotation if there is one; the range is relative to
    the weight, so an update of a smaller weight w may be max_weight/w times as large.  bits: precision of
    one client's value, sign included, 2 to 24.  max_weight: a weight above counts as this.
    rounding: "nearest", or "stochastic", which is unbiased.  rotate: flatten outliers first, which allows
    a smaller clip.  noise: for differential privacy of a client, or None.
    Raises `InputError` for values that cannot be.
    """

    clip: float
    bits: int
    max_weight: int
    rounding: Literal["nearest", "stochastic"] = "nearest"
    rotate: bool = False
    noise: Noise | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        msgspec.structs.force_setattr(self, "clip", float(self.clip))  # 1 and 1.0 encode differently
        if not 1e-9 <= self.clip <= 1e9:
            raise InputError(f"clip is {self.clip}: give a number from 1e-9 to 1e9")
        if not 2 <= self.bits <= 24:
            raise InputError(f"bits is {self.bits}: give a whole number from 2 to 24")
        if not 1 <= self.max_weight <= 1 << 32:
            raise InputError(f"max_weight is {self.max_weight}: give a whole number from 1 to 2^32")
        if self.rounding not in ("nearest", "stochastic"):
            raise InputError(f'rounding is {self.rounding!r}: give "nearest" or "stochastic"')
        if self.noise and self.max_weight != 1:
            raise InputError(
                f"max_weight is {self.max_weight}: with noise every client counts the same, as 1"
            )

    @property
    def step(self) -> float:
        """What one step of the integers is, at the largest weight."""
        return self.clip / _largest(self.bits)

    def reach(self, clients: int) -> int:
        """Largest |sum| of a lane over so many clients; with noise, but for a chance of 2^-40 in all lanes.

        A sum of discrete Gaussians of total variance v is above t in absolute value with a probability of at
        most 2 exp(-t^2 / 2v) (Canonne et al. 2020, arXiv 2004.00010, lemma 6 and corollary 7), which is below
        2^-40 in any of up to 2^32 lanes for t^2 >= 102 v.
        """
        largest = clients * _largest(self.bits)
        if self.noise is None:
            return largest
        variance = self.noise.variance * (1 if self.noise.central else clients)
        return largest + math.isqrt(102 * variance) + 1

    def modulus_bits(self, clients: int) -> int:
        """Give the k of a modulus 2^k in which a sum over so many clients does not wrap."""
        return 1 + self.reach(clients).bit_length()

    def check_fits(self, clients: int) -> None:
        """Raise `InputError` where a sum over so many clients would not fit 32 bits."""
        needed = self.modulus_bits(clients)
        if needed > 32:
            if self.noise:
                raise InputError(
                    f"the noise: a sum over {clients} clients then needs {needed} bits and 32 is the most; "
                    "raise coding.clip, or set coding.bits lower"
                )
            smaller = (msgspec.structs.replace(self, bits=bits) for bits in range(2, 25))
            most = max((each.bits for each in smaller if each.modulus_bits(clients) <= 32), default=0)
            remedy = f"set bits to {most} or less" if most else "let fewer clients take part in a round"
            raise InputError(
                f"bits is {self.bits}: a sum over {clients} clients then needs {needed} bits and 32 is the "
                f"most; {remedy}"
            )


@dataclass(frozen=True)
class FixedPoint:
    """Fixed-point coding of a round's updates.

    clients: most values that are ever added.  metrics: names, in summand order.  size: numbers in the
    shared vector.  context: 32 bytes that all clients of the round share; fixes the rotation.
    Raises `InputError` where the sum would not fit 32 bits.

    No wrap: every lane of one client is in [-L, L]. Coordinates and metrics are clipped to it, a digit is
    at most 2^(bits-1) - 1 = L, and `saturated` is at most 1 <= L. The sum over `count` <= clients lanes is
    thus in [-clients*L, clients*L]. With k = 1 + bit_length(clients*L), clients*L < 2^(k-1), so the sum is
    one of the 2^k numbers from -2^(k-1) to 2^(k-1) - 1, which are all different modulo 2^k: the centred
    residue is the sum itself. With noise, `Coding.reach` takes the place of clients*L.
    """

    coding: Coding
    clients: int
    metrics: tuple[str, ...]
    size: int
    context: bytes

    def __post_init__(self) -> None:
        """Check that a sum fits."""
        if self.clients < 1 or self.size < 1:
            raise LocalProtocolError(f"nothing to encode: {self.clients} clients, {self.size} numbers")
        self.coding.check_fits(self.clients)

    @property
    def modulus_bits(self) -> int:
        """The k of the modulus 2^k."""
        return self.coding.modulus_bits(self.clients)

    @property
    def lanes(self) -> int:
        """Numbers in the integer vector."""
        return self._head + self._padded

    @property
    def packed_bytes(self) -> int:
        """Bytes of a packed integer vector."""
        return -(-self.lanes * self.modulus_bits // 8)

    def encode(self, update: Update, entropy: Callable[[int], bytes]) -> Lanes:
        """Encode an update as uint32 [lanes], residues modulo 2^k (two's complement of k bits).

        entropy: n -> n unpredictable bytes; asked once, for 32, if the rounding is stochastic.
        Raises `LocalProtocolError` for an update of another shape or other metrics, for a weight that is
        not a whole number above 0, and for values that are not finite.
        """
        self._check(update)
        if self.coding.noise:
            return self._private(update, self.coding.noise, entropy)
        return self._encoded(update, entropy)

    def _private(self, update: Update, noise: Noise, entropy: Callable[[int], bytes]) -> Lanes:
        """Encode without exceeding the radius, and add this client's noise.

        The bound is on the integers themselves, so no error of clipping or rounding has to be allowed for:
        what turns out too long is made shorter and encoded again. The first guess leaves room for rounding,
        which lengthens the square by a twelfth to a sixth for each number, give or take a radius; but not
        where that is most of it, and fewer are rounded up than down.
        """
        spare = self._padded / 6 + 4 * noise.radius
        room = noise.radius**2 - (spare if 2 * spare < noise.radius**2 else 0)
        length = l2_norm(update.vector) / self.coding.step
        share = math.sqrt(room) / length if length > noise.radius else 1.0
        while True:
            lanes = self._encoded(update, entropy, share)
            lanes[self._digits] = 0  # whether something was clipped is nobody's business
            norm = self._squared_norm(lanes)
            if norm <= noise.radius**2:
                break
            share *= min(1 - 2**-10, noise.radius / math.sqrt(norm))
        return lanes if noise.central else self.blur(lanes, noise.variance, entropy)

    def blur(self, lanes: Lanes, variance: int, entropy: Callable[[int], bytes]) -> Lanes:
        """Add discrete Gaussian noise to the vector's lanes, in place modulo 2^k; gives them back."""
        vector = lanes[self._head :]
        _gaussian(variance).blur(vector, entropy)
        vector &= _mask(self.modulus_bits)
        return lanes

    def _squared_norm(self, lanes: Lanes) -> int:
        """Exact squared L2 norm of the vector of one client's lanes."""
        total = 0
        for start in range(self._head, self.lanes, CHUNK):
            squares = np.square(self._centred(lanes[start : start + CHUNK]), dtype=np.int64)
            total += int(squares.sum())  # below 2^46 * 2^16
        return total

    def _encoded(self, update: Update, entropy: Callable[[int], bytes], share: float = 1.0) -> Lanes:
        """Encode without noise, the vector made shorter to such a share."""
        coding = self.coding
        weight = min(int(update.weight), coding.max_weight)
        steps = weight / coding.max_weight * _largest(coding.bits)  # integer steps to the clip
        noise = _Rounding(entropy(32)) if coding.rounding == "stochastic" else None
        metrics = np.array([update.metrics[name] for name in self.metrics], np.float64)
        lanes = np.empty(self.lanes, np.uint32)
        head, vector = lanes[: self._head], lanes[self._head :]
        head[: self._digits] = _digits_of(weight, coding.bits - 1, self._digits)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
            saturated = self._quantise(metrics * (steps / METRIC_CLIP), noise, head[self._digits + 1 :])
            for start in range(0, self._padded, CHUNK):
                values = self._rotated(update.vector, start).astype(np.float64)
                values *= steps / coding.clip * share
                saturated |= self._quantise(values, noise, vector[start : start + CHUNK])
        head[self._digits] = saturated
        return lanes

    def decode(self, total: Lanes, count: int) -> Aggregate:
        """Decode the sum modulo 2^k of the lanes of `count` clients, uint32 [lanes].

        Raises `BadFrame` for numbers that are no sum of so many encoded updates.
        """
        if total.shape != (self.lanes,) or total.dtype != np.uint32 or not 1 <= count <= self.clients:
            raise LocalProtocolError(
                f"a sum of {total.shape} {total.dtype} over {count} clients, "
                f"not of {self.lanes} uint32 numbers over 1 to {self.clients}"
            )
        head = [int(lane) for lane in self._lifted(total[: self._head], count)]
        weight = self._total_weight(head[: self._digits], count)
        saturated = head[self._digits]
        if not 0 <= saturated <= count:
            raise BadFrame(f"the sum is garbled: {saturated} of {count} clients had to clip")
        coding = self.coding
        scale = coding.max_weight / (_largest(coding.bits) * weight)
        metrics = {
            name: lane * scale * METRIC_CLIP
            for name, lane in zip(self.metrics, head[self._digits + 1 :], strict=True)
        }
        vector = self._mean(total[self._head :], count, scale * coding.clip)
        return Aggregate(vector, float(weight), count, metrics, self.error_bound(count, weight), saturated)

    def error_bound(self, count: int, weight: float) -> float:
        """Most a coordinate of the decoded mean differs from the exact mean, over `count` clients.

        weight: sum of the weights, each counted as at most max_weight, which is what the exact mean
        weighs by. It holds only if no client saturated.

        Let A = count * clip * max_weight / weight, the largest mean there can be, and u = 2^-24. One
        client's rounding errs by r = 1/2 step (nearest) or 1 step (stochastic), a step being 1/L of its
        range: A * r/L together. The result's rounding to float32 adds A * u; the factor 1 + 2^-20 is far
        more than all float64 operations add.

        A rotation of blocks of B is orthonormal, so what errs by e in each rotated coordinate errs by at
        most sqrt(B) * e in one of the result (reached where the errors have the signs of a row). A
        transform is log2(B) float32 additions, a multiplication and a constant, each of which errs by u
        relative to the norm of its block. That norm is at most sqrt(B) * A * (1 + 1/2L), for the clients'
        transforms and the server's alike.
        """
        coding = self.coding
        largest = _largest(coding.bits)
        reach = count * coding.clip * coding.max_weight / weight
        rounding = (0.5 if coding.rounding == "nearest" else 1.0) / largest
        if not coding.rotate:
            return reach * (rounding + HALF_ULP) * (1 + 2**-20)
        operations = 2 * (math.log2(self._block) + 2) + 1  # the 1: the mean itself, before it is rotated back
        growth = 1 + 1 / (2 * largest)
        return math.sqrt(self._block) * reach * (rounding + operations * HALF_ULP * growth) * (1 + 2**-18)

    @property
    def _digits(self) -> int:
        return -(-self.coding.max_weight.bit_length() // (self.coding.bits - 1))

    @property
    def _head(self) -> int:
        return self._digits + 1 + len(self.metrics)

    @property
    def _block(self) -> int:
        """Numbers in a block of the rotation."""
        return min(ROTATION_BLOCK, 1 << (self.size - 1).bit_length()) if self.coding.rotate else 1

    @property
    def _padded(self) -> int:
        return -(-self.size // self._block) * self._block

    @cached_property
    def _signs(self) -> NDArray[np.uint8]:
        """The rotation's signs, one bit for each number: public, the same at every client of the round."""
        found = hashlib.shake_256(b"privfr rotation" + self.context).digest(-(-self._padded // 8))
        return np.frombuffer(found, np.uint8)

    def _check(self, update: Update) -> None:
        if update.vector.shape != (self.size,):
            raise LocalProtocolError(f"an update of {update.vector.shape} where {self.size} numbers belong")
        if set(self.metrics) != set(update.metrics):
            raise LocalProtocolError(
                f"an update with metrics {sorted(update.metrics)}, not {sorted(self.metrics)}"
            )
        if self.coding.noise and (update.weight != 1 or self.metrics):
            raise LocalProtocolError("with noise every update has weight 1 and no metrics")
        if not (update.weight >= 1 and float(update.weight).is_integer()):
            raise LocalProtocolError(f"an update's weight is a whole number above 0, not {update.weight}")

    def _quantise(self, values: Reals, noise: _Rounding | None, out: Lanes) -> bool:
        """Round to integers, clip to [-L, L], write the residues; whether any lost by the clipping.

        A value is said to be clipped if that costs it more than half a step, the error of rounding.
        """
        largest = _largest(self.coding.bits)
        peak = max(values.max(), -values.min()) if values.size else 0.0
        if not math.isfinite(peak):
            raise LocalProtocolError("an update with a number that is not finite")
        if noise is None:
            np.rint(values, out=values)
        else:
            values += noise.uniform(values.size)
            np.floor(values, out=values)
        np.clip(values, -largest, largest, out=values)
        np.copyto(out.view(np.int32), values, casting="unsafe")
        out &= _mask(self.modulus_bits)
        return bool(peak > largest + 0.5)

    def _lifted(self, lanes: Lanes, count: int) -> NDArray[np.int32]:
        """The centred residues modulo 2^k, which must be sums of `count` numbers in [-L, L]."""
        lifted = self._centred(lanes)
        largest = self.coding.reach(count)
        if lifted.size and (lifted.max() > largest or lifted.min() < -largest):
            raise BadFrame(f"the sum is garbled: it holds a number beyond what {count} clients can reach")
        return lifted

    def _centred(self, lanes: Lanes) -> NDArray[np.int32]:
        """The centred residues modulo 2^k."""
        spare = 32 - self.modulus_bits
        return (lanes << np.uint32(spare)).view(np.int32) >> np.int32(spare)  # extends the sign bit

    def _total_weight(self, digits: list[int], count: int) -> int:
        weight = sum(digit << (i * (self.coding.bits - 1)) for i, digit in enumerate(digits))
        if min(digits) < 0 or not count <= weight <= count * self.coding.max_weight:
            raise BadFrame(f"the sum is garbled: a total weight of {weight} for {count} clients")
        return weight

    def _mean(self, lanes: Lanes, count: int, scale: float) -> Vector:
        """Lanes [padded] as a float32 vector [size]: scaled, and rotated back."""
        vector = np.empty(self.size, np.float32)
        for start in range(0, self._padded, CHUNK):
            lifted = self._lifted(lanes[start : start + CHUNK], count)
            mean = (lifted * np.float64(scale)).astype(np.float32)
            if self.coding.rotate:
                mean = _hadamard(mean, self._block)
                mean *= self._signs_at(start, mean.size)
            vector[start : start + mean.size] = mean[: self.size - start]
        return vector

    def _rotated(self, vector: Vector, start: int) -> Vector:
        """One chunk of the vector; rotated, and padded to whole blocks, if the coding says so.

        The randomised Hadamard transform of Konečný et al. 2016 (arXiv 1610.05492) and Suresh et al. 2017
        (arXiv 1611.00429): random signs, then an orthonormal Hadamard matrix, block by block.
        """
        part = vector[start : start + CHUNK]
        if not self.coding.rotate:
            return part
        signed = np.zeros(min(CHUNK, self._padded - start), np.float32)
        signed[: part.size] = part
        signed *= self._signs_at(start, signed.size)
        return _hadamard(signed, self._block)

    def _signs_at(self, start: int, count: int) -> Vector:
        """Signs +1 and -1, float32 [count]; `start` is a multiple of 8."""
        found = self._signs[start // 8 : -(-(start + count) // 8)]
        bits = np.unpackbits(found, count=count, bitorder="little")
        return np.float32(1) - np.float32(2) * bits.astype(np.float32)


@lru_cache(maxsize=16)
def _gaussian(variance: int) -> DiscreteGaussian:
    """Keep its tables: every client of every round draws from the same."""
    return DiscreteGaussian(Fraction(variance))


class _Rounding:
    """Uniform numbers for stochastic rounding: SHAKE-256 of a seed and a counter."""

    def __init__(self, seed: bytes) -> None:
        self._seed, self._at = seed, 0

    def uniform(self, count: int) -> Reals:
        """`count` numbers in [0, 1), multiples of 2^-32."""
        block = b"privfr rounding" + self._seed + self._at.to_bytes(8, "little")
        self._at += 1
        return np.frombuffer(hashlib.shake_256(block).digest(4 * count), "<u4") * np.float64(2**-32)


def _largest(bits: int) -> int:
    """L: the largest value of one client's lane."""
    return (1 << (bits - 1)) - 1


def _mask(bits: int) -> np.uint32:
    return np.uint32((1 << bits) - 1)


def _digits_of(weight: int, digit_bits: int, count: int) -> list[int]:
    return [(weight >> (i * digit_bits)) & ((1 << digit_bits) - 1) for i in range(count)]


def _hadamard(vector: Vector, block: int) -> Vector:
    """Orthonormal Walsh-Hadamard transform, Sylvester's order, of each block of a float32 vector.

    Its own inverse. In-place butterflies on the transposed blocks, so that each is one long addition.
    """
    width = vector.size // block
    work = np.ascontiguousarray(vector.reshape(width, block).T)
    half = 1
    while half < block:
        pairs = work.reshape(block // (2 * half), 2, half * width)
        low, high = pairs[:, 0], pairs[:, 1]
        difference = low - high
        low += high
        high[...] = difference
        half *= 2
    work *= np.float32(1 / math.sqrt(block))
    return np.ascontiguousarray(work.T).reshape(-1)


def pack(lanes: Lanes, bits: int) -> memoryview:
    """Pack uint32 [n] modulo 2^bits as a little-endian stream of `bits` bits each, lane 0 first.

    bits: 1 to 32.  Zero bits fill the last byte.
    """
    packed = bytearray(-(-lanes.size // 8) * bits)  # 8 lanes are exactly `bits` bytes
    view = np.frombuffer(packed, np.uint8).reshape(-1, bits)
    for start in range(0, lanes.size, CHUNK):
        part = lanes[start : start + CHUNK] & _mask(bits)
        groups = -(-part.size // 8)
        if part.size < 8 * groups:
            part = np.concatenate([part, np.zeros(8 * groups - part.size, np.uint32)])
        view[start // 8 : start // 8 + groups] = _words(part.reshape(groups, 8), bits)
    del view
    return memoryview(packed)[: _packed_size(lanes.size, bits)].toreadonly()


def unpack(data: bytes | memoryview, bits: int, count: int) -> Lanes:
    """Unpack what `pack` made of `count` lanes: uint32 [count].

    Raises `BadFrame` for another length, or if the bits that fill the last byte are not zero.
    """
    lanes = np.zeros(count, np.uint32)
    add_packed(lanes, data, bits)
    return lanes


def add_packed(total: Lanes, data: bytes | memoryview, bits: int) -> None:
    """Add what `pack` made of as many lanes to uint32 [n] modulo 2^32, in place, without a second vector.

    Raises `BadFrame` as `unpack`, and then nothing is added.
    """
    count = total.size
    if len(data) != _packed_size(count, bits):
        raise BadFrame(f"{len(data)} bytes where {_packed_size(count, bits)} belong ({count} numbers)")
    if count * bits % 8 and data[-1] >> (count * bits % 8):
        raise BadFrame("the bits after the last number are not zero")
    packed = np.frombuffer(data, np.uint8)
    step = CHUNK // 8 * bits
    for i, start in enumerate(range(0, count, CHUNK)):
        found = _lanes_of(packed[i * step : (i + 1) * step], bits)
        part = total[start : start + CHUNK]
        np.add(part, found[: part.size], out=part)


def _packed_size(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _words(lanes: Lanes, bits: int) -> NDArray[np.uint8]:
    """Groups of lanes, uint32 [g, 8], as bytes [g, bits]: through four 64-bit words a group."""
    words = np.zeros((4, len(lanes)), np.uint64)
    for j in range(8):
        word, shift = divmod(j * bits, 64)
        lane = lanes[:, j].astype(np.uint64)
        words[word] |= lane << np.uint64(shift)
        if shift + bits > 64:  # the lane goes on in the next word
            words[word + 1] |= lane >> np.uint64(64 - shift)
    return np.ascontiguousarray(words.T, "<u8").view(np.uint8)[:, :bits]


def _lanes_of(packed: NDArray[np.uint8], bits: int) -> Lanes:
    """Bytes of whole groups of lanes, the last one perhaps cut off, as uint32 [8 * groups]."""
    groups = -(-packed.size // bits)
    if packed.size < groups * bits:
        packed = np.concatenate([packed, np.zeros(groups * bits - packed.size, np.uint8)])
    padded = np.zeros((groups, 32), np.uint8)
    padded[:, :bits] = packed.reshape(groups, bits)
    words = np.ascontiguousarray(padded.view("<u8").T, np.uint64)
    lanes = np.empty((groups, 8), np.uint32)
    for j in range(8):
        word, shift = divmod(j * bits, 64)
        lane = words[word] >> np.uint64(shift)
        if shift + bits > 64:
            lane |= words[word + 1] << np.uint64(64 - shift)
        lanes[:, j] = lane.astype(np.uint32) & _mask(bits)
    return lanes.reshape(-1)
