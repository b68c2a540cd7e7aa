"""Whole rounds in which one party lies: what harms nobody else, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import reference as ref
from cases import Case, bad, case, made_up
from rounds import CONSENT, FEW, LOST, PASSIVE, ROSTER

__all__ = ["refused", "taken"]


def taken(played: Mapping[str, ref.Round]) -> list[Case]:
    """Where the round goes on."""
    return [
        case(f"{phase}: {what}", {"round": name, "client": client, "phase": phase, way: frame}, gives)
        for name, client, phase, what, way, frame, gives in _taken(played)
    ]


def refused(played: Mapping[str, ref.Round]) -> list[Case]:
    """Where a frame is refused, or the round ends."""
    return [
        bad(f"{phase}: {what}", error, round=name, client=client, phase=phase, **{way: frame})
        for name, client, phase, what, error, way, frame in _refused(played)
    ] + [
        bad(what, error, round=LOST, taken=[
            {"client": client, "phase": phase, "up": frame} for client, phase, frame in answers
        ])
        for what, error, answers in _ruined(played[LOST])
    ]  # fmt: skip


# round, client, phase, what it is, `down` or `up`, frame, what comes of it
Taken = tuple[str, int, str, str, str, bytes, dict[str, bytes]]


def _taken(played: Mapping[str, ref.Round]) -> Iterator[Taken]:
    r, me = played[CONSENT], 70_000
    seeds, keys = r.revealed[me]

    def without(owner: int) -> dict[str, bytes]:
        left = ({u: share for u, share in each.items() if u != owner} for each in (seeds, keys))
        return {"reveal": r.reveal_frame(*left)}

    lost = r.parties[5_000_000_000]
    for what, box in _spoiled(r, lost, me, ref.KEY_BOX, ref.SEED_BOX, keys[lost.id]):
        frame = _sharebook(r, me, {lost.id: box})
        yield CONSENT, me, "mask", f"a box {what}", "down", frame, without(lost.id)
    owner = r.parties[3]
    frame, whole = _sharebook(r, me, {3: bytes(72)}), {"reveal": r.reveal_frame(seeds, keys)}
    yield CONSENT, me, "mask", "a box does not open, but the second one will", "down", frame, whole
    for what, box in _spoiled(r, owner, me, ref.SEED_BOX, ref.KEY_BOX, seeds[3]):
        boxes = [[u, box if u == 3 else good] for u, good in r.boxes_for(me)]
        frame = r.survivor_frame(r.survivors, boxes)
        yield CONSENT, me, "consent", f"a box {what}", "down", frame, without(3)
    boxes = [each for each in r.boxes_for(me) if each[0] != 3]
    frame = r.survivor_frame(r.survivors, boxes)
    yield CONSENT, me, "consent", "a box left out", "down", frame, without(3)
    agreed = [u for u in r.members if u in r.survivors]
    assert len(agreed) > r.quorum
    every = ref.msgpack(["masking.consents", [[u, r.parties[u].consent] for u in agreed]])
    yield CONSENT, me, "reveal", "more than a quorum", "down", every, whole
    # Two shares are needed of three that are there.
    for what, seeds_, keys_ in (
        ("a seed share changed", seeds | {3: bytes(32)}, keys),
        ("a key share changed", seeds, keys | {lost.id: bytes(32)}),
        ("a share of 31 bytes", seeds | {3: seeds[3][:31]}, keys),
        ("a key share left out", seeds, {}),
        ("a seed share left out", {u: share for u, share in seeds.items() if u != 3}, keys),
    ):
        yield CONSENT, me, "reveal", what, "up", r.reveal_frame(seeds_, keys_), {"sealed": r.sealed}


def _spoiled(
    r: ref.Round, owner: ref.Client, holder: int, what: bytes, other: bytes, share: bytes
) -> Iterator[tuple[str, bytes]]:
    def boxed(what: bytes, client: int, share: bytes) -> bytes:
        key = ref.box_key(what, owner.box_secret, r.parties[client].advert[0], r.context, owner.id, client)
        return ref.secretbox(key, made_up("nonce", 24), share)

    box = boxed(what, holder, share)
    yield "whose tag is wrong", box[:24] + bytes([box[24] ^ 1]) + box[25:]
    yield "that is a byte short", box[:-1]
    yield "that is a byte too long", box + b"\0"
    yield "that is empty", b""
    yield "with a share of 33 bytes", boxed(what, holder, share + b"\0")
    yield "under the key of the other kind", boxed(other, holder, share)
    yield "for another holder", boxed(what, 0, share)


def _sharebook(r: ref.Round, client: int, boxes: Mapping[int, bytes]) -> bytes:
    """The client's true one, with some boxes exchanged."""
    return ref.msgpack([
        "masking.sharebook",
        [u for u in r.parties[client].neighbours if u in r.shared],
        [
            [u, r.parties[u].advert, boxes.get(u, r.parties[u].key_boxes[client])]
            for u in r.shared if client in r.parties[u].key_boxes
        ],
    ])  # fmt: skip


