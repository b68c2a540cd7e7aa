"""What the server of a masking round sees, and what it gains by lying.

Every attack is first shown to work with the one defence against it taken away, so that a test that finds it
refused has found more than a mistake in the attack. "Works" means that the victim's coded update is recovered
to the last bit. `Adversary` is a server that holds to nothing: it hands every client what the test says.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from insecure import (
    CODING,
    METRICS,
    InsecureEntropy,
    RoundInHand,
    member_of,
    spec_of,
    whole_update,
)
from nacl.bindings import crypto_scalarmult_base
from nacl.secret import SecretBox
from numpy.typing import NDArray

from privfr.backends import backend
from privfr.backends.masking import client as client_side
from privfr.backends.masking import graph as graph_side
from privfr.backends.masking import masks, shamir
from privfr.backends.masking import server as server_side
from privfr.backends.masking.client import ClientState, Parameters, point_of
from privfr.backends.masking.graph import Graph
from privfr.backends.masking.masks import add_masks, pair_key, self_key
from privfr.backends.masking.messages import (
    Advert,
    Advertise,
    Consent,
    Consents,
    Entrusted,
    KeyBook,
    Masked,
    Reveal,
    ShareBook,
    Shares,
    Survivors,
    advert_bytes,
    sign,
    survivor_bytes,
)
from privfr.coding import Coding, pack, unpack
from privfr.errors import BadFrame, PolicyRefused, RemoteProtocolError, TooFewClients, WrongPhase
from privfr.federation import Member, Policy
from privfr.protocol import Begin, ClientId, ClientSession, RoundSpec, ServerSession
from privfr.vector import Update, Vector, digest
from privfr.wire import Message, decode, encode, kind

Lanes = NDArray[np.uint32]
Ids = Iterable[ClientId]

# Long enough that noise is told from a coded update.
LENGTH = 400


class Round(RoundInHand):
    """A round in hand whose clients' entropy differs from seed to seed."""

    def session(self, client: ClientId, spec: RoundSpec | None = None) -> ClientSession:
        entropy = InsecureEntropy(1_000_000 * (self.seed + 1) + client)
        state = self.backend.client_state(
            spec or self.spec, client, self.updates[client], self.client_keys[client], entropy
        )
        return ClientSession(self.backend, state, entropy)

    def lanes(self, client: ClientId) -> Lanes:
        """A client's coded update: what an attack is after. Nearest rounding, so without entropy."""
        return point_of(self.spec).encode(self.updates[client], InsecureEntropy(0))


def round_of(
    name: str,
    n: int,
    graph: Graph | None = None,
    threshold: int = 0,
    *,
    seed: int = 0,
    updates: Mapping[ClientId, Update] | None = None,
    coding: Coding = CODING,
    **changes: Any,
) -> Round:
    """A round of clients 1 to n; without a graph, over the complete one for no accomplices."""
    found = backend(name)
    graph = graph or graph_side.derive(n, graph_side.Promise(0, 0))
    updates = updates or {c: whole_update(seed, c, size=LENGTH) for c in range(1, n + 1)}
    spec = spec_of(found, updates, size=updates[1].vector.size)
    parameters = msgspec.msgpack.encode(Parameters(coding, graph))
    settings = {"threshold": threshold or graph.shares + 1, "parameters": parameters} | changes
    return Round(found, msgspec.structs.replace(spec, **settings), updates, seed)


# The adversary ----------------------------------------------------------------------------------------------


@dataclass(repr=False)
class Adversary:
    """A server that says to each client what it likes, and makes of the answers what it can.

    Whoever refuses is not caught here. accomplices: clients that tell it all they know.
    """

    round: Round
    accomplices: tuple[ClientId, ...] = ()
    known: dict[ClientId, bytes] = field(default_factory=dict)
    adverts: dict[ClientId, Advert] = field(default_factory=dict)
    drawn: dict[ClientId, tuple[ClientId, ...]] = field(default_factory=dict)
    boxes: dict[ClientId, dict[ClientId, Entrusted]] = field(default_factory=dict)
    partners: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    masked: dict[ClientId, Lanes] = field(default_factory=dict)
    seeds: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    keys: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec, self.clients = self.round.spec, self.round.clients
        self.context, self.graph = self.spec.context(), Parameters.of(self.spec).graph
        self.bits = point_of(self.spec).modulus_bits

    def state(self, client: ClientId) -> ClientState:
        state = self.clients[client]._state
        assert isinstance(state, ClientState)
        return state

    def ask(self, client: ClientId, message: Message, answer: type[Any]) -> Any:
        return decode(self.clients[client].receive(encode(message)), answer)

    def advertise(self, who: Ids | None = None) -> None:
        for client in who or self.spec.clients:
            spec = self.state(client).spec
            found = self.ask(client, Begin(spec, memoryview(b"")), Advertise)
            self.adverts[client], self.drawn[client] = found.advert, found.neighbours
            if client in self.accomplices:
                self.known[client] = self.state(client).mask_secret

    def keybook(self, client: ClientId, adverts: Mapping[ClientId, Advert] | None = None) -> KeyBook:
        known = self.adverts | dict(adverts or {})
        return KeyBook(tuple((n, known[n]) for n in self.drawn[client] if n in known))

    def share(self, who: Ids | None = None) -> None:
        for client in who or self.spec.clients:
            found = self.ask(client, self.keybook(client), Shares)
            self.boxes[client] = {each.holder: each for each in found.entrusted}

    def sharebook(self, client: ClientId, there: Ids | None = None) -> ShareBook:
        """there: those that are said to have shared; if not given, those that have."""
        shared = self.boxes if there is None else set(there)
        boxes = tuple(
            (o, self.adverts[o], b[client].box) for o, b in sorted(self.boxes.items()) if client in b
        )
        return ShareBook(tuple(n for n in self.drawn[client] if n in shared), boxes)

    def mask(self, books: Mapping[ClientId, ShareBook] | None = None, who: Ids | None = None) -> None:
        for client in who or sorted(self.boxes):
            book = (books or {}).get(client) or self.sharebook(client)
            adverts = dict(self.state(client).adverts)
            self.partners[client] = {n: adverts[n].mask_key for n in book.neighbours}
            self.partners[client] |= {owner: advert.mask_key for owner, advert, _ in book.boxes}
            found = self.ask(client, book, Masked)
            lanes = point_of(self.spec).lanes
            self.masked[client] = unpack(found.bulk, self.bits, lanes)
            if client in self.accomplices:  # it hands over both shares of everyone who trusted it with them
                for owner, shares in self.state(client).held.items():
                    for opened, share in zip((self.seeds, self.keys), shares, strict=True):
                        opened.setdefault(owner, {})[client] = share

    def open(self) -> None:
        """The first three phases, honestly."""
        self.advertise()
        self.share()
        self.mask()

    def consent(self, survivors: Ids, who: Ids | None = None) -> dict[ClientId, bytes]:
        message = Survivors(tuple(sorted(survivors)))
        return {c: self.ask(c, message, Consent).signature for c in who or message.clients}

    def consents(self, client: ClientId, signatures: Mapping[ClientId, bytes]) -> Consents:
        return Consents(tuple((n, signatures[n]) for n in self.drawn[client] if n in signatures))

    def reveal(self, survivors: Ids, who: Ids | None = None) -> None:
        """Get shares from those asked, with or without the consent of all survivors."""
        survivors = sorted(survivors)
        if self.round.backend.name == "masking":
            signatures = self.consent(survivors, survivors)
            asks: dict[ClientId, Message] = {c: self.consents(c, signatures) for c in who or survivors}
        else:
            asks = dict.fromkeys(who or survivors, Survivors(tuple(survivors)))
        for client, message in asks.items():
            self.take(client, self.ask(client, message, Reveal))

    def take(self, holder: ClientId, found: Reveal) -> None:
        for owner, share in found.seeds:
            self.seeds.setdefault(owner, {})[holder] = share
        for owner, share in found.keys:
            self.keys.setdefault(owner, {})[holder] = share

    def stripped(self, client: ClientId) -> Lanes:
        """A client's masked lanes without the masks whose secret is `known`, or has shares enough."""
        t, plus, minus = self.graph.shares, [], []
        if len(self.seeds.get(client, {})) >= t:
            plus.append(self_key(shamir.combine(self.seeds[client], t), self.context, client))
        secrets = {o: shamir.combine(shares, t) for o, shares in self.keys.items() if len(shares) >= t}
        secrets |= self.known
        for other, public in self.partners[client].items():
            if client in secrets:
                key = pair_key(secrets[client], public, self.context, client, other)
            elif other in secrets:
                key = pair_key(secrets[other], self.adverts[client].mask_key, self.context, client, other)
            else:
                continue
            (plus if client < other else minus).append(key)
        lanes = self.masked[client].astype("<u4")
        add_masks(lanes, minus, plus)
        return lanes & np.uint32((1 << self.bits) - 1)

    def recovers(self, client: ClientId) -> bool:
        """Whether what is left is the client's coded update; if not, it must be noise."""
        left = self.stripped(client)
        if left.tobytes() == self.round.lanes(client).tobytes():
            return True
        assert is_noise(left, self.bits), "neither the update nor noise"
        return False


