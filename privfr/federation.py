"""A federated run: the server's side (`Coordinator`), a client's side (`Member`), and one loop.

    coordinator.open() -> outbox -> exchange -> inbox -> coordinator.turn(inbox) -> outbox -> ... -> {}

An engine is the function `exchange`: it carries each frame of an outbox to its client and hands back the
answers, in the outbox's order as far as it can. Nothing here knows a concrete backend, a method, or
where the clients are.

A round, seen from here: `Begin` to every client; the backend's phases; `Result` to every client of the
roster, also to those who dropped out; `Ack`. A client that missed a result is sent the model with its
next `Begin`: the current model, not a replay of rounds. Where the server may not see the model, it first
asks a client that holds it to seal it to those who lack it (`HandOver`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
import numpy as np

from privfr.averaging import FedAvg
from privfr.errors import (
    BadFrame,
    Duplicate,
    LocalProtocolError,
    PolicyRefused,
    RemoteProtocolError,
    TooFewClients,
    WrongPhase,
)
from privfr.protocol import (
    ENVELOPE,
    Ack,
    Backend,
    Begin,
    ClientId,
    ClientSession,
    Entropy,
    OnDemand,
    Outbox,
    Result,
    RoundSpec,
    Sealed,
    ServerSession,
)
from privfr.vector import Aggregate, Update, Vector, digest, from_bytes
from privfr.wire import Frame, Message, decode, encode, kind, register

__all__ = [
    "Coordinator",
    "Exchange",
    "Learner",
    "Member",
    "PhaseReport",
    "Policy",
    "RoundReport",
    "run_round",
]

Exchange = Callable[[Mapping[ClientId, bytes]], Iterable[tuple[ClientId, Frame]]]


class PhaseReport(msgspec.Struct):
    """One phase of a round: messages and bytes each way, wall seconds, and where they went.

    server_seconds: wall seconds of the server's own work.  client_seconds: CPU seconds of all clients
    together, training left out, as far as the engine knows them.
    """

    phase: str
    messages_down: int = 0
    messages_up: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    server_seconds: float = 0.0
    client_seconds: float = 0.0


class RoundReport(msgspec.Struct):
    """One round, as the server saw it. bytes: over all clients. metrics: weighted means.

    dropped: client -> phase in which it was lost.  faults: (client, what was refused).
    missed: clients not known to hold the model the round ended with; the next one sends it to them.
    failed: why there is no aggregate, or empty.  error: largest difference that integer coding can have made
    to a number of the mean of what clients sent, 0 for float32; it does not hold for the `saturated` clients
    that had a number beyond `coding.clip`.
    """

    round: int
    clients: int
    survivors: int = 0
    weight: float = 0.0
    metrics: dict[str, float] = {}
    error: float = 0.0
    saturated: int = 0
    seconds: float = 0.0
    server_seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    dropped: dict[int, str] = {}
    faults: list[tuple[int, str]] = []
    phases: list[PhaseReport] = []
    missed: list[int] = []
    failed: str = ""

    def tell(self, aggregate: Aggregate) -> None:
        """Take over what an aggregate says of the round: all but its vector."""
        self.weight, self.metrics = aggregate.weight, dict(aggregate.metrics)
        self.error, self.saturated = aggregate.error, aggregate.saturated


class Policy(msgspec.Struct, frozen=True):
    """A client's own floors; they win over anything the server says.

    minimum_clients: smallest roster, minimum_threshold: fewest survivors, for which it takes part.
    backends: names it accepts; empty for any it was given.  roster: the clients it accepts to be summed with,
    no more and no fewer; empty for any.  maximum_weight: what its own weight is lowered to, 0 for no limit:
    a weight says how many pictures it has, and pulls the mean towards them.
    """

    minimum_clients: int = 2
    minimum_threshold: int = 2
    backends: tuple[str, ...] = ()
    roster: tuple[ClientId, ...] = ()
    maximum_weight: float = 0.0

    def check(self, spec: RoundSpec) -> None:
        """Raise `PolicyRefused` for a round below a floor."""
        if len(spec.clients) < self.minimum_clients:
            raise PolicyRefused(
                f"a roster of {len(spec.clients)}, and this client's floor is {self.minimum_clients}"
            )
        if spec.threshold < self.minimum_threshold:
            raise PolicyRefused(
                f"a threshold of {spec.threshold}, and this client's floor is {self.minimum_threshold}"
            )
        if self.backends and spec.backend not in self.backends:
            raise PolicyRefused(
                f"backend {spec.backend!r}, and this client accepts {', '.join(self.backends)}"
            )
        if self.roster and spec.clients != self.roster:
            raise PolicyRefused("a roster that is not the one this client accepts")

    def limited(self, update: Update) -> Update:
        """Lower an update's weight to this client's own limit."""
        if not self.maximum_weight or update.weight <= self.maximum_weight:
            return update
        return replace(update, weight=self.maximum_weight)


class Learner(Protocol):
    """What a member learns with; `privfr.trainer.Learner` is the one for faces."""

    def learn(self, model: Vector, round: int) -> Update:
        """Train from `model`, float32 [size], on this client's own data.

        size: the round's. Raises `RemoteProtocolError` for a round it takes no part in.
        """

    def save(self) -> bytes:
        """Everything private that lasts from round to round."""

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave."""


