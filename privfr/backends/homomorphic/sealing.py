"""Sealing to fellow clients: one secret in a box for each, and a bulk under that secret.

Boxes are PyNaCl's (X25519, XSalsa20-Poly1305) between the pinned keys of sender and recipient, so that they
also tell who sealed them; each names its purpose, round, sender and recipient, so that none fits elsewhere.
"""

from __future__ import annotations

import hashlib

import msgspec
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey
from nacl.secret import SecretBox

from privfr.errors import BadFrame
from privfr.protocol import ClientId, Entropy

__all__ = ["BOX_BYTES", "Keyring", "open_from", "seal_to", "sealed_bytes", "subkey"]

_SECRET = 32
_OVERHEAD = 24 + 16  # nonce, Poly1305 tag
BOX_BYTES = _OVERHEAD + 16 + 32 + 8 + 8 + _SECRET  # purpose, context, sender, recipient, secret


class Keyring(msgspec.Struct, frozen=True):
    """What a client is given before the run. secret: its own X25519 key, 32 bytes.

    roster: each client's public key, pinned.
    """

    client: ClientId
    secret: bytes
    roster: dict[ClientId, bytes]

    def __repr__(self) -> str:
        """Show nothing of the secret."""
        return f"<Keyring of client {self.client} for a roster of {len(self.roster)}>"


def sealed_bytes(length: int) -> int:
    """Bytes of a sealed bulk of so many bytes."""
    return length + _OVERHEAD


def seal_to(
    keyring: Keyring,
    clients: tuple[ClientId, ...],
    purpose: bytes,
    context: bytes,
    bulk: bytes,
    entropy: Entropy,
) -> tuple[tuple[bytes, ...], bytes]:
    """Seal `bulk` to several clients: a box for each, in their order, and the sealed bulk.

    purpose: 16 bytes.  context: 32 bytes.  Raises `BadFrame` for a client that is not in the roster.
    """
    if not set(clients) <= set(keyring.roster):
        raise BadFrame("clients that are not of the pinned roster")
    secret, boxes = entropy(_SECRET), []
    for client in clients:
        name = _name(purpose, context, keyring.client, client)
        boxes.append(bytes(_box(keyring, client).encrypt(name + secret, entropy(Box.NONCE_SIZE))))
    wrapped = SecretBox(subkey(secret, b"bulk")).encrypt(bulk, entropy(SecretBox.NONCE_SIZE))
    return tuple(boxes), bytes(wrapped)


def open_from(
    keyring: Keyring, sender: ClientId, purpose: bytes, context: bytes, box: bytes, bulk: bytes | memoryview
) -> tuple[bytes, bytes]:
    """Open what `sender` sealed to this client: the secret, 32 bytes, and the bulk. Raises `BadFrame`."""
    if sender not in keyring.roster:
        raise BadFrame("a box from somebody who is not in the roster")
    name = _name(purpose, context, sender, keyring.client)
    try:
        found = _box(keyring, sender).decrypt(box)
        if found[:-_SECRET] != name:
            raise BadFrame("a box made for another purpose, round or client")
        secret = found[-_SECRET:]
        return secret, SecretBox(subkey(secret, b"bulk")).decrypt(bytes(bulk))
    except (CryptoError, ValueError):
        raise BadFrame("a box that does not open") from None


def subkey(secret: bytes, use: bytes) -> bytes:
    """Derive the key of one use: 32 bytes. BLAKE2b keyed with the secret, RFC 7693."""
    return hashlib.blake2b(use, key=secret, digest_size=32, person=b"privfr subkey").digest()


def _box(keyring: Keyring, other: ClientId) -> Box:
    return Box(PrivateKey(keyring.secret), PublicKey(keyring.roster[other]))


def _name(purpose: bytes, context: bytes, sender: ClientId, recipient: ClientId) -> bytes:
    return purpose + context + sender.to_bytes(8, "big") + recipient.to_bytes(8, "big")
