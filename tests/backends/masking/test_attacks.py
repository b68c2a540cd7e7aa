"""What the server of a masking round sees, and what it gains by lying.

Every attack is first shown to work with the one defence against it taken away, so that a test that finds it
refused has found more than a mistake in the attack. "Works" means that the victim's coded update is recovered
to the last bit. `Adversary` is a server that holds to nothing: it hands every client what the test says.
"""

from __future__ import annotations

import contextlib
import copy
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from privfr.backends.identity import sign
from privfr.backends.masking import client as client_side
from privfr.backends.masking import masks, shamir
from privfr.backends.masking import server as server_side
from privfr.backends.masking.client import ClientState, Parameters, point_of
from privfr.backends.masking.graph import Committee, Graph, Promise, check, convene, derive, fewest
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
    survivor_bytes,
)
from privfr.coding import Coding, pack, unpack
from privfr.errors import BadFrame, PolicyRefused, RemoteProtocolError, TooFewClients, WrongPhase
from privfr.federation import Member, Policy
from privfr.protocol import (
    Begin,
    ClientId,
    ClientSession,
    ClientStep,
    Entropy,
    RoundSpec,
    ServerSession,
)
from privfr.vector import Update, Vector, digest
from privfr.wire import Message, decode, encode, kind

Lanes = NDArray[np.uint32]
Ids = Iterable[ClientId]
Step = Callable[[ClientState, Any, Entropy], tuple[ClientState, Any]]

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
    corrupt: int = 0,
    committee: Committee | None = None,
    careless: Mapping[str, Step] | None = None,
    seed: int = 0,
    updates: Mapping[ClientId, Update] | None = None,
    coding: Coding = CODING,
    **changes: Any,
) -> Round:
    """A round of clients 1 to n; without a graph, over the complete one for so many accomplices.

    careless: steps, by phase, that the clients take in place of their own, with a defence taken away.
    """
    found, promise = backend(name), Promise(corrupt / n, 0)
    graph = graph or derive(n, promise)
    committee = committee or convene(n, promise, graph)
    updates = updates or {c: whole_update(seed, c, size=LENGTH) for c in range(1, n + 1)}
    spec = spec_of(found, updates, size=updates[1].vector.size)
    parameters = msgspec.msgpack.encode(Parameters(coding, graph, committee))
    threshold = threshold or fewest(n, graph, committee)
    spec = msgspec.structs.replace(spec, **({"threshold": threshold, "parameters": parameters} | changes))
    steps = [ClientStep(s.phase, s.expects, (careless or {}).get(s.phase, s.run)) for s in found.client_steps]
    return Round(replace(found, client_steps=tuple(steps)), spec, updates, seed)


# The adversary ----------------------------------------------------------------------------------------------

# Which of a holder's two boxes, as in `masks.box_keys`.
KEY, SEED = 0, 1