def nothing(*arguments: object) -> None:
    """A check that is switched off."""


# Statistics -------------------------------------------------------------------------------------------------

# Of a standard normal, exceeded once in a million.
Z = 4.753424


def limit(degrees: int) -> float:
    """What chi-square exceeds once in a million (Wilson and Hilferty 1931; a little high for few degrees)."""
    return degrees * (1 - 2 / (9 * degrees) + Z * math.sqrt(2 / (9 * degrees))) ** 3


def bins(lanes: Lanes, bits: int) -> NDArray[np.int64]:
    """Counts of the 16 values of a lane's upper four bits, and of the lower four."""
    parts = (lanes >> np.uint32(bits - 4), lanes & np.uint32(15))
    return np.stack([np.bincount(part.reshape(-1), minlength=16) for part in parts])


def uniformity(lanes: Lanes, bits: int) -> list[tuple[float, int]]:
    """Chi-square and degrees of freedom against lanes uniform mod 2^bits; lanes: uint32 [runs, lanes].

    Of the upper and the lower bits of all lanes, of each bit, and of each lane's top bit from run to run.
    """
    runs, count = lanes.shape
    expected = lanes.size / 16
    found = [(float(((row - expected) ** 2 / expected).sum()), 15) for row in bins(lanes, bits)]
    ones = np.array([((lanes >> np.uint32(bit)) & 1).sum() for bit in range(bits)])
    found.append((float(((2 * ones - lanes.size) ** 2 / lanes.size).sum()), bits))
    tops = (lanes >> np.uint32(bits - 1)).sum(axis=0).astype(np.int64)
    if runs > 1:
        found.append((float(((2 * tops - runs) ** 2 / runs).sum()), count))
    return found


def is_noise(lanes: Lanes, bits: int) -> bool:
    return all(found <= limit(degrees) for found, degrees in uniformity(np.atleast_2d(lanes), bits))


def alike(one: Lanes, other: Lanes, bits: int) -> bool:
    """Two-sample chi-square over the upper and lower four bits of as many lanes."""
    a, b = bins(one, bits), bins(other, bits)
    return all(
        float(((x - y) ** 2 / np.maximum(x + y, 1)).sum()) <= limit(15) for x, y in zip(a, b, strict=True)
    )


def test_the_limit_is_that_of_chi_square() -> None:
    # Tables of the distribution: what is exceeded with a probability of 1e-6.
    for degrees, exact in ((15, 56.49), (22, 68.86), (400, 549.12)):
        assert exact <= limit(degrees) <= exact * 1.02


ZERO = Update(np.zeros(LENGTH, np.float32), 1.0, dict.fromkeys(METRICS, 0.0))
EXTREME = Update(np.full(LENGTH, 64, np.float32), 10.0, dict.fromkeys(METRICS, 128.0))
BEYOND = Update(np.full(LENGTH, -1e30, np.float32), 1e9, dict.fromkeys(METRICS, -1e9))
SAMPLE = {"zero": ZERO, "extreme": EXTREME, "beyond": BEYOND}
VIEWS = ("masked", "survivor", "late")


def seen(update: Update, view: str, seed: int) -> tuple[Lanes, int]:
    """Client 1's lanes as a server sees them. masked: as sent.  survivor: once its seed is opened.
    late: its lanes came too late to be in the sum, so its mask key was opened.
    """
    updates = {c: update if c == 1 else whole_update(c, size=LENGTH) for c in range(1, 5)}
    evil = Adversary(round_of("masking-passive", 4, updates=updates, seed=seed))
    evil.open()
    if view != "masked":
        evil.reveal((1, 2, 3) if view == "survivor" else (2, 3, 4))
    return evil.stripped(1), evil.bits


def sample(update: Update, view: str, runs: int = 32) -> tuple[Lanes, int]:
    found = [seen(update, view, seed) for seed in range(runs)]
    return np.stack([lanes for lanes, _ in found]), found[0][1]


@pytest.fixture(scope="module")
def samples() -> dict[tuple[str, str], tuple[Lanes, int]]:
    return {(name, view): sample(SAMPLE[name], view) for name in SAMPLE for view in VIEWS}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", SAMPLE)
def test_what_the_server_sees_of_one_client_is_uniform(
    samples: dict[tuple[str, str], tuple[Lanes, int]], name: str, view: str
) -> None:
    lanes, bits = samples[name, view]
    for found, degrees in uniformity(lanes, bits):
        assert found <= limit(degrees)


@pytest.mark.parametrize("view", VIEWS)
def test_updates_are_told_apart_by_nothing_the_server_sees(
    samples: dict[tuple[str, str], tuple[Lanes, int]], view: str
) -> None:
    bits = samples["zero", view][1]
    for other in ("extreme", "beyond"):
        assert alike(samples["zero", view][0], samples[other, view][0], bits)


def without(which: str) -> Callable[..., None]:
    """`add_masks` that leaves out a client's own mask, which comes first, or all the others."""

    def faulty(total: Lanes, plus: list[bytes], minus: list[bytes], threads: int = 1) -> None:
        add_masks(total, *((plus[1:], minus) if which == "self" else (plus[:1], [])), threads)

    return faulty


