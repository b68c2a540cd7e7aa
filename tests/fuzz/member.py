"""Target `member`: one client against a server that sends anything, with the help of colluding clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np
from fuzz.choices import Choices, altered, mutated
from fuzz.scenes import PLAIN_CODED
from insecure import CONFIG, LAYOUT, METRICS, RUN, SIZE, Federation, InsecureEntropy, member_of, planned

from privfr.backends import backend as backend_named
from privfr.backends.identity import sign
from privfr.backends.masking.messages import (
    Advert,
    Consents,
    KeyBook,
    Reveal,
    ShareBook,
    advert_bytes,
    survivor_bytes,
)
from privfr.errors import RemoteProtocolError
from privfr.federation import Coordinator, Member, run_round
from privfr.protocol import Ack, Backend, Begin, ClientId
from privfr.vector import digest
from privfr.wire import _registry, decode, encode, kind

MEMBERS = ("masking", "masking-passive", "plain", "plain-coded", "trusted")

ME: ClientId = 1
COLLUDING: tuple[ClientId, ...] = (2, 3)
MOST_STEPS = 24

STEPS = ("next", "altered", "resigned", "mutated", "any", "another's", "raw", "restored")


def member(data: bytes) -> None:
    """Send a sequence of frames; the first byte is the backend."""
    choices = Choices(data)
    fuzzed = Told(recorded(choices.pick(MEMBERS)), choices)
    steps = 0
    while choices and steps < MOST_STEPS:
        fuzzed.step(choices.pick(STEPS))
        steps += 1


@dataclass
class Recorded:
    """Two rounds as they were played: what each client received, and how client 1 was set up."""

    backend: Backend
    keys: dict[ClientId, Any]
    parameters: bytes
    frames: dict[ClientId, list[bytes]]
    told_and_said: list[bytes]


@cache
def recorded(name: str) -> Recorded:
    """Play two rounds of four clients on a backend."""
    backend = PLAIN_CODED if name == "plain-coded" else backend_named(name)
    server_key, keys = backend.provision((1, 2, 3, 4), InsecureEntropy(0))
    threshold, parameters = planned(backend, 4, 2)
    coordinator = Coordinator(
        RUN, backend, server_key, tuple(keys), threshold, LAYOUT, CONFIG, METRICS,
        np.zeros(SIZE, np.float32), parameters,
    )  # fmt: skip
    members = {c: member_of(backend, c, keys[c], parameters=parameters) for c in keys}
    played = Federation(coordinator, members)
    for _ in range(2):
        report = run_round(played.exchange, coordinator)
        assert not report.failed and not report.faults
    frames = {c: [bytes(frame) for _, client, frame in played.down if client == c] for c in keys}
    return Recorded(
        backend, keys, parameters, frames, [bytes(frame) for _, _, frame in played.down + played.up]
    )


@dataclass
class Told:
    """A member, and what it has said. at: place in the recorded frames.  led_astray: told others too."""

    recorded: Recorded
    choices: Choices
    at: int = 0
    led_astray: bool = False
    answered: dict[bytes, list[str]] = field(default_factory=dict)
    disclosed: dict[bytes, tuple[set[ClientId], set[ClientId]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.context = b""
        self.entropy = InsecureEntropy(ME)
        self.member = self.new()

    def new(self) -> Member:
        """Set the member up as for the recording."""
        return member_of(
            self.recorded.backend,
            ME,
            self.recorded.keys[ME],
            parameters=self.recorded.parameters,
            entropy=self.entropy,
        )

    def step(self, what: str) -> None:
        """Send one frame, or put the member to sleep and wake it up."""
        choices, frames = self.choices, self.recorded.frames[ME]
        true = frames[min(self.at, len(frames) - 1)]
        match what:
            case "next":
                self.send(true)
            case "altered":
                self.send(altered(self.message(true), choices))
            case "resigned":
                self.send(self.resigned(altered(self.message(true), choices)))
            case "mutated":
                self.send(mutated(true, choices))
            case "any":
                self.send(choices.pick(frames))
            case "another's":
                self.send(choices.pick(self.recorded.frames[choices.pick(COLLUDING)]))
            case "raw":
                self.send(choices.chunk())
            case "restored":
                saved, self.member = self.member.save(), self.new()
                self.member.restore(saved)
                assert self.member.save() == saved

    def message(self, frame: bytes) -> Any:
        """Decode one of the recorded frames."""
        return decode(frame, _registry[kind(frame)])

    def send(self, frame: bytes) -> None:
        """Send a frame; a refusal must leave no trace."""
        before = self.member.save()
        try:
            answer = self.member.receive(memoryview(frame))
        except RemoteProtocolError:
            assert self.member.save() == before, "a refused frame has changed something"
            self.led_astray = True  # it may have drawn entropy, and its next keys are not those recorded
            return
        frames = self.recorded.frames[ME]
        if self.at < len(frames) and frame == frames[self.at]:
            self.at += 1
        else:
            self.led_astray = True
        self.check(frame, answer)

    def check(self, frame: bytes, answer: bytes) -> None:
        """Check what was said against what was said before in the same round."""
        what = kind(answer)
        if kind(frame) == "begin":
            self.context = decode(frame, Begin).spec.context()
        said = self.answered.setdefault(self.context, [])
        assert what not in said, f"{what} was said twice in one round"
        said.append(what)
        if what == "masking.reveal":
            self.check_reveal(decode(answer, Reveal))
        model = self.member.model
        assert model is not None and np.isfinite(model).all(), "a model that is not finite"
        if what == "ack":
            assert decode(answer, Ack).model == digest(model)

    def check_reveal(self, reveal: Reveal) -> None:
        """Check that of no client both shares are given away, nor any of those unasked for."""
        seeds, keys = {owner for owner, _ in reveal.seeds}, {owner for owner, _ in reveal.keys}
        assert not seeds & keys, "both shares of one client were given away"
        assert all(len(share) == 32 for _, share in (*reveal.seeds, *reveal.keys))
        if not self.led_astray:
            assert (seeds, keys) == ({2, 3, 4}, set()), "shares that were asked for are missing"

    def resigned(self, frame: bytes) -> bytes:
        """Let the colluding clients sign what the server made of their messages."""
        try:
            message = self.message(frame)
        except RemoteProtocolError:
            return frame
        match message:
            case KeyBook(adverts):
                return encode(KeyBook(tuple((c, self.signed(c, advert)) for c, advert in adverts)))
            case ShareBook(there, boxes):
                return encode(ShareBook(there, tuple((c, self.signed(c, a), box) for c, a, box in boxes)))
            case Consents():
                return encode(self.consents())
        return frame

    def signed(self, client: ClientId, advert: Advert) -> Advert:
        """Sign an advert as a colluding client."""
        keys = self.recorded.keys[client] if client in COLLUDING else None
        if keys is None or len(advert.box_key) != 32 or len(advert.mask_key) != 32:
            return advert
        signature = sign(keys.identity, advert_bytes(self.context, client, advert))
        return msgspec.structs.replace(advert, signature=signature)

    def consents(self) -> Consents:
        """Let the colluding clients consent to any survivors."""
        survivors = self.choices.pick(((1, 2, 3, 4), (1, 2, 3), (1, 2, 4), (1, 3, 4)))
        message = survivor_bytes(self.context, survivors)
        return Consents(tuple((c, sign(self.recorded.keys[c].identity, message)) for c in COLLUDING))
