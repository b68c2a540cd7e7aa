"""Target `homomorphic`: the server, a client and the authority of the homomorphic backends, one at a time.

The way goes through this package's decoders into TenSEAL: were its C++ to crash, the fuzzer would too.
An opened sum is the true one over the clients it is said to be over, or there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np
from fuzz.choices import Choices, altered, mutated
from fuzz.member import Told, recorded
from insecure import InsecureEntropy, spec_of, whole_update

from privfr.backends import backend as backend_named
from privfr.backends.homomorphic import round as rounds
from privfr.backends.homomorphic.authority import Authority
from privfr.backends.homomorphic.authority import contribute as contribute_to
from privfr.backends.homomorphic.messages import Bundle, Cipher, OpenSum, PublicKey, survivor_bytes
from privfr.backends.identity import sign
from privfr.coding import unpack
from privfr.errors import RemoteProtocolError, TooFewClients
from privfr.protocol import Begin, ClientId, ClientSession, RoundSpec, Sealed, ServerSession
from privfr.wire import decode, encode, kind

ROLES = (
    ("server", "bfv"),
    ("client", "bfv"),
    ("authority", "bfv-authority"),
    ("client", "ckks-authority"),
    ("server", "ckks"),
    ("client", "ckks"),
    ("authority", "ckks-authority"),
    ("client", "bfv-authority"),
)
CLIENTS: tuple[ClientId, ...] = (1, 2, 3)
MOST_STEPS = 8


def homomorphic(data: bytes) -> None:
    """Fuzz one party; the first byte says which, and by which backend."""
    choices = Choices(data)
    role, name = choices.pick(ROLES)
    if role == "server":
        Served(name, choices).play()
        return
    fuzzed = Telling(recorded(name), choices) if role == "client" else Asked(name, choices)
    steps = 0
    while choices and steps < MOST_STEPS:
        fuzzed.step(choices.pick(fuzzed.STEPS))
        steps += 1


# The server -------------------------------------------------------------------------------------------------


@dataclass
class Truth:
    """A round without a server. answers: by client and what it was told last; worked out once."""

    name: str
    answers: dict[tuple[ClientId, bytes], bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend = backend_named(self.name)
        self.spec = spec_of(self.backend, CLIENTS)
        _, self.keys = self.backend.provision(CLIENTS, InsecureEntropy(0))
        self.updates = {client: whole_update(client) for client in CLIENTS}
        point = rounds.packing_of(self.spec).point
        self.lanes = {c: point.encode(self.updates[c], InsecureEntropy(0)).astype(np.uint64) for c in CLIENTS}
        self.opening = encode(Begin(self.spec, memoryview(b"")))
        self.saved: dict[ClientId, bytes] = {}
        for client in CLIENTS:
            session = self.session(client)
            self.answers[client, self.opening] = session.receive(self.opening)
            self.saved[client] = session.save()

    def session(self, client: ClientId) -> ClientSession:
        state = self.backend.client_state(
            self.spec, client, self.updates[client], self.keys[client], InsecureEntropy(client)
        )
        return ClientSession(self.backend, state, InsecureEntropy(client))

    def answer(self, client: ClientId, frame: bytes) -> bytes | None:
        """Give the client's answer to the opening, or to a key; None where it refuses the key."""
        if (client, frame) not in self.answers:
            session = ClientSession.restore(self.backend, self.saved[client], InsecureEntropy(client))
            try:
                answer = session.receive(frame)
            except RemoteProtocolError:
                return None
            self.answers[client, frame] = answer
        return self.answers[client, frame]

    def total(self, clients: tuple[ClientId, ...]) -> list[int]:
        """Sum of the clients' lanes."""
        bits = rounds.packing_of(self.spec).point.modulus_bits
        return [int(lane) % (1 << bits) for lane in np.sum([self.lanes[c] for c in clients], axis=0)]


@cache
def truth(name: str) -> Truth:
    """Give the one round that all inputs depart from."""
    return Truth(name)