@dataclass(repr=False)
class Adversary:
    """A server that says to each client what it likes, and makes of the answers what it can.

    Whoever refuses is not caught here. accomplices: clients that tell it all they know, and sign anything.
    boxes, seed_boxes: owner -> holder -> what it was trusted with.  handed: holder -> whose boxes it got.
    seeds, keys: owner -> holder -> share.
    """

    round: Round
    accomplices: tuple[ClientId, ...] = ()
    known: dict[ClientId, bytes] = field(default_factory=dict)
    box_secrets: dict[ClientId, bytes] = field(default_factory=dict)
    adverts: dict[ClientId, Advert] = field(default_factory=dict)
    drawn: dict[ClientId, tuple[ClientId, ...]] = field(default_factory=dict)
    boxes: dict[ClientId, dict[ClientId, Entrusted]] = field(default_factory=dict)
    seed_boxes: dict[ClientId, dict[ClientId, Entrusted]] = field(default_factory=dict)
    partners: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    handed: dict[ClientId, set[ClientId]] = field(default_factory=dict)
    masked: dict[ClientId, Lanes] = field(default_factory=dict)
    seeds: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)
    keys: dict[ClientId, dict[ClientId, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spec, self.clients = self.round.spec, self.round.clients
        self.context, parameters = self.spec.context(), Parameters.of(self.spec)
        self.graph, self.committee = parameters.graph, parameters.committee
        self.members = self.committee.members(self.spec.clients, self.context)
        self.honest = [client for client in self.spec.clients if client not in self.accomplices]
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
                self.box_secrets[client] = self.state(client).box_secret

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
            found = self.ask(client, book, Masked)
            self.partners[client] = {n: adverts[n].mask_key for n in book.neighbours}
            self.partners[client] |= {owner: advert.mask_key for owner, advert, _ in book.boxes}
            self.handed[client] = {owner for owner, _, _ in book.boxes}
            self.seed_boxes[client] = {each.holder: each for each in found.entrusted}
            self.masked[client] = unpack(found.bulk, self.bits, point_of(self.spec).lanes)

    def open(self) -> None:
        """The first three phases, honestly."""
        self.advertise()
        self.share()
        self.mask()

    def survivors(self, client: ClientId, survivors: Ids) -> Survivors:
        """Tell a client of these survivors, with all of their boxes that it can take."""
        there = tuple(sorted(survivors))
        owners = sorted(self.handed[client].intersection(there))
        held = ((owner, self.seed_boxes.get(owner, {}).get(client)) for owner in owners)
        return Survivors(there, tuple((owner, each.box) for owner, each in held if each))

    def signed(self, survivors: Ids, signers: Ids) -> dict[ClientId, bytes]:
        """Signatures of accomplices, which sign as many sets as one likes."""
        content = survivor_bytes(self.context, tuple(sorted(survivors)))
        return {c: sign(self.round.client_keys[c].identity, content) for c in signers}

    def consent(self, survivors: Ids, who: Ids | None = None) -> dict[ClientId, bytes]:
        survivors = tuple(sorted(survivors))
        return {c: self.ask(c, self.survivors(c, survivors), Consent).signature for c in who or survivors}

    def consents(self, signatures: Mapping[ClientId, bytes]) -> Consents:
        return Consents(tuple((c, signatures[c]) for c in sorted(signatures) if c in self.members))

    def reveal(self, survivors: Ids, who: Ids | None = None) -> None:
        """Get shares from those asked, with or without the consent of all survivors."""
        survivors = sorted(survivors)
        if self.round.backend.name == "masking":
            message = self.consents(self.consent(survivors, survivors))
            asks: dict[ClientId, Message] = dict.fromkeys(who or survivors, message)
        else:
            asks = {client: self.survivors(client, survivors) for client in who or survivors}
        for client, asked in asks.items():
            self.take(client, self.ask(client, asked, Reveal))

    def take(self, holder: ClientId, found: Reveal) -> None:
        for owner, share in found.seeds:
            self.seeds.setdefault(owner, {})[holder] = share
        for owner, share in found.keys:
            self.keys.setdefault(owner, {})[holder] = share

    def betray(self) -> None:
        """The accomplices' part: each opens all boxes that were ever meant for it."""
        for which, entrusted, opened in ((KEY, self.boxes, self.keys), (SEED, self.seed_boxes, self.seeds)):
            for owner, boxes in entrusted.items():
                for holder in boxes.keys() & self.box_secrets.keys() - opened.get(owner, {}).keys():
                    agreed = masks.agree(self.box_secrets[holder], self.adverts[owner].box_key)
                    keys = masks.box_keys(agreed, self.context, owner, holder)
                    share = SecretBox(keys[which]).decrypt(boxes[holder].box)
                    opened.setdefault(owner, {})[holder] = share

    def secrets(self) -> dict[ClientId, bytes]:
        """Mask secrets that are known or have shares enough."""
        t = self.graph.shares
        opened = {o: shamir.combine(shares, t) for o, shares in self.keys.items() if len(shares) >= t}
        return opened | self.known

    def stripped(self, client: ClientId) -> Lanes:
        """A client's masked lanes without the masks whose secret is `known`, or has shares enough."""
        self.betray()
        t, plus, minus = self.graph.shares, [], []
        if len(self.seeds.get(client, {})) >= t:
            plus.append(self_key(shamir.combine(self.seeds[client], t), self.context, client))
        secrets = self.secrets()
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

    def opened_sums(self) -> list[set[ClientId]]:
        """Groups of honest clients the sum of whose updates the adversary has, each as small as can be.

        Between two clients whose keys are hidden there is a mask that cancels if both have added it and both
        vectors are added up. So a group is a component of the graph of these masks.
        """
        self.betray()
        t, secrets = self.graph.shares, self.secrets()
        hidden = {
            c: {p for p in self.partners[c] if c not in secrets and p not in secrets}
            for c in self.honest
            if c in self.masked
        }
        groups: list[set[ClientId]] = []
        for client in hidden:
            group, edge = set[ClientId](), {client}
            while edge:
                group |= edge
                edge = {p for c in edge for p in hidden.get(c, ())} - group
            sums_up = all(
                c in hidden
                and len(self.seeds.get(c, {})) >= t
                and all(c in hidden.get(p, ()) for p in hidden[c])
                for c in group
            )
            if sums_up and group not in groups:
                groups.append(group)
        return groups


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
        one, two = (decode(each[3], Masked) for each in other[0])
        assert (one.context, one.entrusted) == (two.context, two.entrusted)
        assert one.bulk != two.bulk


# What leaves a client ---------------------------------------------------------------------------------------

# Every message a client sends, with its fields, and those of what is inside: docs/spec/masking.md.
LEAVES: dict[str, tuple[type[Message], tuple[str, ...]]] = {
    "masking.advertise": (Advertise, ("advert", "neighbours")),
    "masking.shares": (Shares, ("entrusted",)),
    "masking.masked": (Masked, ("context", "entrusted", "bulk")),
    "masking.consent": (Consent, ("signature",)),
    "masking.reveal": (Reveal, ("seeds", "keys")),
}
INSIDE = {
    Advert: ("box_key", "mask_key", "signature"),
    Entrusted: ("holder", "box", "digest"),
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
        secrets[client] |= pieces(bytes(pack(np.frombuffer(session._state.summand, "<u4"), bits)))
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
        assert inner or what in ("masking.consent", "masking.reveal")
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


def test_a_client_forgets_what_it_no_longer_needs() -> None:
    evil = Adversary(round_of("masking", 4))
    evil.advertise()
    evil.share()
    before = evil.state(1)
    secrets = pieces(before.summand) | {before.seed, before.box_secret, before.mask_secret}
    assert before.agreed.keys() == {2, 3, 4}
    secrets |= set(before.agreed.values())
    assert all(secret in evil.clients[1].save() for secret in secrets)
    evil.mask()
    assert not any(secret in evil.clients[1].save() for secret in secrets)
    box_keys = evil.state(1).seed_box_keys
    assert box_keys.keys() == {2, 3, 4}
    evil.reveal((1, 2, 3))
    after = evil.state(1)
    assert (after.seed_box_keys, after.held_keys, after.held_seeds) == ({}, {}, {})


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
    box_secrets: dict[ClientId, bytes] = {}
    found = transcript(round_, {5: 2, 6: 3}, lambda c, state: box_secrets.setdefault(c, state.box_secret))
    assert round_.server.sealed is not None
    survivors = set(round_.server.sealed.survivors)
    assert survivors == {1, 2, 3, 4, 6}
    # In backend `masking` phase 3 is consent: 6 gave none, so it was not asked for its shares.
    asked = survivors - {6} if name == "masking" else survivors
    wire = b"".join(frame for _, _, _, frame in found.frames)
    shares: dict[tuple[int, ClientId, ClientId], bytes] = {}
    sent = [(what, client, frame) for up, what, client, frame in found.frames if up]
    adverts = {c: decode(frame, Advertise).advert for what, c, frame in sent if what == "masking.advertise"}
    kinds = {"masking.shares": (KEY, Shares), "masking.masked": (SEED, Masked)}
    for what, owner, frame in sent:
        which, kind_ = kinds.get(what, (KEY, None))
        for each in decode(frame, kind_).entrusted if kind_ else ():
            agreed = masks.agree(box_secrets[each.holder], adverts[owner].box_key)
            keys = masks.box_keys(agreed, round_.spec.context(), owner, each.holder)
            shares[which, owner, each.holder] = SecretBox(keys[which]).decrypt(each.box)
    assert len(shares) == 2 * 6 * 5  # also the seed of 5, whose summand was lost on the way
    for (which, owner, holder), share in shares.items():
        asked_for = (SEED if owner in survivors else KEY) == which
        assert (share in wire) == (asked_for and holder in asked)


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
        evil.take(client, evil.ask(client, evil.consents(kept), Reveal))
    with pytest.raises(PolicyRefused, match="only 2 of the committee agree; 3 must"):
        evil.ask(4, evil.consents(other), Reveal)
    for more in ({3: kept[3]}, {3: other[4]}):
        with pytest.raises(BadFrame, match="a signature that does not fit"):
            evil.ask(4, evil.consents(other | more), Reveal)
    for signers in ((4, 5, 5), (5, 4, 3), (2, 4, 5), (4, 5, 9)):  # twice, out of order, no survivor, nobody
        signatures = tuple((signer, other.get(signer, other[4])) for signer in signers)
        with pytest.raises(
            BadFrame, match="others than surviving committee members, out of order or there twice"
        ):
            evil.ask(4, Consents(signatures), Reveal)
    assert not evil.recovers(1)


def test_one_who_signs_whatever_the_server_wants_is_not_enough() -> None:
    """n = 7 with accomplice 7, which signs two sets: the second honest group is always too small."""
    evil = Adversary(round_of("masking", 7, corrupt=1), (7,))
    assert evil.committee == Committee(7, 5)
    evil.open()
    accepted = []
    for survivors in ((2, 3, 4, 5, 7), (3, 4, 5, 6, 7)):
        free = [c for c in survivors if evil.clients[c].phase == "consent" and c != 7]
        signatures = evil.consent(survivors, free) | evil.signed(survivors, (7,))
        for client in free:
            with contextlib.suppress(PolicyRefused):
                evil.take(client, evil.ask(client, evil.consents(signatures), Reveal))
                accepted.append((client, survivors))
    assert accepted == [(client, (2, 3, 4, 5, 7)) for client in (2, 3, 4, 5)]
    assert not evil.recovers(1)
    assert evil.seeds[1].keys() == {7}


def subsets(items: Ids) -> Iterator[tuple[ClientId, ...]]:
    items = tuple(items)
    return chain.from_iterable(combinations(items, size) for size in range(len(items) + 1))


def splits(evil: Adversary) -> Iterator[tuple[dict[ClientId, Reveal], dict[ClientId, Reveal]]]:
    """For every way to show some honest clients survivors without client 1, and the others some with it:
    what those give up who accept the one and the other.

    An answer depends on what was shown to a client alone, so that each is asked once for each set.
    """
    sets = (evil.spec.clients[1:], evil.spec.clients)
    ready: list[dict[ClientId, ClientSession]] = []
    signatures: list[dict[ClientId, bytes]] = []
    for survivors in sets:
        sessions = {
            c: copy.copy(evil.clients[c]) for c in evil.honest if c in survivors
        }  # states never change
        answers = {
            c: decode(session.receive(encode(evil.survivors(c, survivors))), Consent).signature
            for c, session in sessions.items()
        }
        ready.append(sessions)
        signatures.append(answers | evil.signed(survivors, evil.accomplices))
    for without in subsets(c for c in evil.honest if c != 1):
        groups = (without, tuple(c for c in evil.honest if c not in without))
        found: list[dict[ClientId, Reveal]] = []
        for sessions, signed, group in zip(ready, signatures, groups, strict=True):
            agree = sorted({*group, *evil.accomplices})[: evil.committee.quorum]
            message = encode(evil.consents({c: signed[c] for c in agree}))
            found.append({})
            for client in group:
                try:
                    found[-1][client] = decode(copy.copy(sessions[client]).receive(message), Reveal)
                except PolicyRefused:
                    break  # what one of them refuses all refuse: they count the same signatures
        yield found[0], found[1]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("n", range(4, 13))
def test_however_the_committee_is_split_no_two_sets_get_a_quorum(n: int, share: float) -> None:
    corrupt = Promise(share, 0).corrupt(n)
    evil = Adversary(
        round_of("masking", n, threshold=2, corrupt=corrupt), tuple(range(n - corrupt + 1, n + 1))
    )
    assert evil.members == set(evil.spec.clients)
    evil.open()
    accepted = [(bool(one), bool(other)) for one, other in splits(evil)]
    assert len(accepted) == 2 ** (n - corrupt - 1)
    assert (True, True) not in accepted
    assert (False, True) in accepted
    assert ((True, False) in accepted) == (n - 1 >= evil.committee.quorum)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("n", range(4, 10))
def test_with_a_quorum_of_one_fewer_two_sets_are_accepted_and_an_update_opened(n: int, share: float) -> None:
    corrupt = Promise(share, 0).corrupt(n)
    promise = Promise(corrupt / n, 0)
    quorum = convene(n, promise, derive(n, promise)).quorum - 1
    accomplices = tuple(range(n - corrupt + 1, n + 1))
    evil = Adversary(
        round_of("masking", n, threshold=2, corrupt=corrupt, committee=Committee(n, quorum)), accomplices
    )
    evil.open()
    found = [(one, other) for one, other in splits(evil) if one and other]
    assert found
    opened = []
    for one, other in found:
        evil.seeds, evil.keys = {}, {}
        for client, revealed in (one | other).items():
            evil.take(client, revealed)
        opened.append(evil.recovers(1))
    # 1 holds no share of its own, so that of an even number of honest clients one is wanting.
    assert any(opened) == ((n - corrupt) % 2 == 1)


# b. Keys exchanged on the way -------------------------------------------------------------------------------


def public(secret: bytes) -> bytes:
    return crypto_scalarmult_base(secret)


def sit_in_the_middle(evil: Adversary, victim: ClientId) -> None:
    """Show the victim keys of the server's own for all its neighbours, and open the boxes meant for these."""
    evil.advertise()
    box, mask = b"b" * 32, b"m" * 32
    forged = {n: replace_keys(evil.adverts[n], public(box), public(mask)) for n in evil.drawn[victim]}
    shared = evil.ask(victim, evil.keybook(victim, forged), Shares)
    evil.boxes[victim] = {each.holder: each for each in shared.entrusted}
    evil.box_secrets = dict.fromkeys(evil.drawn[victim], box)  # with which it opens what is meant for others
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
    with pytest.raises(BadFrame, match="two adverts of one client"):
        evil.mask(who=(1,))


def test_a_key_of_somebody_that_chose_the_client_is_signed_too() -> None:
    """Client 1 has not drawn 2, so its first sight of 2's keys is together with 2's box."""
    evil = next(
        evil
        for evil in (Adversary(round_of("masking", 6, Graph(2, 2), seed=seed)) for seed in range(50))
        if evil.advertise() is None and 2 not in evil.drawn[1] and 1 in evil.drawn[2]
    )
    evil.share()
    true = evil.adverts[2]
    for forged in (
        replace_keys(true, public(b"b" * 32), true.mask_key),
        replace_keys(true, true.box_key, public(b"m" * 32)),
        evil.adverts[3],
        replace_keys(true, b"", true.mask_key),
    ):
        evil.adverts[2] = forged
        with pytest.raises(
            BadFrame, match=r"a signature that does not fit|a public key that is not of 32 bytes"
        ):
            evil.mask(who=(1,))
    evil.adverts[2] = true
    evil.mask(who=(1,))
    assert 2 in evil.partners[1]


def test_without_signatures_a_second_mask_key_of_one_client_is_still_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_side, "verify", nothing)
    evil = Adversary(round_of("masking", 4))
    evil.advertise()
    evil.share()
    evil.adverts[2] = replace_keys(evil.adverts[2], evil.adverts[2].box_key, public(b"m" * 32))
    with pytest.raises(BadFrame, match="two adverts of one client"):
        evil.mask(who=(1,))


# c. A roster in parts ---------------------------------------------------------------------------------------


def halves(pinned: bool) -> list[tuple[Adversary, ClientId]]:
    """Two rounds of two clients each, who were provisioned with a roster of four, or so they believe."""
    updates = {c: whole_update(0, c, size=LENGTH) for c in range(1, 5)}
    whole = round_of("masking", 4, updates=updates)
    found = []
    for half in ((1, 2), (3, 4)):
        graph, committee = derive(2, Promise(0, 0)), Committee(2, 2)
        parameters = msgspec.msgpack.encode(Parameters(CODING, graph, committee))
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
        second.ask(1, second.consents(signatures[0]), Reveal)
    second.take(1, second.ask(1, second.consents(signatures[1]), Reveal))
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
    assert evil.state(2).held_keys.keys() == {1, 3, 4}
    assert evil.state(2).held_keys[1] == b""
    assert evil.state(2).held_keys[4] != b""
    evil.consent((1, 2, 3, 4), (2,))
    assert evil.state(2).held_seeds.keys() == {1, 3, 4}
    assert evil.state(2).held_seeds[1] == b""
    assert evil.state(2).held_seeds[4] != b""
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
            evil.clients[1].receive(encode(Survivors(survivors, ())))
        assert evil.clients[1].save() == before


def agree_to_anything(state: ClientState, message: Survivors) -> ClientState:
    """Open whatever box there is, whoever the survivors are."""
    seeds = {
        o: client_side._opened(state.seed_box_keys[o], box)
        for o, box in message.boxes
        if o in state.seed_box_keys
    }
    return msgspec.structs.replace(state, survivors=message.clients, held_seeds=seeds)


def test_a_client_outside_of_the_sum_gives_up_shares_if_it_does_not_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_side, "_agree", agree_to_anything)
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
    one, other = Survivors((1, 2, 3), ()), Survivors((2, 3, 4), ())
    signatures = evil.consent(one.clients)
    for message in (one, other):
        with pytest.raises(WrongPhase, match="got Survivors where Consents belongs"):
            evil.ask(2, message, Consent)
    evil.take(2, evil.ask(2, evil.consents(signatures), Reveal))
    for again in (one, other, evil.consents(signatures), Consents(())):
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


def play_altered(round_: Round, alter: Alter, lost: Ids = ()) -> ServerSession:
    """An honest server and honest clients; `alter` gets phase, client, whether up, frame.

    A client that refuses is silent. lost: whose masked summands are lost.
    """
    outbox = round_.opening()
    for step in round_.backend.server_steps:
        inbox = []
        for client, frame in outbox.items():
            if step.phase == "mask" and client in set(lost):
                continue
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


def altered_key_box(book: ShareBook) -> ShareBook:
    (owner, advert, box), *rest = book.boxes
    assert owner == 1
    return ShareBook(book.neighbours, ((owner, advert, flipped(box)), *rest))


def altered_seed_box(book: Survivors) -> Survivors:
    (owner, box), *rest = book.boxes
    assert owner == 1
    return Survivors(book.clients, ((owner, flipped(box)), *rest))


def test_a_box_altered_on_the_way_costs_one_share() -> None:
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("consent", 2, Survivors, altered_seed_box))
    assert is_sum_over(round_, (1, 2, 3, 4, 5))
    assert server.faults == []
    assert set(server.state.seeds[1]) == {3, 4}  # the first two that are good: no more are needed
    assert set(server.state.seeds[3]) == {1, 2}
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("mask", 2, ShareBook, altered_key_box), lost=(1,))
    assert is_sum_over(round_, (2, 3, 4, 5))
    assert server.faults == []
    assert set(server.state.keys[1]) == {3, 4}
    assert set(server.state.seeds[3]) == {2, 4}


