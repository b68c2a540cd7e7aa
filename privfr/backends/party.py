"""A third party that the server talks to: an aggregator, or whoever holds a key.

It answers one frame with one frame, as a client does; it need not be on the server's machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from privfr.errors import BadFrame, RemoteProtocolError, TooFewClients, WrongPhase
from privfr.wire import Frame, Message, decode, encode, kind, register

__all__ = ["Refused", "Relay", "answer", "ask"]

Relay = Callable[[bytes], bytes]
M = TypeVar("M", bound=Message)


@register
class Refused(Message, frozen=True, tag="refused"):
    """Third party to server: not done, and why."""

    why: str


def answer(handlers: Mapping[str, Callable[[Frame], Message]], frame: Frame) -> bytes:
    """Answer a frame by the handler of its kind; with `Refused` where the handler refuses."""
    try:
        handler = handlers.get(kind(frame))
        if handler is None:
            raise WrongPhase("not a message for this party")
        return encode(handler(frame))
    except (RemoteProtocolError, TooFewClients) as error:
        return encode(Refused(f"{type(error).__name__}: {error}"))


def ask(relay: Relay, question: Message, expects: type[M]) -> M:
    """Ask a third party. Raises `BadFrame` with its reason if it refuses."""
    found = relay(encode(question))
    if kind(found) == "refused":
        raise BadFrame(f"the third party refuses: {decode(found, Refused).why}")
    return decode(found, expects)
