"""Whole rounds and runs between a coordinator and members, and everything that can get lost or go wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from insecure import (
    CONFIG,
    LAYOUT,
    METRICS,
    RUN,
    SIZE,
    Federation,
    WholeLearner,
    federation,
    member_of,
    spec_of,
)

from privfr.averaging import FedAvg
from privfr.backends import BACKENDS
from privfr.errors import LocalProtocolError, PolicyRefused, PrivfrError, RemoteProtocolError, WrongPhase
from privfr.federation import Coordinator, Policy, RoundReport, run_round
from privfr.protocol import Ack, Begin, ClientId, Result, RoundSpec, Sealed
from privfr.vector import LARGEST_NORM, Update, Vector, digest
from privfr.wire import Frame, decode, encode

EMPTY = memoryview(b"")
EXACT = ("plain", "trusted")
every_backend = pytest.mark.parametrize("name", list(BACKENDS))


def once(client: ClientId, what: str, loss: str) -> Callable[[ClientId, str], str]:
    """Lose one client's frame of one kind, each time it comes."""
    return lambda c, w: loss if (c, w) == (client, what) else ""


def round_of(found: Federation) -> RoundReport:
    return run_round(found.exchange, found.coordinator)


def blind(found: Federation) -> bool:
    return found.coordinator.backend.server_learns == "nothing"


def model_of(found: Federation) -> Vector:
    """The run's model: the server's, or where it must not have one, that of a client known to hold it."""
    held = found.coordinator.model
    if held is None:
        assert blind(found)
        held = found.members[min(found.coordinator.current)].model
    assert held is not None
    return held


def model_bytes(found: Federation) -> bytes:
    return model_of(found).tobytes()


def told(found: Federation, report: RoundReport) -> RoundReport:
    """Give a round's report with what only members know of it, where the server does not."""
    if blind(found) and not report.failed:
        assert (report.weight, report.metrics) == (0.0, {}), "the server is not to know"
        outcome = found.members[min(found.coordinator.current)].outcome
        assert outcome is not None
        report.tell(outcome)
    return report


def holds_model(found: Federation, client: ClientId) -> bool:
    model = found.members[client].model
    return model is not None and model.tobytes() == model_bytes(found)


def sent_in_full(found: Federation) -> set[ClientId]:
    """Clients whose last `Begin` held the model."""
    last = {c: decode(frame, Begin) for what, c, frame in found.down if what == "begin"}
    return {c for c, begin in last.items() if len(begin.bulk)}


def ids(report: RoundReport) -> list[ClientId]:
    return [client for client, _ in report.faults]


@every_backend
def test_rounds_move_every_member_to_the_same_model(name: str) -> None:
    found = federation(name)
    learners = {c: WholeLearner(c) for c in found.members}
    expected: Vector = np.zeros(SIZE, np.float32)
    for number in range(3):
        report = told(found, round_of(found))
        updates = [learner.update(number, number + 1) for learner in learners.values()]
        weight = sum(u.weight for u in updates)
        total = np.sum([u.vector * u.weight for u in updates], axis=0, dtype=np.float64).astype(np.float32)
        expected = expected + total / np.float32(weight)
        assert report.round == number
        assert report.survivors == report.clients == 4
        assert report.failed == ""
        assert not (report.dropped or report.faults or report.missed)
        if name in EXACT:
            assert found.coordinator.model.tolist() == expected.tolist()
            assert report.weight == weight
        assert np.allclose(model_of(found), expected, atol=1e-2)
        assert report.metrics["loss"] == pytest.approx(
            sum(u.weight * u.metrics["loss"] for u in updates) / weight, abs=1e-2
        )
        assert all(holds_model(found, c) for c in found.members)
        assert sent_in_full(found) == (set(found.members) if number == 0 else set())
    assert found.coordinator.round == 3


