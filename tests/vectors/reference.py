"""A second implementation of docs/spec/masking.md, as plain as can be: for test vectors and nothing else.

Nothing here comes from privfr. Numbers are Python's; msgpack, packing, Shamir's sharing, ChaCha20, XSalsa20
and Poly1305 are written out. X25519 and Ed25519 are those of `cryptography` (OpenSSL) where privfr has
PyNaCl's (libsodium), and the masks are libsodium's stream where privfr has OpenSSL's.
It is slow, it checks nothing, it is not constant-time and it keeps every secret: never use it in earnest.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from nacl.utils import randombytes_deterministic

Entropy = Callable[[int], bytes]


class Draws:
    """Known entropy: draw i (from 1) of n bytes is the first n of SHAKE-256 of the text "SEED i"."""

    def __init__(self, seed: int) -> None:
        self.seed, self.taken = seed, list[bytes]()

    def __call__(self, n: int) -> bytes:
        text = f"{self.seed} {len(self.taken) + 1}"
        self.taken.append(hashlib.shake_256(text.encode()).digest(n))
        return self.taken[-1]


# msgpack, in its one canonical form: every header as short as it can be, floats in 64 bits.


def msgpack(value: Any) -> bytes:
    """Encode a value as https://github.com/msgpack/msgpack/blob/master/spec.md says."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return bytes([value]) if value < 128 else _sized(value, 0xCC, (1, 2, 4, 8))
    if isinstance(value, float):
        return b"\xcb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return _sized(len(value), 0xC4, (1, 2, 4)) + value
    if isinstance(value, str):
        text = value.encode()
        return (bytes([0xA0 + len(text)]) if len(text) < 32 else _sized(len(text), 0xD9, (1, 2, 4))) + text
    if isinstance(value, Mapping):
        assert len(value) < 16
        return bytes([0x80 + len(value)]) + b"".join(msgpack(x) for pair in value.items() for x in pair)
    head = bytes([0x90 + len(value)]) if len(value) < 16 else _sized(len(value), 0xDC, (2, 4))
    return head + b"".join(msgpack(each) for each in value)


def _sized(number: int, first: int, widths: Sequence[int]) -> bytes:
    """Give the shortest header: a byte for the width, then the number, big-endian."""
    at = next(i for i, width in enumerate(widths) if number < 1 << (8 * width))
    return bytes([first + at]) + number.to_bytes(widths[at], "big")


# Keys

KEY_BOX, SEED_BOX = b"privfr key box", b"privfr seed box"


def x25519(private: bytes, public: bytes) -> bytes:
    """RFC 7748. Raises `ValueError` where the result is zero."""
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def x25519_public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def ed25519_public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def ed25519(seed: bytes, message: bytes) -> bytes:
    """RFC 8032, Ed25519 (neither ph nor ctx)."""
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def be8(number: int) -> bytes:
    return number.to_bytes(8, "big")


def keyed(secret: bytes, purpose: bytes, data: bytes) -> bytes:
    """BLAKE2b: 32 bytes of output, a key, and the purpose, zero-padded to 16 bytes, as personalisation."""
    return hashlib.blake2b(data, digest_size=32, key=secret, person=purpose.ljust(16, b"\0")).digest()


def pair_key(private: bytes, public: bytes, context: bytes, one: int, other: int) -> bytes:
    low, high = sorted((one, other))
    return keyed(x25519(private, public), b"privfr mask", context + be8(low) + be8(high))


def self_key(seed: bytes, context: bytes, client: int) -> bytes:
    return keyed(seed, b"privfr self", context + be8(client))


def box_key(what: bytes, private: bytes, public: bytes, context: bytes, sender: int, recipient: int) -> bytes:
    """what: `KEY_BOX` or `SEED_BOX`, for the kind of share in the box."""
    return keyed(x25519(private, public), what, context + be8(sender) + be8(recipient))


def share_digest(share: bytes, context: bytes, owner: int, holder: int) -> bytes:
    data = context + be8(owner) + be8(holder) + share
    return hashlib.blake2b(data, digest_size=16, person=b"privfr share\0\0\0\0").digest()


