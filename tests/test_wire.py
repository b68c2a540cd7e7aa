"""Frames: one encoding for each message, and nothing else gets through."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privfr.backends.party import Refused
from privfr.backends.plain import Summand
from privfr.backends.trusted import Accepted, Boxed, Finish, Forward
from privfr.errors import BadFrame, TooLarge, WrongPhase
from privfr.protocol import Ack, Begin, Result, RoundSpec, Sealed
from privfr.wire import Message, decode, encode, kind, register

SPEC = RoundSpec(
    b"r" * 16, 300, "plain", (1, 2, 70000), 2, ("loss",), 9, b"l" * 32, b"m" * 32, b"c" * 32, b""
)
SAMPLES: list[Message] = [
    Begin(SPEC, memoryview(b"model")),
    Begin(SPEC, memoryview(b"")),
    Sealed((1, 300), memoryview(bytes(300))),
    Result(b"x" * 32, memoryview(encode(Sealed((1, 2), memoryview(b"sum"))))),
    Ack(b"y" * 32),
    Summand(b"z" * 32, memoryview(b"abcd")),
    Boxed(memoryview(b"box")),
    Forward(200, memoryview(b"box")),
    Finish(),
    Accepted(),
    Refused("why"),
]
TYPES = sorted({type(sample) for sample in SAMPLES}, key=lambda found: found.__name__)


def name(found: Any) -> str:
    return found.__name__ if isinstance(found, type) else type(found).__name__


integers = st.integers(-(2**63), 2**64 - 1)
views = st.binary(max_size=400).map(lambda found: memoryview(found))
specs = st.builds(
    RoundSpec,
    st.binary(max_size=40), integers, st.text(), st.lists(integers).map(tuple), integers,
    st.lists(st.text(max_size=40)).map(tuple), integers, st.binary(), st.binary(), st.binary(),
)  # fmt: skip
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Begin, specs, views),
    st.builds(Sealed, st.lists(integers).map(tuple), views),
    st.builds(Result, st.binary(), views),
    st.builds(Ack, st.binary()),
    st.builds(Summand, st.binary(), views),
    st.builds(Boxed, views),
    st.builds(Forward, integers, views),
    st.just(Finish()),
    st.just(Accepted()),
    st.builds(Refused, st.text()),
)


def refused_or_canonical(frame: bytes, expects: type[Message]) -> None:
    """The rule: a frame is refused by the protocol's own errors, or is the encoding of what it decodes to."""
    try:
        message = decode(frame, expects)
    except (BadFrame, WrongPhase):
        return
    assert encode(message) == frame


@given(messages)
def test_a_message_survives_the_wire(message: Message) -> None:
    frame = encode(message)
    assert kind(frame) == message.__struct_config__.tag
    assert decode(frame, type(message)) == message
    assert decode(memoryview(b"pad" + frame)[3:], type(message)) == message


@given(messages, st.sampled_from(TYPES))
def test_another_kind_of_message_is_out_of_phase(message: Message, expects: type[Message]) -> None:
    if expects is not type(message):
        with pytest.raises(WrongPhase):
            decode(encode(message), expects)


@given(st.binary(), st.sampled_from(TYPES))
def test_any_bytes_are_refused_or_canonical(frame: bytes, expects: type[Message]) -> None:
    refused_or_canonical(frame, expects)


plain_values = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | st.text(max_size=8) | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(TYPES), st.lists(plain_values, max_size=4))
def test_well_formed_msgpack_under_a_true_tag_is_refused_or_canonical(
    expects: type[Message], fields: list[Any]
) -> None:
    refused_or_canonical(msgspec.msgpack.encode([expects.__struct_config__.tag, *fields]), expects)


@pytest.mark.parametrize("message", SAMPLES, ids=name)
def test_every_single_byte_mutation(message: Message) -> None:
    frame = bytearray(encode(message))
    for at, true in enumerate(frame):
        for wrong in range(256):
            frame[at] = wrong
            refused_or_canonical(bytes(frame), type(message))
        frame[at] = true


@pytest.mark.parametrize("message", SAMPLES, ids=name)
def test_every_truncation_and_extension_is_refused(message: Message) -> None:
    frame = encode(message)
    for end in range(len(frame)):
        with pytest.raises(BadFrame):
            decode(frame[:end], type(message))
    for extra in (b"\0", b"\xc0", b"\xc4\x00", frame):
        with pytest.raises(BadFrame):
            decode(frame + extra, type(message))
        with pytest.raises((BadFrame, WrongPhase)):
            decode(extra[:1] + frame, type(message))