@every_backend
def test_with_momentum_every_member_keeps_the_same_velocity(name: str) -> None:
    """FedAvgM written out anew; a client that missed a round is sent the velocity with the weights."""
    found, momentum = federation(name), np.float32(0.75)
    rule = FedAvg(float(momentum))
    found.coordinator.rule, found.coordinator.model = rule, rule.begin(model_of(found))
    for member in found.members.values():
        member.rule = rule
    weights, velocity = np.zeros((2, SIZE), np.float32)
    for number in range(4):
        found.lose = once(2, "result", "request") if number == 1 else lambda client, what: ""
        report = round_of(found)
        assert (report.survivors, report.missed) == (4, [2] if number == 1 else [])
        assert sent_in_full(found) == {0: {1, 2, 3, 4}, 2: {2}}.get(number, set())
        updates = [WholeLearner(c).update(number, number + 1) for c in found.members]
        mean = np.sum([u.vector * u.weight for u in updates], axis=0) / sum(u.weight for u in updates)
        velocity = momentum * velocity + mean.astype(np.float32)
        weights = weights + velocity
        expected = np.concatenate([weights, velocity])
        assert np.allclose(model_of(found), expected, rtol=0, atol=1e-4 if name in EXACT else 5e-2)
        assert [c for c in found.members if not holds_model(found, c)] == report.missed


def test_momentum_that_is_not_the_same_everywhere_is_found_out() -> None:
    found = federation("plain")
    found.members[3].rule = FedAvg(0.5)
    report = round_of(found)
    assert set(report.dropped) == {3}
    assert report.survivors == 3


def kinds_of(name: str) -> list[str]:
    """Kinds of the server's messages in one round of a backend, in order."""
    found = federation(name)
    round_of(found)
    return list(dict.fromkeys(what for what, _, _ in found.down))


EACH_LOSS = [
    (name, what, loss) for name in BACKENDS for what in kinds_of(name) for loss in ("request", "answer")
]


@pytest.mark.parametrize(("name", "what", "loss"), EACH_LOSS)
def test_one_client_loses_one_frame(name: str, what: str, loss: str) -> None:
    """Whatever is lost, the others go on, and the client is back in the next round."""
    found = federation(name)
    round_of(found)
    found.lose = once(2, what, loss)
    report = round_of(found)
    assert report.failed == ""
    assert report.survivors >= 3
    assert set(report.dropped) == {2}
    assert not report.faults
    got_result = not (what == "begin" and loss == "request") and not (what == "result" and loss == "request")
    acked = got_result and what != "result"
    assert report.missed == ([] if acked else [2])
    assert holds_model(found, 2) == got_result
    assert all(holds_model(found, c) for c in (1, 3, 4))
    found.lose = lambda client, what: ""
    report = round_of(found)
    assert sent_in_full(found) == (set() if acked else {2})
    assert report.survivors == 4
    assert not (report.dropped or report.faults or report.missed)
    assert all(holds_model(found, c) for c in found.members)


@every_backend
def test_a_client_lost_in_training_still_gets_the_result(name: str) -> None:
    found = federation(name)
    found.lose = once(3, "begin", "answer")
    report = round_of(found)
    assert report.survivors == 3
    assert list(report.dropped) == [3]
    assert report.missed == []
    assert holds_model(found, 3)


@every_backend
def test_a_failed_round_changes_no_model_and_the_next_one_works(name: str) -> None:
    found = federation(name, threshold=3)
    round_of(found)
    before = model_bytes(found)
    found.lose = lambda client, what: "request" if client > 2 else ""
    report = round_of(found)
    assert "2 of 4" in report.failed
    assert report.survivors == 0
    assert set(report.dropped) == {3, 4}
    assert model_bytes(found) == before
    assert all(holds_model(found, c) for c in found.members)
    found.lose = lambda client, what: ""
    report = round_of(found)
    assert report.round == 2
    assert report.survivors == 4
    assert report.failed == ""
    assert model_bytes(found) != before
    assert all(holds_model(found, c) for c in found.members)


