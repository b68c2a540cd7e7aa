"""The round machine under every interleaving that a hostile network and hostile clients can make."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from insecure import (
    METRICS,
    SIZE,
    InsecureEntropy,
    RoundInHand,
    exact_sum,
    round_in_hand,
    spec_of,
    whole_update,
)

from privfr.backends import plain
from privfr.backends.plain import PLAIN, Summand
from privfr.backends.trusted import _NAME_BYTES, Boxed
from privfr.errors import BadFrame, LocalProtocolError, RemoteProtocolError, TooFewClients, WrongPhase
from privfr.protocol import (
    Ack,
    Begin,
    ClientId,
    ClientSession,
    ClientStep,
    Entropy,
    OnDemand,
    Outbox,
    Sealed,
    ServerStep,
)
from privfr.vector import Vector
from privfr.wire import Message, decode, encode, register

OUTSIDER = 99
BACKENDS = ["plain", "trusted"]
LENGTH = 1 + len(METRICS) + SIZE


def total_of(round_: RoundInHand, sealed: Sealed) -> list[float]:
    found: list[float] = np.frombuffer(sealed.bulk, "<f4").tolist()
    return found


class HostileNetwork(RuleBasedStateMachine):
    """One single-phase round. The model beside it: who was heard, whose summand is in the sum."""

    name = ""

    @initialize(n=st.integers(2, 5), data=st.data())
    def open(self, n: int, data: st.DataObject) -> None:
        threshold = data.draw(st.integers(2, n))
        self.round = round_in_hand(self.name, n, threshold, seed=data.draw(st.integers(0, 3)))
        spec = self.round.spec
        self.frames = self.frames_for(spec)
        self.elsewhere = [
            self.frames_for(msgspec.structs.replace(spec, **change))
            for change in ({"round": 1}, {"run": b"s" * 16}, {"model": b"m" * 32}, {"threshold": n + 1})
        ]
        self.heard: set[ClientId] = set()
        self.summed: list[tuple[ClientId, Vector]] = []
        self.faults: list[ClientId] = []
        self.over = self.finished = self.mutated = False

    def frames_for(self, spec: Any) -> dict[ClientId, bytes]:
        opening = encode(Begin(spec, memoryview(b"")))
        return {
            client: self.round.session(client, spec).receive(opening) for client in self.round.spec.clients
        }

    def clients(self) -> st.SearchStrategy[ClientId]:
        return st.sampled_from(self.round.spec.clients)

    def deliver(self, client: ClientId, frame: bytes, summand: Vector | None) -> None:
        """Submit a frame; `summand` is what it should add to the sum, None if it should be refused."""
        first = client in self.round.spec.clients and client not in self.heard
        if client in self.round.spec.clients:
            self.heard.add(client)
        accepted = self.round.server.absorb(client, frame)
        assert accepted == (first and summand is not None)
        if accepted:
            assert summand is not None
            self.summed.append((client, summand))
        else:
            self.faults.append(client)

    def summand(self, client: ClientId) -> Vector:
        return self.round.updates[client].summand(METRICS)

    def whole(self) -> list[list[int]]:
        return [[int(number) for number in summand] for _, summand in self.summed]

    def in_clear(self, frame: bytes) -> Vector | None:
        """What backend `plain` reads in a frame, worked out apart from it."""
        head, true_head = frame[: -4 * LENGTH], self.frames[1][: -4 * LENGTH]
        summand: Vector = np.frombuffer(frame[-4 * LENGTH :], np.float32)
        good = head == true_head and float(np.abs(summand).max()) < 1e19 and summand[0] > 0
        return summand if good else None

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def answers(self, data: st.DataObject) -> None:
        client = data.draw(self.clients())
        self.deliver(client, self.frames[client], self.summand(client))

    @precondition(lambda self: not self.over)
    @rule(data=st.data(), garbage=st.binary(max_size=200))
    def sends_garbage(self, data: st.DataObject, garbage: bytes) -> None:
        self.deliver(data.draw(self.clients()), garbage, None)

    @precondition(lambda self: not self.over)
    @rule(
        data=st.data(),
        message=st.sampled_from([Ack(b"y" * 32), Sealed((1, 2), memoryview(bytes(4 * LENGTH)))]),
    )
    def sends_another_message(self, data: st.DataObject, message: Message) -> None:
        self.deliver(data.draw(self.clients()), encode(message), None)

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def is_cut_short_or_run_on(self, data: st.DataObject) -> None:
        client = data.draw(self.clients())
        frame = self.frames[client]
        end = data.draw(st.integers(0, len(frame) - 1))
        self.deliver(client, data.draw(st.sampled_from([frame[:end], frame + frame[end:]])), None)

    @precondition(lambda self: not self.over)
    @rule(data=st.data(), flip=st.integers(1, 255))
    def is_mutated(self, data: st.DataObject, flip: int) -> None:
        client = data.draw(self.clients())
        frame = bytearray(self.frames[client])
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= flip
        summand = self.in_clear(bytes(frame)) if self.name == "plain" else None
        if 1e18 < float(np.abs(np.frombuffer(frame[-4 * LENGTH :], "<f4")).max()) < 1e20:
            return  # at the edge of what is refused, which backends/test_plain.py looks at
        self.mutated = True
        self.deliver(client, bytes(frame), summand)

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def sends_what_another_client_sent(self, data: st.DataObject) -> None:
        client, other = data.draw(self.clients()), data.draw(self.clients())
        if client != other:
            # In clear it is the sender's own answer, whoever wrote it; a box is bound to its client.
            self.deliver(client, self.frames[other], self.summand(other) if self.name == "plain" else None)

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def is_replayed_from_elsewhere(self, data: st.DataObject) -> None:
        client = data.draw(self.clients())
        self.deliver(client, data.draw(st.sampled_from(self.elsewhere))[client], None)

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def is_too_large(self, data: st.DataObject) -> None:
        kind = (
            Summand(self.round.spec.context(), memoryview(bytes(100_000))) if self.name == "plain" else None
        )
        frame = encode(kind or Boxed(memoryview(bytes(100_000))))
        client = data.draw(self.clients())
        first = client not in self.heard
        self.deliver(client, frame, None)
        assert not first or "TooLarge" in self.round.server.faults[-1][1]

    @precondition(lambda self: not self.over)
    @rule(data=st.data(), client=st.sampled_from([OUTSIDER, 0, -1, 2**70]))
    def comes_from_outside_the_roster(self, data: st.DataObject, client: ClientId) -> None:
        self.deliver(client, self.frames[data.draw(self.clients())], None)

    @precondition(lambda self: not self.over)
    @rule()
    def closes(self) -> None:
        self.over = True
        survivors = [client for client, _ in self.summed]
        server = self.round.server
        if len(survivors) < self.round.spec.threshold:
            with pytest.raises(TooFewClients):
                server.close()
            assert server.sealed is None
            return
        assert server.close() == {}
        self.finished = True
        assert server.sealed is not None
        assert list(server.sealed.survivors) == sorted(survivors)
        expected = np.zeros(LENGTH, np.float32)
        for _, summand in self.summed:
            expected += summand
        assert total_of(self.round, server.sealed) == expected.tolist()
        if not self.mutated:
            assert expected.tolist() == [sum(column) for column in zip(*self.whole(), strict=True)]
        assert server.dropped == dict.fromkeys(set(self.round.spec.clients) - set(survivors), "contribute")
        for key in (self.round.server_key, *self.round.client_keys.values()):
            mean = self.round.backend.open(self.round.spec, server.sealed, key)
            assert mean.count == len(survivors)
            assert mean.weight == expected[0]

    @precondition(lambda self: self.finished)
    @rule(data=st.data())
    def goes_on_after_the_end(self, data: st.DataObject) -> None:
        client = data.draw(self.clients())
        with pytest.raises(LocalProtocolError):
            self.round.server.absorb(client, self.frames[client])
        with pytest.raises(LocalProtocolError):
            self.round.server.close()

    @precondition(lambda self: self.over and not self.finished)
    @rule()
    def stays_without_an_aggregate(self) -> None:
        assert self.round.server.sealed is None

    @invariant()
    def faults_name_the_sender(self) -> None:
        if hasattr(self, "faults"):
            assert [client for client, _ in self.round.server.faults] == self.faults


class HostileNetworkPlain(HostileNetwork):
    name = "plain"


class HostileNetworkTrusted(HostileNetwork):
    name = "trusted"


TestHostileNetworkPlain = HostileNetworkPlain.TestCase
TestHostileNetworkTrusted = HostileNetworkTrusted.TestCase
TestHostileNetworkPlain.settings = settings(max_examples=400, stateful_step_count=20, deadline=None)
TestHostileNetworkTrusted.settings = settings(max_examples=250, stateful_step_count=20, deadline=None)


# A protocol of two phases: a roll call, then backend `plain` among those who answered it.


@register
class Here(Message, frozen=True, tag="test.here"):
    """Client to server: taking part."""

    context: bytes


@register
class Go(Message, frozen=True, tag="test.go"):
    """Server to client: these take part, speak."""

    present: tuple[ClientId, ...]


@dataclass
class RollCall:
    present: tuple[ClientId, ...]
    sum: plain.ServerState


def _call(state: plain.ClientState, begin: Begin, entropy: Entropy) -> tuple[plain.ClientState, Message]:
    if begin.spec.context() != state.context:
        raise WrongPhase("another round")
    # A nonce, so that a restored session shows whether it draws its randomness anew.
    return msgspec.structs.replace(state, key=entropy(8)), Here(state.context)


def _speak(state: plain.ClientState, go: Go, entropy: Entropy) -> tuple[plain.ClientState, Message]:
    if state.client not in go.present:
        raise BadFrame("not without me")
    return state, Summand(state.context, memoryview(state.summand))


def _present(state: RollCall, client: ClientId, here: Here) -> RollCall:
    if here.context != state.sum.context:
        raise WrongPhase("another round")
    return replace(state, present=(*state.present, client))


def _close_call(state: RollCall) -> tuple[RollCall, Mapping[ClientId, Message] | Sealed]:
    return state, dict.fromkeys(state.present, Go(state.present))


def _absorb(state: RollCall, client: ClientId, answer: Summand) -> RollCall:
    return replace(state, sum=plain.absorb(state.sum, client, answer))


def _close_sum(state: RollCall) -> tuple[RollCall, Mapping[ClientId, Message] | Sealed]:
    return state, plain.close(state.sum)[1]


TWO_PHASES = replace(
    PLAIN,
    name="two-phases",
    client_steps=(ClientStep("call", Begin, _call), ClientStep("speak", Go, _speak)),
    server_steps=(
        ServerStep("call", Here, _present, _close_call, lambda spec: 100),
        ServerStep("speak", Summand, _absorb, _close_sum, plain.limit),
    ),
    server_state=lambda spec, key: RollCall((), plain.server_state(spec)),
)


def two_phases(n: int = 4, threshold: int = 2) -> RoundInHand:
    clients = range(1, n + 1)
    return RoundInHand(
        TWO_PHASES, spec_of(TWO_PHASES, clients, threshold), {c: whole_update(c) for c in clients}
    )


@pytest.mark.parametrize("lost", list(itertools.product(range(3), repeat=4)), ids=str)
def test_two_phases_with_every_pattern_of_loss(lost: tuple[int, ...]) -> None:
    """lost: for each client the phase from which it is silent; 2 for never."""
    round_ = two_phases()
    survivors = [client for client, phase in enumerate(lost, 1) if phase == 2]
    if len(survivors) < 2:
        with pytest.raises(TooFewClients):
            round_.play(dict(enumerate(lost, 1)))
        return
    server = round_.play(dict(enumerate(lost, 1)))
    assert server.sealed is not None
    assert list(server.sealed.survivors) == survivors
    assert total_of(round_, server.sealed) == exact_sum(round_.updates[c] for c in survivors)
    assert server.dropped == {c: ("call", "speak")[p] for c, p in enumerate(lost, 1) if p < 2}
    assert server.faults == []


def test_whoever_missed_a_phase_stays_out() -> None:
    round_ = two_phases()
    opening = round_.opening()
    calls = {client: round_.clients[client].receive(frame) for client, frame in opening.items()}
    outbox = round_.server.turn([(1, calls[1]), (2, calls[2]), (3, calls[3])])
    assert set(outbox) == {1, 2, 3}
    late = encode(Summand(round_.spec.context(), memoryview(round_.updates[4].summand(METRICS).tobytes())))
    assert not round_.server.absorb(4, late)
    assert not round_.server.absorb(4, calls[4])
    assert not round_.server.absorb(1, calls[1])
    for client in (2, 3):
        assert round_.server.absorb(client, round_.clients[client].receive(outbox[client]))
    assert round_.server.close() == {}
    assert round_.server.sealed is not None
    assert round_.server.sealed.survivors == (2, 3)
    assert [client for client, _ in round_.server.faults] == [4, 4, 1]
    assert all(text.startswith("speak: WrongPhase") for _, text in round_.server.faults)
    assert round_.server.dropped == {4: "call", 1: "speak"}


def test_a_client_out_of_turn() -> None:
    session = two_phases().clients[1]
    opening = two_phases().opening()[1]
    go = encode(Go((1, 2)))
    assert session.phase == "call"
    for wrong in (go, b"", encode(Ack(b""))):
        with pytest.raises(RemoteProtocolError):
            session.receive(wrong)
        assert session.phase == "call"
    session.receive(opening)
    assert session.phase == "speak"
    before = session.save()
    for wrong in (opening, encode(Go((2, 3))), go[:-1]):
        with pytest.raises(RemoteProtocolError):
            session.receive(wrong)
        assert session.save() == before
    session.receive(go)
    assert session.phase == "done"
    for wrong in (go, opening):
        with pytest.raises(WrongPhase):
            session.receive(wrong)
        assert session.phase == "done"


def test_a_client_refuses_the_opening_of_another_round() -> None:
    for name in BACKENDS:
        round_ = round_in_hand(name)
        for change in (
            {"round": 1},
            {"run": b"s" * 16},
            {"clients": (1, 2, 3)},
            {"threshold": 3},
            {"config": b""},
        ):
            begin = Begin(msgspec.structs.replace(round_.spec, **change), memoryview(b""))
            with pytest.raises(WrongPhase):
                round_.clients[1].receive(encode(begin))
            assert round_.clients[1].phase == "contribute"


def opened(round_: RoundInHand, answer: bytes) -> bytes:
    """What an answer says: a box's content, since libsodium draws a sealed box's own key by itself."""
    if round_.backend.name != "trusted":
        return answer
    aggregator = round_.server_key.__self__
    return bytes(aggregator._box.decrypt(bytes(decode(answer, Boxed).bulk)))[_NAME_BYTES:]


@pytest.mark.parametrize("name", [*BACKENDS, "two-phases"])
def test_a_client_saved_between_any_two_messages_says_the_same(name: str) -> None:
    def start() -> RoundInHand:
        return two_phases() if name == "two-phases" else round_in_hand(name)

    def answers(saved_before: int | None) -> list[bytes]:
        round_ = start()
        frames = [round_.opening()[1], encode(Go((1, 2)))][: len(round_.backend.client_steps)]
        session, said = round_.clients[1], []
        for at, frame in enumerate(frames):
            if at == saved_before:
                session = ClientSession.restore(round_.backend, session.save(), InsecureEntropy(5))
            said.append(opened(round_, session.receive(frame)))
        again = ClientSession.restore(round_.backend, session.save(), InsecureEntropy(5))
        assert again.phase == session.phase == "done"
        assert again.save() == session.save()
        return said

    true = answers(None)
    assert true == answers(0)
    assert true == answers(len(true) - 1)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_failed_round_is_over(name: str) -> None:
    """`TooFewClients` ends the round; a straggler must not be added to what was reported as lost."""
    round_ = round_in_hand(name, 3, 2)
    frames = {client: round_.clients[client].receive(frame) for client, frame in round_.opening().items()}
    with pytest.raises(TooFewClients):
        round_.server.turn([(1, frames[1])])
    assert round_.server.phase == "done"
    with pytest.raises(LocalProtocolError):
        round_.server.absorb(2, frames[2])
    with pytest.raises(LocalProtocolError):
        round_.server.close()


def test_a_bug_in_a_step_is_not_the_clients_fault() -> None:
    """Only protocol errors are faults; any other exception is ours and must be seen."""

    def broken(state: plain.ServerState, client: ClientId, answer: Summand) -> plain.ServerState:
        raise ZeroDivisionError

    step = replace(PLAIN.server_steps[0], absorb=broken)
    round_ = round_in_hand("plain")
    round_.server.backend = replace(PLAIN, server_steps=(step,))
    with pytest.raises(ZeroDivisionError):
        round_.server.absorb(1, round_.clients[1].receive(round_.opening()[1]))
    assert round_.server.faults == []


def test_a_message_for_many_is_encoded_once() -> None:
    shared, own = Go((1, 2)), Go((3,))
    frames = list(Outbox({1: shared, 3: shared, 2: own}).items())
    assert frames[0][1] is frames[1][1]
    assert [(client, decode(frame, Go)) for client, frame in frames] == [(1, shared), (3, shared), (2, own)]


def test_messages_on_demand_are_made_when_they_are_asked_for() -> None:
    made: list[ClientId] = []

    def make(client: ClientId) -> Go:
        made.append(client)
        return Go((client,))

    outbox = Outbox(OnDemand((1, 2), make))
    assert (len(outbox), list(outbox), made) == (2, [1, 2], [])
    assert decode(outbox[2], Go) == Go((2,))
    assert made == [2]
    with pytest.raises(KeyError):
        outbox[3]


def test_a_context_depends_on_every_field() -> None:
    spec = spec_of(PLAIN, (1, 2, 3))
    changes: dict[str, Any] = {
        "run": b"s" * 16, "round": 1, "backend": "other", "clients": (1, 2), "threshold": 3,
        "metrics": ("loss",), "size": 6, "layout": b"", "model": b"", "config": b"",
        "parameters": b"other",
    }  # fmt: skip
    assert set(changes) == set(spec.__struct_fields__)
    contexts = {msgspec.structs.replace(spec, **{name: value}).context() for name, value in changes.items()}
    assert len(contexts | {spec.context()}) == len(changes) + 1
