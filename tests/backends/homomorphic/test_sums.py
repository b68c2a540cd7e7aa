"""Whole rounds: whoever drops out, and when, the sum is masking's to the last bit, or there is none at all.

What is compared are the integer lanes that are opened at the end, and the aggregate that they decode to.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, combinations, product

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from insecure import (
    CODING,
    METRICS,
    OPTIONS,
    InsecureEntropy,
    RoundInHand,
    round_in_hand,
    spec_of,
    whole_update,
)

from privfr.backends import backend
from privfr.backends.homomorphic import authority, clients
from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.lattice import pack_words
from privfr.backends.homomorphic.messages import Bundle, Cipher, Offer
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.masking.client import point_of
from privfr.coding import Coding, FixedPoint, Lanes, unpack
from privfr.errors import BadFrame, TooFewClients, WrongPhase
from privfr.protocol import ClientId, ClientSession, ServerSession
from privfr.vector import Aggregate, Update
from privfr.wire import decode

NAMES = ("bfv", "ckks", "bfv-authority", "ckks-authority")
every_backend = pytest.mark.parametrize("name", NAMES)
slow = pytest.mark.slow
CODING_16 = Coding(clip=64.0, bits=16, max_weight=10)


def round_of(
    name: str,
    updates: Mapping[ClientId, Update],
    threshold: int = 2,
    coding: Coding = CODING,
    number: int = 0,
    seed: int = 0,
) -> RoundInHand:
    """A round of any backend over these updates."""
    found, size = backend(name), next(iter(updates.values())).vector.size
    spec = spec_of(found, updates, threshold, size=size, round=number)
    parameters = found.plan(len(updates), spec.threshold, coding, OPTIONS)
    return RoundInHand(found, msgspec.structs.replace(spec, parameters=parameters), updates, seed)


def whole_updates(n: int, seed: int = 0, size: int = 5) -> dict[ClientId, Update]:
    return {client: whole_update(seed, client, size=size) for client in range(1, n + 1)}


def extreme_updates(n: int, size: int, kind: str, coding: Coding, seed: int = 0) -> dict[ClientId, Update]:
    """Updates whose lanes are all at L, all at -L, each at one of both, or clipped to that."""
    rng = np.random.default_rng(seed)
    found = {}
    for client in range(1, n + 1):
        signs = {"highest": 1, "lowest": -1}.get(kind, rng.choice([-1.0, 1.0], size))
        reach = 1e30 if kind == "clipped" else coding.clip
        vector = np.full(size, reach, np.float32) * np.float32(signs)
        metrics = dict.fromkeys(METRICS, 128.0 if kind == "highest" else -128.0)
        found[client] = Update(vector, float(coding.max_weight), metrics)
    return found


def summand(point: FixedPoint, round_: RoundInHand, client: ClientId) -> Lanes:
    return point.encode(round_.updates[client], InsecureEntropy(1000 + client))  # that of `RoundInHand`


def integer_sum(round_: RoundInHand, survivors: Iterable[ClientId]) -> Lanes:
    """Masking's integer sum: of the survivors' lanes by masking's own coding, modulo 2^k."""
    coding = packing_of(round_).point.coding
    point = point_of(round_of("masking", round_.updates, coding=coding).spec)
    if coding.rotate:  # the rotation follows from the round's context, which names the backend
        point = FixedPoint(coding, point.clients, point.metrics, point.size, round_.spec.context())
    total = sum(summand(point, round_, client).astype(np.uint64) for client in survivors)
    return (total % np.uint64(1 << point.modulus_bits)).astype(np.uint32)


def packing_of(round_: RoundInHand) -> Packing:
    return rounds.packing_of(round_.spec)


def opened_lanes(round_: RoundInHand, server: ServerSession, client: ClientId) -> Lanes:
    """Lanes of the sum as `client` opens it, or as the authority has."""
    spec, sealed, point = round_.spec, server.sealed, packing_of(round_).point
    assert sealed is not None
    if round_.backend.server_learns == "sum":
        return unpack(sealed.bulk, point.modulus_bits, point.lanes)
    bundle, keyring = decode(sealed.bulk, Bundle), round_.client_keys[client]
    box = bundle.boxes[spec.clients.index(client)]
    key, mac = clients._take_up(spec, keyring, bundle.maker, box, bundle.key)
    return rounds.opened(packing_of(round_), key, mac, sealed.survivors, bundle.tag, bundle.bulk)