class Served:
    """One round of the server's, with clients who may lie."""

    ACTIONS = ("true", "mutated", "altered", "another's", "first", "lost", "raw")

    def __init__(self, name: str, choices: Choices) -> None:
        self.truth, self.choices = truth(name), choices
        backend, spec = self.truth.backend, self.truth.spec
        self.server = ServerSession(backend, spec, backend.server_state(spec, None))

    def play(self) -> None:
        """Go through the phases; at the end every client opens the true sum, or none."""
        outbox = dict.fromkeys(CLIENTS, self.truth.opening)
        while outbox:
            said = {client: self.truth.answer(client, frame) for client, frame in outbox.items()}
            self.deliver({client: answer for client, answer in said.items() if answer is not None})
            try:
                outbox = dict(self.server.close())
            except (TooFewClients, RemoteProtocolError):
                assert self.server.phase == "done"
                return
        assert self.server.sealed is not None
        self.check(self.server.sealed)

    def deliver(self, said: dict[ClientId, bytes]) -> None:
        """Deliver the answers of one phase; what is refused is a fault of its sender's."""
        step, choices = self.truth.backend.server_steps[self.server._at], self.choices
        for client, answer in said.items():
            frames: dict[str, Any] = {
                "true": lambda answer=answer: answer,
                "mutated": lambda answer=answer: mutated(answer, choices),
                "altered": lambda answer=answer: altered(decode(answer, step.collects), choices),
                "another's": lambda: choices.pick(list(said.values())),
                "first": lambda client=client: self.truth.answers[client, self.truth.opening],
                "raw": choices.chunk,
            }
            action = choices.pick(self.ACTIONS)
            if action == "lost":
                continue
            frame, before = frames[action](), len(self.server.faults)
            taken = self.server.absorb(client, frame)
            assert taken or frame != answer, f"client {client}'s true answer was refused"
            assert [who for who, _ in self.server.faults[before:]] == [client] * (not taken)

    def check(self, sealed: Sealed) -> None:
        """Compare what the clients open with the truth."""
        spec, packing = self.truth.spec, rounds.packing_of(self.truth.spec)
        total = np.array(self.truth.total(sealed.survivors), np.uint32)
        expected = packing.point.decode(total, len(sealed.survivors))
        for client in CLIENTS:
            try:
                found = self.truth.backend.open(spec, sealed, self.truth.keys[client])
            except RemoteProtocolError:
                continue
            assert found.vector.tobytes() == expected.vector.tobytes(), "a sum that is not the true one"
            assert found.weight == expected.weight


# A client ---------------------------------------------------------------------------------------------------


class Telling(Told):
    """A member; what it refuses changes nothing, but that one sum is opened for a key, come what may."""

    STEPS = ("next", "altered", "mutated", "any", "another's", "raw", "restored", "next", "sum altered")

    def step(self, what: str) -> None:
        """Send one frame, as for the other backends; or a sum whose inside is altered."""
        frames = self.recorded.frames[1]
        true = frames[min(self.at, len(frames) - 1)]
        if what != "sum altered":
            super().step(what)
        elif kind(true) == "result" and self.recorded.backend.handover:
            told = self.message(true)
            sealed = decode(told.bulk, Sealed)
            lie = altered(decode(sealed.bulk, Bundle), self.choices)
            inside = encode(msgspec.structs.replace(sealed, bulk=memoryview(lie)))
            self.send(encode(msgspec.structs.replace(told, bulk=memoryview(inside))))

    def send(self, frame: bytes) -> None:
        """Send a frame; a refusal must leave no trace, or else end the round."""
        before = self.member.save()
        try:
            answer = self.member.receive(memoryview(frame))
        except RemoteProtocolError:
            if self.member.save() != before:
                assert kind(frame) == "result"
                assert self.member._spec is None and self.member._session is None
            self.led_astray = True
            return
        frames = self.recorded.frames[1]
        if self.at < len(frames) and frame == frames[self.at]:
            self.at += 1
        if kind(answer) != "handedover":
            self.check(frame, answer)


# The authority ----------------------------------------------------------------------------------------------


