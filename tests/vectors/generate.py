"""Writes the test vectors of masking and of the homomorphic backends, as `reference.py` and `lattices.py` do.

    python tests/vectors/generate.py            write the files (`make vectors`)
    python tests/vectors/generate.py --check    exit with 1 where a file would change

A file holds `cases` (name, source, given, gives) and `bad` ones (name, source, given, error: the class of
privfr's error). Bytes are in hex, and numbers are exact, fractions too. The whole rounds are in `rounds.py`,
and what liars make of them in `lies.py`; those of the homomorphic backends in `homomorphic.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import homomorphic
import lies
import published
import reference as ref
import rounds
from cases import SPEC_FIELDS, Case, bad, case, made_up

HERE = Path(__file__).parent
CONTEXT = bytes(range(32))
OTHER_CONTEXT = bytes(32)
CLIENTS = [(0, 1), (7, 300), (2**32 + 5, 2**40)]

unhex = bytes.fromhex


def agreement() -> Case:
    base = (9).to_bytes(32, "little")
    alice, bob = unhex(published.ALICE), unhex(published.BOB)
    alice_public, bob_public = unhex(published.ALICE_PUBLIC), unhex(published.BOB_PUBLIC)
    agreed = unhex(published.AGREED)
    rfc: list[tuple[Any, ...]] = [
        *(
            (f"multiplication {i + 1}", "RFC 7748, section 5.2", *map(unhex, each))
            for i, each in enumerate(published.X25519_MULTIPLICATIONS)
        ),
        ("Alice's public key", "RFC 7748, section 6.1", alice, base, alice_public),
        ("Bob's public key", "RFC 7748, section 6.1", bob, base, bob_public),
        ("Alice's secret", "RFC 7748, section 6.1", alice, bob_public, agreed),
        ("Bob's secret", "RFC 7748, section 6.1", bob, alice_public, agreed),
    ]
    cases = []
    for name, source, private, public, shared in rfc:
        assert ref.x25519(private, public) == shared, name
        cases.append(case(name, {"private": private, "public": public}, {"shared": shared}, source))
    for i in range(3):
        given = {"private": made_up(f"private {i}"), "public": ref.x25519_public(made_up(f"peer {i}"))}
        cases.append(case(f"made up {i}", given, {"shared": ref.x25519(**given)}))
    refused = [_small_order(name, point, alice) for name, point in _small_points().items()]
    refused += [
        bad("a public key of 31 bytes", "BadFrame", private=alice, public=base[:31]),
        bad("a public key of 33 bytes", "BadFrame", private=alice, public=base + b"\0"),
        bad("a private key of 31 bytes", "LocalProtocolError", private=alice[:31], public=base),
    ]
    return _file("X25519: own private key, the peer's public key -> shared secret.", cases, refused)


def _small_points() -> dict[str, int]:
    p = 2**255 - 19
    one, two = published.ORDER_8
    return {
        "0": 0, "1": 1, "p - 1": p - 1, "p": p, "p + 1": p + 1, "order 8": one, "order 8, the other": two,
        "2^255 + 1, whose top bit is ignored": 2**255 + 1,
    }  # fmt: skip


def _small_order(name: str, point: int, private: bytes) -> Case:
    public = point.to_bytes(32, "little")
    try:
        ref.x25519(private, public)
    except ValueError:
        source = "RFC 7748, section 6.1, and https://cr.yp.to/ecdh.html#validate"
        return bad(f"small order: {name}", "BadFrame", source, private=private, public=public)
    raise AssertionError(name)


def derivation() -> Case:
    cases = []
    for i, (one, other) in enumerate(CLIENTS):
        private, peer, seed, share = (made_up(f"{what} {i}") for what in ("private", "peer", "seed", "share"))
        public = ref.x25519_public(peer)
        given = {"context": CONTEXT, "private": private, "public": public, "one": one, "other": other}
        cases += [
            case(
                f"pair key {i}",
                {"step": "pair_key", **given},
                {"key": ref.pair_key(private, public, CONTEXT, one, other)},
            ),
            case(
                f"pair key {i}, the other way round",
                {"step": "pair_key", **given, "one": other, "other": one},
                {"key": ref.pair_key(private, public, CONTEXT, one, other)},
            ),
            case(
                f"box keys {i}",
                {"step": "box_keys", **given},
                _box_keys(private, public, one, other),
            ),
            case(
                f"box keys {i}, the way back",
                {"step": "box_keys", **given, "one": other, "other": one},
                _box_keys(private, public, other, one),
            ),
            case(
                f"self key {i}",
                {"step": "self_key", "seed": seed, "context": CONTEXT, "client": one},
                {"key": ref.self_key(seed, CONTEXT, one)},
            ),
            case(
                f"share digest {i}",
                {"step": "share_digest", "share": share, "context": CONTEXT, "owner": one, "holder": other},
                {"digest": ref.share_digest(share, CONTEXT, one, other)},
            ),
        ]
    seed = made_up("seed 0")
    refused = [
        bad("a seed of 31 bytes", "LocalProtocolError", seed=seed[:31], context=CONTEXT, client=1),
        bad("a context of 31 bytes", "LocalProtocolError", seed=seed, context=CONTEXT[:31], client=1),
        bad("a client of 65 bits", "LocalProtocolError", seed=seed, context=CONTEXT, client=2**64),
    ]
    about = "BLAKE2b: keys of masks and boxes, digests of shares. The bad ones are of `self_key`."
    return _file(about, cases, refused)


def _box_keys(private: bytes, public: bytes, sender: int, recipient: int) -> dict[str, bytes]:
    kinds = {"key_box": ref.KEY_BOX, "seed_box": ref.SEED_BOX}
    return {
        name: ref.box_key(kind, private, public, CONTEXT, sender, recipient) for name, kind in kinds.items()
    }


def keystream() -> Case:
    cases = []
    for where, key_, nonce_, counter, stream_ in published.CHACHA20_BLOCKS:
        key, nonce, stream = unhex(key_), unhex(nonce_), unhex(stream_)
        assert ref.chacha20(key, nonce, counter, 64) == stream, where
        given = {"key": key, "nonce": nonce, "counter": counter}
        cases.append(case(f"RFC 8439, {where}", given, {"stream": stream}, f"RFC 8439, {where}"))
    for i, lanes in enumerate((0, 1, 15, 16, 17, 40)):
        key = made_up(f"mask {i}")
        stream = b"".join(lane.to_bytes(4, "little") for lane in ref.mask_lanes(key, lanes))
        assert stream == ref.chacha20(key, b"LibsodiumDRG", 0, 4 * lanes)
        cases.append(case(f"a mask of {lanes} lanes", {"key": key, "lanes": lanes}, {"stream": stream}))
    key = made_up("long mask")
    stream = b"".join(lane.to_bytes(4, "little") for lane in ref.mask_lanes(key, 40_000))
    digest = {"digest": hashlib.blake2b(stream, digest_size=32).digest(), "end": stream[-16:]}
    cases.append(case("a mask of 40000 lanes, by its BLAKE2b-256", {"key": key, "lanes": 40_000}, digest))
    refused = [
        bad("a key of 31 bytes", "LocalProtocolError", key=key[:31]),
        bad("a key of 33 bytes", "LocalProtocolError", key=key + b"\0"),
    ]
    about = "ChaCha20 as mask: 12-byte nonce 'LibsodiumDRG', counter from 0, little-endian uint32 lanes."
    return _file(about, cases, refused)


def shamir() -> Case:
    cases = []
    largest = (ref.PRIME - 1).to_bytes(32, "big")
    for i, (secret, threshold, holders) in enumerate([
        (made_up("secret 0"), 1, [0, 1]),
        (made_up("secret 1"), 2, [0, 3, 200]),
        (made_up("secret 2"), 3, [1, 2, 70_000, 5_000_000_000]),
        (bytes(32), 2, [1, 2]),
        (largest, 3, [5, 6, 7]),
    ]):  # fmt: skip
        draws = ref.Draws(i)
        shares = ref.split(secret, threshold, holders, draws)
        assert ref.combine(dict(list(shares.items())[-threshold:])) == secret
        given = {"secret": secret, "threshold": threshold, "holders": holders, "entropy": draws.taken}
        cases.append(case(f"{threshold} of {len(holders)}, {i}", given, {"shares": _pairs(shares)}))
    # What is drawn is drawn again unless it is below the prime.
    too_large, coefficient = [ref.PRIME.to_bytes(32, "big"), b"\xff" * 32], made_up("coefficient")
    drawn = iter([*too_large, coefficient])
    secret = made_up("secret 3")
    given = {"secret": secret, "threshold": 2, "holders": [4, 9]}
    shares = ref.split(secret, 2, [4, 9], lambda n: next(drawn))
    cases.append(
        case(
            "two draws are too large",
            {**given, "entropy": [*too_large, coefficient]},
            {"shares": _pairs(shares)},
        )
    )
    some: list[list[Any]] = [[1, made_up("share 1")], [2, made_up("share 2")]]
    refused = [
        bad("a share of 31 bytes", "BadFrame", threshold=2, shares=[some[0], [2, some[1][1][:31]]]),
        bad("a share that is the prime", "BadFrame", threshold=2, shares=[some[0], [2, too_large[0]]]),
        bad("too few shares", "BadFrame", threshold=3, shares=some),
        bad("a threshold of 0", "LocalProtocolError", threshold=0, shares=some),
        bad(
            "a secret that is the prime", "LocalProtocolError", secret=too_large[0], threshold=1, holders=[1]
        ),
        bad("a secret of 31 bytes", "LocalProtocolError", secret=bytes(31), threshold=1, holders=[1]),
        bad(
            "more needed than there are", "LocalProtocolError", secret=bytes(32), threshold=3, holders=[1, 2]
        ),
        bad("a holder twice", "LocalProtocolError", secret=bytes(32), threshold=1, holders=[2, 2]),
    ]
    about = (
        "Shamir's sharing mod 2^256 - 189. entropy: the draws, in order; the first is the coefficient of x."
    )
    return _file(about, cases, refused)


PROMISES = [
    *((n, "0", "0") for n in (2, 3, 4, 5, 8, 51, 60, 200)),
    *((n, "0.05", "0.05") for n in (10, 40, 50, 51, 100, 300, 1000)),
    *((n, "0.1", "0.1") for n in (10, 40, 50, 51, 100, 300, 1000)),
    *((n, "0.2", "0.2") for n in (10, 40, 50, 100, 300)),
    (100, "0.07", "0"), (100, "0", "0.29"), (7, "0.3", "0.1"), (200, "0.33", "0.1"),
]  # fmt: skip


def graph() -> Case:
    cases, refused = [], []
    for clients, corruption, dropout in PROMISES:
        name = f"{clients} clients, {corruption} corrupt, {dropout} dropped out"
        given = {"clients": clients, "corruption": float(corruption), "dropout": float(dropout)}
        try:
            k, t = ref.graph(clients, corruption, dropout)
        except ValueError:
            refused.append(bad(name, "InputError", **given))
            continue
        corrupt, dropped = ref.counts(clients, corruption, dropout)
        size, quorum = ref.committee(clients, corruption, dropout, complete=k == clients - 1)
        gives = {
            "corrupt": corrupt, "dropped": dropped, "neighbours": k, "shares": t,
            "committee": size, "quorum": quorum,
            "fewest": max(t + 1, quorum) if size == clients else t + 1,
        }  # fmt: skip
        cases.append(case(name, given, gives))
    for clients, corruption, dropout in [
        (1, "0", "0"),
        (2, "0.5", "0"),
        (10, "0.5", "0.3"),
        (100, "0.4", "0.4"),
    ]:
        try:
            ref.graph(clients, corruption, dropout)
        except ValueError:
            given = {"clients": clients, "corruption": float(corruption), "dropout": float(dropout)}
            refused.append(bad(f"{clients} clients, {corruption}, {dropout}", "InputError", **given))
            continue
        raise AssertionError(clients)
    few = {"clients": 40, "corruption": 0.05, "dropout": 0.05, "neighbours": 10, "shares": 8}
    assert ref.private(40, 2, 10, 8) and ref.correct(40, 2, 10, 8)
    size, quorum = ref.committee(40, "0.05", "0.05")
    gives = {"corrupt": 2, "dropped": 2, "neighbours": 10, "shares": 8, "committee": size, "quorum": quorum,
             "fewest": max(9, quorum)}  # fmt: skip
    cases.append(case("given numbers: the whole roster's quorum is more than a client's holders", few, gives))
    given = {"clients": 100, "corruption": 0.1, "dropout": 0.1}
    k, t = ref.graph(100, "0.1", "0.1")
    assert not ref.private(100, 10, k, t - 1) and not ref.correct(100, 10, k, t + 1)
    refused += [
        bad(
            "given numbers: a share fewer than privacy needs",
            "InputError",
            **given,
            neighbours=k,
            shares=t - 1,
        ),
        bad(
            "given numbers: a share more than correctness can",
            "InputError",
            **given,
            neighbours=k,
            shares=t + 1,
        ),
        bad("given numbers: too many neighbours", "InputError", **given, neighbours=100, shares=60),
    ]
    cases += [*_committees(), *_members()]
    for i, (client, roster, k) in enumerate(
        [
            (3, [1, 2, 3, 4, 5], 4),
            (3, [1, 2, 3, 4, 5], 2),
            (0, [0, 7, 300, 70_000, 2**33], 3),
            (9, [*range(20)], 6),
        ]
    ):
        draws = ref.Draws(i)
        found = ref.draw_neighbours(client, roster, k, draws)
        drawing = {"client": client, "roster": roster, "neighbours": k, "entropy": draws.taken}
        cases.append(case(f"client {client} draws {k} of {len(roster) - 1}", drawing, {"drawn": found}))
    refused.append(
        bad(
            "more neighbours than others",
            "LocalProtocolError",
            client=1,
            roster=[1, 2],
            neighbours=2,
            entropy=[],
        )
    )
    about = "How many neighbours, shares and committee members keep a promise, and who these are."
    return _file(about, cases, refused)


def _committees() -> list[Case]:
    """The committees of federations whose graphs would take the reference too long."""
    cases = []
    for clients, corruption, dropout in (
        (600, "0.2", "0.2"), (1000, "0.33", "0.05"), (3000, "0.05", "0.05"), (3000, "0", "0.1"),
        (100, "0.35", "0.3"), (60, "0.4", "0.1"),
    ):  # fmt: skip
        size, quorum = ref.committee(clients, corruption, dropout)
        given = {"clients": clients, "corruption": float(corruption), "dropout": float(dropout)}
        name = f"committee: {clients} clients, {corruption} corrupt, {dropout} dropped out"
        cases.append(case(name, {"promise": given}, {"committee": size, "quorum": quorum}))
    return cases


def _members() -> list[Case]:
    return [
        case(
            f"{size} members of {len(roster)}, context {context[:2].hex()}",
            {"roster": roster, "context": context, "size": size},
            {"members": ref.members(roster, context, size)},
        )
        for roster in ([0, 7, 300, 70_000, 2**33], [*range(60)])
        for size in (1, 4, len(roster))
        for context in (CONTEXT, OTHER_CONTEXT)
    ]


NEAREST = {"clip": 4.0, "bits": 16, "max_weight": 100, "rounding": "nearest", "rotate": False}
UPDATES = [
    {"weight": 10, "metrics": {"loss": 0.5, "accuracy": 0.25}, "vector": [0.5, -1.25, 3.0, 0.0078125, -3.5]},
    {
        "weight": 100,
        "metrics": {"loss": 9.0, "accuracy": 1.0},
        "vector": [-4.0, 4.0, 0.0, 1e-6, 2.7182817459106445],
    },
    {
        "weight": 37,
        "metrics": {"loss": 2.75, "accuracy": 0.5},
        "vector": [1.0, 2.0, 3.0, -4.0, -0.10000000149011612],
    },
]


def coding() -> Case:
    cases = [
        _coded("nearest", NEAREST, UPDATES),
        _coded(
            "halves go to even",
            NEAREST | {"clip": 7.0, "bits": 4, "max_weight": 1},
            [{"weight": 1, "metrics": {}, "vector": [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5, 7.0]}],
        ),
        _coded("stochastic", NEAREST | {"rounding": "stochastic"}, UPDATES),
        _coded("rotated", NEAREST | {"rotate": True, "clip": 8.0}, UPDATES),
        _coded("rotated and stochastic", NEAREST | {"rotate": True, "rounding": "stochastic"}, UPDATES),
        _coded("rotated, one number", NEAREST | {"rotate": True}, [{**UPDATES[0], "vector": [1.5]}]),
        _coded("saturated: a coordinate", NEAREST | {"clip": 0.5}, UPDATES),
        _coded("saturated: a metric", NEAREST, [{**UPDATES[1], "metrics": {"loss": 200.0, "accuracy": 1.0}}]),
        _coded(
            "just not saturated: half a step above the range",
            NEAREST | {"clip": 7.0, "bits": 4, "max_weight": 1},
            [{"weight": 1, "metrics": {}, "vector": [7.5, -7.5]}],
        ),
        _coded("a weight above the largest", NEAREST, [{**UPDATES[0], "weight": 1000}]),
        _coded("2 bits: a weight in 7 digits", NEAREST | {"bits": 2}, UPDATES),
        _coded("24 bits", NEAREST | {"bits": 24, "max_weight": 2**32}, UPDATES),
        _coded("no metrics", NEAREST, [{"weight": 3, "metrics": {}, "vector": [1.0, -1.0]}], clients=200),
    ]
    about = (
        "Updates as integers. lanes: each client's, total: their sum, packed. vector: float32, little-endian."
    )
    return _file(about, cases, [*_bad_codings(), *_bad_updates(), *_bad_sums()])


def _code(settings: Mapping[str, Any], given: Mapping[str, Any]) -> ref.Code:
    return ref.Code(**settings, **{name: given[name] for name in ("clients", "metrics", "size", "context")})


def _coded(
    name: str, settings: Mapping[str, Any], updates: Sequence[Mapping[str, Any]], clients: int = 0
) -> Case:
    given: dict[str, Any] = {
        "coding": settings, "clients": clients or len(updates), "metrics": list(updates[0]["metrics"]),
        "size": len(updates[0]["vector"]), "context": CONTEXT,
    }  # fmt: skip
    code = _code(settings, given)
    draws = [ref.Draws(i) for i in range(len(updates))]
    lanes = [code.encode(update, draw) for update, draw in zip(updates, draws, strict=True)]
    total = [sum(column) % 2**code.modulus_bits for column in zip(*lanes, strict=True)]
    given |= {"updates": [{**u, "entropy": d.taken} for u, d in zip(updates, draws, strict=True)]}
    gives = {
        "modulus_bits": code.modulus_bits, "count": code.lanes,
        "lanes": [ref.pack(each, code.modulus_bits) for each in lanes],
        "total": ref.pack(total, code.modulus_bits), "mean": code.decode(total, len(updates)),
    }  # fmt: skip
    return case(name, given, gives)


def _bad_codings() -> list[Case]:
    changes = [
        ("bits", 1),
        ("bits", 25),
        ("clip", 0.0),
        ("clip", 1e10),
        ("max_weight", 0),
        ("max_weight", 2**32 + 1),
        ("rounding", "up"),
    ]
    return [
        *(bad(f"{name} = {value}", "InputError", coding=NEAREST | {name: value}) for name, value in changes),
        bad("a sum that needs 33 bits", "InputError", coding=NEAREST | {"bits": 24}, clients=512),
    ]


def _bad_updates() -> list[Case]:
    good = UPDATES[0]
    changes: list[tuple[str, dict[str, Any]]] = [
        ("an update that is not finite", {"vector": [0.5, -1.25, "nan", 0.0, 0.0]}),
        ("an update that is infinite", {"vector": [0.5, -1.25, "-inf", 0.0, 0.0]}),
        ("a metric that is infinite", {"metrics": {"loss": "inf", "accuracy": 0.0}}),
        ("an update of another size", {"vector": [1.0]}),
        ("other metrics", {"metrics": {"loss": 1.0}}),
        ("a weight of 0", {"weight": 0}),
        ("a weight that is no whole number", {"weight": 1.5}),
    ]
    return [bad(name, "LocalProtocolError", coding=NEAREST, update=good | change) for name, change in changes]


def _bad_sums() -> list[Case]:
    """Sums over 2 of 3 clients; lanes: weight, saturated, loss, accuracy, 5 coordinates."""
    good = [20, 0, 100, 100, 1, 2, 3, 4, 5]
    beyond = 2 * (2**15 - 1) + 1
    changes = [
        ("no weight", 0, 0),
        ("a weight below the count", 0, 1),
        ("a weight that cannot be", 0, 201),
        ("more saturated than there are", 1, 3),
        ("fewer than none saturated", 1, -1),
        ("a metric beyond two clients", 2, beyond),
        ("a coordinate beyond two clients", 8, -beyond),
    ]
    modulus_bits = 1 + (3 * (2**15 - 1)).bit_length()
    return [
        bad(f"a sum with {name}", "BadFrame", coding=NEAREST,
            total=ref.pack([*good[:at], value, *good[at + 1 :]], modulus_bits))
        for name, at, value in changes
    ]  # fmt: skip


def packing() -> Case:
    cases = []
    for bits, count in itertools.product((1, 2, 7, 8, 17, 20, 31, 32), (0, 1, 3, 8, 11)):
        drawn = made_up(f"lanes {bits} {count}", 4 * count)
        lanes = [int.from_bytes(drawn[4 * i : 4 * i + 4], "little") % 2**bits for i in range(count)]
        cases.append(case(f"{count} lanes of {bits} bits", {"bits": bits, "lanes": lanes},
                          {"packed": ref.pack(lanes, bits)}))  # fmt: skip
    refused = [
        bad("a byte short", "BadFrame", bits=20, count=3, packed=bytes(7)),
        bad("a byte too many", "BadFrame", bits=20, count=3, packed=bytes(9)),
        bad(
            "the last byte's first unused bit is set", "BadFrame", bits=20, count=3, packed=bytes(7) + b"\x10"
        ),
        bad("the last byte's last unused bit is set", "BadFrame", bits=7, count=1, packed=b"\x80"),
    ]
    return _file("Lanes of k bits, lane 0 first, as a little-endian stream of bits.", cases, refused)


def signatures() -> Case:
    cases = []
    for i, each in enumerate(published.ED25519_SIGNATURES):
        seed, key, message, signature = map(unhex, each)
        assert (ref.ed25519_public(seed), ref.ed25519(seed, message)) == (key, signature)
        gives = {"key": key, "signed": message, "signature": signature}
        source = f"RFC 8032, section 7.1, test {i + 1}"
        cases.append(case(f"Ed25519 {i + 1}", {"identity": seed, "message": message}, gives, source))
    identity = made_up("identity")
    keys = {"box_key": ref.x25519_public(made_up("box")), "mask_key": ref.x25519_public(made_up("mask"))}
    for client, _ in CLIENTS:
        given = {"identity": identity, "context": CONTEXT, "client": client, **keys}
        cases.append(case(f"advert of client {client}", given,
                          _signed(identity, ref.advert_bytes(CONTEXT, client, *keys.values()))))  # fmt: skip
    for survivors in ([], [0], [0, 3, 200], [7, 2**32 + 5, 2**40]):
        given = {"identity": identity, "context": CONTEXT, "survivors": survivors}
        cases.append(case(f"survivors {survivors}", given,
                          _signed(identity, ref.survivor_bytes(CONTEXT, survivors))))  # fmt: skip
    return _file("What is signed, and Ed25519 signatures of it.", cases, _bad_signatures(identity))


def _signed(identity: bytes, signed: bytes) -> dict[str, bytes]:
    return {"key": ref.ed25519_public(identity), "signed": signed, "signature": ref.ed25519(identity, signed)}


def _bad_signatures(identity: bytes) -> list[Case]:
    key, signed = ref.ed25519_public(identity), ref.survivor_bytes(CONTEXT, [1, 2])
    good = ref.ed25519(identity, signed)
    order = 2**252 + 27742317777372353535851937790883648493
    malleable = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")
    wrong = {
        "of other survivors": ref.ed25519(identity, ref.survivor_bytes(CONTEXT, [1, 2, 3])),
        "of another round": ref.ed25519(identity, ref.survivor_bytes(OTHER_CONTEXT, [1, 2])),
        "of somebody else": ref.ed25519(made_up("somebody else"), signed),
        "with a bit flipped": bytes([good[0] ^ 1]) + good[1:],
        "whose s is not reduced": malleable,
        "a byte short": good[:63],
        "a byte too long": good + b"\0",
        "that is empty": b"",
    }
    refused = [
        bad(f"a signature {name}", "BadFrame", key=key, signed=signed, signature=signature)
        for name, signature in wrong.items()
    ]
    return [*refused, bad("a key of 31 bytes", "BadFrame", key=key[:31], signed=signed, signature=good)]


def spec() -> Case:
    cases = []
    plain = [b"r" * 16, 0, "plain", [0, 1], 1, [], 1, b"l" * 32, b"m" * 32, b"c" * 32]
    long = [
        made_up("run", 16),
        300,
        "masking",
        [*range(20), 128, 256, 65_536, 2**32],
        24,
        ["loss", "é" * 20],
        1_000_000,
        made_up("layout"),
        made_up("model"),
        made_up("config"),
    ]
    settings = [1.0, 16, 4096, "stochastic", True, None], [19, 13], [300, 113]
    whole = [4, 16, 1, "nearest", False, [1000, 50, True]], [19, 13], [24, 13]
    for name, fields, parameters in [
        ("the smallest", plain, None),
        ("all widths", long, settings),
        ("a clip that is a whole number is encoded as a float", long, whole),
    ]:
        encoded = b""
        if parameters:
            (clip, *coding), *rest = parameters
            encoded = ref.msgpack([[float(clip), *coding], *rest])
        wire = [*fields, encoded]
        given = dict(zip(SPEC_FIELDS, fields, strict=True))
        if parameters:
            given |= dict(zip(("coding", "graph", "committee"), parameters, strict=True))
        gives = {"parameters": encoded, "encoded": ref.msgpack(wire), "context": ref.context_of(wire)}
        cases.append(case(f"spec, {name}", given, gives))
    layout = {"names": ["a.weight", "b"], "shapes": [[2, 300], []]}
    encoded = ref.msgpack(layout)
    digest = hashlib.blake2b(encoded, digest_size=32).digest()
    cases.append(case("layout", {"layout": layout}, {"encoded": encoded, "digest": digest}))
    vector = [1.0, -0.5, 0.0, 1e-3]
    cases.append(case("model", {"model": vector}, {"digest": _model_digest(vector)}))
    return _file(
        "A round's spec as canonical msgpack, and the digests in it.", cases, _bad_specs(plain, settings)
    )


def _model_digest(vector: Sequence[float]) -> bytes:
    return hashlib.blake2b(rounds.floats(vector), digest_size=32).digest()


def _bad_specs(plain: list[Any], settings: tuple[Any, ...]) -> list[Case]:
    changes = {
        "a client twice": (3, [1, 1]), "clients out of order": (3, [2, 1]), "no clients": (3, []),
        "a threshold of 0": (4, 0), "a threshold above the clients": (4, 3),
        "no numbers": (6, 0), "too many numbers": (6, 2**28 + 1),
    }  # fmt: skip
    refused = []
    for name, (at, value) in changes.items():
        changed = [*plain[:at], value, *plain[at + 1 :], b""]
        refused.append(bad(f"spec: {name}", "BadFrame", spec=ref.msgpack(changed)))
    good = ref.msgpack(settings)
    parameters = {
        "empty": b"", "cut off": good[:-1], "a byte too many": good + b"\0",
        "a clip that is an integer": good.replace(ref.msgpack(1.0), b"\x01"),
        "an integer wider than need be": good[:-1] + b"\xcc" + good[-1:],
        "25 bits": ref.msgpack([[1.0, 25, 4096, "nearest", False, None], *settings[1:]]),
        "no graph and committee": ref.msgpack([settings[0]]),
        "no committee": ref.msgpack(settings[:2]),
        "a committee without a quorum": ref.msgpack([*settings[:2], [30]]),
        "a fourth field": ref.msgpack([*settings, 0]),
    }  # fmt: skip
    return [
        *refused,
        *(bad(f"parameters: {name}", "BadFrame", parameters=value) for name, value in parameters.items()),
    ]


def whole_rounds() -> Case:
    played = {name: rounds.played(name) for name in rounds.ROUNDS}
    few = played[rounds.FEW_MASKED].parties
    assert 3 in few[200].neighbours and 200 not in few[3].neighbours
    assert 200 in few[0].neighbours and 0 not in few[200].neighbours
    cases = [rounds.played_case(*each) for each in played.items()]
    return _file(rounds.ABOUT, [*cases, *lies.taken(played)], lies.refused(played))


def _pairs(shares: Mapping[int, bytes]) -> list[list[Any]]:
    return [[holder, share] for holder, share in shares.items()]


def _file(about: str, cases: list[Case], refused: list[Case]) -> Case:
    names = [each["name"] for each in (*cases, *refused)]
    assert len(names) == len(set(names)), "a name twice"
    return {"about": about, "cases": cases, "bad": refused}


def check_reference() -> None:
    """Hold the box against NaCl's own vector; everything else published is checked where it is cited."""
    key, nonce, plain, box = map(unhex, published.SECRETBOX)
    assert ref.secretbox(key, nonce, plain) == nonce + box


