"""Whole rounds: every frame both ways, what comes of it, and frames that either side refuses."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import reference as ref
from cases import Case, bad, case, made_up

__all__ = ["file", "floats"]

ABOUT = (
    "Whole rounds. entropy: what each client draws, in order: 32 bytes for stochastic rounding, if any; box "
    "secret, 32; mask secret, 32; seed, 32; 16 for each other client, in one draw, unless all are "
    "neighbours; t - 1 coefficients for the seed and t - 1 for the mask secret, 32 each; a nonce of 24 for "
    "each holder, ascending. Secrets and coefficients are drawn again while they are not below 2^256 - 189. "
    "arrives: whether the client's answer (up) reaches the server. Of the bad ones, `down` is given to a "
    "client and `up` to the server, in place of the frame that the round has there."
)

ROSTER = [0, 3, 200, 70_000, 5_000_000_000]  # every width that msgpack has for them but one
METRICS = ["loss", "accuracy"]
NEAREST = [4.0, 16, 100, "nearest", False]
ROTATED = [4.0, 20, 100, "stochastic", True]
MODEL = [0.0] * 5

# name, seed of the draws, backend, coding, neighbours and shares, client -> phase in which its answer is lost
ROUNDS: list[tuple[str, int, str, list[Any], list[int], dict[int, str]]] = [
    ("lost in advertise and mask", 1, "masking", NEAREST, [4, 2], {200: "advertise", 3: "mask"}),
    ("lost in mask and consent", 2, "masking", NEAREST, [4, 2], {5_000_000_000: "mask", 3: "consent"}),
    # With other draws some client's shares would be out of reach.
    (
        "few neighbours, lost in share and reveal",
        8,
        "masking",
        ROTATED,
        [3, 2],
        {70_000: "share", 0: "reveal"},
    ),
    ("passive, lost in mask", 4, "masking-passive", NEAREST, [4, 3], {0: "mask"}),
]


def floats(vector: Sequence[float]) -> bytes:
    """Little-endian float32."""
    return struct.pack(f"<{len(vector)}f", *vector)


def _update(client: int) -> dict[str, Any]:
    drawn = [int.from_bytes(made_up(f"update {client} {i}", 2), "big") for i in range(8)]
    return {
        "weight": 1 + drawn[0] % 100,
        "metrics": {"loss": drawn[1] / 2**13, "accuracy": drawn[2] / 2**16},
        "vector": [(x - 2**15) / 2**14 for x in drawn[3:]],
    }


def _round(name: str) -> ref.Round:
    _, seed, backend, coding, graph, lost = next(each for each in ROUNDS if each[0] == name)
    spec = [
        made_up("run", 16),
        7,
        backend,
        ROSTER,
        3,
        METRICS,
        len(MODEL),
        made_up("layout"),
        hashlib.blake2b(floats(MODEL), digest_size=32).digest(),
        made_up("config"),
        [coding, graph],
    ]
    parties = {
        u: ref.Client(u, made_up(f"identity {u}"), _update(u), ref.Draws(100 * seed + i))
        for i, u in enumerate(ROSTER)
    }
    found = ref.Round(spec, parties, lost)
    found.play()
    return found


def _case(name: str, found: ref.Round) -> Case:
    names = (
        "run",
        "round",
        "backend",
        "clients",
        "threshold",
        "metrics",
        "size",
        "layout",
        "model",
        "config",
    )
    given = {
        "spec": dict(zip(names, found.spec[:10], strict=True)) | {"parameters": found.wire_spec[10]},
        "clients": [
            {"client": u, "identity": p.identity, "key": ref.ed25519_public(p.identity), "update": p.update,
             "entropy": p.draws.taken}
            for u, p in found.parties.items()
        ],
    }  # fmt: skip
    gives = {
        "context": found.context,
        "phases": found.frames,
        "survivors": found.survivors,
        "sealed": found.sealed,
        "mean": found.aggregate,
    }
    return case(name, given, gives)


def file() -> Case:
    """Give the rounds, and what is refused in the first and the last of them."""
    played = {each[0]: _round(each[0]) for each in ROUNDS}
    lost, passive = ROUNDS[0][0], ROUNDS[3][0]
    refused = [
        bad(f"{phase}: {what}", error, round=lost, client=client, phase=phase, **{way: frame})
        for client, phase, what, error, way, frame in _refused(played[lost])
    ]
    for what, error, survivors in [
        ("too few survivors", "PolicyRefused", [3, 70_000]),
        ("itself no survivor", "BadFrame", [0, 70_000, 5_000_000_000]),
    ]:
        frame = ref.msgpack(["masking.survivors", survivors])
        refused.append(
            bad(f"passive reveal: {what}", error, round=passive, client=3, phase="reveal", down=frame)
        )
    return {"about": ABOUT, "cases": [_case(*each) for each in played.items()], "bad": refused}


# client, phase, what is wrong, error, way, frame
Refused = tuple[int, str, str, str, str, bytes]


def _refused(r: ref.Round) -> Iterator[Refused]:
    """Of the round in which client 200's advert and client 3's masked summand are lost."""
    assert r.lost == {200: "advertise", 3: "mask"}
    for phase, steps in (("advertise", _bad_begins), ("share", _bad_keybooks), ("mask", _bad_sharebooks),
                         ("consent", _bad_survivors), ("reveal", _bad_consents)):  # fmt: skip
        for what, error, frame in steps(r):
            yield 70_000, phase, what, error, "down", frame
    for phase, answers in (("advertise", _bad_adverts), ("share", _bad_shares), ("mask", _bad_masked),
                           ("consent", _bad_consent), ("reveal", _bad_reveals)):  # fmt: skip
        for what, error, frame in answers(r):
            yield 70_000, phase, what, error, "up", frame


Frames = Iterator[tuple[str, str, bytes]]


def _bad_begins(r: ref.Round) -> Frames:
    begin = ref.msgpack(["begin", r.wire_spec, b""])
    yield "nothing", "BadFrame", b""
    yield "a byte too many", "BadFrame", begin + b"\0"
    yield "a byte short", "BadFrame", begin[:-1]
    # The round's number, 7, as it could also be written.
    yield (
        "an integer wider than need be",
        "BadFrame",
        begin.replace(made_up("run", 16) + b"\x07", made_up("run", 16) + b"\xcc\x07"),
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
    boxes = [[u, r.parties[u].advert, r.parties[u].boxes[me]] for u in there]
    box_key, mask_key, signature = r.parties[0].advert
    yield "too few neighbours", "PolicyRefused", book([3], boxes)
    yield "a neighbour that has not advertised", "BadFrame", book([0, 3, 200, 5_000_000_000], boxes)
    yield "neighbours out of order", "BadFrame", book([3, 0, 5_000_000_000], boxes)
    yield "a box twice", "BadFrame", book(there, [boxes[0], boxes[0], *boxes[1:]])
    yield "a box of itself", "BadFrame", book(there, [*boxes, [me, r.parties[me].advert, boxes[0][2]]])
    yield "a box of a stranger", "BadFrame", book(there, [*boxes, [4, *boxes[0][1:]]])
    yield (
        "an advert changed",
        "BadFrame",
        book(there, [[0, [box_key, box_key, signature], boxes[0][2]], *boxes[1:]]),
    )
    other = _advert(r, 0, box_key, ref.x25519_public(made_up("another mask key")))
    yield "a second mask key of a neighbour", "BadFrame", book(there, [[0, other, boxes[0][2]], *boxes[1:]])
    small = _advert(r, 0, bytes(32), mask_key)
    yield "a box key of small order", "BadFrame", book(there, [[0, small, boxes[0][2]], *boxes[1:]])


def _bad_survivors(r: ref.Round) -> Frames:
    for what, error, survivors in [
        ("too few", "PolicyRefused", [0, 70_000]),
        ("not itself", "BadFrame", [0, 3, 5_000_000_000]),
        ("out of order", "BadFrame", [70_000, 0, 5_000_000_000]),
        ("one twice", "BadFrame", [0, 0, 70_000]),
        ("a stranger", "BadFrame", [0, 4, 70_000]),
    ]:
        yield what, error, ref.msgpack(["masking.survivors", survivors])


def _bad_consents(r: ref.Round) -> Frames:
    def book(*entries: tuple[int, bytes]) -> bytes:
        return ref.msgpack(["masking.consents", entries])

    a, c = ((u, r.parties[u].consent) for u in (0, 5_000_000_000))
    others = ref.survivor_bytes(r.context, ROSTER)
    yield "too few", "PolicyRefused", book(a)
    yield "out of order", "BadFrame", book(c, a)
    yield "one twice", "BadFrame", book(a, a, c)
    yield "its own", "BadFrame", book(a, (70_000, r.parties[70_000].consent), c)
    yield "to other survivors", "BadFrame", book(a, (c[0], ref.ed25519(r.parties[c[0]].identity, others)))
    yield "of somebody else", "BadFrame", book(a, (3, c[1]))
    yield "a second set of survivors instead", "WrongPhase", ref.msgpack(["masking.survivors", r.survivors])


def _bad_adverts(r: ref.Round) -> Frames:
    def answer(advert: list[bytes], neighbours: list[int]) -> bytes:
        return ref.msgpack(["masking.advertise", advert, neighbours])

    me = r.parties[70_000]
    box_key, mask_key, signature = me.advert
    yield "too few neighbours", "BadFrame", answer(me.advert, me.neighbours[:-1])
    yield "itself as neighbour", "BadFrame", answer(me.advert, [0, 3, 200, 70_000])
    yield "neighbours out of order", "BadFrame", answer(me.advert, me.neighbours[::-1])
    yield "a wrong signature", "BadFrame", answer([mask_key, box_key, signature], me.neighbours)
    yield (
        "a key of 31 bytes signed",
        "BadFrame",
        answer(_advert(r, 70_000, box_key, mask_key[:31]), me.neighbours),
    )
    yield "too long", "TooLarge", answer(me.advert, [*range(2000)])


def _bad_shares(r: ref.Round) -> Frames:
    me = r.parties[70_000]
    entrusted: list[list[Any]] = [[v, box, bytes(16), bytes(16)] for v, box in me.boxes.items()]
    yield "a holder left out", "BadFrame", ref.msgpack(["masking.shares", entrusted[1:]])
    yield "holders out of order", "BadFrame", ref.msgpack(["masking.shares", entrusted[::-1]])
    extra = [200, *entrusted[0][1:]]
    yield (
        "a holder that has not advertised",
        "BadFrame",
        ref.msgpack(["masking.shares", [*entrusted[:2], extra, entrusted[2]]]),
    )
    short = [entrusted[0][0], entrusted[0][1][:-1], *entrusted[0][2:]]
    yield "a short box", "BadFrame", ref.msgpack(["masking.shares", [short, *entrusted[1:]]])


def _bad_masked(r: ref.Round) -> Frames:
    packed = ref.pack(r.masked[70_000], r.code.modulus_bits)
    yield "of another round", "WrongPhase", ref.msgpack(["masking.masked", bytes(32), packed])
    yield "a summand too short", "BadFrame", ref.msgpack(["masking.masked", r.context, packed[:-1]])
    yield "a summand too long", "BadFrame", ref.msgpack(["masking.masked", r.context, packed + b"\0"])
    yield "a frame too long", "TooLarge", ref.msgpack(["masking.masked", r.context, bytes(2000)])
    wide = b"\xc5" + len(packed).to_bytes(2, "big") + packed
    head = ref.msgpack(["masking.masked", r.context, b""])[:-2]
    yield "a length wider than need be", "BadFrame", head + wide


def _bad_consent(r: ref.Round) -> Frames:
    me = r.parties[70_000]
    others = ref.ed25519(me.identity, ref.survivor_bytes(r.context, ROSTER))
    yield "to other survivors, to the server", "BadFrame", ref.msgpack(["masking.consent", others])
    yield "a signature of 63 bytes", "BadFrame", ref.msgpack(["masking.consent", me.consent[:-1]])


def _bad_reveals(r: ref.Round) -> Frames:
    def answer(seeds: Mapping[int, bytes], keys: Mapping[int, bytes]) -> bytes:
        return ref.msgpack(["masking.reveal", [*seeds.items()], [*keys.items()]])

    seeds, keys = r.revealed[70_000]
    survivor, dropped = next(iter(seeds)), next(iter(keys))
    yield (
        "a survivor's key share",
        "BadFrame",
        answer(seeds, {survivor: r.parties[survivor].key_shares[70_000], **keys}),
    )
    yield (
        "a seed share of one who dropped out",
        "BadFrame",
        answer({**seeds, dropped: r.parties[dropped].seed_shares[70_000]}, {}),
    )
    yield "a share changed", "BadFrame", answer({**seeds, survivor: bytes(32)}, keys)
    yield "out of order, to the server", "BadFrame", answer(dict([*seeds.items()][::-1]), keys)
    yield "a share of its own", "BadFrame", answer({**seeds, 70_000: bytes(32)}, keys)
