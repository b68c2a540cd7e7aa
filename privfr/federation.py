"""A federated run: the server's side (`Coordinator`), a client's side (`Member`), and one loop.

    coordinator.open() -> outbox -> exchange -> inbox -> coordinator.turn(inbox) -> outbox -> ... -> {}

An engine is the function `exchange`: it carries each frame of an outbox to its client and hands back the
answers, in the outbox's order as far as it can. Nothing here knows a concrete backend, a method, or
where the clients are.

A round, seen from here: `Begin` to every client; the backend's phases; `Result` to every client of the
roster, also to those who dropped out; `Ack`. A client that missed a result is sent the model with its
next `Begin`: the current model, not a replay of rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
import numpy as np

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
    Result,
    RoundSpec,
    Sealed,
    ServerSession,
)
from privfr.vector import Aggregate, Update, Vector, digest, from_bytes
from privfr.wire import Frame, decode, encode, kind

__all__ = [
    "Coordinator",
    "Exchange",
    "Learner",
    "Member",
    "PhaseReport",
    "Policy",
    "RoundReport",
    "first_model",
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
    to a number of the mean update, 0 for float32; it does not hold for the `saturated` clients that had a
    number beyond `coding.clip`.
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
        """Train from `model`, float32 [size], on this client's own data."""

    def save(self) -> bytes:
        """Everything private that lasts from round to round."""

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave."""


class _SavedMember(msgspec.Struct, frozen=True, array_like=True):
    model: bytes | None
    learner: bytes
    spec: RoundSpec | None
    session: bytes | None
    run: bytes
    begun: int


@dataclass
class Member:
    """A client: answers each frame of the server's with one of its own.

    It checks the server's proposal against its own policy and experiment first, then trains, then goes
    through the backend's phases, and applies the round's result. keyring: what the backend provisioned.
    parameters: the backend's, as this client worked them out itself.  model: float32 [size], or None to be
    sent it with the first round; with momentum as `apply` says.  learn_seconds: CPU seconds spent training.
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
    momentum: float = 0.0
    learn_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._run, self._begun = b"", -1
        self._known: tuple[Vector | None, bytes] = (None, b"")
        self._spec: RoundSpec | None = None
        self._session: ClientSession | None = None

    def receive(self, frame: Frame) -> bytes:
        """Answer one frame. Raises `RemoteProtocolError`, and then nothing has changed."""
        what = kind(frame)
        if what == "begin":
            return self._begin(frame)
        if what == "result":
            return self._finish(decode(frame, Result))
        if self._session is None:
            raise WrongPhase(f"a message of kind {what!r} outside of a round")
        return self._session.receive(frame)

    def _begin(self, frame: Frame) -> bytes:
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
        size = spec.size * (2 if self.momentum else 1)
        model = from_bytes(begin.bulk, size).copy() if len(begin.bulk) else self.model
        if model is None or model.size != size or self._digest(model) != spec.model:
            raise PolicyRefused("the model to train from is not the one the round names")
        return model

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
        model = apply(self.model, self.backend.open(spec, sealed, self.keyring), self.momentum)
        self.model, self._spec, self._session = model, None, None
        return encode(Ack(self._digest(model)))

    def _digest(self, model: Vector) -> bytes:
        """Hash a model once: the one a round ends with is the one the next begins with."""
        if self._known[0] is not model:
            self._known = (model, digest(model))
        return self._known[1]

    def save(self) -> bytes:
        """Everything needed to go on in another process, between any two frames. Secret."""
        session = self._session.save() if self._session else None
        model = None if self.model is None else self.model.astype("<f4").tobytes()
        return msgspec.msgpack.encode(
            _SavedMember(model, self.learner.save(), self._spec, session, self._run, self._begun)
        )

    def restore(self, saved: bytes) -> None:
        """Take up what `save` gave, in a member set up like the one that saved."""
        found = msgspec.msgpack.decode(saved, type=_SavedMember)
        self.model = None if found.model is None else np.frombuffer(found.model, "<f4").copy()
        self.learner.restore(found.learner)
        self._spec, self._run, self._begun = found.spec, found.run, found.begun
        self._session = None
        if found.session is not None:
            self._session = ClientSession.restore(self.backend, found.session, self.entropy)

    def __repr__(self) -> str:
        """Name the client; everything else is its own business."""
        return f"<Member {self.client}>"