def altered_seed_share(found: Reveal) -> Reveal:
    (owner, share), *rest = found.seeds
    return Reveal(((owner, flipped(share)), *rest), found.keys)


def altered_key_share(found: Reveal) -> Reveal:
    (owner, share), *rest = found.keys
    assert owner == 5
    return Reveal(found.seeds, ((owner, flipped(share)), *rest))


def test_an_altered_share_is_left_out_and_costs_nothing_else() -> None:
    """Whether the holder lies now or the owner lied before, the rest of the answer is as good as before."""
    for alter in (altered_seed_share, altered_key_share):
        round_ = round_of("masking", 5)
        server = play_altered(round_, altering("reveal", 2, Reveal, alter), lost=(5,))
        assert is_sum_over(round_, (1, 2, 3, 4))
        assert server.faults == []
        assert "reveal" not in server.dropped.values()
        altered = alter is altered_seed_share
        assert set(server.state.seeds[1]) == ({3, 4} if altered else {2, 3})
        assert set(server.state.keys[5]) == ({1, 2} if altered else {1, 3})
        assert set(server.state.seeds[3]) == {1, 2}


@pytest.mark.parametrize("phase", ["share", "mask"])
def test_an_owner_that_gives_digests_of_other_shares_ends_the_round_and_no_more(phase: str) -> None:
    """Its own secret cannot be opened: it could as well have dropped out, but too late to be left out."""
    kind_: type[Any] = {"share": Shares, "mask": Masked}[phase]

    def change(found: Any) -> Message:
        wrong = tuple(msgspec.structs.replace(each, digest=flipped(each.digest)) for each in found.entrusted)
        return Shares(wrong) if phase == "share" else Masked(found.context, wrong, found.bulk)

    round_ = round_of("masking", 5)
    with pytest.raises(TooFewClients, match="0 shares of client 1 and 2 are needed"):
        play_altered(round_, altering(phase, 1, kind_, change), lost=(1,) if phase == "share" else ())
    assert round_.server.sealed is None
    assert round_.server.faults == []
    assert set(round_.server.state.seeds[3]) == ({2, 4} if phase == "share" else {1, 2})


