"""What everybody in a homomorphic round works out for themselves: parameters, packing, who makes the key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol, TypeVar

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
from privfr.backends.homomorphic.mac import CHECKS, Mac, Tag, add_tags, check_form
from privfr.backends.homomorphic.messages import Cipher
from privfr.backends.homomorphic.packing import Packing
from privfr.coding import Coding, FixedPoint, Lanes
from privfr.errors import BadFrame, InputError, WrongPhase
from privfr.protocol import ENVELOPE, ClientId, Entropy, RoundSpec, parameters_of
from privfr.vector import Update
from privfr.wire import room_for

__all__ = [
    "SCHEMES",
    "Parameters",
    "Total",
    "absorb_cipher",
    "add_ciphertexts",
    "check",
    "ciphertexts_of",
    "coded",
    "encrypted",
    "limit_cipher",
    "opened",
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
    if spec.backend not in SCHEMES:
        raise BadFrame("parameters of another backend's round")
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


def coded(spec: RoundSpec, update: Update, entropy: Entropy) -> memoryview:
    """Code an update as its lanes, uint32 bytes."""
    lanes = packing_of(spec).point.encode(update, entropy)
    return lanes.astype("<u4", copy=False).data.cast("B")


def encrypted(packing: Packing, key: Key, mac: Mac, client: ClientId, lanes: Lanes) -> tuple[Tag, memoryview]:
    """Encrypt one summand, lanes modulo 2^k, uint32 [lanes], one ciphertext at a time, and tag it."""
    bits, out = packing.lattice.primes[0], room_for(packing.packed_bytes)

    def ciphertexts() -> Iterator[Words]:
        at, step = 0, packing.lattice.packed_bytes
        for words in map(key.encrypt, packing.spread(lanes)):
            out[at : at + step] = pack_words(words, bits)
            yield words
            at += step

    return mac.tag(client, ciphertexts()), out


def opened(
    packing: Packing, key: Key, mac: Mac, clients: Sequence[ClientId], tag: Tag, bulk: memoryview
) -> Lanes:
    """Decrypt a sum over these clients: lanes modulo 2^k, uint32 [lanes].

    Raises `BadFrame` for any other sum, and then nothing has been decrypted.
    """
    mac.check(clients, tag, ciphertexts_of(packing, bulk))
    return packing.gather(key.decrypt(words) for words in ciphertexts_of(packing, bulk))


def add_ciphertexts(packing: Packing, total: Words, bulk: bytes | memoryview) -> None:
    """Add ciphertexts to uint64 [ciphertexts, words], coefficient by coefficient, which adds what is in them.

    Raises `BadFrame` as `ciphertexts_of`, and then nothing is added.
    """
    prime, added = np.uint64(packing.lattice.prime), 0
    try:
        for row, found in zip(total, ciphertexts_of(packing, bulk), strict=True):
            row += found
            np.minimum(row, row - prime, out=row)  # below the prime, the difference wraps and is the larger
            added += 1
    except BadFrame:
        for row, found in zip(total[:added], ciphertexts_of(packing, bulk), strict=False):
            row -= found
            np.minimum(row, row + prime, out=row)  # where it wrapped, the sum is the smaller
        raise


@dataclass
class Total:
    """The server's running sum: ciphertexts, uint64 [ciphertexts, words], their tags, and whose they are."""

    spec: RoundSpec
    words: Words = field(init=False)
    tag: Tag = (0,) * CHECKS
    survivors: list[ClientId] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.context, self.packing = self.spec.context(), packing_of(self.spec)
        self.words = np.zeros((self.packing.ciphertexts, self.packing.lattice.words), np.uint64)

    def add(self, client: ClientId, answer: Cipher) -> None:
        """Add one client's ciphertexts and tag. Raises `BadFrame`, and then nothing is added."""
        if answer.context != self.context:
            raise WrongPhase("ciphertexts of another round or run")
        check_form(self.packing.lattice, answer.tag)
        add_ciphertexts(self.packing, self.words, answer.bulk)
        self.tag = add_tags(self.packing.lattice, self.tag, answer.tag)
        self.survivors.append(client)

    def packed(self) -> memoryview:
        """The ciphertexts as one summand's are packed."""
        bits = self.packing.lattice.primes[0]
        return memoryview(b"".join(pack_words(row, bits) for row in self.words))

    def __repr__(self) -> str:
        """Say how many."""
        return f"<Total of {len(self.survivors)} clients>"


class Adding(Protocol):
    """A server's state with a running sum."""

    total: Total


A = TypeVar("A", bound=Adding)


def absorb_cipher(state: A, client: ClientId, answer: Cipher) -> A:
    """Add one client's ciphertexts."""
    state.total.add(client, answer)
    return state


def limit_cipher(spec: RoundSpec) -> int:
    """Most bytes of one client's ciphertexts."""
    return packing_of(spec).packed_bytes + ENVELOPE
