"""The in-process engine: threads change nothing, losses follow from a seed, refusals are named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from insecure import Federation, WholeLearner, federation

from privfr.engines.local import Dropouts, LocalEngine
from privfr.errors import InputError
from privfr.federation import Policy, RoundReport, run_round
from privfr.protocol import ClientId
from privfr.vector import Update, Vector


class Timed(WholeLearner):
    """A learner whose updates are fractions of very different size and whose time is uneven."""

    def learn(self, model: Vector, round: int) -> Update:
        until = time.thread_time() + 0.002 * ((self.client * 7 + round) % 4)
        while time.thread_time() < until:  # busy: it is CPU time that is counted
            pass
        rng = np.random.default_rng([self.client, round])
        vector = (rng.normal(size=self.size) * 10.0 ** rng.integers(-4, 4, self.size)).astype(np.float32)
        return Update(
            vector, float(rng.uniform(1, 9)), {"loss": float(rng.normal()), "accuracy": float(rng.uniform())}
        )


def engine_of(found: Federation, workers: int = 1, dropouts: Dropouts | None = None) -> LocalEngine:
    return LocalEngine(found.members, workers, dropouts or Dropouts(0.0))


def three_rounds(name: str, workers: int) -> tuple[bytes, list[RoundReport]]:
    found = federation(name, 9, threshold=2)
    for client, member in found.members.items():
        member.learner = Timed(client)
    engine = engine_of(found, workers, Dropouts(0.2, seed=3))
    reports = [run_round(engine.exchange, found.coordinator) for _ in range(3)]
    return found.coordinator.model.tobytes(), reports


@pytest.mark.parametrize("name", ["plain", "trusted"])
def test_a_parallel_run_equals_a_serial_one_to_the_bit(name: str) -> None:
    model, reports = three_rounds(name, 1)
    assert any(report.dropped for report in reports)
    for workers in (2, 4, 16):
        other, found = three_rounds(name, workers)
        assert other == model
        for one, two in zip(reports, found, strict=True):
            assert (one.weight, one.metrics, one.dropped, one.missed) == (
                two.weight,
                two.metrics,
                two.dropped,
                two.missed,
            )
            assert (one.bytes_up, one.bytes_down) == (two.bytes_up, two.bytes_down)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_answers_come_in_the_outboxs_order(workers: int) -> None:
    found = federation("plain", 9)
    for client, member in found.members.items():
        member.learner = Timed(client)
    frames = found.coordinator.open()
    outbox = {client: frames[client] for client in (5, 1, 9, 2, 8, 3, 7, 4, 6)}
    assert [client for client, _ in engine_of(found, workers).exchange(outbox)] == list(outbox)


def test_threads_are_really_used() -> None:
    """Four learners that each wait until all four are at work."""
    together = threading.Barrier(4, timeout=5)

    class Waiting(WholeLearner):
        def learn(self, model: Vector, round: int) -> Update:
            together.wait()
            return super().learn(model, round)

    found = federation("plain", 4)
    for client, member in found.members.items():
        member.learner = Waiting(client)
    assert len(dict(engine_of(found, 4).exchange(found.coordinator.open()))) == 4


@pytest.mark.parametrize("workers", [2, 3])
def test_a_slow_server_does_not_let_answers_pile_up(workers: int) -> None:
    started: list[ClientId] = []

    class Counting(WholeLearner):
        def learn(self, model: Vector, round: int) -> Update:
            started.append(self.client)
            return super().learn(model, round)

    found = federation("plain", 30)
    for client, member in found.members.items():
        member.learner = Counting(client)
    most = 0
    for taken, _ in enumerate(engine_of(found, workers).exchange(found.coordinator.open())):
        time.sleep(0.002)  # long enough for the workers to run ahead as far as they may
        most = max(most, len(started) - taken)
    assert workers < most <= 2 * workers + 1
    assert sorted(started) == list(range(1, 31))


def test_a_serial_engine_serves_a_client_when_its_answer_is_asked_for() -> None:
    found = federation("plain", 4)
    answers: Iterator[tuple[ClientId, bytes]] = engine_of(found).exchange(found.coordinator.open())
    next(answers)
    assert [member.model is not None for member in found.members.values()] == [True, False, False, False]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_refusing_member_counts_as_dropped_and_is_named(workers: int) -> None:
    found = federation("plain", 4)
    found.members[3].policy = Policy(minimum_clients=100)
    engine = engine_of(found, workers)
    report = run_round(engine.exchange, found.coordinator)
    assert report.dropped == {3: "contribute"}
    assert report.survivors == 3
    # It refuses the round, and so knows of no result.
    assert [(client, why.split(":")[:2]) for client, why in engine.refusals] == [
        (3, ["begin", " PolicyRefused"]),
        (3, ["result", " WrongPhase"]),
    ]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, KeyboardInterrupt, InputError])
def test_any_other_exception_is_not_a_dropout(workers: int, error: type[BaseException]) -> None:
    class Broken(WholeLearner):
        def learn(self, model: Vector, round: int) -> Update:
            raise error

    found = federation("plain", 6)
    found.members[2].learner = Broken(2)
    engine = engine_of(found, workers)
    with pytest.raises(error):
        run_round(engine.exchange, found.coordinator)
    assert engine.refusals == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("client")]


def test_a_server_that_stops_listening_leaves_no_work_behind() -> None:
    """What had not begun is given up, what had is waited for."""

    class Slow(WholeLearner):
        def learn(self, model: Vector, round: int) -> Update:
            time.sleep(0.05)
            learnt.append(self.client)
            return super().learn(model, round)

    learnt: list[ClientId] = []
    found = federation("plain", 9)
    for client, member in found.members.items():
        member.learner = Slow(client)
    engine, told = engine_of(found, 3), []
    engine.stop = lambda: told.append(len(learnt))
    answers = engine.exchange(found.coordinator.open())
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert len(told) == 1 and told[0] < len(learnt)  # told to give up before they were waited for
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("client")]
    assert 3 <= len(learnt) < 7  # of the 7 that were handed to 3 threads


def test_time_inside_members_is_counted() -> None:
    found = federation("plain", 4)
    for client, member in found.members.items():
        member.learner = Timed(client)
    engine = LocalEngine(found.members)
    run_round(engine.exchange, found.coordinator)
    learning = sum(member.learn_seconds for member in found.members.values())
    assert 0.002 < learning <= engine.seconds


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="dropout"):
        Dropouts(rate)


def test_losses_follow_from_the_seed_alone() -> None:
    keys = [(r, phase, c) for r in range(20) for phase in ("begin", "result") for c in range(20)]
    one, same, other = Dropouts(0.3, 1), Dropouts(0.3, 1), Dropouts(0.3, 2)
    assert [one.lost(*key) for key in keys] == [same.lost(*key) for key in reversed(keys)][::-1]
    assert [one.lost(*key) for key in keys] != [other.lost(*key) for key in keys]


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3, 0.9])
def test_losses_come_at_the_rate_asked_for_half_of_each_kind(rate: float) -> None:
    """20000 draws: 5 standard deviations are a chance of one in a million, and the seed is fixed."""
    lost = [Dropouts(rate, 5).lost(r, "begin", c) for r in range(100) for c in range(200)]
    deviation = (rate * (1 - rate) * len(lost)) ** 0.5
    count = sum(bool(found) for found in lost)
    assert abs(count - rate * len(lost)) <= 5 * deviation
    assert abs(lost.count("request") - count / 2) <= 5 * (count / 4) ** 0.5
    assert lost.count("request") + lost.count("answer") == count


def test_losses_are_drawn_anew_for_round_phase_and_client() -> None:
    drops = Dropouts(0.5, 0)
    by_round = {tuple(drops.lost(r, "begin", c) for c in range(64)) for r in range(20)}
    by_phase = {tuple(drops.lost(0, phase, c) for c in range(64)) for phase in ("begin", "result", "other")}
    assert len(by_round) == 20
    assert len(by_phase) == 3


def test_losses_happen_in_the_phases_named() -> None:
    drops = Dropouts(0.99, 0, ("result",))
    assert {drops.lost(0, "begin", c) for c in range(50)} == {""}
    assert "" not in {drops.lost(0, "result", c) for c in range(20)}


def test_a_lost_request_never_reaches_the_member_a_lost_answer_does() -> None:
    found = federation("plain", 20)
    drops = Dropouts(0.5, 1, ("begin",))
    engine = engine_of(found, 1, drops)
    report = run_round(engine.exchange, found.coordinator)
    kinds = {c: drops.lost(0, "begin", c) for c in found.members}
    assert set(kinds.values()) == {"", "request", "answer"}
    assert set(report.dropped) == {c for c, kind in kinds.items() if kind}
    assert set(report.missed) == {c for c, kind in kinds.items() if kind == "request"}
    learners = {c: member.learner for c, member in found.members.items()}
    assert {
        c for c, learner in learners.items() if isinstance(learner, WholeLearner) and learner.learnt == 0
    } == {c for c, kind in kinds.items() if kind == "request"}


def test_losses_of_later_rounds_are_not_those_of_the_first() -> None:
    """The engine must draw with the round's own number, also in phases whose frames do not hold it."""
    found = federation("plain", 20)
    drops = Dropouts(0.4, 1, ("result",))
    engine = engine_of(found, 1, drops)
    for number in range(4):
        report = run_round(engine.exchange, found.coordinator)
        assert set(report.missed) == {c for c in found.members if drops.lost(number, "result", c)}