@every_backend
@pytest.mark.parametrize("number", [0, 1])
def test_a_round_in_which_everybody_is_lost_does_not_end_the_run(name: str, number: int) -> None:
    found = federation(name)
    for _ in range(number):
        round_of(found)
    for what in kinds_of(name)[:-1]:
        found.lose = lambda client, kind, lost=what: "answer" if kind == lost else ""
        assert round_of(found).failed
    found.lose = lambda client, what: ""
    assert round_of(found).failed == ""
    assert all(holds_model(found, c) for c in found.members)


@every_backend
def test_clients_that_lost_the_model_are_sent_it_after_a_failed_round(name: str) -> None:
    """Members set up anew refuse a short `Begin`; the coordinator must not send short ones for ever."""
    found = federation(name)
    round_of(found)
    for member in found.members.values():
        member.model = None
    assert round_of(found).failed
    if blind(found):  # nobody has it any more: no round can mend that
        assert "0 of 4" in round_of(found).failed
        return
    assert round_of(found).failed == ""
    assert all(holds_model(found, c) for c in found.members)


@every_backend
def test_a_client_with_an_older_model_costs_itself_one_round(name: str) -> None:
    found = federation(name)
    old = found.members[1].save()
    round_of(found)
    found.members[1].restore(old)
    report = round_of(found)
    assert set(report.dropped) == {1}
    assert report.missed == [1]
    assert any("PolicyRefused" in why for _, why in found.refusals)
    report = round_of(found)
    assert sent_in_full(found) == {1}
    assert report.survivors == 4
    assert holds_model(found, 1)


CHANGES: dict[str, Any] = {
    "layout": b"x" * 32, "config": b"x" * 32, "metrics": ("accuracy", "loss"), "model": b"x" * 32,
    "backend": "another", "clients": (2, 3), "threshold": 1, "parameters": b"x",
}  # fmt: skip


@every_backend
@pytest.mark.parametrize("what", list(CHANGES))
def test_a_member_refuses_a_round_it_was_not_set_up_for(name: str, what: str) -> None:
    member = federation(name, 3).members[1]
    member.model = np.zeros(SIZE, np.float32)
    before = member.save()
    spec = msgspec.structs.replace(spec_of(member.backend, (1, 2, 3)), **{what: CHANGES[what]})
    with pytest.raises(RemoteProtocolError):
        member.receive(encode(Begin(spec, EMPTY)))
    assert member.save() == before
    member.receive(encode(Begin(spec_of(member.backend, (1, 2, 3)), EMPTY)))


@every_backend
@pytest.mark.parametrize("clients", [(2, 3, 4), (1, 1, 2), (2, 1, 3), (1, 3, 2), ()], ids=str)
def test_a_member_refuses_an_impossible_roster(name: str, clients: tuple[int, ...]) -> None:
    member = federation(name).members[1]
    member.model = np.zeros(SIZE, np.float32)
    with pytest.raises(RemoteProtocolError):
        spec = msgspec.structs.replace(spec_of(member.backend, (1, 2, 3, 4)), clients=clients, threshold=2)
        member.receive(encode(Begin(spec, EMPTY)))


@every_backend
@pytest.mark.parametrize("changes", [{"layout": b"x"}, {"config": b"x"}, {"metrics": ("loss",)}], ids=str)
def test_a_member_set_up_otherwise_costs_only_itself(name: str, changes: dict[str, Any]) -> None:
    found = federation(name)
    found.members[2] = member_of(found.coordinator.backend, 2, found.members[2].keyring, **changes)
    report = round_of(found)
    assert report.survivors == 3
    assert set(report.dropped) == {2}
    assert report.missed == [2]
    assert any(client == 2 and "PolicyRefused" in why for client, why in found.refusals)
    assert found.members[2].model is None


def test_a_member_of_another_backend_costs_only_itself() -> None:
    found, other = federation("plain"), federation("trusted")
    found.members[3] = other.members[3]
    assert set(round_of(found).dropped) == {3}
    assert any(client == 3 and "backend" in why for client, why in found.refusals)


