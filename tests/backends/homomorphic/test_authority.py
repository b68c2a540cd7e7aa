"""Backends `bfv-authority` and `ckks-authority`: what the authority refuses, and what no server gets.

`Opening` is a server that has played a round up to its end, and asks the authority what it likes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from forging import (
    Change,
    changed,
    evaluated,
    in_clear,
    one_slot,
    plus,
    root_of,
    shifted,
    summed,
    tags_summed,
    times,
    with_the_key,
)
from insecure import CODING, InsecureEntropy, RoundInHand, round_in_hand, spec_of, whole_update

from privfr.backends import backend
from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.authority import Authority
from privfr.backends.homomorphic.lattice import Key, _key_moduli, pack_words
from privfr.backends.homomorphic.mac import Mac
from privfr.backends.homomorphic.messages import (
    Cipher,
    Consent,
    OpenSum,
    PublicKey,
    Ready,
    Survivors,
    key_bytes,
    mac_context,
    survivor_bytes,
)
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.identity import sign
from privfr.backends.party import Refused
from privfr.coding import Coding, unpack
from privfr.errors import BadFrame, PolicyRefused, RemoteProtocolError, TooFewClients, WrongPhase
from privfr.protocol import Begin, ClientId, RoundSpec, Sealed
from privfr.vector import Update
from privfr.wire import decode, encode, kind

EMPTY = memoryview(b"")
Id = ClientId
Ids = tuple[Id, ...]

NAMES = ["bfv-authority", "ckks-authority"]
both = pytest.mark.parametrize("name", NAMES)


class Tapped:
    """A line to an authority that remembers what passed, both ways."""

    def __init__(self, authority: Authority) -> None:
        self.authority, self.seen = authority, list[bytes]()

    def __call__(self, frame: bytes) -> bytes:
        answer = self.authority.receive(frame)
        self.seen += [bytes(frame), answer]
        return answer


@dataclass
class Opening:
    """A round of which all is done but the last. lost: clients whose ciphertexts never came."""

    name: str
    n: int = 4
    threshold: int = 2
    lost: Ids = ()
    coding: Coding = CODING
    wire: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        found, clients = backend(self.name), range(1, self.n + 1)
        parameters = found.plan(self.n, self.threshold, self.coding, {})
        self.spec = spec_of(found, clients, self.threshold, parameters=parameters)
        self.round = RoundInHand(found, self.spec, {c: whole_update(3, c) for c in clients})
        state = self.round.server.state
        self.key: PublicKey = state.key
        self.line = Tapped(self.round.server_key.relay.__self__)
        self.ciphers: dict[Id, memoryview] = {}
        self.tags: dict[Id, tuple[int, ...]] = {}
        self.consents: dict[Id, bytes] = {}
        outbox = self.round.opening()
        for _ in found.client_steps:
            self.wire += outbox.values()
            answers = {c: self.round.clients[c].receive(f) for c, f in outbox.items() if c not in self.lost}
            self.wire += answers.values()
            for client, frame in answers.items():
                if kind(frame) == "homomorphic.cipher":
                    self.ciphers[client] = decode(frame, Cipher).bulk
                    self.tags[client] = decode(frame, Cipher).tag
                if kind(frame) == "homomorphic.consent":
                    self.consents[client] = decode(frame, Consent).signature
            if not self.consents:
                outbox = dict(self.round.server.turn(list(answers.items())))
        self.survivors: Ids = tuple(sorted(self.ciphers))
        assert self.line.authority._round is not None
        self.key_for_the_test: Key = self.line.authority._round[1]

    @property
    def packing(self) -> Packing:
        return rounds.packing_of(self.spec)

    def lanes(self, *clients: Id) -> list[int]:
        """Sum of the clients' lanes, worked out in clear."""
        point = self.packing.point
        found = [point.encode(self.round.updates[c], InsecureEntropy(0)).astype(np.uint64) for c in clients]
        return [int(lane) % (1 << point.modulus_bits) for lane in np.sum(found, axis=0, dtype=np.uint64)]

    def ask(
        self,
        survivors: Ids | None = None,
        consents: Mapping[Id, bytes] | Iterable[tuple[Id, bytes]] | None = None,
        summands: Ids | None = None,
        bulk: bytes | None = None,
        tag: tuple[int, ...] | None = None,
    ) -> bytes:
        """The question to the authority, true but for what is given."""
        given = self.consents if consents is None else consents
        pairs = tuple(sorted(given.items())) if isinstance(given, Mapping) else tuple(given)
        total = summed(self.packing, [self.ciphers[c] for c in summands or self.survivors])
        content = memoryview(total if bulk is None else bulk)
        tags = tags_summed(self.packing, [self.tags[c] for c in summands or self.survivors])
        return encode(OpenSum(survivors or self.survivors, pairs, tags if tag is None else tag, content))

    def refused(self, frame: bytes) -> str:
        """Why the authority refuses; fails if it does not."""
        return decode(self.line(frame), Refused).why

    def opened(self, frame: bytes) -> list[int]:
        sealed = decode(self.line(frame), Sealed)
        point = self.packing.point
        return [int(lane) for lane in unpack(sealed.bulk, point.modulus_bits, point.lanes)]

    def signed(self, survivors: Ids, signers: Iterable[Id], spec: RoundSpec | None = None) -> dict[Id, bytes]:
        """Consents as the clients' own keys would sign them."""
        message = survivor_bytes((spec or self.spec).context(), survivors)
        return {c: sign(self.round.client_keys[c].identity, message) for c in signers}

    def still_open(self) -> None:
        """The refusals so far have cost nothing: the true sum is opened."""
        assert self.opened(self.ask()) == self.lanes(*self.survivors)