# round, client, phase, what is wrong, error, `down` or `up`, frame
Refused = tuple[str, int, str, str, str, str, bytes]


def _refused(played: Mapping[str, ref.Round]) -> Iterator[Refused]:
    r = played[LOST]
    for phase, steps in (("advertise", _bad_begins), ("share", _bad_keybooks), ("mask", _bad_sharebooks),
                         ("consent", _bad_survivors), ("reveal", _bad_consents)):  # fmt: skip
        for what, error, frame in steps(r):
            yield LOST, 70_000, phase, what, error, "down", frame
    for phase, answers in (("advertise", _bad_adverts), ("share", _bad_shares), ("mask", _bad_masked),
                           ("consent", _bad_consent), ("reveal", _bad_reveals)):  # fmt: skip
        for what, error, frame in answers(r):
            yield LOST, 70_000, phase, what, error, "up", frame
    yield from _bad_in_few(played[FEW])
    yield from _bad_in_passive(played[PASSIVE])


def _ruined(r: ref.Round) -> Iterator[tuple[str, str, list[tuple[int, str, bytes]]]]:
    """What each client may say, but which leaves a secret unknown."""
    me = 70_000
    seeds, keys = r.revealed[me]
    # Three have survived, so each one's seed has just the two holders that it takes.
    changed = r.reveal_frame({**seeds, 0: bytes(32)}, keys)
    yield "a seed share that is missed", "TooFewClients", [(me, "reveal", changed)]
    wrong = [[v, box, bytes(16)] for v, box in r.parties[me].seed_boxes.items()]
    yield "digests of other seed shares", "TooFewClients", [(me, "mask", r.masked_frame(me, wrong))]
    # Client 3, which is lost later, has shared another key than the one it advertised.
    shares = ref.split(made_up("another key"), r.t, list(r.parties[3].key_shares), ref.Draws(0))
    dealt = ref.msgpack(["masking.shares", r.entrusted(3, r.parties[3].key_boxes, shares)])
    revealed = [(u, "reveal", r.reveal_frame(r.revealed[u][0], {3: shares[u]})) for u in r.survivors]
    yield "shares of another key", "BadFrame", [(3, "share", dealt), *revealed]


def _bad_in_few(r: ref.Round) -> Iterator[Refused]:
    """Where not all are neighbours, nor members."""
    one, chooser, member, other = 200, 0, 200, 3
    assert chooser not in r.parties[one].neighbours and one in r.parties[chooser].neighbours
    assert r.members == [0, 200, 70_000] and r.survivors == [0, 3, 200, 5_000_000_000]
    box_key, mask_key, signature = r.parties[chooser].advert
    for what, advert in (
        ("an advert changed", [box_key, box_key, signature]),
        ("an advert of another round", _advert(r, chooser, box_key, mask_key, bytes(32))),
        ("an advert of another client", r.parties[other].advert),
        ("a box key of small order", _advert(r, chooser, bytes(32), mask_key)),
        ("a mask key of small order", _advert(r, chooser, box_key, bytes(32))),
        ("a mask key of 33 bytes", _advert(r, chooser, box_key, mask_key + b"\0")),
    ):
        true = [[u, r.parties[u].advert, r.parties[u].key_boxes[one]] for u in r.shared if u != one]
        boxes = [[u, advert if u == chooser else good, box] for u, good, box in true]
        there = [u for u in r.parties[one].neighbours if u in r.shared]
        frame = ref.msgpack(["masking.sharebook", there, boxes])
        yield FEW, one, "mask", f"{what}, of one who chose it", "BadFrame", "down", frame
    assert chooser not in r.parties[member].neighbours
    boxes = [*r.boxes_for(chooser)]
    assert [u for u, _ in boxes] == [3, 5_000_000_000]
    more = [boxes[0], [member, boxes[0][1]], boxes[1]]
    frame = r.survivor_frame(r.survivors, more)
    yield FEW, chooser, "consent", "a box of one who did not choose it", "BadFrame", "down", frame

    def signed(*clients: int) -> bytes:
        by = {u: r.parties[u].identity for u in clients}
        of = ref.survivor_bytes(r.context, r.survivors)
        return ref.msgpack(["masking.consents", [[u, ref.ed25519(by[u], of)] for u in clients]])

    for what, error, frame in (
        ("of one who is no member", "BadFrame", signed(0, 3, 200)),
        ("of one who is no member, in place of one who is", "BadFrame", signed(0, 3)),
        ("of a member who did not survive", "BadFrame", signed(0, 200, 70_000)),
        ("of too few members", "PolicyRefused", signed(200)),
        ("of no members", "PolicyRefused", signed()),
    ):
        yield FEW, 3, "reveal", f"consents {what}", error, "down", frame


