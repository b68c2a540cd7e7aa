"""What everybody in a homomorphic round works out for themselves: parameters, packing, who makes the key."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import msgspec
import numpy as np

from privfr.backends.homomorphic.lattice import (
    Key,
    Lattice,
    SchemeName,
    Words,
    choose,
    pack_words,
    unpack_words,
)
from privfr.backends.homomorphic.packing import Packing, Signed
from privfr.coding import Coding, FixedPoint, Lanes
from privfr.errors import BadFrame, InputError
from privfr.protocol import RoundSpec, parameters_of

__all__ = [
    "SCHEMES",
    "Parameters",
    "add_ciphertexts",
    "check",
    "ciphertexts_of",
    "empty_total",
    "encrypted",
    "opened",
    "packed_total",
    "packing_of",
    "plan",
]

# backend -> scheme, and whether who encrypts holds the secret key
SCHEMES: dict[str, tuple[SchemeName, bool]] = {
    "bfv": ("bfv", True),
    "ckks": ("ckks", True),
    "bfv-authority": ("bfv", False),
    "ckks-authority": ("ckks", False),
}


class Parameters(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What `RoundSpec.parameters` holds for these backends, msgpack-encoded."""

    coding: Coding
    lattice: Lattice


def plan(backend: str, clients: int, coding: Coding | None) -> bytes:
    """Work out a run's parameters. Raises `InputError` for sums that fit no slot."""
    if coding is None:
        raise InputError(f"coding.bits: {backend} adds up whole numbers; give 2 to 24 bits, usually 16")
    coding.check_fits(clients)
    return msgspec.msgpack.encode(Parameters(coding, choose(*SCHEMES[backend], clients, coding)))


def packing_of(spec: RoundSpec) -> Packing:
    """Give the round's packing. Raises `BadFrame` for parameters that are not of such a round."""
    return _packing_of(spec)


@lru_cache(maxsize=32)
def _packing_of(spec: RoundSpec) -> Packing:
    found = parameters_of(spec.parameters, Parameters)
    point = FixedPoint(found.coding, len(spec.clients), spec.metrics, spec.size, spec.context())
    return Packing(found.lattice, point)


def check(spec: RoundSpec) -> None:
    """Raise `BadFrame` for a proposed round whose sum would not fit, or is not secured as it must be."""
    try:
        coding = packing_of(spec).point.coding
        if plan(spec.backend, len(spec.clients), coding) != spec.parameters:
            raise BadFrame("parameters that are not those of such a round")
    except InputError as error:
        raise BadFrame(f"a round that cannot be: {error}") from None


def ciphertexts_of(packing: Packing, bulk: bytes | memoryview) -> Iterator[Words]:
    """Take one summand's ciphertexts apart: uint64 [words] each.

    Raises `BadFrame` for another length, and at the first coefficient that is not below the prime.
    """
    lattice, step = packing.lattice, packing.lattice.packed_bytes
    if len(bulk) != packing.packed_bytes:
        raise BadFrame(f"{len(bulk)} bytes where {packing.packed_bytes} of ciphertext belong")
    moduli = np.full(lattice.words, lattice.prime, np.uint64)
    for start in range(0, len(bulk), step):
        yield unpack_words(bulk[start : start + step], lattice.primes[0], moduli)


def encrypted(packing: Packing, key: Key, lanes: Lanes, tags: Signed) -> bytearray:
    """Encrypt one summand, lanes modulo 2^k, uint32 [lanes], one ciphertext at a time."""
    lattice = packing.lattice
    out, step = bytearray(packing.packed_bytes), lattice.packed_bytes
    for i, slots in enumerate(packing.spread(lanes, tags)):
        out[i * step : (i + 1) * step] = pack_words(key.encrypt(slots), lattice.primes[0])
    return out


def opened(packing: Packing, key: Key, bulk: bytes | memoryview, tags: Signed) -> Lanes:
    """Decrypt a sum: lanes modulo 2^k, uint32 [lanes].

    tags: sum of the tags of those it is said to be over.  Raises `BadFrame` for any other sum.
    """
    return packing.gather((key.decrypt(words) for words in ciphertexts_of(packing, bulk)), tags)


def empty_total(packing: Packing) -> Words:
    """Give a sum of nothing: uint64 [ciphertexts, words]."""
    return np.zeros((packing.ciphertexts, packing.lattice.words), np.uint64)


def add_ciphertexts(packing: Packing, total: Words, bulk: bytes | memoryview) -> None:
    """Add ciphertexts to uint64 [ciphertexts, words], coefficient by coefficient, which adds what is in them.

    Raises `BadFrame` as `ciphertexts_of`, and then nothing is added.
    """
    for _ in ciphertexts_of(packing, bulk):
        pass
    prime = np.uint64(packing.lattice.prime)
    for row, found in zip(total, ciphertexts_of(packing, bulk), strict=True):
        row += found
        np.minimum(row, row - prime, out=row)  # below the prime, the difference wraps and is the larger


def packed_total(packing: Packing, total: Words) -> bytes:
    """Pack uint64 [ciphertexts, words] as a summand's ciphertexts are packed."""
    return b"".join(pack_words(row, packing.lattice.primes[0]) for row in total)
