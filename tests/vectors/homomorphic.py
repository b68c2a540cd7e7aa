"""Vectors of the homomorphic backends, as `lattices.py` works them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lattices as lat
import reference as ref
from cases import Case, bad, made_up
from cases import case as cased

__all__ = ["boxes", "frames", "lattice", "macs", "slots"]

SOURCE = "privfr, independent reference in tests/vectors/lattices.py"
CONTEXT = bytes(range(32))
File = tuple[str, list[Case], list[Case]]


def case(name: str, given: Mapping[str, Any], gives: Mapping[str, Any]) -> Case:
    return cased(name, given, gives, SOURCE)


def wrong(name: str, error: str, /, **given: Any) -> Case:
    return bad(name, error, SOURCE, **given)


# Parameters, coefficients, keys and ciphertexts

BACKENDS = {
    "bfv": ("bfv", True), "ckks": ("ckks", True), "bfv-authority": ("bfv", False),
    "ckks-authority": ("ckks", False),
}  # fmt: skip
CHOICES = [
    (2, 16),
    (10, 16),
    (10, 2),
    (10, 8),
    (10, 19),
    (10, 20),
    (10, 24),
    (40, 16),
    (1000, 12),
    (10_000, 16),
]
# Small, so that the files are: no round has such parameters, and the code takes them all the same.
SMALL = {
    "bfv": lat.Lattice("bfv", True, 2048, [34, 20], lat.prime_above(600, 2048), 1, 8),
    "ckks": lat.Lattice("ckks", True, 2048, [34, 20], 2**14, 1, 8),
    "bfv-authority": lat.Lattice("bfv", False, 2048, [34, 20], lat.prime_above(600, 2048), 1, 8),
}


def lattice() -> File:
    about = (
        "Parameters that follow from backend, clients and coding; coefficients on the wire; keys and "
        "ciphertexts, made from a known secret (a byte a coefficient: 00, 01, or ff for -1), at a degree "
        "that no round has. words: packed. slots: the first ones, the others are 0."
    )
    cases = [_choice(name, clients, bits) for name in BACKENDS for clients, bits in CHOICES]
    return about, [*cases, *_packings(), *_ciphers()], _bad_lattices()


def _choice(name: str, clients: int, bits: int) -> Case:
    coding = [0.25, bits, 1000, "nearest", False, None]
    found = lat.choose(*BACKENDS[name], clients, bits)
    prime, spare = found.moduli
    gives = {
        "primes": found.primes, "prime": prime, "spare": spare, "plain": found.plain,
        "values": found.values, "lane_bits": found.lane_bits,
        "ciphertext_bytes": len(lat.packed([0] * 2 * found.degree, found.primes[0])),
        "key_bytes": len(lat.packed([0] * len(found.key_moduli), found.primes[0])),
        "parameters": ref.msgpack([coding, found.fields]),
    }  # fmt: skip
    return case(f"{name}, {clients} clients, {bits} bits",
                {"backend": name, "clients": clients, "coding": coding}, gives)  # fmt: skip


def _drawn(text: str, count: int, bits: int) -> list[int]:
    drawn = made_up(text, 8 * count)
    return [int.from_bytes(drawn[8 * i : 8 * i + 8], "little") % 2**bits for i in range(count)]


def _packings() -> list[Case]:
    return [
        case(f"{count} coefficients of {bits} bits", {"bits": bits, "coefficients": words},
             {"packed": lat.packed(words, bits)})
        for bits in (33, 40, 47, 60, 64) for count in (1, 3, 8)
        for words in [_drawn(f"coefficients {bits} {count}", count, bits)]
    ]  # fmt: skip


def _ciphers() -> list[Case]:
    cases = []
    for name, own in SMALL.items():
        secret = lat.ternary(f"secret of {name}", own.degree)
        given = {"lattice": own.fields, "secret": bytes(s % 256 for s in secret)}
        if not own.symmetric:
            key = lat.public_key(own, secret, f"public key of {name}")
            cases.append(case(f"{name}: a public key", given, {"public": key}))
            continue
        few = [(37 * i * i + 11 * i) % 255 - 127 for i in range(100)]
        slots = few + [0] * (own.slots - len(few))
        words = lat.encrypted(own, secret, slots, f"ciphertext of {name}")
        assert lat.decrypted(own, secret, words) == slots
        gives = {
            "key": lat.secret_key(own, secret), "words": lat.packed(words, own.primes[0]), "slots": few,
        }  # fmt: skip
        cases.append(case(f"{name}: a key and a ciphertext", given, gives))
    return cases


def _bad_lattices() -> list[Case]:
    prime = lat.prime_of(40, 4096)
    good = lat.packed([prime - 1, 0, 1], 40)
    unused = lat.packed([1], 33)
    coding = [0.25, 6, 1000, "nearest", False, None]
    return [
        wrong("a sum that no slot holds", "InputError", backend="ckks-authority", clients=2**26,
              coding=coding),
        wrong("primes of 110 bits", "InputError", lattice=["bfv", True, 4096, [60, 50], 65537, 1, 16]),
        wrong("a degree of 4095", "InputError", lattice=["bfv", True, 4095, [20, 7], 65537, 1, 16]),
        wrong("a coefficient that is the prime", "BadFrame", bits=40, prime=prime, count=3,
              packed=lat.packed([prime - 1, prime, 1], 40)),
        wrong("a coefficient of all ones", "BadFrame", bits=40, prime=prime, count=3,
              packed=good[:8] + b"\xff" * 4 + good[12:14] + b"\xff"),
        wrong("a byte short", "BadFrame", bits=40, prime=prime, count=3, packed=good[:-1]),
        wrong("a byte too many", "BadFrame", bits=40, prime=prime, count=3, packed=good + b"\0"),
        wrong("an unused bit is set", "BadFrame", bits=33, prime=lat.prime_of(33, 4096), count=1,
              packed=unused[:-1] + bytes([unused[-1] | 0x80])),
    ]  # fmt: skip


# Slots

CODED = {"clip": 4.0, "bits": 16, "max_weight": 100, "rounding": "nearest", "rotate": False}
LAID_OUT: list[tuple[str, lat.Lattice, int, int]] = [
    # scheme and slots, bits of a value, numbers in the shared vector; 3 clients
    ("one lane a slot", lat.Lattice("ckks", True, 1024, [7, 20], 1, 1, 18), 16, 20),
    ("three lanes a slot", lat.Lattice("ckks", True, 1024, [7, 20], 1, 3, 18), 16, 40),
    ("two ciphertexts", lat.Lattice("ckks", True, 1024, [7, 20], 1, 2, 18), 16, 1060),
    ("fourteen lanes of 2 bits", lat.Lattice("ckks", True, 1024, [7, 20], 1, 14, 3), 2, 9),
    ("BFV, 24 bits", lat.Lattice("bfv", False, 1024, [7, 20], 65537, 2, 26), 24, 7),
]


def slots() -> File:
    about = (
        "How lanes of 3 clients lie in slots, and what comes out of their sum. lanes: one "
        "client's, modulo 2^lane_bits, packed. slots: runs of zeros stand as [0, how many]. total: the "
        "slots added up; sum: the lanes that come out, packed."
    )
    cases = [_laid_out(*each) for each in LAID_OUT]
    return about, cases, _bad_sums()


def _room(own: lat.Lattice, bits: int, size: int) -> tuple[lat.Packing, dict[str, Any]]:
    settings = CODED | {"bits": bits}
    code = ref.Code(**settings, clients=3, metrics=["loss"], size=size, context=CONTEXT)
    assert code.modulus_bits == own.lane_bits
    given = {
        "lattice": own.fields, "coding": settings, "clients": 3, "metrics": ["loss"], "size": size,
        "context": CONTEXT,
    }  # fmt: skip
    return lat.Packing(own, bits, code.lanes), given


def _summands(packing: lat.Packing) -> list[dict[str, Any]]:
    """Three clients: lanes within their range, at its ends too."""
    most, found = 2 ** (packing.bits - 1) - 1, []
    for client in (0, 300, 2**40):
        drawn = _drawn(f"lanes of {client}", packing.lanes, 40)
        lanes = [word % (2 * most + 1) - most for word in drawn]
        lanes[:2] = [most, -most]
        found.append({"client": client, "lanes": lanes})
    return found


def _laid_out(name: str, own: lat.Lattice, bits: int, size: int) -> Case:
    packing, given = _room(own, bits, size)
    k, parts = own.lane_bits, _summands(packing)
    laid = [packing.spread(each["lanes"]) for each in parts]
    total = [[sum(column) for column in zip(*each, strict=True)] for each in zip(*laid, strict=True)]
    lanes = [sum(column) for column in zip(*(each["lanes"] for each in parts), strict=True)]
    given |= {"summands": [{"client": each["client"], "lanes": ref.pack(each["lanes"], k)} for each in parts]}
    gives = {
        "lanes": packing.lanes, "capacity": packing.capacity, "ciphertexts": packing.ciphertexts,
        "slots": [[_runs(slots) for slots in each] for each in laid],
        "total": [_runs(slots) for slots in total], "sum": ref.pack(lanes, k),
    }  # fmt: skip
    return case(name, given, gives)


def _runs(numbers: Sequence[int]) -> list[Any]:
    """Runs of four zeros or more are written as [0, how many]."""
    found: list[Any] = []
    at = 0
    while at < len(numbers):
        end = at
        while end < len(numbers) and not numbers[end]:
            end += 1
        if end - at >= 4:
            found.append([0, end - at])
            at = end
        else:
            found.append(numbers[at])
            at += 1
    return found


def _bad_sums() -> list[Case]:
    name, own, bits, size = LAID_OUT[1]
    packing, given = _room(own, bits, size)
    laid = [packing.spread(each["lanes"])[0] for each in _summands(packing)]
    total = [sum(column) for column in zip(*laid, strict=True)]
    k, last = own.lane_bits, own.lane_bits * own.values - 1
    beyond = {"above": 2**last, "far above": 2**62, "below": -(2**last) - 2 ** (k * (own.values - 1))}
    return [
        wrong(f"{name}: a number {where} the last lane", "BadFrame", **given,
              total=[_runs([*total[:-1], number])])
        for where, number in beyond.items()
    ]  # fmt: skip


# Tags

SURVIVORS = (0, 300, 2**40)
KEY = made_up("key of all tags")
SECRETS = {client: made_up(f"secret of {client}") for client in SURVIVORS}
TAGGED = {
    # bits of the prime, coefficients, ciphertexts; real ciphertexts have 8192 coefficients
    "35 bits": (35, 5, 1), "51 bits, three ciphertexts": (51, 4, 3), "60 bits": (60, 7, 2),
}  # fmt: skip


def macs() -> File:
    about = (
        "Tags. key: shared by all who encrypt and whoever opens; secret: one client's with whoever opens. "
        "r: numbers of all ciphertexts, s: of ciphertext `number`, four rows each. Ciphertexts are lists of "
        "runs [coefficient, "
        "times], shorter than real ones where nothing else is said. total: ciphertexts and tags of the "
        "survivors added up. The bad ones are refused before anything is decrypted."
    )
    numbers = [
        case(f"r and s of ciphertext {number}",
             {"lattice": _tagging(60).fields, "key": KEY, "context": CONTEXT, "number": number, "count": 6},
             {"r": lat.mac_rows(KEY, CONTEXT, 6),
              "s": lat.mac_factors(KEY, CONTEXT, number, _tagging(60).moduli[0])})
        for number in (0, 1, 3)
    ]  # fmt: skip
    pads = [
        case(f"pads of client {client}, {bits} bits",
             {"lattice": _tagging(bits).fields, "context": CONTEXT, "client": client, "secret": secret},
             {"pad": lat.mac_pad(secret, CONTEXT, client, _tagging(bits).moduli[0])})
        for bits in (35, 60) for client, secret in SECRETS.items()
    ]  # fmt: skip
    summed = [_tagged(name, *each) for name, each in TAGGED.items()]
    return about, [*numbers, *pads, *summed, _largest()], _bad_totals(summed[1])


def _tagging(bits: int) -> lat.Lattice:
    return lat.Lattice("ckks", True, 4096, [bits, 20], 2**14, 1, 20)


def _tagged(name: str, bits: int, count: int, ciphertexts: int) -> Case:
    own = _tagging(bits)
    prime, parts = own.moduli[0], []
    for client in SURVIVORS:
        drawn = _drawn(f"tagged {client} {bits}", count * ciphertexts, 64)
        words = [word % prime for word in drawn]
        rows = [words[i : i + count] for i in range(0, len(words), count)]
        parts.append((rows, lat.mac_tag(KEY, SECRETS[client], CONTEXT, client, rows, prime)))
    total = [[sum(column) % prime for column in zip(*rows, strict=True)]
             for rows in zip(*(rows for rows, _ in parts), strict=True)]  # fmt: skip
    tag = [sum(column) % prime for column in zip(*(own for _, own in parts), strict=True)]
    pads = [lat.mac_pad(SECRETS[client], CONTEXT, client, prime) for client in SURVIVORS]
    products = lat.mac_products(KEY, CONTEXT, total, prime)
    assert tag == [sum(each) % prime for each in zip(products, *pads, strict=True)]
    people = [
        {"client": client, "secret": SECRETS[client], "ciphertexts": [_times(row) for row in rows]}
        for client, (rows, _) in zip(SURVIVORS, parts, strict=True)
    ]
    given = {"lattice": own.fields, "key": KEY, "context": CONTEXT, "survivors": people}
    gives = {"tags": [each for _, each in parts], "total": [_times(row) for row in total], "tag": tag}
    return case(f"tags of three clients, {name}", given, gives)


def _times(words: Sequence[int]) -> list[list[int]]:
    return [[word, 1] for word in words]


def _largest() -> Case:
    """A ciphertext of full length whose every coefficient is as large as can be: nothing may overflow."""
    own = _tagging(60)
    prime, client = own.moduli[0], SURVIVORS[1]
    rows = [[prime - 1] * 8192]
    tag = lat.mac_tag(KEY, SECRETS[client], CONTEXT, client, rows, prime)
    runs = [[[prime - 1, 8192]]]
    people = [{"client": client, "secret": SECRETS[client], "ciphertexts": runs}]
    return case("a tag of 8192 coefficients that are as large as can be",
                {"lattice": own.fields, "key": KEY, "context": CONTEXT, "survivors": people},
                {"tags": [tag], "total": runs, "tag": tag})  # fmt: skip


def _bad_totals(good: Case) -> list[Case]:
    given, gives = good["given"], good["gives"]
    own, people = _tagging(51), given["survivors"]
    prime, tag, total = own.moduli[0], gives["tag"], gives["total"]
    base: dict[str, Any] = {
        "lattice": own.fields, "key": KEY, "context": CONTEXT, "tag": tag, "total": total,
        "survivors": [{"client": each["client"], "secret": each["secret"]} for each in people],
    }  # fmt: skip
    survivors = base["survivors"]

    def added(times: int) -> Case:
        """The total, and the first client's ciphertexts and tag so many times more."""
        rows = [
            _times([(a + times * b) % prime for (a, _), (b, _) in zip(row, other, strict=True)])
            for row, other in zip(total, people[0]["ciphertexts"], strict=True)
        ]
        return {"total": rows, "tag": [(a + times * b) % prime
                                       for a, b in zip(tag, gives["tags"][0], strict=True)]}  # fmt: skip

    changed = [total[0], [[(total[1][0][0] + 1) % prime, 1], *total[1][1:]], total[2]]
    changes: dict[str, dict[str, Any]] = {
        "with one client twice": added(1), "without one client": added(-1), "with -4 of one": added(-4),
        "over fewer clients than it is said to be": {"survivors": survivors[1:]},
        "with a coefficient that is 1 larger": {"total": changed},
        "with two ciphertexts exchanged": {"total": [total[1], total[0], total[2]]},
        "of one client alone": {"total": people[0]["ciphertexts"], "tag": gives["tags"][0]},
        "with a wrong last number": {"tag": [*tag[:3], (tag[3] + 1) % prime]},
        "with a number that is not below the prime": {"tag": [tag[0] + prime, *tag[1:]]},
        "with three numbers": {"tag": tag[:3]}, "with no numbers": {"tag": []},
        "with a negative number": {"tag": [tag[0] - prime, *tag[1:]]},
        "of another round": {"context": bytes(32)}, "under another key": {"key": bytes(32)},
    }  # fmt: skip
    return [wrong(f"a total {what}", "BadFrame", **(base | change)) for what, change in changes.items()]