def _bad_in_passive(r: ref.Round) -> Iterator[Refused]:
    boxes = r.boxes_for(3)
    for what, error, frame in (
        ("too few survivors", "PolicyRefused", r.survivor_frame([3, 70_000], [])),
        ("itself no survivor", "BadFrame", r.survivor_frame([0, 70_000, 5_000_000_000], [])),
        ("a box of itself", "BadFrame", r.survivor_frame(r.survivors, [[3, boxes[0][1]], *boxes])),
        (
            "a box of one who dropped out",
            "BadFrame",
            r.survivor_frame(r.survivors, [[0, r.parties[0].seed_boxes[3]], *boxes]),
        ),
    ):
        yield PASSIVE, 3, "reveal", f"passive, {what}", error, "down", frame


Frames = Iterator[tuple[str, str, bytes]]


def _bad_begins(r: ref.Round) -> Frames:
    begin = ref.msgpack(["begin", r.wire_spec, b""])
    yield "nothing", "BadFrame", b""
    yield "a byte too many", "BadFrame", begin + b"\0"
    yield "a byte short", "BadFrame", begin[:-1]
    # The round's number, 15, as it could also be written.
    yield (
        "an integer wider than need be",
        "BadFrame",
        begin.replace(made_up("run", 16) + b"\x0f", made_up("run", 16) + b"\xcc\x0f"),
    )
    yield "a keybook", "WrongPhase", r.keybook([0, 3])
    for what, at, value in (
        ("another round", 1, 8),
        ("another model", 8, made_up("another")),
        ("a smaller roster", 3, ROSTER[:4]),
        ("a lower threshold", 4, 2),
    ):
        yield (
            what,
            "WrongPhase",
            ref.msgpack(["begin", [*r.wire_spec[:at], value, *r.wire_spec[at + 1 :]], b""]),
        )


def _advert(r: ref.Round, client: int, box_key: bytes, mask_key: bytes, context: bytes = b"") -> list[bytes]:
    """An advert that its client has signed, whatever is in it."""
    signed = ref.advert_bytes(context or r.context, client, box_key, mask_key)
    return [box_key, mask_key, ref.ed25519(r.parties[client].identity, signed)]


def _bad_keybooks(r: ref.Round) -> Frames:
    def book(*entries: tuple[int, list[bytes]]) -> bytes:
        return ref.msgpack(["masking.keybook", entries])

    a, b, c = ((u, r.parties[u].advert) for u in (0, 3, 5_000_000_000))
    box_key, mask_key, signature = b[1]
    yield "too few neighbours", "PolicyRefused", book(a)
    yield "out of order", "BadFrame", book(b, a, c)
    yield "a neighbour twice", "BadFrame", book(a, a, b, c)
    yield "itself", "BadFrame", book(a, b, (70_000, r.parties[70_000].advert), c)
    yield "a stranger", "BadFrame", book(a, b, (4, c[1]), c)
    yield "keys exchanged", "BadFrame", book(a, (3, [mask_key, box_key, signature]), c)
    yield "another client's advert", "BadFrame", book(a, (3, c[1]), c)
    yield (
        "an advert of another round",
        "BadFrame",
        book(a, (3, _advert(r, 3, box_key, mask_key, bytes(32))), c),
    )
    yield "a key of 31 bytes", "BadFrame", book(a, (3, _advert(r, 3, box_key[:31], mask_key)), c)
    yield "a box key of small order", "BadFrame", book(a, (3, _advert(r, 3, bytes(32), mask_key)), c)