@pytest.mark.parametrize(
    ("policy", "accepts"),
    [
        (Policy(), True),
        (Policy(minimum_clients=4), True),
        (Policy(minimum_clients=5), False),
        (Policy(minimum_threshold=3), True),
        (Policy(minimum_threshold=4), False),
        (Policy(backends=("trusted", "plain")), True),
        (Policy(backends=("trusted",)), False),
    ],
    ids=str,
)
def test_a_members_own_floors_win(policy: Policy, accepts: bool) -> None:
    found = federation("plain", 4, threshold=3)
    found.members[1].policy = policy
    report = round_of(found)
    assert set(report.dropped) == (set() if accepts else {1})
    assert report.survivors == (4 if accepts else 3)
    assert any("PolicyRefused" in why for _, why in found.refusals) != accepts


def test_the_default_policy_refuses_to_be_alone() -> None:
    with pytest.raises(PolicyRefused):
        Policy().check(spec_of(federation("plain").coordinator.backend, (1,), 2))
    with pytest.raises(PolicyRefused):
        Policy().check(spec_of(federation("plain").coordinator.backend, (1, 2, 3), 1))


@every_backend
@pytest.mark.parametrize("size", [1, SIZE - 1, SIZE + 2, 0, -1])
def test_a_member_refuses_a_size_that_is_not_its_models(name: str, size: int) -> None:
    """Size 1 would be broadcast over the whole model without a word."""
    member = federation(name).members[1]
    member.model = np.zeros(SIZE, np.float32)
    with pytest.raises(RemoteProtocolError):
        member.receive(encode(Begin(spec_of(member.backend, (1, 2), size=size), EMPTY)))


@every_backend
def test_a_member_refuses_a_model_that_is_not_one(name: str) -> None:
    member = federation(name).members[1]
    zeros = np.zeros(SIZE, "<f4")
    for model in (zeros[:-1], np.append(zeros, zeros), np.append(zeros[:-1], np.float32("nan")), zeros + 1):
        frame = encode(Begin(spec_of(member.backend, (1, 2)), model.astype("<f4").data.cast("B")))
        with pytest.raises(RemoteProtocolError):
            member.receive(frame)
        assert member.model is None
    with pytest.raises(PolicyRefused):
        member.receive(encode(Begin(spec_of(member.backend, (1, 2)), EMPTY)))


def begun(name: str) -> tuple[Federation, RoundSpec]:
    """Give a federation of which client 1 has begun a round, and the round."""
    found = federation(name)
    frame = found.coordinator.open()[1]
    found.members[1].receive(frame)
    return found, decode(frame, Begin).spec


def result(spec: RoundSpec, survivors: tuple[ClientId, ...], total: Vector | None = None) -> bytes:
    total = np.ones(spec.length, "<f4") if total is None else total
    sealed = Sealed(survivors, total.astype("<f4").data.cast("B"))
    return encode(Result(spec.context(), memoryview(encode(sealed))))


def test_a_member_applies_the_result_of_its_round_only() -> None:
    found, spec = begun("plain")
    member = found.members[1]
    before = member.save()
    good = result(spec, (1, 2))
    another = result(msgspec.structs.replace(spec, round=1), (1, 2))
    garbage = encode(Result(spec.context(), memoryview(b"garbage")))
    nested = encode(Result(spec.context(), memoryview(good)))
    wrong_length = result(spec, (1, 2), np.ones(spec.length + 1, np.float32))
    no_weight = result(spec, (1, 2), np.zeros(spec.length, np.float32))
    not_finite = result(spec, (1, 2), np.full(spec.length, np.inf, np.float32))
    for bad in (another, garbage, nested, wrong_length, no_weight, not_finite, good[:-1], good + b"\0"):
        with pytest.raises(RemoteProtocolError):
            member.receive(bad)
        assert member.save() == before
    assert decode(member.receive(good), Ack).model == digest(np.ones(SIZE, np.float32))
    with pytest.raises(WrongPhase):
        member.receive(good)


