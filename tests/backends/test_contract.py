"""What every backend promises, whatever it is built of: one suite over all of `BACKENDS`.

A new backend joins by its line in `privfr.backends`. Where it sums anything but float32 it adds nothing
here: `EXACT` names those that must equal backend `plain` to the bit, the rest must come near.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import pytest
from insecure import METRICS, SIZE, InsecureEntropy, RoundInHand, exact_sum, round_in_hand, spec_of

from privfr.backends import BACKENDS, backend
from privfr.backends.plain import PLAIN
from privfr.errors import InputError, RemoteProtocolError, TooFewClients
from privfr.protocol import Ack, Backend, Begin, ClientId, ClientSession, Result, Sealed
from privfr.vector import Aggregate, Update
from privfr.wire import Message, encode, kind

EXACT = {"plain", "trusted"}
every_backend = pytest.mark.parametrize("name", list(BACKENDS))


def keyring_that_opens(round_: RoundInHand) -> Any:
    learns = round_.backend.server_learns != "nothing"
    return round_.server_key if learns else next(iter(round_.client_keys.values()))


def mean_of(round_: RoundInHand) -> Aggregate:
    assert round_.server.sealed is not None
    return round_.backend.open(round_.spec, round_.server.sealed, keyring_that_opens(round_))


def assert_is_mean(name: str, found: Aggregate, updates: list[Update]) -> None:
    """Compare an aggregate with the mean worked out in Python's integers."""
    total = exact_sum(updates)
    rest = [np.float32(number) / np.float32(total[0]) for number in total[1 + len(METRICS) :]]
    metrics = {name: number / total[0] for name, number in zip(METRICS, total[1:], strict=False)}
    assert found.count == len(updates)
    if name in EXACT:
        assert found.weight == total[0]
        assert found.vector.tolist() == rest
        assert found.metrics == metrics
    else:
        assert found.weight == pytest.approx(total[0], rel=1e-3)
        assert np.allclose(found.vector, rest, rtol=0, atol=1e-2)
        assert found.metrics == pytest.approx(metrics, abs=1e-2)
    assert found.vector.dtype == np.float32
    assert found.vector.shape == (SIZE,)


def patterns(phases: int, n: int) -> list[tuple[int, ...]]:
    """Ways to drop out: for each client the phase from which it is silent, `phases` for never."""
    every = list(itertools.product(range(phases + 1), repeat=n))
    if len(every) <= 300:
        return every
    rng = np.random.default_rng(n)
    return [every[at] for at in rng.choice(len(every), 60, replace=False)]


@every_backend
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_the_mean_over_the_survivors_for_every_pattern_of_dropout(name: str, n: int) -> None:
    phases = len(backend(name).server_steps)
    for pattern in patterns(phases, n):
        round_ = round_in_hand(name, n)
        left = [sum(lost > phase for lost in pattern) for phase in range(phases)]
        if min(left) < round_.spec.threshold:
            with pytest.raises(TooFewClients):
                round_.play(dict(enumerate(pattern, 1)))
            assert round_.server.sealed is None
            continue
        server = round_.play(dict(enumerate(pattern, 1)))
        assert server.sealed is not None
        survivors = list(server.sealed.survivors)
        stayed = {client for client, lost in enumerate(pattern, 1) if lost == phases}
        seen = {client for client, lost in enumerate(pattern, 1) if lost > 0}
        assert stayed <= set(survivors) <= seen
        assert survivors == sorted(set(survivors))
        assert_is_mean(name, mean_of(round_), [round_.updates[c] for c in survivors])
        assert server.faults == []
        assert set(server.dropped) == set(round_.spec.clients) - stayed


@every_backend
def test_the_threshold_is_reached_and_missed_by_one(name: str) -> None:
    for threshold in (2, 3, 4):
        enough = round_in_hand(name, 4, threshold)
        fewest = enough.spec.threshold  # a backend may need more than it was given
        enough.play(dict.fromkeys(range(fewest + 1, 5), 0))
        assert mean_of(enough).count == fewest
        too_few = round_in_hand(name, 4, threshold)
        with pytest.raises(TooFewClients):
            too_few.play(dict.fromkeys(range(fewest, 5), 0))


@every_backend
def test_weights_and_metrics_are_inside_the_sum(name: str) -> None:
    """One heavy client among light ones: a plain mean would be far off, and so would lost metrics."""
    round_ = round_in_hand(name, 3)
    weights = {1: 9.0, 2: 1.0, 3: 2.0}
    updates = {
        c: Update(np.full(SIZE, c, np.float32), w, {"loss": float(c), "accuracy": 0.0})
        for c, w in weights.items()
    }
    round_ = RoundInHand(round_.backend, round_.spec, updates)
    round_.play()
    mean = mean_of(round_)
    tolerance = 0 if name in EXACT else 1e-2
    assert mean.weight == pytest.approx(12, rel=tolerance)
    assert mean.metrics["loss"] == pytest.approx((9 + 2 + 6) / 12, abs=max(tolerance, 1e-6))
    assert mean.metrics["accuracy"] == pytest.approx(0, abs=tolerance)
    assert np.allclose(mean.vector, 17 / 12, rtol=0, atol=max(tolerance, 1e-6))