def _bad_sharebooks(r: ref.Round) -> Frames:
    def book(neighbours: list[int], boxes: list[list[Any]]) -> bytes:
        return ref.msgpack(["masking.sharebook", neighbours, boxes])

    me, there = 70_000, [0, 3, 5_000_000_000]
    boxes = [[u, r.parties[u].advert, r.parties[u].key_boxes[me]] for u in there]
    box_key, mask_key, signature = r.parties[0].advert
    yield "too few neighbours", "PolicyRefused", book([3], boxes)
    yield "a neighbour that has not advertised", "BadFrame", book([0, 3, 200, 5_000_000_000], boxes)
    yield "neighbours out of order", "BadFrame", book([3, 0, 5_000_000_000], boxes)
    yield "a neighbour there twice", "BadFrame", book([0, 0, 3], boxes)
    yield "boxes out of order", "BadFrame", book(there, boxes[::-1])
    yield "a box twice", "BadFrame", book(there, [boxes[0], boxes[0], *boxes[1:]])
    own = [me, r.parties[me].advert, boxes[0][2]]
    yield "a box of itself", "BadFrame", book(there, [*boxes[:2], own, boxes[2]])
    stranger = [4, *boxes[0][1:]]
    yield "a box of a stranger", "BadFrame", book(there, [*boxes[:2], stranger, boxes[2]])
    for what, advert in (
        ("an advert changed", [box_key, box_key, signature]),
        ("a second box key", _advert(r, 0, ref.x25519_public(made_up("another box key")), mask_key)),
        ("a second mask key", _advert(r, 0, box_key, ref.x25519_public(made_up("another mask key")))),
    ):
        yield f"{what} of a neighbour", "BadFrame", book(there, [[0, advert, boxes[0][2]], *boxes[1:]])


def _bad_survivors(r: ref.Round) -> Frames:
    boxes = r.boxes_for(70_000)
    for what, error, survivors in [
        ("too few", "PolicyRefused", [0, 70_000]),
        ("not itself", "BadFrame", [0, 3, 5_000_000_000]),
        ("out of order", "BadFrame", [70_000, 0, 5_000_000_000]),
        ("one twice", "BadFrame", [0, 0, 70_000]),
        ("a stranger", "BadFrame", [0, 4, 70_000]),
    ]:
        yield what, error, r.survivor_frame(survivors, [])
    assert [u for u, _ in boxes] == [0, 5_000_000_000]
    lost = r.parties[3].seed_boxes[70_000]
    for what, given in (
        ("boxes out of order", boxes[::-1]),
        ("a box twice", [boxes[0], *boxes]),
        ("a box of itself", [boxes[0], [70_000, boxes[0][1]], boxes[1]]),
        ("a box of one who dropped out", [boxes[0], [3, lost], boxes[1]]),
        ("a box of a stranger", [boxes[0], [4, boxes[0][1]], boxes[1]]),
    ):
        yield what, "BadFrame", r.survivor_frame(r.survivors, given)


def _bad_consents(r: ref.Round) -> Frames:
    def book(*entries: tuple[int, bytes]) -> bytes:
        return ref.msgpack(["masking.consents", entries])

    a, b, c = ((u, r.parties[u].consent) for u in (0, 70_000, 5_000_000_000))
    others = ref.survivor_bytes(r.context, ROSTER)
    another = ref.survivor_bytes(bytes(32), r.survivors)
    yield "one too few", "PolicyRefused", book(a, c)
    yield "out of order", "BadFrame", book(a, c, b)
    yield "one twice", "BadFrame", book(a, a, b)
    for what, signed in ("to other survivors", others), ("in another round", another):
        yield what, "BadFrame", book(a, b, (c[0], ref.ed25519(r.parties[c[0]].identity, signed)))
    yield "a signature of somebody else", "BadFrame", book(a, b, (c[0], a[1]))
    yield "a second set of survivors instead", "WrongPhase", r.survivor_frame(r.survivors, [])


def _bad_adverts(r: ref.Round) -> Frames:
    def answer(advert: list[bytes], neighbours: list[int]) -> bytes:
        return ref.msgpack(["masking.advertise", advert, neighbours])

    me = r.parties[70_000]
    box_key, mask_key, signature = me.advert
    yield "too few neighbours", "BadFrame", answer(me.advert, me.neighbours[:-1])
    yield "itself as neighbour", "BadFrame", answer(me.advert, [0, 3, 200, 70_000])
    yield "neighbours out of order", "BadFrame", answer(me.advert, me.neighbours[::-1])
    yield "a wrong signature", "BadFrame", answer([mask_key, box_key, signature], me.neighbours)
    for what, keys in (
        ("a box key of small order", (bytes(32), mask_key)),
        ("a mask key of small order", (box_key, bytes(32))),
    ):
        yield f"{what}, to the server", "BadFrame", answer(_advert(r, 70_000, *keys), me.neighbours)
    yield (
        "a key of 31 bytes signed",
        "BadFrame",
        answer(_advert(r, 70_000, box_key, mask_key[:31]), me.neighbours),
    )
    yield "too long", "TooLarge", answer(me.advert, [*range(2000)])


