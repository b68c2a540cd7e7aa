"""A second implementation of docs/spec/ckks.md, as plain as can be: for test vectors and nothing else.

Nothing here comes from privfr, nor from TenSEAL: the ring, its transforms and its encodings are written out,
parameters are worked out in whole numbers and decimals. Boxes are those of `reference.py`.
It is slow, it checks nothing, its noise is known and it keeps every secret: never use it in earnest.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, getcontext
from typing import Any

import reference as ref

getcontext().prec = 60

DEGREE, SPARE, LARGEST = 4096, 20, 60

# Primes


def is_prime(n: int) -> bool:
    """Baillie-PSW, which no composite below 2^64 passes: a strong test to base 2, then Lucas's."""
    if n < 2 or any(n % p == 0 for p in (2, 3, 5, 7, 11, 13)):
        return n in (2, 3, 5, 7, 11, 13)
    odd = n - 1
    while odd % 2 == 0:
        odd //= 2
    x = pow(2, odd, n)
    strong = x == 1
    while odd < n - 1:
        strong, x, odd = strong or x == n - 1, x * x % n, 2 * odd
    return strong and math.isqrt(n) ** 2 != n and _lucas(n)


def _jacobi(a: int, n: int) -> int:
    a, sign = a % n, 1
    while a:
        while a % 2 == 0:
            a, sign = a // 2, -sign if n % 8 in (3, 5) else sign
        a, n, sign = n, a, -sign if a % 4 == n % 4 == 3 else sign
        a %= n
    return sign if n == 1 else 0


def _lucas(n: int) -> bool:
    """Whether U_(n+1) = 0 modulo n, with Selfridge's parameters: P = 1, Q = (1 - D) / 4."""
    d = next(d for i in range(n) if _jacobi(d := (5 + 2 * i) * (-1) ** i, n) == -1)
    u, v, q, half = 1, 1, (1 - d) // 4, (n + 1) // 2
    power = q
    for bit in bin(n + 1)[3:]:
        u, v, power = u * v % n, (v * v - 2 * power) % n, power * power % n
        if bit == "1":
            u, v, power = (u + v) * half % n, (d * u + v) * half % n, power * q % n
    return u == 0


def prime_of(bits: int, degree: int) -> int:
    """SEAL's `CoeffModulus::Create`: the largest prime of so many bits that is 1 modulo 2 N."""
    return next(p for p in range(2**bits - 2 * degree + 1, 0, -2 * degree) if is_prime(p))


def prime_above(bound: int, degree: int) -> int:
    p = bound + 1
    while p % (2 * degree) != 1:
        p += 1
    while not is_prime(p):
        p += 2 * degree
    return p


# Parameters


@dataclass
class Lattice:
    """What is agreed on, in the order of its encoding."""

    scheme: str
    symmetric: bool
    degree: int
    primes: list[int]
    plain: int
    values: int
    lane_bits: int

    @property
    def fields(self) -> list[Any]:
        return [
            self.scheme,
            self.symmetric,
            self.degree,
            self.primes,
            self.plain,
            self.values,
            self.lane_bits,
        ]

    @property
    def slots(self) -> int:
        return self.degree if self.scheme == "bfv" else self.degree // 2

    @property
    def moduli(self) -> list[int]:
        """The data prime and the spare one."""
        return [prime_of(bits, self.degree) for bits in self.primes]

    @property
    def key_moduli(self) -> list[int]:
        one = [p for p in self.moduli for _ in range(self.degree)]
        return one if self.symmetric else one * 2


