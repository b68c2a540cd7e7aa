"""The MAC over sums of ciphertexts: a second computation of it, what it lets pass, and what it has to stop.

Where only the arithmetic matters, ciphertexts are a few numbers long; `Told` has real ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privfr.backends.homomorphic import mac as macs
from privfr.backends.homomorphic.lattice import Key, Lattice, SchemeName, Words, choose, pack_words
from privfr.backends.homomorphic.mac import CHECKS, Mac, Tag, add_tags, check_form
from privfr.backends.homomorphic.messages import Bundle, Cipher, OpenSum
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.homomorphic.round import add_ciphertexts, ciphertexts_of, encrypted, opened
from privfr.coding import Coding, FixedPoint, Lanes
from privfr.errors import BadFrame
from privfr.wire import Message, decode, encode

Kind = tuple[SchemeName, bool]
KINDS: list[Kind] = [("bfv", True), ("bfv", False), ("ckks", True), ("ckks", False)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{k[0]}-{'secret' if k[1] else 'public'}")

# With the largest prime that there is, so that nothing has less room.
LATTICE = Lattice("bfv", True, 4096, (60, 20), 65537, 1, 8)
Q = LATTICE.prime
CLIENTS = (1, 2, 3, 4)
ROUND, KEY = b"\1" * 32, b"\2" * 32
REFUSED = "the clients it is said to be over|out of order, there twice"


def mac_of(clients: Iterable[int] = CLIENTS, context: bytes = ROUND, key: bytes = KEY) -> Mac:
    return Mac(LATTICE, context, key, {client: bytes([client % 251]) * 32 for client in clients})


# A second computation ---------------------------------------------------------------------------------------


def factors(key: bytes, context: bytes, length: int) -> list[list[int]]:
    """16-bit numbers by which a ciphertext's coefficients are multiplied, for each of the four sums."""
    drawn = hashlib.shake_256(b"privfr mac" + key + context + b"words").digest(2 * 4 * length)
    numbers = [drawn[i] + 256 * drawn[i + 1] for i in range(0, len(drawn), 2)]
    return [numbers[length * i : length * (i + 1)] for i in range(4)]


def four_numbers(seed: bytes, prime: int) -> list[int]:
    drawn = hashlib.shake_256(seed).digest(64)
    return [int.from_bytes(drawn[16 * i : 16 * i + 16], "little") % prime for i in range(4)]


def weights(key: bytes, context: bytes, number: int, prime: int) -> list[int]:
    """By which a whole ciphertext's product counts."""
    return four_numbers(b"privfr mac" + key + context + number.to_bytes(8, "big"), prime)


def tag_by_hand(mac: Mac, client: int, ciphertexts: Iterable[Words]) -> list[int]:
    """The tag as the module's docstring defines it, in Python's integers."""
    prime, secret = mac.lattice.prime, mac.pads[client]
    sums = four_numbers(b"privfr mac pad" + secret + mac.context + client.to_bytes(8, "big"), prime)
    for number, words in enumerate(ciphertexts):
        counts = weights(mac.key, mac.context, number, prime)
        for i, row in enumerate(factors(mac.key, mac.context, words.size)):
            product = sum(factor * int(word) for factor, word in zip(row, words.tolist(), strict=True))
            sums[i] += counts[i] * product
    return [total % prime for total in sums]


@every_kind
def test_tags_of_whole_ciphertexts_are_those_of_the_second_computation(kind: Kind) -> None:
    lattice = choose(*kind, 40, Coding(1.0, 16, 10))
    rng, mac = np.random.default_rng(0), replace(mac_of(), lattice=lattice)
    rows = list(rng.integers(0, lattice.prime, (2, lattice.words), np.uint64))
    tag = mac.tag(3, rows)
    assert list(tag) == tag_by_hand(mac, 3, rows)
    assert all(type(number) is int for number in tag)  # not numpy's: they are encoded
    mac.check([3], tag, rows)


edges = st.sampled_from([0, 1, 2**30 - 1, 2**30, 2**59, Q - 2**30, Q - 1])


@settings(max_examples=60)
@given(
    st.integers(1, 9).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(0, Q - 1) | edges, min_size=size, max_size=size), max_size=4
        )
    ),
    st.integers(0, 2**63),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)
def test_any_tag_is_that_of_the_second_computation(
    numbers: list[list[int]], client: int, context: bytes, key: bytes, secret: bytes
) -> None:
    mac = Mac(LATTICE, context, key, {client: secret})
    rows = [np.array(row, np.uint64) for row in numbers]
    assert list(mac.tag(client, rows)) == tag_by_hand(mac, client, rows)