def context_of(spec: Sequence[Any]) -> bytes:
    return hashlib.blake2b(msgpack(spec), digest_size=32, person=b"privfr round\0\0\0\0").digest()


# Streams and boxes


def _rotl(word: int, by: int) -> int:
    word &= 0xFFFFFFFF
    return (word << by | word >> (32 - by)) & 0xFFFFFFFF


def _words(data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // 4}I", data))


def _bytes(words: Iterable[int]) -> bytes:
    return b"".join((word & 0xFFFFFFFF).to_bytes(4, "little") for word in words)


def chacha20(key: bytes, nonce: bytes, counter: int, length: int) -> bytes:
    """RFC 8439, section 2.3: the keystream from block `counter` on."""
    stream = b""
    while len(stream) < length:
        start = [*_words(b"expand 32-byte k" + key), counter, *_words(nonce)]
        x = list(start)
        for _ in range(10):
            for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
                               (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):  # fmt: skip
                for to, of, by, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
                    x[to] = (x[to] + x[of]) & 0xFFFFFFFF
                    x[by] = _rotl(x[by] ^ x[to], bits)
        stream += _bytes(one + two for one, two in zip(x, start, strict=True))
        counter += 1
    return stream[:length]


def mask_lanes(key: bytes, count: int) -> list[int]:
    """The mask of a key: libsodium's `randombytes_buf_deterministic`, as little-endian uint32."""
    return _words(randombytes_deterministic(4 * count, key)) if count else []


def _salsa20_rounds(key: bytes, middle: bytes) -> tuple[list[int], list[int]]:
    """Bernstein, "The Salsa20 family of stream ciphers": the words after 20 rounds and at the start."""
    c, k = _words(b"expand 32-byte k"), _words(key)
    start = [c[0], *k[:4], c[1], *_words(middle), c[2], *k[4:], c[3]]
    x = list(start)
    for _ in range(10):
        for a, b, c_, d in ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11),
                            (0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)):  # fmt: skip
            for to, one, two, bits in ((b, a, d, 7), (c_, b, a, 9), (d, c_, b, 13), (a, d, c_, 18)):
                x[to] ^= _rotl(x[one] + x[two], bits)
    return x, start


