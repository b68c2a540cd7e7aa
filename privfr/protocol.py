"""The round machine: a protocol is two tables of pure steps, and this interprets them.

Theory of operation
-------------------
A round is lock-step. The server sends one message to each client that takes part, each answers
exactly once, and whoever has not answered when the turn ends has dropped out. So a protocol is

* a client's table: per phase, which message it expects and the pure function that turns its state and
  that message into a new state and one answer;
* the server's table: per phase, which answer it collects, how one answer is absorbed into the state,
  and how the phase is closed: with the next messages, or with the round's `Sealed` aggregate.

Rules kept here, so that no backend has to:

1. The channel names the sender; no message does.
2. A bad answer costs only its sender. Bytes that are not the expected message, from another phase,
   too long, or refused by `absorb`, count as no answer; the fault is kept by name.
3. A client answers once per phase. Its first answer stands, since what was added cannot be taken back;
   a second one is a fault and nothing more.
4. A step that raises changes nothing: state moves only after the step returned.
5. There is no clock, socket, thread or file here (sans-IO). Whoever calls decides how long to wait.
6. Randomness is an argument (`Entropy`), so that a test can say which; secrets come from nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar

import msgspec

from privfr.coding import Coding
from privfr.errors import (
    BadFrame,
    Duplicate,
    LocalProtocolError,
    RemoteProtocolError,
    TooFewClients,
    WrongPhase,
)
from privfr.vector import Aggregate, Update
from privfr.wire import Frame, Message, decode, encode, frame_of, register

__all__ = [
    "Ack",
    "Backend",
    "Begin",
    "ClientId",
    "ClientSession",
    "ClientStep",
    "Entropy",
    "Handover",
    "OnDemand",
    "Outbox",
    "Result",
    "RoundSpec",
    "Sealed",
    "ServerSession",
    "ServerStep",
    "parameters_of",
]

ClientId = int
Entropy = Callable[[int], bytes]  # n -> n unpredictable bytes; `secrets.token_bytes` outside of tests

# What a short message may grow to beside the bulk that a phase's `limit` allows for.
ENVELOPE = 1024

# Numbers in the largest vector a peer may ask this side to make room for: 1 GiB as float32.
LARGEST_SIZE = 1 << 28


P = TypeVar("P", bound=msgspec.Struct)


def parameters_of(encoded: bytes, kind: type[P]) -> P:
    """Read `RoundSpec.parameters` as a backend's own type. Raises `BadFrame` for all but its one encoding."""
    found: P = _read_parameters(encoded, kind)
    return found


@lru_cache(maxsize=32)
def _read_parameters(encoded: bytes, kind: type[msgspec.Struct]) -> Any:
    try:
        found = msgspec.msgpack.decode(encoded, type=kind)
    except (
        msgspec.MsgspecError,
        ValueError,
    ) as error:  # also a value out of range, or text that is not UTF-8
        raise BadFrame(f"not the parameters of such a round: {error}") from None
    if msgspec.msgpack.encode(found) != encoded:
        raise BadFrame("not the canonical encoding of a round's parameters")
    return found


class RoundSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Everything the members of a round must agree on before any of them speaks.

    run: 16 random bytes naming the run.  clients: the roster, ascending.  threshold: fewest survivors
    for which there is an aggregate.  metrics: names, in summand order.  size: numbers in the shared
    vector.  layout, model, config: BLAKE2b-256 of the vector's layout (see `Layout.committed`), of the model
    trained from, and of the experiment.
    """

    run: bytes
    round: int
    backend: str
    clients: tuple[ClientId, ...]
    threshold: int
    metrics: tuple[str, ...]
    size: int
    layout: bytes
    model: bytes
    config: bytes
    parameters: bytes

    @property
    def length(self) -> int:
        """Numbers in one summand: weight, metrics, vector."""
        return 1 + len(self.metrics) + self.size

    def check(self) -> None:
        """Raise `BadFrame` for a round that cannot be; for whoever is told a spec by somebody else."""
        roster = self.clients
        if not roster or list(roster) != sorted(set(roster)) or roster[0] < 0:
            raise BadFrame("a roster that is empty, out of order or with a client twice")
        if len(self.run) != 16:
            raise BadFrame(f"a run named by {len(self.run)} bytes, not 16")
        if not 1 <= self.threshold <= len(roster):
            raise BadFrame(f"a threshold of {self.threshold} for {len(roster)} clients")
        if not 1 <= self.size <= LARGEST_SIZE:
            raise BadFrame(f"a vector of {self.size} numbers; at most {LARGEST_SIZE} are taken")

    def context(self) -> bytes:
        """BLAKE2b-256 of the canonical encoding: what binds a message or a key to this very round."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=32, person=b"privfr round").digest()


@register
class Begin(Message, frozen=True, tag="begin"):
    """Server to client: a round opens. bulk: the model as float32 bytes, empty if the client has it."""

    spec: RoundSpec
    bulk: memoryview


@register
class Sealed(Message, frozen=True, tag="sealed"):
    """The round's aggregate as the backend leaves it, readable by whoever holds the backend's key."""

    survivors: tuple[ClientId, ...]
    bulk: memoryview