# Boxes

PURPOSE, MODEL = b"privfr round key", b"privfr the model"
ROSTER = (0, 300, 2**40)


def boxes() -> File:
    about = (
        "Sealing to fellow clients. entropy: what the sender draws: the secret, a nonce for each box, a "
        "nonce for the bulk. shared: what a client and the authority agree on. The bad boxes are opened by "
        "the recipient as what the vector says they are."
    )
    privates = {client: made_up(f"box private key of {client}") for client in ROSTER}
    roster = {client: ref.x25519_public(private) for client, private in privates.items()}
    subkeys = [
        case(f"subkey {use!r}", {"secret": made_up("a secret"), "use": use.encode()},
             {"key": lat.subkey(made_up("a secret"), use.encode())})
        for use in ("bulk", "mac", "pads", "")
    ]  # fmt: skip
    agreed = [
        case("what client and authority share", {"private": privates[0], "public": roster[300]},
             {"shared": lat.beforenm(privates[0], roster[300])})
    ]  # fmt: skip
    cases = [
        _sealed(0, ROSTER, PURPOSE, b"a key", privates, roster),
        _sealed(300, (2**40,), MODEL, made_up("a model", 1000), privates, roster),
        _sealed(2**40, (0, 300), PURPOSE, b"", privates, roster),
    ]
    return about, [*subkeys, *agreed, *cases], _bad_boxes(privates, roster)


