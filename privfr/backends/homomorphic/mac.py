"""Proof of whose ciphertexts are in a sum: a linearly homomorphic MAC over them.

The server adds ciphertexts, and could add others than it says: one client's alone, one of them twice, a
multiple by a polynomial. So each client sends a tag with its ciphertexts c, uint64 modulo the prime q,

    tag_i = sum over its ciphertexts j of s_j <r, c_ij>, plus pad_i   modulo q, four times over

where r, as many 16-bit numbers as a ciphertext has coefficients, and s_j, numbers modulo q, follow from a
secret of all clients and whoever opens the sum, and pad_i from a secret of client i and whoever opens. The
server adds up the tags too. For a total C and tag T over clients S the opener looks whether T - sum of the
pads of S = sum of s_j <r, C_j>, and decrypts nothing else.

The pads are used once, so the tags tell the server nothing of r and s. With t the sum of the true tags of S
and c that of the true ciphertexts, T passes only if T - t = sum of s_j <r, C_j - c_j>. If C_j differs from
c_j in any coefficient, one of that coefficient's 2^16 factors at the most makes <r, C_j - c_j> 0, as q is
prime and larger; and if it is not 0, one s_j at the most fits. That is 2^-16 + 1/q, and four times over about
2^-64. If a client of S has sent no tag, its pad is unknown, and the chance is q^-4. (Agrawal & Boneh 2009,
ACNS, "Homomorphic MACs: MAC-based integrity for network coding".) Whoever helps the server with r and s voids
all of this: it holds against a server that lies, not against one that has an accomplice among the clients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privfr.backends.homomorphic.lattice import Lattice, Words
from privfr.backends.identity import ascending
from privfr.errors import BadFrame
from privfr.protocol import ClientId

__all__ = ["CHECKS", "Mac", "Tag", "add_tags", "check_form"]

Tag = tuple[int, ...]
CHECKS = 4


@dataclass(frozen=True)
class Mac:
    """Keys of one round. key: 32 bytes that all who encrypt share with whoever opens the sum.

    pads: client -> 32 bytes that it shares with whoever opens.  context: the round's, 32 bytes.
    """

    lattice: Lattice
    context: bytes
    key: bytes
    pads: Mapping[ClientId, bytes]

    def tag(self, client: ClientId, ciphertexts: Iterable[Words]) -> Tag:
        """Tag of one client's ciphertexts, uint64 [words] each."""
        prime = self.lattice.prime
        return tuple(
            (a + b) % prime for a, b in zip(self._products(ciphertexts), self._pad(client), strict=True)
        )

    def check(self, clients: Sequence[ClientId], tag: Tag, ciphertexts: Iterable[Words]) -> None:
        """Raise `BadFrame` unless these are the sums of the tags and ciphertexts of exactly these clients."""
        check_form(self.lattice, tag)
        if not ascending(clients, self.pads.keys()):
            raise BadFrame("clients of a sum that are out of order, there twice, or not of the roster")
        expected = self._products(ciphertexts)
        for client in clients:
            expected = [a + b for a, b in zip(expected, self._pad(client), strict=True)]
        if list(tag) != [number % self.lattice.prime for number in expected]:
            raise BadFrame("the sum is not one over the clients it is said to be over")

    def _products(self, ciphertexts: Iterable[Words]) -> list[int]:
        """Inner products of all coefficients with r, modulo the prime."""
        seed = b"privfr mac" + self.key + self.context
        found, r = [0] * CHECKS, np.empty((CHECKS, 0))
        for number, words in enumerate(ciphertexts):
            if not number:  # all are of one length
                drawn = hashlib.shake_256(seed + b"words").digest(2 * CHECKS * words.size)
                r = np.frombuffer(drawn, "<u2").reshape(CHECKS, -1).astype(np.float64)
            # Quarters of 16 bits: 2^15 products of 32 bits at most add up exactly within a double's 53.
            quarters = words.astype("<u8", copy=False).view("<u2").reshape(-1, 4).astype(np.float64)
            factors = self._numbers(seed + number.to_bytes(8, "big"))
            for i, row in enumerate((r @ quarters).tolist()):
                product = sum(int(quarter) << (16 * j) for j, quarter in enumerate(row))
                found[i] = (found[i] + factors[i] * product) % self.lattice.prime
        return found

    def _pad(self, client: ClientId) -> list[int]:
        """Pads of one client."""
        return self._numbers(b"privfr mac pad" + self.pads[client] + self.context + client.to_bytes(8, "big"))

    def _numbers(self, seed: bytes) -> list[int]:
        """CHECKS numbers: 128 bits each modulo the prime, which is uniform but for 2^-68."""
        drawn = hashlib.shake_256(seed).digest(16 * CHECKS)
        return [
            int.from_bytes(drawn[at : at + 16], "little") % self.lattice.prime
            for at in range(0, 16 * CHECKS, 16)
        ]

    def __repr__(self) -> str:
        """Show no key."""
        return f"<Mac of {len(self.pads)} clients>"


def check_form(lattice: Lattice, tag: Tag) -> None:
    """Raise `BadFrame` for what cannot be a tag."""
    if len(tag) != CHECKS or not all(0 <= number < lattice.prime for number in tag):
        raise BadFrame(f"not a tag of {CHECKS} numbers below the prime")


def add_tags(lattice: Lattice, total: Tag, tag: Tag) -> Tag:
    """Add two tags modulo the prime."""
    return tuple((a + b) % lattice.prime for a, b in zip(total, tag, strict=True))
