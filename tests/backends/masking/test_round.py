"""Whole rounds: whoever drops out and whenever, the sum is exact to the last bit, or there is none at all.

The sum is compared as packed integers with the sum of `FixedPoint.encode`'s lanes. Which rounds end, and in
which phase the others fail, is worked out beside the server from the neighbours drawn (`foretold`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from insecure import CODING, METRICS, OPTIONS, InsecureEntropy, RoundInHand, spec_of, whole_update

from privfr.backends import backend, masking
from privfr.backends.masking.client import Parameters, point_of
from privfr.backends.masking.graph import Committee, Graph, Promise, convene
from privfr.backends.masking.messages import Advertise, Consents
from privfr.backends.plain import PLAIN
from privfr.coding import Coding, pack
from privfr.errors import InputError, RemoteProtocolError, TooFewClients
from privfr.protocol import ClientId, ClientSession, RoundSpec, ServerSession
from privfr.vector import Update
from privfr.wire import decode, kind

NAMES = ("masking", "masking-passive")
both = pytest.mark.parametrize("name", NAMES)
# The message with which the server asks a client for shares.
ASKS_TO_REVEAL = {"masking": "masking.consents", "masking-passive": "masking.survivors"}


class Round(RoundInHand):
    """A round in hand whose clients' entropy differs from seed to seed."""

    def session(self, client: ClientId, spec: RoundSpec | None = None) -> ClientSession:
        entropy = self.entropy(client)
        state = self.backend.client_state(
            spec or self.spec, client, self.updates[client], self.client_keys[client], entropy
        )
        return ClientSession(self.backend, state, entropy)

    def entropy(self, client: ClientId) -> InsecureEntropy:
        return InsecureEntropy(1_000_000 * (self.seed + 1) + client)

    def packed_sum(self, survivors: Iterable[ClientId]) -> bytes:
        """Sum of the survivors' lanes mod 2^k, in Python's integers."""
        point = point_of(self.spec)
        lanes = [point.encode(self.updates[c], self.entropy(c)).tolist() for c in survivors]
        total = [sum(column) % (1 << point.modulus_bits) for column in zip(*lanes, strict=True)]
        return bytes(pack(np.array(total, np.uint32), point.modulus_bits))


def round_of(
    name: str,
    updates: Mapping[ClientId, Update],
    graph: Graph,
    threshold: int,
    coding: Coding = CODING,
    seed: int = 0,
    committee: Committee | None = None,
) -> Round:
    """A round with these parameters, whether or not they would keep any promise.

    Without a committee, with the one for no accomplices.
    """
    found, size = backend(name), next(iter(updates.values())).vector.size
    spec = spec_of(found, updates, size=size)
    committee = committee or convene(len(updates), Promise(0, 0), graph)
    parameters = msgspec.msgpack.encode(Parameters(coding, graph, committee))
    spec = msgspec.structs.replace(spec, threshold=threshold, parameters=parameters)
    return Round(found, spec, updates, seed)


def whole_updates(n: int, seed: int = 0) -> dict[ClientId, Update]:
    return {client: whole_update(seed, client) for client in range(1, n + 1)}


def subsets(items: Iterable[ClientId]) -> Iterator[tuple[ClientId, ...]]:
    items = tuple(items)
    return chain.from_iterable(combinations(items, size) for size in range(len(items) + 1))


# Every way to drop out, for few clients ---------------------------------------------------------------------


