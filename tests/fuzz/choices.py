"""A fuzzer's bytes read as decisions, and what can be done to a frame by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from privfr.wire import Message, encode

T = TypeVar("T")

# Integers at the ends of what msgpack, a header or an array can say.
INTEGERS = (0, -1, 1, 127, 1 << 16, 1 << 28, (1 << 28) + 1, 1 << 31, 1 << 62, (1 << 64) - 1, -(1 << 63))

# Points of small order (RFC 7748, section 6.1), numbers beyond a prime, and no bytes at all.
BYTES = (b"", bytes(32), b"\x01" + bytes(31), b"\xff" * 32, b"\xff" * 64, b"short", bytes(1 << 12))

# As many clients; with 5000 a sum of 20 bits each does not fit into 32.
RANGES = (0, 1, 2, 40, 600, 5000)


class Choices:
    """Decisions, one byte each; once the bytes are used up, every decision is the first."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def used(self) -> int:
        """Bytes read so far."""
        return min(self._at, len(self._data))

    def __bool__(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """Give 0 to 255."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def below(self, n: int) -> int:
        """Give a number from 0 to n - 1; two bytes decide where one cannot."""
        return (self.byte() if n <= 256 else self.byte() << 8 | self.byte()) % n

    def pick(self, options: Sequence[T]) -> T:
        """Give one of the options."""
        return options[self.below(len(options))]

    def chunk(self) -> bytes:
        """Give up to 255 of the bytes as they are."""
        length = self.byte()
        chunk = self._data[self._at : self._at + length]
        self._at += length
        return chunk


def mutated(frame: bytes, choices: Choices) -> bytes:
    """Change a frame's bytes, knowing nothing of their meaning."""
    how, at = choices.below(5), choices.below(len(frame) + 1)
    if how == 0 and at < len(frame):
        return frame[:at] + bytes([frame[at] ^ (choices.byte() or 1)]) + frame[at + 1 :]
    if how == 1:
        return frame[:at]
    if how == 2:
        return frame[:at] + choices.chunk() + frame[at:]
    if how == 3:
        new = choices.chunk()
        return frame[:at] + new + frame[at + len(new) :]
    return frame[:at] + frame[at + 1 + choices.byte() :]


def altered(message: Message, choices: Choices) -> bytes:
    """Change up to three fields of a message, or of what it holds; the frame stays a well-formed array."""
    tree: Any = msgspec.msgpack.decode(encode(message))
    for _ in range(1 + choices.below(3)):
        tree[1:] = _altered(tree[1:], choices)  # the tag stays, so that it is decoded as what it was
    return msgspec.msgpack.encode(tree)


def _altered(node: Any, choices: Choices) -> Any:
    if isinstance(node, list):
        return _altered_list(node, choices)
    if isinstance(node, bytes):
        return mutated(node, choices) if choices.below(2) else choices.pick(BYTES)
    if isinstance(node, int):
        return choices.pick((node ^ 1, choices.byte(), *INTEGERS))
    return choices.pick(("", "x" * 100, 0, None, 1e300))


def _altered_list(nodes: list[Any], choices: Choices) -> list[Any]:
    nodes, how = list(nodes), choices.below(8)
    if not nodes or how == 7:
        return list(range(1, 1 + choices.pick(RANGES)))
    at = choices.below(len(nodes))
    if how == 4:
        del nodes[at]
    elif how == 5:
        nodes.insert(at, nodes[choices.below(len(nodes))])
    elif how == 6:
        nodes[at], nodes[at - 1] = nodes[at - 1], nodes[at]
    else:  # most often deeper in
        nodes[at] = _altered(nodes[at], choices)
    return nodes
