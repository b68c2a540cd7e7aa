"""What backends with identities of their own share: Ed25519 signatures, and lists of clients."""

from __future__ import annotations

from collections.abc import Sequence, Set

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from privfr.errors import BadFrame
from privfr.protocol import ClientId

__all__ = ["ascending", "sign", "verify"]


def ascending(clients: Sequence[ClientId], within: Set[ClientId]) -> bool:
    """Whether clients are named in ascending order, each once, and only those within."""
    named = set(clients)
    return list(clients) == sorted(named) and named <= within


def sign(identity: bytes, message: bytes) -> bytes:
    """Sign with an Ed25519 seed, 32 bytes; gives the 64 bytes of the signature."""
    return SigningKey(identity).sign(message).signature


def verify(key: bytes, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature. Raises `BadFrame`."""
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, ValueError):
        raise BadFrame("a signature that does not fit its signer, round or content") from None
