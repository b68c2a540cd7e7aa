"""Masks: published vectors, libsodium beside OpenSSL, and the laws that let masks cancel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import nacl.hash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_scalarmult_base
from nacl.encoding import RawEncoder
from nacl.utils import randombytes_deterministic
from numpy.typing import NDArray
from scipy.stats import chisquare
from vectors.published import X25519_MULTIPLICATIONS

from privfr.backends.masking import masks
from privfr.backends.masking.masks import add_masks, agree, box_keys, derive, pair_key, self_key
from privfr.errors import BadFrame, LocalProtocolError

Lanes = NDArray[np.uint32]

BLOCK, LANES = masks.BLOCK, masks.LANES
CONTEXT = bytes(range(32))
BASE_POINT = (9).to_bytes(32, "little")

keys = st.lists(st.binary(min_size=32, max_size=32), max_size=3)
# Short vectors, and those that end near the bounds of the cipher's and of our own blocks.
lengths = st.integers(0, 70) | st.builds(
    lambda blocks, more: blocks * BLOCK + more, st.integers(1, 3), st.integers(-LANES - 1, LANES + 1)
)


def key_of(number: int) -> bytes:
    return hashlib.sha256(b"test_masks %d" % number).digest()


def stream_of(key: bytes, length: int) -> Lanes:
    """The mask as libsodium makes it: the second implementation."""
    return np.frombuffer(randombytes_deterministic(4 * length, key), "<u4")


def lanes_of(seed: int, length: int) -> Lanes:
    return np.random.default_rng(seed).integers(0, 1 << 32, length, np.uint32)


def public_of(private: bytes) -> bytes:
    return crypto_scalarmult_base(private)


# RFC 8439, appendix A.1 (first bits set in key, nonce and counter) and section 2.3.2.
ZERO, ONE = bytes(32), bytes(31) + b"\x01"
BLOCKS = [
    (ZERO, bytes(12), 0, "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
     "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"),
    (ZERO, bytes(12), 1, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
     "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"),
    (ONE, bytes(12), 1, "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
     "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0"),
    (b"\x00\xff" + bytes(30), bytes(12), 2, "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
     "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"),
    (ZERO, bytes(11) + b"\x02", 0, "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
     "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d"),
    (bytes(range(32)), bytes.fromhex("000000090000004a00000000"), 1,
     "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
     "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "nonce", "counter", "expected"), BLOCKS)
def test_the_keystream_blocks_of_rfc_8439(key: bytes, nonce: bytes, counter: int, expected: str) -> None:
    assert masks._keystream(key, counter, nonce).update(bytes(64)).hex() == expected


def test_the_encryption_of_rfc_8439_section_2_4_2() -> None:
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    stream = masks._keystream(bytes(range(32)), 1, bytes.fromhex("000000000000004a00000000"))
    assert stream.update(text).hex() == (
        "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0bf91b65c5524733ab8f593dabcd62b357"
        "1639d624e65152ab8f530c359f0861d807ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
        "5af90bbf74a35be6b40b8eedf2785e42874d"
    )


@given(st.binary(min_size=32, max_size=32), lengths)
def test_a_mask_is_libsodiums_deterministic_stream(key: bytes, length: int) -> None:
    total = np.zeros(length, np.uint32)
    add_masks(total, [key], [])
    assert np.array_equal(total, stream_of(key, length))


def test_a_known_mask() -> None:
    """The vector of libsodium's own test of `randombytes_buf_deterministic`."""
    total = np.zeros(25, np.uint32)
    add_masks(total, [bytes(range(32))], [])
    assert total.tobytes().hex() == (
        "0d8e6cc68715648926732e7ea73250cfaf2d58422083904c841a8ba33b986111f346ba50723a68ae283524a6bded09f8"
        "3be6b80595856f72e25b86918e8b114bafb94bc8abedd73daab454576b7c5833eb0bf982a1bb4587a5c970ff0810ca3b"
        "791d7e12"
    )


@given(keys, keys, lengths, st.integers(0, 99))
def test_masks_are_added_and_subtracted_mod_2_to_the_32(
    plus: list[bytes], minus: list[bytes], length: int, seed: int
) -> None:
    before = lanes_of(seed, length)
    total = before.copy()
    add_masks(total, plus, minus)
    wide = before.astype(object)
    for key in plus:
        wide = wide + stream_of(key, length)
    for key in minus:
        wide = wide - stream_of(key, length)
    assert total.tolist() == [int(lane) % (1 << 32) for lane in wide]