def apply(model: Vector, aggregate: Aggregate, momentum: float) -> Vector:
    """Return the next model: the last one plus the mean update (FedAvg, McMahan et al. 2017).

    With momentum, plus the velocity: the mean update and `momentum` times the last velocity (FedAvgM, Hsu
    et al. 2019, arXiv 1909.06335). The velocity then follows the model in the same vector, [2 size], since
    every member needs both to take the next step.
    """
    if not momentum:
        return model + aggregate.vector
    weights, velocity = np.split(model, 2)
    velocity = np.float32(momentum) * velocity + aggregate.vector
    return np.concatenate([weights + velocity, velocity])


def first_model(weights: Vector, momentum: float) -> Vector:
    """Return the model vector a run begins with: the weights, and with momentum a velocity of zeros."""
    return np.concatenate([weights, np.zeros_like(weights)]) if momentum else weights


@dataclass
class Coordinator:
    """The server of a run. It keeps the model where the backend lets it open the sum, else None.

    keyring: what the backend provisioned for the server.  roster: all clients, ascending.
    threshold: fewest survivors of a round.  parameters: the backend's, as its `plan` gives them.
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
    model: Vector
    parameters: bytes = b""
    momentum: float = 0.0
    round: int = 0
    current: set[ClientId] = field(default_factory=set)
    report: RoundReport = field(default_factory=lambda: RoundReport(0, 0))

    def __post_init__(self) -> None:
        self._session: ServerSession | None = None
        try:
            self._spec().check()
        except BadFrame as error:
            raise LocalProtocolError(f"a run that cannot be: {error}") from None

    def open(self) -> dict[ClientId, bytes]:
        """Open the next round: a `Begin` for each client, with the model for those who lack it."""
        spec = self._spec()
        self.report = RoundReport(self.round, len(self.roster))
        self._session = ServerSession(self.backend, spec, self.backend.server_state(spec, self.keyring))
        short = encode(Begin(spec, memoryview(b"")))
        full = encode(Begin(spec, self.model.astype("<f4").data.cast("B"))) if self._stale() else b""
        return {client: short if client in self.current else full for client in self.roster}

    def turn(self, inbox: Iterable[tuple[ClientId, Frame]]) -> Mapping[ClientId, bytes]:
        """Take one phase's answers; gives the next outbox, empty when the round is over."""
        session = self._session
        if session is None:
            raise LocalProtocolError("no round is open: open one first")
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
            self.current -= set(session.dropped)
            self._end()
        return outbox

    def _spec(self) -> RoundSpec:
        return RoundSpec(
            run=self.run,
            round=self.round,
            backend=self.backend.name,
            clients=self.roster,
            threshold=self.threshold,
            metrics=self.metrics,
            size=self.model.size // (2 if self.momentum else 1),
            layout=self.layout,
            model=digest(self.model),
            config=self.config,
            parameters=self.parameters,
        )

    @property
    def phase(self) -> str:
        """The phase whose answers are awaited."""
        if self._session is None:
            return "closed"
        return "result" if self._session.sealed else self._session.phase

    def _stale(self) -> set[ClientId]:
        return set(self.roster) - self.current

    def _result(self, spec: RoundSpec, sealed: Sealed) -> dict[ClientId, bytes]:
        aggregate = self.backend.open(spec, sealed, self.keyring)
        self.model = apply(self.model, aggregate, self.momentum)
        self.report.survivors, self.report.weight = aggregate.count, aggregate.weight
        self.report.metrics = dict(aggregate.metrics)
        self.report.error, self.report.saturated = aggregate.error, aggregate.saturated
        frame = encode(Result(spec.context(), memoryview(encode(sealed))))
        return dict.fromkeys(self.roster, frame)

    def _collect_acks(self, inbox: Iterable[tuple[ClientId, Frame]]) -> None:
        expected, heard = digest(self.model), set()
        self.current = set()
        for client, frame in inbox:
            try:
                if client in heard or client not in self.roster:
                    raise Duplicate("a second answer, or one from outside the roster")
                heard.add(client)
                if decode(frame, Ack, ENVELOPE).model != expected:
                    raise BadFrame("the client ended the round with another model")
            except RemoteProtocolError as error:
                self.report.faults.append((client, f"result: {type(error).__name__}: {error}"))
                continue
            self.current.add(client)
        for client in self._stale():
            self.report.dropped.setdefault(client, "result")
        self._end()

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