def assert_same(one: Aggregate, other: Aggregate) -> None:
    assert one.vector.dtype == other.vector.dtype == np.float32
    assert np.array_equal(one.vector.view(np.uint32), other.vector.view(np.uint32))
    for name in ("weight", "count", "metrics", "error", "saturated"):
        assert getattr(one, name) == getattr(other, name)


def assert_exact(
    round_: RoundInHand,
    server: ServerSession,
    survivors: Iterable[ClientId],
    opener: ClientId = 1,
    expected: Lanes | None = None,
) -> None:
    survivors = tuple(survivors)
    assert server.sealed is not None
    assert server.sealed.survivors == survivors
    expected = integer_sum(round_, survivors) if expected is None else expected
    lanes = opened_lanes(round_, server, opener)
    assert lanes.dtype == np.uint32
    assert np.array_equal(lanes, expected)
    found = round_.backend.open(round_.spec, server.sealed, round_.client_keys[opener])
    assert_same(found, packing_of(round_).point.decode(expected, len(survivors)))


def subsets(items: Iterable[ClientId]) -> Iterator[tuple[ClientId, ...]]:
    items = tuple(items)
    return chain.from_iterable(combinations(items, size) for size in range(len(items) + 1))


# Every way to drop out, for few clients ---------------------------------------------------------------------


@dataclass
class Exploration:
    """Walk through all patterns of dropout at once: after each phase, each set of clients that were heard.

    Silence in one phase is silence from it on; but an answer may come late, in the next phase, and is then to
    be refused.
    """

    round: RoundInHand
    finished: int = 0
    failed: int = 0

    def walk(
        self,
        server: ServerSession,
        sessions: dict[ClientId, ClientSession],
        outbox: Mapping[ClientId, bytes],
        late: Mapping[ClientId, bytes],
    ) -> None:
        sessions = {client: copy.copy(sessions[client]) for client in outbox}  # a state is never changed
        answers = {client: sessions[client].receive(frame) for client, frame in outbox.items()}
        for there in subsets(answers):
            kept = (server.backend, *server.state.offers.values())
            branch = copy.deepcopy(server, {id(each): each for each in kept})
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
            if branch.sealed is None:
                assert set(following) == set(there)
                missed = {client: frame for client, frame in answers.items() if client not in there}
                self.walk(branch, sessions, following, missed)
            else:
                self.finish(branch, there)

    def finish(self, server: ServerSession, survivors: tuple[ClientId, ...]) -> None:
        opener = 1 + self.finished % len(self.round.spec.clients)  # whoever: also who dropped out
        assert_exact(self.round, server, survivors, opener)
        assert set(server.dropped) == set(self.round.spec.clients) - set(survivors)
        assert all("asked nothing" in text for _, text in server.faults)
        self.finished += 1


@pytest.mark.parametrize("n", [2, 3, 4, pytest.param(5, marks=slow)])
def test_every_pattern_of_dropout_gives_maskings_sum_or_none(n: int) -> None:
    exploration = Exploration(round_in_hand("bfv", n))
    round_ = exploration.round
    assert round_.spec.threshold == 2
    exploration.walk(round_.server, round_.clients, round_.opening(), {})
    # At least two clients are never lost, the others each in one of the two phases.
    assert exploration.finished == sum(math.comb(n, kept) * 2 ** (n - kept) for kept in range(2, n + 1))
    assert exploration.failed > 0


def survivors_of(round_: RoundInHand, lost_in: Mapping[ClientId, int]) -> tuple[ClientId, ...]:
    """Who is in the sum if the round ends: whose ciphertexts were heard, in phase 1."""
    return tuple(client for client in round_.spec.clients if lost_in.get(client, 9) > 1)


def assert_exact_or_too_few(round_: RoundInHand, lost_in: Mapping[ClientId, int], opener: ClientId) -> bool:
    phases = len(round_.backend.server_steps)
    left = sum(lost_in.get(client, phases) >= phases for client in round_.spec.clients)
    if left < round_.spec.threshold:
        with pytest.raises(TooFewClients):
            round_.play(lost_in)
        assert round_.server.sealed is None
        return False
    assert_exact(round_, round_.play(lost_in), survivors_of(round_, lost_in), opener)
    return True