@given(keys, keys, lengths, st.integers(0, 99))
def test_what_was_added_is_taken_away_again(
    plus: list[bytes], minus: list[bytes], length: int, seed: int
) -> None:
    before = lanes_of(seed, length)
    total = before.copy()
    add_masks(total, plus, minus)
    add_masks(total, minus, plus)
    assert np.array_equal(total, before)


@given(st.integers(2, 6), st.integers(1, 20), st.integers(1, 32))
def test_masks_of_all_pairs_cancel_in_the_sum(clients: int, length: int, bits: int) -> None:
    def pair(u: int, v: int) -> bytes:
        return key_of(100 * min(u, v) + max(u, v))

    everyone = range(clients)
    masked = [lanes_of(u, length) for u in everyone]
    expected = np.sum(masked, axis=0, dtype=np.uint32)
    for u in everyone:
        add_masks(masked[u], [pair(u, v) for v in everyone if u < v], [pair(u, v) for v in everyone if v < u])
    modulus = np.uint32((1 << bits) - 1)
    found = np.sum([vector & modulus for vector in masked], axis=0, dtype=np.uint32) & modulus
    assert np.array_equal(found, expected & modulus)


@pytest.mark.parametrize(
    ("plus", "minus"),
    [(masks.OPEN, 0), (masks.OPEN + 1, 1), (1, 2 * masks.OPEN + 1), (masks.OPEN - 1, masks.OPEN)],
)
def test_more_keys_than_are_open_at_once_are_all_used(plus: int, minus: int) -> None:
    total = lanes_of(0, 20)
    expected = total.astype(np.uint64)
    keys_of_both = [key_of(i) for i in range(plus + minus)]
    add_masks(total, keys_of_both[:plus], keys_of_both[plus:])
    for i, key in enumerate(keys_of_both):
        expected += stream_of(key, 20) if i < plus else (1 << 32) - stream_of(key, 20).astype(np.uint64)
    assert np.array_equal(total, (expected % (1 << 32)).astype(np.uint32))


@given(lengths, st.integers(1, 9))
def test_threads_give_the_same_bits_as_one(length: int, threads: int) -> None:
    one, many = lanes_of(1, length), lanes_of(1, length)
    add_masks(one, [key_of(0), key_of(1)], [key_of(2)])
    add_masks(many, [key_of(0), key_of(1)], [key_of(2)], threads=threads)
    assert np.array_equal(one, many)


@given(st.integers(0, 500), st.integers(1, 9))
def test_ranges_begin_at_whole_blocks_and_keep_every_thread_busy(size: int, parts: int) -> None:
    starts = masks._starts(size, parts)
    assert len(starts) <= parts
    assert all(start % LANES == 0 and start < size for start in starts)
    assert starts == sorted(set(starts))
    if size:
        assert starts[0] == 0
        longest = max(np.diff([*starts, size]))
        assert longest < size / parts + LANES


def test_a_vector_that_is_a_view_is_changed_where_it_lies() -> None:
    whole = lanes_of(3, 2 * BLOCK)
    before = whole.copy()
    add_masks(whole[1::2], [key_of(0)], [])
    assert np.array_equal(whole[::2], before[::2])
    assert np.array_equal(whole[1::2], before[1::2] + stream_of(key_of(0), BLOCK))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("shift", [0, 24])
def test_masked_lanes_are_uniform_whatever_they_hide(bits: int, shift: int) -> None:
    total = np.full(100_003, 12345, np.uint32)
    add_masks(total, [key_of(0)], [key_of(1)])
    counts = np.bincount((total >> np.uint32(shift)) & np.uint32((1 << bits) - 1), minlength=1 << bits)
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "total",
    [np.zeros(4, np.int32), np.zeros(4, np.uint64), np.zeros((2, 2), np.uint32), np.zeros(4, ">u4")],
)
def test_another_kind_of_array_is_refused(total: Lanes) -> None:
    with pytest.raises(LocalProtocolError, match="uint32"):
        add_masks(total, [key_of(0)], [])
    assert not total.any()


def test_a_read_only_vector_is_refused() -> None:
    with pytest.raises(LocalProtocolError, match="writeable"):
        add_masks(np.frombuffer(bytes(16), "<u4"), [key_of(0)], [])


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_refused_before_anything_is_added(length: int) -> None:
    bad = b"\xa7" * length
    for plus, minus in (([key_of(0), bad], []), ([key_of(0)], [bad])):
        total = np.zeros(4, np.uint32)
        with pytest.raises(LocalProtocolError, match="32 bytes") as caught:
            add_masks(total, plus, minus)
        assert not total.any()
        assert "a7" not in str(caught.value)


