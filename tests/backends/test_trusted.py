"""Backend `trusted`: what the server can see, and what the aggregator does not let it do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from insecure import METRICS, InsecureEntropy, RoundInHand, round_in_hand, spec_of, whole_update
from nacl.public import PublicKey, SealedBox

from privfr.backends.party import Refused
from privfr.backends.trusted import TRUSTED, Accepted, Aggregator, Boxed, Finish, Forward
from privfr.errors import RemoteProtocolError, TooFewClients
from privfr.protocol import Begin, ClientId, RoundSpec, Sealed
from privfr.wire import decode, encode, kind

EMPTY = memoryview(b"")


class Tapped:
    """A relay to an aggregator that remembers what passed, both ways."""

    def __init__(self, aggregator: Aggregator) -> None:
        self.aggregator, self.seen = aggregator, list[bytes]()

    def __call__(self, frame: bytes) -> bytes:
        answer = self.aggregator.receive(frame)
        self.seen += [frame, answer]
        return answer


def spec(n: int = 4, threshold: int = 2, **changes: Any) -> RoundSpec:
    return spec_of(TRUSTED, range(1, n + 1), threshold, **changes)


def boxes(round_: RoundInHand, spec: RoundSpec | None = None) -> dict[ClientId, bytes]:
    """Each client's `Boxed` frame, for this round or for another with the same keys."""
    spec = spec or round_.spec
    return {
        c: round_.session(c, spec).receive(encode(Begin(spec, EMPTY))) for c in round_.spec.clients
    }  # fmt: skip


def forward(client: ClientId, boxed: bytes) -> bytes:
    return encode(Forward(client, decode(boxed, Boxed).bulk))


def refused(aggregator: Aggregator, frame: bytes) -> str:
    """Why the aggregator refuses a frame; fails if it does not."""
    return decode(aggregator.receive(frame), Refused).why


def open_round(n: int = 4, threshold: int = 2) -> tuple[Aggregator, RoundInHand]:
    """Give an aggregator with a round open, none added, and the clients' side of it."""
    round_ = round_in_hand("trusted", n, threshold)
    aggregator = Aggregator(InsecureEntropy(round_.seed))
    assert aggregator.public_key == round_.client_keys[1]
    assert decode(aggregator.receive(encode(Begin(round_.spec, EMPTY))), Accepted) == Accepted()
    return aggregator, round_


def test_the_server_never_sees_a_summand_in_clear() -> None:
    found = {c: whole_update(7, c) for c in (1, 2, 3)}
    round_ = RoundInHand(TRUSTED, spec(3), found)
    relay = Tapped(round_.server_key.__self__)
    round_.server.state = reopened(round_, relay)
    round_.clients = {c: round_.session(c, round_.server.spec) for c in found}
    answers = [(c, round_.clients[c].receive(encode(Begin(round_.server.spec, EMPTY)))) for c in found]
    round_.server.turn(answers)
    assert round_.server.sealed is not None
    seen = [answer for _, answer in answers] + relay.seen
    assert len(relay.seen) == 2 * (1 + len(found) + 1)
    for update in found.values():
        summand = update.summand(METRICS).astype("<f4").tobytes()
        for frame in seen:
            assert summand not in frame
            # Nor any part of it: two neighbouring numbers of it are nowhere to be found.
            assert not any(summand[at : at + 8] in frame for at in range(12, len(summand) - 7, 4))
    total = np.frombuffer(round_.server.sealed.bulk, "<f4")
    assert total.tolist() == np.sum([u.summand(METRICS) for u in found.values()], axis=0).tolist()


def reopened(round_: RoundInHand, relay: Callable[[bytes], bytes]) -> Any:
    """Open the round anew through a tapped relay, under another round number."""
    round_.server.spec = msgspec.structs.replace(round_.spec, round=1)
    return TRUSTED.server_state(round_.server.spec, relay)


def test_a_box_swapped_between_clients_is_refused() -> None:
    aggregator, round_ = open_round()
    true = boxes(round_)
    assert "another client" in refused(aggregator, forward(2, true[1]))
    assert decode(aggregator.receive(forward(1, true[1])), Accepted) == Accepted()
    assert decode(aggregator.receive(forward(2, true[2])), Accepted) == Accepted()
    sealed = decode(aggregator.receive(encode(Finish())), Sealed)
    assert sealed.survivors == (1, 2)