@dataclass
class Exploration:
    """Walk through all patterns of dropout at once: after each phase, each set of clients that were heard.

    A client that was not heard is asked nothing more, so silence in one phase is silence from it on; but its
    answer may come late, in the next phase, and is then to be refused.
    """

    round: Round
    finished: int = 0
    failed: int = 0

    def walk(
        self,
        server: ServerSession,
        clients: dict[ClientId, ClientSession],
        outbox: Mapping[ClientId, bytes],
        late: Mapping[ClientId, bytes],
        heard: tuple[tuple[ClientId, ...], ...] = (),
    ) -> None:
        clients = {client: copy.copy(clients[client]) for client in outbox}  # a state is never changed
        answers = {client: clients[client].receive(frame) for client, frame in outbox.items()}
        for there in subsets(answers):
            branch = copy.deepcopy(server, {id(server.backend): server.backend})
            for client, frame in late.items():
                assert not branch.absorb(client, frame)
            inbox = [(client, answers[client]) for client in there]
            if len(there) < self.round.spec.threshold:
                with pytest.raises(TooFewClients, match="clients are left"):
                    branch.turn(inbox)
                assert branch.sealed is None
                self.failed += 1
                continue
            following = branch.turn(inbox)
            path = (*heard, there)
            if branch.sealed is None:
                assert set(following) == set(there)
                missed = {client: frame for client, frame in answers.items() if client not in there}
                self.walk(branch, clients, following, missed, path)
            else:
                self.finish(branch, path)

    def finish(self, server: ServerSession, heard: tuple[tuple[ClientId, ...], ...]) -> None:
        assert server.sealed is not None
        survivors = heard[2]  # those whose masked summand was heard
        assert server.sealed.survivors == survivors
        assert bytes(server.sealed.bulk) == self.sums(survivors)
        assert set(server.dropped) == set(self.round.spec.clients) - set(heard[-1])
        assert all("asked nothing" in text for _, text in server.faults)
        self.finished += 1

    def sums(self, survivors: tuple[ClientId, ...]) -> bytes:
        if survivors not in self._known:
            self._known[survivors] = self.round.packed_sum(survivors)
        return self._known[survivors]

    _known: dict[tuple[ClientId, ...], bytes] = field(default_factory=dict)


@both
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_every_pattern_of_dropout_gives_the_exact_sum_or_none(name: str, n: int) -> None:
    options = dict(OPTIONS)
    threshold = backend(name).fewest(n, options)
    graph = masking.graph_of(n, options)[1]
    assert graph.neighbours == n - 1
    exploration = Exploration(round_of(name, whole_updates(n), graph, threshold))
    round_ = exploration.round
    exploration.walk(round_.server, round_.clients, round_.opening(), {})
    phases = len(round_.backend.server_steps)
    # All patterns in which at least `threshold` clients are never lost, the others each in one of the phases.
    enough = sum(math.comb(n, kept) * phases ** (n - kept) for kept in range(threshold, n + 1))
    assert exploration.finished == enough
    assert exploration.failed > 0


# Any graph: what can end ends, and what cannot fails before a secret is out ---------------------------------


@dataclass
class Played:
    """What became of a round. failed: the phase, empty if it ended.  drawn: client -> its neighbours.
    shared, survivors, revealed: who was heard in these phases.  sent: kinds of the server's messages.
    """

    round: Round
    failed: str = ""
    error: Exception | None = None
    drawn: dict[ClientId, set[ClientId]] = field(default_factory=dict)
    sent: set[str] = field(default_factory=set)


def play(round_: Round, lost_in: Mapping[ClientId, int]) -> Played:
    """Play a round; a client's answers are lost from a phase on, and one that refuses is silent."""
    played, outbox = Played(round_), round_.opening()
    for phase, step in enumerate(round_.backend.server_steps):
        played.sent |= {kind(frame) for frame in outbox.values()}
        inbox = []
        for client, frame in outbox.items():
            try:
                answer = round_.clients[client].receive(frame)
            except RemoteProtocolError:
                continue
            if phase == 0:
                played.drawn[client] = set(decode(answer, Advertise).neighbours)
            if lost_in.get(client, phase + 1) > phase:
                inbox.append((client, answer))
        try:
            outbox = round_.server.turn(inbox)
        except TooFewClients as error:
            played.failed, played.error = step.phase, error
            break
    return played