def choose(scheme: str, symmetric: bool, clients: int, bits: int) -> Lattice:
    """The fewest bits a value, of these the fewest bits. Raises `ValueError` where none fit."""
    largest = clients * (2 ** (bits - 1) - 1)
    lane_bits = largest.bit_length() + 1
    best: tuple[Decimal, int, int, int] | None = None
    for values in range(1, 64 // lane_bits + 1):
        top = sum(largest * 2 ** (lane_bits * i) for i in range(values))
        found, plain = (_bfv if scheme == "bfv" else _ckks)(top, symmetric, clients)
        if found <= LARGEST:
            each = (Decimal(found) / values, found, plain, values)
            best = each if best is None or each[:2] < best[:2] else best
    if best is None:
        raise ValueError("no slot holds such a sum")
    return Lattice(scheme, symmetric, DEGREE, [best[1], SPARE], best[2], best[3], lane_bits)


def _bits(needed: Decimal) -> int:
    """The smallest b with 2^b >= needed."""
    return next(b for b in range(200) if 2**b >= needed)


def _z() -> Decimal:
    return (2 * Decimal(2).ln() * 97).sqrt()


def _bfv(top: int, symmetric: bool, clients: int) -> tuple[int, int]:
    plain = prime_above(2 * top + 1, DEGREE)
    noise = clients + min(Decimal(21 * clients), _z() * (Decimal(clients) * Decimal("10.5")).sqrt())
    if not symmetric:
        noise = _z() * (Decimal(clients * (DEGREE + 1)) / 4).sqrt() + 2 * clients
    return max(_bits(2 * plain * noise * 1025 / 1024), plain.bit_length() + 1), plain


def _ckks(top: int, symmetric: bool, clients: int) -> tuple[int, int]:
    variance = Decimal("10.75") if symmetric else (Decimal(DEGREE + 1) + 1) / 4
    error = _z() * (clients * variance * DEGREE / 2).sqrt()
    scale = 2 ** _bits(error * 16 / 7)
    if top >= 2**44:
        return LARGEST + 1, scale
    return _bits(Decimal(2 * (top + 1) * scale) * 1025 / 1024), scale


# Coefficients on the wire


def packed(words: Sequence[int], bits: int) -> bytes:
    return ref.pack([w % 2**32 for w in words], 32) + ref.pack([w >> 32 for w in words], bits - 32)


def unpacked(data: bytes, bits: int, count: int) -> list[int]:
    low, high = (int.from_bytes(part, "little") for part in (data[: 4 * count], data[4 * count :]))
    rest = bits - 32
    return [(low >> 32 * i) % 2**32 | ((high >> rest * i) % 2**rest) << 32 for i in range(count)]


# The ring


def root_of(modulus: int, degree: int) -> int:
    """The smallest primitive 2N-th root of unity modulo a prime."""
    one = next(
        r for g in range(2, modulus)
        if pow(r := pow(g, (modulus - 1) // (2 * degree), modulus), degree, modulus) == modulus - 1
    )  # fmt: skip
    roots, x = [], one
    for _ in range(degree):
        roots.append(x)
        x = x * one * one % modulus
    return min(roots)


def reversed_bits(i: int, degree: int) -> int:
    return int(format(i, f"0{degree.bit_length() - 1}b")[::-1], 2)


def _fourier(values: Sequence[Any], root: Any, times: Any) -> list[Any]:
    """Values of a polynomial at the powers of a root of unity."""
    if len(values) == 1:
        return list(values)
    even, odd = (_fourier(values[i::2], times(root, root), times) for i in (0, 1))
    found, half, power = [0] * len(values), len(values) // 2, 1
    for i in range(half):
        turned = times(power, odd[i])
        found[i], found[half + i] = even[i] + turned, even[i] - turned
        power = times(power, root)
    return found


def values_at_odd_powers(polynomial: Sequence[int], root: int, modulus: int) -> list[int]:
    """Value i is that at root^(2 i + 1)."""
    turned = [c * pow(root, i, modulus) % modulus for i, c in enumerate(polynomial)]
    found = _fourier(turned, root * root % modulus, lambda a, b: a * b % modulus)
    return [x % modulus for x in found]


def from_values(values: Sequence[int], root: int, modulus: int) -> list[int]:
    """Undo `values_at_odd_powers`."""
    back = pow(root * root, -1, modulus)
    found = _fourier(values, back, lambda a, b: a * b % modulus)
    inverse, degree = pow(root, -1, modulus), pow(len(values), -1, modulus)
    return [x * degree * pow(inverse, i, modulus) % modulus for i, x in enumerate(found)]


def transformed(polynomial: Sequence[int], modulus: int) -> list[int]:
    """SEAL's number-theoretic transform: the values at the odd powers, in bit-reversed order."""
    degree = len(polynomial)
    values = values_at_odd_powers(polynomial, root_of(modulus, degree), modulus)
    return [values[reversed_bits(i, degree)] for i in range(degree)]


def untransformed(values: Sequence[int], modulus: int) -> list[int]:
    degree = len(values)
    ordered = [values[reversed_bits(i, degree)] for i in range(degree)]
    return from_values(ordered, root_of(modulus, degree), modulus)


def centred(x: int, modulus: int) -> int:
    return (x + modulus // 2) % modulus - modulus // 2


def exponents(lattice: Lattice) -> list[int]:
    """Slot i is the polynomial at this power of the root."""
    order = 2 * lattice.degree
    powers = [pow(3, i, order) for i in range(lattice.degree // 2)]
    return powers + [order - p for p in powers] if lattice.scheme == "bfv" else powers


def encoded(lattice: Lattice, slots: Sequence[int]) -> list[int]:
    """The polynomial with these slots: modulo the plain modulus, or scaled and rounded."""
    n, at = lattice.degree, exponents(lattice)
    if lattice.scheme == "bfv":
        values = [0] * n
        for power, slot in zip(at, slots, strict=True):
            values[power // 2] = slot % lattice.plain
        return from_values(values, root_of(lattice.plain, n), lattice.plain)
    points: list[complex] = [0j] * n
    for power, slot in zip(at, slots, strict=True):
        points[power // 2] = points[(2 * n - power) // 2] = complex(slot)
    found = _fourier(points, cmath.exp(-1j * math.pi * 2 / n), lambda a, b: a * b)
    turned = (x * cmath.exp(-1j * math.pi * i / n) / n for i, x in enumerate(found))
    return [round(x.real * lattice.plain) for x in turned]


def decoded(lattice: Lattice, phase: Sequence[int]) -> list[int]:
    """Slots of what decryption leaves, coefficients modulo the data prime."""
    n, q, t, at = lattice.degree, lattice.moduli[0], lattice.plain, exponents(lattice)
    if lattice.scheme == "bfv":
        plain = [(2 * t * x + q) // (2 * q) % t for x in phase]
        values = values_at_odd_powers(plain, root_of(t, n), t)
        return [centred(values[power // 2], t) for power in at]
    turned = [centred(x, q) / t * cmath.exp(1j * math.pi * i / n) for i, x in enumerate(phase)]
    points = _fourier(turned, cmath.exp(1j * math.pi * 2 / n), lambda a, b: a * b)
    return [round(points[power // 2].real) for power in at]


# Keys and ciphertexts


def ternary(text: str, degree: int) -> list[int]:
    """A secret that everybody can work out: bytes of SHAKE-256 modulo 3, less 1."""
    return [byte % 3 - 1 for byte in hashlib.shake_256(text.encode()).digest(degree)]


def noise(text: str, degree: int) -> list[int]:
    """Centred binomial, 21 coins less 21 coins."""
    drawn = hashlib.shake_256(text.encode()).digest(6 * degree)
    coins = (int.from_bytes(drawn[6 * i : 6 * i + 6], "little") for i in range(degree))
    return [(c % 2**21).bit_count() - (c >> 21 & 2**21 - 1).bit_count() for c in coins]


def uniform(text: str, degree: int, modulus: int) -> list[int]:
    drawn = hashlib.shake_256(text.encode()).digest(16 * degree)
    return [int.from_bytes(drawn[16 * i : 16 * i + 16], "little") % modulus for i in range(degree)]


def secret_key(lattice: Lattice, secret: Sequence[int]) -> bytes:
    words = [x for modulus in lattice.moduli for x in transformed(secret, modulus)]
    return packed(words, lattice.primes[0])


def public_key(lattice: Lattice, secret: Sequence[int], text: str) -> bytes:
    """b = -(a s + e) and a, transformed, each modulo both primes."""
    n = lattice.degree
    b: list[int] = []
    a: list[int] = []
    for modulus in lattice.moduli:
        own, drawn = transformed(secret, modulus), uniform(f"{text} {modulus}", n, modulus)
        error = transformed(noise(text, n), modulus)
        a += drawn
        b += [-(x * s + e) % modulus for x, s, e in zip(drawn, own, error, strict=True)]
    return packed(b + a, lattice.primes[0])


def encrypted(lattice: Lattice, secret: Sequence[int], slots: Sequence[int], text: str) -> list[int]:
    """Symmetric: c0 = message + e - a s, c1 = a; transformed in CKKS, not so in BFV."""
    n, q, t = lattice.degree, lattice.moduli[0], lattice.plain
    own, a = transformed(secret, q), uniform(text, n, q)
    message = encoded(lattice, slots)
    if lattice.scheme == "bfv":
        message = [(2 * m * q + t) // (2 * t) for m in message]
    part = [m + e for m, e in zip(message, noise(text + " noise", n), strict=True)]
    c0 = [(m - x * s) % q for m, x, s in zip(transformed(part, q), a, own, strict=True)]
    if lattice.scheme == "ckks":
        return c0 + a
    return untransformed(c0, q) + untransformed(a, q)


def decrypted(lattice: Lattice, secret: Sequence[int], words: Sequence[int]) -> list[int]:
    n, q = lattice.degree, lattice.moduli[0]
    c0, c1 = words[:n], words[n:]
    if lattice.scheme == "bfv":
        c0, c1 = transformed(c0, q), transformed(c1, q)
    own = transformed(secret, q)
    phase = [(x + y * s) % q for x, y, s in zip(c0, c1, own, strict=True)]
    return decoded(lattice, untransformed(phase, q))


# Slots


@dataclass
class Packing:
    """lanes: how many a summand has.  bits: of one client's value."""

    lattice: Lattice
    bits: int
    lanes: int

    @property
    def capacity(self) -> int:
        return self.lattice.slots * self.lattice.values

    @property
    def ciphertexts(self) -> int:
        return math.ceil(self.lanes / self.capacity)

    def spread(self, lanes: Sequence[int]) -> list[list[int]]:
        """lanes: whole numbers, negative ones too."""
        k, slots, found = self.lattice.lane_bits, self.lattice.slots, []
        for i in range(self.ciphertexts):
            part = list(lanes[i * self.capacity : (i + 1) * self.capacity])
            room = part + [0] * (self.capacity - len(part))
            found.append([sum(room[j::slots][r] * 2 ** (k * r) for r in range(self.lattice.values))
                          for j in range(slots)])  # fmt: skip
        return found


# Tags: a MAC that adds up

CHECKS = 4


def mac_rows(key: bytes, context: bytes, count: int) -> list[list[int]]:
    """r: four rows of 16-bit numbers, as many as a ciphertext has coefficients."""
    drawn = hashlib.shake_256(b"privfr mac" + key + context + b"words").digest(2 * CHECKS * count)
    numbers = struct.unpack(f"<{CHECKS * count}H", drawn)
    return [list(numbers[i * count : (i + 1) * count]) for i in range(CHECKS)]


def mac_numbers(seed: bytes, prime: int) -> list[int]:
    """Four numbers modulo the prime."""
    stream = hashlib.shake_256(seed).digest(16 * CHECKS)
    return [int.from_bytes(stream[16 * i : 16 * i + 16], "little") % prime for i in range(CHECKS)]


def mac_factors(key: bytes, context: bytes, number: int, prime: int) -> list[int]:
    """s of one ciphertext, by which its products are multiplied."""
    return mac_numbers(b"privfr mac" + key + context + ref.be8(number), prime)


def mac_pad(secret: bytes, context: bytes, client: int, prime: int) -> list[int]:
    return mac_numbers(b"privfr mac pad" + secret + context + ref.be8(client), prime)


def mac_products(key: bytes, context: bytes, ciphertexts: Sequence[Sequence[int]], prime: int) -> list[int]:
    found, rows = [0] * CHECKS, mac_rows(key, context, len(ciphertexts[0]))
    for number, words in enumerate(ciphertexts):
        factors = mac_factors(key, context, number, prime)
        for i, row in enumerate(rows):
            found[i] += factors[i] * sum(r * c for r, c in zip(row, words, strict=True))
    return [x % prime for x in found]


def mac_tag(
    key: bytes, secret: bytes, context: bytes, client: int, ciphertexts: Sequence[Sequence[int]], prime: int
) -> list[int]:
    """One client's: inner products and pads. For a total, the pads of all its clients are added."""
    pad = mac_pad(secret, context, client, prime)
    products = mac_products(key, context, ciphertexts, prime)
    return [(a + b) % prime for a, b in zip(products, pad, strict=True)]


# Sealing


def subkey(secret: bytes, use: bytes) -> bytes:
    return ref.keyed(secret, b"privfr subkey", use)


def beforenm(private: bytes, public: bytes) -> bytes:
    """NaCl's crypto_box_beforenm: HSalsa20 of the X25519 secret, with a nonce of zeros."""
    x, _ = ref._salsa20_rounds(ref.x25519(private, public), bytes(16))
    return ref._bytes(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9))


def box_name(purpose: bytes, context: bytes, sender: int, recipient: int) -> bytes:
    return purpose + context + ref.be8(sender) + ref.be8(recipient)


def sealed(
    sender: int,
    private: bytes,
    roster: Mapping[int, bytes],
    clients: Iterable[int],
    purpose: bytes,
    context: bytes,
    bulk: bytes,
    entropy: ref.Entropy,
) -> tuple[list[bytes], bytes]:
    """Draws: the secret, then a nonce for each box, then one for the bulk."""
    secret, boxes = entropy(32), []
    for client in clients:
        plain = box_name(purpose, context, sender, client) + secret
        boxes.append(ref.secretbox(beforenm(private, roster[client]), entropy(24), plain))
    return boxes, ref.secretbox(subkey(secret, b"bulk"), entropy(24), bulk)


# What is signed, and who makes a key


def survivor_bytes(context: bytes, survivors: Iterable[int]) -> bytes:
    return b"privfr he agreed" + context + b"".join(ref.be8(u) for u in survivors)


def key_bytes(context: bytes, key: bytes) -> bytes:
    return b"privfr he pubkey" + context + hashlib.blake2b(key, digest_size=32).digest()


def makers(roster: Sequence[int], round: int, threshold: int) -> list[int]:
    return [roster[(round + i) % len(roster)] for i in range(len(roster) - threshold + 1)]