# Consents --------------------------------------------------------------------------------------------------


@both
def test_the_true_sum_is_opened_and_is_the_sum(name: str) -> None:
    opening = Opening(name, lost=(3,))
    assert opening.survivors == (1, 2, 4)
    opening.still_open()


CONSENTS: dict[str, tuple[str, Callable[[Opening], bytes]]] = {
    "none": ("0 of the survivors", lambda o: o.ask(consents={})),
    "too few": ("1 of the survivors", lambda o: o.ask(consents={1: o.consents[1]})),
    "one three times": ("out of order", lambda o: o.ask(consents=[(1, o.consents[1])] * 3)),
    "out of order": ("out of order", lambda o: o.ask(consents=sorted(o.consents.items(), reverse=True))),
    "a foreigner's": ("out of order", lambda o: o.ask(consents=o.consents | {99: o.consents[1]})),
    "of one who is no survivor": (
        "out of order",
        lambda o: o.ask((1, 2), o.signed((1, 2), (1, 2, 3)), (1, 2)),
    ),
    "another's name": ("signature", lambda o: o.ask(consents=o.consents | {1: o.consents[2]})),
    "forged": ("signature", lambda o: o.ask(consents=o.consents | {2: bytes(64)})),
    "short": ("signature", lambda o: o.ask(consents=o.consents | {2: b"short"})),
    "empty": ("signature", lambda o: o.ask(consents=o.consents | {2: b""})),
    "one flipped bit": (
        "signature",
        lambda o: o.ask(consents=o.consents | {2: bytes([o.consents[2][0] ^ 1]) + o.consents[2][1:]}),
    ),
    "for more survivors": ("signature", lambda o: o.ask((1, 2, 3), {c: o.consents[c] for c in (1, 2, 3)})),
    "for another round": (
        "signature",
        lambda o: o.ask(
            consents=o.signed(o.survivors, o.survivors, msgspec.structs.replace(o.spec, round=1))
        ),
    ),
    "for another run": (
        "signature",
        lambda o: o.ask(
            consents=o.signed(o.survivors, o.survivors, msgspec.structs.replace(o.spec, run=b"s" * 16))
        ),
    ),
    "below the threshold": ("1 of the survivors", lambda o: o.ask((1,), o.signed((1,), (1,)), (1,))),
    "survivors out of order": (
        "out of order",
        lambda o: o.ask((2, 1, 3, 4), o.signed((2, 1, 3, 4), (1, 2, 3, 4))),
    ),
    "a survivor twice": ("out of order", lambda o: o.ask((1, 2, 2), o.signed((1, 2, 2), (1, 2)), (1, 2))),
    "a foreign survivor": (
        "out of order",
        lambda o: o.ask((1, 2, 99), o.signed((1, 2, 99), (1, 2)), (1, 2)),
    ),
}


