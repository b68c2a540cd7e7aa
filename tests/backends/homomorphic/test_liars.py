"""Backends `bfv` and `ckks`: what the server sees, and what it, a client or a maker of keys gains by lying.

An attack is first shown to work, or its telltale to be found, where the defence is taken away.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from forging import changed, shifted, summed, tags_summed, with_the_key
from hypothesis import given, settings
from hypothesis import strategies as st
from insecure import (
    METRICS,
    SIZE,
    Federation,
    InsecureEntropy,
    RoundInHand,
    federation,
    spec_of,
    whole_update,
)
from numpy.typing import NDArray

from privfr.backends import backend
from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.clients import MODEL_PURPOSE, PURPOSE, Keyring, makers
from privfr.backends.homomorphic.lattice import Key, _key_moduli, pack_words
from privfr.backends.homomorphic.mac import Mac
from privfr.backends.homomorphic.messages import Bundle, Chosen, Cipher, Offer
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.homomorphic.sealing import BOX_BYTES, open_from, seal_to, subkey
from privfr.errors import BadFrame, PolicyRefused, RemoteProtocolError, TooFewClients, WrongPhase
from privfr.federation import Handed, HandedOver, HandOver, RoundReport, run_round
from privfr.protocol import Ack, Begin, ClientId, Result, Sealed
from privfr.vector import Aggregate, Update, digest
from privfr.wire import Message, decode, encode, kind

EMPTY = memoryview(b"")
Id = ClientId
Frames = dict[ClientId, bytes]

both = pytest.mark.parametrize("name", ["bfv", "ckks"])


class Played(RoundInHand):
    """A round up to some point, with all that was said in it."""

    def offers(self) -> dict[Id, Offer]:
        """Have everybody answer the opening, and pass one key on."""
        answers = {c: self.clients[c].receive(frame) for c, frame in self.opening().items()}
        self.chosen = {c: decode(f, Chosen) for c, f in self.server.turn(list(answers.items())).items()}
        return {c: decode(frame, Offer) for c, frame in answers.items()}

    def ciphers(self) -> dict[Id, Cipher]:
        """Have everybody encrypt."""
        return {c: decode(self.clients[c].receive(encode(m)), Cipher) for c, m in self.chosen.items()}

    @property
    def packing(self) -> Packing:
        return rounds.packing_of(self.spec)

    def open(self, sealed: Sealed, who: Id = 1) -> Aggregate:
        return self.backend.open(self.spec, sealed, self.client_keys[who])

    def secret(self, offer: Offer, maker: Id, who: Id = 1) -> tuple[bytes, bytes]:
        """What a client finds in its box: the round's secret, and the key."""
        box = offer.boxes[self.spec.clients.index(who)]
        return open_from(self.client_keys[who], maker, PURPOSE, self.spec.context(), box, offer.bulk)


def played(name: str, n: int = 4, threshold: int = 2, seed: int = 0, **changes: Any) -> Played:
    found = backend(name)
    updates = {c: whole_update(seed, c, size=changes.get("size", SIZE)) for c in range(1, n + 1)}
    return Played(found, spec_of(found, updates, threshold, **changes), updates, seed)


def sealed_with(sealed: Sealed, survivors: tuple[Id, ...] | None = None, **fields: Any) -> Sealed:
    """A round's end with other survivors, or other fields of its bundle."""
    bundle = msgspec.structs.replace(decode(sealed.bulk, Bundle), **fields)
    return Sealed(sealed.survivors if survivors is None else survivors, memoryview(encode(bundle)))


# What leaves a client, and what the server has --------------------------------------------------------------

LENGTH = 400