@pytest.mark.parametrize(
    "survivors", [(), (1,), (1, 1), (2, 1), (1, 99), (-1, 1, 2), (1, 2, 3, 4, 5)], ids=str
)
def test_a_member_refuses_survivors_that_cannot_be(survivors: tuple[ClientId, ...]) -> None:
    """Its floor on the survivors would be worth nothing if a name could be counted twice."""
    found, spec = begun("plain")
    with pytest.raises(RemoteProtocolError):
        found.members[1].receive(result(spec, survivors))


def test_a_member_outside_of_a_round() -> None:
    found, spec = begun("plain")
    member = found.members[2]
    for frame in (result(spec, (1, 2)), encode(Ack(b"")), b"", b"garbage"):
        with pytest.raises(RemoteProtocolError):
            member.receive(frame)
    assert repr(member) == "<Member 2>"


class Meddling:
    """An engine that changes the answers of one client to one kind of message."""

    def __init__(
        self, found: Federation, client: ClientId, what: str, change: Callable[[Frame], list[Frame]]
    ) -> None:
        self.found, self.client, self.what, self.change = found, client, what, change

    def __call__(self, outbox: Mapping[ClientId, bytes]) -> Iterable[tuple[ClientId, Frame]]:
        for client, answer in self.found.exchange(outbox):
            met = (self.found.up[-1][0], client) == (self.what, self.client)
            for frame in self.change(answer) if met else [answer]:
                yield client, frame


@pytest.mark.parametrize(("name", "what"), sorted({(name, what) for name, what, _ in EACH_LOSS}))
def test_a_member_that_answers_twice(name: str, what: str) -> None:
    found = federation(name)
    report = run_round(Meddling(found, 2, what, lambda answer: [answer, answer]), found.coordinator)
    assert report.survivors == 4
    assert ids(report) == [2]
    assert "Duplicate" in report.faults[0][1]
    assert not (report.dropped or report.missed)


@pytest.mark.parametrize(("name", "what"), sorted({(name, what) for name, what, _ in EACH_LOSS}))
@pytest.mark.parametrize("bad", [b"", b"garbage", encode(Sealed((1,), EMPTY)), bytes(100_000)], ids=len)
def test_a_member_that_answers_badly(name: str, what: str, bad: bytes) -> None:
    found = federation(name)
    report = run_round(Meddling(found, 2, what, lambda answer: [bad]), found.coordinator)
    assert report.survivors >= 3
    assert ids(report) == [2]
    assert set(report.dropped) == {2}


@every_backend
def test_an_ack_of_another_model_is_a_fault_and_makes_stale(name: str) -> None:
    found = federation(name)
    lie = encode(Ack(b"x" * 32))
    report = run_round(Meddling(found, 2, "result", lambda answer: [lie]), found.coordinator)
    assert ids(report) == [2]
    assert report.missed == [2]
    assert report.survivors == 4
    round_of(found)
    assert sent_in_full(found) == {2}


@every_backend
def test_an_ack_from_outside_the_roster_is_a_fault(name: str) -> None:
    found = federation(name)

    def exchange(outbox: Mapping[ClientId, bytes]) -> Iterable[tuple[ClientId, Frame]]:
        for client, answer in found.exchange(outbox):
            yield client, answer
            if client == 4:
                yield 99, answer

    report = run_round(exchange, found.coordinator)
    assert set(ids(report)) == {99}
    assert len(ids(report)) == len(report.phases)
    assert report.survivors == 4
    assert not (report.dropped or report.missed)
    assert found.coordinator.current == {1, 2, 3, 4}


class Extreme(WholeLearner):
    """A client that sends one enormous number."""

    def __init__(self, client: ClientId, number: float) -> None:
        super().__init__(client)
        self.number = number

    def learn(self, model: Vector, round: int) -> Update:
        vector = np.zeros(SIZE, np.float32)
        vector[0] = self.number
        return Update(vector, 1.0, {"loss": 0.0, "accuracy": 0.0})


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("number", [0.999 * LARGEST_NORM, 1.5e19, 3e38, float("inf"), float("nan")])
def test_colluding_clients_cannot_end_the_run(name: str, number: float) -> None:
    """Summands that pass one by one must not void the sum; at worst a round fails, by its report."""
    found = federation(name)
    for client in (1, 2):
        found.members[client].learner = Extreme(client, number)
    round_of(found)
    for client in (1, 2):
        found.members[client].learner = WholeLearner(client)
    report = round_of(found)
    assert report.round == 1
    assert report.failed == ""
    assert np.isfinite(found.coordinator.model).all()