@pytest.mark.parametrize(("missing", "view"), [("self", "late"), ("pair", "survivor")])
def test_a_missing_mask_is_noticed(monkeypatch: pytest.MonkeyPatch, missing: str, view: str) -> None:
    """Each of the two masks is needed: without it, one of the views is the update itself."""
    monkeypatch.setattr(masks, "add_masks", without(missing))
    zero, bits = sample(ZERO, "masked", 4)
    assert is_noise(zero, bits), "the other mask still hides what is sent"
    # The adversary takes off what it believes was added, so leave it only the masks that were.
    monkeypatch.setattr(masks, "add_masks", add_masks)
    true = Adversary.stripped

    def strip(evil: Adversary, client: ClientId) -> Lanes:
        if missing == "self":
            evil.seeds.pop(client, None)
        else:
            evil.partners[client] = {}
        return true(evil, client)

    monkeypatch.setattr(Adversary, "stripped", strip)
    monkeypatch.setattr(masks, "add_masks", without(missing))
    zero, extreme = sample(ZERO, view, 4)[0], sample(EXTREME, view, 4)[0]
    assert not is_noise(zero, bits)
    assert not is_noise(extreme, bits)
    assert not alike(zero, extreme, bits)


def test_masks_that_do_not_change_from_run_to_run_are_noticed() -> None:
    lanes, bits = seen(ZERO, "masked", 0)
    assert is_noise(lanes, bits)
    assert not is_noise(np.stack([lanes] * 32), bits)


@dataclass
class Transcript:
    """Frames of one round in order: whether up, kind, client, bytes."""

    frames: list[tuple[bool, str, ClientId, bytes]] = field(default_factory=list)

    def shape(self) -> list[tuple[bool, str, ClientId, int]]:
        return [(up, what, client, len(frame)) for up, what, client, frame in self.frames]


def transcript(
    round_: RoundInHand, lost_in: Mapping[ClientId, int], look: Callable[[ClientId, Any], object] = nothing
) -> Transcript:
    """Play a round with an honest server. What is lost was sent all the same. look: is shown each state."""
    found, outbox = Transcript(), round_.opening()
    for phase in range(len(round_.backend.server_steps)):
        found.frames += [(False, kind(frame), client, frame) for client, frame in outbox.items()]
        answers = {client: round_.clients[client].receive(frame) for client, frame in outbox.items()}
        found.frames += [(True, kind(frame), client, frame) for client, frame in answers.items()]
        for client, session in round_.clients.items():
            look(client, session._state)
        outbox = round_.server.turn([(c, f) for c, f in answers.items() if lost_in.get(c, phase + 1) > phase])
    assert round_.server.sealed is not None
    return found


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_another_update_changes_the_masked_lanes_and_nothing_else(name: str) -> None:
    """With the same entropy, all other frames are the same to the byte; with another, the same in length."""
    lost = {4: 2, 5: 3}
    found = {}
    for which, update in SAMPLE.items():
        updates = {c: update if c == 1 else whole_update(c, size=LENGTH) for c in range(1, 7)}
        graph = Graph(5, 3)
        found[which] = transcript(round_of(name, 6, graph, updates=updates), lost)
        elsewhere = transcript(round_of(name, 6, graph, updates=updates, seed=1), lost)
        assert elsewhere.shape() == found[which].shape()
    for frames in (found["extreme"].frames, found["beyond"].frames):
        other = [(one, two) for one, two in zip(found["zero"].frames, frames, strict=True) if one != two]
        assert [(one[:3], two[:3]) for one, two in other] == [((True, "masking.masked", 1),) * 2]


# What leaves a client ---------------------------------------------------------------------------------------

# Every message a client sends, with its fields, and those of what is inside: docs/spec/masking.md.
LEAVES: dict[str, tuple[type[Message], tuple[str, ...]]] = {
    "masking.advertise": (Advertise, ("advert", "neighbours")),
    "masking.shares": (Shares, ("entrusted",)),
    "masking.masked": (Masked, ("context", "bulk")),
    "masking.consent": (Consent, ("signature",)),
    "masking.reveal": (Reveal, ("seeds", "keys")),
}
INSIDE = {
    Advert: ("box_key", "mask_key", "signature"),
    Entrusted: ("holder", "box", "seed_digest", "key_digest"),
}


def pieces(secret: bytes, size: int = 16) -> set[bytes]:
    """What shows that a secret, or a part of it, is in a frame."""
    return {secret[at : at + size] for at in range(0, max(1, len(secret) - size + 1), size)}


def numbers(value: float) -> set[bytes]:
    """A number as it might be written down."""
    forms = "fdiq" if value.is_integer() else "fd"
    return {
        struct.pack(order + form, int(value) if form in "iq" else value) for order in "<>" for form in forms
    }


def secrets_in(update: Update) -> set[bytes]:
    found = pieces(update.vector.tobytes()) | pieces(update.vector.astype(np.float64).tobytes())
    return found.union(*(numbers(value) for value in (update.weight, *update.metrics.values())))


def egress_round(name: str) -> tuple[RoundInHand, Transcript, dict[ClientId, set[bytes]]]:
    """A round in which 5 and 6 drop out, its frames, and each client's secrets as they come to be."""
    rng = np.random.default_rng(11)
    updates = {
        client: Update(
            rng.normal(size=LENGTH).astype(np.float32),
            float(rng.integers(100_000, 1_000_000)),
            {metric: float(rng.normal() * 10) for metric in METRICS},
        )
        for client in range(1, 7)
    }
    if name == "plain":
        found = backend(name)
        round_: RoundInHand = RoundInHand(found, spec_of(found, updates, size=LENGTH), updates)
        return round_, transcript(round_, {5: 0}), {c: secrets_in(u) for c, u in updates.items()}
    coding = Coding(clip=4.0, bits=20, max_weight=1_000_000)
    round_ = round_of(name, 6, Graph(5, 3), updates=updates, coding=coding)
    secrets = {client: secrets_in(update) for client, update in updates.items()}
    bits = point_of(round_.spec).modulus_bits
    for client, session in round_.clients.items():
        secrets[client] |= pieces(session._state.summand)
        secrets[client] |= pieces(pack(np.frombuffer(session._state.summand, "<u4"), bits))
        secrets[client].add(session._state.keyring.identity)

    def look(client: ClientId, state: ClientState) -> None:
        secrets[client] |= {each for each in (state.seed, state.box_secret, state.mask_secret) if each}

    return round_, transcript(round_, {5: 2, 6: 3}, look), secrets


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_what_leaves_a_client_is_what_is_listed(name: str) -> None:
    _, found, _ = egress_round(name)
    sent = {what for up, what, _, _ in found.frames if up}
    assert sent == set(LEAVES) - ({"masking.consent"} if name == "masking-passive" else set())
    for up, what, _, frame in found.frames:
        if not up:
            continue
        message, fields = LEAVES[what]
        assert message.__struct_fields__ == fields
        decoded = decode(frame, message)  # refuses whatever is not the one encoding of these fields
        assert len(msgspec.msgpack.decode(frame)) == 1 + len(fields)
        inner = [decoded.advert] if isinstance(decoded, Advertise) else getattr(decoded, "entrusted", ())
        for each in inner:
            assert each.__struct_fields__ == INSIDE[type(each)]
            assert len(msgspec.to_builtins(each, builtin_types=(bytes,))) == len(INSIDE[type(each)])


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_no_secret_is_in_any_frame(name: str) -> None:
    round_, found, secrets = egress_round(name)
    wire = b"".join(frame for _, _, _, frame in found.frames)
    for client in round_.clients:
        assert len(secrets[client]) > 2 * LENGTH * 4 // 16, "there is something to look for"
        assert [secret for secret in secrets[client] if secret in wire] == []