class Asked:
    """An authority, and what it was asked. last: the last round begun.  open: that, while it has a key."""

    STEPS = ("open", "begin", "begin altered", "open altered", "other summands", "mutated", "signed", "raw")

    def __init__(self, name: str, choices: Choices) -> None:
        self.name, self.choices = name, choices
        self.backend = backend_named(name)
        line, self.keys = self.backend.provision(CLIENTS, InsecureEntropy(0))
        self.party: Authority = line.relay.__self__
        self.spec: RoundSpec = spec_of(self.backend, CLIENTS)
        self.begun: dict[bytes, int] = {}
        self.lanes: dict[ClientId, Any] = {}
        self.last: RoundSpec = self.spec
        self.open: RoundSpec | None = None
        self.ciphers: dict[ClientId, Cipher] = {}
        self.ask(encode(Begin(self.spec, memoryview(b""))))

    def step(self, what: str) -> None:
        """Send one frame."""
        choices = self.choices
        begin = Begin(msgspec.structs.replace(self.spec, round=choices.below(4)), memoryview(b""))
        match what:
            case "open":
                self.ask(encode(self.question(CLIENTS, CLIENTS)))
            case "begin":
                self.ask(encode(begin))
            case "begin altered":
                self.ask(altered(begin, choices))
            case "open altered":
                self.ask(altered(self.question(CLIENTS, CLIENTS), choices))
            case "other summands":
                summands = tuple(choices.pick(CLIENTS) for _ in range(1 + choices.below(4)))
                self.ask(encode(self.question(choices.pick(((1, 2), (1, 3), CLIENTS)), summands)))
            case "mutated":
                self.ask(mutated(encode(self.question(CLIENTS, CLIENTS)), choices))
            case "signed":
                self.ask(encode(self.question(tuple(sorted({choices.pick(CLIENTS), 2})), CLIENTS)))
            case "raw":
                self.ask(choices.chunk())

    def question(self, survivors: tuple[ClientId, ...], summands: tuple[ClientId, ...]) -> OpenSum:
        """Ask for a sum, with all consents: every client of this target's is an accomplice."""
        spec = self.last
        total = rounds.Total(spec)
        for client in summands if self.ciphers else ():
            total.add(client, self.ciphers[client])
        signed = survivor_bytes(spec.context(), survivors)
        consents = tuple((c, sign(self.keys[c].identity, signed)) for c in survivors)
        return OpenSum(survivors, consents, total.tag, total.packed())

    def ask(self, frame: bytes) -> None:
        """Send a frame, and check what comes back."""
        answer = self.party.receive(frame)
        what = kind(answer)
        if what == "homomorphic.publickey":
            self.opened(decode(frame, Begin).spec, decode(answer, PublicKey))
        elif what == "sealed":
            self.check_sum(decode(frame, OpenSum), decode(answer, Sealed))
        else:
            assert what == "refused"
        if self.party._round is None:
            self.open = None

    def opened(self, spec: RoundSpec, key: PublicKey) -> None:
        """Note a round that was begun: a later one than before. The clients encrypt."""
        assert spec.round > self.begun.get(spec.run, -1), "a round was begun twice"
        assert spec.clients == CLIENTS and spec.threshold >= 2
        self.begun[spec.run], self.last, self.open, self.ciphers = spec.round, spec, spec, {}
        if spec.size != self.spec.size or spec.metrics != self.spec.metrics:
            return
        point = rounds.packing_of(spec).point
        for client in CLIENTS:
            update = whole_update(client)
            state = self.backend.client_state(spec, client, update, self.keys[client], InsecureEntropy(0))
            self.ciphers[client] = contribute_to(state, key, InsecureEntropy(0))[1]  # type: ignore[arg-type]
            self.lanes[client] = point.encode(update, InsecureEntropy(0)).astype(np.uint64)

    def check_sum(self, asked: OpenSum, sealed: Sealed) -> None:
        """Check an opened sum: it is the only one for its key, and the true one."""
        assert self.open is not None, "a second sum for one key"
        assert sealed.survivors == asked.survivors
        assert len(asked.survivors) >= self.open.threshold
        point = rounds.packing_of(self.open).point
        found = unpack(sealed.bulk, point.modulus_bits, point.lanes)
        total = np.sum([self.lanes[c] for c in asked.survivors], axis=0) % (1 << point.modulus_bits)
        assert found.tolist() == total.tolist(), "a sum that is not the true one"