@register
class Result(Message, frozen=True, tag="result"):
    """Server to every client of the roster: the round's outcome. bulk: the `Sealed` frame."""

    context: bytes
    bulk: memoryview


@register
class Ack(Message, frozen=True, tag="ack"):
    """Client to server: the result is applied. model: BLAKE2b-256 of the model it now holds."""

    model: bytes


@dataclass(frozen=True)
class ClientStep:
    """One row of a client's table: in `phase`, on an `expects`, `run` gives the next state and the answer."""

    phase: str
    expects: type[Message]
    run: Callable[[Any, Any, Entropy], tuple[Any, Message]]


@dataclass(frozen=True)
class ServerStep:
    """One row of the server's table.

    absorb: takes one answer into the state; validates before it changes anything, raises
    `RemoteProtocolError` to refuse. It may add into a buffer the state owns: a server's state is not
    saved in mid-round.  close: ends the phase with the next messages, or the round with a `Sealed`.
    limit: most bytes one answer may have.
    """

    phase: str
    collects: type[Message]
    absorb: Callable[[Any, ClientId, Any], Any]
    close: Callable[[Any], tuple[Any, Mapping[ClientId, Message] | Sealed]]
    limit: Callable[[RoundSpec], int]


@dataclass(frozen=True)
class Handover:
    """How one client hands the model to others past a server that must not see it.

    seal: keyring, clients, round's context, model bytes, entropy -> a box for each, and the sealed model.
    open: keyring, sender, round's context, box, sealed model -> model bytes; raises `BadFrame`.
    """

    seal: Callable[[Any, tuple[ClientId, ...], bytes, bytes, Entropy], tuple[tuple[bytes, ...], bytes]]
    open: Callable[[Any, ClientId, bytes, bytes, memoryview], bytes]


@dataclass(frozen=True)
class Backend:
    """A way of adding up: two tables, how their states begin, and how a sealed aggregate is opened.

    server_learns: "updates" (each client's), "sum" (only the aggregate) or "nothing".
    trust: one sentence for reports: who must be trusted with what.
    table: name of its own table in the experiment, empty for none.  integers: whether it adds up whole
    numbers only.
    plan: clients, threshold, coding (None for float32), the backend's own table of the experiment -> the
    `RoundSpec.parameters` of a run.  fewest: clients, that table -> the lowest threshold it can keep.
    provision: clients, entropy -> the server's keyring and each client's, as an operator would hand
    them out beforehand.  client_state: spec, client, update, keyring, entropy -> state (a msgspec
    Struct, so that it can be saved).  check: spec, client's keyring; raises `RemoteProtocolError` for a round
    that this client cannot or will not take part in, before it trains for it.  server_state: spec, keyring ->
    state.  open: spec, sealed, keyring -> mean.  handover: how clients pass the model on where the server
    learns "nothing", else None.  describe: clients, threshold, that table -> what follows from them, for
    reports.  central: whether noise for differential privacy is added once, by whoever adds up, who sees each
    update anyway.  caveat: against whom clients' own noise does not hold, in words.
    """

    name: str
    server_learns: Literal["updates", "sum", "nothing"]
    trust: str
    client_steps: tuple[ClientStep, ...]
    server_steps: tuple[ServerStep, ...]
    plan: Callable[[int, int, Coding | None, Mapping[str, Any]], bytes]
    fewest: Callable[[int, Mapping[str, Any]], int]
    provision: Callable[[tuple[ClientId, ...], Entropy], tuple[Any, dict[ClientId, Any]]]
    client_state_type: type[msgspec.Struct]
    client_state: Callable[[RoundSpec, ClientId, Update, Any, Entropy], msgspec.Struct]
    server_state: Callable[[RoundSpec, Any], Any]
    open: Callable[[RoundSpec, Sealed, Any], Aggregate]
    table: str = ""
    integers: bool = False
    check: Callable[[RoundSpec, Any], None] = lambda spec, keyring: None
    describe: Callable[[int, int, Mapping[str, Any]], dict[str, float]] = lambda *_: {}
    central: bool = False
    caveat: str = ""
    handover: Handover | None = None


class _SavedSession(msgspec.Struct, frozen=True, array_like=True):
    at: int
    state: msgspec.Raw