@every_backend
def test_who_else_dropped_out_does_not_change_the_sum(name: str) -> None:
    """Clients 4 and 5 lost, or never in the roster: the survivors' mean is the same to the bit."""
    larger, smaller = round_in_hand(name, 5), round_in_hand(name, 3)
    larger.play({4: 0, 5: 0})
    smaller.play()
    assert mean_of(larger).vector.tobytes() == mean_of(smaller).vector.tobytes()
    assert mean_of(larger).weight == mean_of(smaller).weight


@every_backend
def test_the_same_round_gives_the_same_bits(name: str) -> None:
    one, other = round_in_hand(name, 5), round_in_hand(name, 5)
    one.play({2: 0})
    other.play({2: 0})
    assert one.server.sealed is not None
    assert other.server.sealed is not None
    assert mean_of(one).vector.tobytes() == mean_of(other).vector.tobytes()


@pytest.mark.parametrize("name", sorted(EXACT - {"plain"}))
def test_float32_sums_equal_plain_to_the_bit(name: str) -> None:
    """Fractions of very different size, whose float32 sum depends on the order of addition."""
    rng = np.random.default_rng(1)
    updates = {}
    for client in range(1, 8):
        vector = (rng.normal(size=SIZE) * 10.0 ** rng.integers(-4, 4, SIZE)).astype(np.float32)
        metrics = {"loss": float(rng.normal()), "accuracy": float(rng.uniform())}
        updates[client] = Update(vector, float(rng.uniform(1, 9)), metrics)
    results = []
    for found in (PLAIN, backend(name)):
        round_ = RoundInHand(found, spec_of(found, updates), updates)
        round_.play({5: 0})
        results.append(mean_of(round_))
    assert results[0].vector.tobytes() == results[1].vector.tobytes()
    assert results[0].weight == results[1].weight
    assert results[0].metrics == results[1].metrics


@pytest.mark.parametrize("weight", [0.0, -1.0, -0.0])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_a_summand_without_weight_is_refused(name: str, weight: float) -> None:
    """A negative weight would take the others' out of the sum, and turn their mean around."""
    round_ = round_in_hand(name, 3)
    state = round_.clients[1]._state
    summand = round_.updates[1].summand(METRICS)
    summand[0] = weight
    hostile = msgspec.structs.replace(state, summand=summand.astype("<f4").tobytes())
    answer = ClientSession(round_.backend, hostile, InsecureEntropy(0)).receive(round_.opening()[1])
    assert not round_.server.absorb(1, answer)
    assert "weight" in round_.server.faults[0][1]
    round_.server.turn([(c, round_.clients[c].receive(round_.opening()[c])) for c in (2, 3)])
    assert_is_mean(name, mean_of(round_), [round_.updates[c] for c in (2, 3)])


@every_backend
def test_every_client_can_be_saved_between_any_two_messages(name: str) -> None:
    """Each session goes through `save` and `restore` before and after each of its messages."""
    true, round_ = round_in_hand(name, 4), round_in_hand(name, 4)
    true.play({3: 1})
    outbox = round_.opening()
    for phase in range(len(round_.backend.server_steps)):
        inbox = []
        for client, frame in outbox.items():
            before = ClientSession.restore(
                round_.backend, round_.clients[client].save(), InsecureEntropy(client)
            )
            assert before.phase == round_.clients[client].phase
            answer = before.receive(frame)
            round_.clients[client] = ClientSession.restore(
                round_.backend, before.save(), InsecureEntropy(client)
            )
            if client != 3 or phase < 1:
                inbox.append((client, answer))
        outbox = round_.server.turn(inbox)
    assert mean_of(round_).vector.tobytes() == mean_of(true).vector.tobytes()
    assert {session.phase for client, session in round_.clients.items() if client != 3} == {"done"}


def played_to(name: str, phase: int) -> tuple[RoundInHand, dict[ClientId, bytes]]:
    """Give a round that stands in `phase`, and the answers it awaits."""
    round_ = round_in_hand(name, 4)
    outbox = round_.opening()
    for _ in range(phase):
        outbox = round_.server.turn([(c, round_.clients[c].receive(frame)) for c, frame in outbox.items()])
    return round_, {c: round_.clients[c].receive(frame) for c, frame in outbox.items()}


