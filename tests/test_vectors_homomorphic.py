"""Test vectors of the homomorphic backends: privfr's code agrees with `tests/vectors/lattices.py`."""

from __future__ import annotations

import runpy
from typing import Any

import msgspec
import numpy as np
import pytest
from insecure import spec_of
from nacl.public import PrivateKey
from test_vectors import VECTORS, Given, Replay, bad, cases, refused, unhex

import privfr.federation as federation
from privfr.backends import backend
from privfr.backends.homomorphic import authority, clients, messages
from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.lattice import (
    Key,
    Lattice,
    Words,
    choose,
    pack_words,
    packed_bytes,
    unpack_words,
)  # fmt: skip
from privfr.backends.homomorphic.mac import CHECKS, Mac, add_tags
from privfr.backends.homomorphic.packing import Packing
from privfr.backends.homomorphic.sealing import Keyring, open_from, seal_to, subkey
from privfr.coding import Coding, FixedPoint, pack, unpack
from privfr.wire import Message, decode, encode


def lattice_of(fields: list[Any]) -> Lattice:
    """Read as a spec's parameters are read, but raising what the class itself raises."""
    scheme, symmetric, degree, primes, *rest = fields
    return Lattice(scheme, symmetric, degree, tuple(primes), *rest)


# Parameters, coefficients, keys and ciphertexts


@cases("lattice", "backend")
def test_parameters(case: Given) -> None:
    given, gives = case["given"], case["gives"]
    coding = msgspec.convert(given["coding"], Coding)
    found = choose(*rounds.SCHEMES[given["backend"]], given["clients"], coding)
    assert found.prime == gives["prime"]
    assert list(found.primes) == gives["primes"]
    assert (found.plain, found.values, found.lane_bits) == (
        gives["plain"], gives["values"], gives["lane_bits"],
    )  # fmt: skip
    assert (found.packed_bytes, found.key_bytes) == (gives["ciphertext_bytes"], gives["key_bytes"])
    assert rounds.plan(given["backend"], given["clients"], coding).hex() == gives["parameters"]
    assert backend(given["backend"]).plan(given["clients"], 2, coding, {}).hex() == gives["parameters"]


@bad("lattice", "backend")
def test_refused_parameters(case: Given) -> None:
    given = case["given"]
    refused(
        case,
        lambda: rounds.plan(given["backend"], given["clients"], msgspec.convert(given["coding"], Coding)),
    )


@bad("lattice", "lattice")
def test_a_refused_lattice(case: Given) -> None:
    refused(case, lambda: lattice_of(case["given"]["lattice"]))


def all_ones(count: int) -> Words:
    return np.full(count, 2**64 - 1, np.uint64)


@cases("lattice", "coefficients")
def test_coefficients(case: Given) -> None:
    bits, words = case["given"]["bits"], case["given"]["coefficients"]
    packed = pack_words(np.array(words, np.uint64), bits)
    assert packed.hex() == case["gives"]["packed"]
    assert len(packed) == packed_bytes(len(words), bits)
    assert [w for w in words if w < 2**64 - 1] == unpack_words(packed, bits, all_ones(len(words))).tolist()


@bad("lattice", "packed")
def test_refused_coefficients(case: Given) -> None:
    given = case["given"]
    moduli = np.full(given["count"], given["prime"], np.uint64)
    refused(case, lambda: unpack_words(unhex(given["packed"]), given["bits"], moduli))


def key_of(case: Given) -> tuple[Lattice, Key]:
    own = lattice_of(case["given"]["lattice"])
    return own, Key.load(own, unhex(case["gives"]["key" if own.symmetric else "public"]))


@cases("lattice", "secret")
def test_a_key_is_its_coefficients(case: Given) -> None:
    own, key = key_of(case)
    assert key.export().hex() == case["gives"]["key" if own.symmetric else "public"]
    assert key.can_decrypt == own.symmetric


@pytest.mark.parametrize("name", ["bfv", "ckks"])
def test_a_ciphertext_is_read(name: str) -> None:
    case = secret_case(f"{name}: a key and a ciphertext")
    own, key = key_of(case)
    moduli = np.full(own.words, own.prime, np.uint64)
    slots = key.decrypt(unpack_words(unhex(case["gives"]["words"]), own.primes[0], moduli))
    expected = case["gives"]["slots"]
    assert slots.tolist() == expected + [0] * (own.slots - len(expected))