class AllOnes:
    """Stands for hashlib: every number drawn is the largest."""

    def shake_256(self, seed: bytes) -> AllOnes:
        return self

    def digest(self, length: int) -> bytes:
        return b"\xff" * length


class Singles:
    """Stands for numpy, with single precision in place of double."""

    float64 = np.float32

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def test_nothing_is_rounded_where_every_number_is_as_large_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Q.bit_length() == 60
    rows = [np.full(LATTICE.words, Q - 1, np.uint64)] * 3
    monkeypatch.setattr(macs, "hashlib", AllOnes())
    drawn = 2**128 - 1
    expected = (3 * drawn * LATTICE.words * (2**16 - 1) * (Q - 1) + drawn) % Q
    assert mac_of().tag(1, rows) == (expected,) * CHECKS
    # A positive control: where the sums do not fit, it comes out wrong.
    monkeypatch.setattr(macs, "np", Singles())
    assert mac_of().tag(1, rows) != (expected,) * CHECKS


# What passes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sums:
    """Short ciphertexts of four clients, uint64 [ciphertexts, words], their tags, and combinations."""

    rows: Mapping[int, Words]
    tags: Mapping[int, Tag]

    def total(self, times: Mapping[int, int]) -> tuple[Tag, Words]:
        """Give `times` of each client's tag and ciphertexts, added up."""
        exact = 0 * self.rows[1].astype(object)
        for client, count in times.items():
            exact += count * self.rows[client].astype(object)
        tag = [sum(n * self.tags[c][i] for c, n in times.items()) % Q for i in range(CHECKS)]
        return tuple(tag), (exact % Q).astype(np.uint64)


@lru_cache(maxsize=32)
def sums(seed: int = 0, context: bytes = ROUND) -> Sums:
    rng, mac = np.random.default_rng(seed), mac_of(context=context)
    rows = {client: rng.integers(0, Q, (3, 5), np.uint64) for client in CLIENTS}
    return Sums(rows, {client: mac.tag(client, rows[client]) for client in CLIENTS})


def refused(mac: Mac, clients: Iterable[int], tag: Tag, rows: Words) -> None:
    with pytest.raises(BadFrame, match=REFUSED):
        mac.check(clients, tag, rows)


subsets = st.sets(st.sampled_from(CLIENTS), min_size=1)


@settings(max_examples=200)
@example(0, {1, 2, 3}, {1: 1, 2: 1, 3: 1})
@example(0, {1, 2, 3}, {1: 3})
@example(0, {1, 2}, {1: 2, 2: 2})
@example(0, {1, 2}, {1: 1, 2: 1, 3: 1, 4: -1})
@given(st.integers(0, 15), subsets, st.dictionaries(st.sampled_from(CLIENTS), st.integers(-3, 3)))
def test_of_all_combinations_the_sum_over_the_named_alone_passes(
    seed: int, named: set[int], times: dict[int, int]
) -> None:
    """Whether the server combines the tags as it does the ciphertexts, or gives the true tag."""
    known, mac = sums(seed), mac_of()
    true_tag, true_rows = known.total(dict.fromkeys(named, 1))
    mac.check(named, true_tag, true_rows)
    tag, rows = known.total(times)
    if {c: n for c, n in times.items() if n} == dict.fromkeys(named, 1):
        assert (tag, rows.tolist()) == (true_tag, true_rows.tolist())
        return
    refused(mac, named, tag, rows)
    refused(mac, named, true_tag, rows)
    refused(mac, named, tag, true_rows)


@given(st.integers(0, 15), subsets, subsets)
def test_one_subset_is_not_another(seed: int, summed: set[int], named: set[int]) -> None:
    tag, rows = sums(seed).total(dict.fromkeys(summed, 1))
    if summed == named:
        mac_of().check(named, tag, rows)
    else:
        refused(mac_of(), named, tag, rows)


def test_a_client_named_twice_is_not_one_that_is_there_once() -> None:
    tag, rows = sums().total({1: 1, 2: 1})
    mac_of().check([1, 2], tag, rows)
    refused(mac_of(), [1, 1, 2], tag, rows)
    refused(mac_of(), [1, 1, 2], *sums().total({1: 2, 2: 1}))
    refused(mac_of(), [1], tag, rows)