EACH_PHASE = [
    pytest.param(name, phase, id=f"{name}-{step.phase}")
    for name in BACKENDS
    for phase, step in enumerate(backend(name).server_steps)
]


@pytest.mark.parametrize(("name", "phase"), EACH_PHASE)
def test_bad_answers_are_refused_in_every_phase(name: str, phase: int) -> None:
    """Client 1 answers badly and only it is lost; the others' sum stands."""
    elsewhere = round_in_hand(name, 4, seed=8)
    next_round = msgspec.structs.replace(elsewhere.spec, round=1)
    begin = encode(Begin(next_round, memoryview(b"")))
    another_round = elsewhere.session(1, next_round).receive(begin)
    bad: dict[str, Callable[[bytes], bytes]] = {
        "nothing": lambda true: b"",
        "garbage": lambda true: bytes(range(100)),
        "cut short": lambda true: true[:-1],
        "run on": lambda true: true + b"\0",
        "another message": lambda true: encode(Ack(b"y" * 32)),
        "a message of the server's": lambda true: begin,
        "too large": lambda true: true + bytes(10_000_000),
        "another round": lambda true: another_round,
    }
    for wrong in bad.values():
        round_, answers = played_to(name, phase)
        assert not round_.server.absorb(1, wrong(answers[1]))
        assert [client for client, _ in round_.server.faults] == [1]
        assert not round_.server.absorb(1, answers[1]), "the first answer stands, even a bad one"
        outbox = round_.server.turn([(c, a) for c, a in answers.items() if c != 1])
        for _ in range(phase + 1, len(round_.backend.server_steps)):
            outbox = round_.server.turn([(c, round_.clients[c].receive(f)) for c, f in outbox.items()])
        survivors = round_.server.sealed.survivors if round_.server.sealed else ()
        assert {2, 3, 4} <= set(survivors)
        assert_is_mean(name, mean_of(round_), [round_.updates[c] for c in survivors])
        assert round_.server.dropped[1] == round_.backend.server_steps[phase].phase


@pytest.mark.parametrize(("name", "phase"), EACH_PHASE)
def test_a_second_answer_changes_nothing(name: str, phase: int) -> None:
    round_, answers = played_to(name, phase)
    for client, answer in answers.items():
        assert round_.server.absorb(client, answer)
        assert not round_.server.absorb(client, answer)
    outbox = round_.server.close()
    for _ in range(phase + 1, len(round_.backend.server_steps)):
        outbox = round_.server.turn([(c, round_.clients[c].receive(f)) for c, f in outbox.items()])
    assert_is_mean(name, mean_of(round_), list(round_.updates.values()))
    assert [client for client, _ in round_.server.faults] == [1, 2, 3, 4]
    assert all("Duplicate" in text for _, text in round_.server.faults)
    assert round_.server.dropped == {}


@every_backend
def test_a_client_refuses_what_is_out_of_phase(name: str) -> None:
    round_ = round_in_hand(name)
    session = round_.clients[1]
    sealed = encode(Sealed((1, 2), memoryview(b"")))
    for frame in (sealed, encode(Result(b"", memoryview(sealed))), b"", b"\x93", round_.opening()[1][:-1]):
        before = session.save()
        with pytest.raises(RemoteProtocolError):
            session.receive(frame)
        assert session.save() == before
    session.receive(round_.opening()[1])
    with pytest.raises(RemoteProtocolError):
        session.receive(round_.opening()[1])


# 0.19069..., whose little-endian bytes print as text: any repr that shows it shows "SEC>".
TELLTALE = b"SEC>"
NUMBER = "0.1906"


def telltale_round(name: str) -> RoundInHand:
    vector = np.frombuffer(TELLTALE * SIZE, "<f4")
    found = backend(name)
    updates = {c: Update(vector, 1.0, {"loss": float(vector[0]), "accuracy": 0.0}) for c in (1, 2, 3)}
    return RoundInHand(found, spec_of(found, updates), updates)


def test_the_telltale_is_seen_where_it_is_shown() -> None:
    shown = Update(np.frombuffer(TELLTALE * SIZE, "<f4"), 1.0, {}).summand(())
    assert TELLTALE.decode() in repr(shown.tobytes())
    assert NUMBER in repr(shown)


def secrets_of(round_: RoundInHand) -> set[bytes]:
    """Keys, wherever a provisioned keyring holds bytes."""
    holders = [round_.server_key, *round_.client_keys.values(), getattr(round_.server_key, "__self__", None)]
    values = [value for holder in holders for value in (holder, *getattr(holder, "__dict__", {}).values())]
    keys = {bytes(value) for value in values if isinstance(value, bytes) or hasattr(value, "__bytes__")}
    return {key for key in keys if len(key) >= 16}