@pytest.fixture(scope="module")
def openings() -> dict[str, Opening]:
    """Rounds that are asked about in vain: what concerns consents alone costs no key."""
    return {name: Opening(name) for name in NAMES}


@both
@pytest.mark.parametrize("lie", CONSENTS)
def test_without_the_survivors_consent_nothing_is_opened(
    openings: dict[str, Opening], name: str, lie: str
) -> None:
    why, question = CONSENTS[lie]
    assert why in openings[name].refused(question(openings[name]))


@both
def test_none_of_these_refusals_has_cost_the_key(openings: dict[str, Opening], name: str) -> None:
    openings[name].still_open()


@both
def test_a_sum_is_opened_once_and_not_again_after_a_failure(name: str) -> None:
    spoilt, twice = Opening(name), Opening(name)
    garbage = bytes(spoilt.packing.packed_bytes)
    assert "BadFrame" in spoilt.refused(spoilt.ask(bulk=garbage))
    assert "no round is open" in spoilt.refused(spoilt.ask())
    twice.still_open()
    assert "no round is open" in twice.refused(twice.ask())


@both
def test_an_authority_that_kept_its_key_would_open_a_single_update(name: str) -> None:
    """The control: the difference of two sums of one round. Consents for both are in order."""
    opening = Opening(name)
    authority = opening.line.authority
    kept = authority._round
    all_of_them = opening.opened(opening.ask())
    fewer = (1, 2, 3)
    question = opening.ask(fewer, opening.signed(fewer, fewer), fewer)
    assert "no round is open" in opening.refused(question)
    authority._round = kept
    rest = opening.opened(question)
    bits = opening.packing.point.modulus_bits
    assert [(a - b) % (1 << bits) for a, b in zip(all_of_them, rest, strict=True)] == opening.lanes(4)


# Rounds ----------------------------------------------------------------------------------------------------


def begin(authority: Authority, spec: RoundSpec) -> bytes:
    return authority.receive(encode(Begin(spec, EMPTY)))


@both
def test_a_round_is_begun_once_and_never_an_earlier_one(name: str) -> None:
    round_ = round_in_hand(name)
    authority = round_.server_key.relay.__self__
    change = msgspec.structs.replace
    for number, fits in ((0, False), (3, True), (3, False), (2, False), (0, False), (4, True)):
        for spec in (change(round_.spec, round=number), change(round_.spec, round=number, model=b"m" * 32)):
            found = begin(authority, spec)
            assert (kind(found) == "homomorphic.publickey") == fits, number
            if not fits:
                assert "begun before" in decode(found, Refused).why
            fits = False  # the same number with another model is the same round


@both
def test_a_new_round_forgets_the_last_key(name: str) -> None:
    opening = Opening(name)
    authority = opening.line.authority
    assert kind(begin(authority, msgspec.structs.replace(opening.spec, round=1))) == "homomorphic.publickey"
    assert "signature" in opening.refused(opening.ask())


SPECS: dict[str, Callable[[RoundSpec, Any], RoundSpec]] = {
    "fewer clients": lambda spec, plan: msgspec.structs.replace(spec, clients=(1, 2, 3), parameters=plan(3)),
    "more clients": lambda spec, plan: msgspec.structs.replace(
        spec, clients=(1, 2, 3, 4, 5), parameters=plan(5)
    ),
    "other clients": lambda spec, plan: msgspec.structs.replace(spec, clients=(1, 2, 3, 9)),
    "clients out of order": lambda spec, plan: msgspec.structs.replace(spec, clients=(2, 1, 3, 4)),
    "a client twice": lambda spec, plan: msgspec.structs.replace(spec, clients=(1, 1, 3, 4)),
    "no clients": lambda spec, plan: msgspec.structs.replace(spec, clients=()),
    "a threshold of one": lambda spec, plan: msgspec.structs.replace(spec, threshold=1),
    "no threshold": lambda spec, plan: msgspec.structs.replace(spec, threshold=0),
    "a huge vector": lambda spec, plan: msgspec.structs.replace(spec, size=1 << 60),
    "no vector": lambda spec, plan: msgspec.structs.replace(spec, size=0),
    "no parameters": lambda spec, plan: msgspec.structs.replace(spec, parameters=b""),
    "parameters for others": lambda spec, plan: msgspec.structs.replace(spec, parameters=plan(5)),
    "symmetric parameters": lambda spec, plan: msgspec.structs.replace(
        spec, parameters=backend(spec.backend.split("-")[0]).plan(4, 2, CODING, {})
    ),
    "insecure parameters": lambda spec, plan: msgspec.structs.replace(
        spec, parameters=spec.parameters.replace((4096).to_bytes(2, "big"), (1024).to_bytes(2, "big"))
    ),
}