@pytest.mark.parametrize(
    "change",
    [{"round": 1}, {"run": b"s" * 16}, {"clients": (1, 2, 3)}, {"config": b""}, {"threshold": 3}],
    ids=str,
)
def test_a_box_of_another_round_or_run_is_refused(change: dict[str, Any]) -> None:
    aggregator, round_ = open_round()
    other = boxes(round_, msgspec.structs.replace(round_.spec, **change))
    assert "WrongPhase" in refused(aggregator, forward(1, other[1]))


def test_a_box_is_added_once() -> None:
    aggregator, round_ = open_round()
    true = boxes(round_)
    aggregator.receive(forward(1, true[1]))
    assert "Duplicate" in refused(aggregator, forward(1, true[1]))
    assert "Duplicate" in refused(aggregator, forward(1, boxes(round_)[1]))
    aggregator.receive(forward(2, true[2]))
    sealed = decode(aggregator.receive(encode(Finish())), Sealed)
    expected = round_.updates[1].summand(METRICS) + round_.updates[2].summand(METRICS)
    assert np.frombuffer(sealed.bulk, "<f4").tolist() == expected.tolist()


def test_a_round_is_opened_once_even_after_its_end() -> None:
    """The difference of two sums of one round is one client's update."""
    aggregator, round_ = open_round()
    begin = encode(Begin(round_.spec, EMPTY))
    true = boxes(round_)
    assert "opened before" in refused(aggregator, begin)
    for client in (1, 2, 3):
        aggregator.receive(forward(client, true[client]))
    decode(aggregator.receive(encode(Finish())), Sealed)
    assert "opened before" in refused(aggregator, begin)
    assert "no round" in refused(aggregator, forward(4, true[4]))
    assert "no round" in refused(aggregator, encode(Finish()))


def test_a_refused_opening_leaves_the_open_round_alone() -> None:
    aggregator, round_ = open_round()
    true = boxes(round_)
    aggregator.receive(forward(1, true[1]))
    refused(aggregator, encode(Begin(round_.spec, EMPTY)))
    refused(aggregator, encode(Begin(spec(threshold=1, round=5), EMPTY)))
    aggregator.receive(forward(2, true[2]))
    assert decode(aggregator.receive(encode(Finish())), Sealed).survivors == (1, 2)


FLOORS = [(2, 1, False), (2, 0, False), (2, -1, False), (2, 2, True), (4, 3, False), (3, 3, True)]


@pytest.mark.parametrize(("floor", "threshold", "accepted"), FLOORS)
def test_a_threshold_below_the_floor_is_refused(floor: int, threshold: int, accepted: bool) -> None:
    aggregator = Aggregator(InsecureEntropy(0), floor)
    answer = aggregator.receive(encode(Begin(spec(4, threshold), EMPTY)))
    assert kind(answer) == ("trusted.accepted" if accepted else "refused")


def test_nothing_without_a_round() -> None:
    aggregator = Aggregator(InsecureEntropy(0))
    round_ = round_in_hand("trusted")
    assert "no round" in refused(aggregator, encode(Finish()))
    assert "no round" in refused(aggregator, forward(1, boxes(round_)[1]))


IMPOSSIBLE: list[dict[str, Any]] = [
    {"size": -1}, {"size": -100}, {"size": 2**40}, {"size": 2**62}, {"size": 2**64 - 1},
    {"clients": (1, 1, 2)}, {"clients": (2, 1)}, {"clients": ()}, {"threshold": 5},
]  # fmt: skip


@pytest.mark.parametrize("change", IMPOSSIBLE, ids=str)
def test_an_impossible_spec_is_refused(change: dict[str, Any]) -> None:
    """And the round that is open goes on."""
    aggregator, round_ = open_round()
    true = boxes(round_)
    aggregator.receive(forward(1, true[1]))
    refused(aggregator, encode(Begin(msgspec.structs.replace(spec(round=1), **change), EMPTY)))
    aggregator.receive(forward(2, true[2]))
    assert decode(aggregator.receive(encode(Finish())), Sealed).survivors == (1, 2)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x91\xb0trusted.finish", b"\x93\xaftrusted.forward\x01", b"\x93\xa5begin"]),
)
def test_garbage_is_refused_and_changes_nothing(garbage: bytes, head: bytes) -> None:
    aggregator, round_ = open_round(3)
    true = boxes(round_)
    aggregator.receive(forward(1, true[1]))
    if head + garbage != encode(Finish()):
        refused(aggregator, head + garbage)
    refused(aggregator, encode(Forward(2, memoryview(garbage))))
    refused(aggregator, true[1])
    refused(aggregator, encode(Sealed((1, 2), memoryview(garbage))))
    aggregator.receive(forward(2, true[2]))
    sealed = decode(aggregator.receive(encode(Finish())), Sealed)
    assert sealed.survivors == (1, 2)
    expected = round_.updates[1].summand(METRICS) + round_.updates[2].summand(METRICS)
    assert np.frombuffer(sealed.bulk, "<f4").tolist() == expected.tolist()


