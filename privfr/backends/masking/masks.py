"""Masks: how a key is agreed on and derived, and how its keystream is added to a vector.

Each mask is the keystream of ChaCha20 (RFC 8439; counter from 0, nonce `NONCE`) under a key of its own, read
as little-endian uint32 lanes: the pseudorandom generator that Bonawitz et al. 2017 (CCS, eprint 2017/281)
ask for. With this nonce it is the stream that libsodium's `randombytes_buf_deterministic` gives for the key
as seed, so a second implementation stands beside ours. It is computed by OpenSSL, in less than half of
libsodium's time.

Python cannot erase memory: keys and keystream may stay in the process's memory for a while after use.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import nacl.exceptions
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from nacl.bindings import crypto_scalarmult
from numpy.typing import NDArray

from privfr.errors import BadFrame, LocalProtocolError
from privfr.protocol import ClientId

__all__ = ["NONCE", "add_masks", "agree", "box_keys", "derive", "pair_key", "self_key"]

# The nonce of libsodium's `randombytes_buf_deterministic`. It may be the same for all masks, since every key
# is derived for one purpose in one round (`derive`).
NONCE = b"LibsodiumDRG"

KEY = 32  # bytes of every key, context and X25519 point here
LANES = 16  # uint32 lanes in one block of ChaCha20, the unit of its counter

# Lanes handled at a time, 64 KiB of them: zeros, keystream and sum together fit into 256 KiB of L2 cache.
# Measured for 100 keys on 1 MiB of L2: 16 KiB takes 15 % longer, 256 KiB and more are 3 % faster.
BLOCK = 1 << 14

# Ciphers open at once, of each sign: a server takes thousands of masks off, and each takes half a kilobyte.
OPEN = 64

_ZEROS = memoryview(bytes(4 * BLOCK))


def derive(secret: bytes, purpose: bytes, context: bytes, *parts: int | bytes) -> bytes:
    """Derive a 32-byte key: BLAKE2b-256 keyed with `secret` and personalised with `purpose` (RFC 7693).

    secret: 32 to 64 bytes.  purpose: 1 to 16 bytes.  context: the round's, 32 bytes.  parts: what else the
    key is bound to, hashed after the context: an int as 8 bytes, big-endian, bytes as they are. So a purpose
    must always take parts of the same lengths.  Raises `LocalProtocolError` for anything else.
    """
    if not (KEY <= len(secret) <= 64 and 1 <= len(purpose) <= 16 and len(context) == KEY):
        raise LocalProtocolError("a secret takes 32 to 64 bytes, a purpose 1 to 16, a context 32")
    data = context
    for part in parts:
        if isinstance(part, int):
            if not 0 <= part < 1 << 64:
                raise LocalProtocolError("a number in a derivation has 64 bits and no sign")
            part = part.to_bytes(8, "big")
        data += part
    return hashlib.blake2b(data, digest_size=KEY, key=secret, person=purpose).digest()


def agree(private: bytes, public: bytes) -> bytes:
    """X25519 (RFC 7748): own private key, the peer's public key -> shared secret, 32 bytes each.

    Raises `BadFrame` for a public key of another length, or of small order, with which the secret is zero
    whatever the private key (RFC 7748, section 6.1); `LocalProtocolError` for an unusable private key.
    """
    # PyNaCl hands the bytes to C as they are: a short one would be read past its end.
    if len(private) != KEY:
        raise LocalProtocolError("an X25519 private key has 32 bytes")
    if len(public) != KEY:
        raise BadFrame("an X25519 public key has 32 bytes")
    try:
        shared = crypto_scalarmult(private, public)
    except nacl.exceptions.RuntimeError:  # how PyNaCl reports that libsodium refused a zero result
        shared = bytes(KEY)
    if hmac.compare_digest(shared, bytes(KEY)):
        raise BadFrame("an X25519 public key of small order")
    return shared


def pair_key(private: bytes, public: bytes, context: bytes, one: ClientId, other: ClientId) -> bytes:
    """Key of the mask that two clients share in one round: the same from either side, in either order.

    Raises as `agree` and `derive`.
    """
    return derive(agree(private, public), b"privfr mask", context, min(one, other), max(one, other))


def self_key(seed: bytes, context: bytes, client: ClientId) -> bytes:
    """Key of a client's own mask, the second one in Bonawitz et al.'s double masking. seed: 32 bytes."""
    return derive(seed, b"privfr self", context, client)


def box_keys(shared: bytes, context: bytes, sender: ClientId, recipient: ClientId) -> tuple[bytes, bytes]:
    """Keys of the boxes that `sender` has for `recipient`: of the key share and of the seed share.

    shared: what `agree` gives for their box keys.  Two keys, so that neither box can be passed off as the
    other; the way back has others.
    """
    return (
        derive(shared, b"privfr key box", context, sender, recipient),
        derive(shared, b"privfr seed box", context, sender, recipient),
    )


def add_masks(
    total: NDArray[np.uint32], plus: Sequence[bytes], minus: Sequence[bytes], threads: int = 1
) -> None:
    """Add the keystreams of the keys `plus` to `total` and subtract those of `minus`, mod 2^32, in place.

    total: uint32 [n], of any length. For a sum mod 2^k, k < 32, take the low k bits of each lane afterwards.
    threads: each takes a part of `total`; the result is the same.
    Raises `LocalProtocolError`, before anything is added, for another kind of array or length of key.
    """
    if total.dtype != np.dtype("<u4") or total.ndim != 1 or not total.flags.writeable:
        raise LocalProtocolError("masks are added to a writeable vector of uint32")
    if any(len(key) != KEY for key in (*plus, *minus)):
        raise LocalProtocolError("a mask's key has 32 bytes")
    if threads < 1:
        raise LocalProtocolError("at least one thread is needed")
    starts = _starts(total.size, threads)
    ranges = list(pairwise([*starts, total.size]))
    if len(ranges) < 2:
        return _add_range(total, 0, plus, minus)
    with ThreadPoolExecutor(len(ranges)) as pool:
        running = [pool.submit(_add_range, total[start:end], start, plus, minus) for start, end in ranges]
    for future in running:
        future.result()  # raises what the thread raised


def _starts(size: int, parts: int) -> list[int]:
    """Where at most `parts` ranges of about equal length begin, each at a whole block of the cipher."""
    step = LANES * max(1, -(-size // (parts * LANES)))
    return list(range(0, size, step))


def _add_range(total: NDArray[np.uint32], start: int, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """`add_masks`, with the keystreams from lane `start` on, a multiple of 16."""
    for at in range(0, max(len(plus), len(minus)), OPEN):
        _add_some(total, start, plus[at : at + OPEN], minus[at : at + OPEN])


def _add_some(total: NDArray[np.uint32], start: int, plus: Sequence[bytes], minus: Sequence[bytes]) -> None:
    """Add some keystreams: blocks outside, keys inside, so that a block of the sum stays in the cache.

    All their ciphers are open at once. Measured, keys outside takes 5 to 20 % longer.
    """
    added = [_keystream(key, start // LANES) for key in plus]
    subtracted = [_keystream(key, start // LANES) for key in minus]
    lanes = np.empty(BLOCK, np.dtype("<u4"))
    stream = lanes.data.cast("B")
    for at in range(0, total.size, BLOCK):
        block = total[at : at + BLOCK]
        zeros, mask = _ZEROS[: 4 * block.size], lanes[: block.size]
        for cipher in added:
            cipher.update_into(zeros, stream)
            np.add(block, mask, out=block)
        for cipher in subtracted:
            cipher.update_into(zeros, stream)
            np.subtract(block, mask, out=block)


def _keystream(key: bytes, counter: int, nonce: bytes = NONCE) -> CipherContext:
    """ChaCha20 opened at one of its blocks. OpenSSL wants the counter, little-endian, before the nonce."""
    return Cipher(algorithms.ChaCha20(key, counter.to_bytes(4, "little") + nonce), mode=None).encryptor()