def test_an_altered_share_spoils_the_sum_if_there_are_no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whatever:
        def __eq__(self, other: object) -> bool:
            return True

    monkeypatch.setattr(server_side, "share_digest", lambda *of: Whatever())
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("reveal", 2, Reveal, altered_seed_share))
    assert server.faults == []
    assert not is_sum_over(round_, (1, 2, 3, 4, 5))


def test_a_share_that_was_not_asked_for_costs_its_sender_only() -> None:
    """A client that also gives the key shares of survivors: an honest server is not even to hold them."""
    round_ = round_of("masking", 5)
    held = dict[ClientId, bytes]()

    def change(found: Reveal) -> Reveal:
        return Reveal(found.seeds, tuple(sorted(held.items())))

    def alter(at: str, who: ClientId, up: bool, frame: bytes) -> bytes:
        if at == "reveal" and who == 2 and not up:
            held.update(round_.clients[2]._state.held_keys)
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
    found = decode(before.clients[2].receive(encode(before.sharebook(2))), Masked)
    assert found.context == before.context
    return found


def test_a_masked_summand_of_another_round_costs_its_sender_only() -> None:
    round_ = round_of("masking", 5)
    server = play_altered(round_, altering("mask", 2, Masked, lambda true: masked_elsewhere()))
    assert is_sum_over(round_, (1, 3, 4, 5))
    assert server.faults == [(2, "mask: WrongPhase: a masked summand of another round or run")]


def test_a_masked_summand_of_another_round_spoils_the_sum_if_it_does_not_say_so() -> None:
    round_ = round_of("masking", 5)

    def relabelled(true: Masked) -> Masked:
        return Masked(true.context, true.entrusted, masked_elsewhere().bulk)

    assert play_altered(round_, altering("mask", 2, Masked, relabelled)).faults == []
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


def send_small_key(which: str) -> Round:
    """Client 2 advertises a key of small order to an honest server."""
    round_ = round_of("masking", 5)
    evil = Adversary(round_of("masking", 5))
    evil.advertise()
    forged = small_key(evil, 2, SMALL[0], which)
    play_altered(
        round_,
        altering("advertise", 2, Advertise, lambda found: Advertise(forged, found.neighbours)),
    )
    return round_


