"""Shamir's scheme: published examples, a second implementation, and that one share too few says nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from insecure import InsecureEntropy

from privfr.backends.masking.shamir import PRIME, SHARE_BYTES, combine, draw, split
from privfr.errors import BadFrame, LocalProtocolError
from privfr.protocol import Entropy

values = st.integers(0, PRIME - 1)


def in_bytes(value: int) -> bytes:
    return value.to_bytes(32, "big")


def giving(values: Iterable[int]) -> Entropy:
    """Entropy that gives these numbers, 32 bytes each, and no more."""
    left: Iterator[int] = iter(values)

    def entropy(n: int) -> bytes:
        assert n == 32
        return in_bytes(next(left))

    return entropy


def slow_share(coefficients: list[int], x: int, p: int = PRIME) -> int:
    """Value of the polynomial at x, lowest coefficient first, by powers: the second implementation."""
    return sum(c * pow(x, i, p) for i, c in enumerate(coefficients)) % p


def interpolate(points: dict[int, int], p: int = PRIME) -> list[int]:
    """Coefficients, lowest first, of the polynomial through the points: the linear system, by elimination."""
    rows = [[pow(x, i, p) for i in range(len(points))] + [y] for x, y in points.items()]
    for i in range(len(rows)):
        pivot = next(j for j in range(i, len(rows)) if rows[j][i])
        rows[i], rows[pivot] = rows[pivot], rows[i]
        inverse = pow(rows[i][i], p - 2, p)
        rows[i] = [v * inverse % p for v in rows[i]]
        for j in range(len(rows)):
            if j != i:
                rows[j] = [(v - rows[j][i] * w) % p for v, w in zip(rows[j], rows[i], strict=True)]
    return [row[-1] for row in rows]


def probably_prime(n: int) -> bool:
    """Miller-Rabin with 40 bases, for an odd n above them."""
    twos = ((n - 1) & -(n - 1)).bit_length() - 1
    rng = np.random.default_rng(0)
    for base in [2, 3, 5, 7, *(int.from_bytes(rng.bytes(31), "big") + 2 for _ in range(36))]:
        x = pow(base, (n - 1) >> twos, n)
        if x in (1, n - 1):
            continue
        for _ in range(twos - 1):
            x = x * x % n
            if x == n - 1:
                break
        else:
            return False
    return True


def test_the_prime_is_the_largest_of_32_bytes() -> None:
    assert probably_prime(PRIME)
    above = range(PRIME + 2, 2**256, 2)
    assert len(above) == 94
    assert not any(probably_prime(n) for n in above)


def test_the_second_implementation_on_a_published_prime_field() -> None:
    """RFC 9591 (FROST), appendix E.1: shares 2-of-3 over the order of edwards25519, little-endian.

    Nobody publishes vectors over 2^256 - 189; so they prove what the scheme itself is compared with.
    """

    def little(text: str) -> int:
        return int.from_bytes(bytes.fromhex(text), "little")

    order = 2**252 + 27742317777372353535851937790883648493
    secret = little("7b1c33d3f5291d85de664833beb1ad469f7fb6025a0ec78b3a790c6e13a98304")
    slope = little("178199860edd8c62f5212ee91eff1295d0d670ab4ed4506866bae57e7030b204")
    shares = {
        1: little("929dcc590407aae7d388761cddb0c0db6f5627aea8e217f4a033f2ec83d93509"),
        2: little("a91e66e012e4364ac9aaa405fcafd370402d9859f7b6685c07eed76bf409e80d"),
        3: little("d3cb090a075eb154e82fdb4b3cb507f110040905468bb9c46da8bdea643a9a02"),
    }
    for x, share in shares.items():
        assert slow_share([secret, slope], x, order) == share
    for pair in combinations(shares, 2):
        assert interpolate({x: shares[x] for x in pair}, order) == [secret, slope]


def test_the_example_everybody_knows() -> None:
    """Wikipedia, "Shamir's secret sharing": 1234 + 166 x + 94 x^2, without a modulus, at 1 to 6."""
    shares = split(in_bytes(1234), 3, range(6), giving([166, 94]))
    assert shares == {u: in_bytes(v) for u, v in enumerate([1494, 1942, 2578, 3402, 4414, 5614])}
    assert combine({1: in_bytes(1942), 3: in_bytes(3402), 4: in_bytes(4414)}, 3) == in_bytes(1234)


def test_values_wrap_at_the_prime() -> None:
    """By hand: 5 + (p - 1) x is 5 - x; at 6 it is -1, so p - 1."""
    shares = split(in_bytes(5), 2, [0, 4, 5], giving([PRIME - 1]))
    assert shares == {0: in_bytes(4), 4: in_bytes(0), 5: in_bytes(PRIME - 1)}
    assert combine({4: in_bytes(0), 5: in_bytes(PRIME - 1)}, 2) == in_bytes(5)


@given(st.lists(values, min_size=1, max_size=9), st.sets(st.integers(0, 2**40), min_size=9, max_size=12))
def test_shares_are_values_of_the_polynomial_drawn(coefficients: list[int], holders: set[int]) -> None:
    order = list(holders)
    shares = split(in_bytes(coefficients[0]), len(coefficients), order, giving(coefficients[1:]))
    assert list(shares) == order
    for u, share in shares.items():
        assert int.from_bytes(share, "big") == slow_share(coefficients, u + 1)


@pytest.mark.parametrize("n", range(1, 8))
def test_every_subset_that_is_large_enough_gives_the_secret(n: int) -> None:
    holders = [int(u) for u in np.random.default_rng(n).choice(1000, n, replace=False)]
    for t in range(1, n + 1):
        secret = draw(InsecureEntropy(100 * n + t))
        shares = split(secret, t, holders, InsecureEntropy(t))
        for size in range(t, n + 1):
            for some in combinations(holders, size):
                assert combine({u: shares[u] for u in some}, t) == secret


@given(values, st.integers(1, 12), st.integers(0, 6), st.integers(0, 2**32))
def test_secrets_come_back(secret: int, t: int, spare: int, seed: int) -> None:
    holders = [int(u) for u in np.random.default_rng(seed).choice(10**6, t + spare, replace=False)]
    shares = split(in_bytes(secret), t, holders, InsecureEntropy(seed))
    some = [int(u) for u in np.random.default_rng(seed + 1).permutation(holders)[:t]]
    assert combine({u: shares[u] for u in some}, t) == in_bytes(secret)


@given(st.integers(2, 6), values, values, st.integers(0, 2**32))
def test_one_share_too_few_fits_every_secret(t: int, secret: int, candidate: int, seed: int) -> None:
    """For any candidate there is the one draw of coefficients that makes the very shares seen."""
    holders = range(10, 10 + t)
    seen = split(in_bytes(secret), t, holders, InsecureEntropy(seed))
    del seen[holders[seed % t]]
    points = {0: candidate} | {u + 1: int.from_bytes(share, "big") for u, share in seen.items()}
    coefficients = interpolate(points)
    assert coefficients[0] == candidate
    again = split(in_bytes(candidate), t, holders, giving(coefficients[1:]))
    assert {u: again[u] for u in seen} == seen


def test_one_share_too_few_gives_another_secret() -> None:
    secret = draw(InsecureEntropy(1))
    shares = split(secret, 5, range(9), InsecureEntropy(2))
    assert combine(shares, 5) == secret
    assert combine(shares, 4) != secret


def test_an_altered_share_gives_another_secret() -> None:
    secret = draw(InsecureEntropy(1))
    shares = split(secret, 3, range(5), InsecureEntropy(2))
    shares[1] = in_bytes((int.from_bytes(shares[1], "big") + 1) % PRIME)
    assert combine(shares, 3) != secret
    del shares[1]
    assert combine(shares, 3) == secret


def test_the_lowest_ids_are_combined() -> None:
    secret = draw(InsecureEntropy(1))
    shares = split(secret, 3, [7, 2, 9, 4], InsecureEntropy(2))
    assert combine(shares | {9: bytes(32)}, 3) == secret
    assert combine(shares | {7: bytes(32)}, 3) != secret


def test_a_value_not_below_the_prime_is_drawn_again() -> None:
    assert draw(giving([PRIME, 2**256 - 1, PRIME - 1])) == in_bytes(PRIME - 1)
    assert draw(giving([0])) == bytes(SHARE_BYTES)
    with_rejects = split(bytes(32), 3, range(3), giving([PRIME, 1, PRIME + 5, 2]))
    assert with_rejects == split(bytes(32), 3, range(3), giving([1, 2]))


def test_as_many_coefficients_as_needed_are_drawn() -> None:
    with pytest.raises(StopIteration):
        draw(giving([PRIME]))
    # A 0 is as good a coefficient as any, the highest one included.
    assert set(split(in_bytes(7), 3, range(4), giving([0, 0])).values()) == {in_bytes(7)}
    assert split(in_bytes(7), 1, [3, 4], giving([])) == {3: in_bytes(7), 4: in_bytes(7)}


@pytest.mark.parametrize(
    ("secret", "threshold", "holders"),
    [
        (bytes(31), 1, [0]), (bytes(33), 1, [0]), (b"", 1, [0]),
        (in_bytes(PRIME), 1, [0]), (b"\xff" * 32, 1, [0]),
        (bytes(32), 0, [0, 1]), (bytes(32), -1, [0, 1]), (bytes(32), 3, [0, 1]), (bytes(32), 1, []),
        (bytes(32), 1, [1, 1]), (bytes(32), 2, [1, 2, 1]),
        # At x = 0 stands the secret itself, and PRIME is 0.
        (bytes(32), 1, [-1]), (bytes(32), 1, [PRIME - 1]), (bytes(32), 1, [0, PRIME]),
    ],
)  # fmt: skip
def test_what_cannot_be_split(secret: bytes, threshold: int, holders: list[int]) -> None:
    with pytest.raises(LocalProtocolError) as raised:
        split(secret, threshold, holders, InsecureEntropy(0))
    assert secret.hex() not in str(raised.value) or not secret


@pytest.mark.parametrize("bad", [b"", bytes(31), bytes(33), in_bytes(PRIME), b"\xff" * 32])
@pytest.mark.parametrize("holder", [0, 1, 2])
def test_what_is_no_share_is_refused_wherever_it_stands(bad: bytes, holder: int) -> None:
    shares = split(bytes(32), 2, range(3), InsecureEntropy(0)) | {holder: bad}
    with pytest.raises(BadFrame, match=f"client {holder} "):
        combine(shares, 2)


def test_too_few_shares_are_refused() -> None:
    shares = split(bytes(32), 2, range(3), InsecureEntropy(0))
    for few in ({}, {0: shares[0]}):
        with pytest.raises(BadFrame, match=f"{len(few)} shares where 2"):
            combine(few, 2)
    for threshold in (0, -1):
        with pytest.raises(LocalProtocolError):
            combine(shares, threshold)
    with pytest.raises(LocalProtocolError):
        combine({-1: bytes(32), 4: bytes(32)}, 2)
