"""Lanes in slots and back, held against sums in Python's integers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privfr.backends.homomorphic.lattice import DEGREE, SchemeName, Slots, choose
from privfr.backends.homomorphic.packing import Packing, Signed
from privfr.coding import Coding, FixedPoint, Lanes
from privfr.errors import BadFrame

Kind = tuple[SchemeName, bool]
KINDS: list[Kind] = [("bfv", True), ("bfv", False), ("ckks", True), ("ckks", False)]
kinds = st.sampled_from(KINDS)


def largest(bits: int) -> int:
    """L, the largest lane of one client."""
    return (1 << (bits - 1)) - 1


def packing_for(kind: Kind, clients: int, bits: int, size: int = 1) -> Packing:
    coding = Coding(1.0, bits, 1)
    return Packing(choose(*kind, clients, coding), FixedPoint(coding, clients, (), size, bytes(32)))


def residues(packing: Packing, signed: Signed) -> Lanes:
    """Whole numbers as lanes modulo 2^k."""
    return (signed & ((1 << packing.point.modulus_bits) - 1)).astype(np.uint32)


def summed(parts: Iterable[Iterable[Slots]]) -> list[Slots]:
    """Sums of several clients' slots, ciphertext by ciphertext, as a perfect cryptosystem would give them."""
    return [sum(group) for group in zip(*parts, strict=True)]


def drawn_lanes(packing: Packing, clients: int, extremes: str, seed: int) -> Signed:
    """Lanes of each client, int64 [clients, lanes], each within [-L, L]."""
    rng, top = np.random.default_rng(seed), largest(packing.point.coding.bits)
    shape = clients, packing.point.lanes
    if extremes == "any":
        return rng.integers(-top, top + 1, shape)
    if extremes == "mixed":  # all clients of one sign in a lane, the lanes of both
        return np.broadcast_to(rng.choice([-top, top], shape[1]), shape)
    return np.full(shape, top if extremes == "highest" else -top)


# The sum comes back -----------------------------------------------------------------------------------------


@settings(max_examples=60)
@example(("bfv", True), 1, 2, 1, "highest", 0)
@example(("ckks", False), 1000, 22, 3, "lowest", 0)
@example(("bfv", True), 3, 2, 2, "mixed", 0)
@example(("ckks", True), 40, 16, 0, "mixed", 0)
@given(
    kinds,
    st.one_of(st.integers(1, 40), st.integers(1, 1000)),
    st.integers(2, 22),
    st.integers(-2, 3),
    st.sampled_from(["any", "mixed", "highest", "lowest"]),
    st.integers(0, 2**32),
)
def test_the_sum_of_what_is_spread_is_the_sum_of_the_lanes(
    kind: Kind, clients: int, bits: int, beyond: int, extremes: str, seed: int
) -> None:
    """At most 16 clients really differ: a sum of n of them is one of few, each many times."""
    capacity = packing_for(kind, clients, bits).capacity
    size = max(1, capacity * (1 + seed % 2) + beyond)
    packing = packing_for(kind, clients, bits, size)
    different = min(clients, 16)
    times = [clients // different + (i < clients % different) for i in range(different)]
    lanes = drawn_lanes(packing, different, extremes, seed)
    parts = [
        [count * slots for slots in packing.spread(residues(packing, own))]
        for own, count in zip(lanes, times, strict=True)
    ]
    found = packing.gather(summed(parts))
    expected = sum(count * own for own, count in zip(lanes, times, strict=True))
    assert found.dtype == np.uint32
    assert np.array_equal(found, residues(packing, expected))


@given(kinds, st.integers(1, 1000), st.integers(2, 22), st.integers(0, 2**32))
@settings(max_examples=40)
def test_a_slot_is_the_number_that_its_lanes_spell(kind: Kind, clients: int, bits: int, seed: int) -> None:
    """Horner's rule written out: slot j holds the sum of lane i, j times 2^(k i)."""
    packing = packing_for(kind, clients, bits, 500)
    (lanes,) = drawn_lanes(packing, 1, "any", seed)
    (slots,) = packing.spread(residues(packing, lanes))
    lattice = packing.lattice
    room = [*lanes.tolist(), *([0] * (packing.capacity - lanes.size))]
    for j in (0, 1, lattice.slots // 2, lattice.slots - 1):
        column = room[j :: lattice.slots]
        assert len(column) == lattice.values
        assert slots[j] == sum(lane << (lattice.lane_bits * i) for i, lane in enumerate(column))


@given(kinds, st.integers(1, 1000), st.integers(2, 22), st.integers(1, 200_000))
def test_sizes_are_what_the_lattice_and_the_lanes_ask_for(
    kind: Kind, clients: int, bits: int, size: int
) -> None:
    packing = packing_for(kind, clients, bits, size)
    lattice, lanes = packing.lattice, packing.point.lanes
    slots = DEGREE if kind[0] == "bfv" else DEGREE // 2
    assert packing.capacity == slots * lattice.values
    assert packing.capacity * (packing.ciphertexts - 1) < lanes <= packing.capacity * packing.ciphertexts
    assert packing.packed_bytes == packing.ciphertexts * lattice.packed_bytes
    assert lattice.lane_bits == packing.point.modulus_bits


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_vector_about_as_large_as_a_ciphertext_takes_one_or_two(beyond: int) -> None:
    point = packing_for(("bfv", True), 3, 16)
    packing = packing_for(("bfv", True), 3, 16, point.capacity - (point.point.lanes - 1) + beyond)
    assert packing.point.lanes == packing.capacity + beyond
    assert packing.ciphertexts == (2 if beyond > 0 else 1)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_more_or_fewer_ciphertexts_than_lanes_need_are_no_sum(wrong: int) -> None:
    packing = packing_for(("bfv", True), 4, 16, 9000)
    slots = list(packing.spread(np.zeros(packing.point.lanes, np.uint32)))
    slots = slots[:wrong] if wrong < 0 else [*slots, slots[-1]]
    with pytest.raises(ValueError, match="zip"):  # `opened` has seen to the length before
        packing.gather(slots)


# Out of range -----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(kinds, st.integers(2, 1000), st.integers(2, 22), st.integers(0, 2000), st.sampled_from([-1, 1]))
def test_a_slot_beyond_what_a_sum_can_be_is_refused(
    kind: Kind, clients: int, bits: int, at: int, sign: int
) -> None:
    """The highest lane of a slot has nobody above it to carry into: it must fit by itself."""
    packing = packing_for(kind, clients, bits)
    (slots,) = packing.spread(np.zeros(packing.point.lanes, np.uint32))
    lattice = packing.lattice
    half = 1 << (lattice.lane_bits - 1)
    # From the lowest lane up: the slots for which the highest lane is just within the range, and the next.
    low = sum(-half << (lattice.lane_bits * i) for i in range(lattice.values))
    high = sum((half - 1) << (lattice.lane_bits * i) for i in range(lattice.values))
    slots[at % 500] = high if sign > 0 else low
    packing.gather([slots])
    slots[at % 500] += sign
    with pytest.raises(BadFrame, match="more than a sum can be"):
        packing.gather([slots])