@both
@pytest.mark.parametrize("lie", SPECS)
def test_a_round_that_is_not_the_pinned_ones_gets_no_key(name: str, lie: str) -> None:
    round_ = round_in_hand(name)

    def plan(clients: int) -> bytes:
        return round_.backend.plan(clients, 2, CODING, {})

    spec = SPECS[lie](msgspec.structs.replace(round_.spec, round=1), plan)
    assert spec != msgspec.structs.replace(round_.spec, round=1)
    assert kind(begin(round_.server_key.relay.__self__, spec)) == "refused"


@both
@pytest.mark.parametrize("other", ["bfv", "ckks", "plain", "", "nonsense"])
def test_a_round_of_another_backend_gets_no_key(name: str, other: str) -> None:
    """With `bfv` or `ckks` what it gives away is a secret key; of the others it knows nothing."""
    round_ = round_in_hand(name)
    known = other in ("bfv", "ckks")
    parameters = backend(other).plan(4, 2, CODING, {}) if known else round_.spec.parameters
    spec = msgspec.structs.replace(round_.spec, backend=other, parameters=parameters, round=1)
    assert kind(begin(round_.server_key.relay.__self__, spec)) == "refused"


@both
def test_a_floor_is_kept(name: str) -> None:
    round_ = round_in_hand(name, 4, 3)
    authority = round_.server_key.relay.__self__
    strict = Authority(authority._identity, authority._group, authority._clients, floor=4)
    assert "below the authority's 4" in decode(begin(strict, round_.spec), Refused).why
    assert kind(begin(strict, msgspec.structs.replace(round_.spec, threshold=4))) == "homomorphic.publickey"


@both
def test_the_authority_answers_whatever_it_is_sent(name: str) -> None:
    """Bytes, frames of other kinds, and true ones cut short: `Refused`, and the round goes on."""
    opening = Opening(name)
    true = opening.ask()
    frames: list[bytes] = [b"", b"\0", b"\xc1" * 40, *opening.wire, true[:-1], true + b"\0", true[1:]]
    frames += [encode(Refused("no")), encode(Survivors((1, 2))), encode(Ready(b""))]
    for frame in frames:
        if kind_or_none(frame) != "begin":
            assert kind(opening.line(frame)) == "refused"
    opening.still_open()


def kind_or_none(frame: bytes) -> str:
    try:
        return kind(frame)
    except BadFrame:
        return ""


BULKS: dict[str, tuple[str, Callable[[Opening, bytes], bytes]]] = {
    "truncated": ("bytes where", lambda o, b: b[:-1]),
    "oversized": ("bytes where", lambda o, b: b + b"\0"),
    "empty": ("bytes where", lambda o, b: b""),
    "beyond the prime": ("below its prime", lambda o, b: b"\xff" * len(b)),
    "another's public key": ("bytes where", lambda o, b: bytes(o.key.bulk)),
    "nothing": ("BadFrame", lambda o, b: bytes(len(b))),
    "turned around": ("BadFrame", lambda o, b: b[::-1]),
}


@both
@pytest.mark.parametrize("lie", BULKS)
def test_what_is_no_sum_is_refused_by_name(name: str, lie: str) -> None:
    opening = Opening(name)
    true = summed(opening.packing, list(opening.ciphers.values()))
    why, change = BULKS[lie]
    assert why in opening.refused(opening.ask(bulk=change(opening, true)))


# Sums over others than named -------------------------------------------------------------------------------

SUMMANDS: dict[str, Ids] = {
    "one": (1,),
    "one, as often as there are survivors": (1, 1, 1, 1),
    "a subset": (1, 2, 3),
    "one twice": (1, 2, 3, 4, 4),
    "all twice": (1, 2, 3, 4, 1, 2, 3, 4),
    "one for another": (1, 2, 3, 3),
}


