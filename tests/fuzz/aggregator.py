"""Target `aggregator`: the third party of backend `trusted`, between a lying server and lying clients."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from fuzz.choices import Choices, altered, mutated
from fuzz.scenes import scene
from insecure import InsecureEntropy
from nacl.public import PublicKey, SealedBox

from privfr.backends import plain
from privfr.backends.plain import Summand
from privfr.backends.trusted import Aggregator, Finish, Forward
from privfr.coding import pack, unpack
from privfr.protocol import Begin, ClientId, RoundSpec, Sealed
from privfr.wire import decode, encode, kind

MOST_STEPS = 24

STEPS = (
    "forward",
    "open",
    "open altered",
    "forward altered",
    "forward another's",
    "mutated",
    "raw",
    "finish",
)


def aggregator(data: bytes) -> None:
    """Send a sequence of frames; the first byte says whether integers or float32 are added."""
    choices = Choices(data)
    fuzzed = Asked(scene(choices.pick(("plain", "plain-coded"))).spec, choices)
    steps = 0
    while choices and steps < MOST_STEPS:
        fuzzed.step(choices.pick(STEPS))
        steps += 1
    fuzzed.finish()


@dataclass
class Asked:
    """An aggregator, and what it should hold. spec: of the round that is open.  summed: what was accepted."""

    base: RoundSpec
    choices: Choices

    def __post_init__(self) -> None:
        self.party = Aggregator(InsecureEntropy(0))
        self.box = SealedBox(PublicKey(self.party.public_key))
        self.spec: RoundSpec | None = None
        self.seen: set[bytes] = set()
        self.summed: dict[ClientId, bytes] = {}
        self.ask(encode(Begin(self.base, memoryview(b""))))

    def step(self, what: str) -> None:
        """Send one frame."""
        choices = self.choices
        begin = Begin(msgspec.structs.replace(self.base, round=choices.below(3)), memoryview(b""))
        client = choices.pick(self.base.clients)
        match what:
            case "forward":
                self.forward(client, client, self.summand(client))
            case "open":
                self.ask(encode(begin))
            case "open altered":
                self.ask(altered(begin, choices))
            case "forward altered":
                self.forward(client, client, altered(decode(self.summand(client), Summand), choices))
            case "forward another's":
                self.forward(client, choices.below(6), self.summand(client))
            case "mutated":
                box = mutated(bytes(self.box.encrypt(self.plaintext(client, self.summand(client)))), choices)
                self.ask(mutated(encode(Forward(client, memoryview(box))), choices))
            case "raw":
                self.ask(choices.chunk())
            case "finish":
                self.finish()

    def summand(self, client: ClientId) -> bytes:
        """Give a client's true summand in the round that is open, or one that fits as far as it can."""
        spec, base = self.spec or self.base, scene("plain-coded" if self.base.parameters else "plain")
        truth = decode(base.answer(client, (base.opening,)), Summand)  # type: ignore[arg-type]
        return encode(Summand(spec.context(), truth.bulk))

    def plaintext(self, client: ClientId, frame: bytes) -> bytes:
        """Put a client's number before its summand."""
        return client.to_bytes(16, "big") + frame

    def ask(self, frame: bytes) -> None:
        """Send a frame, and note what was accepted."""
        answer = self.party.receive(frame)
        what = kind(answer)
        assert what in ("trusted.accepted", "refused", "sealed")
        if what == "sealed":
            self.check_sum(decode(answer, Sealed))
        elif what == "trusted.accepted" and kind(frame) == "begin":
            self.opened(decode(frame, Begin).spec)
        elif what == "trusted.accepted":
            self.added(decode(frame, Forward))

    def opened(self, spec: RoundSpec) -> None:
        """Note a round that was opened: it is a new one."""
        assert spec.context() not in self.seen, "a round was opened twice"
        assert spec.threshold >= 2
        self.seen.add(spec.context())
        self.spec, self.summed = spec, {}

    def added(self, forward: Forward) -> None:
        """Note a summand that was added: the box is of the client it is said to be of."""
        plaintext = self.party._box.decrypt(bytes(forward.bulk))
        client = int.from_bytes(plaintext[:16], "big")
        assert self.spec is not None
        assert client == forward.client and client in self.spec.clients and client not in self.summed
        self.summed[client] = bytes(decode(plaintext[16:], Summand).bulk)

    def forward(self, inside: ClientId, outside: ClientId, frame: bytes) -> None:
        """Forward a summand that names one client inside of the box and one outside."""
        box = self.box.encrypt(self.plaintext(inside, frame))
        self.ask(encode(Forward(outside, memoryview(bytes(box)))))

    def finish(self) -> None:
        """Ask for the sum; whatever comes, the round is over."""
        self.ask(encode(Finish()))
        self.spec = None

    def check_sum(self, sealed: Sealed) -> None:
        """Compare a sum with what was accepted."""
        spec = self.spec
        assert spec is not None
        assert sealed.survivors == tuple(sorted(self.summed))
        assert len(self.summed) >= spec.threshold
        if point := plain.point_of(spec):
            total = np.zeros(point.lanes, np.uint32)
            for bulk in self.summed.values():
                total += unpack(bulk, point.modulus_bits, point.lanes)
            assert bytes(sealed.bulk) == pack(total, point.modulus_bits)
        else:
            floats = np.zeros(spec.length, np.float32)
            for bulk in self.summed.values():
                floats += np.frombuffer(bulk, "<f4")
            assert bytes(sealed.bulk) == floats.tobytes()
        self.spec = None
