"""Which parameters would be best? The settings that `benchmarks.ckks` tries, the shipped ones among them.

Each goes through our own `Lattice`, `Packing` and `Key`. Bytes are exact for the whole model; times and
errors are of two ciphertexts from each client, the times scaled to the model. A setting counts as exact only
if the chance that any number of one sum comes out wrong is at most 2^-64: that the sum tried here came out
right says little.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import process_time as clock
from typing import Literal

import numpy as np
import tenseal.sealapi as seal

from privfr.backends.homomorphic.lattice import Key, Lattice, choose, pack_words
from privfr.backends.homomorphic.mac import CHECKS, Mac, Tag, add_tags
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.homomorphic.round import add_ciphertexts, encrypted, opened
from privfr.coding import Coding, FixedPoint
from privfr.errors import BadFrame, InputError

__all__ = ["Row", "refused", "settings", "try_all"]

Lanes = np.ndarray
Scheme = Literal["bfv", "ckks"]

CONTEXT = b"c" * 32
SAMPLE = 2  # ciphertexts tried of each client
SURE = -64.0  # log2 of the chance that one sum may come out wrong

# Scheme, symmetric, degree, bits of the primes, values in a slot: beside the shipped ones.
HAND_MADE: tuple[tuple[Scheme, bool, int, tuple[int, int], int], ...] = (
    ("bfv", True, 4096, (50, 20), 2),
    ("bfv", True, 4096, (52, 20), 2),
    ("bfv", True, 4096, (53, 20), 2),
    ("bfv", True, 4096, (55, 20), 2),
    ("bfv", True, 4096, (60, 20), 2),
    ("bfv", True, 4096, (34, 20), 1),
    ("bfv", True, 2048, (34, 20), 1),
    ("bfv", False, 4096, (55, 20), 2),
    ("bfv", False, 4096, (60, 49), 2),
    ("bfv", True, 8192, (55, 20), 2),
    ("bfv", True, 8192, (60, 60), 2),
    ("bfv", True, 16384, (60, 60), 2),
    ("ckks", True, 4096, (55, 20), 2),
    ("ckks", True, 4096, (58, 20), 2),
    ("ckks", True, 4096, (60, 20), 2),
    ("ckks", True, 4096, (37, 20), 1),
    ("ckks", True, 4096, (60, 49), 1),
    ("ckks", False, 4096, (39, 20), 1),
    ("ckks", False, 4096, (60, 20), 2),
    ("ckks", True, 8192, (60, 49), 2),
    ("ckks", True, 8192, (60, 60), 1),
    ("ckks", True, 16384, (60, 60), 2),
)


@dataclass(frozen=True)
class Row:
    """One setting. shipped: the backend that uses it, or "".  bytes, encrypt_ms, decrypt_ms: for the model.

    error: of the sum tried, in whole numbers; None if it did not open.  wrong: log2 of the chance that one
    sum of the whole model comes out wrong, -inf for never.
    """

    lattice: Lattice
    shipped: str
    bytes: int
    encrypt_ms: float
    decrypt_ms: float | None
    error: int | None
    wrong: float

    @property
    def exact(self) -> bool:
        """Whether it does what a backend must."""
        return self.error == 0 and self.wrong <= SURE

    @property
    def order(self) -> tuple[bool, int, float]:
        """Better ones are smaller: exact, then of fewer bytes, then faster."""
        return (not self.exact, self.bytes, self.encrypt_ms)


def settings(clients: int, coding: Coding) -> dict[Lattice, str]:
    """List the shipped settings, with the backend's name, and the others, each with ""."""
    found: dict[Lattice, str] = {
        choose(scheme, symmetric, clients, coding): name for name, scheme, symmetric in _backends()
    }
    shipped_plain = {lattice.values: lattice.plain for lattice in found if lattice.scheme == "bfv"}
    lane_bits = next(iter(found)).lane_bits
    for scheme, symmetric, degree, primes, values in HAND_MADE:
        top = _top(clients, coding, values, lane_bits)
        if scheme == "ckks":  # the largest scale at which the sum still fits
            plain = 1 << math.floor(primes[0] - math.log2(2 * (top + 1) * (1 + 2**-10)))
        elif degree == 4096 and values in shipped_plain:
            plain = shipped_plain[values]
        else:
            bits = max(21, (2 * top + 1).bit_length())  # the spare prime has 20, and must be another
            plain = int(seal.PlainModulus.Batching(degree, bits).value())
        found.setdefault(Lattice(scheme, symmetric, degree, primes, plain, values, lane_bits), "")
    return found


