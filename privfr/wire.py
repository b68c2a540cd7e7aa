"""Canonical frames: what travels between a client and the server.

A frame is the msgpack encoding of one registered, frozen message. There is exactly one encoding of a
message: `decode` refuses every frame that does not encode back to itself (C2SP's rule, without which a
signature or a digest over a frame says little about its content).

Messages hold int, bytes, str and tuples of them. A message that carries a vector or a ciphertext keeps
it in a last field called `bulk`, which decoding leaves where it is: a read-only view of the frame,
so that a server adding up megabytes never copies them.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import msgspec

from privfr.errors import BadFrame, TooLarge, WrongPhase

__all__ = ["Frame", "Message", "decode", "encode", "frame_of", "kind", "register", "room_for"]

Frame = bytes | bytearray | memoryview

_encoder = msgspec.msgpack.Encoder()
_registry: dict[str, type[Message]] = {}


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of everything that travels; on the wire an array [tag, field, field, ...]."""

    def __repr__(self) -> str:
        """Name the message and its size only: a field may be a secret, and a log is for ever."""
        return f"<{type(self).__name__}, {len(encode(self))} bytes>"


M = TypeVar("M", bound=Message)


def register(message: type[M]) -> type[M]:
    """Make a message type known to `decode`: `@register class Ack(Message, frozen=True, tag="ack")`."""
    tag = message.__struct_config__.tag
    if not isinstance(tag, str) or not 0 < len(tag) < 32 or tag in _registry:
        raise TypeError(f"{message.__name__} needs a tag of its own, of 1 to 31 characters, not {tag!r}")
    _registry[tag] = message
    return message


def encode(message: Message) -> bytes:
    """Encode a message as its one frame."""
    return _encoder.encode(message)


_ROOM = 1024  # more than what stands before any bulk that is made in place


def room_for(length: int) -> memoryview:
    """Give room for a bulk of so many bytes, which `frame_of` makes a frame of without a copy."""
    return memoryview(bytearray(_ROOM + length))[_ROOM:]


def frame_of(message: Message) -> Frame:
    """Encode a message for the last time; if its bulk is from `room_for`, in place: the bulk is released."""
    bulk = getattr(message, "bulk", None)
    owner = bulk.obj if isinstance(bulk, memoryview) else None
    if not isinstance(owner, bytearray) or bulk is None or len(owner) != _ROOM + len(bulk):
        return encode(message)
    head = _head(message)
    bulk.release()  # a bytearray that somebody looks at cannot give up its front, which costs nothing
    owner[_ROOM - len(head) : _ROOM] = head
    del owner[: _ROOM - len(head)]
    return owner


def kind(frame: Frame) -> str:
    """Name the kind of message a frame claims to be, without decoding the rest. Raises `BadFrame`."""
    view = memoryview(frame)
    try:
        # [array header, 1 to 5 bytes][str header, 1 byte for up to 31 characters][tag]
        start = {0xDC: 3, 0xDD: 5}.get(view[0], 1)
        length = view[start] & 0x1F
        name = bytes(view[start + 1 : start + 1 + length]).decode("ascii")
    except (IndexError, UnicodeDecodeError):
        name = ""
    if name not in _registry:
        raise BadFrame("not a message of this protocol")
    return name


def decode(frame: Frame, expects: type[M], limit: int | None = None) -> M:
    """Decode the frame of one expected message.

    limit: most bytes the message may have.
    Raises `TooLarge`; `WrongPhase` for a message of another kind; `BadFrame` for anything else that is
    not the canonical encoding of an `expects`.
    """
    if limit is not None and len(frame) > limit:
        raise TooLarge(f"a frame of {len(frame)} bytes where at most {limit} can be")
    found = _registry[kind(frame)]
    if found is not expects:
        raise WrongPhase(f"got {found.__name__} where {expects.__name__} belongs")
    try:
        message: M = _decoder(expects).decode(frame)
        canonical = _is_encoding_of(frame, message)
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise BadFrame(f"not a well-formed {expects.__name__}: {error}") from None
    if not canonical:
        raise BadFrame(f"not the canonical encoding of a {expects.__name__}")
    return message


@cache
def _decoder(expects: type[M]) -> msgspec.msgpack.Decoder[M]:
    return msgspec.msgpack.Decoder(expects)


def _is_encoding_of(frame: Frame, message: Message) -> bool:
    """Whether `encode(message) == frame`, without encoding the bulk again.

    The bulk is a view of the frame's own bytes, so only what stands before it can differ: compare the
    encoding of the message with an empty bulk (which ends in the two bytes of an empty bin8), then the
    one minimal msgpack header that a bulk of this length has.
    """
    if message.__struct_fields__[-1:] != ("bulk",):
        return encode(message) == frame
    bulk: memoryview = message.bulk  # type: ignore[attr-defined]
    head = _head(message)
    return frame[: len(head)] == head and len(frame) == len(head) + len(bulk)


def _head(message: Message) -> bytes:
    """What stands before a message's bulk."""
    length = len(message.bulk)  # type: ignore[attr-defined]
    return encode(msgspec.structs.replace(message, bulk=b""))[:-2] + _bin_header(length)


def _bin_header(length: int) -> bytes:
    """Minimal msgpack header of a byte string (msgpack specification, "bin format family")."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    if length < 1 << 16:
        return b"\xc5" + length.to_bytes(2, "big")
    return b"\xc6" + length.to_bytes(4, "big")
