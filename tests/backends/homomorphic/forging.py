"""What anybody can do to a ciphertext without its key: Ring-LWE hides what is inside, and protects nothing.

A ciphertext (c0, c1) opens to c0 + c1 s. So (message, 0) opens to the message under every key s, and what is
added to c1 comes out multiplied with the secret key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np

from privfr.backends.homomorphic.lattice import Key, Lattice, Slots, Words, _key_moduli, pack_words
from privfr.backends.homomorphic.mac import CHECKS, Tag, add_tags
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.homomorphic.round import add_ciphertexts, ciphertexts_of

Change = Callable[[Words], Words]  # of one ciphertext, uint64 [words]


@lru_cache(maxsize=16)
def zero_key(lattice: Lattice) -> Key:
    """The key whose every coefficient is 0: what is encrypted by it is scaled and encoded, and in clear."""
    zeros = np.zeros(_key_moduli(lattice).size, np.uint64)
    return Key.load(lattice, pack_words(zeros, max(lattice.primes)))


def in_clear(lattice: Lattice, slots: Slots) -> Words:
    """Give a ciphertext of int64 [slots] that opens under every key, uint64 [words]."""
    words = zero_key(lattice).encrypt(slots)
    words[lattice.degree :] = 0
    return words


def one_slot(lattice: Lattice, at: int, value: int) -> Slots:
    slots = np.zeros(lattice.slots, np.int64)
    slots[at] = value
    return slots


def plus(lattice: Lattice, one: Words, other: Words) -> Words:
    total = one + other  # primes have at most 60 bits
    return np.where(total >= lattice.prime, total - np.uint64(lattice.prime), total)


def shifted(lattice: Lattice, at: int, value: int) -> Change:
    """Add `value` to one slot."""
    known = in_clear(lattice, one_slot(lattice, at, value))
    return lambda words: plus(lattice, words, known)


def with_the_key(lattice: Lattice, at: int) -> Change:
    """Add to one of BFV's slots what is in the same slot of the secret key."""
    prime, plain = lattice.prime, lattice.plain
    noisy = in_clear(lattice, one_slot(lattice, at, 1))[: lattice.degree].astype(object)
    message = (noisy * plain + prime // 2) // prime
    known = np.zeros(lattice.words, np.uint64)
    # Scaled anew: the key would multiply the noise too.
    known[lattice.degree :] = ((message * prime + plain // 2) // plain % prime).astype(np.uint64)
    return lambda words: plus(lattice, words, known)


def times(lattice: Lattice, polynomial: Iterable[int]) -> Change:
    """Multiply a BFV ciphertext with a polynomial of small coefficients, lowest first, modulo X^N + 1.

    A CKKS ciphertext holds not its coefficients but their number-theoretic transform.
    """

    def product(half: Words) -> Words:
        total, values = np.zeros(lattice.degree, object), half.astype(object)
        for power, factor in enumerate(polynomial):
            turned = np.roll(values, power)
            turned[:power] *= -1
            total = total + int(factor) * turned
        return (total % lattice.prime).astype(np.uint64)

    return lambda words: np.concatenate([product(words[: lattice.degree]), product(words[lattice.degree :])])


def changed(packing: Packing, bulk: bytes | memoryview, change: Change, which: int = 0) -> bytes:
    """Change one ciphertext of a summand or of a sum."""
    bits = packing.lattice.primes[0]
    rows = enumerate(ciphertexts_of(packing, bulk))
    return b"".join(pack_words(change(row) if i == which else row, bits) for i, row in rows)


def summed(packing: Packing, bulks: Iterable[bytes | memoryview]) -> bytes:
    """Add ciphertexts up, any of them, any number of times."""
    total = np.zeros((packing.ciphertexts, packing.lattice.words), np.uint64)
    for bulk in bulks:
        add_ciphertexts(packing, total, bulk)
    return b"".join(pack_words(row, packing.lattice.primes[0]) for row in total)


def tags_summed(packing: Packing, tags: Iterable[Tag]) -> Tag:
    """Add tags up, any of them, any number of times."""
    total: Tag = (0,) * CHECKS
    for tag in tags:
        total = add_tags(packing.lattice, total, tag)
    return total


def evaluated(polynomial: Iterable[int], at: int, modulus: int) -> int:
    """Value of a polynomial, lowest coefficient first."""
    return sum(factor * pow(at, power, modulus) for power, factor in enumerate(polynomial)) % modulus


def root_of(lattice: Lattice, slot: int) -> int:
    """The point at which a polynomial has the value that BFV's slot holds, modulo the plain modulus t.

    The polynomial that is 1 in this slot and 0 in all others has coefficients root^-i / N.
    """
    plain, prime = lattice.plain, lattice.prime
    scaled = in_clear(lattice, one_slot(lattice, slot, 1))[:2]
    zeroth, first = ((int(word) * plain + prime // 2) // prime for word in scaled)
    return zeroth * pow(first, -1, plain) % plain
