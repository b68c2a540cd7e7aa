"""What travels in a masking round, and the exact bytes that are signed. Spec: docs/spec/masking.md."""

from __future__ import annotations

import hashlib

import msgspec

from privfr.backends.masking.shamir import SHARE_BYTES
from privfr.protocol import ClientId
from privfr.wire import Message, register

__all__ = [
    "BOX_BYTES",
    "DIGEST_BYTES",
    "Advert",
    "Advertise",
    "Consent",
    "Consents",
    "Entrusted",
    "KeyBook",
    "Masked",
    "Reveal",
    "ShareBook",
    "Shares",
    "Survivors",
    "advert_bytes",
    "share_digest",
    "survivor_bytes",
]

DIGEST_BYTES = 16
BOX_BYTES = 24 + 16 + SHARE_BYTES  # nonce, Poly1305 tag, a share


class Advert(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A client's public keys of this round. box_key, mask_key: X25519, 32 bytes.  signature: Ed25519, 64."""

    box_key: bytes
    mask_key: bytes
    signature: bytes


class Entrusted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one holder is trusted with: a share in a box, and the digest by which the server will know it."""

    holder: ClientId
    box: bytes
    digest: bytes


@register
class Advertise(Message, frozen=True, tag="masking.advertise"):
    """Client to server: this round's keys, and the neighbours that the client drew, ascending."""

    advert: Advert
    neighbours: tuple[ClientId, ...]


@register
class KeyBook(Message, frozen=True, tag="masking.keybook"):
    """Server to client: the adverts of those of its neighbours that have advertised, ascending."""

    adverts: tuple[tuple[ClientId, Advert], ...]


@register
class Shares(Message, frozen=True, tag="masking.shares"):
    """Client to server: a share of its mask key for each neighbour with an advert, ascending by holder."""

    entrusted: tuple[Entrusted, ...]


@register
class ShareBook(Message, frozen=True, tag="masking.sharebook"):
    """Server to client: which neighbours have shared, and the boxes of those who chose it; both ascending."""

    neighbours: tuple[ClientId, ...]
    boxes: tuple[tuple[ClientId, Advert, bytes], ...]


@register
class Masked(Message, frozen=True, tag="masking.masked"):
    """Client to server: the masked summand, packed, for the round that `context` names.

    entrusted: a share of the self mask's seed for each neighbour that it is masked with, ascending by holder.
    """

    context: bytes
    entrusted: tuple[Entrusted, ...]
    bulk: memoryview


@register
class Survivors(Message, frozen=True, tag="masking.survivors"):
    """Server to client: whose summands are in the sum, and those ones' boxes for it; both ascending."""

    clients: tuple[ClientId, ...]
    boxes: tuple[tuple[ClientId, bytes], ...]


@register
class Consent(Message, frozen=True, tag="masking.consent"):
    """Client to server: its signature of the survivors it was shown."""

    signature: bytes


@register
class Consents(Message, frozen=True, tag="masking.consents"):
    """Server to client: signatures of the committee, ascending."""

    signatures: tuple[tuple[ClientId, bytes], ...]


@register
class Reveal(Message, frozen=True, tag="masking.reveal"):
    """Client to server: a seed share for each survivor, a key share for each who dropped out; never both."""

    seeds: tuple[tuple[ClientId, bytes], ...]
    keys: tuple[tuple[ClientId, bytes], ...]


# What is signed: a label of 16 bytes, the round's context of 32, then fields of fixed width.


def advert_bytes(context: bytes, client: ClientId, advert: Advert) -> bytes:
    """Return what a client signs when it advertises: nobody else's key, and no other round's, fits."""
    return b"privfr advertise" + context + client.to_bytes(8, "big") + advert.box_key + advert.mask_key


def survivor_bytes(context: bytes, survivors: tuple[ClientId, ...]) -> bytes:
    """Return what a client signs when it consents to a set of survivors."""
    ids = b"".join(client.to_bytes(8, "big") for client in survivors)
    return b"privfr survivors" + context + ids


def share_digest(share: bytes, context: bytes, owner: ClientId, holder: ClientId) -> bytes:
    """BLAKE2b-128 by which the server recognises a share it is shown later; a share is unguessable."""
    data = context + owner.to_bytes(8, "big") + holder.to_bytes(8, "big") + share
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES, person=b"privfr share").digest()