@given(st.integers(0, 15), subsets, st.integers(0, 2), st.integers(0, 4), st.sampled_from([-1, 1]))
def test_one_coefficient_changed_by_one_is_refused(
    seed: int, named: set[int], ciphertext: int, at: int, by: int
) -> None:
    tag, rows = sums(seed).total(dict.fromkeys(named, 1))
    rows[ciphertext, at] = (int(rows[ciphertext, at]) + by) % Q
    refused(mac_of(), named, tag, rows)


@given(st.integers(0, 15), subsets, st.integers(0, CHECKS - 1), st.integers(1, Q - 1))
def test_every_number_of_the_tag_counts(seed: int, named: set[int], at: int, by: int) -> None:
    tag, rows = sums(seed).total(dict.fromkeys(named, 1))
    changed = tuple((number + by) % Q if i == at else number for i, number in enumerate(tag))
    refused(mac_of(), named, changed, rows)


def test_the_four_sums_are_taken_with_different_numbers() -> None:
    """Else they would prove no more than one does."""
    for i in range(5):
        row = np.eye(5, dtype=np.uint64)[i : i + 1]
        found = zip(mac_of().tag(1, row), mac_of()._pad(1), strict=True)
        assert len({(number - pad) % Q for number, pad in found}) == CHECKS
    rows = factors(KEY, ROUND, LATTICE.words)
    assert len({tuple(row) for row in rows}) == len(set(weights(KEY, ROUND, 0, Q))) == CHECKS
    assert chi_square(np.bincount(np.array(rows).reshape(-1) % 256, minlength=256)) < 5


@pytest.mark.parametrize("order", [[1, 0, 2], [0, 2, 1], [2, 1, 0], [1, 2, 0]])
def test_swapped_ciphertexts_are_refused(order: list[int]) -> None:
    tag, rows = sums().total({1: 1, 2: 1})
    refused(mac_of(), [1, 2], tag, rows[order])
    refused(mac_of(), [1, 2], tag, np.roll(rows, 1, axis=1))


def test_ciphertexts_left_out_are_refused() -> None:
    tag, rows = sums().total({1: 1, 2: 1})
    for part in (rows[:2], rows[1:], rows[:0], rows[:, :4]):
        refused(mac_of(), [1, 2], tag, part)


def test_another_rounds_sum_is_refused() -> None:
    before = b"\3" * 32
    tag, rows = sums(context=before).total({1: 1, 2: 1})
    mac_of(context=before).check([1, 2], tag, rows)
    refused(mac_of(), [1, 2], tag, rows)
    # Nor is one client's part of it another round's: same rows, tags of two rounds.
    mixed = add_tags(LATTICE, sums().tags[1], sums(context=before).tags[2])
    refused(mac_of(), [1, 2], mixed, rows)


def test_every_secret_matters() -> None:
    tag, rows = sums().total({1: 1, 2: 1})
    refused(mac_of(key=b"\4" * 32), [1, 2], tag, rows)
    mac = mac_of()
    refused(replace(mac, pads={**mac.pads, 2: b"\5" * 32}), [1, 2], tag, rows)
    # The same secret gives each client another pad: that is how it is where the clients hold the key.
    shared = replace(mac, pads=dict.fromkeys(CLIENTS, KEY))
    of_one = shared.tag(1, rows)
    shared.check([1], of_one, rows)
    refused(shared, [2], of_one, rows)


def test_a_client_whose_tag_is_missing_makes_the_sum_another() -> None:
    """Its pad is known to the opener, but not to the server."""
    known = sums()
    _, rows = known.total({1: 1, 2: 1})
    refused(mac_of(), [1, 2], known.tags[1], rows)
    assert known.rows[3].any()
    refused(mac_of(), [1, 3], known.tags[1], known.rows[1])


def test_a_client_without_a_pad_is_not_summed() -> None:
    tag, rows = sums().total({1: 1, 4: 1})
    with pytest.raises((KeyError, BadFrame)):  # whoever opens has looked at the roster before
        mac_of(clients=(1, 2, 3)).check([1, 4], tag, rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda tag: (),
        lambda tag: tag[:3],
        lambda tag: (*tag, 0),
        lambda tag: (tag[0] - Q, *tag[1:]),
        lambda tag: (*tag[:3], tag[3] + Q),
        lambda tag: (-1, *tag[1:]),
        lambda tag: (*tag[:3], Q),
        lambda tag: (*tag[:3], 2**64 + tag[3]),
    ],
)
def test_what_has_not_the_form_of_a_tag_is_refused(change: Callable[[Tag], Tag]) -> None:
    """Also where it is congruent to the right one: there is one way to write a tag."""
    tag, rows = sums().total({1: 1, 2: 1})
    with pytest.raises(BadFrame, match="not a tag of 4 numbers"):
        mac_of().check([1, 2], change(tag), rows)
    with pytest.raises(BadFrame, match="not a tag of 4 numbers"):
        check_form(LATTICE, change(tag))