@given(messages, st.data())
def test_a_mutated_frame_is_refused_or_canonical(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    start = data.draw(st.integers(0, len(frame)))
    end = data.draw(st.integers(start, len(frame)))
    refused_or_canonical(frame[:start] + data.draw(st.binary(max_size=9)) + frame[end:], type(message))


def test_integers_that_are_not_minimal_are_refused() -> None:
    frame = encode(Forward(5, memoryview(b"box")))
    head, tail = frame[: frame.index(b"\x05")], frame[frame.index(b"\x05") + 1 :]
    assert head + b"\x05" + tail == frame
    longer = [b"\xcc\x05", b"\xcd\0\x05", b"\xce\0\0\0\x05", b"\xcf" + bytes(7) + b"\x05"]
    signed = [b"\xd0\x05", b"\xd1\0\x05", b"\xd2\0\0\0\x05", b"\xd3" + bytes(7) + b"\x05"]
    floats = [b"\xca\x40\xa0\0\0", b"\xcb\x40\x14" + bytes(6)]
    for five in (*longer, *signed, *floats, b"\xc3", b"\xa15"):
        with pytest.raises(BadFrame):
            decode(head + five + tail, Forward)


def test_headers_that_are_not_minimal_are_refused() -> None:
    tag = b"\xaftrusted.forward"
    fields = b"\x05\xc4\x03box"
    assert decode(b"\x93" + tag + fields, Forward) == Forward(5, memoryview(b"box"))
    arrays = [b"\xdc\0\x03", b"\xdd\0\0\0\x03"]
    tags = [
        b"\xd9\x0f" + tag[1:],
        b"\xda\0\x0f" + tag[1:],
        b"\xdb\0\0\0\x0f" + tag[1:],
        b"\xc4\x0f" + tag[1:],
    ]
    bulks = [
        b"\xc5\0\x03box",
        b"\xc6\0\0\0\x03box",
        b"\xa3box",
        b"\xd9\x03box",
        b"\xc7\x03\x01box",
        b"\x93\1\2\3",
    ]
    wrong = [array + tag + fields for array in arrays]
    wrong += [b"\x93" + other + fields for other in tags]
    wrong += [b"\x93" + tag + b"\x05" + bulk for bulk in bulks]
    for frame in wrong:
        with pytest.raises(BadFrame):
            decode(frame, Forward)


@pytest.mark.parametrize("length", [0, 1, 255, 256, 65535, 65536])
def test_bulk_headers_at_the_limits_of_their_sizes(length: int) -> None:
    """The canonical check writes the bulk's header itself: it must agree with msgspec at each boundary."""
    message = Boxed(memoryview(bytes(length)))
    assert decode(encode(message), Boxed) == message


def test_a_field_too_many_or_too_few_is_refused() -> None:
    types: dict[str, type[Message]] = {"ack": Ack, "trusted.finish": Finish, "sealed": Sealed}
    for fields in (["ack", b"y", 1], ["ack", b"y", None], ["ack"], ["trusted.finish", 0], ["sealed", [1]]):
        expects: type[Message] = types[str(fields[0])]
        with pytest.raises(BadFrame):
            decode(msgspec.msgpack.encode(fields), expects)
    inner = [SPEC.run, 0, "plain", [1], 2, [], 9, b"", b"", b"", "one more"]
    with pytest.raises(BadFrame):
        decode(msgspec.msgpack.encode(["begin", inner, b""]), Begin)


def test_a_message_as_a_map_is_refused() -> None:
    with pytest.raises(BadFrame):
        decode(msgspec.msgpack.encode({"type": "ack", "model": b"y"}), Ack)


def test_a_claim_of_a_billion_elements_is_refused_at_once() -> None:
    frame = b"\x93\xa6sealed\xdd\xff\xff\xff\xff\x01\xc4\x00"
    with pytest.raises(BadFrame):
        decode(frame, Sealed)
    with pytest.raises(BadFrame):
        decode(b"\x92\xadtrusted.boxed\xc6\xff\xff\xff\xffbox", Boxed)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(BadFrame):
        decode(b"\x93\xa6sealed" + b"\x91" * 100_000 + b"\xc4\x00", Sealed)


def test_a_frame_beyond_its_limit_is_refused_before_it_is_decoded() -> None:
    frame = encode(Ack(b"y" * 32))
    assert decode(frame, Ack, limit=len(frame)) == Ack(b"y" * 32)
    with pytest.raises(TooLarge):
        decode(frame, Ack, limit=len(frame) - 1)
    with pytest.raises(TooLarge):
        decode(bytes(100), Ack, limit=99)


@pytest.mark.parametrize(
    "frame", [b"", b"\x93", b"\x93\xa6seal", b"\x91\xa4\xff\xff\xff\xff", b"\xdc", bytes(40)]
)
def test_a_frame_of_no_known_kind_is_refused(frame: bytes) -> None:
    with pytest.raises(BadFrame):
        kind(frame)


def test_a_large_bulk_is_a_view_and_begins_aligned() -> None:
    """Adding a summand up copies it to an aligned place first unless it begins at 16 bytes' multiple."""
    frame = encode(Summand(b"z" * 32, memoryview(np.arange(20_000, dtype="<f4").data.cast("B"))))
    bulk = decode(frame, Summand).bulk
    vector = np.frombuffer(bulk, "<f4")
    start = vector.ctypes.data - np.frombuffer(frame, np.uint8).ctypes.data
    assert start == len(frame) - len(bulk)
    assert start % 16 == 0
    assert bulk.readonly
    assert vector.tolist() == list(range(20_000))


def test_a_repr_shows_the_kind_and_the_size_alone() -> None:
    for message in SAMPLES:
        assert repr(message) == str(message) == f"<{type(message).__name__}, {len(encode(message))} bytes>"


def test_a_tag_belongs_to_one_message() -> None:
    class Impostor(Message, frozen=True, tag="ack"):
        pass

    class Untagged(Message, frozen=True):
        pass

    class TooLong(Message, frozen=True, tag="x" * 32):
        pass

    class Numbered(Message, frozen=True, tag=7):
        pass

    for refused in (Impostor, Untagged, TooLong, Numbered):
        with pytest.raises(TypeError, match=refused.__name__):
            register(refused)
    assert decode(encode(Ack(b"y")), Ack) == Ack(b"y")
