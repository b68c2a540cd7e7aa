"""Lanes in slots: several small integers in each number of a ciphertext, and a proof of whose they are.

A lane is one integer of `privfr.coding.FixedPoint`, known modulo 2^k and taken centred: |lane| <= L. A slot
holds v of them, a_0 + a_1 2^k + ... + a_(v-1) 2^(k (v-1)).

No carry: let S = sum of n slots and A_i = sum of the n lanes a_i, so |A_i| <= n L < 2^(k-1), since
k = 1 + bit_length(n L). Then S = A_0 + 2^k (A_1 + 2^k (...)) as integers. A_0 is the centred residue of S
modulo 2^k, the one number in [-2^(k-1), 2^(k-1)) that S is congruent to; S - A_0 is divisible by 2^k, and the
quotient is the same sum without its first lane. By induction every A_i is read off, whatever the signs.
|S| <= n L (1 + 2^k + ... + 2^(k (v-1))), the `top` for which `lattice.choose` picks its numbers.

Each ciphertext ends with *tags*, lanes of 60 random bits in all, that client and opener derive from a secret
of theirs, the round and the client's number. Their sum is right only for the sum over exactly the clients
that it is said to be over; see `Tags`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privfr.backends.homomorphic.lattice import Lattice, Slots
from privfr.coding import FixedPoint, Lanes
from privfr.errors import BadFrame
from privfr.protocol import ClientId

__all__ = ["Packing", "Tags"]

Signed = NDArray[np.int64]
TAG_BITS = 60


@dataclass(frozen=True)
class Packing:
    """How a round's lanes are spread over ciphertexts."""

    lattice: Lattice
    point: FixedPoint

    @property
    def tags(self) -> int:
        """Tag lanes of one ciphertext."""
        return -(-TAG_BITS // (self.point.coding.bits - 1))

    @property
    def capacity(self) -> int:
        """Lanes of data in one ciphertext."""
        return self.lattice.slots * self.lattice.values - self.tags

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of one summand."""
        return -(-self.point.lanes // self.capacity)

    @property
    def packed_bytes(self) -> int:
        """Bytes of one summand's ciphertexts on the wire."""
        return self.ciphertexts * self.lattice.packed_bytes

    def spread(self, lanes: Lanes, tags: Signed) -> Iterator[Slots]:
        """Turn lanes modulo 2^k, uint32 [lanes], and tags, int64 [ciphertexts, tags], into slots, in turn."""
        for i, own in enumerate(tags):
            room = np.zeros(self.lattice.slots * self.lattice.values, np.int64)
            part = lanes[i * self.capacity : (i + 1) * self.capacity]
            room[: part.size] = self._centred(part.astype(np.int64))
            room[self.capacity :] = own
            yield self._together(room)

    def gather(self, slots: Iterable[Slots], tags: Signed) -> Lanes:
        """Turn sums of slots back into the sum of the lanes modulo 2^k, uint32 [lanes].

        tags: sum of the tags of the clients that the sum is said to be over.
        Raises `BadFrame` if it is over others.
        """
        lanes = np.empty(self.ciphertexts * self.capacity, np.uint32)
        for i, (found, expected) in enumerate(zip(slots, tags, strict=True)):
            room = self._apart(found)
            if not np.array_equal(room[self.capacity :], expected):
                raise BadFrame("the sum is not one over the clients it is said to be over")
            lanes[i * self.capacity : (i + 1) * self.capacity] = room[: self.capacity] & self._mask
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


@dataclass(frozen=True)
class Tags:
    """Tags of a round's clients. keys: client -> 32 secret bytes shared with whoever opens the sum.

    The server adds ciphertexts, and could add others than it says: one client's alone, or twice. It cannot
    know a tag. A sum of a_i times client i's ciphertext, a_i any integers, has the tags sum a_i tag_i. If
    some a_i is not 1 for a survivor, or not 0 for another, one value of tag_i at most makes them the
    survivors' sum: a probability of 2^-(bits-1) for each tag lane, so at most 2^-60 for a ciphertext.
    """

    keys: Mapping[ClientId, bytes]
    packing: Packing

    def of(self, client: ClientId) -> Signed:
        """Tags of one client: int64 [ciphertexts, tags], each uniform in [0, 2^(bits-1))."""
        packing = self.packing
        count = packing.ciphertexts * packing.tags
        seed = b"privfr tags" + self.keys[client] + packing.point.context + client.to_bytes(8, "big")
        drawn = np.frombuffer(hashlib.shake_256(seed).digest(4 * count), "<u4").astype(np.int64)
        return (drawn >> (33 - packing.point.coding.bits)).reshape(packing.ciphertexts, packing.tags)

    def total(self, clients: Iterable[ClientId]) -> Signed:
        """Sum of the tags of several clients."""
        found = np.zeros((self.packing.ciphertexts, self.packing.tags), np.int64)
        for client in clients:
            found += self.of(client)
        return found

    def __repr__(self) -> str:
        """Show no key."""
        return f"<Tags of {len(self.keys)} clients>"