def _xsalsa20(key: bytes, nonce: bytes, length: int) -> bytes:
    x, _ = _salsa20_rounds(key, nonce[:16])
    subkey = _bytes(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9))
    stream = b""
    while len(stream) < length:
        rounds, start = _salsa20_rounds(subkey, nonce[16:] + (len(stream) // 64).to_bytes(8, "little"))
        stream += _bytes(one + two for one, two in zip(rounds, start, strict=True))
    return stream[:length]


def _poly1305(key: bytes, message: bytes) -> bytes:
    """RFC 8439, section 2.5."""
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % (2**130 - 5)
    return ((total + int.from_bytes(key[16:], "little")) % 2**128).to_bytes(16, "little")


def secretbox(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """NaCl's crypto_secretbox as PyNaCl and libsodium lay it out: nonce, tag, ciphertext."""
    stream = _xsalsa20(key, nonce, 32 + len(plain))
    cipher = bytes(a ^ b for a, b in zip(plain, stream[32:], strict=True))
    return nonce + _poly1305(stream[:32], cipher) + cipher


# Shamir's sharing

PRIME = 2**256 - 189


def draw_secret(entropy: Entropy) -> bytes:
    """32 bytes, big-endian, below PRIME; drawn again until they are."""
    while int.from_bytes(drawn := entropy(32), "big") >= PRIME:
        pass
    return drawn


def split(secret: bytes, threshold: int, holders: Sequence[int], entropy: Entropy) -> dict[int, bytes]:
    """The first coefficient drawn is that of x, the next of x^2, and so on; a holder's x is its id + 1."""
    coefficients = [secret, *(draw_secret(entropy) for _ in range(threshold - 1))]
    return {
        holder: (
            sum(int.from_bytes(c, "big") * (holder + 1) ** i for i, c in enumerate(coefficients)) % PRIME
        ).to_bytes(32, "big")
        for holder in holders
    }


def combine(shares: Mapping[int, bytes]) -> bytes:
    """Lagrange's interpolation at 0."""
    total = 0
    for i, share in shares.items():
        over = math.prod(j + 1 for j in shares if j != i)
        under = math.prod(j - i for j in shares if j != i)
        total += int.from_bytes(share, "big") * over * pow(under, -1, PRIME)
    return (total % PRIME).to_bytes(32, "big")


# The graph

LIMIT = Decimal(2) ** -40


def counts(clients: int, corruption: str, dropout: str) -> tuple[int, int]:
    """How many may be corrupt (rounded up), how many may drop out (rounded down, all but one at most)."""
    corrupt = math.ceil(Fraction(corruption) * clients)
    return corrupt, min(math.floor(Fraction(dropout) * clients), clients - 1)


def tail(population: int, marked: int, draws: int, least: int) -> Decimal:
    """P[Hypergeometric(population, marked, draws) >= least]."""
    ways = sum(
        math.comb(marked, i) * math.comb(population - marked, draws - i)
        for i in range(least, min(marked, draws) + 1)
    )
    return Decimal(ways) / Decimal(math.comb(population, draws))


def private(clients: int, corrupt: int, k: int, t: int) -> bool:
    honest, total = clients - corrupt, Decimal(0)
    for a in range(honest // 2, 0, -1):
        total += Decimal(math.comb(honest, a)) * tail(clients - 1, a - 1 + corrupt, k, t) ** a
        if total > LIMIT:
            return False
    return True


def correct(clients: int, dropped: int, k: int, t: int) -> bool:
    return clients * tail(clients - 1, dropped, k, k - t + 1) <= LIMIT


def graph(clients: int, corruption: str, dropout: str) -> tuple[int, int]:
    """Neighbours and shares that keep the promise. Raises `ValueError` where none do.

    Complete up to 50 clients, and above unless a sparse graph spares a quarter of the expected masks.
    """
    corrupt, dropped = counts(clients, corruption, dropout)
    t = (clients - corrupt) // 2 + corrupt
    if clients < 2 or clients - corrupt < 2 or t > clients - 1 - dropped:
        raise ValueError("no graph keeps this promise")
    for k in range(1, clients - 1 if clients > 50 else 1):
        most = next((t for t in range(k, 0, -1) if correct(clients, dropped, k, t)), 0)
        if most and private(clients, corrupt, k, most):
            if 2 * k - Fraction(k * k, clients - 1) <= Fraction(3, 4) * (clients - 1):
                return k, most
            break
    return clients - 1, t


def committee(clients: int, corruption: str, dropout: str, complete: bool = False) -> tuple[int, int]:
    """Members and quorum of the smallest committee in which any two quorums share an honest member.

    That may fail with a probability of 2^-128, and a quorum be lost with one of 2^-40. The whole roster
    needs no luck; it is taken for up to 50 clients, and where the graph is complete.
    """
    corrupt, dropped = counts(clients, corruption, dropout)
    for size in range(1, clients if clients > 50 and not complete else 1):
        # Two quorums overlap in 2 quorum - size members or more, and these must not all be corrupt.
        overlap = _unlikely(clients, corrupt, size, 2**128)
        quorum = max(math.ceil(Fraction(size + overlap, 2)), size // 2 + 1)
        if quorum <= size and _unlikely(clients, dropped, size, 2**40) <= size - quorum + 1:
            return size, quorum
    return clients, (clients + corrupt) // 2 + 1


def _unlikely(population: int, marked: int, draws: int, once_in: int) -> int:
    """The smallest number of which P[Hypergeometric(population, marked, draws) >= it] <= 1 / once_in."""
    ways, number = 0, min(marked, draws) + 1
    while number > 0:
        ways += math.comb(marked, number - 1) * math.comb(population - marked, draws - number + 1)
        if ways * once_in > math.comb(population, draws):
            break
        number -= 1
    return number


def members(roster: Iterable[int], context: bytes, size: int) -> list[int]:
    """Those with the smallest hashes, here ascending by id."""
    hashes = sorted(
        (hashlib.blake2b(context + be8(u), digest_size=32, person=b"privfr committee").digest(), u)
        for u in roster
    )
    return sorted(u for _, u in hashes[:size])


def draw_neighbours(client: int, roster: Sequence[int], k: int, entropy: Entropy) -> list[int]:
    """Those with the k smallest of the 16-byte keys drawn for the others in ascending order, in one draw."""
    others = sorted(set(roster) - {client})
    if k == len(others):
        return others
    drawn = entropy(16 * len(others))
    keys = sorted((drawn[16 * i : 16 * i + 16], other) for i, other in enumerate(others))
    return sorted(other for _, other in keys[:k])


# Integer coding


def f32(number: float) -> float:
    """Round to the nearest float32; of a sum or product of two float32, what float32 arithmetic gives."""
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


@dataclass(frozen=True)
class Code:
    clip: float
    bits: int
    max_weight: int
    rounding: str
    rotate: bool
    clients: int
    metrics: Sequence[str]
    size: int
    context: bytes

    @property
    def largest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    @property
    def modulus_bits(self) -> int:
        return 1 + (self.clients * self.largest).bit_length()

    @property
    def digits(self) -> int:
        return math.ceil(self.max_weight.bit_length() / (self.bits - 1))

    @property
    def block(self) -> int:
        return min(4096, 1 << (self.size - 1).bit_length()) if self.rotate else 1

    @property
    def padded(self) -> int:
        return math.ceil(self.size / self.block) * self.block

    @property
    def lanes(self) -> int:
        return self.digits + 1 + len(self.metrics) + self.padded

    def signs(self) -> list[int]:
        digest = hashlib.shake_256(b"privfr rotation" + self.context).digest((self.padded + 7) // 8)
        return [1 - 2 * (digest[i // 8] >> (i % 8) & 1) for i in range(self.padded)]

    def hadamard(self, vector: list[float]) -> list[float]:
        """Block by block, in float32: additions of pairs at distance 1, 2, 4, ..., then the scaling."""
        half = 1
        vector = list(vector)
        while half < self.block:
            for i in range(len(vector)):
                if i % (2 * half) < half:
                    low, high = vector[i], vector[i + half]
                    vector[i], vector[i + half] = f32(low + high), f32(low - high)
            half *= 2
        scale = f32(1 / math.sqrt(self.block))
        return [f32(x * scale) for x in vector]

    def encode(self, update: Mapping[str, Any], entropy: Entropy) -> list[int]:
        weight = min(int(update["weight"]), self.max_weight)
        steps = weight / self.max_weight * self.largest
        vector = [f32(x) for x in update["vector"]] + [0.0] * (self.padded - self.size)
        if self.rotate:
            vector = self.hadamard([x * sign for x, sign in zip(vector, self.signs(), strict=True)])
        metrics = [update["metrics"][name] * (steps / 128.0) for name in self.metrics]
        scaled = metrics + [x * (steps / self.clip) for x in vector]
        if self.rounding == "stochastic":
            noise = self._noise(entropy(32))
            rounded = [math.floor(x + u) for x, u in zip(scaled, noise, strict=True)]
        else:
            rounded = [round(x) for x in scaled]  # halves to even
        clipped = [max(-self.largest, min(self.largest, x)) for x in rounded]
        saturated = int(any(abs(x) > self.largest + 0.5 for x in scaled))
        base = 2 ** (self.bits - 1)
        digits = [weight // base**i % base for i in range(self.digits)]
        return [x % 2**self.modulus_bits for x in (*digits, saturated, *clipped)]

    def _noise(self, seed: bytes) -> list[float]:
        """Block 0 for the metrics, then one for every 65,536 coordinates."""
        assert self.padded <= 65536
        counts_ = (len(self.metrics), self.padded)
        blocks = [
            hashlib.shake_256(b"privfr rounding" + seed + i.to_bytes(8, "little")).digest(4 * count)
            for i, count in enumerate(counts_)
        ]
        return [word / 2**32 for block in blocks for word in _words(block)]

    def decode(self, total: Sequence[int], count: int) -> dict[str, Any]:
        half = 2 ** (self.modulus_bits - 1)
        lanes = [(x + half) % (2 * half) - half for x in total]
        head = self.digits + 1 + len(self.metrics)
        weight = sum(x * 2 ** ((self.bits - 1) * i) for i, x in enumerate(lanes[: self.digits]))
        scale = self.max_weight / (self.largest * weight)
        metrics = zip(self.metrics, lanes[self.digits + 1 : head], strict=True)
        vector = [f32(x * (scale * self.clip)) for x in lanes[head:]]
        if self.rotate:
            vector = [x * sign for x, sign in zip(self.hadamard(vector), self.signs(), strict=True)]
        return {
            "weight": weight,
            "count": count,
            "saturated": lanes[self.digits],
            "metrics": {name: x * scale * 128.0 for name, x in metrics},
            "vector": struct.pack(f"<{self.size}f", *vector[: self.size]),
        }


def pack(lanes: Sequence[int], bits: int) -> bytes:
    """The lanes as one number in base 2^bits, lane 0 lowest, written little-endian."""
    number = sum((lane & (1 << bits) - 1) << (bits * i) for i, lane in enumerate(lanes))
    return number.to_bytes((len(lanes) * bits + 7) // 8, "little")


# What is signed


def advert_bytes(context: bytes, client: int, box_public: bytes, mask_public: bytes) -> bytes:
    return b"privfr advertise" + context + be8(client) + box_public + mask_public


def survivor_bytes(context: bytes, survivors: Iterable[int]) -> bytes:
    return b"privfr survivors" + context + b"".join(be8(client) for client in survivors)


# The round

ACTIVE = ("advertise", "share", "mask", "consent", "reveal")
PASSIVE = ("advertise", "share", "mask", "reveal")


@dataclass
class Client:
    """All that one client draws, sends and knows, as the phases go by."""

    id: int
    identity: bytes
    update: Mapping[str, Any]
    draws: Draws
    lanes: list[int] = field(default_factory=list)
    box_secret: bytes = b""
    mask_secret: bytes = b""
    seed: bytes = b""
    neighbours: list[int] = field(default_factory=list)
    advert: list[bytes] = field(default_factory=list)
    seed_shares: dict[int, bytes] = field(default_factory=dict)
    key_shares: dict[int, bytes] = field(default_factory=dict)
    key_boxes: dict[int, bytes] = field(default_factory=dict)
    seed_boxes: dict[int, bytes] = field(default_factory=dict)
    consent: bytes = b""


@dataclass
class Round:
    """One whole round, worked out with everybody's secrets in one place.

    spec: the fields of a RoundSpec in their order, with its parameters still as a list.  lost: client -> the
    phase in which its answer does not arrive; nothing is asked of it afterwards.
    """

    spec: list[Any]
    parties: dict[int, Client]
    lost: Mapping[int, str]
    frames: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        coding, (self.k, self.t), (size, self.quorum) = self.spec[10]
        self.wire_spec = [*self.spec[:10], msgpack(self.spec[10])]
        self.context = context_of(self.wire_spec)
        self.members = members(self.spec[3], self.context, size)
        clients, metrics, size = len(self.spec[3]), self.spec[5], self.spec[6]
        *coding, noise = coding
        assert noise is None
        settings = dict(zip(("clip", "bits", "max_weight", "rounding", "rotate"), coding, strict=True))
        self.code = Code(**settings, clients=clients, metrics=metrics, size=size, context=self.context)

    def play(self) -> None:
        """Give `frames`, `survivors`, `sealed` and `aggregate`."""
        self._advertise()
        self._share()
        self._mask()
        if self.spec[2] == "masking":
            self._consent()
        self._reveal()

    def _turn(self, phase: str, down: Mapping[int, bytes], up: Mapping[int, bytes]) -> list[int]:
        """Note the phase's frames; gives those whose answers arrive."""
        there = [u for u in sorted(down) if self.lost.get(u) != phase]
        self.frames.append({
            "phase": phase,
            "frames": [
                {"client": u, "down": down[u], "up": up[u], "arrives": u in there} for u in sorted(down)
            ],
        })  # fmt: skip
        assert len(there) >= self.spec[4]
        return there

    def _advertise(self) -> None:
        for u, party in self.parties.items():
            party.lanes = self.code.encode(party.update, party.draws)
            party.box_secret = party.draws(32)
            party.mask_secret = draw_secret(party.draws)
            party.seed = draw_secret(party.draws)
            party.neighbours = draw_neighbours(u, self.spec[3], self.k, party.draws)
            keys = [x25519_public(party.box_secret), x25519_public(party.mask_secret)]
            party.advert = [*keys, ed25519(party.identity, advert_bytes(self.context, u, *keys))]
        begin = msgpack(["begin", self.wire_spec, b""])
        up = {u: msgpack(["masking.advertise", p.advert, p.neighbours]) for u, p in self.parties.items()}
        self.advertised = self._turn("advertise", dict.fromkeys(self.parties, begin), up)

    def _share(self) -> None:
        down, up = {}, {}
        for u in self.advertised:
            party = self.parties[u]
            holders = [v for v in party.neighbours if v in self.advertised]
            party.key_shares = split(party.mask_secret, self.t, holders, party.draws)
            party.key_boxes = self._boxes(u, KEY_BOX, party.key_shares)
            down[u] = self.keybook(holders)
            up[u] = msgpack(["masking.shares", self.entrusted(u, party.key_boxes, party.key_shares)])
        self.shared = self._turn("share", down, up)

    def _boxes(self, u: int, what: bytes, shares: Mapping[int, bytes]) -> dict[int, bytes]:
        """holder -> box of its share"""
        party, boxes = self.parties[u], {}
        for v, share in shares.items():
            key = box_key(what, party.box_secret, self.parties[v].advert[0], self.context, u, v)
            boxes[v] = secretbox(key, party.draws(24), share)
        return boxes

    def entrusted(self, u: int, boxes: Mapping[int, bytes], shares: Mapping[int, bytes]) -> list[list[Any]]:
        return [[v, box, share_digest(shares[v], self.context, u, v)] for v, box in boxes.items()]

    def keybook(self, holders: Iterable[int]) -> bytes:
        return msgpack(["masking.keybook", [[v, self.parties[v].advert] for v in holders]])

    def _mask(self) -> None:
        down, up = {}, {}
        self.masked: dict[int, list[int]] = {}
        for u in self.shared:
            party = self.parties[u]
            neighbours = [v for v in party.neighbours if v in self.shared]
            owners = [v for v in self.shared if u in self.parties[v].key_boxes]
            boxes = [[v, self.parties[v].advert, self.parties[v].key_boxes[u]] for v in owners]
            lanes = [
                x + m
                for x, m in zip(
                    party.lanes, self._mask_of(self_key(party.seed, self.context, u)), strict=True
                )
            ]
            for v in self.partners(u):
                key = pair_key(party.mask_secret, self.parties[v].advert[1], self.context, u, v)
                sign = 1 if u < v else -1
                lanes = [x + sign * m for x, m in zip(lanes, self._mask_of(key), strict=True)]
            self.masked[u] = lanes
            party.seed_shares = split(party.seed, self.t, neighbours, party.draws)
            party.seed_boxes = self._boxes(u, SEED_BOX, party.seed_shares)
            down[u] = msgpack(["masking.sharebook", neighbours, boxes])
            up[u] = self.masked_frame(u, self.entrusted(u, party.seed_boxes, party.seed_shares))
        self.survivors = self._turn("mask", down, up)

    def masked_frame(self, u: int, entrusted: list[list[Any]]) -> bytes:
        packed = pack(self.masked[u], self.code.modulus_bits)
        return msgpack(["masking.masked", self.context, entrusted, packed])

    def partners(self, u: int) -> list[int]:
        """Those u chose and those who chose u, of those who have shared."""
        return [
            v for v in self.shared
            if v != u and (v in self.parties[u].neighbours or u in self.parties[v].neighbours)
        ]  # fmt: skip

    def _mask_of(self, key: bytes) -> list[int]:
        return mask_lanes(key, self.code.lanes)

    def _consent(self) -> None:
        for u in self.survivors:
            party = self.parties[u]
            party.consent = ed25519(party.identity, survivor_bytes(self.context, self.survivors))
        down = {u: self.survivor_frame(self.survivors, self.boxes_for(u)) for u in self.survivors}
        up = {u: msgpack(["masking.consent", self.parties[u].consent]) for u in self.survivors}
        self.consented = self._turn("consent", down, up)

    def boxes_for(self, u: int) -> list[list[Any]]:
        """The boxes with which the survivors entrust a share of their seed to u."""
        boxes = {v: self.parties[v].seed_boxes for v in self.survivors}
        return [[v, boxes[v][u]] for v in self.survivors if u in boxes[v]]

    def survivor_frame(self, survivors: list[int], boxes: list[list[Any]]) -> bytes:
        return msgpack(["masking.survivors", survivors, boxes])

    def _reveal(self) -> None:
        down, up = {}, {}
        self.revealed: dict[int, tuple[dict[int, bytes], dict[int, bytes]]] = {}
        active = self.spec[2] == "masking"
        for u in self.consented if active else self.survivors:
            dropped = [v for v in self.shared if v not in self.survivors]
            seeds = {v: self.parties[v].seed_shares for v in self.survivors}
            keys = {v: self.parties[v].key_shares for v in dropped}
            self.revealed[u] = (
                {v: shares[u] for v, shares in seeds.items() if u in shares},
                {v: shares[u] for v, shares in keys.items() if u in shares},
            )
            down[u] = (
                self.consents_frame() if active else self.survivor_frame(self.survivors, self.boxes_for(u))
            )
            up[u] = self.reveal_frame(*self.revealed[u])
        self._unmask(self._turn("reveal", down, up))

    def consents_frame(self) -> bytes:
        """The signatures of as many members as make a quorum, those with the lowest ids; the same for all."""
        signers = [u for u in self.consented if u in self.members][: self.quorum]
        assert len(signers) == self.quorum
        return msgpack(["masking.consents", [[v, self.parties[v].consent] for v in signers]])

    def reveal_frame(self, seeds: Mapping[int, bytes], keys: Mapping[int, bytes]) -> bytes:
        return msgpack(["masking.reveal", list(seeds.items()), list(keys.items())])

    def _unmask(self, there: list[int]) -> None:
        total = [sum(lanes) for lanes in zip(*(self.masked[u] for u in self.survivors), strict=True)]
        for u in self.survivors:
            seed = self._opened(u, 0, there)
            total = [
                x - m for x, m in zip(total, self._mask_of(self_key(seed, self.context, u)), strict=True)
            ]
        for u in sorted(set(self.shared) - set(self.survivors)):
            secret = self._opened(u, 1, there)
            for v in set(self.partners(u)) & set(self.survivors):
                key = pair_key(secret, self.parties[v].advert[1], self.context, u, v)
                sign = 1 if v < u else -1  # how v, who survived, added it
                total = [x - sign * m for x, m in zip(total, self._mask_of(key), strict=True)]
        total = [x % 2**self.code.modulus_bits for x in total]
        plain = zip(*(self.parties[u].lanes for u in self.survivors), strict=True)
        assert total == [sum(lanes) % 2**self.code.modulus_bits for lanes in plain]
        self.sealed = msgpack(["sealed", self.survivors, pack(total, self.code.modulus_bits)])
        self.aggregate = self.code.decode(total, len(self.survivors))

    def _opened(self, owner: int, which: int, there: list[int]) -> bytes:
        """The owner's secret, from the shares of the t lowest holders who revealed."""
        shares = {u: self.revealed[u][which][owner] for u in there if owner in self.revealed[u][which]}
        assert len(shares) >= self.t
        return combine({u: shares[u] for u in sorted(shares)[: self.t]})