def refused() -> list[str]:
    """Say why settings outside of the security table cannot be tried."""
    reasons = []
    for degree, primes in ((4096, (60, 60)), (2048, (55, 20))):
        try:
            Lattice("bfv", True, degree, primes, 65537, 1, 22)
        except InputError as error:
            reasons.append(str(error))
        else:
            raise AssertionError(f"{degree} {primes} is not 128 bits secure and was taken")
    return reasons


def try_all(size: int, clients: int, coding: Coding) -> list[Row]:
    """Measure every setting, best first."""
    rows = [_try(lattice, name, size, clients, coding) for lattice, name in settings(clients, coding).items()]
    return sorted(rows, key=lambda row: row.order)


def _backends() -> Iterator[tuple[str, Scheme, bool]]:
    for symmetric, suffix in ((True, ""), (False, "-authority")):
        yield f"bfv{suffix}", "bfv", symmetric
        yield f"ckks{suffix}", "ckks", symmetric


def _top(clients: int, coding: Coding, values: int, lane_bits: int) -> int:
    """Largest sum of slots."""
    return clients * ((1 << (coding.bits - 1)) - 1) * sum(1 << (lane_bits * i) for i in range(values))


def _wrong(lattice: Lattice, clients: int, numbers: int) -> float:
    """Bound the chance that one of so many coefficients or slots comes out wrong: its log2.

    The bounds are those that `privfr.backends.homomorphic.lattice` derives, for any degree, and with the
    symmetric BFV noise taken as sub-Gaussian where it is not small enough to be safe whatever it is.
    """
    fresh = 10.5 if lattice.symmetric else (lattice.degree + 1) / 4
    if lattice.scheme == "bfv":
        room = lattice.prime / (2 * lattice.plain) - (1 if lattice.symmetric else 2) * clients
        if lattice.symmetric and room >= 21 * clients:
            return -math.inf
        spread = math.sqrt(clients * fresh)
    else:
        room = (1 / 2 - 1 / 16) * lattice.plain
        spread = math.sqrt(clients * (0.25 + fresh) * lattice.degree / 2)
    return min(0.0, 1 + math.log2(numbers) - max(room / spread, 0) ** 2 / 2 * math.log2(math.e))


def _try(lattice: Lattice, name: str, size: int, clients: int, coding: Coding) -> Row:
    whole = Packing(lattice, FixedPoint(coding, clients, ("loss",), size, CONTEXT))
    sample = Packing(lattice, FixedPoint(coding, clients, (), SAMPLE * whole.capacity - 8, CONTEXT))
    scale = 1000 * whole.ciphertexts / sample.ciphertexts
    key, secret = Key.generate(lattice), bytes(32)
    mac = Mac(lattice, CONTEXT, secret, dict.fromkeys(range(clients), secret))
    total = np.zeros((sample.ciphertexts, lattice.words), np.uint64)
    tag: Tag = (0,) * CHECKS
    exact, seconds = np.zeros(sample.point.lanes, np.int64), []
    for client in range(clients):
        lanes = _lanes(client, sample.point)
        started = clock()
        own, bulk = encrypted(
            sample, key, mac, client, (lanes & (1 << lattice.lane_bits) - 1).astype(np.uint32)
        )
        seconds.append(clock() - started)
        add_ciphertexts(sample, total, bulk)
        tag, exact = add_tags(lattice, tag, own), exact + lanes
    packed = memoryview(b"".join(pack_words(row, lattice.primes[0]) for row in total))
    error, opening = _open(sample, lambda: opened(sample, key, mac, range(clients), tag, packed), exact)
    return Row(
        lattice,
        name,
        whole.packed_bytes,
        scale * statistics.median(seconds),
        None if opening is None else scale * opening,
        error,
        _wrong(lattice, clients, whole.ciphertexts * lattice.degree),
    )


def _lanes(client: int, point: FixedPoint) -> Lanes:
    """Whole numbers of a client, int64 [lanes]: some the largest there are, some the smallest."""
    largest = (1 << (point.coding.bits - 1)) - 1
    lanes = np.random.default_rng(client).integers(-largest, largest, point.lanes, endpoint=True)
    lanes[:500], lanes[500:1000] = largest, -largest
    return lanes


def _open(packing: Packing, opening: Callable[[], Lanes], exact: Lanes) -> tuple[int | None, float | None]:
    """Open a sum: its largest error, and the shortest of three times; None if it does not open."""
    seconds = []
    try:
        for _ in range(3):
            started = clock()
            lanes = opening()
            seconds.append(clock() - started)
    except BadFrame:
        return None, None
    bits = packing.lattice.lane_bits
    half = 1 << (bits - 1)
    found = ((lanes.astype(np.int64) + half) & ((1 << bits) - 1)) - half
    return int(np.abs(found - exact).max()), min(seconds)