def test_the_same_search_finds_the_update_in_a_plain_round() -> None:
    round_, found, secrets = egress_round("plain")
    for client in round_.clients:
        wire = b"".join(frame for up, _, who, frame in found.frames if up and who == client)
        weighted = pieces(round_.updates[client].summand(METRICS)[1 + len(METRICS) :].tobytes())
        assert all(piece in wire for piece in weighted)
        assert secrets[client] & {w for w in numbers(round_.updates[client].weight) if w in wire}


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_of_two_shares_of_one_owner_only_one_is_ever_in_a_frame(name: str) -> None:
    round_ = round_of(name, 6, Graph(5, 3))
    held: dict[ClientId, dict[ClientId, tuple[bytes, bytes]]] = {}
    found = transcript(round_, {5: 2, 6: 3}, lambda c, state: held.setdefault(c, {}).update(state.held))
    assert round_.server.sealed is not None
    survivors = set(round_.server.sealed.survivors)
    assert survivors == {1, 2, 3, 4, 6}
    # In backend `masking` phase 3 is consent: 6 gave none, so it was not asked for its shares.
    asked = survivors - {6} if name == "masking" else survivors
    wire = b"".join(frame for _, _, _, frame in found.frames)
    for holder, shares in held.items():
        assert len(shares) == 5
        for owner, (seed, key) in shares.items():
            one, other = (seed, key) if owner in survivors else (key, seed)
            assert other not in wire
            assert (one in wire) == (holder in asked)


# a. Both shares of one client, by different survivors for different holders ---------------------------------


def test_different_survivors_for_different_holders_open_an_update_without_consent() -> None:
    evil = Adversary(round_of("masking-passive", 5))
    evil.open()
    assert not evil.recovers(1)
    evil.reveal((1, 2, 3), who=(2, 3))
    assert not evil.recovers(1)  # of a survivor the server has the seed; the pair masks hold
    evil.reveal((3, 4, 5), who=(4, 5))
    assert evil.recovers(1)


def test_consent_keeps_holders_from_accepting_different_survivors() -> None:
    evil = Adversary(round_of("masking", 5))
    evil.open()
    kept = {c: evil.consent((1, 2, 3), (c,))[c] for c in (1, 2, 3)}
    other = {c: evil.consent((3, 4, 5), (c,))[c] for c in (4, 5)}
    for client in (2, 3):
        evil.take(client, evil.ask(client, evil.consents(client, kept), Reveal))
    with pytest.raises(PolicyRefused, match="only 1 of this client's neighbours have agreed"):
        evil.ask(4, evil.consents(4, other), Reveal)
    with pytest.raises(BadFrame, match="a signature that does not fit"):
        evil.ask(4, evil.consents(4, kept | other), Reveal)
    with pytest.raises(BadFrame, match="twice"):
        evil.ask(4, Consents(((5, other[5]), (5, other[5]))), Reveal)
    assert not evil.recovers(1)


def test_one_who_signs_whatever_the_server_wants_is_not_enough() -> None:
    """n = 7 with accomplice 7, which signs two sets: the second honest group is always too small."""
    graph = graph_side.derive(7, graph_side.Promise(1 / 7, 0))
    evil = Adversary(round_of("masking", 7, graph), (7,))
    evil.open()
    identity = evil.state(7).keyring.identity
    for others in ((2, 3, 4, 5, 7), (3, 4, 5, 6, 7)):
        forged = {7: sign(identity, survivor_bytes(evil.context, others))}
        signatures = {
            c: evil.consent(others, (c,))[c] for c in others if evil.clients[c].phase == "consent" and c != 7
        }
        for client in signatures:
            message = evil.consents(client, signatures | forged)
            if len(message.signatures) >= graph.shares:
                evil.take(client, evil.ask(client, message, Reveal))
            else:
                with pytest.raises(PolicyRefused, match="have agreed to these survivors"):
                    evil.ask(client, message, Reveal)
    assert len(evil.seeds.get(1, {})) < graph.shares
    assert not evil.recovers(1)


# b. Keys exchanged on the way -------------------------------------------------------------------------------


def public(secret: bytes) -> bytes:
    return crypto_scalarmult_base(secret)


def sit_in_the_middle(evil: Adversary, victim: ClientId) -> None:
    """Show the victim keys of the server's own for all its neighbours, and open the boxes meant for these."""
    evil.advertise()
    box, mask = b"b" * 32, b"m" * 32
    forged = {n: replace_keys(evil.adverts[n], public(box), public(mask)) for n in evil.drawn[victim]}
    for each in evil.ask(victim, evil.keybook(victim, forged), Shares).entrusted:
        key = masks.box_key(box, evil.adverts[victim].box_key, evil.context, victim, each.holder)
        plain = SecretBox(key).decrypt(each.box)
        evil.seeds.setdefault(victim, {})[each.holder] = plain[:32]
        evil.keys.setdefault(victim, {})[each.holder] = plain[32:]
    evil.mask({victim: ShareBook(evil.drawn[victim], ())}, (victim,))


def replace_keys(advert: Advert, box_key: bytes, mask_key: bytes) -> Advert:
    return msgspec.structs.replace(advert, box_key=box_key, mask_key=mask_key)


def test_a_man_in_the_middle_opens_an_update_without_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_side, "verify", nothing)
    evil = Adversary(round_of("masking", 4))
    sit_in_the_middle(evil, 1)
    assert evil.recovers(1)


def test_a_man_in_the_middle_is_refused() -> None:
    evil = Adversary(round_of("masking", 4))
    with pytest.raises(BadFrame, match="a signature that does not fit"):
        sit_in_the_middle(evil, 1)
    assert evil.clients[1].phase == "share"
    assert evil.masked == {}


@pytest.mark.parametrize("which", ["box", "mask"])
def test_either_key_alone_is_signed(which: str) -> None:
    evil = Adversary(round_of("masking", 4))
    evil.advertise()
    true, mine = evil.adverts[2], public(b"m" * 32)
    forged = (
        replace_keys(true, mine, true.mask_key) if which == "box" else replace_keys(true, true.box_key, mine)
    )
    with pytest.raises(BadFrame, match="a signature that does not fit"):
        evil.ask(1, evil.keybook(1, {2: forged}), Shares)
    with pytest.raises(BadFrame, match="a signature that does not fit"):  # a true one, but another client's
        evil.ask(1, evil.keybook(1, {2: evil.adverts[3]}), Shares)
    evil.share()
    evil.adverts[2] = forged
    with pytest.raises(BadFrame, match="a signature that does not fit"):
        evil.mask(who=(1,))


def test_without_signatures_a_second_mask_key_of_one_client_is_still_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_side, "verify", nothing)
    evil = Adversary(round_of("masking", 4))
    evil.advertise()
    evil.share()
    evil.adverts[2] = replace_keys(evil.adverts[2], evil.adverts[2].box_key, public(b"m" * 32))
    with pytest.raises(BadFrame, match="two mask keys of one client"):
        evil.mask(who=(1,))


# c. A roster in parts ---------------------------------------------------------------------------------------


