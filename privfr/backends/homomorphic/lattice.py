"""Ring-LWE ciphertexts that add up: parameters, keys, encryption and decryption, done by TenSEAL (SEAL).

What travels is never SEAL's own format but the bare coefficients, packed to the bits they need. A received
polynomial is thus one numpy array whose every coefficient is checked to be below its prime, and only then put
into a form that this machine's own SEAL has just written. So no byte of a peer's ever reaches a parser in
C++, and the server, who only adds coefficients modulo a prime, gives none of them to C++.

One data prime, no relinearisation, no Galois keys: nothing is multiplied. TenSEAL insists on a second prime;
it is kept small, no ciphertext carries it, and it counts against the security bound.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import msgspec
import numpy as np
import tenseal as ts
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from privfr.coding import Coding, pack, unpack
from privfr.errors import BadFrame, InputError

__all__ = ["Key", "Lattice", "Words", "choose", "pack_words", "unpack_words"]

Words = NDArray[np.uint64]
Slots = NDArray[np.int64]
SchemeName = Literal["bfv", "ckks"]

# Most bits of all primes together for 128 bits of security with a ternary secret and SEAL's noise, by degree
# (Homomorphic Encryption Security Standard, Albrecht et al. 2018, table 1).
SECURITY = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}

DEGREE = 4096  # the smallest whose bound leaves room for a prime of 60 bits, SEAL's largest
SPARE_PRIME_BITS = 20
LARGEST_PRIME_BITS = 60

# SEAL's noise is centred binomial: 21 coins minus 21 coins.
NOISE_BOUND = 21
NOISE_VARIANCE = 10.5
# How far a CKKS slot of a true sum may be from its whole number: 1/2, less what double precision may err by.
NEAR = 1 / 2 - 1 / 16
# A bound that holds by chance fails with at most 2^-64 for 2^32 coefficients: 2 exp(-z^2 / 2) <= 2^-96.
_Z = math.sqrt(2 * math.log(2) * 97)


class Lattice(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Parameters of a scheme. Raises `InputError` for any that are not 128 bits secure.

    scheme: "bfv" (exact integers modulo `plain`) or "ckks" (reals, scaled by `plain`).  symmetric: who
    encrypts holds the secret key.  degree: N of the ring Z[X]/(X^N + 1).  primes: bits of the data prime
    and of the spare one.  values: integers in one slot, each in `lane_bits` bits, see `packing`.
    """

    scheme: SchemeName
    symmetric: bool
    degree: int
    primes: tuple[int, int]
    plain: int
    values: int
    lane_bits: int

    def __post_init__(self) -> None:
        """Hold against the security table."""
        most = SECURITY.get(self.degree, 0)
        if sum(self.primes) > most:
            raise InputError(
                f"a lattice of degree {self.degree} with primes of {self.primes} bits is not 128 bits "
                f"secure: at most {most} bits in all"
            )

    @property
    def slots(self) -> int:
        """Numbers that one ciphertext holds: BFV has one for each coefficient, CKKS half as many."""
        return self.degree if self.scheme == "bfv" else self.degree // 2

    @property
    def words(self) -> int:
        """Coefficients of one ciphertext: two polynomials."""
        return 2 * self.degree

    @property
    def prime(self) -> int:
        """The data prime, modulo which ciphertexts add up."""
        return _primes(self.degree, self.primes)[0]

    @property
    def packed_bytes(self) -> int:
        """Bytes of one ciphertext on the wire."""
        return packed_bytes(self.words, self.primes[0])

    @property
    def key_bytes(self) -> int:
        """Bytes of a key on the wire: the secret key if symmetric, else the public one."""
        return packed_bytes(_key_moduli(self).size, max(self.primes))