@both
@pytest.mark.parametrize("which", SUMMANDS)
def test_a_sum_over_others_than_named_is_refused(name: str, which: str) -> None:
    opening = Opening(name)
    assert "BadFrame" in opening.refused(opening.ask(summands=SUMMANDS[which]))


@both
def test_a_sum_over_more_than_named_is_refused(name: str) -> None:
    opening = Opening(name)
    fewer = (1, 2, 3)
    question = opening.ask(fewer, opening.signed(fewer, fewer), (1, 2, 3, 4))
    assert "said to be over" in opening.refused(question)


@both
def test_ciphertexts_of_another_round_are_in_no_sum(name: str) -> None:
    one, other = Opening(name), Opening(name)
    one.ciphers[2] = other.ciphers[2]
    assert "BadFrame" in one.refused(one.ask())


def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the check of the tags away."""
    monkeypatch.setattr(Mac, "check", lambda self, clients, tag, ciphertexts: None)


@both
def test_without_the_mac_a_single_update_would_be_opened_for_the_sum(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: consents are in order, and what is opened is one client's update."""
    unchecked(monkeypatch)
    opening = Opening(name)
    heavy = next(c for c in opening.survivors if opening.round.updates[c].weight >= 4)
    assert opening.opened(opening.ask(summands=(heavy,))) == opening.lanes(heavy)


TAGS: dict[str, Callable[[Opening], tuple[int, ...]]] = {
    "none": lambda o: (),
    "zeros": lambda o: (0,) * 4,
    "one client's": lambda o: o.tags[1],
    "one too few": lambda o: tags_summed(o.packing, [o.tags[c] for c in (1, 2, 3)]),
    "beyond the prime": lambda o: (o.packing.lattice.prime,) * 4,
    "huge": lambda o: ((1 << 64) - 1,) * 4,
    "negative": lambda o: (-1, 0, 0, 0),
    "long": lambda o: (*o.tags[1], 0),
}


