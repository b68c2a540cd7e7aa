"""What the protocol's tests share: known randomness, whole-numbered updates, federations in one process.

Updates hold whole numbers, so that a float32 sum of them is exact in any order and a test can demand
equality instead of nearness.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from privfr.backends import backend as backend_named
from privfr.coding import Coding
from privfr.errors import RemoteProtocolError
from privfr.federation import Coordinator, Member, Policy
from privfr.protocol import Backend, Begin, ClientId, ClientSession, RoundSpec, ServerSession
from privfr.vector import Update, Vector, digest
from privfr.wire import Frame, encode, kind

METRICS = ("loss", "accuracy")
SIZE = 5
RUN = b"r" * 16
LAYOUT = b"l" * 32
CONFIG = b"c" * 32

# What happens to a frame, by client and kind of the server's message: "" or "request" or "answer" lost.
Loss = Callable[[ClientId, str], str]


class InsecureEntropy:
    """Deterministic bytes, the same for the same seed. For tests; the name is the warning."""

    def __init__(self, seed: int) -> None:
        self._seed, self._drawn = seed, 0

    def __call__(self, n: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_256(f"{self._seed} {self._drawn}".encode()).digest(n)


# Whole updates fit; one step is about a ten-thousandth.
CODING = Coding(clip=64.0, bits=20, max_weight=10)
# No accomplices, so that as few as two clients can be promised anything.
OPTIONS = {"corruption": 0.0, "dropout": 0.0, "neighbours": 0, "shares": 0}


def planned(backend: Backend, clients: int, threshold: int) -> tuple[int, bytes]:
    """Give the threshold, raised to what the backend can keep, and the backend's parameters."""
    coding = CODING if backend.integers else None
    if coding:
        threshold = max(threshold, backend.fewest(clients, OPTIONS))
    return threshold, backend.plan(clients, threshold, coding, OPTIONS)


def spec_of(backend: Backend, clients: Iterable[ClientId], threshold: int = 2, **changes: Any) -> RoundSpec:
    """Spec of a round of `SIZE` numbers."""
    roster = tuple(clients)
    threshold, parameters = planned(backend, len(roster), threshold)
    spec = RoundSpec(
        RUN, 0, backend.name, roster, threshold, METRICS, SIZE,
        LAYOUT, digest(np.zeros(SIZE, np.float32)), CONFIG, parameters,
    )  # fmt: skip
    return msgspec.structs.replace(spec, **changes)


def whole_update(*seed: int, size: int = SIZE, metrics: tuple[str, ...] = METRICS) -> Update:
    """Update of small whole numbers, decided by the seed alone."""
    rng = np.random.default_rng(seed)
    vector = rng.integers(-40, 41, size).astype(np.float32)
    return Update(vector, float(rng.integers(1, 10)), {name: float(rng.integers(0, 20)) for name in metrics})


def exact_sum(updates: Iterable[Update]) -> list[int]:
    """Sum of the updates' summands in Python's integers: weight, weighted metrics, weighted vector."""
    rows = [
        [int(u.weight) * value for value in (1, *map(int, u.metrics.values()), *(int(x) for x in u.vector))]
        for u in updates
    ]
    return [sum(column) for column in zip(*rows, strict=True)]


@dataclass
class RoundInHand:
    """One round of a backend, provisioned: a session for each client and one for the server."""

    backend: Backend
    spec: RoundSpec
    updates: Mapping[ClientId, Update]
    seed: int = 0

    def __post_init__(self) -> None:
        self.server_key, self.client_keys = self.backend.provision(
            self.spec.clients, InsecureEntropy(self.seed)
        )
        self.server = ServerSession(
            self.backend, self.spec, self.backend.server_state(self.spec, self.server_key)
        )
        self.clients = {client: self.session(client) for client in self.spec.clients}

    def session(self, client: ClientId, spec: RoundSpec | None = None) -> ClientSession:
        """Begin a client's session, in this round or (with its keys) in another."""
        entropy = InsecureEntropy(1000 + client)
        state = self.backend.client_state(
            spec or self.spec, client, self.updates[client], self.client_keys[client], entropy
        )
        return ClientSession(self.backend, state, entropy)

    def opening(self) -> dict[ClientId, bytes]:
        """Frames that open the round."""
        return dict.fromkeys(self.spec.clients, encode(Begin(self.spec, memoryview(b""))))

    def play(self, lost_in: Mapping[ClientId, int] | None = None) -> ServerSession:
        """Run the round to its end; a client's answers are lost from the phase `lost_in` names onwards."""
        lost_in, outbox = lost_in or {}, self.opening()
        for phase in range(len(self.backend.server_steps)):
            inbox = {client: self.clients[client].receive(frame) for client, frame in outbox.items()}
            there = [(c, f) for c, f in inbox.items() if lost_in.get(c, phase + 1) > phase]
            outbox = self.server.turn(there)
        return self.server