# The scheme makes no difference to who is lost when.
@pytest.mark.parametrize(
    "name", ["bfv-authority", pytest.param("ckks", marks=slow), pytest.param("ckks-authority", marks=slow)]
)
def test_every_pattern_of_few_and_some_of_more_give_maskings_sum_or_none(name: str) -> None:
    phases = len(backend(name).server_steps)
    rng, every = np.random.default_rng(NAMES.index(name)), range(phases + 1)
    patterns = list(product(every, repeat=2)) + list(product(every, repeat=3))
    patterns += [tuple(rng.choice([*every, phases], n).tolist()) for n in (4, 5) for _ in range(4)]
    finished = 0
    for i, pattern in enumerate(patterns):
        lost_in = dict(enumerate(pattern, 1))
        finished += assert_exact_or_too_few(round_in_hand(name, len(pattern)), lost_in, 1 + i % len(pattern))
    assert 10 < finished < len(patterns)


@every_backend
@pytest.mark.parametrize("lost", [(), (2, 4)])
def test_a_round_of_masking_itself_gives_the_same_bits(name: str, lost: tuple[ClientId, ...]) -> None:
    """Masking's opened sum and its decoded aggregate, not a recalculation of it; any of the codings."""
    codings = (CODING, CODING_16, Coding(0.5, 9, 3, rounding="stochastic"), Coding(64.0, 2, 10))
    for coding in codings:
        updates = whole_updates(5, size=300)
        masked = round_of("masking", updates, coding=coding)
        assert masked.play(dict.fromkeys(lost, 2)).sealed is not None
        sealed, point = masked.server.sealed, point_of(masked.spec)
        lanes = unpack(sealed.bulk, point.modulus_bits, point.lanes)
        round_ = round_of(name, updates, coding=coding)
        server = round_.play(dict.fromkeys(lost, 1))
        assert_exact(round_, server, sealed.survivors, expected=lanes)
        found = round_.backend.open(round_.spec, server.sealed, round_.client_keys[3])
        assert_same(found, masked.backend.open(masked.spec, sealed, masked.client_keys[1]))


# Many clients, any vector -----------------------------------------------------------------------------------


@st.composite
def any_round(draw: st.DrawFn, name: str) -> tuple[RoundInHand, dict[ClientId, int], ClientId]:
    """A round of up to 40 clients, some of them lost, and who opens it."""
    n = draw(st.integers(2, 40))
    ids = sorted(draw(st.sets(st.integers(0, 2**40), min_size=n, max_size=n)))
    coding = Coding(
        64.0, draw(st.integers(2, 24)), draw(st.sampled_from([10, 2**32])),
        draw(st.sampled_from(["nearest", "stochastic"])), draw(st.booleans()),
    )  # fmt: skip
    seed, size = draw(st.integers(0, 2**32)), draw(st.sampled_from([1, 2, 100, 9000]))
    extreme = draw(st.sampled_from(["", "", "highest", "lowest", "mixed", "clipped"]))
    if extreme:
        updates = extreme_updates(n, size, extreme, coding, seed)
    else:
        updates = whole_updates(n, seed, size)
    round_ = round_of(
        name, dict(zip(ids, updates.values(), strict=True)), draw(st.integers(2, n)), coding,
        draw(st.integers(0, 99)), seed,
    )  # fmt: skip
    phases = len(round_.backend.server_steps)
    spare = n - round_.spec.threshold
    lost = draw(st.lists(st.sampled_from(ids), max_size=spare + draw(st.integers(0, 1)), unique=True))
    lost_in = {client: draw(st.integers(0, phases - 1)) for client in lost}
    return round_, lost_in, draw(st.sampled_from(ids))


@every_backend
def test_any_rounds_sum_is_maskings_or_there_is_none(name: str) -> None:
    @settings(max_examples=5)
    @given(any_round(name))
    def check(case: tuple[RoundInHand, dict[ClientId, int], ClientId]) -> None:
        assert_exact_or_too_few(*case)

    check()


@every_backend
@pytest.mark.parametrize(
    "kind", ["lowest", "clipped", pytest.param("highest", marks=slow), pytest.param("mixed", marks=slow)]
)
def test_extreme_values_add_up_exactly(name: str, kind: str) -> None:
    """All of 40 clients at the ends of the range, in every lane."""
    updates = extreme_updates(40, 2000, kind, CODING_16)
    round_ = round_of(name, updates, 38, CODING_16)
    server = round_.play()
    assert_exact(round_, server, round_.spec.clients)
    lanes = opened_lanes(round_, server, 7)
    if kind in ("highest", "lowest"):
        modulus = 1 << packing_of(round_).point.modulus_bits
        extreme = 40 * (2**15 - 1) * (1 if kind == "highest" else -1)
        assert set(lanes[-2000:].tolist()) == {extreme % modulus}
    found = round_.backend.open(round_.spec, server.sealed, round_.client_keys[7])
    assert found.saturated == (40 if kind == "clipped" else 0)