def halves(pinned: bool) -> list[tuple[Adversary, ClientId]]:
    """Two rounds of two clients each, who were provisioned with a roster of four, or so they believe."""
    updates = {c: whole_update(0, c, size=LENGTH) for c in range(1, 5)}
    whole = round_of("masking", 4, updates=updates)
    found = []
    for half in ((1, 2), (3, 4)):
        graph = graph_side.derive(2, graph_side.Promise(0, 0))
        parameters = msgspec.msgpack.encode(Parameters(CODING, graph))
        spec = msgspec.structs.replace(whole.spec, clients=half, threshold=2, parameters=parameters)
        part = Round(whole.backend, spec, updates)
        for client in half:
            keyring = whole.client_keys[client]
            if not pinned:
                roster = {c: key for c, key in keyring.roster.items() if c in half}
                keyring = msgspec.structs.replace(keyring, roster=roster)
            part.client_keys[client] = keyring
        part.clients = {client: part.session(client) for client in half}
        found.append((Adversary(part), half[0]))
    return found


def total(evil: Adversary, survivors: Ids) -> Lanes:
    """Sum of what is left of the survivors' lanes, in which their pair masks cancel."""
    lanes = [evil.stripped(client).astype(np.uint64) for client in survivors]
    return (np.sum(lanes, axis=0) & np.uint64((1 << evil.bits) - 1)).astype(np.uint32)


def minus(evil: Adversary, lanes: Lanes, known: Ids) -> Lanes:
    """A sum less the updates of clients that tell the server theirs."""
    for client in known:
        lanes = lanes - evil.round.lanes(client)
    return lanes & np.uint32((1 << evil.bits) - 1)


def test_a_roster_in_parts_opens_an_update_if_it_is_not_pinned() -> None:
    for evil, victim in halves(pinned=False):
        half = evil.spec.clients
        evil.open()
        evil.reveal(half)
        left = minus(evil, total(evil, half), half[1:])  # the other of the two is an accomplice
        assert left.tobytes() == evil.round.lanes(victim).tobytes()


def test_a_roster_in_parts_is_refused() -> None:
    for evil, victim in halves(pinned=True):
        with pytest.raises(PolicyRefused, match="a roster that is not the one pinned here"):
            evil.advertise((victim,))
        assert evil.clients[victim].phase == "advertise"
        spec, keyring = evil.spec, evil.round.client_keys[victim]
        model = {"parameters": spec.parameters, "learner": OneUpdate(evil.round.updates[victim])}
        for policy, match in (
            (Policy(roster=(1, 2, 3, 4)), "a roster that is not the one this client accepts"),
            (Policy(minimum_clients=3), "a roster of 2"),
            (Policy(), "a roster that is not the one pinned here"),
        ):
            spec_model = msgspec.structs.replace(spec, model=digest(np.zeros(spec.size, np.float32)))
            begin = encode(Begin(spec_model, np.zeros(spec.size, np.float32).data.cast("B")))
            member = member_of(evil.round.backend, victim, keyring, policy=policy, **model)
            with pytest.raises(PolicyRefused, match=match):
                member.receive(begin)


# d. One round twice, and messages of another ----------------------------------------------------------------


@dataclass
class OneUpdate:
    """A learner that gives the same update whenever it is asked."""

    update: Update

    def learn(self, model: Vector, round: int) -> Update:
        return self.update

    def save(self) -> bytes:
        return b""

    def restore(self, saved: bytes) -> None:
        pass


def members_of(round_: Round) -> dict[ClientId, Member]:
    return {
        client: member_of(
            round_.backend, client, round_.client_keys[client],
            parameters=round_.spec.parameters, learner=OneUpdate(round_.updates[client]),
        )
        for client in round_.spec.clients
    }  # fmt: skip


def sum_over(round_: Round, members: Mapping[ClientId, Member], lost: Ids) -> Lanes:
    """The sum of one round with an honest server, in which the masked summands of some are lost."""
    server = ServerSession(
        round_.backend, round_.spec, round_.backend.server_state(round_.spec, round_.server_key)
    )
    zeros = np.zeros(round_.spec.size, np.float32).data.cast("B")
    outbox = dict.fromkeys(members, encode(Begin(round_.spec, zeros)))
    while outbox:
        late = set(lost) if server.phase == "mask" else set()
        answers = [(client, members[client].receive(frame)) for client, frame in outbox.items()]
        outbox = server.turn([(client, answer) for client, answer in answers if client not in late])
    assert server.sealed is not None
    point = point_of(round_.spec)
    return unpack(server.sealed.bulk, point.modulus_bits, point.lanes).copy()


def test_the_same_round_twice_opens_an_update_if_it_may_begin_twice() -> None:
    round_ = round_of("masking", 4, model=digest(np.zeros(LENGTH, np.float32)))
    members = members_of(round_)
    with_all = sum_over(round_, members, ())
    for member in members.values():
        member._begun = -1
    left = (with_all - sum_over(round_, members, (1,))) & np.uint32(
        (1 << point_of(round_.spec).modulus_bits) - 1
    )
    assert left.tobytes() == round_.lanes(1).tobytes()


def test_the_same_round_twice_is_refused() -> None:
    round_ = round_of("masking", 4, model=digest(np.zeros(LENGTH, np.float32)))
    members = members_of(round_)
    sum_over(round_, members, ())
    with pytest.raises(WrongPhase, match="a round this client has begun before, or one of another run"):
        sum_over(round_, members, (1,))
    spec = msgspec.structs.replace(round_.spec, run=b"q" * 16)
    for again in (msgspec.structs.replace(round_.spec, threshold=4), spec):
        with pytest.raises(WrongPhase, match="a round this client has begun before, or one of another run"):
            members[1].receive(encode(Begin(again, memoryview(b""))))


def opened_before() -> tuple[Adversary, dict[ClientId, bytes]]:
    """A second round of clients 1 to 5, and the mask secrets of 2 and 3 that were opened in the first."""
    first = Adversary(round_of("masking", 5))
    first.open()
    first.reveal((1, 4, 5))
    secrets = {c: shamir.combine(first.keys[c], first.graph.shares) for c in (2, 3)}
    round_ = round_of("masking", 5, seed=1, round=1)
    round_.client_keys = first.round.client_keys
    round_.clients = {client: round_.session(client) for client in round_.spec.clients}
    second = Adversary(round_, known=secrets)
    second.advertise()
    second.adverts |= {c: first.adverts[c] for c in secrets}
    return second, secrets


def mask_with(evil: Adversary, victim: ClientId, there: tuple[ClientId, ...]) -> Lanes:
    """Have the victim mask with these alone; gives its lanes under its own mask only."""
    evil.share((victim,))
    seed = evil.state(victim).seed
    evil.mask({victim: ShareBook(there, ())}, (victim,))
    lanes = evil.round.lanes(victim).astype("<u4")
    add_masks(lanes, [self_key(seed, evil.context, victim)], [])
    return lanes & np.uint32((1 << evil.bits) - 1)


def test_old_adverts_of_opened_keys_undo_the_pair_masks_without_signatures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_side, "verify", nothing)
    evil, secrets = opened_before()
    without_pairs = mask_with(evil, 1, tuple(secrets))
    assert evil.stripped(1).tobytes() == without_pairs.tobytes()


