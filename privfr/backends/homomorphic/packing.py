"""Lanes in slots: several small integers in each number that a ciphertext holds.

A lane is one integer of `privfr.coding.FixedPoint`, known modulo 2^k and taken centred: |lane| <= L. A slot
holds v of them, a_0 + a_1 2^k + ... + a_(v-1) 2^(k (v-1)).

No carry: let S = sum of n slots and A_i = sum of the n lanes a_i, so |A_i| <= n L < 2^(k-1), since
k = 1 + bit_length(n L). Then S = A_0 + 2^k (A_1 + 2^k (...)) as integers. A_0 is the centred residue of S
modulo 2^k, the one number in [-2^(k-1), 2^(k-1)) that S is congruent to; S - A_0 is divisible by 2^k, and the
quotient is the same sum without its first lane. By induction every A_i is read off, whatever the signs.
|S| <= n L (1 + 2^k + ... + 2^(k (v-1))), the `top` for which `lattice.choose` picks its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfr.backends.homomorphic.lattice import Lattice, Slots
from privfr.coding import FixedPoint, Lanes
from privfr.errors import BadFrame

__all__ = ["Packing"]

Signed = NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """How a round's lanes are spread over ciphertexts."""

    lattice: Lattice
    point: FixedPoint

    @property
    def capacity(self) -> int:
        """Lanes in one ciphertext."""
        return self.lattice.slots * self.lattice.values

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of one summand."""
        return -(-self.point.lanes // self.capacity)

    @property
    def packed_bytes(self) -> int:
        """Bytes of one summand's ciphertexts on the wire."""
        return self.ciphertexts * self.lattice.packed_bytes

    def spread(self, lanes: Lanes) -> Iterator[Slots]:
        """Turn lanes modulo 2^k, uint32 [lanes], into slots, one ciphertext's after another's."""
        for start in range(0, lanes.size, self.capacity):
            room = np.zeros(self.capacity, np.int64)
            part = lanes[start : start + self.capacity]
            room[: part.size] = self._centred(part.astype(np.int64))
            yield self._together(room)

    def gather(self, slots: Iterable[Slots]) -> Lanes:
        """Turn sums of slots back into the sum of the lanes modulo 2^k, uint32 [lanes].

        Raises `BadFrame` for a slot that holds more than a sum can be.
        """
        lanes = np.empty(self.ciphertexts * self.capacity, np.uint32)
        for start, found in zip(range(0, lanes.size, self.capacity), slots, strict=True):
            lanes[start : start + self.capacity] = self._apart(found) & self._mask
        return lanes[: self.point.lanes].copy()

    @property
    def _mask(self) -> int:
        return (1 << self.lattice.lane_bits) - 1

    def _centred(self, values: Signed) -> Signed:
        half = 1 << (self.lattice.lane_bits - 1)
        return ((values + half) & self._mask) - half

    def _together(self, room: Signed) -> Slots:
        slots = np.zeros(self.lattice.slots, np.int64)
        for lane in room.reshape(self.lattice.values, -1)[::-1]:
            slots = (slots << self.lattice.lane_bits) + lane
        return slots

    def _apart(self, slots: Slots) -> Signed:
        room = np.empty((self.lattice.values, self.lattice.slots), np.int64)
        for lane in room[:-1]:
            lane[:] = self._centred(slots)
            slots = (slots - lane) >> self.lattice.lane_bits
        room[-1] = slots
        half = 1 << (self.lattice.lane_bits - 1)
        if slots.max() >= half or slots.min() < -half:
            raise BadFrame("the sum is garbled: a slot holds more than a sum can be")
        return room.reshape(-1)