def _bad_shares(r: ref.Round) -> Frames:
    me = r.parties[70_000]
    for what, entrusted in _bad_entrusted(r.entrusted(70_000, me.key_boxes, me.key_shares)):
        yield what, "BadFrame", ref.msgpack(["masking.shares", entrusted])


def _bad_entrusted(good: list[list[Any]]) -> Iterator[tuple[str, list[list[Any]]]]:
    """Boxes and digests for 0, 3 and 5,000,000,000."""
    assert len(good) == 3
    holder, box, digest = good[0]
    yield "a holder left out", good[1:]
    yield "holders out of order", good[::-1]
    yield "a holder twice", [good[0], *good]
    yield "a holder that has not advertised", [*good[:2], [200, box, digest], good[2]]
    yield "a short box", [[holder, box[:-1], digest], *good[1:]]
    yield "a long box", [[holder, box + b"\0", digest], *good[1:]]
    yield "a short digest", [[holder, box, digest[:-1]], *good[1:]]
    yield "a second digest", [[holder, box, digest, digest], *good[1:]]


def _bad_masked(r: ref.Round) -> Frames:
    me, packed = r.parties[70_000], ref.pack(r.masked[70_000], r.code.modulus_bits)
    good = r.entrusted(70_000, me.seed_boxes, me.seed_shares)

    def answer(context: bytes, entrusted: list[list[Any]], summand: bytes) -> bytes:
        return ref.msgpack(["masking.masked", context, entrusted, summand])

    yield "of another round", "WrongPhase", answer(bytes(32), good, packed)
    yield "a summand too short", "BadFrame", answer(r.context, good, packed[:-1])
    yield "a summand too long", "BadFrame", answer(r.context, good, packed + b"\0")
    yield "a frame too long", "TooLarge", answer(r.context, good, bytes(4000))
    wide = b"\xc5" + len(packed).to_bytes(2, "big") + packed
    yield "a length wider than need be", "BadFrame", answer(r.context, good, b"")[:-2] + wide
    yield "no boxes", "BadFrame", answer(r.context, [], packed)
    for what, entrusted in _bad_entrusted(good):
        yield f"seed: {what}", "BadFrame", answer(r.context, entrusted, packed)


def _bad_consent(r: ref.Round) -> Frames:
    me = r.parties[70_000]
    others = ref.ed25519(me.identity, ref.survivor_bytes(r.context, ROSTER))
    yield "to other survivors, to the server", "BadFrame", ref.msgpack(["masking.consent", others])
    yield "a signature of 63 bytes", "BadFrame", ref.msgpack(["masking.consent", me.consent[:-1]])


def _bad_reveals(r: ref.Round) -> Frames:
    def answer(seeds: list[list[Any]], keys: list[list[Any]]) -> bytes:
        return ref.msgpack(["masking.reveal", seeds, keys])

    me, lost = 70_000, r.parties[3]
    seeds, keys = ([[u, share] for u, share in each.items()] for each in r.revealed[me])
    assert [u for u, _ in seeds] == [0, 5_000_000_000] and [u for u, _ in keys] == [3]
    key_share = r.parties[0].key_shares[me]
    yield "a survivor's key share", "BadFrame", answer(seeds, [[0, key_share], *keys])
    more = [seeds[0], [3, lost.seed_shares[me]], seeds[1]]
    yield "a seed share of one who dropped out", "BadFrame", answer(more, [])
    yield "seed shares out of order", "BadFrame", answer(seeds[::-1], keys)
    yield "a seed share twice", "BadFrame", answer([seeds[0], *seeds], keys)
    yield "a key share twice", "BadFrame", answer(seeds, [*keys, *keys])
    yield "a share of its own", "BadFrame", answer([seeds[0], [me, bytes(32)], seeds[1]], keys)
    yield "a share of a stranger", "BadFrame", answer([seeds[0], [4, bytes(32)], seeds[1]], keys)
    yield "a share of one who has not advertised", "BadFrame", answer(seeds, [*keys, [200, bytes(32)]])