def test_messages_of_another_round_are_refused() -> None:
    evil, _ = opened_before()
    with pytest.raises(BadFrame, match="a signature that does not fit its signer, round or content"):
        evil.share((1,))
    first = round_of("masking", 5)
    with pytest.raises(WrongPhase, match="the opening of another round"):
        evil.round.session(1).receive(encode(Begin(first.spec, memoryview(b""))))


def test_consents_of_another_round_are_refused() -> None:
    first, second = (Adversary(round_of("masking", 4, round=r)) for r in (0, 1))
    signatures = []
    for evil in (first, second):
        evil.open()
        signatures.append(evil.consent((1, 2, 3)))
    with pytest.raises(BadFrame, match="a signature that does not fit its signer, round or content"):
        second.ask(1, second.consents(1, signatures[0]), Reveal)
    second.take(1, second.ask(1, second.consents(1, signatures[1]), Reveal))
    assert set(second.seeds) == {2, 3}


# e. Different models for different clients (Pasquini et al. 2022, arXiv 2111.07380) -------------------------


def different_models() -> Adversary:
    """Client 1 is sent the true model; the others one that makes their update zero, as a dead layer does."""
    rng = np.random.default_rng(3)
    victim = Update(rng.normal(size=LENGTH).astype(np.float32), 5.0, dict.fromkeys(METRICS, 1.0))
    round_ = round_of("masking", 4, updates={1: victim, 2: ZERO, 3: ZERO, 4: ZERO})
    spec = msgspec.structs.replace(round_.spec, model=b"t" * 32)
    round_.clients[1] = round_.session(1, spec)
    return Adversary(round_)


def test_different_models_open_an_update_if_the_context_does_not_bind_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    true = RoundSpec.context
    monkeypatch.setattr(
        RoundSpec, "context", lambda spec: true(msgspec.structs.replace(spec, model=b"m" * 32))
    )
    evil = different_models()
    evil.open()
    evil.reveal((1, 2, 3, 4))
    left = minus(evil, total(evil, (1, 2, 3, 4)), (2, 3, 4))
    assert left.tobytes() == evil.round.lanes(1).tobytes()


def test_with_different_models_no_signature_fits() -> None:
    evil = different_models()
    evil.advertise()
    for client in (1, 2):
        with pytest.raises(BadFrame, match="a signature that does not fit its signer, round or content"):
            evil.share((client,))