@every_backend
def test_no_repr_shows_a_summand_or_a_key(name: str) -> None:
    round_ = telltale_round(name)
    outbox, shown = round_.opening(), []
    for _ in round_.backend.server_steps:
        inbox = [(c, round_.clients[c].receive(frame)) for c, frame in outbox.items()]
        round_.server.absorb(*inbox[0])  # one summand alone in the running sum
        holders = [
            round_.server,
            round_.server.state,
            round_.server_key,
            getattr(round_.server_key, "__self__", None),
        ]
        for client in round_.clients.values():
            holders += [client, client._state]
        shown += [text for holder in holders for text in (repr(holder), str(holder), f"{holder}")]
        outbox = round_.server.turn(inbox[1:])
    keys = {repr(key)[2:-1] for key in secrets_of(round_)} | {key.hex() for key in secrets_of(round_)}
    leaks = [
        text
        for text in shown
        if TELLTALE.decode() in text or NUMBER in text or any(key in text for key in keys)
    ]
    assert leaks == []


@every_backend
def test_no_fault_shows_a_summand(name: str) -> None:
    round_ = telltale_round(name)
    answer = round_.clients[1].receive(round_.opening()[1])
    for at in range(0, len(answer), 7):
        round_.server.absorb(1, answer[:at] + b"\xff" + answer[at + 1 :])
        round_.server.absorb(at, answer)
    assert round_.server.faults
    assert not [text for _, text in round_.server.faults if TELLTALE.decode() in text or NUMBER in text]


@every_backend
def test_the_server_sees_summands_only_if_the_backend_says_so(name: str) -> None:
    round_ = telltale_round(name)
    outbox, seen = round_.opening(), []
    for _ in round_.backend.server_steps:
        inbox = [(c, round_.clients[c].receive(frame)) for c, frame in outbox.items()]
        seen += [answer for _, answer in inbox]
        outbox = round_.server.turn(inbox)
    in_clear = any(2 * TELLTALE in answer for answer in seen)
    assert in_clear == (round_.backend.server_learns == "updates")
    assert round_.server.sealed is not None
    if round_.backend.server_learns == "nothing":
        with pytest.raises(Exception):  # noqa: B017 - whatever it lacks, it must not open
            round_.backend.open(round_.spec, round_.server.sealed, round_.server_key)


@every_backend
def test_every_client_opens_the_same_aggregate(name: str) -> None:
    round_ = round_in_hand(name, 4)
    round_.play({4: 0})
    mean = mean_of(round_)
    assert round_.server.sealed is not None
    for key in round_.client_keys.values():
        found = round_.backend.open(round_.spec, round_.server.sealed, key)
        assert found.vector.tobytes() == mean.vector.tobytes()
        assert (found.weight, found.count, found.metrics) == (mean.weight, mean.count, mean.metrics)


@every_backend
def test_a_sealed_aggregate_of_another_length_is_refused(name: str) -> None:
    round_ = round_in_hand(name, 4)
    round_.play()
    sealed = round_.server.sealed
    assert sealed is not None
    for bulk in (b"", bytes(sealed.bulk)[:-1], bytes(sealed.bulk) + bytes(4)):
        with pytest.raises(RemoteProtocolError):
            round_.backend.open(
                round_.spec, Sealed(sealed.survivors, memoryview(bulk)), keyring_that_opens(round_)
            )


@every_backend
def test_a_backend_describes_itself(name: str) -> None:
    found = backend(name)
    assert found.name == name
    assert found.server_learns in get_args(get_type_hints(Backend)["server_learns"])
    assert len(found.trust) > 40
    assert found.trust.endswith(".")
    assert [step.phase for step in found.client_steps] == [step.phase for step in found.server_steps]
    assert found.client_steps[0].expects is Begin
    for step in (*found.client_steps, *found.server_steps):
        message = getattr(step, "expects", None) or getattr(step, "collects", None)
        assert message is not None
        assert issubclass(message, Message)


@every_backend
def test_no_frame_is_larger_than_its_phase_allows(name: str) -> None:
    round_ = round_in_hand(name, 5)
    outbox = round_.opening()
    for step in round_.backend.server_steps:
        inbox = {c: round_.clients[c].receive(frame) for c, frame in outbox.items()}
        assert max(map(len, inbox.values())) <= step.limit(round_.spec)
        assert {kind(answer) for answer in inbox.values()} == {step.collects.__struct_config__.tag}
        outbox = round_.server.turn(inbox.items())


def test_an_unknown_backend_is_named_with_its_neighbour() -> None:
    with pytest.raises(InputError, match="'plain'"):
        backend("plane")
    with pytest.raises(InputError, match="plain, trusted"):
        backend("zzz")