def foretold(played: Played, lost_in: Mapping[ClientId, int]) -> tuple[str, set[ClientId]]:
    """Work out from the neighbours alone in which phase the round fails, and who its survivors are."""
    spec, t = played.round.spec, Parameters.of(played.round.spec).graph.shares
    phases = [step.phase for step in played.round.backend.server_steps]
    drawn = played.drawn

    def heard(among: set[ClientId], phase: str) -> set[ClientId]:
        return {c for c in among if lost_in.get(c, len(phases)) > phases.index(phase)}

    def with_enough(among: set[ClientId], there: set[ClientId]) -> set[ClientId]:
        return {c for c in among if len(drawn[c] & there) >= t}

    # A survivor's seed is held by its neighbours that have shared, a lost one's key by those that have
    # advertised: of either, the survivors can reveal.
    advertised = heard(set(spec.clients), "advertise")
    shared = heard(with_enough(advertised, advertised), "share")
    survivors = heard(with_enough(shared, shared), "mask")
    left = survivors
    for phase, there in (("advertise", advertised), ("share", shared), ("mask", survivors)):
        if len(there) < spec.threshold:
            return phase, set()
    if with_enough(shared, survivors) != shared:
        return "mask", set()
    if "consent" in phases:
        left = heard(survivors, "consent")
        committee = Parameters.of(spec).committee
        agreed = committee.members(spec.clients, spec.context()) & left
        if len(left) < spec.threshold or with_enough(shared, left) != shared:
            return "consent", set()
        if len(agreed) < committee.quorum:
            return "consent", set()
    revealed = heard(left, "reveal")
    if len(revealed) < spec.threshold or with_enough(shared, revealed) != shared:
        return "reveal", set()
    return "", survivors


def assert_as_foretold(round_: Round, lost_in: Mapping[ClientId, int]) -> Played:
    played = play(round_, lost_in)
    failed, survivors = foretold(played, lost_in)
    assert played.failed == failed, played.error
    if failed:
        assert round_.server.sealed is None
        # What is clear before the last phase costs nobody a share.
        assert (ASKS_TO_REVEAL[round_.backend.name] in played.sent) == (failed == "reveal")
    else:
        assert round_.server.sealed is not None
        assert set(round_.server.sealed.survivors) == survivors
        assert bytes(round_.server.sealed.bulk) == round_.packed_sum(sorted(survivors))
    return played


def losses(clients: Iterable[ClientId], phases: int) -> st.SearchStrategy[dict[ClientId, int]]:
    """From which phase on each client is silent; most never are."""
    when = st.sampled_from([phases] * 6 + list(range(phases)))
    return st.fixed_dictionaries(dict.fromkeys(clients, when))


@st.composite
def any_round(draw: st.DrawFn) -> tuple[Round, dict[ClientId, int]]:
    """A round over any graph, promise or none, with some clients lost."""
    name = draw(st.sampled_from(NAMES))
    n = draw(st.integers(2, 9))
    # Ids far apart, and 0 among them: they enter signatures, shares and keys.
    ids = sorted(
        draw(st.sets(st.integers(0, 2**40), min_size=n, max_size=n)) if draw(st.booleans()) else range(n)
    )
    k = draw(st.integers(1, n - 1))
    t = draw(st.integers(1, k))
    size = draw(st.integers(1, n))
    committee = Committee(size, draw(st.integers(1, size)))
    threshold, seed = draw(st.integers(1, n)), draw(st.integers(0, 2**32))
    updates = {client: whole_update(seed, i) for i, client in enumerate(ids)}
    round_ = round_of(name, updates, Graph(k, t), threshold, seed=seed, committee=committee)
    return round_, draw(losses(ids, len(round_.backend.server_steps)))


@settings(max_examples=150)
@given(any_round())
def test_over_any_graph_the_sum_is_exact_or_the_round_fails_where_foretold(
    case: tuple[Round, dict[ClientId, int]],
) -> None:
    assert_as_foretold(*case)