@both
@pytest.mark.parametrize("lie", TAGS)
def test_a_tag_that_is_not_the_sum_of_the_survivors_is_refused(name: str, lie: str) -> None:
    opening = Opening(name)
    assert "BadFrame" in opening.refused(opening.ask(tag=TAGS[lie](opening)))


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("name", "change"),
    [("bfv-authority", shifted), ("ckks-authority", shifted), ("bfv-authority", with_the_key)],
)
def test_a_sum_that_somebody_has_added_to_is_refused(
    name: str, change: Callable[..., Change], checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`with_the_key`: what the authority then says would hold a slot of its secret key."""
    if not checked:
        unchecked(monkeypatch)
    opening = Opening(name)
    lattice = opening.packing.lattice
    changing = change(lattice, 5, 1000) if change is shifted else change(lattice, 5)
    true = summed(opening.packing, list(opening.ciphers.values()))
    answer = opening.line(opening.ask(bulk=changed(opening.packing, true, changing)))
    assert kind(answer) == ("refused" if checked else "sealed")


@both
def test_with_one_clients_help_the_server_has_another_ones_update_opened(name: str) -> None:
    """What the MAC does not prevent: who knows its common key knows all pads, and makes a tag for anything.

    The accomplice is client 2; opened is what client 1 sent, its weight raised by a known number so that it
    may be the sum of four.
    """
    opening = Opening(name)
    packing, lattice, everyone = opening.packing, opening.packing.lattice, opening.survivors
    accomplice = opening.round.client_keys[2]
    context = mac_context(opening.spec.context(), opening.key.bulk)
    mac = Mac(lattice, context, accomplice.group, {})

    def product(bulk: bytes | memoryview) -> tuple[int, ...]:
        return tuple(mac._products(rounds.ciphertexts_of(packing, bulk)))

    heavier = in_clear(lattice, one_slot(lattice, 0, 10))
    single = changed(packing, opening.ciphers[1], lambda words: plus(lattice, words, heavier))
    tag = product(single)
    for client in everyone:
        pad = zip(opening.tags[client], product(opening.ciphers[client]), strict=True)
        tag = tuple((a + b - c) % lattice.prime for a, (b, c) in zip(tag, pad, strict=True))
    found = opening.opened(opening.ask(tag=tag, bulk=single))
    found[0] -= 10
    assert found == opening.lanes(1)


# Small coefficients, found with LLL: 1 in the slots `ONES`, 0 in slot `LANE`. For 8 clients of 24 bits.
LANE = 5
ONES = (4093, 4094, 4095)
SELECTING = (
    1, 0, -2, 0, 1, -3, -2, -1, -3, 1, 1, 0, 1, -2, -2, -3, -2, -1, -1, -2, -1, -2, 1, 1, -1, 0, 2, -1, 2,
    1, 1, -2, 0, -1, 0, 0, -1, -1, -3, 3, 2, 0, 0, -1, 1, 0, 0, 0, -1, 0, 0, -1, 0, -1, 0, 0, 1,
)  # fmt: skip


def selected() -> Opening:
    """Clients 1 and 2 of 8, the second one's ciphertext multiplied."""
    opening = Opening("bfv-authority", 8, lost=(3, 4, 5, 6, 7, 8), coding=Coding(64.0, 24, 10))
    multiply = times(opening.packing.lattice, SELECTING)
    opening.ciphers[2] = memoryview(changed(opening.packing, opening.ciphers[2], multiply))
    return opening


@pytest.mark.parametrize("checked", [True, False])
def test_one_clients_number_is_not_opened_for_the_sum(checked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ciphertexts can be multiplied with polynomials too: here by 0 in one slot, for one of two clients.

    In three more slots it is 1: there, any check of single slots sees the true sum. The coefficients are so
    small that what is multiplied still decrypts.
    """
    if not checked:
        unchecked(monkeypatch)
    opening = selected()
    lattice, modulus = opening.packing.lattice, opening.packing.lattice.plain
    for slot in (LANE, *ONES):
        assert evaluated(SELECTING, root_of(lattice, slot), modulus) == (slot in ONES)
    answer = opening.line(opening.ask())
    assert kind(answer) == "refused"
    if not checked:  # and it would be: see what it decrypts to
        assert "beyond what" in decode(answer, Refused).why or "weight" in decode(answer, Refused).why
        key = opening.key_for_the_test
        total = summed(opening.packing, list(opening.ciphers.values()))
        slots = key.decrypt(next(rounds.ciphertexts_of(opening.packing, total)))
        assert int(slots[LANE]) % (1 << lattice.lane_bits) == opening.lanes(1)[LANE]


# What a client takes, and what the server gets -----------------------------------------------------------


@both
def test_a_client_encrypts_under_the_authoritys_key_for_this_round_alone(name: str) -> None:
    round_, other = round_in_hand(name), round_in_hand(name, seed=1)
    lattice, context = rounds.packing_of(round_.spec).lattice, round_.spec.context()
    client = round_.clients[2]
    client.receive(round_.opening()[2])
    key: PublicKey = round_.server.state.key
    mine = Key.generate(lattice).export()
    later = msgspec.structs.replace(round_.spec, round=1)
    next_key = decode(begin(round_.server_key.relay.__self__, later), PublicKey)
    beyond = bytes(b"\xff" * len(key.bulk))
    identity = round_.server_key.relay.__self__._identity
    lies = {
        "the server's own": PublicKey(key.signature, memoryview(mine)),
        "signed by a client": PublicKey(
            sign(round_.client_keys[1].identity, key_bytes(context, mine)), memoryview(mine)
        ),
        "of another authority": other.server.state.key,
        "of the next round": next_key,
        "flipped": PublicKey(key.signature, memoryview(bytes(key.bulk[:-1]) + bytes([key.bulk[-1] ^ 1]))),
        "truncated": PublicKey(key.signature, key.bulk[:-1]),
        "no signature": PublicKey(b"", key.bulk),
        "a consent for one": PublicKey(sign(identity, survivor_bytes(context, (1, 2))), key.bulk),
        "signed, and beyond its primes": PublicKey(
            sign(identity, key_bytes(context, beyond)), memoryview(beyond)
        ),
        "signed, and short": PublicKey(sign(identity, key_bytes(context, b"key")), memoryview(b"key")),
    }
    before = client.save()
    for what, lie in lies.items():
        with pytest.raises(BadFrame):
            client.receive(encode(lie))
        assert client.save() == before, what
    assert kind(client.receive(encode(key))) == "homomorphic.cipher"
    with pytest.raises(WrongPhase):
        client.receive(encode(key))


@both
def test_a_client_consents_once_and_to_no_set_that_isolates_it(name: str) -> None:
    round_ = round_in_hand(name, 4, 3)
    outbox = round_.opening()
    for _ in range(2):
        outbox = dict(round_.server.turn([(c, round_.clients[c].receive(f)) for c, f in outbox.items()]))
    client = round_.clients[1]
    refusals: dict[Ids, type[RemoteProtocolError]] = {
        (1, 2): PolicyRefused,
        (1,): PolicyRefused,
        (): BadFrame,
        (2, 3, 4): BadFrame,
        (1, 1, 2, 3): BadFrame,
        (3, 2, 1): BadFrame,
        (1, 2, 99): BadFrame,
        (1, 2, (1 << 64) - 1): BadFrame,
        (-1, 1, 2): BadFrame,
    }
    for survivors, error in refusals.items():
        with pytest.raises(error):
            client.receive(encode(Survivors(survivors)))
    assert kind(client.receive(encode(Survivors((1, 2, 3))))) == "homomorphic.consent"
    with pytest.raises(WrongPhase):
        client.receive(encode(Survivors((1, 2, 3, 4))))


@both
def test_a_bad_ciphertext_or_consent_costs_its_sender(name: str) -> None:
    round_ = round_in_hand(name, 5, 2)
    outbox = round_.opening()
    outbox = dict(round_.server.turn([(c, round_.clients[c].receive(f)) for c, f in outbox.items()]))
    ciphers = {c: decode(round_.clients[c].receive(f), Cipher) for c, f in outbox.items()}
    ciphers[1] = msgspec.structs.replace(ciphers[1], bulk=ciphers[1].bulk[:-1])
    ciphers[2] = msgspec.structs.replace(ciphers[2], context=bytes(32))
    outbox = dict(round_.server.turn([(c, encode(m)) for c, m in ciphers.items()]))
    assert set(outbox) == {3, 4, 5}
    consents = {c: round_.clients[c].receive(f) for c, f in outbox.items()}
    consents[3] = encode(Consent(decode(consents[4], Consent).signature))
    round_.server.turn(list(consents.items()))
    assert round_.server.sealed is not None
    assert round_.server.sealed.survivors == (3, 4, 5)
    assert round_.server.dropped == {1: "contribute", 2: "contribute", 3: "consent"}
    assert [c for c, _ in round_.server.faults] == [1, 2, 3]
    found = round_.backend.open(round_.spec, round_.server.sealed, None)
    assert found.weight == sum(round_.updates[c].weight for c in (3, 4, 5))


@both
def test_a_clients_garbage_costs_the_round_by_name(name: str) -> None:
    """In range, and of nothing: the authority opens no wrong sum, and the next round has a new key."""
    round_ = round_in_hand(name)
    outbox = round_.opening()
    outbox = dict(round_.server.turn([(c, round_.clients[c].receive(f)) for c, f in outbox.items()]))
    ciphers = {c: decode(round_.clients[c].receive(f), Cipher) for c, f in outbox.items()}
    packing = rounds.packing_of(round_.spec)
    words = np.random.default_rng(0).integers(0, packing.lattice.prime, packing.lattice.words, np.uint64)
    lie = changed(packing, ciphers[3].bulk, lambda _: words)
    ciphers[3] = msgspec.structs.replace(ciphers[3], bulk=memoryview(lie))
    outbox = dict(round_.server.turn([(c, encode(m)) for c, m in ciphers.items()]))
    consents = [(c, round_.clients[c].receive(f)) for c, f in outbox.items()]
    with pytest.raises(BadFrame, match="the third party refuses: BadFrame"):
        round_.server.turn(consents)
    assert round_.server.sealed is None
    later = msgspec.structs.replace(round_.spec, round=1)
    assert round_.backend.server_state(later, round_.server_key).key != round_.server.state.key


class Imposter:
    """An authority that answers with other things than sums."""

    def __init__(self, true: Tapped, answer: Callable[[Sealed], bytes]) -> None:
        self.true, self.answer = true, answer

    def __call__(self, frame: bytes) -> bytes:
        found = self.true(frame)
        return self.answer(decode(found, Sealed)) if kind(found) == "sealed" else found


@both
@pytest.mark.parametrize(
    "answer",
    [
        lambda sealed: b"",
        lambda sealed: encode(Refused("no")),
        lambda sealed: encode(Sealed((1, 2), sealed.bulk)),
        lambda sealed: encode(Sealed(sealed.survivors, sealed.bulk[:-1])),
        lambda sealed: encode(Ready(b"")),
    ],
    ids=["nothing", "a refusal", "other survivors", "a short sum", "another message"],
)
def test_an_answer_of_the_authoritys_that_is_no_sum_fails_the_round(
    name: str, answer: Callable[[Sealed], bytes]
) -> None:
    opening = Opening(name)
    server = opening.round.server
    line = copy.copy(server.state.line)
    object.__setattr__(line, "relay", Imposter(opening.line, answer))
    server.state.line = line
    with pytest.raises((RemoteProtocolError, TooFewClients)):
        server.turn([(c, encode(Consent(signature))) for c, signature in opening.consents.items()])
        opening.round.backend.open(opening.spec, server.sealed, None)  # type: ignore[arg-type]


@both
def test_no_secret_key_is_in_any_frame_and_what_the_server_has_decrypts_nothing(name: str) -> None:
    opening = Opening(name)
    lattice, authority = opening.packing.lattice, opening.line.authority
    assert authority._round is not None
    key = authority._round[1]
    secret = key._context.serialize(
        save_public_key=False, save_secret_key=True, save_galois_keys=False, save_relin_keys=False
    )
    assert key.can_decrypt
    total = summed(opening.packing, list(opening.ciphers.values()))
    opening.still_open()
    wire = b"".join([*opening.wire, *opening.line.seen])
    coefficients = secret_coefficients(lattice, secret)
    assert len(set(coefficients)) > 4000, "there is something to look for"
    words = {int(word).to_bytes(8, "little") for word in coefficients}
    packed = pack_words(coefficients, max(lattice.primes))
    seen = {bytes(wire[at : at + 8]) for at in range(len(wire) - 7)}
    assert not words & seen
    assert not {packed[at : at + 8] for at in range(0, 4 * coefficients.size - 8, 8)} & seen
    assert {bytes(opening.key.bulk[at : at + 8]) for at in range(0, 4096, 8)} <= seen, (
        "it finds the public one"
    )
    for held in (authority._identity, *(each.shared for each in authority._clients.values())):
        assert held not in wire
    for keyring in opening.round.client_keys.values():
        assert keyring.identity not in wire
        assert keyring.shared not in wire
        assert keyring.group not in wire
    public = Key.load(lattice, opening.key.bulk)
    assert not public.can_decrypt
    with pytest.raises(ValueError, match="secret_key"):
        public.decrypt(next(rounds.ciphertexts_of(opening.packing, total)))


def secret_coefficients(lattice: Any, serialised: bytes) -> Any:
    """A secret key's coefficients, in SEAL's number-theoretic form, from TenSEAL's own file."""
    from privfr.backends.homomorphic.lattice import _coefficients, _fields, _named

    part = dict(_named(_fields(serialised)))[3]
    count = _key_moduli(msgspec.structs.replace(lattice, symmetric=True)).size
    return _coefficients(dict(_named(_fields(part)))[1], count)


@both
def test_updates_are_in_no_frame(name: str) -> None:
    rng = np.random.default_rng(5)
    updates = {
        c: Update(rng.normal(size=400).astype(np.float32), 7.0, {"loss": 0.5, "accuracy": 0.5})
        for c in (1, 2, 3)
    }
    found = backend(name)
    round_ = RoundInHand(found, spec_of(found, updates, size=400), updates)
    point = rounds.packing_of(round_.spec).point
    wire, outbox = b"", round_.opening()
    for _ in found.server_steps:
        answers = {c: round_.clients[c].receive(f) for c, f in outbox.items()}
        wire += b"".join([*outbox.values(), *answers.values()])
        outbox = dict(round_.server.turn(list(answers.items())))
    for client, update in updates.items():
        lanes = point.encode(update, InsecureEntropy(0)).astype("<u4").tobytes()
        for secret in (update.vector.tobytes(), (update.vector * 7).tobytes(), lanes):
            assert not [at for at in range(0, len(secret) - 8, 8) if secret[at : at + 8] in wire], client
