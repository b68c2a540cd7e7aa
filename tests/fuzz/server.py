"""Target `server`: one round against clients of whom each may answer truly, wrongly, or with a proper lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from fuzz.choices import Choices, altered, mutated
from fuzz.scenes import SCENES, Heard, Scene, forged, scene
from insecure import METRICS, InsecureEntropy
from numpy.typing import NDArray

from privfr.backends.masking.messages import Masked
from privfr.backends.plain import Summand
from privfr.backends.trusted import Boxed
from privfr.coding import FixedPoint, pack, unpack
from privfr.errors import PolicyRefused, RemoteProtocolError, TooFewClients
from privfr.protocol import ClientId, Sealed
from privfr.wire import decode, kind

Delivery = tuple[ClientId, bytes]

ACTIONS = (
    "true", "lost", "mutated", "altered", "forged", "raw", "replayed", "elsewhere", "another's", "twice",
    "impostor",
)  # fmt: skip

# What carries a summand, by the tag of its frame.
SUMMANDS = {"summand": Summand, "masking.masked": Masked, "trusted.boxed": Boxed}

OUTSIDERS = (99, 0, -1, 1 << 70)


def server(data: bytes) -> None:
    """Play one round; the first byte is the scene, each further one what a client does in a phase."""
    choices = Choices(data)
    Round(scene(choices.pick(SCENES)), choices).play()


@dataclass
class Round:
    """A round under way, with the model beside it.

    heard: what each client received.  truths: its answers.  liars: whose false answer was accepted; forgers:
    with a signature, box or digest of its own making, so that its masks may not come off.  summands: frames
    with the summands that were accepted, in their order.  taken: who was accepted in this phase.
    """

    scene: Scene
    choices: Choices
    heard: dict[ClientId, Heard] = field(default_factory=dict)
    truths: dict[ClientId, list[bytes]] = field(default_factory=dict)
    liars: set[ClientId] = field(default_factory=set)
    forgers: set[ClientId] = field(default_factory=set)
    summands: dict[ClientId, bytes] = field(default_factory=dict)
    taken: set[ClientId] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.server = self.scene.server()
        self.heard = dict.fromkeys(self.scene.spec.clients, ())
        self.truths = {client: [] for client in self.scene.spec.clients}

    def play(self) -> None:
        """Go through the phases to the sum, or to too few clients."""
        outbox = dict.fromkeys(self.scene.spec.clients, self.scene.opening)
        while outbox:
            said = {client: self.answer(client, frame) for client, frame in outbox.items()}
            self.taken = set()
            self.deliver_all({client: truth for client, truth in said.items() if truth is not None})
            try:
                outbox = self.server.close()
            except (TooFewClients, RemoteProtocolError) as error:
                return self.check_failure(error)
        assert self.server.sealed is not None
        self.check_sum(self.server.sealed)

    def answer(self, client: ClientId, frame: bytes) -> bytes | None:
        """Give the true answer, None where the client refuses to go on."""
        self.heard[client] += (frame,)
        answer = self.scene.answer(client, self.heard[client])
        if isinstance(answer, bytes):
            self.truths[client].append(answer)
            return answer
        honest = client not in self.liars
        assert not honest or isinstance(answer, PolicyRefused), f"a lie made client {client} refuse: {answer}"
        return None

    def deliver_all(self, said: dict[ClientId, bytes]) -> None:
        """Deliver what each client sends in this phase, the last one first if so chosen."""
        order = list(said)
        for client in order if self.choices.below(2) == 0 else reversed(order):
            action, spoken = self.choices.pick(ACTIONS), False
            for sender, frame in self.deliveries(action, client, said):
                turn = sender == client and not spoken
                self.deliver(sender, frame, said[client] if turn else None, action)
                spoken = spoken or turn

    def deliveries(self, action: str, client: ClientId, said: dict[ClientId, bytes]) -> list[Delivery]:
        """Work out who sends what."""
        truth, choices = said[client], self.choices
        step = self.scene.backend.server_steps[len(self.heard[client]) - 1]
        match action:
            case "true":
                return [(client, truth)]
            case "lost":
                return []
            case "mutated":
                return [(client, mutated(truth, choices))]
            case "altered":
                return [(client, altered(decode(truth, step.collects), choices))]
            case "forged":
                return [(client, forged(self.scene, client, self.heard[client], truth, choices))]
            case "raw":
                return [(client, choices.chunk())]
            case "replayed":
                return [(client, choices.pick(self.truths[client]))]
            case "elsewhere":
                return [(client, self.scene.elsewhere(client, decode(truth, step.collects)))]
            case "another's":
                return [(client, choices.pick(list(said.values())))]
            case "twice":
                return [(client, truth), (client, mutated(truth, choices))]
        return [(choices.pick((*OUTSIDERS, *self.gone())), truth), (client, truth)]

    def gone(self) -> list[ClientId]:
        """Give the clients of the roster that are out of the round."""
        return [client for client in self.scene.spec.clients if client not in self.server._awaited]

    def deliver(self, sender: ClientId, frame: bytes, truth: bytes | None, action: str) -> None:
        """Deliver one frame; `truth` is what an honest client would say now, None if it is not its turn."""
        before = len(self.server.faults)
        taken = self.server.absorb(sender, frame)
        assert [client for client, _ in self.server.faults[before:]] == [sender] * (not taken)
        assert truth is not None or not taken, f"client {sender} was heard out of turn"
        if not taken:
            refused = frame == truth and sender not in self.liars
            assert not refused, f"client {sender}'s true answer was refused: {self.server.faults[-1][1]}"
            return
        assert action != "elsewhere", f"client {sender}'s answer in another round was taken"
        self.taken.add(sender)
        if frame != truth:
            self.liars.add(sender)
            self.forgers |= {sender} if action == "forged" else set()
        if kind(frame) in SUMMANDS:
            self.summands[sender] = frame

    def check_failure(self, error: Exception) -> None:
        """Say whether this round had to fail."""
        assert self.server.phase == "done", "a failed round goes on"
        assert self.server.sealed is None
        if not self.liars:
            assert isinstance(error, TooFewClients), f"honest clients, and the round fails: {error}"
            # In a sparse graph it depends on who is left.
            few = len(self.taken) < self.scene.spec.threshold
            assert few or self.scene is scene("sparse"), f"enough honest clients, and too few: {error}"

    def check_sum(self, sealed: Sealed) -> None:
        """Compare the sum with that of what was accepted, unless a forger's masks are in it."""
        survivors = sealed.survivors
        assert survivors == tuple(sorted(self.summands)), "other survivors than were summed"
        assert len(survivors) >= self.scene.spec.threshold
        if self.forgers.intersection(survivors):
            return
        point, bulk = self.scene.point, sealed.bulk
        if point:
            assert bytes(bulk) == pack(self.integers(point), point.modulus_bits), "a sum that is not exact"
        else:
            assert bytes(bulk) == self.floats().astype("<f4").tobytes(), "a sum that is not exact"
        if not self.liars.intersection(survivors):
            aggregate = self.scene.backend.open(self.scene.spec, sealed, None)
            assert aggregate.count == len(survivors)
            assert aggregate.weight == sum(self.scene.updates[client].weight for client in survivors)

    def integers(self, point: FixedPoint) -> NDArray[np.uint32]:
        """Sum what was accepted: each client's lanes, and what it said beyond its true answer."""
        total = np.zeros(point.lanes, np.uint32)
        for client, frame in self.summands.items():
            total += point.encode(self.scene.updates[client], InsecureEntropy(0))
            for sign, said in ((1, frame), (-1, self.truth_of(client))):
                lanes = unpack(decode(said, SUMMANDS[kind(said)]).bulk, point.modulus_bits, point.lanes)
                total += np.uint32(sign % (1 << 32)) * lanes
        return total

    def floats(self) -> NDArray[np.float32]:
        """Sum what was accepted, in its order; a box holds nothing but the truth."""
        total = np.zeros(self.scene.spec.length, np.float32)
        for client, frame in self.summands.items():
            if kind(frame) == "summand":
                total += np.frombuffer(decode(frame, Summand).bulk, "<f4")
            else:
                total += self.scene.updates[client].summand(METRICS)
        return total

    def truth_of(self, client: ClientId) -> bytes:
        """Give a client's true summand."""
        return next(truth for truth in self.truths[client] if kind(truth) in SUMMANDS)