def round_in_hand(name: str, n: int = 4, threshold: int = 2, seed: int = 0) -> RoundInHand:
    """Provision a round of the backend `name` with clients 1 to n."""
    backend = backend_named(name)
    clients = range(1, n + 1)
    return RoundInHand(
        backend, spec_of(backend, clients, threshold), {c: whole_update(seed, c) for c in clients}, seed
    )


class WholeLearner:
    """A `privfr.federation.Learner` without faces: its update follows from client, round and its own past.

    A real object that keeps private state from round to round, as a face learner does.
    """

    def __init__(self, client: ClientId, *, size: int = SIZE, metrics: tuple[str, ...] = METRICS) -> None:
        self.client, self.size, self.metrics, self.learnt = client, size, metrics, 0

    def learn(self, model: Vector, round: int) -> Update:
        """Give the round's update, and remember having given it."""
        self.learnt += 1
        return self.update(round, self.learnt)

    def update(self, round: int, learnt: int) -> Update:
        """What `learn` gives in this round when called for the `learnt`-th time."""
        return whole_update(self.client, round, learnt, size=self.size, metrics=self.metrics)

    def save(self) -> bytes:
        """Give the private state."""
        return str(self.learnt).encode()

    def restore(self, saved: bytes) -> None:
        """Take the private state up."""
        self.learnt = int(saved)


@dataclass
class Federation:
    """A coordinator, its members, and a wire between them that can lose frames."""

    coordinator: Coordinator
    members: dict[ClientId, Member]
    lose: Loss = lambda client, what: ""
    refusals: list[tuple[ClientId, str]] = field(default_factory=list)
    down: list[tuple[str, ClientId, Frame]] = field(default_factory=list)
    up: list[tuple[str, ClientId, Frame]] = field(default_factory=list)

    def exchange(self, outbox: Mapping[ClientId, bytes]) -> Iterator[tuple[ClientId, Frame]]:
        """Carry frames, remembering all that travelled; a member's refusal is silence."""
        for client, frame in outbox.items():
            what = kind(frame)
            self.down.append((what, client, frame))
            loss = self.lose(client, what)
            if loss == "request":
                continue
            try:
                answer = self.members[client].receive(frame)
            except RemoteProtocolError as error:
                self.refusals.append((client, f"{type(error).__name__}: {error}"))
                continue
            if not loss:
                self.up.append((what, client, answer))
                yield client, answer


def member_of(backend: Backend, client: ClientId, keyring: Any, **changes: Any) -> Member:
    """Set up a member that awaits the model with its first round."""
    settings: dict[str, Any] = {
        "learner": WholeLearner(client), "layout": LAYOUT, "config": CONFIG, "metrics": METRICS,
        "entropy": InsecureEntropy(client), "policy": Policy(),
    }  # fmt: skip
    return Member(client, backend, keyring, **(settings | changes))


def federation(name: str, n: int = 4, threshold: int = 2, seed: int = 0) -> Federation:
    """Set up clients 1 to n and their coordinator on the backend `name`."""
    backend, clients = backend_named(name), tuple(range(1, n + 1))
    server_key, keys = backend.provision(clients, InsecureEntropy(seed))
    threshold, parameters = planned(backend, n, threshold)
    coordinator = Coordinator(
        RUN, backend, server_key, clients, threshold, LAYOUT, CONFIG, METRICS, np.zeros(SIZE, np.float32),
        parameters,
    )  # fmt: skip
    members = {c: member_of(backend, c, keys[c], parameters=parameters) for c in clients}
    return Federation(coordinator, members)