@pytest.mark.parametrize("which", ["box", "mask"])
def test_a_key_of_small_order_ends_the_round_if_the_server_passes_it_on(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_side, "masks", SimpleNamespace(**(vars(masks) | {"agree": nothing})))
    with pytest.raises(TooFewClients):
        send_small_key(which)


@pytest.mark.parametrize("which", ["box", "mask"])
def test_a_key_of_small_order_costs_its_sender_only(which: str) -> None:
    round_ = send_small_key(which)
    assert is_sum_over(round_, (1, 3, 4, 5))
    assert round_.server.faults == [(2, "advertise: BadFrame: an X25519 public key of small order")]


# i. Holders that collude ------------------------------------------------------------------------------------


def value_at(x: int, points: Mapping[int, int]) -> int:
    """Value at x of the polynomial through these points, mod 2^256 - 189 (Lagrange, beside `shamir`)."""
    found = 0
    for xi, yi in points.items():
        others = [xj for xj in points if xj != xi]
        above, below = math.prod(x - xj for xj in others), math.prod(xi - xj for xj in others)
        found += yi * above * pow(below, -1, shamir.PRIME)
    return found % shamir.PRIME


@pytest.mark.parametrize("which", [KEY, SEED])
def test_fewer_holders_than_shares_are_needed_know_nothing_of_a_secret(which: int) -> None:
    """What t - 1 of them hold fits every secret: for each there is a share of one more that gives it."""
    evil = Adversary(round_of("masking", 6, Graph(5, 3)), (2, 4, 5))
    evil.advertise()
    evil.share()
    secret = (evil.state(1).mask_secret, evil.state(1).seed)[which]
    evil.mask()
    evil.betray()
    held = (evil.keys, evil.seeds)[which][1]
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


def entrust_to_all(state: ClientState, book: ShareBook, entropy: Entropy) -> tuple[ClientState, Masked]:
    """A client's `mask` that shares the seed among all holders of its key, masked with them or not."""
    after, masked = client_side.mask(state, book, entropy)
    holders = sorted(state.adverts)
    shares = shamir.split(state.seed, Parameters.of(state.spec).graph.shares, holders, entropy)
    boxes = (client_side._entrust(state, h, client_side._SEED, shares[h], entropy) for h in holders)
    return after, Masked(masked.context, tuple(boxes), masked.bulk)


def lie_about_who_has_shared(evil: Adversary, victim: ClientId, told: set[ClientId], survivors: Ids) -> None:
    """Let the victim mask with `told` alone; leave these out of the survivors, so that their keys are opened,
    and have the victim's seed opened by holders with whom it shares no mask.
    """
    evil.share()
    book = evil.sharebook(victim, told)
    evil.mask({victim: ShareBook(book.neighbours, tuple(box for box in book.boxes if box[0] in told))})
    evil.reveal(survivors)


ROSTERS = [
    (4, 0.0, 0.0),
    (5, 0.0, 0.0),
    (6, 0.0, 0.0),
    (7, 0.0, 0.2),
    (10, 0.1, 0.1),
    (11, 0.1, 0.1),
    (12, 0.1, 0.1),
]


def lie_in_a_complete_graph(n: int, corrupt: int, name: str, careless: Mapping[str, Step] | None) -> bool:
    accomplices = tuple(range(n, n - corrupt, -1))
    evil = Adversary(round_of(name, n, corrupt=corrupt, threshold=2, careless=careless), accomplices)
    evil.advertise()
    told = {*range(2, 2 + evil.graph.shares - corrupt), *accomplices}
    survivors = [c for c in range(1, n + 1) if c not in told or c in accomplices]
    with contextlib.suppress(PolicyRefused):
        lie_about_who_has_shared(evil, 1, told, survivors)
    return evil.recovers(1)


@pytest.mark.parametrize(("n", "corruption", "dropout"), ROSTERS)
@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_a_lie_about_who_has_shared_opens_an_update_if_the_seed_goes_to_all(
    name: str, n: int, corruption: float, dropout: float
) -> None:
    """Where the others are enough to open the seed, and to agree."""
    corrupt = Promise(corruption, dropout).corrupt(n)
    works = lie_in_a_complete_graph(n, corrupt, name, {"mask": entrust_to_all})
    assert works == ((n - corrupt) % 2 == 1)


@pytest.mark.parametrize(("n", "corruption", "dropout"), ROSTERS)
@pytest.mark.parametrize("name", ["masking", "masking-passive"])
def test_a_lie_about_who_has_shared_opens_nothing(
    name: str, n: int, corruption: float, dropout: float
) -> None:
    assert not lie_in_a_complete_graph(n, Promise(corruption, dropout).corrupt(n), name, None)


# A graph for 60 clients, 19 of them accomplices: of all that keep the promise, the one in which most often a
# client has so many neighbours among them that the rest could be divided, about once in 20 rounds.
SPARSE, CORRUPT, DIVISIBLE = Graph(26, 20), 19, 18


def lie_in_a_sparse_graph(careless: Mapping[str, Step] | None) -> bool:
    round_ = round_of("masking", 60, SPARSE, corrupt=CORRUPT, seed=DIVISIBLE, careless=careless)
    evil = Adversary(round_, tuple(range(60 - CORRUPT + 1, 61)))
    evil.advertise()
    accomplices = set(evil.accomplices)
    victim = max(evil.honest, key=lambda c: len(accomplices & set(evil.drawn[c])))
    few = SPARSE.shares - len(accomplices & set(evil.drawn[victim]))
    honest = [c for c in evil.drawn[victim] if c not in accomplices]
    assert 2 * few <= len(honest)
    told = [c for c in honest if c not in evil.members][
        :few
    ]  # all 20 members must agree, so none is left out
    assert len(told) == few
    lie_about_who_has_shared(evil, victim, accomplices.union(told), set(evil.spec.clients) - set(told))
    return evil.recovers(victim)


def test_the_sparse_graph_here_keeps_its_promise() -> None:
    promise = Promise(CORRUPT / 60, 0)
    check(60, promise, SPARSE)
    assert convene(60, promise, SPARSE) == Committee(20, 20)


def test_a_lie_about_who_has_shared_opens_an_update_in_a_sparse_graph_if_the_seed_goes_to_all() -> None:
    assert lie_in_a_sparse_graph({"mask": entrust_to_all})


def test_a_lie_about_who_has_shared_opens_nothing_in_a_sparse_graph() -> None:
    assert not lie_in_a_sparse_graph(None)


def test_a_seed_is_entrusted_to_those_told_of_and_nobody_else() -> None:
    evil = Adversary(round_of("masking", 6))
    evil.advertise()
    evil.share()
    evil.mask({1: evil.sharebook(1, (2, 4, 5))}, (1,))
    assert evil.seed_boxes[1].keys() == {2, 4, 5}
    assert evil.boxes[1].keys() == {2, 3, 4, 5, 6}