SIZES = {"one": None, "one less": -1, "just one": 0, "one more": 1, "100k": 100_000}


def size_of(name: str, which: str) -> int:
    """Numbers of a vector by how it fills a ciphertext."""
    beyond = SIZES[which]
    if beyond is None or beyond > 1:
        return beyond or 1
    small = packing_of(round_of(name, whole_updates(3, size=1), coding=CODING_16))
    return small.capacity - small.point.lanes + 1 + beyond


@every_backend
@pytest.mark.parametrize("which", SIZES)
def test_vectors_of_every_size_add_up_exactly(name: str, which: str) -> None:
    size = size_of(name, which)
    round_ = round_of(name, whole_updates(3, size=size), coding=CODING_16)
    packing = packing_of(round_)
    if which in ("one less", "just one", "one more"):
        assert packing.point.lanes == packing.capacity + SIZES[which]
    full = -(-packing.point.lanes // packing.capacity)
    assert packing.ciphertexts == full == (full if size == 100_000 else 2 if which == "one more" else 1)
    assert_exact(round_, round_.play({2: 1}), (1, 3), opener=2)


@pytest.mark.slow
@every_backend
def test_three_million_values_add_up_exactly(name: str) -> None:
    round_ = round_of(name, whole_updates(4, size=3_000_000), coding=CODING_16)
    assert packing_of(round_).ciphertexts > 300
    assert_exact(round_, round_.play({2: 1}), (1, 3, 4))
    round_ = round_of(name, extreme_updates(3, 3_000_000, "mixed", CODING_16), coding=CODING_16)
    assert_exact(round_, round_.play(), (1, 2, 3))


# Who makes the key ------------------------------------------------------------------------------------------

with_clients = pytest.mark.parametrize("name", ["bfv", "ckks"])


@with_clients
@pytest.mark.parametrize("number", [0, 1, 4, 7])
def test_every_maker_lost_but_the_last_still_gives_a_sum(name: str, number: int) -> None:
    round_ = round_of(name, whole_updates(5), 3, number=number)
    makers = clients.makers(round_.spec)
    assert makers == tuple(1 + (number + i) % 5 for i in range(3))
    lost_in = dict.fromkeys(makers[:-1], 0)
    server = round_.play(lost_in)
    assert decode(server.sealed.bulk, Bundle).maker == makers[-1]
    for opener in round_.spec.clients:
        assert_exact(round_, server, survivors_of(round_, lost_in), opener)


@with_clients
def test_a_maker_lost_after_its_offer_does_no_harm(name: str) -> None:
    round_ = round_of(name, whole_updates(5), 3)
    makers = clients.makers(round_.spec)
    server = round_.play(dict.fromkeys(makers[:2], 1))
    assert decode(server.sealed.bulk, Bundle).maker == makers[0]
    assert_exact(round_, server, sorted(set(round_.spec.clients) - set(makers[:2])), makers[0])


@with_clients
@pytest.mark.parametrize("threshold", [2, 3, 5])
def test_all_makers_lost_is_too_few_clients(name: str, threshold: int) -> None:
    round_ = round_of(name, whole_updates(5), threshold)
    makers = clients.makers(round_.spec)
    assert len(makers) == 5 - threshold + 1
    with pytest.raises(TooFewClients, match="phase offer"):
        round_.play(dict.fromkeys(makers, 0))
    assert round_.server.sealed is None


@with_clients
def test_all_makers_offers_refused_is_too_few_clients(name: str) -> None:
    """Makers that answer as if they were none are not among those left."""
    round_ = round_of(name, whole_updates(4), 3)
    makers, context = clients.makers(round_.spec), round_.spec.context()
    empty = Offer(context, (), memoryview(b""))
    for client in makers:
        with pytest.raises(BadFrame, match="another form"):
            clients.absorb_offer(round_.server.state, client, empty)
    with pytest.raises(TooFewClients, match="every maker"):
        clients.close_offers(round_.server.state)


@with_clients
def test_makers_take_turns(name: str) -> None:
    updates = whole_updates(5)
    first = [clients.makers(round_of(name, updates, 4, number=i).spec)[0] for i in range(5)]
    assert sorted(first) == [1, 2, 3, 4, 5]


@with_clients
def test_the_server_cannot_open_what_the_clients_can(name: str) -> None:
    round_ = round_in_hand(name)
    server = round_.play()
    for client in round_.spec.clients:
        round_.backend.open(round_.spec, server.sealed, round_.client_keys[client])
    assert round_.server_key is None
    with pytest.raises(BadFrame, match="only the clients"):
        round_.backend.open(round_.spec, server.sealed, round_.server_key)
    stranger = round_of(name, whole_updates(4), seed=1).client_keys[1]
    with pytest.raises(BadFrame, match="does not open"):
        round_.backend.open(round_.spec, server.sealed, stranger)


@pytest.mark.parametrize("name", ["bfv-authority", "ckks-authority"])
def test_who_is_lost_after_its_ciphertexts_is_in_the_sum(name: str) -> None:
    round_ = round_in_hand(name, 5, 3)
    server = round_.play({2: 2, 5: 2})
    assert_exact(round_, server, (1, 2, 3, 4, 5))
    assert set(server.dropped) == {2, 5}
    assert isinstance(round_.server.state, authority.ServerState)


def ciphers(round_: RoundInHand) -> dict[ClientId, bytes]:
    """Play a round as far as the clients' ciphertexts."""
    answers = {c: round_.clients[c].receive(frame) for c, frame in round_.opening().items()}
    outbox = round_.server.turn(answers.items())
    return {client: round_.clients[client].receive(frame) for client, frame in outbox.items()}


@every_backend
def test_a_summand_is_as_long_as_its_coefficients(name: str) -> None:
    """Little travels beside them: what the wire costs is what the lattice says."""
    round_ = round_of(name, whole_updates(3, size=20_000), coding=CODING_16)
    packing, frame = packing_of(round_), ciphers(round_)[2]
    assert len(decode(frame, Cipher).bulk) == packing.packed_bytes
    beside = 32 + 4 * 9 + 40  # the context, the tag, and what msgpack and the name of the message take
    assert packing.packed_bytes < len(frame) <= packing.packed_bytes + beside
    assert packing.packed_bytes == packing.ciphertexts * packing.lattice.primes[0] * 2 * 4096 // 8


# The server's sum -------------------------------------------------------------------------------------------


@every_backend
def test_the_server_adds_tags_and_ciphertexts_and_passes_them_on(name: str) -> None:
    round_ = round_of(name, whole_updates(3, size=9000), coding=CODING_16)
    total, packing = rounds.Total(round_.spec), packing_of(round_)
    assert packing.ciphertexts > 1
    sent = {client: decode(frame, Cipher) for client, frame in ciphers(round_).items()}
    for client in (3, 1):
        total.add(client, sent[client])
    rows = [list(rounds.ciphertexts_of(packing, sent[c].bulk)) for c in (1, 3)]
    prime = packing.lattice.prime
    assert total.tag == tuple((a + b) % prime for a, b in zip(sent[1].tag, sent[3].tag, strict=True))
    assert np.array_equal(total.words, (np.array(rows[0]) + np.array(rows[1])) % np.uint64(prime))
    assert np.array_equal(list(rounds.ciphertexts_of(packing, total.packed())), total.words)
    assert total.survivors == [3, 1]
    assert repr(total) == "<Total of 2 clients>"


@every_backend
def test_a_refused_message_leaves_the_servers_sum_as_it_was(name: str) -> None:
    round_ = round_of(name, whole_updates(3, size=9000), coding=CODING_16)
    total, packing = rounds.Total(round_.spec), packing_of(round_)
    sent = {client: decode(frame, Cipher) for client, frame in ciphers(round_).items()}
    total.add(1, sent[1])
    before = total.tag, total.words.tolist(), list(total.survivors)
    good, prime, bits = sent[2], packing.lattice.prime, packing.lattice.primes[0]
    late = bytearray(good.bulk)  # all but the last coefficient in order
    late[-packing.lattice.packed_bytes :] = pack_words(np.full(8192, prime, np.uint64), bits)
    for change, error in [
        ({"context": bytes(32)}, WrongPhase),
        ({"tag": good.tag[:3]}, BadFrame),
        ({"tag": (*good.tag[:3], prime)}, BadFrame),
        ({"tag": (-1, *good.tag[1:])}, BadFrame),
        ({"bulk": good.bulk[:-1]}, BadFrame),
        ({"bulk": memoryview(late)}, BadFrame),
    ]:
        with pytest.raises(error):
            total.add(2, msgspec.structs.replace(good, **change))
        assert (total.tag, total.words.tolist(), total.survivors) == before
    total.add(2, good)
    assert total.survivors == [1, 2]