def test_no_threads_are_refused() -> None:
    with pytest.raises(LocalProtocolError, match="thread"):
        add_masks(np.zeros(4, np.uint32), [key_of(0)], [], threads=0)


@pytest.mark.parametrize(("scalar", "point", "expected"), X25519_MULTIPLICATIONS)
def test_x25519_of_rfc_7748_section_5_2(scalar: str, point: str, expected: str) -> None:
    assert agree(bytes.fromhex(scalar), bytes.fromhex(point)).hex() == expected


def test_x25519_of_rfc_7748_section_5_2_iterated() -> None:
    scalar = point = BASE_POINT
    for count in range(1000):
        scalar, point = agree(scalar, point), scalar
        if count == 0:
            assert scalar.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_x25519_of_rfc_7748_section_6_1() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice_public = agree(alice, BASE_POINT)
    bob_public = agree(bob, BASE_POINT)
    assert alice_public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob_public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agree(alice, bob_public).hex() == agree(bob, alice_public).hex() == shared


# The u coordinates of small order, on the curve and its twist, reduced and not (cr.yp.to/ecdh.html#validate).
PRIME = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)
SMALL_ORDER = [0, 1, *ORDER_8, PRIME - 1, PRIME, PRIME + 1]


@pytest.mark.parametrize("high_bit", [0, 1])
@pytest.mark.parametrize("point", SMALL_ORDER)
def test_a_public_key_of_small_order_is_the_peers_fault(point: int, high_bit: int) -> None:
    # RFC 7748, section 5: the highest bit is ignored.
    public = (point + (high_bit << 255)).to_bytes(32, "little")
    for private in (key_of(0), bytes(32), b"\xff" * 32):
        with pytest.raises(BadFrame, match="small order"):
            agree(private, public)


def test_points_beside_those_of_small_order_are_taken() -> None:
    for point in (2, 3, PRIME - 2, PRIME + 2):
        assert any(agree(key_of(0), point.to_bytes(32, "little")))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_x25519_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(BadFrame, match="public"):
        agree(key_of(0), b"\xa7" * length)
    with pytest.raises(LocalProtocolError, match="private") as caught:
        agree(b"\xa7" * length, public_of(key_of(0)))
    assert "a7" not in str(caught.value)


def test_a_refused_private_or_public_key_is_not_in_the_error() -> None:
    private = b"PRIVATE-PRIVATE-PRIVATE-PRIVATE-"
    with pytest.raises(BadFrame) as caught:
        agree(private, bytes(32))
    assert "PRIVATE" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_derive_is_blake2b_of_the_context_and_the_parts() -> None:
    secret = key_of(0)
    data = CONTEXT + b"\0\0\0\0\0\0\1\2" + b"any bytes" + b"\0\0\0\0\0\0\0\0"
    expected = hashlib.blake2b(data, digest_size=32, key=secret, person=b"privfr test").digest()
    assert derive(secret, b"privfr test", CONTEXT, 258, b"any bytes", 0) == expected


@given(
    st.binary(min_size=32, max_size=64),
    st.binary(min_size=1, max_size=16),
    st.binary(min_size=32, max_size=32),
    st.binary(max_size=50),
)
def test_derive_is_libsodiums_blake2b(secret: bytes, purpose: bytes, context: bytes, part: bytes) -> None:
    expected = nacl.hash.blake2b(
        context + part, digest_size=32, key=secret, person=purpose.ljust(16, b"\0"), encoder=RawEncoder
    )
    assert derive(secret, purpose, context, part) == expected


def test_known_keys() -> None:
    """Frozen: a client and a server of different releases must derive the same."""
    public = public_of(key_of(1))
    found = {
        "derive": derive(key_of(0), b"privfr test", CONTEXT, 1, b"part").hex(),
        "pair": pair_key(key_of(0), public, CONTEXT, 1, 2).hex(),
        "self": self_key(key_of(0), CONTEXT, 1).hex(),
        "key box": key_box(key_of(0), public, CONTEXT, 1, 2).hex(),
        "seed box": seed_box(key_of(0), public, CONTEXT, 1, 2).hex(),
    }
    assert found == {
        "derive": "2c0042ba119c351449e2e76dba4bb241890ad2b07cd0d7a172376b2080e922b0",
        "pair": "0427c7659470051817776d633e68ec528020bd1d24a57651702621ecbc9f768b",
        "self": "2d2570458a71b0ac2c0f1b7d4f1e925260fe8e746d91728dc19b0349121e1587",
        "key box": "47610d8968f249b6c466530e3292893cfa92f50423945acee0281284f3e361ef",
        "seed box": "7f2dccc25d43aad26551bf33a6a52f62e9a72a358754769fe8ff7cb5b1353cc7",
    }


