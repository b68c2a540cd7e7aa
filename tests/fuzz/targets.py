"""What is fuzzed: each target takes the fuzzer's bytes and raises where something is wrong.

Everywhere: nothing but the protocol's own errors, and an input costs less than `SECONDS`. Then
    frames      what decodes is canonical, whatever it is: messages, parameters, packed numbers
    server      a bad answer costs only its sender: the sum is exact over the others
    aggregator  the same for the third party of backend `trusted`, whom the server may lie to
    member      what a client refuses changes nothing; it says each thing once, and never gives away both
                shares of one client
    homomorphic the same for server, client and authority of the homomorphic backends: a sum is true, or not
                opened
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import msgspec
from fuzz.aggregator import aggregator
from fuzz.choices import Choices
from fuzz.homomorphic import ROLES, homomorphic
from fuzz.member import MEMBERS, member, recorded
from fuzz.scenes import SCENES
from fuzz.server import ACTIONS, server

from privfr.backends import plain
from privfr.backends.homomorphic import round as rounds
from privfr.backends.masking import client as masking
from privfr.coding import Coding, pack, unpack
from privfr.errors import BadFrame, RemoteProtocolError
from privfr.protocol import Begin, parameters_of
from privfr.wire import _registry, decode, encode, kind

__all__ = ["TARGETS", "run", "seeds"]

SECONDS = 1.0  # of processor time, for one input


def frames(data: bytes) -> None:
    """Decode anything as anything."""
    choices = Choices(data)
    what = choices.below(4)
    rest = data[choices.used :]
    if what == 0:
        _parameters(rest)
    elif what == 1:
        _packed(choices)
    else:
        _message(rest)


def _message(frame: bytes) -> None:
    try:
        name = kind(frame)
    except BadFrame:
        return
    expects = _registry[name]
    for limit in (None, 64):
        with suppress(RemoteProtocolError):
            message = decode(memoryview(frame), expects, limit)
            assert encode(message) == frame, "decoded what is not canonical"
            assert limit is None or len(frame) <= limit
            if isinstance(message, Begin):
                _spec(message)


def _spec(begin: Begin) -> None:
    assert len(begin.spec.context()) == 32
    begin.spec.check()
    for point_of in (plain.point_of, masking.point_of):
        with suppress(RemoteProtocolError):
            point = point_of(begin.spec)
            assert point is None or 1 < point.modulus_bits <= 32


def _parameters(encoded: bytes) -> None:
    for expected in (masking.Parameters, rounds.Parameters, Coding):
        with suppress(BadFrame):
            found = parameters_of(encoded, expected)
            assert msgspec.msgpack.encode(found) == encoded, "decoded what is not canonical"


def _packed(choices: Choices) -> None:
    bits, count = 1 + choices.below(32), choices.below(64)
    data = choices.chunk()
    with suppress(BadFrame):
        assert pack(unpack(data, bits, count), bits) == data, "unpacked what is not canonical"


TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": frames,
    "server": server,
    "aggregator": aggregator,
    "member": member,
    "homomorphic": homomorphic,
}


def run(name: str, data: bytes) -> None:
    """Give one input to a target. Raises whatever is wrong."""
    started = time.process_time()
    TARGETS[name](data)
    seconds = time.process_time() - started
    assert seconds < SECONDS, f"an input of {len(data)} bytes took {seconds:.1f} s"


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: true rounds, each with one departure from the truth."""
    if name == "frames":
        true = [frame for member in MEMBERS for frame in recorded(member).told_and_said]
        parameters = [recorded(member).parameters for member in (*MEMBERS, "bfv", "ckks-authority")]
        return [b"\x02" + frame for frame in {frame[:24]: frame for frame in true}.values()] + [
            b"\x00" + encoded for encoded in parameters
        ]
    if name == "server":
        # In phase p, client 1 does a.
        at = [
            (scene, phase, action)
            for scene in range(len(SCENES))
            for phase in range(5)
            for action in range(len(ACTIONS))
        ]
        return [bytes([scene]) + bytes(5 * phase + 1) + bytes([action]) for scene, phase, action in at]
    scenes, places = (len(ROLES), (0, 1, 3)) if name == "homomorphic" else (5, range(8))
    return [
        bytes([scene]) + bytes(at) + bytes([step]) + bytes(8)
        for scene in range(scenes)
        for at in places
        for step in range(8)
    ]