def test_the_smallest_and_largest_numbers_have_the_form_of_a_tag() -> None:
    check_form(LATTICE, (0, Q - 1, 0, Q - 1))


EMPTY = memoryview(b"")
CARRIERS: list[Callable[[Any], Message]] = [
    lambda tag: Cipher(ROUND, tag, EMPTY),
    lambda tag: Bundle(1, (), b"", tag, EMPTY),
    lambda tag: OpenSum((1, 2), (), tag, EMPTY),
]


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(
    "bad", [(True, 0, 0, 0), (1.0, 0, 0, 0), (1.5, 0, 0, 0), ("1", 0, 0, 0), (None,) * 4, 7]
)
def test_a_tag_of_other_than_whole_numbers_does_not_come_over_the_wire(
    carrier: Callable[[Any], Message], bad: Any
) -> None:
    message = carrier((1, 0, 0, 2**60))
    assert decode(encode(message), type(message)) == message
    with pytest.raises(BadFrame):
        decode(encode(carrier(bad)), type(message))


def test_tags_add_up_modulo_the_prime() -> None:
    assert add_tags(LATTICE, (0, 1, Q - 1, Q - 1), (0, Q - 1, Q - 1, 1)) == (0, 0, Q - 2, 0)
    assert repr(mac_of()) == "<Mac of 4 clients>"


# What tags tell ---------------------------------------------------------------------------------------------


def tags_of_one(count: int, padded: bool) -> tuple[list[int], list[int]]:
    """Tags of the ciphertext 1, 0, 0, ... by many clients, and what stands in them but for the pads."""
    mac, one = mac_of(range(count)), np.eye(1, 5, dtype=np.uint64)
    counts = weights(KEY, ROUND, 0, Q)
    bare = [count * row[0] % Q for count, row in zip(counts, factors(KEY, ROUND, 5), strict=True)]
    found = [mac.tag(client, one) for client in range(count)] if padded else [tuple(bare)] * count
    return [number for tag in found for number in tag], bare * count


def chi_square(counts: Any) -> float:
    """Distance from all alike, in standard deviations of the statistic."""
    counts = np.asarray(counts, float)
    mean, freedom = counts.mean(), counts.size - 1
    return float((((counts - mean) ** 2 / mean).sum() - freedom) / np.sqrt(2 * freedom))