def _people(privates: Mapping[int, bytes], roster: Mapping[int, bytes]) -> list[dict[str, Any]]:
    return [{"client": u, "private": privates[u], "public": roster[u]} for u in roster]


def _sealed(
    sender: int, clients: Sequence[int], purpose: bytes, bulk: bytes,
    privates: Mapping[int, bytes], roster: Mapping[int, bytes],
) -> Case:  # fmt: skip
    entropy = ref.Draws(sender % 1000)
    made, wrapped = lat.sealed(sender, privates[sender], roster, clients, purpose, CONTEXT, bulk, entropy)
    given = {
        "roster": _people(privates, roster), "sender": sender, "clients": clients, "purpose": purpose,
        "context": CONTEXT, "bulk": bulk, "entropy": entropy.taken,
    }  # fmt: skip
    return case(f"client {sender} to {list(clients)}", given, {"boxes": made, "sealed": wrapped})


def _bad_boxes(privates: Mapping[int, bytes], roster: Mapping[int, bytes]) -> list[Case]:
    (box, other), bulk = lat.sealed(
        0, privates[0], roster, (300, 2**40), PURPOSE, CONTEXT, b"a key", ref.Draws(0)
    )
    _, foreign = lat.sealed(0, privates[0], roster, (300,), PURPOSE, CONTEXT, b"a key", ref.Draws(1))
    # The key of a pair is the same in both directions: only the name tells who made a box.
    (back,), bulk_back = lat.sealed(
        300, privates[300], roster, (0,), PURPOSE, CONTEXT, b"a key", ref.Draws(2)
    )
    good: dict[str, Any] = {
        "roster": _people(privates, roster), "sender": 0, "recipient": 300, "purpose": PURPOSE,
        "context": CONTEXT, "box": box, "sealed": bulk,
    }  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "for another purpose": {"purpose": MODEL}, "of another round": {"context": bytes(32)},
        "said to be from somebody else": {"sender": 2**40},
        "said to be from a stranger": {"sender": 7}, "for another recipient": {"box": other},
        "sent back to its maker": {"sender": 300, "recipient": 0},
        "of one's own, played back": {"sender": 0, "box": back, "sealed": bulk_back},
        "with a bit flipped": {"box": box[:-1] + bytes([box[-1] ^ 1])}, "cut off": {"box": box[:-1]},
        "that is empty": {"box": b""}, "with another bulk": {"sealed": foreign},
        "with a bulk that is cut off": {"sealed": bulk[:-1]}, "with an empty bulk": {"sealed": b""},
    }  # fmt: skip
    return [wrong(f"a box {what}", "BadFrame", **(good | change)) for what, change in changes.items()]