def choose(scheme: SchemeName, symmetric: bool, clients: int, coding: Coding) -> Lattice:
    """Find the parameters that cost the fewest bytes a value for a sum over so many clients.

    Raises `InputError` where not even one value fits a slot.
    """
    largest = coding.reach(clients)  # |sum| of one lane
    lane_bits = 1 + largest.bit_length()
    fitting = []
    for values in range(1, 64 // lane_bits + 1):
        top = largest * sum(1 << (lane_bits * i) for i in range(values))
        fit = _bfv if scheme == "bfv" else _ckks
        bits, plain = fit(top, symmetric, clients)
        if bits <= LARGEST_PRIME_BITS:
            fitting.append((bits / values, bits, plain, values))
    if not fitting:
        raise InputError(
            f"coding.bits: sums of {clients} values of {coding.bits} bits do not fit {scheme}'s slots; "
            "give fewer bits"
        )
    _, bits, plain, values = min(fitting)
    return Lattice(scheme, symmetric, DEGREE, (bits, SPARE_PRIME_BITS), plain, values, lane_bits)


def _coefficient_noise(symmetric: bool, clients: int) -> float:
    """Bound the noise on one coefficient of a sum of fresh encryptions.

    Symmetric: the sum of `clients` noises, each at most 21, which is a certainty, and sub-Gaussian with
    variance 10.5, which bounds many of them more tightly. Asymmetric: SEAL encrypts modulo
    both primes and divides by the spare one. What is left of the noise proper, below 2^20 in all but
    2^-96 of cases, vanishes in the rounding, which adds r0 + r1 s with |r| <= 1/2 and a ternary s: for each
    client at most N + 1 independent terms, sub-Gaussian with variance 1/4 each. Either way scaling the
    message up rounds by at most 1 for each client.
    """
    if symmetric:
        return clients + min(clients * NOISE_BOUND, _Z * math.sqrt(clients * NOISE_VARIANCE))
    return _Z * math.sqrt(clients * (DEGREE + 1) / 4) + 2 * clients


def _bfv(top: int, symmetric: bool, clients: int) -> tuple[int, int]:
    """Bits of the data prime q, and the plain modulus t, for sums of at most `top` in absolute value.

    t > 2 top, so that residues are sums. Decryption rounds t/q (q/t m + noise), which is m if
    2 t noise < q (Fan & Vercauteren 2012, eprint 2012/144, lemma 1); 2^-10 is to spare for SEAL's fixed-point
    scaling and for q being a little below its power of two.
    """
    plain = _prime_above(2 * top + 1, 2 * DEGREE)
    needed = 2 * plain * _coefficient_noise(symmetric, clients) * (1 + 2**-10)
    # Coprime to both primes, and below q, as SEAL demands.
    return max(math.ceil(math.log2(needed)), plain.bit_length() + 1), plain


def _ckks(top: int, symmetric: bool, clients: int) -> tuple[int, int]:
    """Bits of the data prime, and the scale, so that decrypted sums are within `NEAR` of the integers.

    A slot is the polynomial at a root of unity: its error is the sum of N coefficients' errors times
    cosines whose squares sum to N/2. Fresh noise has variance 10.5; encoding rounds each coefficient,
    taken as sub-Gaussian with variance 1/4, and so does the asymmetric division, N + 1 times. Double
    precision errs by about 2^-52 of `top` (measured): below 2^44 the 1/16 set aside is 15 deviations.
    """
    variance = 0.25 + (NOISE_VARIANCE if symmetric else (DEGREE + 1) / 4)
    error = _Z * math.sqrt(clients * variance * DEGREE / 2)
    scale = 1 << math.ceil(math.log2(error / NEAR))
    if top >= 1 << 44:
        return LARGEST_PRIME_BITS + 1, scale
    # A coefficient is at most the largest slot; its sign takes a bit.
    return math.ceil(math.log2(2 * (top + 1) * scale * (1 + 2**-10))), scale


@lru_cache(maxsize=64)
def _primes(degree: int, bits: tuple[int, int]) -> tuple[int, ...]:
    found = seal.CoeffModulus.Create(degree, list(bits))
    return tuple(int(each.value()) for each in found)


@lru_cache(maxsize=64)
def _prime_above(bound: int, step: int) -> int:
    """Give the smallest prime above `bound` that is 1 modulo `step`, as SEAL's BatchEncoder needs."""
    candidate = bound - bound % step + 1 + (step if bound % step else 0)
    while candidate <= bound or not _is_prime(candidate):
        candidate += step
    return candidate


def _is_prime(n: int) -> bool:
    """Miller-Rabin, certain below 2^64 with these bases (Sinclair 2011; OEIS A014233 lists the bounds)."""
    if n < 2:
        return False
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if any(n % base == 0 for base in bases):
        return n in bases
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        x = pow(base, odd, n)
        if x in (1, n - 1):
            continue
        if not any((x := x * x % n) == n - 1 for _ in range(twos - 1)):
            return False
    return True


# Coefficients on the wire


def packed_bytes(words: int, bits: int) -> int:
    """Bytes of so many coefficients: the low 32 bits of each, then the rest of each, packed."""
    return 4 * words + -(-words * (bits - 32) // 8)


def pack_words(words: Words, bits: int) -> bytes:
    """Pack coefficients of `bits` bits, 33 to 64, as `packed_bytes` says; little-endian."""
    halves = words.astype("<u8", copy=False).view("<u4")
    return b"".join((halves[::2].tobytes(), pack(halves[1::2], bits - 32)))


def unpack_words(data: bytes | memoryview, bits: int, moduli: Words) -> Words:
    """Unpack what `pack_words` made of as many coefficients as there are moduli: uint64 [n].

    Raises `BadFrame` for another length, and for a coefficient that is not below its modulus.
    """
    count = moduli.size
    if len(data) != packed_bytes(count, bits):
        raise BadFrame(f"{len(data)} bytes where {packed_bytes(count, bits)} of ciphertext or key belong")
    found = unpack(data[4 * count :], bits - 32, count).astype(np.uint64)
    found <<= np.uint64(32)
    found |= np.frombuffer(data[: 4 * count], "<u4")
    if (found >= moduli).any():
        raise BadFrame("a coefficient that is not below its prime")
    return found


# TenSEAL


class Key:
    """A key as TenSEAL holds it: secret, or public if it can only encrypt.

    What `export` gives is the secret key where the lattice is symmetric, else the public one.
    """

    def __init__(self, lattice: Lattice, context: ts.Context) -> None:
        self.lattice, self._context = lattice, context

    @classmethod
    def generate(cls, lattice: Lattice) -> Key:
        """Draw a fresh key; its randomness is SEAL's own, from the operating system."""
        return cls(lattice, _new_context(lattice))

    @classmethod
    def load(cls, lattice: Lattice, exported: bytes | memoryview) -> Key:
        """Take up what `export` gave. Raises `BadFrame` for bytes that are no such key."""
        bits = max(lattice.primes)
        words = unpack_words(exported, bits, _key_moduli(lattice))
        return cls(lattice, ts.context_from(_mould(lattice).key_with(words), n_threads=1))

    @property
    def can_decrypt(self) -> bool:
        """Whether the secret key is here."""
        return bool(self._context.is_private())

    def export(self) -> bytes:
        """The key as packed coefficients. Secret where the lattice is symmetric."""
        return pack_words(_mould(self.lattice).key_of(self._serialised()), max(self.lattice.primes))

    def encrypt(self, slots: Slots) -> Words:
        """Encrypt int64 [slots] as uint64 [words]."""
        return _mould(self.lattice).words_of(_encrypt(self._context, self.lattice, slots))

    def decrypt(self, words: Words) -> Slots:
        """Decrypt uint64 [words], each below the prime, as int64 [slots].

        Raises `BadFrame` where a CKKS slot is not near a whole number: it is rounded to the grid before
        anybody sees it, since its error would tell of the key (Li & Micciancio 2021, eprint 2020/1533).
        """
        data = _mould(self.lattice).vector_with(words)
        if self.lattice.scheme == "bfv":
            return np.array(ts.bfv_vector_from(self._context, data).decrypt(), np.int64)
        reals = np.array(ts.ckks_vector_from(self._context, data).decrypt(), np.float64)
        whole = np.rint(reals)
        if not np.isfinite(reals).all() or np.abs(reals - whole).max() > NEAR:
            raise BadFrame("the sum is garbled: it is not one of whole numbers")
        return whole.astype(np.int64)

    def _serialised(self) -> bytes:
        held: bytes = self._context.serialize(
            save_public_key=not self.lattice.symmetric,
            save_secret_key=self.lattice.symmetric,
            save_galois_keys=False,
            save_relin_keys=False,
        )
        return held

    def __repr__(self) -> str:
        """Say nothing of the key."""
        return f"<Key of {self.lattice.scheme}>"


def _new_context(lattice: Lattice) -> ts.Context:
    kind = ts.SCHEME_TYPE.BFV if lattice.scheme == "bfv" else ts.SCHEME_TYPE.CKKS
    context = ts.context(
        kind,
        lattice.degree,
        plain_modulus=lattice.plain if lattice.scheme == "bfv" else None,
        coeff_mod_bit_sizes=list(lattice.primes),
        encryption_type=ts.ENCRYPTION_TYPE.SYMMETRIC if lattice.symmetric else ts.ENCRYPTION_TYPE.ASYMMETRIC,
        n_threads=1,
    )
    return context


def _encrypt(context: ts.Context, lattice: Lattice, slots: Slots) -> bytes:
    if lattice.scheme == "bfv":
        data: bytes = ts.bfv_vector(context, slots).serialize()
    else:
        data = ts.ckks_vector(context, slots, scale=float(lattice.plain)).serialize()
    return data


def _key_moduli(lattice: Lattice) -> Words:
    """Moduli of a key's coefficients: each polynomial modulo the data prime, then modulo the spare one."""
    primes = np.array(_primes(lattice.degree, lattice.primes), np.uint64)
    return np.tile(np.repeat(primes, lattice.degree), 1 if lattice.symmetric else 2)


@dataclass(frozen=True)
class _Mould:
    """What this machine's own TenSEAL writes around the coefficients of a key or a ciphertext.

    Made from a throw-away key. TenSEAL's files are protocol buffers whose fields hold SEAL objects; a SEAL
    object ends with its coefficients, 8 bytes each.
    """

    lattice: Lattice
    context: tuple[_Field, ...]
    vector: tuple[_Field, ...]

    @property
    def _key_field(self) -> int:
        return 3 if self.lattice.symmetric else 2  # tenseal/proto/tensealcontext.proto: private, public

    def key_of(self, serialised: bytes) -> Words:
        part = dict(_named(_fields(serialised)))[self._key_field]
        key = dict(_named(_fields(part)))[1]
        return _coefficients(key, _key_moduli(self.lattice).size)

    def key_with(self, words: Words) -> bytes:
        def changed(fields: tuple[_Field, ...]) -> Iterator[_Field]:
            for number, kind, value in fields:
                if number == self._key_field:
                    inner = tuple(_fields(value))
                    value = _joined((n, k, _blob(v, words) if n == 1 else v) for n, k, v in inner)
                yield number, kind, value

        return _joined(changed(self.context))

    def words_of(self, serialised: bytes) -> Words:
        return _coefficients(dict(_named(_fields(serialised)))[2], self.lattice.words)

    def vector_with(self, words: Words) -> bytes:
        before, after = self._around
        return b"".join((before, words.astype("<u8", copy=False).tobytes(), after))

    @cached_property
    def _around(self) -> tuple[bytes, bytes]:
        """What stands before and behind the coefficients of a vector, which is the same for all."""
        marks = np.arange(self.lattice.words, dtype=np.uint64)
        whole = _joined((n, k, _blob(v, marks) if n == 2 else v) for n, k, v in self.vector)
        before, after = whole.split(marks.astype("<u8").tobytes())
        return before, after


@lru_cache(maxsize=16)
def _mould(lattice: Lattice) -> _Mould:
    key = Key(lattice, _new_context(lattice))
    vector = _encrypt(key._context, lattice, np.zeros(lattice.slots, np.int64))
    return _Mould(lattice, tuple(_fields(key._serialised())), tuple(_fields(vector)))


# Just enough of protocol buffers and of SEAL's files to read and write those of this very machine.

_Field = tuple[int, int, bytes]
_HEADER = struct.Struct("<HBBBBHQ")  # SEAL's: magic, header size, version, compression, 0, size in all
_PLAIN, _ZSTD = 0, 2


def _fields(data: bytes) -> Iterator[_Field]:
    """Take a protocol buffer apart: field number, wire type, value (its bytes; a varint as it stands)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == 2:
            length, start = _varint(data, at)
            at = start + length
        elif kind == 0:
            _, at = _varint(data, at)
        else:
            at += {1: 8, 5: 4}[kind]
        yield number, kind, data[start:at]


def _joined(fields: Iterator[_Field]) -> bytes:
    out = bytearray()
    for number, kind, value in fields:
        out += _to_varint(number << 3 | kind)
        out += (_to_varint(len(value)) if kind == 2 else b"") + value
    return bytes(out)


def _named(fields: Iterator[_Field]) -> Iterator[tuple[int, bytes]]:
    return ((number, value) for number, _, value in fields)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _to_varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _content(blob: bytes) -> bytes:
    """Content of a SEAL object, behind its header and its compression."""
    compression = _HEADER.unpack_from(blob)[4]
    if compression == _ZSTD:
        return zstandard.ZstdDecompressor().decompressobj().decompress(memoryview(blob)[_HEADER.size :])
    if compression != _PLAIN:
        raise InputError("this TenSEAL compresses with neither zstd nor nothing: install tenseal from PyPI")
    return blob[_HEADER.size :]


def _coefficients(blob: bytes, count: int) -> Words:
    content = _content(blob)
    return np.frombuffer(content, "<u8", count, len(content) - 8 * count).astype(np.uint64)


def _blob(like: bytes, words: Words) -> bytes:
    """Write a SEAL object like another, with other coefficients, not compressed."""
    content = _content(like)[: -8 * words.size] + words.astype("<u8").tobytes()
    magic, size, major, minor, *_ = _HEADER.unpack_from(like)
    return _HEADER.pack(magic, size, major, minor, _PLAIN, 0, _HEADER.size + len(content)) + content