@pytest.mark.parametrize(
    "call",
    [
        lambda: derive(b"", b"purpose", CONTEXT),
        lambda: derive(b"\xa7" * 31, b"purpose", CONTEXT),
        lambda: derive(b"\xa7" * 65, b"purpose", CONTEXT),
        lambda: derive(b"\xa7" * 32, b"", CONTEXT),
        lambda: derive(b"\xa7" * 32, b"a longer purpose!", CONTEXT),
        lambda: derive(b"\xa7" * 32, b"purpose", CONTEXT[:31]),
        lambda: derive(b"\xa7" * 32, b"purpose", CONTEXT + b"\0"),
        lambda: derive(b"\xa7" * 32, b"purpose", CONTEXT, -1),
        lambda: derive(b"\xa7" * 32, b"purpose", CONTEXT, 1 << 64),
        lambda: self_key(b"\xa7" * 16, CONTEXT, 1),
    ],
)
def test_what_derive_cannot_bind_is_refused(call: Callable[[], bytes]) -> None:
    with pytest.raises(LocalProtocolError) as caught:
        call()
    assert "a7" not in str(caught.value)


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_both_sides_derive_the_same_pair_key(one: int, other: int, u: int, v: int) -> None:
    a, b = key_of(one), key_of(1000 + other)
    key = pair_key(a, public_of(b), CONTEXT, u, v)
    assert len(key) == 32
    for private, public in ((a, public_of(b)), (b, public_of(a))):
        assert pair_key(private, public, CONTEXT, u, v) == pair_key(private, public, CONTEXT, v, u) == key


def test_box_keys_are_the_same_for_both_sides_and_others_for_the_way_back() -> None:
    a, b = key_of(0), key_of(1)
    mine, theirs = agree(a, public_of(b)), agree(b, public_of(a))
    there, back = box_keys(mine, CONTEXT, 3, 5), box_keys(theirs, CONTEXT, 5, 3)
    assert there == box_keys(theirs, CONTEXT, 3, 5)
    assert back == box_keys(mine, CONTEXT, 5, 3)
    assert len({*there, *back}) == 4


def key_box(private: bytes, public: bytes, context: bytes, sender: int, recipient: int) -> bytes:
    return box_keys(agree(private, public), context, sender, recipient)[0]


def seed_box(private: bytes, public: bytes, context: bytes, sender: int, recipient: int) -> bytes:
    return box_keys(agree(private, public), context, sender, recipient)[1]


def test_every_input_changes_the_key() -> None:
    private, public, elsewhere = key_of(0), public_of(key_of(1)), bytes(32)
    found = [
        self_key(key_of(0), CONTEXT, 1),
        self_key(key_of(0), CONTEXT, 2),
        self_key(key_of(0), elsewhere, 1),
    ]
    found += [self_key(key_of(1), CONTEXT, 1)]
    for key in (pair_key, key_box, seed_box):
        found += [
            key(private, public, CONTEXT, 1, 2),
            key(key_of(2), public, CONTEXT, 1, 2),
            key(private, public_of(key_of(3)), CONTEXT, 1, 2),
            key(private, public, elsewhere, 1, 2),
            key(private, public, CONTEXT, 1, 3),
            key(private, public, CONTEXT, 0, 2),
        ]
    assert len(set(found)) == len(found)


def test_the_purpose_alone_tells_mask_own_mask_and_boxes_apart() -> None:
    private, public = key_of(0), public_of(key_of(1))
    shared = agree(private, public)
    assert pair_key(private, public, CONTEXT, 1, 2) == derive(shared, b"privfr mask", CONTEXT, 1, 2)
    assert key_box(private, public, CONTEXT, 1, 2) == derive(shared, b"privfr key box", CONTEXT, 1, 2)
    assert seed_box(private, public, CONTEXT, 1, 2) == derive(shared, b"privfr seed box", CONTEXT, 1, 2)
    assert self_key(shared, CONTEXT, 1) == derive(shared, b"privfr self", CONTEXT, 1)
