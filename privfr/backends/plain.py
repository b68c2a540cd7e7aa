"""Backend `plain`: the server adds up the summands in clear. The reference, not a protection.

One phase. Each client sends its summand; the server adds it as it arrives, so that its memory is two vectors
whatever the number of clients. Summands are float32, or with a coding the very integers that backend
`masking` adds up, whose sum is exact in any order. The order of addition matters to the last bit of a
float32 sum, so engines hand answers over in the outbox's order.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfr.coding import Coding, FixedPoint, pack, unpack
from privfr.errors import BadFrame, InputError, LocalProtocolError, WrongPhase
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
    parameters_of,
)
from privfr.vector import Aggregate, Update, Vector, from_bytes, is_readable, mean_of_sum, view
from privfr.wire import Message, register

__all__ = ["PLAIN", "ClientState", "Summand"]


# The tag's seven letters put the bulk of any real model at byte 48 of the frame, where numpy adds it
# without copying it to an aligned place first.
@register
class Summand(Message, frozen=True, tag="summand"):
    """Client to server: one summand, float32 or packed integers, for the round that `context` names."""

    context: bytes
    bulk: memoryview


class ClientState(msgspec.Struct, frozen=True):
    """What a client holds before it speaks. summand: float32 or packed integers, little-endian."""

    client: ClientId
    context: bytes
    summand: bytes
    key: bytes = b""

    def __repr__(self) -> str:
        """Name the client only."""
        return f"<ClientState of client {self.client}>"


@dataclass(repr=False)
class ServerState:
    """The running sum, a second buffer of its size, and whose summands are in the sum. entropy: of noise."""

    spec: RoundSpec
    context: bytes
    point: FixedPoint | None
    total: NDArray[Any]
    spare: NDArray[Any]
    survivors: list[ClientId]
    entropy: Entropy = secrets.token_bytes


def plan(clients: int, threshold: int, coding: Coding | None, options: Mapping[str, Any]) -> bytes:
    """Encode the coding that clients and server agree on; nothing for float32."""
    if coding is None:
        return b""
    coding.check_fits(clients)
    return msgspec.msgpack.encode(coding)


def point_of(spec: RoundSpec) -> FixedPoint | None:
    """Integer coding of a round, None for float32. Raises `BadFrame` for parameters of another kind."""
    if not spec.parameters:
        return None
    coding = parameters_of(spec.parameters, Coding)
    return FixedPoint(coding, len(spec.clients), spec.metrics, spec.size, spec.context())


def check(spec: RoundSpec, keyring: object = None) -> None:
    """Raise `BadFrame` for a proposed round whose sum would not fit, or with parameters of another kind."""
    try:
        point_of(spec)
    except InputError as error:
        raise BadFrame(f"a round that cannot be: {error}") from None


def client_state(
    spec: RoundSpec, client: ClientId, update: Update, key: bytes | None, entropy: Entropy
) -> ClientState:
    """Begin a client's round. key: the aggregator's public key where there is one."""
    if point := point_of(spec):
        summand = bytes(pack(point.encode(update, entropy), point.modulus_bits))
    else:
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
    point = point_of(spec)
    lanes, kind = (point.lanes, np.uint32) if point else (spec.length, np.float32)
    return ServerState(spec, spec.context(), point, np.zeros(lanes, kind), np.empty(lanes, kind), [])


def absorb(state: ServerState, client: ClientId, answer: Summand) -> ServerState:
    """Add one summand."""
    if answer.context != state.context:
        raise WrongPhase("a summand of another round or run")
    if state.point:
        lanes = unpack(answer.bulk, state.point.modulus_bits, state.point.lanes)
        state.point.decode(lanes, 1)  # refuses what no single client can have said
        np.add(state.total, lanes, out=state.total)
    else:
        _add_floats(state, view(answer.bulk, state.spec.length))
    state.survivors.append(client)
    return state


def _add_floats(state: ServerState, summand: Vector) -> None:
    """Look at the sum that a summand would make before it becomes the sum.

    Adding into the spare buffer and checking that, hot in cache, costs less than checking the summand
    first, and what one bad number would have spoilt is still there.
    """
    if not summand[0] > 0:
        raise BadFrame("a summand without a weight above 0")
    with np.errstate(all="ignore"):
        np.add(state.total, summand, out=state.spare)
    if not is_readable(state.spare):
        raise BadFrame("a summand with a number that is not finite, or absurdly large")
    state.total, state.spare = state.spare, state.total


def close(state: ServerState) -> tuple[ServerState, Sealed]:
    """End the round with the sum."""
    if state.point:
        noise = state.point.coding.noise
        if noise and noise.central:
            state.point.blur(state.total, noise.variance, state.entropy)
        bulk = pack(state.total, state.point.modulus_bits)
    else:
        bulk = np.ascontiguousarray(state.total, "<f4").data.cast("B")
    return state, Sealed(tuple(sorted(state.survivors)), bulk)


def open_sum(spec: RoundSpec, sealed: Sealed, keyring: Any) -> Aggregate:
    """Read a sum in clear as the weighted mean."""
    count = len(sealed.survivors)
    if point := point_of(spec):
        return point.decode(unpack(sealed.bulk, point.modulus_bits, point.lanes), count)
    return mean_of_sum(from_bytes(sealed.bulk, spec.length), count, spec.metrics)


def limit(spec: RoundSpec) -> int:
    """Most bytes a frame with one summand can have."""
    point = point_of(spec)
    return (point.packed_bytes if point else 4 * spec.length) + ENVELOPE


PLAIN = Backend(
    name="plain",
    server_learns="updates",
    trust="Everything is visible to the server: each client's update, weight and metrics, in clear.",
    client_steps=(ClientStep("contribute", Begin, contribute),),
    server_steps=(ServerStep("contribute", Summand, absorb, close, limit),),
    plan=plan,
    fewest=lambda clients, options: 2,
    provision=lambda clients, entropy: (None, dict.fromkeys(clients)),
    client_state_type=ClientState,
    client_state=client_state,
    server_state=server_state,
    open=open_sum,
    check=check,
    central=True,
)