class ClientSession:
    """One client's side of one round."""

    def __init__(self, backend: Backend, state: msgspec.Struct, entropy: Entropy) -> None:
        self._backend, self._state, self._entropy, self._at = backend, state, entropy, 0

    @property
    def phase(self) -> str:
        """The phase whose message is awaited, or "done"."""
        steps = self._backend.client_steps
        return steps[self._at].phase if self._at < len(steps) else "done"

    def receive(self, frame: Frame) -> Frame:
        """Answer the server's next frame. Raises `RemoteProtocolError`, and then nothing has changed."""
        if self.phase == "done":
            raise WrongPhase("this client has said all it has to say in this round")
        step = self._backend.client_steps[self._at]
        state, answer = step.run(self._state, decode(frame, step.expects), self._entropy)
        self._state, self._at = state, self._at + 1
        return frame_of(answer)

    def save(self) -> bytes:
        """Everything needed to go on in another process. Secret: it must not leave the client."""
        state = msgspec.Raw(msgspec.msgpack.encode(self._state))
        return msgspec.msgpack.encode(_SavedSession(self._at, state))

    @classmethod
    def restore(cls, backend: Backend, saved: bytes, entropy: Entropy) -> ClientSession:
        """Take up a session where `save` left it."""
        found = msgspec.msgpack.decode(saved, type=_SavedSession)
        session = cls(backend, msgspec.msgpack.decode(found.state, type=backend.client_state_type), entropy)
        session._at = found.at
        return session

    def __repr__(self) -> str:
        """Name the phase; the state is secret."""
        return f"<ClientSession {self._backend.name}, {self.phase}>"


@dataclass(repr=False)
class ServerSession:
    """The server's side of one round. `turn` is `absorb` for each answer, then `close`."""

    backend: Backend
    spec: RoundSpec
    state: Any
    sealed: Sealed | None = None
    dropped: dict[ClientId, str] = field(default_factory=dict)
    faults: list[tuple[ClientId, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._at, self._over = 0, False
        self._limit = self.backend.server_steps[0].limit(self.spec)
        self._awaited = set(self.spec.clients)
        self._heard: set[ClientId] = set()
        self._answered: set[ClientId] = set()

    @property
    def phase(self) -> str:
        """The phase whose answers are awaited, or "done"."""
        steps = self.backend.server_steps
        return "done" if self._over else steps[self._at].phase

    def turn(self, inbox: Iterable[tuple[ClientId, Frame]]) -> Outbox:
        """Absorb a phase's answers as they arrive, then close it; gives the next frame for each client.

        Empty once `sealed` is there. Raises `TooFewClients` when too few are left, and
        `RemoteProtocolError` where what they said together gives no sum.
        """
        for client, frame in inbox:
            self.absorb(client, frame)
            del frame  # before the next is received: at most one is in memory
        return self.close()

    def absorb(self, client: ClientId, frame: Frame) -> bool:
        """Take in one answer; False, and a fault by name, if it is refused."""
        if self.phase == "done":
            raise LocalProtocolError("this round is over: open the next one")
        step = self.backend.server_steps[self._at]
        try:
            self._admit(client)
            answer = decode(frame, step.collects, self._limit)
            self.state = step.absorb(self.state, client, answer)
        except RemoteProtocolError as error:
            self.faults.append((client, f"{step.phase}: {type(error).__name__}: {error}"))
            return False
        self._answered.add(client)
        return True

    def close(self) -> Outbox:
        """End the phase: whoever has not properly answered has dropped out."""
        if self.phase == "done":
            raise LocalProtocolError("this round is over: open the next one")
        step = self.backend.server_steps[self._at]
        for client in self._awaited - self._answered:
            self.dropped[client] = step.phase
        if len(self._answered) < self.spec.threshold:
            self._over = True
            raise TooFewClients(
                f"round {self.spec.round}, phase {step.phase}: {len(self._answered)} of "
                f"{len(self.spec.clients)} clients are left and {self.spec.threshold} are needed"
            )
        try:
            self.state, out = step.close(self.state)
        except (TooFewClients, RemoteProtocolError):
            self._over = True
            raise
        self._at += 1
        if isinstance(out, Sealed):
            self.sealed, self._over, out = out, True, {}
        else:
            self._limit = self.backend.server_steps[self._at].limit(self.spec)
        self._awaited, self._heard, self._answered = set(out), set(), set()
        return Outbox(out)

    def __repr__(self) -> str:
        """Name the phase; the state may hold what one client said."""
        return f"<ServerSession {self.backend.name}, {self.phase}>"

    def _admit(self, client: ClientId) -> None:
        if client not in self._awaited:
            raise WrongPhase("an answer from a client that was asked nothing")
        if client in self._heard:
            raise Duplicate("a second answer in one phase")
        self._heard.add(client)


class OnDemand(Mapping[ClientId, Message]):
    """Messages made when they are asked for: those of a thousand clients need not be in memory at once."""

    def __init__(self, clients: Iterable[ClientId], make: Callable[[ClientId], Message]) -> None:
        self._clients, self._make = dict.fromkeys(clients), make

    def __getitem__(self, client: ClientId) -> Message:
        if client not in self._clients:
            raise KeyError(client)
        return self._make(client)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


class Outbox(Mapping[ClientId, bytes]):
    """Next frame for each client, encoded when it is asked for; one that goes to many is encoded once."""

    def __init__(self, messages: Mapping[ClientId, Message]) -> None:
        self._messages = messages
        self._last: tuple[Message | None, bytes] = (None, b"")

    def __getitem__(self, client: ClientId) -> bytes:
        message = self._messages[client]
        if message is not self._last[0]:
            self._last = (message, encode(message))
        return self._last[1]

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        """Say how many; a frame may hold what one client said to another."""
        return f"<Outbox for {len(self)} clients>"