def test_the_property_above_meets_every_case() -> None:
    """Sparse rounds that end, and those that fail in each phase, for want of clients, holders, members."""
    found = set()
    for seed in range(8):
        for phase in range(5):
            for lost in (1, 2, 3, 5):
                round_ = round_of(
                    "masking", whole_updates(7), Graph(4, 3), 3, seed=seed, committee=Committee(4, 3)
                )
                who = range(1 + seed % 2, lost + 1 + seed % 2)
                played = assert_as_foretold(round_, dict.fromkeys(who, phase))
                wanting = [
                    what for what in ("holders", "shares of", "committee") if what in str(played.error)
                ]
                found.add((played.failed, *wanting[:1]))
    for_want_of_clients = {("",), ("advertise",), ("share",), ("mask",), ("consent",), ("reveal",)}
    of_holders = {("mask", "holders"), ("consent", "holders"), ("reveal", "shares of")}
    assert for_want_of_clients | of_holders | {("consent", "committee")} == found


@both
def test_a_lost_clients_key_without_holders_ends_the_round_before_a_share_is_out(name: str) -> None:
    """Client 1 is lost with all its neighbours; the seeds of those who survive could be opened."""
    found = 0
    for seed in range(20):
        drawn = play(round_of(name, whole_updates(8), Graph(2, 1), 2, seed=seed), {}).drawn
        survivors = set(drawn) - drawn[1] - {1}
        if not all(drawn[client] & survivors for client in {*drawn} - {1}):
            continue
        found += 1
        committee = Committee(8, 1)
        round_ = round_of(name, whole_updates(8), Graph(2, 1), 2, seed=seed, committee=committee)
        assert play(round_, dict.fromkeys(drawn[1] | {1}, 2)).failed == "mask"
        round_ = round_of(name, whole_updates(8), Graph(2, 1), 2, seed=seed, committee=committee)
        assert (
            assert_as_foretold(round_, dict.fromkeys(drawn[1], 2) | {1: 1}).failed == ""
        )  # it shared nothing
    assert found


def test_a_client_is_shown_as_many_consents_as_it_needs() -> None:
    round_ = round_of("masking", whole_updates(7), Graph(6, 3), 4, committee=Committee(5, 3))
    members = Committee(5, 3).members(round_.spec.clients, round_.spec.context())
    outbox = round_.opening()
    for _ in range(4):
        outbox = round_.server.turn([(c, round_.clients[c].receive(f)) for c, f in outbox.items()])
    assert set(outbox) == set(round_.spec.clients)
    for frame in outbox.values():
        assert [c for c, _ in decode(frame, Consents).signatures] == sorted(members)[:3]


PROMISES = [
    (60, 0.1, 0.1, 0, 0, False),  # sparse: derived
    (60, 0.0, 0.1, 24, 17, False),  # sparse: raw numbers
    (51, 0.3, 0.3, 0, 0, True),  # complete, and large
    (40, 0.2, 0.2, 0, 0, True),
    (25, 0.3, 0.2, 24, 19, True),
    (13, 0.0, 0.4, 0, 0, True),
]


@pytest.mark.parametrize(("n", "corruption", "dropout", "k", "t", "complete"), PROMISES)
@both
@settings(max_examples=2)
@given(st.data())
def test_a_round_ends_if_no_more_drop_out_than_promised(
    name: str, n: int, corruption: float, dropout: float, k: int, t: int, complete: bool, data: st.DataObject
) -> None:
    options = {"corruption": corruption, "dropout": dropout, "neighbours": k, "shares": t}
    promise = Promise(corruption, dropout)
    most = promise.dropped(n)
    graph = masking.graph_of(n, options)[1]
    assert graph.complete(n) == complete
    seed = data.draw(st.integers(0, 2**32))
    round_ = round_of(
        name, whole_updates(n, seed), graph, n - most, seed=seed, committee=convene(n, promise, graph)
    )
    assert round_.spec.parameters == masking.plan(n, n - most, CODING, options)
    phases = len(round_.backend.server_steps)
    lost = data.draw(
        st.lists(st.sampled_from(round_.spec.clients), min_size=most, max_size=most, unique=True)
    )
    lost_in = {client: data.draw(st.integers(0, phases - 1)) for client in lost}
    played = assert_as_foretold(round_, lost_in)
    assert played.failed == ""