class _SavedMember(msgspec.Struct, frozen=True, array_like=True):
    model: bytes | None
    former: bytes | None
    learner: bytes
    spec: RoundSpec | None
    session: bytes | None
    run: bytes
    begun: int


@register
class HandOver(Message, frozen=True, tag="handover"):
    """Server to a client: seal the model of this digest to these clients, for the round `context` names."""

    context: bytes
    model: bytes
    clients: tuple[ClientId, ...]


@register
class HandedOver(Message, frozen=True, tag="handedover"):
    """Client to server: a box for each of the clients it was asked for, and the sealed model."""

    boxes: tuple[bytes, ...]
    bulk: memoryview


@register
class Handed(Message, frozen=True, tag="handed"):
    """The content of a `Begin` for a client that lacks the model: its box, and the sealed model."""

    sender: ClientId
    box: bytes
    bulk: memoryview


@dataclass
class Member:
    """A client: answers each frame of the server's with one of its own.

    It checks the server's proposal against its own policy and experiment first, then trains, then goes
    through the backend's phases, and applies the round's result. keyring: what the backend provisioned.
    parameters: the backend's, as this client worked them out itself.  model: float32, as `rule` lays it out,
    or None to be sent it with the first round.  learn_seconds: CPU seconds spent training.  outcome: what the
    last round came to, its vector left out.

    It keeps the model from before the last result, too: where only the members know whether enough of them
    have got a result, the next round may begin with either.
    """

    client: ClientId
    backend: Backend
    keyring: Any
    learner: Learner
    layout: bytes
    config: bytes
    metrics: tuple[str, ...]
    entropy: Entropy
    parameters: bytes = b""
    policy: Policy = field(default_factory=Policy)
    model: Vector | None = None
    rule: FedAvg = field(default_factory=FedAvg)
    learn_seconds: float = 0.0
    outcome: Aggregate | None = None

    def __post_init__(self) -> None:
        self._run, self._begun = b"", -1
        self._former: Vector | None = None
        self._known: tuple[Vector | None, bytes] = (None, b"")
        self._spec: RoundSpec | None = None
        self._session: ClientSession | None = None

    def receive(self, frame: Frame) -> Frame:
        """Answer one frame. Raises `RemoteProtocolError`, and then nothing has changed."""
        what = kind(frame)
        if what == "begin":
            return self._begin(frame)
        if what == "result":
            return self._finish(decode(frame, Result))
        if what == "handover":
            return self._hand_over(decode(frame, HandOver))
        if self._session is None:
            raise WrongPhase(f"a message of kind {what!r} outside of a round")
        return self._session.receive(frame)

    def _begin(self, frame: Frame) -> Frame:
        begin = decode(frame, Begin)
        model = self._check(begin)
        started = time.thread_time()
        update = self.learner.learn(model[: begin.spec.size], begin.spec.round)
        self.learn_seconds += time.thread_time() - started
        update = self.policy.limited(update)
        state = self.backend.client_state(begin.spec, self.client, update, self.keyring, self.entropy)
        session = ClientSession(self.backend, state, self.entropy)
        answer = session.receive(encode(Begin(begin.spec, memoryview(b""))))
        self.model, self._spec, self._session = model, begin.spec, session
        self._run, self._begun = begin.spec.run, begin.spec.round
        return answer

    def _check(self, begin: Begin) -> Vector:
        spec = begin.spec
        spec.check()
        self.policy.check(spec)
        expected = {
            "backend": self.backend.name,
            "layout": self.layout,
            "config": self.config,
            "metrics": self.metrics,
            "parameters": self.parameters,
        }
        for name, value in expected.items():
            if getattr(spec, name) != value:
                raise PolicyRefused(f"the server's {name} is not the one this client was set up with")
        if self.client not in spec.clients:
            raise BadFrame("a roster without this client")
        self.backend.check(spec, self.keyring)
        if self._run not in (b"", spec.run) or spec.round <= self._begun:
            # Two sums of one round, over other rosters, would differ by somebody's update.
            raise WrongPhase("a round this client has begun before, or one of another run")
        size = spec.size * self.rule.copies
        model = self.holds(spec.model)
        if model is None and len(begin.bulk):
            model = self._given(begin, size)
        if model is None or model.size != size or self._digest(model) != spec.model:
            raise PolicyRefused("the model to train from is not the one the round names")
        return model

    def _given(self, begin: Begin, size: int) -> Vector:
        """The model that came with the round: in clear, or from a fellow client past the server."""
        handover = self.backend.handover
        if handover is None or (self.model is None and len(begin.bulk) == 4 * size):
            return from_bytes(begin.bulk, size).copy()
        handed = decode(begin.bulk, Handed)
        context = begin.spec.context()
        found = handover.open(self.keyring, handed.sender, context, handed.box, handed.bulk)
        return from_bytes(memoryview(found), size).copy()

    def _hand_over(self, asked: HandOver) -> bytes:
        handover, named = self.backend.handover, asked.clients
        if len(asked.context) != 32 or list(named) != sorted(set(named)):
            raise BadFrame("a hand-over for no round, or to clients out of order or there twice")
        model = self.holds(asked.model)
        if handover is None or model is None:
            raise WrongPhase("a client that lacks the model it is to hand over, or whose server has it")
        sealed = model.astype("<f4").tobytes()
        boxes, bulk = handover.seal(self.keyring, asked.clients, asked.context, sealed, self.entropy)
        return encode(HandedOver(boxes, memoryview(bulk)))

    def _finish(self, result: Result) -> bytes:
        spec = self._spec
        if spec is None or self.model is None or result.context != spec.context():
            raise WrongPhase("the result of a round this client has not begun")
        sealed = decode(result.bulk, Sealed)
        survivors = set(sealed.survivors)
        if list(sealed.survivors) != sorted(survivors) or not survivors <= set(spec.clients):
            raise BadFrame("survivors that are not of the roster, out of order or there twice")
        if len(survivors) < spec.threshold:
            raise PolicyRefused(f"a sum over {len(survivors)} clients, fewer than the threshold")
        if self.backend.server_learns == "nothing":
            # One sum opened for a key, come what may: who could ask again with another ciphertext would learn
            # a bit about the key each time, from whether there is an answer.
            self._spec, self._session = None, None
        aggregate = self.backend.open(spec, sealed, self.keyring)
        model = self.rule.step(self.model, aggregate)
        self.outcome = replace(aggregate, vector=aggregate.vector[:0])
        self._former = self.model if self.backend.handover else None
        self.model, self._spec, self._session = model, None, None
        return encode(Ack(self._digest(model)))

    def holds(self, wanted: bytes) -> Vector | None:
        """Give the model of this digest, if it is the present one or the one before it."""
        if self.model is not None and self._digest(self.model) == wanted:
            return self.model
        return self._former if self._former is not None and digest(self._former) == wanted else None

    def _digest(self, model: Vector) -> bytes:
        """Hash a model once: the one a round ends with is the one the next begins with."""
        if self._known[0] is not model:
            self._known = (model, digest(model))
        return self._known[1]

    def save(self) -> bytes:
        """Everything needed to go on in another process, between any two frames. Secret."""
        session = self._session.save() if self._session else None
        model, former = (
            None if vector is None else vector.astype("<f4").tobytes()
            for vector in (self.model, self._former)
        )
        return msgspec.msgpack.encode(
            _SavedMember(model, former, self.learner.save(), self._spec, session, self._run, self._begun)
        )

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave, in a member set up like the one that saved."""
        found = msgspec.msgpack.decode(saved, type=_SavedMember)
        self.model, self._former = (
            None if vector is None else np.frombuffer(vector, "<f4").copy()
            for vector in (found.model, found.former)
        )
        self.learner.restore(found.learner)
        self._spec, self._run, self._begun = found.spec, found.run, found.begun
        self._session = None
        if found.session is not None:
            self._session = ClientSession.restore(self.backend, found.session, self.entropy)

    def __repr__(self) -> str:
        """Name the client; everything else is its own business."""
        return f"<Member {self.client}>"


@dataclass
class Coordinator:
    """The server of a run.

    model: float32, as `rule` lays it out. Where the backend lets the server learn nothing, it is the one that
    the run begins with, and None from the first sum on: an evaluation then is a member's business, and so are
    weight and metrics of a round.
    keyring: what the backend provisioned for the server.  roster: all clients, ascending.
    threshold: fewest survivors of a round; of a blind server's, as many must also confirm one model, and more
    than half of the roster.  parameters: the backend's, as its `plan` gives them.
    current: clients known to hold the model.
    """

    run: bytes
    backend: Backend
    keyring: Any
    roster: tuple[ClientId, ...]
    threshold: int
    layout: bytes
    config: bytes
    metrics: tuple[str, ...]
    model: Vector | None
    parameters: bytes = b""
    rule: FedAvg = field(default_factory=FedAvg)
    round: int = 0
    current: set[ClientId] = field(default_factory=set)
    report: RoundReport = field(default_factory=lambda: RoundReport(0, 0))

    def __post_init__(self) -> None:
        self._session: ServerSession | None = None
        self._handing: ClientId | None = None
        if self.model is None:
            raise LocalProtocolError("a run needs a model to begin with")
        self._unseen = (0, b"")  # size and digest of a model that only the members hold
        if self._blind and self.round:
            self._unseen, self.model = self._named(), None
        try:
            self._spec().check()
        except BadFrame as error:
            raise LocalProtocolError(f"a run that cannot be: {error}") from None

    @property
    def _blind(self) -> bool:
        return self.backend.server_learns == "nothing"

    @property
    def digest(self) -> bytes:
        """BLAKE2b-256 of the run's model, which the server knows even where it may not see the model."""
        return self._named()[1]

    def _named(self) -> tuple[int, bytes]:
        """Numbers in the model vector, and its digest."""
        return self._unseen if self.model is None else (self.model.size, digest(self.model))

    def open(self) -> Mapping[ClientId, bytes]:
        """Open the next round: a `Begin` for each client, with the model for those who lack it.

        Where only clients have the model and some lack it, a `HandOver` to one who has it comes first.
        Raises `LocalProtocolError` if nobody is known to hold the model.
        """
        spec, stale = self._spec(), self._stale()
        self.report = RoundReport(self.round, len(self.roster))
        try:
            state = self.backend.server_state(spec, self.keyring)
        except RemoteProtocolError as error:  # of a third party that the backend needs
            self.report.failed = str(error)
            self._end()
            return {}
        self._session = ServerSession(self.backend, spec, state)
        if self.model is not None or not stale:
            return self._begin(spec, None)
        holders = sorted(self.current)
        if not holders:
            raise LocalProtocolError("nobody is known to hold the model, and the server may not: start anew")
        self._handing = holders[self.round % len(holders)]
        return {self._handing: encode(HandOver(spec.context(), spec.model, tuple(sorted(stale))))}

    def _begin(self, spec: RoundSpec, handed: HandedOver | None) -> Mapping[ClientId, bytes]:
        # Messages are made when they are asked for: what they need is taken up now.
        short, stale, sender = Begin(spec, memoryview(b"")), sorted(self._stale()), self._handing
        full = short
        if stale and self.model is not None:
            full = Begin(spec, self.model.astype("<f4").data.cast("B"))

        def message(client: ClientId) -> Begin:
            if client not in stale:
                return short
            if handed is None or sender is None:
                return full
            box = handed.boxes[stale.index(client)]
            return Begin(spec, memoryview(encode(Handed(sender, box, handed.bulk))))

        return Outbox(OnDemand(self.roster, message))

    def _take_model(self, inbox: Iterable[tuple[ClientId, Frame]]) -> Mapping[ClientId, bytes]:
        """Pass a handed-over model on; without one, whoever lacks it sits this round out."""
        session, found = self._session, None
        assert session is not None  # `open` has just made it
        for client, frame in inbox:
            try:
                if client != self._handing or found is not None:
                    raise Duplicate("a second answer, or one from a client that was asked nothing")
                answer = decode(frame, HandedOver, self._largest_handover())
                if len(answer.boxes) != len(self._stale()):
                    raise BadFrame("not a box for each client that lacks the model")
                found = answer
            except RemoteProtocolError as error:
                session.faults.append((client, f"handover: {type(error).__name__}: {error}"))
        outbox = self._begin(session.spec, found)
        self._handing = None
        return outbox

    def _largest_handover(self) -> int:
        return 4 * self._named()[0] + ENVELOPE * (1 + len(self.roster))

    def turn(self, inbox: Iterable[tuple[ClientId, Frame]]) -> Mapping[ClientId, bytes]:
        """Take one phase's answers; gives the next outbox, empty when the round is over."""
        session = self._session
        if session is None:
            raise LocalProtocolError("no round is open: open one first")
        if self._handing is not None:
            return self._take_model(inbox)
        if session.sealed is not None:
            self._collect_acks(inbox)
            return {}
        outbox: Mapping[ClientId, bytes]
        try:
            outbox = session.turn(inbox)
            if session.sealed is not None:
                outbox = self._result(session.spec, session.sealed)
        except (TooFewClients, RemoteProtocolError) as error:
            # A round without an aggregate changes nothing; the run goes on with the next.
            self.report.failed, outbox = str(error), {}
        self.report.dropped, self.report.faults = dict(sorted(session.dropped.items())), session.faults
        if self.report.failed:
            if not self._blind:  # whose members may be the only ones that have the model, silent or not
                self.current -= set(session.dropped)
            self._end()
        return outbox

    def _spec(self) -> RoundSpec:
        size, model = self._named()
        return RoundSpec(
            run=self.run,
            round=self.round,
            backend=self.backend.name,
            clients=self.roster,
            threshold=self.threshold,
            metrics=self.metrics,
            size=size // self.rule.copies,
            layout=self.layout,
            model=model,
            config=self.config,
            parameters=self.parameters,
        )

    @property
    def phase(self) -> str:
        """The phase whose answers are awaited."""
        if self._session is None:
            return "closed"
        if self._handing is not None:
            return "handover"
        return "result" if self._session.sealed else self._session.phase

    def _stale(self) -> set[ClientId]:
        return set(self.roster) - self.current

    def _result(self, spec: RoundSpec, sealed: Sealed) -> dict[ClientId, bytes]:
        self.report.survivors = len(sealed.survivors)
        if not self._blind:
            assert self.model is not None  # only a blind server's ever is
            aggregate = self.backend.open(spec, sealed, self.keyring)
            self.model = self.rule.step(self.model, aggregate)
            self.report.tell(aggregate)
        frame = encode(Result(spec.context(), memoryview(encode(sealed))))
        return dict.fromkeys(self.roster, frame)

    def _collect_acks(self, inbox: Iterable[tuple[ClientId, Frame]]) -> None:
        acks: dict[ClientId, bytes] = {}
        for client, frame in inbox:
            try:
                if client in acks or client not in self.roster:
                    raise Duplicate("a second answer, or one from outside the roster")
                acks[client] = b""
                acks[client] = decode(frame, Ack, ENVELOPE).model
            except RemoteProtocolError as error:
                self.report.faults.append((client, f"result: {type(error).__name__}: {error}"))
        if self._blind and not self._confirmed(Counter(model for model in acks.values() if model)):
            self._end()  # who has applied the result still holds the model from before it
            return
        self.current = {client for client, model in acks.items() if model == self.digest}
        for client in acks.keys() - self.current:
            if acks[client]:
                self.report.faults.append(
                    (client, "result: BadFrame: the client ended the round with another model")
                )
        for client in self._stale():
            self.report.dropped.setdefault(client, "result")
        self._end()

    def _confirmed(self, said: Counter[bytes]) -> bool:
        """Move on to the model that the members say they hold, if enough say so.

        What it is only they know; so few that they could be lying together must not decide it.
        """
        model, votes = said.most_common(1)[0] if said else (b"", 0)
        needed = max(self.threshold, len(self.roster) // 2 + 1)
        if votes < needed:
            self.report.failed = (
                f"{votes} of {len(self.roster)} clients confirm one model, and {needed} are needed"
            )
            return False
        self._unseen, self.model = (self._named()[0], model), None
        return True

    def _end(self) -> None:
        self.report.missed = sorted(self._stale())
        self._session = None
        self.round += 1


def run_round(
    exchange: Exchange, coordinator: Coordinator, spent: Callable[[], float] = lambda: 0.0
) -> RoundReport:
    """Run one round to its end; gives its report, with bytes and seconds by phase.

    spent: gives the CPU seconds that clients have used so far, where the engine can know them.
    """
    started, phases = time.perf_counter(), []
    outbox: Mapping[ClientId, bytes] = coordinator.open()
    opening = time.perf_counter() - started
    while outbox:
        phase = PhaseReport(coordinator.phase, len(outbox), bytes_down=sum(map(len, outbox.values())))
        phase_started, spent_before = time.perf_counter(), spent()
        meter = _Meter(exchange(outbox), phase)
        outbox = coordinator.turn(meter)
        phase.seconds = time.perf_counter() - phase_started
        phase.server_seconds = phase.seconds - meter.waited
        phase.client_seconds = spent() - spent_before
        phases.append(phase)
    report = coordinator.report
    report.phases = phases
    report.bytes_up, report.bytes_down = sum(p.bytes_up for p in phases), sum(p.bytes_down for p in phases)
    report.seconds = time.perf_counter() - started
    report.server_seconds = opening + sum(phase.server_seconds for phase in phases)
    return report


class _Meter:
    """Pass an inbox on, counting it, and the seconds spent waiting for it."""

    def __init__(self, inbox: Iterable[tuple[ClientId, Frame]], phase: PhaseReport) -> None:
        self._inbox, self._phase, self.waited = iter(inbox), phase, 0.0

    def __iter__(self) -> _Meter:
        return self

    def __next__(self) -> tuple[ClientId, Frame]:
        started = time.perf_counter()
        try:
            client, frame = next(self._inbox)
        finally:
            self.waited += time.perf_counter() - started
        self._phase.messages_up += 1
        self._phase.bytes_up += len(frame)
        return client, frame
