"""Shamir's secret sharing (Shamir 1979, CACM 22(11)) over the prime field of 2^256 - 189.

A secret is the value at 0 of a random polynomial of degree `threshold` - 1; the share of a holder is its
value at holder + 1 (0 would be the secret itself). `threshold` shares give the polynomial and so the
secret; one fewer fit every secret equally well. 2^256 - 189 is the largest prime that 32 bytes hold, so
secrets and shares are both 32 bytes, big-endian.

What this does not give. A share that was altered makes another secret and nobody notices: the caller
compares shares with digests that the one who split published. Python's integers are not constant-time:
how long `split` takes depends a little on the secret. It runs on the device of the secret's owner, who
is to let no one measure that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

from privfr.errors import BadFrame, LocalProtocolError
from privfr.protocol import Entropy

__all__ = ["PRIME", "SHARE_BYTES", "combine", "draw", "split"]

PRIME = 2**256 - 189
SHARE_BYTES = 32


def draw(entropy: Entropy) -> bytes:
    """Draw a secret uniformly: 32 bytes below PRIME."""
    while True:  # as good as never twice: 189 of 2^256 values are refused
        drawn = entropy(SHARE_BYTES)
        if int.from_bytes(drawn, "big") < PRIME:
            return drawn


def split(secret: bytes, threshold: int, holders: Sequence[int], entropy: Entropy) -> dict[int, bytes]:
    """Share a secret of 32 bytes below PRIME, so that any `threshold` of the holders' shares give it back.

    holders: distinct ids from 0. Gives holder -> share of 32 bytes. Raises `LocalProtocolError`.
    """
    if len(secret) != SHARE_BYTES or int.from_bytes(secret, "big") >= PRIME:
        raise LocalProtocolError("a secret to share is 32 bytes and below 2^256 - 189")
    if not 1 <= threshold <= len(holders) or len(set(holders)) < len(holders):
        raise LocalProtocolError(f"{threshold} shares to be needed of {len(set(holders))} distinct holders")
    points = _points(tuple(holders))
    # The highest coefficient may be 0 too: were it not, threshold - 1 shares would rule one secret out.
    drawn = (draw(entropy) for _ in range(threshold - 1))
    coefficients = [int.from_bytes(c, "big") for c in (secret, *drawn)][::-1]
    return {
        holder: _value(coefficients, x).to_bytes(SHARE_BYTES, "big")
        for holder, x in zip(holders, points, strict=True)
    }


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Give the secret, 32 bytes, from the shares (holder -> share) of the `threshold` lowest ids.

    Raises `BadFrame` for too few shares and for one that is none; `LocalProtocolError` for an impossible id.
    """
    if threshold < 1:
        raise LocalProtocolError(f"a threshold of {threshold} shares")
    if len(shares) < threshold:
        raise BadFrame(f"{len(shares)} shares where {threshold} are needed")
    for holder, share in shares.items():
        if len(share) != SHARE_BYTES or int.from_bytes(share, "big") >= PRIME:
            raise BadFrame(f"what client {holder} holds is no share")
    holders = tuple(sorted(shares)[:threshold])
    terms = (w * int.from_bytes(shares[u], "big") for u, w in zip(holders, _weights(holders), strict=True))
    return (sum(terms) % PRIME).to_bytes(SHARE_BYTES, "big")


def _points(holders: tuple[int, ...]) -> list[int]:
    """Where the holders' shares are taken; never at 0, and no two at the same point of the field."""
    if min(holders) < 0 or max(holders) >= PRIME - 1:
        raise LocalProtocolError("a holder's id is from 0 to 2^256 - 191")
    return [holder + 1 for holder in holders]


def _value(coefficients: list[int], x: int) -> int:
    """Value of a polynomial at x mod PRIME, highest coefficient first (Horner)."""
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % PRIME
    return value


# In a complete graph many secrets have the same holders; a sparse one would only fill a larger cache.
@lru_cache(maxsize=128)
def _weights(holders: tuple[int, ...]) -> list[int]:
    """Lagrange's weights w_i = prod_j x_j / (x_j - x_i): the value at 0 is the sum of w_i * share_i."""
    points = _points(holders)
    numerator = prod(points) % PRIME
    below = [x * prod([y - x for y in points if y != x]) % PRIME for x in points]
    return [numerator * pow(b, -1, PRIME) % PRIME for b in below]