@pytest.mark.parametrize("phase", range(5))
def test_one_more_than_the_threshold_allows_ends_the_round(phase: int) -> None:
    options = {"corruption": 0.0, "dropout": 0.4, "neighbours": 0, "shares": 0}
    graph = masking.graph_of(10, options)[1]
    for lost, fails in ((4, False), (5, True)):
        round_ = round_of("masking", whole_updates(10), graph, 6)
        played = play(round_, dict.fromkeys(range(1, lost + 1), phase))
        assert bool(played.failed) == fails
        assert (round_.server.sealed is None) == fails


# The numbers ------------------------------------------------------------------------------------------------


@st.composite
def codings(draw: st.DrawFn, n: int, rotate: bool) -> Coding:
    return Coding(
        clip=10.0 ** draw(st.integers(-6, 6)),
        bits=draw(st.integers(2, 24)),
        max_weight=draw(st.sampled_from([1, 7, 1000, 2**32])),
        rounding=draw(st.sampled_from(["nearest", "stochastic"])),
        rotate=rotate,
    )


def float_updates(n: int, coding: Coding, size: int, seed: int) -> dict[ClientId, Update]:
    """Numbers about as large as the clip, some of them far beyond it; weights beyond the largest."""
    rng = np.random.default_rng(seed)
    return {
        client: Update(
            (rng.normal(size=size) * coding.clip * 10.0 ** rng.integers(-3, 2, size)).astype(np.float32),
            float(rng.integers(1, coding.max_weight, endpoint=True) * rng.integers(1, 3)),
            {name: float(rng.normal() * 50) for name in METRICS},
        )
        for client in range(1, n + 1)
    }