# Frames, signed bytes, makers

LONG_ROSTER = [0, 3, 200, 70_000, 5_000_000_000]
TAG = [0, 70_000, 2**35 + 1, 2**60 - 2**18]


def frames() -> File:
    about = (
        "Frames of every message, with fields that nobody chose; what is signed; and who makes a key. The "
        "bad frames are read as the message that `as` names."
    )
    signed = [
        case(f"survivors {list(survivors)}", {"context": CONTEXT, "survivors": survivors},
             {"signed": lat.survivor_bytes(CONTEXT, survivors)})
        for survivors in ([0], [0, 3, 200], [7, 2**32 + 5, 2**40])
    ]  # fmt: skip
    key = made_up("a public key", 100)
    signed.append(
        case("a public key", {"context": CONTEXT, "key": key}, {"signed": lat.key_bytes(CONTEXT, key)})
    )
    turns = [
        case(
            f"makers of round {number}",
            given | {"round": number},
            {"makers": lat.makers(**given, round=number)},
        )
        for given in [{"roster": [0, 3, 200, 70_000, 5_000_000_000], "threshold": 4}]
        for number in (0, 1, 4, 5, 1_000_003)
    ]
    messages = {
        "homomorphic.offer": [CONTEXT, [made_up("box 1", 136), made_up("box 2", 136)], made_up("bulk", 300)],
        "homomorphic.chosen": [300, made_up("box 1", 136), made_up("bulk", 300)],
        "homomorphic.bundle": [
            300, [made_up("box 1", 136), made_up("box 2", 136)], made_up("bulk", 300), TAG,
            made_up("sum", 400),
        ],
        "homomorphic.ready": [CONTEXT],
        "homomorphic.publickey": [made_up("signature", 64), made_up("bulk", 300)],
        "homomorphic.survivors": [LONG_ROSTER],
        "homomorphic.consent": [made_up("signature", 64)],
        "homomorphic.opensum": [
            [0, 3, 200], [[0, made_up("signature 0", 64)], [200, made_up("signature 1", 64)]],
            TAG, made_up("sum", 100),
        ],
        "homomorphic.cipher": [CONTEXT, TAG, made_up("ciphertexts", 300)],
        "handover": [CONTEXT, made_up("digest"), [0, 3]],
        "handedover": [[made_up("box 1", 136)], made_up("model", 60)],
        "handed": [300, made_up("box 1", 136), made_up("model", 60)],
    }  # fmt: skip
    made = [
        case(tag, {"message": tag, "fields": fields}, {"frame": ref.msgpack([tag, *fields])})
        for tag, fields in messages.items()
    ]
    offer = ref.msgpack(["homomorphic.offer", *messages["homomorphic.offer"]])
    kinds: dict[str, tuple[str, str, bytes]] = {
        "an offer with a byte too many": ("BadFrame", "homomorphic.offer", offer + b"\0"),
        "an offer that is cut off": ("BadFrame", "homomorphic.offer", offer[:-1]),
        "an offer without its bulk": (
            "BadFrame", "homomorphic.offer", ref.msgpack(["homomorphic.offer", CONTEXT, []])
        ),
        "an offer where a ciphertext belongs": ("WrongPhase", "homomorphic.cipher", offer),
        "a ciphertext without its tag": (
            "BadFrame", "homomorphic.cipher",
            ref.msgpack(["homomorphic.cipher", CONTEXT, made_up("ciphertexts", 300)]),
        ),
        "a tag that is no numbers": (
            "BadFrame", "homomorphic.cipher", ref.msgpack(["homomorphic.cipher", CONTEXT, [b"1"], b"2"])
        ),
        "a kind that nobody knows": (
            "BadFrame", "homomorphic.ready", ref.msgpack(["homomorphic.reedy", CONTEXT])
        ),
    }  # fmt: skip
    refused = [
        wrong(name, error, **{"as": tag, "frame": frame}) for name, (error, tag, frame) in kinds.items()
    ]
    return about, [*signed, *turns, *made], refused