@pytest.mark.parametrize(
    ("there", "error", "match"),
    [
        ((2, 3), PolicyRefused, "only 2 of this client's neighbours have shared; 3 must"),
        ((), PolicyRefused, "only 0 of this client's neighbours have shared"),
        ((2, 3, 3, 4), BadFrame, "out of order or there twice"),
        ((3, 2, 4), BadFrame, "out of order or there twice"),
        ((1, 2, 3), BadFrame, "neighbours that have not advertised"),
        ((2, 3, 6), BadFrame, "neighbours that have not advertised"),
    ],
)
def test_those_who_are_said_to_have_shared_must_have_advertised(
    there: tuple[ClientId, ...], error: type[Exception], match: str
) -> None:
    evil = Adversary(round_of("masking", 6, Graph(5, 3)))
    evil.advertise((1, 2, 3, 4, 5))
    evil.share((1,))
    before = evil.clients[1].save()
    with pytest.raises(error, match=match):
        evil.clients[1].receive(encode(ShareBook(there, ())))
    assert evil.clients[1].save() == before


# k. A committee that is split, or left out, in a sparse graph -----------------------------------------------


def reveal_on_the_word_of(
    electorate: Callable[[ClientState], Ids], least: Callable[[Parameters], int]
) -> Step:
    """A client's `reveal` that wants so many signatures of others than the committee."""

    def step(state: ClientState, message: Consents, entropy: Entropy) -> tuple[ClientState, Reveal]:
        signed = survivor_bytes(state.context, state.survivors)
        for client, signature in message.signatures:
            client_side.verify(state.keyring.roster[client], signed, signature)
        if len({c for c, _ in message.signatures} & set(electorate(state))) < least(
            Parameters.of(state.spec)
        ):
            raise PolicyRefused("too few")
        return client_side._disclose(state)

    return step


OF_NEIGHBOURS = reveal_on_the_word_of(lambda state: state.neighbours, lambda found: found.graph.shares)
OF_NOBODY = reveal_on_the_word_of(lambda state: (), lambda found: 0)
OF_ANYONE = reveal_on_the_word_of(lambda state: state.survivors, lambda found: found.committee.quorum)

# In the round with seed 1, 6 accomplices and these neighbours of client 12 can open a secret of it, in either
# group; and each of them has 8 neighbours in its own camp, if all others join the right one.
THIN, VICTIM, WITHOUT, WITH = Graph(12, 8), 12, (14, 30, 36, 39), (6, 10, 11, 33)


def camps(evil: Adversary) -> tuple[set[ClientId], set[ClientId]]:
    """Divide the honest between the two groups: each goes where more that want neighbours have drawn it."""
    groups, found = (WITHOUT, WITH), (set(WITHOUT), {*WITH, VICTIM})

    def wanting(which: int, more: Ids) -> int:
        camp = {*found[which], *evil.accomplices, *more}
        return sum(max(0, THIN.shares - len(camp.intersection(evil.drawn[c]))) for c in groups[which])

    drawn = {c: [sum(c in evil.drawn[holder] for holder in group) for group in groups] for c in evil.honest}
    for client in sorted(evil.honest, key=lambda c: -abs(drawn[c][0] - drawn[c][1])):
        if client not in found[0] | found[1]:
            gains = [wanting(which, ()) - wanting(which, (client,)) for which in (0, 1)]
            found[gains[1] > gains[0]].add(client)
    return found


def split_sparse(
    careless: Mapping[str, Step] | None, members_go: int | None = None
) -> tuple[Adversary, list[ClientId]]:
    """Show one camp survivors without the victim, the other some with it; gives who has revealed.

    members_go: to which of the camps all honest members of the committee go.
    """
    round_ = round_of("masking", 60, THIN, corrupt=6, seed=1, careless=careless)
    evil = Adversary(round_, tuple(range(55, 61)))
    evil.open()
    parts = camps(evil)
    if members_go is not None:
        members = evil.members.intersection(evil.honest) - {VICTIM}
        parts = (parts[0] - members, parts[1] - members)
        parts[members_go].update(members)
    answered = []
    for camp, survivors in zip(parts, (set(evil.spec.clients) - {VICTIM}, evil.spec.clients), strict=True):
        signatures = evil.consent(survivors, sorted(camp)) | evil.signed(survivors, evil.accomplices)
        for client in sorted(camp):
            signers: Ids = evil.members
            if careless:
                signers = set(evil.drawn[client]) if careless["reveal"] is OF_NEIGHBOURS else signatures
            message = Consents(tuple((c, signatures[c]) for c in sorted(signatures) if c in set(signers)))
            with contextlib.suppress(PolicyRefused):
                evil.take(client, evil.ask(client, message, Reveal))
                answered.append(client)
    return evil, answered


@pytest.mark.parametrize("word", [OF_NEIGHBOURS, OF_ANYONE])
def test_two_sets_open_an_update_in_a_sparse_graph_without_a_committee(word: Step) -> None:
    evil, answered = split_sparse({"reveal": word})
    assert {*WITHOUT, *WITH} <= set(answered)
    assert evil.recovers(VICTIM)


@pytest.mark.parametrize("members_go", [None, 0, 1])
def test_two_sets_open_nothing_in_a_sparse_graph(members_go: int | None) -> None:
    evil, answered = split_sparse(None, members_go)
    assert evil.committee == Committee(7, 7)
    evil.betray()
    if members_go is None:
        assert answered == []
    else:
        # The one set is accepted and opens what belongs to it; of the other camp nobody answers.
        opened, hidden = (evil.seeds, evil.keys) if members_go else (evil.keys, evil.seeds)
        assert {*(WITHOUT, WITH)[members_go]} <= set(answered)
        assert {*(WITH, WITHOUT)[members_go]} & set(answered) <= evil.members
        assert len(opened[VICTIM]) >= THIN.shares > len(hidden[VICTIM])
    assert not evil.recovers(VICTIM)


def test_without_enough_members_among_the_survivors_nothing_is_revealed() -> None:
    evil = Adversary(round_of("masking", 60, Graph(20, 14), committee=Committee(19, 13)), (60,))
    evil.open()
    members = sorted(evil.members)
    survivors = [c for c in evil.spec.clients if c not in members[:7]]
    signatures = evil.consent(survivors)
    asked = next(c for c in survivors if c not in evil.members)
    with pytest.raises(PolicyRefused, match="only 12 of the committee agree; 13 must"):
        evil.ask(asked, evil.consents(signatures), Reveal)
    other = next(c for c in survivors if c not in evil.members and c != asked)
    missing = evil.signed(survivors, members[:1])  # it may be an accomplice, but it is not in the sum
    for more in ({other: signatures[other]}, missing):
        extended = {c: signatures[c] for c in members[7:]} | more
        with pytest.raises(BadFrame, match="consents of others than surviving committee members"):
            evil.ask(asked, Consents(tuple(sorted(extended.items()))), Reveal)
    assert evil.seeds == {}


# l. Boxes of another kind, of another owner, for another holder ---------------------------------------------