@settings(max_examples=60)
@given(
    st.data(),
    st.sampled_from(NAMES),
    st.integers(2, 6),
    st.integers(1, 40),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_sum_is_exact_for_every_coding_and_the_same_as_plain_has(
    data: st.DataObject, name: str, n: int, size: int, rotate: bool, seed: int
) -> None:
    coding = data.draw(codings(n, rotate))
    updates = float_updates(n, coding, size, seed)
    t = n // 2
    round_ = round_of(name, updates, Graph(n - 1, t), t + 1, coding, seed)
    lost = data.draw(st.sets(st.sampled_from(sorted(updates)), max_size=n - t - 1))
    assert assert_as_foretold(round_, dict.fromkeys(lost, 2)).failed == ""
    assert round_.server.sealed is not None
    if not rotate:  # a rotation follows from the round's context, and this is another round
        spec = spec_of(PLAIN, updates, size=size, threshold=1, parameters=PLAIN.plan(n, 1, coding, {}))
        in_clear = Round(PLAIN, spec, updates, seed)
        in_clear.play(dict.fromkeys(lost, 0))
        assert in_clear.server.sealed is not None
        assert in_clear.server.sealed.survivors == round_.server.sealed.survivors
        assert bytes(in_clear.server.sealed.bulk) == bytes(round_.server.sealed.bulk)


@settings(max_examples=60)
@given(
    st.sampled_from(NAMES), st.integers(2, 6), st.integers(2, 20), st.sampled_from(["nearest", "stochastic"]),
    st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
@example("masking", 2, 2, "nearest", False, 0)
def test_the_mean_is_within_its_error_of_the_one_in_float32(
    name: str, n: int, bits: int, rounding: Any, rotate: bool, seed: int
) -> None:
    # No number of a whole update is beyond 40, so no rotation of 8 numbers makes one beyond 40 * sqrt(8).
    coding = Coding(clip=128.0, bits=bits, max_weight=10, rounding=rounding, rotate=rotate)
    updates = whole_updates(n, seed)
    graph = Graph(n - 1, n // 2)
    round_ = round_of(name, updates, graph, n // 2 + 1, coding, seed)
    floats = Round(PLAIN, spec_of(PLAIN, updates, threshold=1), updates, seed)
    lost = {1: 1} if n > 2 else {}
    round_.play(lost)
    floats.play(dict.fromkeys(lost, 0))
    assert round_.server.sealed is not None
    assert floats.server.sealed is not None
    found = round_.backend.open(round_.spec, round_.server.sealed, round_.server_key)
    exact = PLAIN.open(floats.spec, floats.server.sealed, None)
    assert found.saturated == 0
    assert found.weight == exact.weight
    assert found.count == exact.count
    # Of whole numbers the sum in float32 is exact; its mean is then rounded once.
    allowed = found.error + np.abs(exact.vector) * 2.0**-24
    assert (np.abs(found.vector.astype(np.float64) - exact.vector) <= allowed).all()
    assert 0 < found.error < n * 128 * 10


# The experiment's table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "threshold", "changes", "graph", "committee"),
    [
        # Derived: half of the 9 honest, rounded down, and the corrupt one; more than half of 10 + 1.
        (10, 8, {}, Graph(9, 5), Committee(10, 6)),
        (10, 8, {"neighbours": 9, "shares": 7}, Graph(9, 7), Committee(10, 6)),
        (10, 6, {"neighbours": 9, "shares": 5}, Graph(9, 5), Committee(10, 6)),
        (60, 54, {"neighbours": 24, "shares": 17}, Graph(24, 17), Committee(19, 13)),
    ],
)
def test_numbers_that_keep_the_promise_are_taken(
    n: int, threshold: int, changes: dict[str, int], graph: Graph, committee: Committee
) -> None:
    options = OPTIONS | {"corruption": 0.1, "dropout": 0.1} | changes
    encoded = masking.plan(n, threshold, CODING, options)
    assert msgspec.msgpack.decode(encoded, type=Parameters) == Parameters(CODING, graph, committee)
    told = masking.describe(n, threshold, options)
    assert (told["neighbours"], told["shares"]) == msgspec.structs.astuple(graph)
    assert (told["committee"], told["quorum"]) == msgspec.structs.astuple(committee)
    assert told["corrupt"] == n // 10
    assert told["dropped"] == n - threshold


@pytest.mark.parametrize(
    ("threshold", "changes", "message"),
    [
        (8, {"neighbours": 9}, "give both, or neither"),
        (8, {"shares": 6}, "give both, or neither"),
        (8, {"neighbours": 10, "shares": 6}, "neighbours <= 9"),
        (8, {"neighbours": 5, "shares": 6}, "shares <= neighbours"),
        (8, {"neighbours": -1, "shares": -1}, "1 <= shares"),
        (8, {"neighbours": 9, "shares": 4}, "privacy: "),
        (8, {"neighbours": 4, "shares": 3}, "privacy: "),
        (8, {"neighbours": 9, "shares": 9}, "correctness: "),
        (5, {}, "federation.threshold: 5 .* at least 6"),
        (7, {"neighbours": 9, "shares": 7}, "federation.threshold: 7 .* at least 8"),
        (8, {"corruption": 0.9}, "a sum hides nothing"),
        (10, {"corruption": 0.9, "neighbours": 9, "shares": 9}, "a sum hides nothing"),
        (8, {"dropout": 0.6}, "cannot do with 1 of 10"),
        (8, {"dropout": 1.0}, "dropout"),
    ],
)
def test_numbers_that_do_not_are_refused(threshold: int, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        masking.plan(10, threshold, CODING, OPTIONS | {"corruption": 0.1, "dropout": 0.1} | changes)


def test_masking_needs_a_coding() -> None:
    with pytest.raises(InputError, match=r"coding\.bits"):
        masking.plan(10, 8, None, OPTIONS)


def test_a_sum_that_is_one_unit_off_is_noticed_here() -> None:
    """What the tests above compare with: it does change if a client is missing, or a lane is off by one."""
    round_ = round_of("masking", whole_updates(4), Graph(3, 2), 3)
    round_.play()
    assert round_.server.sealed is not None
    assert bytes(round_.server.sealed.bulk) == round_.packed_sum((1, 2, 3, 4))
    assert bytes(round_.server.sealed.bulk) != round_.packed_sum((1, 2, 3))
    update = round_.updates[4]
    vector = update.vector.copy()
    vector[0] += 1
    round_.updates = dict(round_.updates) | {4: replace(update, vector=vector)}
    assert bytes(round_.server.sealed.bulk) != round_.packed_sum((1, 2, 3, 4))
