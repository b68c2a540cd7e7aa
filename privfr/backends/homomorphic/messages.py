"""What travels in a homomorphic round, what is signed and what is sealed. Spec: docs/spec/ckks.md."""

from __future__ import annotations

import hashlib

from privfr.protocol import ClientId
from privfr.wire import Message, register

__all__ = [
    "Bundle",
    "Chosen",
    "Cipher",
    "Consent",
    "Offer",
    "OpenSum",
    "PublicKey",
    "Ready",
    "Survivors",
    "key_bytes",
    "mac_context",
    "survivor_bytes",
]


# Key holder: the clients


@register
class Offer(Message, frozen=True, tag="homomorphic.offer"):
    """Client to server: a fresh key for the round, if this client is one of its makers.

    boxes: the key's key, sealed to each client of the roster, in its order.  bulk: the key, sealed to that;
    both empty from whoever makes none.
    """

    context: bytes
    boxes: tuple[bytes, ...]
    bulk: memoryview


@register
class Chosen(Message, frozen=True, tag="homomorphic.chosen"):
    """Server to client: whose key it is, the client's own box of the offer, and the sealed key."""

    maker: ClientId
    box: bytes
    bulk: memoryview


@register
class Bundle(Message, frozen=True, tag="homomorphic.bundle"):
    """The content of a round's `Sealed`: the sum's ciphertexts, and the offer by which clients open them.

    tag: sum of the clients' tags.
    """

    maker: ClientId
    boxes: tuple[bytes, ...]
    key: bytes
    tag: tuple[int, ...]
    bulk: memoryview


# Key holder: an authority


@register
class Ready(Message, frozen=True, tag="homomorphic.ready"):
    """Client to server: trained, and waiting for the round's public key."""

    context: bytes


@register
class PublicKey(Message, frozen=True, tag="homomorphic.publickey"):
    """Authority to server to client: the round's public key, signed."""

    signature: bytes
    bulk: memoryview


@register
class Survivors(Message, frozen=True, tag="homomorphic.survivors"):
    """Server to client: whose ciphertexts are in the sum, ascending."""

    clients: tuple[ClientId, ...]


@register
class Consent(Message, frozen=True, tag="homomorphic.consent"):
    """Client to server: its signature of the survivors it was shown."""

    signature: bytes


@register
class OpenSum(Message, frozen=True, tag="homomorphic.opensum"):
    """Server to authority: the sum's ciphertexts, whose they are, and who has signed that; both ascending.

    tag: sum of the clients' tags.
    """

    survivors: tuple[ClientId, ...]
    consents: tuple[tuple[ClientId, bytes], ...]
    tag: tuple[int, ...]
    bulk: memoryview


# Both


@register
class Cipher(Message, frozen=True, tag="homomorphic.cipher"):
    """Client to server: its summand's ciphertexts, one after another, for the round that `context` names.

    tag: proof that they are this client's, four numbers; see `mac`.
    """

    context: bytes
    tag: tuple[int, ...]
    bulk: memoryview


# What is signed: a label of 16 bytes, the round's context of 32, then fields of fixed width.


def survivor_bytes(context: bytes, survivors: tuple[ClientId, ...]) -> bytes:
    """Return what a client signs when it consents to a set of survivors."""
    return b"privfr he agreed" + context + b"".join(client.to_bytes(8, "big") for client in survivors)


def mac_context(context: bytes, key: bytes | memoryview) -> bytes:
    """Return what tags are bound to under an authority, 32 bytes.

    The secrets of its clients outlast a round; its key does not, so no pad is ever used twice.
    """
    return hashlib.blake2b(key_bytes(context, key), digest_size=32, person=b"privfr he tags").digest()


def key_bytes(context: bytes, key: bytes | memoryview) -> bytes:
    """Return what the authority signs when it gives a round its key."""
    return b"privfr he pubkey" + context + hashlib.blake2b(key, digest_size=32).digest()