FILES = {
    "agreement": agreement,
    "derivation": derivation,
    "keystream": keystream,
    "shamir": shamir,
    "graph": graph,
    "coding": coding,
    "packing": packing,
    "signatures": signatures,
    "spec": spec,
    "round": whole_rounds,
    "lattice": lambda: _file(*homomorphic.lattice()),
    "slots": lambda: _file(*homomorphic.slots()),
    "mac": lambda: _file(*homomorphic.macs()),
    "sealing": lambda: _file(*homomorphic.boxes()),
    "frames": lambda: _file(*homomorphic.frames()),
}


def dumped(value: Any, indent: int = 0) -> str:
    """JSON in which what holds no objects stands on one line; bytes in hex."""
    if isinstance(value, bytes):
        value = value.hex()
    if isinstance(value, float):
        assert math.isfinite(value)
    pad = " " * (indent + 1)
    if isinstance(value, Mapping):
        inner = [f"{pad}{json.dumps(str(key))}: {dumped(each, indent + 1)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inner) + f"\n{' ' * indent}}}" if inner else "{}"
    if isinstance(value, list | tuple):
        parts = [dumped(each, indent + 1) for each in value]
        if all("\n" not in part for part in parts):
            return "[" + ", ".join(parts) + "]"
        return "[\n" + ",\n".join(pad + part for part in parts) + f"\n{' ' * indent}]"
    return json.dumps(value, ensure_ascii=False)


def main() -> None:
    """Write the files, or say which are stale."""
    check_reference()
    stale = []
    for name, make in FILES.items():
        path, new = HERE / f"{name}.json", dumped(make()) + "\n"
        if "--check" not in sys.argv[1:]:
            path.write_text(new, "utf-8")
        elif not path.is_file() or path.read_text("utf-8") != new:
            stale.append(path.name)
    if stale:
        sys.exit(f"{', '.join(stale)}: stale; run `make vectors`")


if __name__ == "__main__":
    main()
