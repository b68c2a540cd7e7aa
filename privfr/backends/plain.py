"""Backend `plain`: the server adds up the summands in clear. The reference, not a protection.

One phase. Each client sends its summand as float32; the server adds it as it arrives, so that its memory is
two vectors whatever the number of clients. Order matters to the last bit of a float32
sum, so engines hand answers over in the outbox's order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from privfr.errors import BadFrame, LocalProtocolError, WrongPhase
from privfr.protocol import (
    ENVELOPE,
    Backend,
    Begin,
    ClientId,
    ClientStep,
    Entropy,
    RoundSpec,
    Sealed,
    ServerStep,
)
from privfr.vector import Aggregate, Update, Vector, from_bytes, is_readable, mean_of_sum, view
from privfr.wire import Message, register

__all__ = ["PLAIN", "ClientState", "Summand"]


# The tag's seven letters put the bulk of any real model at byte 48 of the frame, where numpy adds it
# without copying it to an aligned place first.
@register
class Summand(Message, frozen=True, tag="summand"):
    """Client to server: one summand, little-endian float32, for the round that `context` names."""

    context: bytes
    bulk: memoryview


class ClientState(msgspec.Struct, frozen=True):
    """What a client holds before it speaks. summand: little-endian float32 bytes."""

    client: ClientId
    context: bytes
    summand: bytes
    key: bytes = b""

    def __repr__(self) -> str:
        """Name the client only."""
        return f"<ClientState of client {self.client}>"


@dataclass(repr=False)
class ServerState:
    """The running sum, a second buffer of its size, and whose summands are in the sum."""

    spec: RoundSpec
    context: bytes
    total: Vector
    spare: Vector
    survivors: list[ClientId]


def client_state(spec: RoundSpec, client: ClientId, update: Update, key: bytes | None) -> ClientState:
    """Begin a client's round. key: the aggregator's public key where there is one."""
    summand = np.ascontiguousarray(update.summand(spec.metrics), "<f4").tobytes()
    if len(summand) != 4 * spec.length:
        raise LocalProtocolError(f"an update of {update.vector.size} numbers in a round of {spec.size}")
    return ClientState(client, spec.context(), summand, key or b"")


def contribute(state: ClientState, begin: Begin, entropy: Entropy) -> tuple[ClientState, Message]:
    """Answer the round's opening with the summand."""
    if begin.spec.context() != state.context:
        raise WrongPhase("the opening of another round")
    return state, Summand(state.context, memoryview(state.summand))


def server_state(spec: RoundSpec, keyring: None = None) -> ServerState:
    """Begin a round with an empty sum."""
    total, spare = np.zeros(spec.length, np.float32), np.empty(spec.length, np.float32)
    return ServerState(spec, spec.context(), total, spare, [])


def absorb(state: ServerState, client: ClientId, answer: Summand) -> ServerState:
    """Add one summand; the sum it would make is looked at before it becomes the sum.

    Adding into the spare buffer and checking that, hot in cache, costs less than checking the summand
    first, and what one bad number would have spoilt is still there.
    """
    if answer.context != state.context:
        raise WrongPhase("a summand of another round or run")
    summand = view(answer.bulk, state.spec.length)
    if not summand[0] > 0:
        raise BadFrame("a summand without a weight above 0")
    with np.errstate(all="ignore"):
        np.add(state.total, summand, out=state.spare)
    if not is_readable(state.spare):
        raise BadFrame("a summand with a number that is not finite, or absurdly large")
    state.total, state.spare = state.spare, state.total
    state.survivors.append(client)
    return state


def close(state: ServerState) -> tuple[ServerState, Sealed]:
    """End the round with the sum."""
    total = np.ascontiguousarray(state.total, "<f4")
    return state, Sealed(tuple(sorted(state.survivors)), total.data.cast("B"))


def open_sum(spec: RoundSpec, sealed: Sealed, keyring: Any) -> Aggregate:
    """Read a sum in clear as the weighted mean."""
    total = from_bytes(sealed.bulk, spec.length)
    return mean_of_sum(total, len(sealed.survivors), spec.metrics)


def limit(spec: RoundSpec) -> int:
    """Most bytes a frame with one summand can have."""
    return 4 * spec.length + ENVELOPE


PLAIN = Backend(
    name="plain",
    server_learns="updates",
    trust="Everything is visible to the server: each client's update, weight and metrics, in clear.",
    client_steps=(ClientStep("contribute", Begin, contribute),),
    server_steps=(ServerStep("contribute", Summand, absorb, close, limit),),
    provision=lambda clients, entropy: (None, dict.fromkeys(clients)),
    client_state_type=ClientState,
    client_state=client_state,
    server_state=server_state,
    open=open_sum,
)