def one_box_key(shared: bytes, context: bytes, sender: ClientId, recipient: ClientId) -> tuple[bytes, bytes]:
    """`masks.box_keys` that makes no difference between the two boxes."""
    key = masks.derive(shared, b"privfr key box", context, sender, recipient)
    return key, key


def anyones_box_keys(
    shared: bytes, context: bytes, sender: ClientId, recipient: ClientId
) -> tuple[bytes, bytes]:
    """`masks.box_keys` that do not depend on the owner, as if a holder had one key for all."""
    purposes = (b"privfr key box", b"privfr seed box")
    key, seed = (masks.derive(bytes(32), purpose, context, recipient) for purpose in purposes)
    return key, seed


def swap_for_the_dead(evil: Adversary) -> None:
    """Give 2 and 3 the box of 1's seed for that of its key, and declare 1 dead."""
    evil.advertise()
    evil.share()
    evil.mask(who=(1,))
    books = {}
    for holder in (2, 3):
        book = evil.sharebook(holder)
        (owner, advert, _), *rest = book.boxes
        assert owner == 1
        books[holder] = ShareBook(book.neighbours, ((1, advert, evil.seed_boxes[1][holder].box), *rest))
    evil.mask(books, (2, 3, 4, 5))
    evil.reveal((2, 3, 4, 5))
    for holder in {2, 3} & evil.keys.get(1, {}).keys():
        evil.seeds.setdefault(1, {})[holder] = evil.keys[1].pop(holder)


def give_boxes(evil: Adversary, survivors: tuple[ClientId, ...], boxes: Mapping[ClientId, Any]) -> None:
    """Give some clients other boxes with the survivors than they should get, and have all reveal."""
    asks = {c: Survivors(survivors, boxes.get(c, evil.survivors(c, survivors).boxes)) for c in survivors}
    signatures = {c: evil.ask(c, ask, Consent).signature for c, ask in asks.items()}
    for client in survivors:
        evil.take(client, evil.ask(client, evil.consents(signatures), Reveal))


def swap_for_the_living(evil: Adversary) -> None:
    """Give 2 and 3 the box of 1's key for that of its seed."""
    evil.open()
    give_boxes(evil, (1, 2, 3, 4, 5), {c: ((1, evil.boxes[1][c].box),) for c in (2, 3)})
    for holder in {2, 3} & evil.seeds.get(1, {}).keys():
        evil.keys.setdefault(1, {})[holder] = evil.seeds[1].pop(holder)


@pytest.mark.parametrize("swap", [swap_for_the_dead, swap_for_the_living])
def test_boxes_that_are_swapped_open_an_update_if_they_have_one_key(
    swap: Callable[[Adversary], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "box_keys", one_box_key)
    evil = Adversary(round_of("masking", 5))
    swap(evil)
    assert evil.recovers(1)


@pytest.mark.parametrize("swap", [swap_for_the_dead, swap_for_the_living])
def test_boxes_that_are_swapped_do_not_open(swap: Callable[[Adversary], None]) -> None:
    evil = Adversary(round_of("masking", 5))
    swap(evil)
    assert not evil.recovers(1)
    dead = swap is swap_for_the_dead
    assert (evil.keys if dead else evil.seeds)[1].keys() == {4, 5}
    assert (evil.seeds if dead else evil.keys).get(1, {}) == {}


def boxes_under_another_name(evil: Adversary) -> None:
    """Declare 1 dead, and give its seed's boxes out as those of one who lives."""
    evil.open()
    give_boxes(evil, (2, 3, 4, 5), {h: ((5, evil.seed_boxes[1][h].box),) for h in (2, 3)})
    for holder in {2, 3} & evil.seeds.get(5, {}).keys():
        evil.seeds.setdefault(1, {})[holder] = evil.seeds[5].pop(holder)


def test_a_box_under_another_name_opens_an_update_if_its_key_is_not_that_of_a_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masks, "box_keys", anyones_box_keys)
    evil = Adversary(round_of("masking", 5))
    boxes_under_another_name(evil)
    assert evil.recovers(1)


def test_a_box_under_another_name_does_not_open() -> None:
    evil = Adversary(round_of("masking", 5))
    boxes_under_another_name(evil)
    assert not evil.recovers(1)
    assert evil.seeds[5].keys() == {4}
    assert 1 not in evil.seeds


def test_a_box_for_another_holder_does_not_open() -> None:
    evil = Adversary(round_of("masking", 5))
    evil.open()
    give_boxes(evil, (1, 2, 3, 4, 5), {2: ((1, evil.seed_boxes[1][3].box), (3, evil.seed_boxes[2][3].box))})
    assert 2 not in evil.seeds[1]
    assert 2 not in evil.seeds[3]


def boxes_of_the_dead(evil: Adversary) -> None:
    """Declare 1 dead, and give out its seed's boxes all the same."""
    evil.open()
    give_boxes(evil, (2, 3, 4, 5), {c: ((1, evil.seed_boxes[1][c].box),) for c in (2, 3, 4, 5)})


def test_boxes_of_one_who_is_no_survivor_open_its_update_if_they_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_side, "_agree", agree_to_anything)
    evil = Adversary(round_of("masking", 5))
    boxes_of_the_dead(evil)
    assert evil.recovers(1)


def test_boxes_of_one_who_is_no_survivor_are_refused() -> None:
    evil = Adversary(round_of("masking", 5))
    with pytest.raises(BadFrame, match="boxes of others than survivors who chose this client"):
        boxes_of_the_dead(evil)
    assert not evil.recovers(1)


def test_boxes_are_of_survivors_who_chose_the_client_in_order_and_once() -> None:
    evil = Adversary(round_of("masking", 8, Graph(3, 2), threshold=5, seed=2))
    evil.open()
    chose = [c for c in (2, 3, 4, 5, 6, 7) if 1 in evil.drawn[c]]
    others = [c for c in (2, 3, 4, 5, 6, 7) if c not in chose]
    assert len(chose) >= 2
    assert others
    box = evil.seed_boxes[chose[0]][1].box
    for owners in ((others[0],), (chose[1], chose[0]), (chose[0], chose[0]), (1,), (8,), (99,)):
        before = evil.clients[1].save()
        with pytest.raises(BadFrame, match="boxes of others than survivors who chose this client"):
            evil.clients[1].receive(encode(Survivors((1, 2, 3, 4, 5, 6, 7), tuple((o, box) for o in owners))))
        assert evil.clients[1].save() == before
    evil.consent((1, 2, 3, 4, 5, 6, 7), (1,))


# m. Declared dead although its masked summand has arrived ---------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5, 8])
def test_of_one_declared_dead_the_seed_stays_hidden(n: int) -> None:
    """All its pair masks are known then: its own mask is what is left."""
    evil = Adversary(round_of("masking", n))
    evil.open()
    everyone = evil.spec.clients
    evil.reveal(everyone[1:])
    assert evil.keys[1].keys() == set(everyone[1:])
    assert not evil.recovers(1)
    late = {c: evil.survivors(c, everyone) for c in everyone}
    for client, message in late.items():
        if client == 1:
            continue  # nobody has been told to leave it out but the others, and it would consent
        with pytest.raises(WrongPhase):
            evil.ask(client, message, Consent)
    signature = evil.consent(everyone, (1,))
    with pytest.raises(PolicyRefused, match="only 1 of the committee agree"):
        evil.ask(1, evil.consents(signature), Reveal)
    assert not evil.recovers(1)