def test_with_different_models_masks_do_not_cancel_nor_boxes_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even without signatures: the keys of masks and boxes are derived for one context."""
    monkeypatch.setattr(client_side, "verify", nothing)
    evil = different_models()
    evil.advertise()
    evil.share()
    seeds = {client: evil.state(client).seed for client in evil.clients}
    contexts = {client: evil.state(client).context for client in evil.clients}
    evil.mask()
    assert set(evil.state(2).held) == {1, 3, 4}
    assert evil.state(2).held[1] == (b"", b"")
    assert all(evil.state(2).held[4])
    lanes = np.sum([evil.masked[c] for c in evil.clients], axis=0, dtype=np.uint64).astype("<u4")
    add_masks(lanes, [], [self_key(seeds[c], contexts[c], c) for c in evil.clients])  # were they known
    assert is_noise(lanes & np.uint32((1 << evil.bits) - 1), evil.bits)


# f. Survivors that cannot be --------------------------------------------------------------------------------


def too_few() -> Adversary:
    evil = Adversary(round_of("masking", 6, Graph(5, 3), threshold=5))
    evil.open()
    return evil


def test_a_sum_over_fewer_than_the_threshold_is_opened_if_clients_do_not_count() -> None:
    evil = too_few()
    for session in evil.clients.values():
        spec = msgspec.structs.replace(evil.spec, threshold=4)
        session._state = msgspec.structs.replace(session._state, spec=spec)
    evil.reveal((1, 2, 3, 4))
    left = minus(evil, total(evil, (1, 2, 3, 4)), (2, 3, 4))
    assert left.tobytes() == evil.round.lanes(1).tobytes()


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_survivors_that_cannot_be_are_refused(name: str) -> None:
    evil = Adversary(round_of(name, 6, Graph(5, 3), threshold=5))
    evil.open()
    wrong: list[tuple[tuple[ClientId, ...], type[Exception], str]] = [
        ((1, 2, 3, 4), PolicyRefused, "4 survivors, fewer than the threshold of 5"),
        ((2, 3, 4, 5, 6), BadFrame, "survivors without this client"),
        ((1, 2, 3, 3, 4, 5), BadFrame, "out of order or there twice"),
        ((2, 1, 3, 4, 5), BadFrame, "out of order or there twice"),
        ((1, 2, 3, 4, 7), BadFrame, "not of the roster"),
        ((), BadFrame, "survivors without this client"),
    ]
    for survivors, error, match in wrong:
        before = evil.clients[1].save()
        with pytest.raises(error, match=match):
            evil.clients[1].receive(encode(Survivors(survivors)))
        assert evil.clients[1].save() == before


def test_a_client_outside_of_the_sum_gives_up_shares_if_it_does_not_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        client_side, "_agree", lambda state, m: msgspec.structs.replace(state, survivors=m.clients)
    )
    evil = Adversary(round_of("masking-passive", 4))
    evil.open()
    evil.reveal((1, 2), who=(3, 4))
    assert set(evil.seeds[1]) == {3, 4}


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_asking_twice_opens_an_update_if_a_client_can_be_set_back(name: str) -> None:
    """What a client saved before it answered, restored after: a session that does not know its phase."""
    evil = Adversary(round_of(name, 4))
    evil.open()
    saved = {client: session.save() for client, session in evil.clients.items()}
    evil.reveal((1, 2, 3))
    assert not evil.recovers(1)
    for client, before in saved.items():
        evil.clients[client] = ClientSession.restore(evil.round.backend, before, InsecureEntropy(9))
    evil.reveal((2, 3, 4))
    assert evil.recovers(1)


def test_asking_twice_is_refused() -> None:
    evil = Adversary(round_of("masking", 4))
    evil.open()
    one, other = Survivors((1, 2, 3)), Survivors((2, 3, 4))
    signatures = evil.consent(one.clients)
    for message in (one, other):
        with pytest.raises(WrongPhase, match="got Survivors where Consents belongs"):
            evil.ask(2, message, Consent)
    evil.take(2, evil.ask(2, evil.consents(2, signatures), Reveal))
    for again in (one, other, evil.consents(2, signatures), Consents(())):
        with pytest.raises(WrongPhase, match="has said all it has to say"):
            evil.ask(2, again, Reveal)
    passive = Adversary(round_of("masking-passive", 4))
    passive.open()
    passive.reveal((1, 2, 3))
    for message in (one, other):
        with pytest.raises(WrongPhase, match="has said all it has to say"):
            passive.ask(2, message, Reveal)
    assert not passive.recovers(1)


# g. What is altered on the way, or by a client --------------------------------------------------------------

Alter = Callable[[str, ClientId, bool, bytes], bytes]


def play_altered(round_: Round, alter: Alter) -> ServerSession:
    """An honest server and honest clients; `alter` gets phase, client, whether up, frame.

    A client that refuses is silent.
    """
    outbox = round_.opening()
    for step in round_.backend.server_steps:
        inbox = []
        for client, frame in outbox.items():
            with contextlib.suppress(RemoteProtocolError):
                answer = round_.clients[client].receive(alter(step.phase, client, False, frame))
                inbox.append((client, alter(step.phase, client, True, answer)))
        outbox = round_.server.turn(inbox)
    return round_.server


def altering(phase: str, client: ClientId, kind_: type[Any], change: Callable[[Any], Message]) -> Alter:
    """Change one message of one client in one phase."""

    def alter(at: str, who: ClientId, up: bool, frame: bytes) -> bytes:
        if (at, who) != (phase, client) or kind(frame) != kind_.__struct_config__.tag:
            return frame
        return encode(change(decode(frame, kind_)))

    return alter


def is_sum_over(round_: Round, survivors: Ids) -> bool:
    server = round_.server
    assert server.sealed is not None
    assert server.sealed.survivors == tuple(survivors)
    bits = point_of(round_.spec).modulus_bits
    lanes = np.sum([round_.lanes(c) for c in survivors], axis=0, dtype=np.uint64)
    return bytes(server.sealed.bulk) == pack((lanes & np.uint64((1 << bits) - 1)).astype(np.uint32), bits)


def flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_box_altered_on_the_way_costs_one_share() -> None:
    def change(book: ShareBook) -> ShareBook:
        (owner, advert, box), *rest = book.boxes
        assert owner == 1
        return ShareBook(book.neighbours, ((owner, advert, flipped(box)), *rest))

    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("mask", 2, ShareBook, change))
    assert is_sum_over(round_, (1, 2, 3, 4, 5))
    assert server.faults == []
    assert set(server.state.seeds[1]) == {3, 4, 5}
    assert set(server.state.seeds[3]) == {1, 2, 4, 5}


def altered_share(found: Reveal) -> Reveal:
    (owner, share), *rest = found.seeds
    assert owner == 1
    return Reveal(((owner, flipped(share)), *rest), found.keys)


def test_an_altered_share_costs_its_sender_only() -> None:
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("reveal", 2, Reveal, altered_share))
    assert is_sum_over(round_, (1, 2, 3, 4, 5))
    assert server.faults == [(2, "reveal: BadFrame: a share that is not the one entrusted")]
    assert server.dropped == {2: "reveal"}


def test_an_altered_share_spoils_the_sum_if_there_are_no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whatever:
        def __ne__(self, other: object) -> bool:
            return False

    monkeypatch.setattr(server_side, "share_digest", lambda *of: Whatever())
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("reveal", 2, Reveal, altered_share))
    assert server.faults == []
    assert not is_sum_over(round_, (1, 2, 3, 4, 5))


def test_a_share_that_was_not_asked_for_costs_its_sender_only() -> None:
    """A client that also gives the key shares of survivors: an honest server is not even to hold them."""
    round_ = round_of("masking", 5)
    held = dict[ClientId, tuple[bytes, bytes]]()

    def change(found: Reveal) -> Reveal:
        return Reveal(found.seeds, tuple((owner, key) for owner, (_, key) in sorted(held.items())))

    def alter(at: str, who: ClientId, up: bool, frame: bytes) -> bytes:
        if at == "reveal" and who == 2 and not up:
            held.update(round_.clients[2]._state.held)
        return altering("reveal", 2, Reveal, change)(at, who, up, frame)

    server = play_altered(round_, alter)
    assert is_sum_over(round_, (1, 2, 3, 4, 5))
    assert server.faults == [(2, "reveal: BadFrame: a share that was not asked for")]
    assert server.state.keys == {}


def masked_elsewhere() -> Masked:
    """What client 2 sent in the round before."""
    before = Adversary(round_of("masking", 5, round=7))
    before.advertise()
    before.share()
    return Masked(before.context, decode(before.clients[2].receive(encode(before.sharebook(2))), Masked).bulk)


def test_a_masked_summand_of_another_round_costs_its_sender_only() -> None:
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("mask", 2, Masked, lambda true: masked_elsewhere()))
    assert is_sum_over(round_, (1, 3, 4, 5))
    assert server.faults == [(2, "mask: WrongPhase: a masked summand of another round or run")]


def test_a_masked_summand_of_another_round_spoils_the_sum_if_it_does_not_say_so() -> None:
    round_ = round_of("masking", 5)
    relabelled = altering("mask", 2, Masked, lambda true: Masked(true.context, masked_elsewhere().bulk))
    assert play_altered(round_, relabelled).faults == []
    assert not is_sum_over(round_, (1, 2, 3, 4, 5))


def altered_advert(found: Advertise) -> Advertise:
    signature = flipped(found.advert.signature)
    return Advertise(msgspec.structs.replace(found.advert, signature=signature), found.neighbours)


ALTERED_SIGNATURES = [
    altering("advertise", 2, Advertise, altered_advert),
    altering("consent", 2, Consent, lambda found: Consent(flipped(found.signature))),
]


@pytest.mark.parametrize(
    ("alter", "survivors"), [(ALTERED_SIGNATURES[0], (1, 3, 4, 5)), (ALTERED_SIGNATURES[1], (1, 2, 3, 4, 5))]
)
def test_an_altered_signature_costs_its_sender_only(alter: Alter, survivors: tuple[ClientId, ...]) -> None:
    round_ = round_of("masking", 5)
    server = play_altered(round_, alter)
    assert is_sum_over(round_, survivors)
    assert [client for client, _ in server.faults] == [2]
    assert "a signature that does not fit its signer, round or content" in server.faults[0][1]


@pytest.mark.parametrize("alter", ALTERED_SIGNATURES)
def test_an_altered_signature_ends_the_round_if_the_server_lets_it_pass(
    alter: Alter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_side, "verify", nothing)
    round_ = round_of("masking", 5)
    with pytest.raises(TooFewClients, match="of 5 clients are left"):
        play_altered(round_, alter)
    assert round_.server.sealed is None


# h. Keys of small order -------------------------------------------------------------------------------------

# Points of order 4, 1 and 8 (RFC 7748, section 7; the last from Bernstein's list, cr.yp.to/ecdh.html).
SMALL = [
    bytes(32),
    bytes([1]) + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
]


def small_key(evil: Adversary, client: ClientId, key: bytes, which: str) -> Advert:
    """An advert with such a key, properly signed: its owner is malicious."""
    true = evil.adverts[client]
    box, mask = (key, true.mask_key) if which == "box" else (true.box_key, key)
    unsigned = Advert(box, mask, b"")
    identity = evil.round.client_keys[client].identity
    signature = sign(identity, advert_bytes(evil.context, client, unsigned))
    return msgspec.structs.replace(unsigned, signature=signature)


@pytest.mark.parametrize("key", SMALL)
def test_masks_under_keys_of_small_order_are_known_to_everyone_if_taken(
    key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = masks.agree
    zero = bytes(32)
    monkeypatch.setattr(
        masks, "agree", lambda private, public: zero if public == key else true(private, public)
    )
    evil = Adversary(round_of("masking", 5))
    evil.advertise()
    evil.adverts |= {client: small_key(evil, client, key, "mask") for client in (2, 3)}
    without_pairs = mask_with(evil, 1, (2, 3))
    # From public values alone: nobody's secret is asked for.
    known = [masks.derive(zero, b"privfr mask", evil.context, 1, other) for other in (2, 3)]
    lanes = evil.masked[1].astype("<u4")
    add_masks(lanes, [], known)
    assert (lanes & np.uint32((1 << evil.bits) - 1)).tobytes() == without_pairs.tobytes()


@pytest.mark.parametrize("key", SMALL)
def test_keys_of_small_order_are_refused(key: bytes) -> None:
    evil = Adversary(round_of("masking", 5))
    evil.advertise()
    with pytest.raises(BadFrame, match="an X25519 public key of small order"):
        evil.ask(1, evil.keybook(1, {2: small_key(evil, 2, key, "box")}), Shares)
    evil.adverts |= {client: small_key(evil, client, key, "mask") for client in (2, 3)}
    with pytest.raises(BadFrame, match="an X25519 public key of small order"):
        mask_with(evil, 1, (2, 3))
    assert evil.masked == {}


@pytest.mark.xfail(
    reason="one client's key of small order ends the round for all", raises=TooFewClients, strict=True
)
@pytest.mark.parametrize("which", ["box", "mask"])
def test_a_key_of_small_order_costs_its_sender_only(which: str) -> None:
    round_ = round_of("masking", 5)
    evil = Adversary(round_of("masking", 5))
    evil.advertise()
    forged = small_key(evil, 2, SMALL[0], which)
    alter = altering("advertise", 2, Advertise, lambda found: Advertise(forged, found.neighbours))
    server = play_altered(round_, alter)
    assert is_sum_over(round_, (1, 3, 4, 5))
    assert [client for client, _ in server.faults] == [2]


# i. Holders that collude ------------------------------------------------------------------------------------


def value_at(x: int, points: Mapping[int, int]) -> int:
    """Value at x of the polynomial through these points, mod 2^256 - 189 (Lagrange, beside `shamir`)."""
    found = 0
    for xi, yi in points.items():
        others = [xj for xj in points if xj != xi]
        above, below = math.prod(x - xj for xj in others), math.prod(xi - xj for xj in others)
        found += yi * above * pow(below, -1, shamir.PRIME)
    return found % shamir.PRIME


@pytest.mark.parametrize("which", [0, 1])
def test_fewer_holders_than_shares_are_needed_know_nothing_of_a_secret(which: int) -> None:
    """What t - 1 of them hold fits every secret: for each there is a share of one more that gives it."""
    evil = Adversary(round_of("masking", 6, Graph(5, 3)))
    evil.advertise()
    evil.share()
    secret = (evil.state(1).seed, evil.state(1).mask_secret)[which]
    evil.mask()
    held = {holder: evil.state(holder).held[1][which] for holder in (2, 4, 5)}
    assert shamir.combine(held, 3) == secret
    two = {holder: held[holder] for holder in (2, 4)}
    points = {holder + 1: int.from_bytes(share, "big") for holder, share in two.items()}
    assert value_at(0, points).to_bytes(32, "big") != secret, (
        "what they hold is not a polynomial of less degree"
    )
    for other in (bytes(32), b"\x5a" * 32, secret, (int.from_bytes(secret, "big") ^ 1).to_bytes(32, "big")):
        share = value_at(5 + 1, points | {0: int.from_bytes(other, "big")})
        fits = two | {5: share.to_bytes(32, "big")}
        assert shamir.combine(fits, 3) == other
        assert (fits == held) == (other == secret)


@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_a_server_with_enough_colluding_holders_opens_an_update_and_with_one_fewer_none(name: str) -> None:
    for accomplices, opened in (((2, 3), False), ((2, 3, 4), True)):
        evil = Adversary(round_of(name, 6, Graph(5, 3)), accomplices)
        evil.open()
        assert evil.recovers(1) == opened


# j. Who is said to have shared ------------------------------------------------------------------------------


def lie_about_who_has_shared(
    evil: Adversary, victim: ClientId, told: set[ClientId], survivors: Ids, ask_victim: bool
) -> None:
    """Let the victim mask with `told` alone; leave these out of the survivors, so that their keys are opened,
    and have the victim's seed opened by holders with whom it shares no mask.
    """
    evil.share()
    book = evil.sharebook(victim, told)
    evil.mask({victim: ShareBook(book.neighbours, tuple(box for box in book.boxes if box[0] in told))})
    others = [client for client in survivors if client != victim]
    if evil.round.backend.name == "masking-passive":
        return evil.reveal(survivors, who=others)
    signatures = evil.consent(survivors, survivors if ask_victim else others)
    for client in others:
        message = evil.consents(client, signatures)
        if len(message.signatures) >= evil.graph.shares:
            evil.take(client, evil.ask(client, message, Reveal))


def test_a_lie_about_who_has_shared_opens_an_update_without_consent() -> None:
    evil = Adversary(round_of("masking-passive", 5))
    evil.advertise()
    lie_about_who_has_shared(evil, 1, {2, 3}, (1, 4, 5), False)
    assert evil.recovers(1)


WEAKNESS = pytest.mark.xfail(
    reason="holders that a client does not mask with can open its seed", raises=AssertionError, strict=True
)


@pytest.mark.parametrize(
    ("n", "corruption", "dropout"),
    [
        pytest.param(4, 0.0, 0.0),
        pytest.param(5, 0.0, 0.0, marks=WEAKNESS),
        pytest.param(6, 0.0, 0.0),
        pytest.param(7, 0.0, 0.2, marks=WEAKNESS),
        pytest.param(10, 0.1, 0.1, marks=WEAKNESS),
        pytest.param(11, 0.1, 0.1, marks=WEAKNESS),
        pytest.param(12, 0.1, 0.1),
    ],
)
def test_a_lie_about_who_has_shared_opens_nothing(n: int, corruption: float, dropout: float) -> None:
    """The complete graph, threshold and accomplices that belong to the promise."""
    promise = graph_side.Promise(corruption, dropout)
    graph = graph_side.derive(n, promise)
    accomplices = tuple(range(n, n - promise.corrupt(n), -1))
    evil = Adversary(round_of("masking", n, graph), accomplices)
    evil.advertise()
    told = {*range(2, 2 + graph.shares - len(accomplices)), *accomplices}
    survivors = [c for c in range(1, n + 1) if c not in told or c in accomplices]
    with contextlib.suppress(PolicyRefused):
        lie_about_who_has_shared(evil, 1, told, survivors, True)
    assert not evil.recovers(1)


@WEAKNESS
@pytest.mark.parametrize("ask_victim", [True, False])
def test_a_lie_about_who_has_shared_opens_nothing_in_a_sparse_graph(ask_victim: bool) -> None:
    """100 clients, 20 of them accomplices; the victim is the honest one who drew most of these."""
    n, promise = 100, graph_side.Promise(0.2, 0.1)
    graph = graph_side.derive(n, promise)
    assert not graph.complete(n)
    accomplices = set(range(81, 101))
    for seed in range(100):
        evil = Adversary(round_of("masking", n, graph, n - promise.dropped(n), seed=seed), tuple(accomplices))
        evil.advertise()
        victim = max(range(1, 81), key=lambda c: len(accomplices.intersection(evil.drawn[c])))
        corrupt = accomplices.intersection(evil.drawn[victim])
        if len(corrupt) >= 2 * graph.shares - graph.neighbours:
            break
    honest = [c for c in evil.drawn[victim] if c not in accomplices][: graph.shares - len(corrupt)]
    survivors = [c for c in range(1, n + 1) if c not in honest]
    with contextlib.suppress(RemoteProtocolError):
        lie_about_who_has_shared(evil, victim, {*honest, *corrupt}, survivors, ask_victim)
    assert not evil.recovers(victim)