@pytest.mark.parametrize(
    "name", ["bfv: a key and a ciphertext", "ckks: a key and a ciphertext", "bfv-authority: a public key"]
)
def test_the_reference_reads_what_privfr_encrypts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(VECTORS)
    reference = runpy.run_path(str(VECTORS / "lattices.py"))
    case = secret_case(name)
    own, key = key_of(case)
    secret = [(byte + 1) % 256 - 1 for byte in unhex(case["given"]["secret"])]
    slots = np.arange(own.slots, dtype=np.int64) % 255 - 127
    theirs = reference["Lattice"](*case["given"]["lattice"])
    words = key.encrypt(slots).tolist()
    assert reference["decrypted"](theirs, secret, words) == slots.tolist()
    words[0] = (words[0] + own.prime // 2) % own.prime
    assert reference["decrypted"](theirs, secret, words) != slots.tolist()


def secret_case(name: str) -> Given:
    [found] = [case for case in json_of("lattice")["cases"] if case["name"] == name]
    return found


def json_of(file: str) -> Given:
    read: Given = msgspec.json.decode((VECTORS / f"{file}.json").read_bytes())
    return read


# Slots


def packing_of(given: Given) -> Packing:
    coding = Coding(**given["coding"])
    point = FixedPoint(
        coding, given["clients"], tuple(given["metrics"]), given["size"], unhex(given["context"])
    )
    return Packing(lattice_of(given["lattice"]), point)


def full(runs: list[Any]) -> list[int]:
    """Write a run of zeros out."""
    return [x for each in runs for x in ([0] * each[1] if isinstance(each, list) else [each])]


@cases("slots", "summands")
def test_slots(case: Given) -> None:
    given, gives = case["given"], case["gives"]
    packing = packing_of(given)
    lane_bits = packing.lattice.lane_bits
    assert (packing.point.lanes, packing.capacity, packing.ciphertexts) == (
        gives["lanes"], gives["capacity"], gives["ciphertexts"],
    )  # fmt: skip
    total = np.zeros((packing.ciphertexts, packing.lattice.slots), np.int64)
    for each, laid in zip(given["summands"], gives["slots"], strict=True):
        lanes = unpack(unhex(each["lanes"]), lane_bits, packing.point.lanes)
        slots = np.array(list(packing.spread(lanes)))
        assert slots.tolist() == [full(runs) for runs in laid]
        total += slots
    assert total.tolist() == [full(runs) for runs in gives["total"]]
    assert pack(packing.gather(total), lane_bits).hex() == gives["sum"]


@bad("slots", "total")
def test_a_refused_sum(case: Given) -> None:
    given = case["given"]
    total = [np.array(full(runs), np.int64) for runs in given["total"]]
    refused(case, lambda: packing_of(given).gather(total))


# Tags

ANY_LATTICE = ["ckks", True, 4096, [40, 20], 2**14, 1, 20]


def mac_of(given: Given, people: list[Given]) -> Mac:
    key = unhex(given.get("key", "00" * 32))
    secrets = {each["client"]: unhex(each["secret"]) for each in people}
    return Mac(lattice_of(given.get("lattice", ANY_LATTICE)), unhex(given["context"]), key, secrets)


def ciphertexts_of(runs: list[list[list[int]]]) -> list[Words]:
    return [
        np.repeat(np.array([w for w, _ in each], np.uint64), [times for _, times in each]) for each in runs
    ]


@cases("mac", "number")
def test_the_numbers_of_a_tag(case: Given) -> None:
    """The tag of a ciphertext that is 1 in one place and 0 elsewhere, less the pad."""
    given, rows, factors = case["given"], case["gives"]["r"], case["gives"]["s"]
    mac = mac_of(given, [{"client": 0, "secret": "00" * 32}])
    prime, pad = mac.lattice.prime, mac.tag(0, [])
    for at in range(given["count"]):
        words = np.zeros((given["number"] + 1, given["count"]), np.uint64)
        words[-1, at] = 1
        found = [(a - b) % prime for a, b in zip(mac.tag(0, words), pad, strict=True)]
        assert found == [row[at] * factor % prime for row, factor in zip(rows, factors, strict=True)]


@cases("mac", "client")
def test_pads(case: Given) -> None:
    given = case["given"]
    assert list(mac_of(given, [given]).tag(given["client"], [])) == case["gives"]["pad"]


@cases("mac", "survivors")
def test_tags(case: Given) -> None:
    given, gives = case["given"], case["gives"]
    people = given["survivors"]
    mac, summed = mac_of(given, people), (0,) * CHECKS
    for each, expected in zip(people, gives["tags"], strict=True):
        # A client knows its own secret only.
        own = mac_of(given, [each]).tag(each["client"], ciphertexts_of(each["ciphertexts"]))
        assert list(own) == expected
        summed = add_tags(mac.lattice, summed, own)
    assert list(summed) == gives["tag"]
    mac.check([each["client"] for each in people], summed, ciphertexts_of(gives["total"]))


@bad("mac", "total")
def test_a_refused_total(case: Given) -> None:
    given = case["given"]
    mac, clients = mac_of(given, given["survivors"]), [each["client"] for each in given["survivors"]]
    refused(case, lambda: mac.check(clients, tuple(given["tag"]), ciphertexts_of(given["total"])))


# Boxes


@cases("sealing", "use")
def test_subkey(case: Given) -> None:
    given = case["given"]
    assert subkey(unhex(given["secret"]), unhex(given["use"])).hex() == case["gives"]["key"]


@cases("sealing", "private")
def test_what_client_and_authority_share(case: Given) -> None:
    given = case["given"]
    shared = authority.agree(PrivateKey(unhex(given["private"])), unhex(given["public"]))
    assert shared.hex() == case["gives"]["shared"]


def keyring_of(given: Given, client: int) -> Keyring:
    people = {each["client"]: each for each in given["roster"]}
    roster = {each: unhex(person["public"]) for each, person in people.items()}
    return Keyring(client, unhex(people[client]["private"]), roster)


@cases("sealing", "clients")
def test_sealing(case: Given) -> None:
    given, gives = case["given"], case["gives"]
    entropy, roster = Replay(given["entropy"]), tuple(given["clients"])
    names = unhex(given["purpose"]), unhex(given["context"])
    sender = keyring_of(given, given["sender"])
    made, wrapped = seal_to(sender, roster, *names, unhex(given["bulk"]), entropy)
    entropy.assert_used_up()
    assert ([box.hex() for box in made], wrapped.hex()) == (gives["boxes"], gives["sealed"])
    for client, box in zip(roster, made, strict=True):
        opened = open_from(keyring_of(given, client), given["sender"], *names, box, wrapped)
        assert opened == (unhex(given["entropy"][0]), unhex(given["bulk"]))


@bad("sealing", "box")
def test_a_refused_box(case: Given) -> None:
    given = case["given"]
    fields = (unhex(given[name]) for name in ("purpose", "context", "box", "sealed"))
    own = keyring_of(given, given["recipient"])
    refused(case, lambda: open_from(own, given["sender"], *fields))


def test_the_purposes_are_those_of_the_spec() -> None:
    assert (clients.PURPOSE, clients.MODEL_PURPOSE) == (b"privfr round key", b"privfr the model")


# Frames, signed bytes, makers

KINDS: dict[str, type[Message]] = {
    str(kind.__struct_config__.tag): kind
    for module in (messages, federation)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind.__module__ == module.__name__
}


@cases("frames", "message")
def test_frames(case: Given) -> None:
    kind = KINDS[case["given"]["message"]]
    found = decode(unhex(case["gives"]["frame"]), kind)
    assert encode(found).hex() == case["gives"]["frame"]
    fields = [getattr(found, name) for name in kind.__struct_fields__]
    assert plain(fields) == case["given"]["fields"]


def plain(value: Any) -> Any:
    """As JSON has it: lists, and bytes in hex."""
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


@bad("frames", "frame")
def test_a_refused_frame(case: Given) -> None:
    refused(case, lambda: decode(unhex(case["given"]["frame"]), KINDS[case["given"]["as"]]))


def test_every_message_has_a_frame() -> None:
    assert {case["given"].get("message") for case in json_of("frames")["cases"]} - {None} == set(KINDS)
    assert len(KINDS) == 12


@cases("frames", "context", "survivors")
def test_signed_survivors(case: Given) -> None:
    given = case["given"]
    signed = messages.survivor_bytes(unhex(given["context"]), tuple(given["survivors"]))
    assert signed.hex() == case["gives"]["signed"]


@cases("frames", "context", "key")
def test_signed_key(case: Given) -> None:
    given = case["given"]
    assert messages.key_bytes(unhex(given["context"]), unhex(given["key"])).hex() == case["gives"]["signed"]


@cases("frames", "round")
def test_makers(case: Given) -> None:
    given = case["given"]
    found = backend("bfv")
    spec = msgspec.structs.replace(
        spec_of(found, range(5)),
        clients=tuple(given["roster"]), round=given["round"], threshold=given["threshold"],
    )  # fmt: skip
    assert list(clients.makers(spec)) == case["gives"]["makers"]


def test_a_vector_that_is_wrong_would_be_found() -> None:
    """A slot, a tag, a sealed bulk and a prime: change one of each."""
    slots = json_of("slots")["cases"][0]
    slots["gives"]["slots"][0][0][0] ^= 1
    with pytest.raises(AssertionError):
        test_slots(slots)
    tagged = next(case for case in json_of("mac")["cases"] if "survivors" in case["given"])
    tagged["gives"]["tags"][0][0] ^= 1
    with pytest.raises(AssertionError):
        test_tags(tagged)
    sealed = next(case for case in json_of("sealing")["cases"] if "clients" in case["given"])
    sealed["gives"]["sealed"] = sealed["gives"]["sealed"][:-2] + "ff"
    with pytest.raises(AssertionError):
        test_sealing(sealed)
    choice = json_of("lattice")["cases"][0]
    choice["gives"]["prime"] += 8192
    with pytest.raises(AssertionError):
        test_parameters(choice)