def test_a_failing_aggregator_fails_the_round_not_the_run() -> None:
    found = federation("trusted")
    aggregator = found.coordinator.keyring.__self__
    gone = [True]

    def relay(frame: bytes) -> bytes:
        if gone[0] and b"trusted.finish" in frame:
            aggregator._round = None  # it was started anew in mid-round
        answer: bytes = aggregator.receive(frame)
        return answer

    found.coordinator.keyring = relay
    before = model_bytes(found)
    report = round_of(found)
    assert report.failed
    assert report.faults == [], "no client is to blame"
    assert model_bytes(found) == before
    gone[0] = False
    assert round_of(found).survivors == 4


class WithMetrics(WholeLearner):
    """A client whose metrics are what it is told to say."""

    def __init__(self, client: ClientId, metrics: dict[str, float]) -> None:
        super().__init__(client)
        self.said = metrics

    def learn(self, model: Vector, round: int) -> Update:
        return Update(np.zeros(SIZE, np.float32), 1.0, self.said)


@every_backend
def test_metrics_are_matched_by_name(name: str) -> None:
    """A dict's order is an accident: it must not swap loss and accuracy."""
    found = federation(name)
    for client, member in found.members.items():
        said = {"loss": 9.0, "accuracy": 1.0}
        member.learner = WithMetrics(client, said if client % 2 else dict(reversed(said.items())))
    try:
        report = told(found, round_of(found))
    except LocalProtocolError:
        return  # refusing another order is as good
    assert report.metrics == pytest.approx({"loss": 9.0, "accuracy": 1.0}, abs=1e-2)


@every_backend
@pytest.mark.parametrize(
    "said", [{"loss": 1.0}, {"loss": 1.0, "accuracy": 1.0, "more": 1.0}, {"loss": 1.0, "acc": 1.0}]
)
def test_a_learner_with_other_metrics_is_told_so(name: str, said: dict[str, float]) -> None:
    """A bug on this side, not a client that drops out of every round without a word."""
    found = federation(name)
    found.members[2].learner = WithMetrics(2, said)
    with pytest.raises(LocalProtocolError):
        round_of(found)


def test_a_turn_without_an_open_round() -> None:
    found = federation("plain")
    assert found.coordinator.phase == "closed"
    with pytest.raises(LocalProtocolError):
        found.coordinator.turn([])
    round_of(found)
    assert found.coordinator.phase == "closed"
    with pytest.raises(LocalProtocolError):
        found.coordinator.turn([])


def a_run(name: str, saved_at: int | None) -> tuple[bytes, int]:
    """Run three rounds with losses; save and restore all members before frame `saved_at` (-1: each)."""
    found, frames = federation(name, 5), 0
    found.lose = lambda client, what: {(2, "begin"): "answer", (3, "result"): "request"}.get(
        (client, what), ""
    )

    def exchange(outbox: Mapping[ClientId, bytes]) -> Iterable[tuple[ClientId, Frame]]:
        nonlocal frames
        for client, frame in outbox.items():
            if saved_at in (frames, -1):
                for other, member in list(found.members.items()):
                    fresh = member_of(member.backend, other, member.keyring, parameters=member.parameters)
                    fresh.restore(member.save())
                    found.members[other] = fresh
            frames += 1
            yield from found.exchange({client: frame})

    for _ in range(3):
        assert run_round(exchange, found.coordinator).survivors == 4
    acked = [member.model for c, member in found.members.items() if c != 3]
    assert {model.tobytes() for model in acked if model is not None} == {model_bytes(found)}
    return model_bytes(found), frames