def test_one_declared_dead_is_an_open_book_without_its_own_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "add_masks", without("self"))
    evil = Adversary(round_of("masking", 5))
    evil.open()
    evil.reveal((2, 3, 4, 5))
    assert evil.recovers(1)


# n. All of these lies together ------------------------------------------------------------------------------


def some(draw: st.DrawFn, items: Ids, least: int) -> tuple[ClientId, ...]:
    """All of these, or so many of them at least."""
    items = tuple(items)
    if least > len(items) or not items or draw(st.booleans()):
        return items
    return tuple(sorted(draw(st.sets(st.sampled_from(items), min_size=least))))


@dataclass
class Lies:
    """What is told to whom. adverts: client -> of whom it sees keys.  there: client -> who is said to have
    shared.  chosen_by: client -> whose boxes it gets.  camps: client -> which of two sets of survivors.
    """

    adverts: dict[ClientId, tuple[ClientId, ...]]
    there: dict[ClientId, tuple[ClientId, ...]]
    chosen_by: dict[ClientId, tuple[ClientId, ...]]
    sets: list[tuple[ClientId, ...]]
    camps: dict[ClientId, int]


@st.composite
def lies(draw: st.DrawFn) -> tuple[int, int, Lies]:
    """Give n, how many of them are accomplices, and the lies; those with the highest ids are accomplices."""
    n = draw(st.integers(3, 8))
    corrupt = draw(st.integers(0, min(2, n - 2)))
    t, everyone = derive(n, Promise(corrupt / n, 0)).shares, range(1, n + 1)
    told: list[dict[ClientId, tuple[ClientId, ...]]] = []
    for least in (t, t, 0):
        found, lied = others_of(n), draw(st.booleans())
        told.append({c: some(draw, others, least) if lied else others for c, others in found.items()})
    if draw(st.booleans()):
        sets = [some(draw, everyone, min(t + 1, n)) for _ in range(2)]
    else:
        sets = [tuple(everyone), tuple(c for c in everyone if c != draw(st.sampled_from(everyone)))]
    camp = st.integers(0, 1) if draw(st.booleans()) else st.just(0)
    return n, corrupt, Lies(told[0], told[1], told[2], sets, {c: draw(camp) for c in everyone})


def others_of(n: int) -> dict[ClientId, tuple[ClientId, ...]]:
    """Of n clients, all but each."""
    everyone = range(1, n + 1)
    return {c: tuple(o for o in everyone if o != c) for c in everyone}


def tell(evil: Adversary, found: Lies) -> None:
    """Play a round in which everybody is told these lies; who refuses is left out."""
    evil.advertise()
    for client in evil.spec.clients:
        book = KeyBook(tuple((o, evil.adverts[o]) for o in found.adverts[client]))
        with contextlib.suppress(RemoteProtocolError):
            shared = evil.ask(client, book, Shares)
            evil.boxes[client] = {each.holder: each for each in shared.entrusted}
    for client in sorted(evil.boxes):
        book = evil.sharebook(client, found.there[client])
        there = tuple(o for o in book.neighbours if o in found.adverts[client])
        boxes = tuple(box for box in book.boxes if box[0] in found.chosen_by[client])
        with contextlib.suppress(RemoteProtocolError):
            evil.mask({client: ShareBook(there, boxes)}, (client,))
    for which, survivors in enumerate(found.sets):
        signatures = evil.signed(survivors, evil.accomplices)
        ready = []
        for client in evil.honest:
            if found.camps[client] == which and client in evil.masked:
                with contextlib.suppress(RemoteProtocolError):
                    signatures |= evil.consent(survivors, (client,))
                    ready.append(client)
        agreed = {c: signatures[c] for c in signatures if c in survivors}
        for client in ready:
            with contextlib.suppress(RemoteProtocolError):
                evil.take(client, evil.ask(client, evil.consents(agreed), Reveal))


def openings(n: int, corrupt: int, found: Lies, careless: Mapping[str, Step] | None = None) -> list[int]:
    """How many honest clients are in each sum that is opened; each is compared with the true one."""
    round_ = round_of("masking", n, corrupt=corrupt, threshold=2, careless=careless)
    evil = Adversary(round_, tuple(range(n - corrupt + 1, n + 1)))
    tell(evil, found)
    groups = evil.opened_sums()
    for group in groups:
        lanes = np.sum([evil.round.lanes(c) for c in group], axis=0, dtype=np.uint64)
        true = (lanes & np.uint64((1 << evil.bits) - 1)).astype(np.uint32)
        assert total(evil, group).tobytes() == true.tobytes()
    for client in evil.masked.keys() & set(evil.honest):
        assert evil.recovers(client) == ({client} in groups)
    return [len(group) for group in groups]


@settings(max_examples=150)
@given(lies())
def test_whatever_is_told_the_one_sum_that_opens_has_more_than_half_of_the_honest(
    case: tuple[int, int, Lies],
) -> None:
    n, corrupt, found = case
    sizes = openings(n, corrupt, found)
    assert len(sizes) <= 1
    assert all(2 * size > n - corrupt for size in sizes)


def lie_about_sharers() -> Lies:
    """To client 1 of 5, which is told of 2 and 3 only; these are then left out."""
    others = others_of(5)
    told = others | {1: (2, 3)}
    return Lies(others, told, told, [(1, 4, 5)] * 2, dict.fromkeys(others, 0))


def lie_about_survivors() -> Lies:
    """To 5 clients, of whom 4 and 5 leave out client 1."""
    others = others_of(5)
    return Lies(others, others, others, [(1, 2, 3, 4, 5), (2, 3, 4, 5)], {1: 0, 2: 0, 3: 0, 4: 1, 5: 1})


@pytest.mark.parametrize(
    ("found", "careless"),
    [
        (lie_about_sharers(), {"mask": entrust_to_all}),
        (lie_about_survivors(), {"reveal": OF_NOBODY}),
    ],
)
def test_such_lies_open_a_single_update_where_a_defence_is_missing(
    found: Lies, careless: Mapping[str, Step]
) -> None:
    assert 1 in openings(5, 0, found, careless)
    assert 1 not in openings(5, 0, found)


def test_such_lies_leave_honest_rounds_alone() -> None:
    """What the property counts: with nothing but the truth, there is one sum, of all."""
    for n, corrupt in ((3, 0), (5, 1), (8, 2)):
        others, everyone = others_of(n), tuple(range(1, n + 1))
        truth = Lies(others, others, others, [everyone] * 2, dict.fromkeys(everyone, 0))
        assert openings(n, corrupt, truth) == [n - corrupt]