def windows(data: bytes) -> NDArray[np.uint64]:
    """Every 8 bytes in a row."""
    cut = [np.frombuffer(data[at : at + (len(data) - at) // 8 * 8], "<u8") for at in range(8)]
    return np.unique(np.concatenate(cut))


def found_in(secret: bytes, seen: NDArray[np.uint64]) -> int:
    """How many of a secret's eights of bytes are there to be seen. Runs of one byte are no secret."""
    eights = np.unique(np.frombuffer(secret[: len(secret) // 8 * 8], "<u8"))
    plain = eights % 255 == 0  # 00..00, ff..ff and little besides
    eights = eights[~plain]
    at = np.minimum(np.searchsorted(seen, eights), seen.size - 1)
    return int((seen[at] == eights).sum())


def telltales(update: Update) -> bytes:
    floats = [update.vector.astype(form).tobytes() for form in ("<f4", "<f8", ">f4", ">f8")]
    weighted = update.summand(METRICS)
    return b"".join([*floats, weighted[1 + len(METRICS) :].tobytes()])


def telltale_updates(n: int = 4) -> dict[Id, Update]:
    rng = np.random.default_rng(11)
    return {
        c: Update(rng.normal(size=LENGTH).astype(np.float32), 7.0, dict.fromkeys(METRICS, 0.5))
        for c in range(1, n + 1)
    }


def telltale_round(name: str) -> Played:
    updates = telltale_updates()
    return Played(backend(name), spec_of(backend(name), updates, size=LENGTH), updates)


def wire_and_secrets(name: str) -> tuple[Played, list[bytes], dict[str, bytes]]:
    """Every frame of a round, to the server and from it, and all that must not be in them."""
    round_ = telltale_round(name)
    opening = round_.opening()
    lanes = {c: round_.clients[c]._state.summand for c in round_.clients}  # type: ignore[attr-defined]
    offers = round_.offers()
    ciphers = round_.ciphers()
    down = round_.server.turn([(c, encode(m)) for c, m in ciphers.items()])
    assert not down
    assert round_.server.sealed is not None
    told: list[Message] = [*offers.values(), *round_.chosen.values(), *ciphers.values(), round_.server.sealed]
    secrets = {f"lanes {c}": found for c, found in lanes.items()}
    secrets |= {f"update {c}": telltales(update) for c, update in round_.updates.items()}
    secrets |= {f"box key {c}": key.secret for c, key in round_.client_keys.items()}
    for maker in makers(round_.spec):
        secret, exported = round_.secret(offers[maker], maker)
        words = rounds.packing_of(round_.spec).lattice
        key = Key.load(words, exported)._serialised()
        pads = dict.fromkeys(round_.spec.clients, subkey(secret, b"pads"))
        mac = Mac(words, round_.spec.context(), subkey(secret, b"mac"), pads)
        secrets |= {f"key {maker}": exported, f"TenSEAL's file of key {maker}": key[-20_000:]}
        secrets |= {f"secret {maker}": secret, f"bulk key {maker}": subkey(secret, b"bulk")}
        secrets |= {f"tag key {maker}": subkey(secret, b"mac"), f"pad key {maker}": pads[1]}
        for client in round_.spec.clients:
            # As 8 bytes each, low end first or last: an integer in a frame is written the second way.
            pad = mac._pad(client)
            for order in ("little", "big"):
                secrets[f"pads {maker} {client} {order}"] = b"".join(n.to_bytes(8, order) for n in pad)
    return round_, [*opening.values(), *map(encode, told)], secrets


@both
def test_no_secret_is_in_any_frame(name: str) -> None:
    _, wire, secrets = wire_and_secrets(name)
    seen = windows(b"".join(wire))
    assert len(secrets) >= 3 * 5 + 4 * 3
    assert {what: found_in(secret, seen) for what, secret in secrets.items() if found_in(secret, seen)} == {}


@both
def test_the_same_search_finds_each_secret_where_it_is(name: str) -> None:
    """The search can find something: all of it, in the very bytes that are sealed and encrypted."""
    _, _, secrets = wire_and_secrets(name)
    for what, secret in secrets.items():
        eights = np.unique(np.frombuffer(secret[: len(secret) // 8 * 8], "<u8"))
        found = found_in(secret, windows(b"?" + secret))
        assert found >= 0.9 * eights.size, what
        assert found >= 4, what


def test_the_same_search_finds_the_update_in_a_plain_round() -> None:
    updates = telltale_updates()
    round_ = RoundInHand(backend("plain"), spec_of(backend("plain"), updates, size=LENGTH), updates)
    wire = [round_.clients[c].receive(frame) for c, frame in round_.opening().items()]
    assert found_in(telltales(updates[1]), windows(b"".join(wire))) >= LENGTH // 2 - 1


def reachable(*holders: object) -> list[object]:
    """All that somebody holds: what its objects refer to, types, functions and modules left out."""
    seen: dict[int, object] = {}
    left: list[object] = list(holders)
    while left:
        each = left.pop()
        boring = isinstance(each, type) or callable(each) or type(each).__name__ == "module"
        if id(each) not in seen and not boring:
            seen[id(each)] = each
            left += gc.get_referents(each)
            left += list(getattr(each, "__dict__", {}).values())
    return list(seen.values())


def keys_among(found: Iterable[object]) -> list[object]:
    return [each for each in found if isinstance(each, Key | Keyring | Mac) or "tenseal" in repr(type(each))]


@both
def test_the_server_holds_no_key_and_no_context(name: str) -> None:
    """Neither a secret key nor a public one: a server that only adds needs neither."""
    played_ = federation(name)
    coordinator = played_.coordinator
    outbox, found = coordinator.open(), set[str]()
    while outbox:
        outbox = coordinator.turn(played_.exchange(outbox))
        held = reachable(coordinator.__dict__, outbox)
        assert keys_among(held) == []
        found |= {type(each).__name__ for each in held}
    assert {"Offer", "ndarray", "ServerSession", "ServerState"} <= found, "it looks inside"
    assert coordinator.keyring is None
    assert coordinator.model is None
    assert not coordinator.report.failed
    assert keys_among(reachable(played_.members[1].__dict__)), "the search finds a member's"


@both
def test_nothing_that_passed_through_the_server_opens_the_sum(name: str) -> None:
    round_, wire, secrets = wire_and_secrets(name)
    sealed, packing = round_.server.sealed, round_.packing
    assert sealed is not None
    with pytest.raises(BadFrame, match="only the clients"):
        round_.backend.open(round_.spec, sealed, None)
    lattice, bundle = packing.lattice, decode(sealed.bulk, Bundle)
    moduli = _key_moduli(lattice)
    tried = 0
    for data in (bytes(bundle.key), bytes(bundle.bulk), *wire):
        for cut in (data, data[-lattice.key_bytes :], data[40:], data[: lattice.key_bytes]):
            with pytest.raises(BadFrame):
                Key.load(lattice, cut)
        # Even as if it had been a key all along.
        words = np.resize(np.frombuffer(data[: len(data) // 8 * 8], "<u8"), moduli.size) % moduli
        guess = Key.load(lattice, pack_words(words, max(lattice.primes)))
        try:
            slots = guess.decrypt(next(rounds.ciphertexts_of(packing, bundle.bulk)))
        except BadFrame:
            continue
        tried += 1
        lanes = packing._apart(slots) if np.abs(slots).max() < 1 << 40 else slots
        truth = sum(
            packing.point.encode(u, InsecureEntropy(0)).astype(np.int64) for u in round_.updates.values()
        )
        assert (lanes[:LENGTH] & packing._mask == truth[:LENGTH] & packing._mask).mean() < 0.05
    assert tried or name == "ckks"
    true = Key.load(lattice, secrets[f"key {bundle.maker}"])
    assert true.can_decrypt
    assert true.decrypt(next(rounds.ciphertexts_of(packing, bundle.bulk))).any(), "the true key opens it"


def test_what_ckks_gives_out_are_whole_numbers_and_no_noise() -> None:
    """IND-CPA-D (Li and Micciancio 2021): decryptions of other noise are the same, to the bit."""
    lattice = rounds.packing_of(spec_of(backend("ckks"), range(1, 5))).lattice
    key = Key.generate(lattice)
    slots = np.random.default_rng(1).integers(-(2**20), 2**20, lattice.slots)
    one, other = key.encrypt(slots), key.encrypt(slots)
    assert (one != other).mean() > 0.99
    for words in (one, other):
        found = key.decrypt(words)
        assert found.dtype == np.int64
        assert found.tolist() == slots.tolist()
    # Between two whole numbers nothing is said, not even which is the nearer one.
    half = np.uint64(lattice.plain // 2)
    one[: lattice.degree] = (one[: lattice.degree] + half) % np.uint64(
        lattice.prime
    )  # half a unit in each slot
    with pytest.raises(BadFrame, match="whole numbers"):
        key.decrypt(one)


# Clients that lie -------------------------------------------------------------------------------------------


def ending(round_: Played, inbox: Iterable[tuple[Id, bytes]]) -> tuple[Sealed, str]:
    """End a round; the sum must be that of its survivors. Gives it, and what the server found wrong."""
    round_.server.turn(list(inbox))
    sealed = round_.server.sealed
    assert sealed is not None
    found = round_.open(sealed)
    assert found.weight == sum(round_.updates[c].weight for c in sealed.survivors)
    return sealed, " ".join(text for _, text in round_.server.faults)


def beyond_the_prime(packing: Packing, cipher: Cipher) -> bytes:
    """The first coefficient as large as its 32 low and its high bits can say."""
    words, bits = packing.lattice.words, packing.lattice.primes[0]
    data = bytearray(cipher.bulk)
    data[:4] = b"\xff" * 4
    data[4 * words] = 0xFF
    if bits - 32 > 8:
        data[4 * words : 4 * words + (bits - 32) // 8 + 1] = b"\xff" * ((bits - 32) // 8 + 1)
    return bytes(data)


with_ = msgspec.structs.replace

CIPHER_LIES: dict[str, tuple[str, Callable[[Played, Cipher], Any]]] = {
    "truncated": ("bytes where", lambda r, c: with_(c, bulk=c.bulk[:-1])),
    "empty": ("bytes where", lambda r, c: with_(c, bulk=EMPTY)),
    "a byte longer": ("bytes where", lambda r, c: with_(c, bulk=memoryview(bytes(c.bulk) + b"\0"))),
    "oversized": ("TooLarge", lambda r, c: with_(c, bulk=memoryview(bytes(c.bulk) * 2))),
    "beyond the prime": ("prime", lambda r, c: with_(c, bulk=memoryview(beyond_the_prime(r.packing, c)))),
    "another context": ("WrongPhase", lambda r, c: with_(c, context=bytes(32))),
    "no context": ("WrongPhase", lambda r, c: with_(c, context=b"")),
    "another round": (
        "WrongPhase",
        lambda r, c: with_(c, context=with_(r.spec, round=1).context()),
    ),
    "no tag": ("not a tag", lambda r, c: with_(c, tag=())),
    "a short tag": ("not a tag", lambda r, c: with_(c, tag=c.tag[1:])),
    "a long tag": ("not a tag", lambda r, c: with_(c, tag=(*c.tag, 0))),
    "a huge tag": ("not a tag", lambda r, c: with_(c, tag=((1 << 64) - 1, *c.tag[1:]))),
    "a tag of the prime": ("not a tag", lambda r, c: with_(c, tag=(r.packing.lattice.prime, *c.tag[1:]))),
    "a negative tag": ("not a tag", lambda r, c: with_(c, tag=(-1, *c.tag[1:]))),
    "another phase": ("WrongPhase", lambda r, c: Offer(c.context, (), c.bulk)),
}


@both
@pytest.mark.parametrize("lie", CIPHER_LIES)
def test_a_ciphertext_that_cannot_be_costs_its_sender(name: str, lie: str) -> None:
    round_ = played(name)
    round_.offers()
    ciphers = round_.ciphers()
    why, change = CIPHER_LIES[lie]
    inbox = [(c, encode(change(round_, m) if c == 2 else m)) for c, m in ciphers.items()]
    sealed, faults = ending(round_, inbox)
    assert sealed.survivors == (1, 3, 4)
    assert round_.server.dropped == {2: "contribute"}
    assert [client for client, _ in round_.server.faults] == [2]
    assert why in faults


@both
def test_bytes_that_are_no_message_cost_their_sender(name: str) -> None:
    round_ = played(name)
    round_.offers()
    ciphers = round_.ciphers()
    bad = {1: b"", 2: encode(ciphers[2])[:-1], 3: b"\x93" + encode(ciphers[3])[1:] + b"\0"}
    for client, frame in bad.items():
        assert not round_.server.absorb(client, frame)
    assert not round_.server.absorb(99, encode(ciphers[4]))
    assert round_.server.absorb(4, encode(ciphers[4]))
    with pytest.raises(TooFewClients):
        round_.server.close()
    assert {c for c, _ in round_.server.faults} == {1, 2, 3, 99}


OFFER_LIES: dict[str, Callable[[Offer], Offer]] = {
    "a box too few": lambda o: msgspec.structs.replace(o, boxes=o.boxes[1:]),
    "a box too many": lambda o: msgspec.structs.replace(o, boxes=(*o.boxes, o.boxes[0])),
    "a box too long": lambda o: msgspec.structs.replace(o, boxes=(o.boxes[0] + b"\0", *o.boxes[1:])),
    "no key": lambda o: msgspec.structs.replace(o, boxes=(), bulk=EMPTY),
    "a short key": lambda o: msgspec.structs.replace(o, bulk=o.bulk[1:]),
    "another context": lambda o: msgspec.structs.replace(o, context=bytes(32)),
}


@both
@pytest.mark.parametrize("lie", OFFER_LIES)
def test_an_offer_that_cannot_be_costs_its_maker_and_the_next_ones_key_is_taken(name: str, lie: str) -> None:
    round_ = played(name)
    first, second, *_ = makers(round_.spec)
    answers = {c: round_.clients[c].receive(frame) for c, frame in round_.opening().items()}
    answers[first] = encode(OFFER_LIES[lie](decode(answers[first], Offer)))
    round_.chosen = {c: decode(f, Chosen) for c, f in round_.server.turn(list(answers.items())).items()}
    assert {m.maker for m in round_.chosen.values()} == {second}
    sealed, _ = ending(round_, [(c, encode(m)) for c, m in round_.ciphers().items()])
    assert first not in sealed.survivors
    assert [c for c, _ in round_.server.faults] == [first]


def test_who_is_to_make_no_key_cannot_offer_one() -> None:
    round_ = played("bfv")
    outsider = next(c for c in round_.spec.clients if c not in makers(round_.spec))
    keys = round_.client_keys[outsider]
    context, lattice = round_.spec.context(), round_.packing.lattice
    key = Key.generate(lattice).export()
    boxes, bulk = seal_to(keys, round_.spec.clients, PURPOSE, context, key, InsecureEntropy(9))
    offer = Offer(context, boxes, memoryview(bulk))
    assert not round_.server.absorb(outsider, encode(offer))
    # Nor do clients take it from a server that passes it on all the same.
    for client in round_.spec.clients:
        session = round_.clients[client]
        session.receive(round_.opening()[client])
        box = boxes[round_.spec.clients.index(client)]
        with pytest.raises(BadFrame, match="to make none"):
            session.receive(encode(Chosen(outsider, box, memoryview(bulk))))


WEIRD_KEYS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda moduli: np.zeros(moduli.size, np.uint64),
    "the largest": lambda moduli: moduli - np.uint64(1),
    "random": lambda moduli: np.random.default_rng(0).integers(0, 2**62, moduli.size, np.uint64) % moduli,
}


@both
@pytest.mark.parametrize("which", WEIRD_KEYS)
def test_a_maker_of_a_key_that_is_none_can_spoil_a_round_and_crash_nobody(name: str, which: str) -> None:
    round_ = played(name)
    maker, moduli = makers(round_.spec)[0], _key_moduli(round_.packing.lattice)
    key = pack_words(WEIRD_KEYS[which](moduli), max(round_.packing.lattice.primes))
    boxes, bulk = seal_to(
        round_.client_keys[maker],
        round_.spec.clients,
        PURPOSE,
        round_.spec.context(),
        key,
        InsecureEntropy(1),
    )
    answers = {c: round_.clients[c].receive(frame) for c, frame in round_.opening().items()}
    answers[maker] = encode(Offer(round_.spec.context(), boxes, memoryview(bulk)))
    round_.chosen = {c: decode(f, Chosen) for c, f in round_.server.turn(list(answers.items())).items()}
    round_.server.turn([(c, encode(m)) for c, m in round_.ciphers().items()])
    assert round_.server.sealed is not None
    try:
        found = round_.open(round_.server.sealed)
    except BadFrame:
        return
    assert found.weight == sum(update.weight for update in round_.updates.values())


@both
def test_a_key_with_a_coefficient_beyond_its_prime_is_refused_by_name(name: str) -> None:
    round_ = played(name)
    lattice, maker = round_.packing.lattice, makers(round_.spec)[0]
    words = np.full(_key_moduli(lattice).size, (1 << max(lattice.primes)) - 1, np.uint64)
    key, context = pack_words(words, max(lattice.primes)), round_.spec.context()
    boxes, bulk = seal_to(
        round_.client_keys[maker], round_.spec.clients, PURPOSE, context, key, InsecureEntropy(1)
    )
    for client in round_.spec.clients:
        round_.clients[client].receive(round_.opening()[client])
        chosen = Chosen(maker, boxes[round_.spec.clients.index(client)], memoryview(bulk))
        with pytest.raises(BadFrame, match="below its prime"):
            round_.clients[client].receive(encode(chosen))


@both
def test_a_maker_can_leave_clients_out_but_never_go_below_the_threshold(name: str) -> None:
    """A box that does not open costs its recipient the round: a maker chooses with whom it is summed."""
    round_ = played(name, 5, 3)
    maker = makers(round_.spec)[0]
    answers = {c: round_.clients[c].receive(frame) for c, frame in round_.opening().items()}
    offer = decode(answers[maker], Offer)

    def spoilt(clients: set[Id]) -> bytes:
        boxes = tuple(
            bytes(BOX_BYTES) if c in clients else box
            for c, box in zip(round_.spec.clients, offer.boxes, strict=True)
        )
        return encode(msgspec.structs.replace(offer, boxes=boxes))

    answers[maker] = spoilt({4, 5})
    round_.chosen = {c: decode(f, Chosen) for c, f in round_.server.turn(list(answers.items())).items()}
    said = {}
    for client, message in round_.chosen.items():
        if client in (4, 5):
            with pytest.raises(BadFrame, match="does not open"):
                round_.clients[client].receive(encode(message))
        else:
            said[client] = round_.clients[client].receive(encode(message))
    sealed, _ = ending(round_, said.items())
    assert sealed.survivors == (1, 2, 3)
    played_ = federation(name, 5, 3)
    told = decode(results(played_)[1], Result)
    few = Sealed((1, 2), decode(told.bulk, Sealed).bulk)
    with pytest.raises(PolicyRefused, match="fewer than the threshold"):
        played_.members[1].receive(encode(Result(told.context, memoryview(encode(few)))))


# A server that lies to clients ------------------------------------------------------------------------------


def refuses(round_: Played, client: Id, message: Chosen) -> str:
    """Why a client does not encrypt under a key; nothing about it may have changed."""
    session = round_.clients[client]
    before = session.save()
    with pytest.raises(BadFrame) as caught:
        session.receive(encode(message))
    assert session.save() == before
    return str(caught.value)


@both
def test_a_client_takes_no_key_but_one_made_for_it_in_this_round(name: str) -> None:
    round_, other = played(name), played(name, round=1)
    offers = round_.offers()
    elsewhere = {c: other.session(c) for c in other.spec.clients}
    theirs = {c: decode(elsewhere[c].receive(f), Offer) for c, f in other.opening().items()}
    true, (first, second, *_) = round_.chosen[2], makers(round_.spec)
    change = msgspec.structs.replace
    at = round_.spec.clients.index
    handed = seal_to(
        round_.client_keys[first], (2,), MODEL_PURPOSE, round_.spec.context(),
        round_.secret(offers[first], first)[1], InsecureEntropy(3),
    )  # fmt: skip
    lies = {
        "another maker": change(true, maker=second),
        "not of the roster": change(true, maker=99),
        "a negative number": change(true, maker=-1),
        "a large number": change(true, maker=(1 << 64) - 1),
        "a swapped box": change(true, box=round_.chosen[3].box),
        "another maker's box": change(true, box=offers[second].boxes[at(2)]),
        "another maker's key": change(true, bulk=offers[second].bulk),
        "reflected": change(true, maker=2, box=offers[2].boxes[at(first)], bulk=offers[2].bulk),
        "another round": change(true, box=theirs[first].boxes[at(2)] if theirs[first].boxes else b""),
        "another round's key too": Chosen(second, theirs[second].boxes[at(2)], theirs[second].bulk),
        "another purpose": Chosen(first, handed[0][0], memoryview(handed[1])),
        "a short box": change(true, box=true.box[:23]),
        "an empty box": change(true, box=b""),
        "a flipped box": change(true, box=true.box[:-1] + bytes([true.box[-1] ^ 1])),
        "a flipped key": change(true, bulk=memoryview(bytes(true.bulk[:-1]) + bytes([true.bulk[-1] ^ 1]))),
        "an empty key": change(true, bulk=EMPTY),
    }
    assert 2 in makers(round_.spec)
    found = {what: refuses(round_, 2, lie) for what, lie in lies.items()}
    assert "to make none" in found["not of the roster"]
    # With all that said, the true one is taken.
    assert decode(round_.clients[2].receive(encode(true)), Cipher)


@both
def test_a_box_of_another_round_opens_if_its_name_is_not_looked_at(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what binds a box to round, purpose and recipient is its name, and nothing else does."""
    from privfr.backends.homomorphic import sealing

    monkeypatch.setattr(sealing, "_name", lambda purpose, context, sender, recipient: bytes(64))
    round_, other = played(name), played(name, round=1)
    round_.offers()
    theirs = {c: decode(other.clients[c].receive(f), Offer) for c, f in other.opening().items()}
    maker = next(c for c in makers(other.spec) if c in makers(round_.spec))
    lie = Chosen(maker, theirs[maker].boxes[1], theirs[maker].bulk)
    assert decode(round_.clients[2].receive(encode(lie)), Cipher)


def test_a_client_encrypts_once_in_a_round() -> None:
    round_ = played("bfv")
    round_.offers()
    round_.ciphers()
    with pytest.raises(WrongPhase):
        round_.clients[2].receive(encode(round_.chosen[2]))
    assert round_.clients[2]._state.summand == b""  # type: ignore[attr-defined]


@both
def test_the_sum_is_over_whom_it_says_and_over_nobody_else(name: str) -> None:
    round_ = played(name)
    offers = round_.offers()
    ciphers = round_.ciphers()
    sealed, _ = ending(round_, [(c, encode(m)) for c, m in ciphers.items()])
    everyone = (1, 2, 3, 4)

    def of(survivors: tuple[Id, ...], *summands: Id) -> Sealed:
        total = summed(round_.packing, [ciphers[c].bulk for c in summands])
        tag = tags_summed(round_.packing, [ciphers[c].tag for c in summands])
        return sealed_with(sealed, survivors, tag=tag, bulk=memoryview(total))

    second = makers(round_.spec)[1]
    lies = {
        "one": of(everyone, 1),
        "one, as often as there are clients": of(everyone, 1, 1, 1, 1),
        "a subset": of(everyone, 1, 2, 3),
        "a superset": of((1, 2, 3), *everyone),
        "twice": of(everyone, 1, 2, 3, 4, 4),
        "doubled": of(everyone, *everyone, *everyone),
        "one for another": of((1, 2, 3), 1, 2, 4),
        "one twice for another": of(everyone, 1, 2, 3, 3),
        "nobody": of(everyone),
        "fewer survivors": sealed_with(sealed, (1, 2)),
        "another maker": sealed_with(sealed, maker=second),
        "another maker's offer": sealed_with(
            sealed, maker=second, boxes=offers[second].boxes, key=bytes(offers[second].bulk)
        ),
        "no boxes": sealed_with(sealed, boxes=()),
        "turned boxes": sealed_with(sealed, boxes=offers[makers(round_.spec)[0]].boxes[::-1]),
        "another tag": sealed_with(sealed, tag=ciphers[1].tag),
        "no tag": sealed_with(sealed, tag=()),
        "a tag beyond the prime": sealed_with(sealed, tag=((1 << 64) - 1,) * 4),
        "truncated": sealed_with(sealed, bulk=decode(sealed.bulk, Bundle).bulk[:-1]),
        "not a bundle": Sealed(everyone, memoryview(b"nothing")),
    }
    for what, lie in lies.items():
        for who in (1, 2, 3, 4) if what == "turned boxes" else (1,):
            with pytest.raises(BadFrame):
                round_.open(lie, who)
    assert round_.open(of((1, 3), 1, 3)).count == 2  # a true sum of fewer is one


@both
def test_without_the_mac_one_client_would_be_opened_for_all(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: what keeps a single update closed is its tag."""
    monkeypatch.setattr(Mac, "check", lambda self, clients, tag, ciphertexts: None)
    round_ = played(name)
    round_.offers()
    ciphers = round_.ciphers()
    sealed, _ = ending(round_, [(c, encode(m)) for c, m in ciphers.items()])
    found = round_.open(sealed_with(sealed, (2,), bulk=ciphers[2].bulk))
    truth = round_.updates[2]
    assert found.weight == truth.weight
    assert np.allclose(found.vector, truth.vector, atol=1e-2)


@both
def test_the_end_of_another_round_opens_in_no_other(name: str) -> None:
    one, other = played(name), played(name, round=1)
    other.client_keys = one.client_keys
    ended = one.play().sealed
    assert ended is not None
    with pytest.raises(BadFrame):
        one.backend.open(other.spec, ended, one.client_keys[1])
    in_another_run = msgspec.structs.replace(one.spec, run=b"s" * 16)
    with pytest.raises(BadFrame):
        one.backend.open(in_another_run, ended, one.client_keys[1])


@pytest.mark.parametrize(
    ("name", "what"), [("bfv", "a known number"), ("ckks", "a known number"), ("bfv", "the secret key")]
)
@pytest.mark.parametrize("checked", [True, False])
def test_a_sum_that_somebody_has_added_to_is_refused(
    name: str, what: str, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server needs no key to add to one slot a number of its own, or a number of the secret key.

    Without the check, the control, both are taken for the sum.
    """
    if not checked:
        monkeypatch.setattr(Mac, "check", lambda self, clients, tag, ciphertexts: None)
    round_, sealed, truth = ended_round(name)
    lattice, at = round_.packing.lattice, 5
    change = shifted(lattice, at, 1000) if what == "a known number" else with_the_key(lattice, at)
    bulk = changed(round_.packing, decode(sealed.bulk, Bundle).bulk, change)
    lie = sealed_with(sealed, bulk=memoryview(bulk))
    if checked:
        with pytest.raises(BadFrame, match="said to be over"):
            round_.open(lie)
    else:
        assert round_.open(lie).vector.tolist() != truth


@both
@settings(max_examples=60)
@given(data=st.data())
def test_a_sum_with_one_changed_coefficient_is_refused(name: str, data: st.DataObject) -> None:
    """Also where the change is so small that it would be lost in the noise."""
    round_, sealed, _ = ended_round(name)
    lattice, bundle = round_.packing.lattice, decode(sealed.bulk, Bundle)
    at = data.draw(st.integers(0, lattice.words - 1))
    offset = data.draw(st.integers(1, lattice.prime - 1))

    def moved(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
        words = words.copy()
        words[at] = (int(words[at]) + offset) % lattice.prime
        return words

    bulk = changed(round_.packing, bundle.bulk, moved)
    with pytest.raises(BadFrame, match="said to be over"):
        round_.open(sealed_with(sealed, bulk=memoryview(bulk)))


_ENDED: dict[str, tuple[Played, Sealed, list[float]]] = {}


def ended_round(name: str) -> tuple[Played, Sealed, list[float]]:
    if name not in _ENDED:
        round_ = played(name)
        sealed = round_.play().sealed
        assert sealed is not None
        _ENDED[name] = round_, sealed, round_.open(sealed).vector.tolist()
    return _ENDED[name]


# Members ----------------------------------------------------------------------------------------------------


def results(played_: Federation) -> Frames:
    """Play a round up to its result: the frames that end it, not yet delivered."""
    outbox = played_.coordinator.open()
    while played_.coordinator.phase != "result":
        outbox = played_.coordinator.turn(played_.exchange(outbox))
    return dict(outbox)


def with_sum(result: bytes, change: Callable[[Bundle], Bundle]) -> bytes:
    told = decode(result, Result)
    sealed = decode(told.bulk, Sealed)
    bundle = change(decode(sealed.bulk, Bundle))
    lie = Sealed(sealed.survivors, memoryview(encode(bundle)))
    return encode(Result(told.context, memoryview(encode(lie))))


def spoilt(bundle: Bundle) -> Bundle:
    return msgspec.structs.replace(bundle, bulk=memoryview(bytes(bundle.bulk)[::-1]))


@both
def test_a_member_opens_one_sum_and_not_again_after_a_failure(name: str) -> None:
    played_ = federation(name)
    ends = results(played_)
    member, twice = played_.members[1], played_.members[2]
    with pytest.raises(BadFrame):
        member.receive(with_sum(ends[1], spoilt))
    with pytest.raises(WrongPhase):
        member.receive(ends[1])  # not even the true one: a second answer would compare the two
    assert kind(twice.receive(ends[2])) == "ack"
    with pytest.raises(WrongPhase):
        twice.receive(ends[2])


@both
def test_a_member_that_forgot_it_had_failed_would_answer_again(name: str) -> None:
    """The control: what is asked the second time is in order, but for its being the second."""
    played_ = federation(name)
    ends = results(played_)
    member = played_.members[1]
    spec = member._spec
    with pytest.raises(BadFrame):
        member.receive(with_sum(ends[1], spoilt))
    member._spec = spec
    assert kind(member.receive(ends[1])) == "ack"


@both
def test_what_does_not_touch_the_key_costs_a_member_nothing(name: str) -> None:
    played_ = federation(name)
    ends = results(played_)
    told = decode(ends[1], Result)
    sealed = decode(told.bulk, Sealed)
    member = played_.members[1]
    lies: list[Sealed | bytes] = [
        b"nothing",
        Sealed((1,), sealed.bulk),
        Sealed((), sealed.bulk),
        Sealed((2, 1, 3), sealed.bulk),
        Sealed((1, 1, 2), sealed.bulk),
        Sealed((1, 2, 99), sealed.bulk),
    ]
    for lie in lies:
        bulk = lie if isinstance(lie, bytes) else encode(lie)
        with pytest.raises(RemoteProtocolError):
            member.receive(encode(Result(told.context, memoryview(bulk))))
    with pytest.raises(WrongPhase):
        member.receive(encode(Result(bytes(32), told.bulk)))
    assert kind(member.receive(ends[1])) == "ack"


@both
def test_a_member_that_is_told_other_survivors_ends_with_no_model(name: str) -> None:
    played_ = federation(name)
    ends = results(played_)
    told = decode(ends[1], Result)
    sealed = decode(told.bulk, Sealed)
    before = played_.members[1].model
    lie = Sealed((1, 2, 3), sealed.bulk)
    with pytest.raises(BadFrame, match="said to be over"):
        played_.members[1].receive(encode(Result(told.context, memoryview(encode(lie)))))
    assert played_.members[1].model is before


def acked(played_: Federation, said: Mapping[Id, bytes]) -> RoundReport:
    ends = results(played_)
    inbox = []
    for client, frame in ends.items():
        answer = played_.members[client].receive(frame)
        inbox.append((client, encode(Ack(said[client])) if client in said else answer))
    assert played_.coordinator.turn(inbox) == {}
    return played_.coordinator.report


@both
@pytest.mark.parametrize("liar", [1, 2, 4])
def test_a_single_client_does_not_decide_the_model(name: str, liar: Id) -> None:
    played_ = federation(name)
    report = acked(played_, {liar: b"x" * 32})
    honest = next(c for c in (1, 2) if c != liar)
    model = played_.members[honest].model
    assert model is not None
    assert not report.failed
    assert played_.coordinator._named() == (SIZE, digest(model))
    assert played_.coordinator.current == {1, 2, 3, 4} - {liar}
    assert [c for c, text in report.faults if "another model" in text] == [liar]
    assert not run_round(played_.exchange, played_.coordinator).failed, "the liar is handed the model"


@both
def test_where_too_few_agree_the_model_stays_the_last_one(name: str) -> None:
    played_ = federation(name, 4, 3)
    run_round(played_.exchange, played_.coordinator)
    before = played_.coordinator._named()
    report = acked(played_, {1: b"x" * 32, 2: b"y" * 32})
    assert "2 of 4 clients confirm one model, and 3 are needed" in report.failed
    assert played_.coordinator._named() == before


def test_a_handover_to_others_than_the_pinned_is_refused() -> None:
    played_ = federation("bfv")
    run_round(played_.exchange, played_.coordinator)
    member, context = played_.members[1], b"c" * 32
    assert member.model is not None
    model = digest(member.model)
    before = member.save()
    for clients in ((99,), (1, 2, 99), (-1,), ((1 << 64) - 1,)):
        with pytest.raises(BadFrame, match="pinned roster"):
            member.receive(encode(HandOver(context, model, clients)))
    assert member.save() == before
    assert len(decode(member.receive(encode(HandOver(context, model, (2, 3)))), HandedOver).boxes) == 2


@pytest.mark.parametrize(
    "asked",
    [(b"c" * 32, (2,) * 50), (b"c" * 32, (3, 2)), (bytes(5000), (2,))],
    ids=["often", "out of order", "a long context"],
)
def test_a_handover_is_no_larger_than_the_roster(asked: tuple[bytes, tuple[Id, ...]]) -> None:
    played_ = federation("bfv")
    run_round(played_.exchange, played_.coordinator)
    context, clients = asked
    with pytest.raises(BadFrame):
        played_.members[1].receive(encode(HandOver(context, played_.coordinator.digest, clients)))


def test_a_member_without_a_model_hands_over_none_and_neither_does_one_whose_server_has_it() -> None:
    for name in ("bfv", "bfv-authority"):
        played_ = federation(name)
        if name == "bfv-authority":
            run_round(played_.exchange, played_.coordinator)
        with pytest.raises(WrongPhase):
            played_.members[1].receive(encode(HandOver(b"c" * 32, played_.coordinator.digest, (2,))))


def stale_begin(name: str = "bfv") -> tuple[Federation, bytes]:
    """A run in which client 4 missed a result, and the `Begin` by which it is handed the model."""
    played_ = federation(name)
    played_.lose = lambda client, what: "request" if client == 4 and what == "result" else ""
    run_round(played_.exchange, played_.coordinator)
    played_.lose = lambda client, what: ""
    outbox = played_.coordinator.turn(played_.exchange(played_.coordinator.open()))
    return played_, outbox[4]


def begin_with(frame: bytes, bulk: bytes, **spec: Any) -> bytes:
    begin = decode(frame, Begin)
    return encode(Begin(msgspec.structs.replace(begin.spec, **spec), memoryview(bulk)))


def test_a_model_that_was_handed_over_is_the_named_one_for_this_round_or_refused() -> None:
    played_, frame = stale_begin()
    member, holder = played_.members[4], played_.members[2]
    handed = decode(decode(frame, Begin).bulk, Handed)
    change = msgspec.structs.replace
    model = holder.model
    assert model is not None
    context = decode(frame, Begin).spec.context()
    other = model + np.float32(1)
    boxes, bulk = seal_to(holder.keyring, (4,), MODEL_PURPOSE, context, other.tobytes(), InsecureEntropy(5))
    key_boxes, key_bulk = seal_to(holder.keyring, (4,), PURPOSE, context, model.tobytes(), InsecureEntropy(6))
    old, old_bulk = seal_to(
        holder.keyring, (4,), MODEL_PURPOSE, b"o" * 32, model.tobytes(), InsecureEntropy(7)
    )
    lies: dict[str, bytes] = {
        "a flipped model": encode(
            change(handed, bulk=memoryview(bytes([handed.bulk[0] ^ 1]) + handed.bulk[1:]))
        ),
        "truncated": encode(change(handed, bulk=handed.bulk[:-4])),
        "an empty box": encode(change(handed, box=b"")),
        "from somebody else": encode(change(handed, sender=3 if handed.sender != 3 else 2)),
        "from an outsider": encode(change(handed, sender=99)),
        "another model": encode(Handed(2, boxes[0], memoryview(bulk))),
        "another purpose": encode(Handed(2, key_boxes[0], memoryview(key_bulk))),
        "another round": encode(Handed(2, old[0], memoryview(old_bulk))),
        "in clear": model.tobytes(),
        "in clear, another": other.tobytes(),
        "nothing": b"",
        "noise": b"noise",
    }
    before = member.save()
    for what, lie in lies.items():
        with pytest.raises(RemoteProtocolError):
            member.receive(begin_with(frame, lie))
        assert member.save() == before, what
    # A model that a fellow client made up is refused by its digest alone: told another, it is taken.
    assert kind(member.receive(frame)) == "homomorphic.offer"
    assert member.model is not None
    assert member.model.tolist() == model.tolist()


def test_a_made_up_model_is_taken_where_the_round_names_it() -> None:
    """The control: a server and one client together give a client that lacks the model any other."""
    played_, frame = stale_begin()
    member, holder = played_.members[4], played_.members[2]
    other = np.ones(SIZE, np.float32)
    spec = msgspec.structs.replace(decode(frame, Begin).spec, model=digest(other))
    boxes, bulk = seal_to(
        holder.keyring, (4,), MODEL_PURPOSE, spec.context(), other.tobytes(), InsecureEntropy(5)
    )
    handed = encode(Handed(2, boxes[0], memoryview(bulk)))
    assert kind(member.receive(encode(Begin(spec, memoryview(handed))))) == "homomorphic.offer"


@both
def test_another_roster_is_refused_before_anything_is_trained(name: str) -> None:
    played_ = federation(name)
    member = played_.members[1]
    spec = played_.coordinator._spec()
    for roster in ((1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 9)):
        parameters = backend(name).plan(len(roster), 2, rounds.packing_of(spec).point.coding, {})
        lie = msgspec.structs.replace(spec, clients=roster, parameters=parameters)
        member.parameters = parameters
        with pytest.raises(PolicyRefused, match="not the one pinned"):
            member.receive(encode(Begin(lie, memoryview(bytes(4 * SIZE)))))
    assert member.learner.learnt == 0  # type: ignore[attr-defined]


@both
@pytest.mark.parametrize("before", [0, 1])
def test_a_clients_garbage_costs_the_round_and_not_the_run(name: str, before: int) -> None:
    """A ciphertext that is in range and of nothing: nobody can tell before the sum is opened."""
    played_ = federation(name)
    for _ in range(before):
        assert not run_round(played_.exchange, played_.coordinator).failed
    models = {c: member.model for c, member in played_.members.items()}
    true = played_.exchange

    def garbled(outbox: Mapping[Id, bytes]) -> Iterable[tuple[Id, bytes | memoryview]]:
        for client, frame in true(outbox):
            if client == 3 and kind(frame) == "homomorphic.cipher":
                cipher = decode(frame, Cipher)
                packing = rounds.packing_of(played_.coordinator._spec())
                words = np.random.default_rng(0).integers(
                    0, packing.lattice.prime, packing.lattice.words, np.uint64
                )
                lie = changed(packing, cipher.bulk, lambda _, words=words: words)
                frame = encode(with_(cipher, bulk=memoryview(lie)))
            yield client, frame

    report = run_round(garbled, played_.coordinator)
    assert "0 of 4 clients confirm one model" in report.failed
    assert {text.split(":")[0] for _, text in played_.refusals} == {"BadFrame"}
    if before:
        assert {c: member.model for c, member in played_.members.items()} == models
    played_.refusals.clear()
    first = makers(msgspec.structs.replace(played_.coordinator._spec(), round=before))[0]
    report = run_round(played_.exchange, played_.coordinator)
    assert not report.failed
    assert played_.refusals == []
    maker = next(decode(f, Chosen).maker for what, _, f in played_.down[::-1] if what == "homomorphic.chosen")
    assert maker != first
    assert len({m.model.tobytes() for m in played_.members.values() if m.model is not None}) == 1


@both
def test_a_first_round_with_too_few_clients_does_not_end_the_run(name: str) -> None:
    played_ = federation(name)
    played_.lose = lambda client, what: "answer" if what == "homomorphic.chosen" else ""
    assert run_round(played_.exchange, played_.coordinator).failed
    played_.lose = lambda client, what: ""
    assert not run_round(played_.exchange, played_.coordinator).failed


@both
def test_acks_that_are_lost_do_not_end_the_run(name: str) -> None:
    played_ = federation(name)
    run_round(played_.exchange, played_.coordinator)
    played_.lose = lambda client, what: "answer" if what == "result" and client > 1 else ""
    assert "confirm" in run_round(played_.exchange, played_.coordinator).failed
    played_.lose = lambda client, what: ""
    reports = [run_round(played_.exchange, played_.coordinator) for _ in range(3)]
    assert not reports[-1].failed