@every_backend
def test_saving_every_member_between_any_two_frames_changes_nothing(name: str) -> None:
    true, frames = a_run(name, None)
    assert frames >= 3 * 2 * 5
    for at in range(-1, frames):
        assert a_run(name, at)[0] == true


@every_backend
def test_a_report_counts_what_travelled(name: str) -> None:
    found = federation(name)
    round_of(found)
    found.down.clear()
    found.up.clear()
    found.lose = once(2, "begin", "answer")
    report = round_of(found)
    assert report.bytes_down == sum(len(frame) for _, _, frame in found.down)
    assert report.bytes_up == sum(len(frame) for _, _, frame in found.up)
    kinds = list(dict.fromkeys(what for what, _, _ in found.down))
    assert len(report.phases) == len(kinds)
    assert report.phases[-1].phase == "result"
    for what, phase in zip(kinds, report.phases, strict=True):
        down = [len(frame) for w, _, frame in found.down if w == what]
        up = [len(frame) for w, _, frame in found.up if w == what]
        assert (phase.messages_down, phase.bytes_down) == (len(down), sum(down))
        assert (phase.messages_up, phase.bytes_up) == (len(up), sum(up))
        assert 0 <= phase.server_seconds <= phase.seconds <= report.seconds
    assert msgspec.json.decode(msgspec.json.encode(report), type=RoundReport) == report


def test_the_server_learns_no_learner_secret_but_the_summand() -> None:
    """All that a member says in a run is a summand, as its backend sends it, and digests."""
    found = federation("plain")
    round_of(found)
    assert {what for what, _, _ in found.up} == {"begin", "result"}
    for what, client, frame in found.up:
        if what == "result":
            assert frame == encode(Ack(digest(found.coordinator.model)))
        else:
            summand = WholeLearner(client).update(0, 1).summand(METRICS).astype("<f4").tobytes()
            assert bytes(frame).endswith(summand)
            assert len(frame) < len(summand) + 64


def test_a_coordinator_without_clients_to_spare() -> None:
    """Roster and threshold that can never work are found at once, by whoever checks first."""
    backend = federation("plain").coordinator.backend
    model = np.zeros(SIZE, np.float32)
    for roster, threshold in [((1, 2), 3), ((2, 1), 2), ((1, 1, 2), 2), ((1, 2, 3), 0)]:
        with pytest.raises(PrivfrError):
            Coordinator(RUN, backend, None, roster, threshold, LAYOUT, CONFIG, METRICS, model).open()


def test_a_policy_names_the_whole_roster() -> None:
    spec = spec_of(federation("plain").coordinator.backend, (1, 2, 3))
    Policy(roster=(1, 2, 3)).check(spec)
    for roster in ((1, 2), (1, 2, 3, 4), (1, 2, 4)):
        with pytest.raises(PolicyRefused, match="roster"):
            Policy(roster=roster).check(spec)


@every_backend
def test_a_policy_lowers_a_clients_weight_whatever_the_server_says(name: str) -> None:
    found = federation(name, 3)
    for member in found.members.values():
        member.policy = Policy(maximum_weight=2.0)
    weights = [min(2.0, WholeLearner(client).update(0, 1).weight) for client in found.members]
    assert sum(weights) < sum(WholeLearner(client).update(0, 1).weight for client in found.members)
    assert told(found, round_of(found)).weight == sum(weights)


@every_backend
def test_a_refused_proposal_trains_nobody(name: str) -> None:
    found = federation(name, 3)
    member = found.members[1]
    member.model = np.zeros(SIZE, np.float32)
    learner = member.learner
    assert isinstance(learner, WholeLearner)
    larger = msgspec.structs.replace(spec_of(member.backend, (1, 2, 3)), clients=(1, 2, 3, 4, 5, 6))
    if found.coordinator.backend.integers:
        with pytest.raises(PolicyRefused):
            member.receive(encode(Begin(larger, EMPTY)))
        assert learner.learnt == 0
    member.receive(encode(Begin(spec_of(member.backend, (1, 2, 3)), EMPTY)))
    assert learner.learnt == 1