@given(st.binary(max_size=120), st.booleans())
def test_a_box_of_garbage_is_refused(content: bytes, named: bool) -> None:
    """Whoever knows the public key can seal anything: what comes out of a box is as hostile as the box."""
    aggregator, round_ = open_round(3)
    plaintext = (1).to_bytes(16, "big") * named + content
    box = SealedBox(PublicKey(aggregator.public_key)).encrypt(plaintext)
    refused(aggregator, encode(Forward(1, memoryview(box))))
    assert round_.spec.clients == (1, 2, 3)


def test_a_box_sealed_to_another_key_is_refused() -> None:
    aggregator, round_ = open_round()
    elsewhere = round_in_hand("trusted", seed=1)
    assert elsewhere.client_keys[1] != aggregator.public_key
    assert "does not open" in refused(aggregator, forward(1, boxes(elsewhere)[1]))
    assert round_.spec == elsewhere.spec


def test_a_client_outside_the_roster_is_refused() -> None:
    aggregator, round_ = open_round(3)
    larger = round_in_hand("trusted", 4)
    outsider = larger.session(4, round_.spec).receive(encode(Begin(round_.spec, EMPTY)))
    assert "WrongPhase" in refused(aggregator, forward(4, outsider))


@pytest.mark.parametrize("at", [0, 8, 31, 32, 47, 48, 64, 80, -1])
def test_a_tampered_box_costs_only_its_sender(at: int) -> None:
    round_ = round_in_hand("trusted")
    true = boxes(round_)
    box = bytearray(bytes(decode(true[2], Boxed).bulk))
    box[at] ^= 1
    answers = true | {2: encode(Boxed(memoryview(bytes(box))))}
    round_.server.turn(answers.items())
    assert round_.server.sealed is not None
    assert round_.server.sealed.survivors == (1, 3, 4)
    assert [client for client, _ in round_.server.faults] == [2]
    assert round_.server.dropped == {2: "contribute"}
    expected = np.sum([round_.updates[c].summand(METRICS) for c in (1, 3, 4)], axis=0)
    assert np.frombuffer(round_.server.sealed.bulk, "<f4").tolist() == expected.tolist()


def test_a_finish_with_too_few_is_refused_and_ends_the_round() -> None:
    """Over is over: whoever comes later is not added, and the round cannot be opened again."""
    aggregator, round_ = open_round(4, 3)
    true = boxes(round_)
    aggregator.receive(forward(1, true[1]))
    aggregator.receive(forward(2, true[2]))
    assert "TooFewClients" in refused(aggregator, encode(Finish()))
    assert "no round" in refused(aggregator, forward(3, true[3]))
    assert "no round" in refused(aggregator, encode(Finish()))
    assert "opened before" in refused(aggregator, encode(Begin(round_.spec, EMPTY)))


def test_too_few_clients_get_no_sum() -> None:
    whole = round_in_hand("trusted", 4, 3)
    with pytest.raises(TooFewClients):
        whole.play({1: 0, 2: 0})
    assert whole.server.sealed is None


def test_an_aggregator_that_sums_others_than_it_accepted_is_found_out() -> None:
    round_ = round_in_hand("trusted", 3)
    honest = round_.server.state.relay

    def lying(frame: bytes) -> bytes:
        answer: bytes = honest(frame)
        if kind(answer) == "sealed":
            return encode(Sealed((1, 2), decode(answer, Sealed).bulk))
        return answer

    round_.server.state = type(round_.server.state)(lying)
    with pytest.raises(RemoteProtocolError):
        round_.server.turn(boxes(round_).items())
    assert round_.server.sealed is None


def test_a_repr_says_nothing_of_the_key() -> None:
    assert repr(Aggregator(InsecureEntropy(0))) == "<Aggregator>"