def test_tags_are_spread_evenly_and_tell_nothing_of_the_factors() -> None:
    """Four thousand tags of the ciphertext that would show the factors, were it not for the pads."""
    tags, bare = tags_of_one(1000, padded=True)
    assert chi_square(np.bincount([tag * 64 // Q for tag in tags], minlength=64)) < 5
    assert chi_square(np.bincount([tag % 64 for tag in tags], minlength=64)) < 5
    for bit in range(16):
        agree = sum((tag >> bit & 1) == (factor >> bit & 1) for tag, factor in zip(tags, bare, strict=True))
        assert abs(agree - len(tags) / 2) < 5 * np.sqrt(len(tags)) / 2
    # A positive control: without pads the factors are there to read.
    tags, bare = tags_of_one(1000, padded=False)
    assert chi_square(np.bincount([tag * 64 // Q for tag in tags], minlength=64)) > 1000
    assert tags == bare


# Through the ciphertexts ------------------------------------------------------------------------------------

HONEST = {1: 1, 2: 1, 3: 1}
# What could be passed off as the sum over clients 1, 2 and 3: how often each one's ciphertext is in it.
LIES: dict[str, Mapping[int, int]] = {
    "one client alone": {1: 1},
    "one fewer": {1: 1, 2: 1},
    "one more": {1: 1, 2: 1, 3: 1, 4: 1},
    "another instead": {1: 1, 2: 1, 4: 1},
    "a client twice": {1: 2, 2: 1, 3: 1},
    "a client twice, another left out": {1: 2, 2: 1},
    "three times one": {1: 3},
    "nothing": {},
}


class Told:
    """A round of four clients, and what the server could pass off as a sum of it."""

    def __init__(self, kind: Kind, size: int = 5000) -> None:
        coding = Coding(1.0, 16, 1)
        self.lattice = choose(*kind, 4, coding)
        self.packing = Packing(self.lattice, FixedPoint(coding, 4, (), size, ROUND))
        self.key, self.mac = Key.generate(self.lattice), replace(mac_of(), lattice=self.lattice)
        # Small, as in training: no multiple is out of range, so that only the MAC can tell.
        rng = np.random.default_rng(0)
        self.lanes = {c: rng.integers(-999, 1000, self.packing.point.lanes) for c in CLIENTS}
        self.tags: dict[int, Tag] = {}
        self.bulks: dict[int, memoryview] = {}
        for c, lanes in self.lanes.items():
            self.tags[c], self.bulks[c] = encrypted(self.packing, self.key, self.mac, c, self.residues(lanes))

    def residues(self, signed: Any) -> Lanes:
        return (signed & ((1 << self.packing.point.modulus_bits) - 1)).astype(np.uint32)

    def rows(self, times: Mapping[int, int]) -> Words:
        """Ciphertexts, each so often, uint64 [ciphertexts, words]."""
        total = np.zeros((self.packing.ciphertexts, self.lattice.words), np.uint64)
        for client, count in times.items():
            for _ in range(count):
                add_ciphertexts(self.packing, total, self.bulks[client])
        return total

    def tag(self, times: Mapping[int, int]) -> Tag:
        total: Tag = (0,) * CHECKS
        for client, count in times.items():
            for _ in range(count):
                total = add_tags(self.lattice, total, self.tags[client])
        return total

    def lanes_of(self, times: Mapping[int, int]) -> Lanes:
        return self.residues(sum((n * self.lanes[c] for c, n in times.items()), 0 * self.lanes[1]))

    def opened(self, tag: Tag, rows: Words) -> Lanes:
        """Open as the sum over clients 1, 2 and 3."""
        bulk = b"".join(pack_words(row, self.lattice.primes[0]) for row in rows)
        return opened(self.packing, self.key, self.mac, [1, 2, 3], tag, memoryview(bulk))

    def assert_refused(self, tag: Tag, rows: Words) -> None:
        """And that nothing has been decrypted by then."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Key, "decrypt", lambda *_: pytest.fail("a forged sum was decrypted"))
            with pytest.raises(BadFrame, match=REFUSED):
                self.opened(tag, rows)

    def opened_unchecked(self, rows: Words) -> Lanes:
        """The positive control: without the check it passes for a sum."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Mac, "check", lambda *_: None)
            return self.opened((0,) * CHECKS, rows)


@lru_cache(maxsize=4)
def told(kind: Kind) -> Told:
    return Told(kind)


@every_kind
def test_the_true_sum_is_opened_exactly(kind: Kind) -> None:
    known = told(kind)
    for client in CLIENTS:
        rows = list(ciphertexts_of(known.packing, known.bulks[client]))
        assert known.tags[client] == known.mac.tag(client, rows)  # what is tagged is what is sent
    found = known.opened(known.tag(HONEST), known.rows(HONEST))
    assert np.array_equal(found, known.lanes_of(HONEST))


@every_kind
@pytest.mark.parametrize("lie", LIES)
def test_a_sum_over_others_than_named_is_refused_before_it_is_decrypted(kind: Kind, lie: str) -> None:
    known = told(kind)
    rows = known.rows(LIES[lie])
    known.assert_refused(known.tag(HONEST), rows)
    known.assert_refused(known.tag(LIES[lie]), rows)
    assert np.array_equal(known.opened_unchecked(rows), known.lanes_of(LIES[lie]))


@every_kind
def test_one_coefficient_of_the_last_ciphertext_is_enough(kind: Kind) -> None:
    known = told(kind)
    rows = known.rows(HONEST)
    rows[-1, -1] = (int(rows[-1, -1]) + 1) % known.lattice.prime
    known.assert_refused(known.tag(HONEST), rows)


# Multiples by a short polynomial: anybody can form them, as BFV's ciphertexts are coefficients, and a short
# one adds little noise. They got around tags in slots.

Polynomial = dict[int, int]  # power -> factor


def times(lattice: Lattice, polynomial: Polynomial, words: Words) -> Words:
    """Product of a ciphertext with a polynomial, modulo X^N + 1."""
    halves = words.reshape(2, lattice.degree).astype(object)
    total = 0 * halves
    for power, factor in polynomial.items():
        turned = np.roll(halves, power, axis=1)
        turned[:, :power] *= -1
        total += factor * turned
    return (total % lattice.prime).astype(np.uint64).reshape(-1)


def roots_of(key: Key) -> list[int]:
    """Where BFV's slots are the values of the plaintext: X's own value in each."""
    lattice = key.lattice
    ones = key.encrypt(np.ones(lattice.slots, np.int64))
    return [int(x) % lattice.plain for x in key.decrypt(times(lattice, {1: 1}, ones))]


def values_of(lattice: Lattice, polynomial: Polynomial, roots: Iterable[int]) -> Any:
    t = lattice.plain
    return np.array([sum(f * pow(x, p, t) for p, f in polynomial.items()) % t for x in roots], object)


def vanishing(lattice: Lattice, root: int, spread: int) -> Polynomial:
    """Find a polynomial in X^spread with coefficients -1, 0 and 1 that is 0 modulo t at `root`.

    There are 3^26 with 26 terms, and t < 2^37: meet in the middle.
    """
    t, half = lattice.plain, 13
    weights = [pow(root, spread * i, t) for i in range(2 * half)]

    def all_values(weights: list[int]) -> Any:
        """Of the polynomial whose factors plus one are the index' ternary digits."""
        found = np.zeros(1, np.int64)
        for weight in weights:
            found = np.concatenate([found - weight, found, found + weight]) % t
        return found

    lower, upper = all_values(weights[:half]), -all_values(weights[half:]) % t
    _, ones, others = np.intersect1d(lower, upper, return_indices=True)
    zero = (3**half - 1) // 2
    i = next(i for i in range(ones.size) if (ones[i], others[i]) != (zero, zero))
    digits = [int(part[i]) // 3**j % 3 - 1 for part in (ones, others) for j in range(half)]
    return {spread * j: digit for j, digit in enumerate(digits) if digit}


SHIFTS: list[Polynomial] = [{1: 1}, {2048: -1}, {4095: 1}, {0: 1, 7: -2}]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("which", [*range(len(SHIFTS)), "vanishing"])
def test_a_client_times_a_short_polynomial_is_refused_before_it_is_decrypted(
    symmetric: bool, which: int | str
) -> None:
    known = told(("bfv", symmetric))
    lattice, roots = known.lattice, roots_of(known.key)
    assert len(set(roots)) == lattice.slots
    polynomial = vanishing(lattice, roots[5], 16) if isinstance(which, str) else SHIFTS[which]
    rows, mine = known.rows(HONEST), known.rows({1: 1})
    forged = rows.copy()
    forged[0] = (rows[0] + times(lattice, polynomial, mine[0])) % np.uint64(lattice.prime)
    known.assert_refused(known.tag(HONEST), forged)
    known.assert_refused(add_tags(lattice, known.tag(HONEST), known.tags[1]), forged)

    # Without the check: in every slot the sum, and client 1's number times what the polynomial is there.
    known.opened_unchecked(forged)
    honest, own, found = (known.key.decrypt(words).astype(object) for words in (rows[0], mine[0], forged[0]))
    values = values_of(lattice, polynomial, roots)
    assert ((honest + values * own - found) % lattice.plain == 0).all()
    untouched = np.flatnonzero(values == 0)
    assert untouched.size == (16 if isinstance(which, str) else 0)
    assert np.array_equal(found[untouched], honest[untouched])
    assert np.count_nonzero(found != honest) > 0.9 * lattice.slots


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_ckks_client_times_a_polynomial_is_refused_before_it_is_decrypted(symmetric: bool) -> None:
    """A constant: CKKS' slots of any other short one are not whole, which decryption alone would notice."""
    known = told(("ckks", symmetric))
    rows = known.rows(HONEST)
    forged = rows.copy()
    forged[0] = (rows[0].astype(object) - 5 * known.rows({1: 1})[0].astype(object)) % known.lattice.prime
    known.assert_refused(known.tag(HONEST), forged)
    lanes = 1 * known.lanes[1]
    lanes[known.packing.capacity :] = 0
    expected = known.residues(sum(known.lanes[c] for c in (1, 2, 3)) - 5 * lanes)
    assert np.array_equal(known.opened_unchecked(forged), expected)


@every_kind
def test_noise_in_place_of_ciphertexts_is_refused_before_it_is_decrypted(kind: Kind) -> None:
    known = told(kind)
    rng = np.random.default_rng(5)
    noise = rng.integers(0, known.lattice.prime, known.rows({}).shape, np.uint64)
    known.assert_refused(known.tag(HONEST), noise)
    known.assert_refused((0,) * CHECKS, noise)
