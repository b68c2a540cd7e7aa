"""One model that all clients train together, from its first round to its last, with its checkpoints.

A run has one such stage for the face network, and maybe one before it for a generator of imposters: over the
same backend, between the same clients, in the same engine.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from safetensors import SafetensorError

from privfr.averaging import FedAvg
from privfr.directory import Checkpoint, RunDirectory
from privfr.engines.local import Dropouts, LocalEngine
from privfr.errors import InputError
from privfr.experiment import Experiment
from privfr.federation import Coordinator, Learner, Member, Policy, RoundReport, run_round
from privfr.protocol import Backend, ClientId
from privfr.report import Profile
from privfr.storage import write_atomic
from privfr.vector import Vector

__all__ = ["FederatedStage"]


@dataclass
class FederatedStage:
    """The server and the clients of one training, as they are after the rounds already done.

    name: of its checkpoints; two stages of a run have different ones.  run: of the whole run.  learners: of
    each client, in order.  layout: what they commit to train.  rounds: reports of those done.  profile: where
    the seconds of rounds are added up.  give_up: called when a round is broken off.
    """

    name: str
    run: str
    experiment: Experiment
    backend: Backend
    place: RunDirectory
    rule: FedAvg
    layout: bytes
    start: Vector
    learners: Sequence[Learner]
    parameters: bytes
    metrics: tuple[str, ...]
    rounds: list[RoundReport]
    profile: Profile
    give_up: Callable[[], None]
    model: Vector = field(init=False)

    def __post_init__(self) -> None:
        """Raise `InputError` for checkpoints that cannot be read."""
        done = len(self.rounds)
        found = Checkpoint.load(self.place.round(self.name, done)) if done else None
        self.model = found.model if found else self.rule.begin(self.start)
        self.coordinator, self.members = self._parties(done)
        self.place.forget(self.name, done - 1)
        wanted = self.experiment.engine
        dropouts = Dropouts(wanted.losses, self.experiment.seed, wanted.phases)
        self.engine = LocalEngine(self.members, wanted.workers, dropouts, self.give_up)

    def round(self) -> RoundReport:
        """Run one round and write its checkpoints. The caller's report, which mentions it, commits them."""
        before = self._trained(), self._spent()
        outcome = run_round(self.engine.exchange, self.coordinator, self._spent)
        profile = self.profile
        profile.training += self._trained() - before[0]
        profile.clients += self._spent() - before[1]
        profile.server += outcome.server_seconds
        outcome.faults = [*outcome.faults, *self.engine.refusals]
        self.engine.refusals.clear()
        done, self.model = self.coordinator.round, self._held()
        if self.backend.server_learns == "nothing" and not outcome.failed:
            told = [self.members[client].outcome for client in sorted(self.coordinator.current)]
            if told and told[0]:
                outcome.tell(told[0])
        Checkpoint(done, self.model, {}).save(self.place.round(self.name, done))
        for client, member in self.members.items():
            write_atomic(self.place.private(self.name, client, done), member.learner.save(), private=True)
        return outcome

    def _trained(self) -> float:
        return sum(member.learn_seconds for member in self.members.values())

    def _spent(self) -> float:
        return self.engine.seconds - self._trained()

    def _held(self) -> Vector:
        """Model to measure: the server's, or a member's where that is who measures."""
        if self.experiment.federation.evaluate == "server":
            assert self.coordinator.model is not None  # what is asked of a server that has none is refused
            return self.coordinator.model
        for client in sorted(self.coordinator.current):
            if (held := self.members[client].holds(self.coordinator.digest)) is not None:
                return held
        raise InputError(
            f"round {self.coordinator.round - 1}: no client is known to hold the model, and the server may "
            "not; lower engine.losses"
        )

    def _parties(self, done: int) -> tuple[Coordinator, Mapping[ClientId, Member]]:
        """Set up the server and the clients, as they are after `done` rounds."""
        roster, federation = tuple(range(len(self.learners))), self.experiment.federation
        config = self.experiment.digest()
        keyring, keyrings = self.backend.provision(roster, secrets.token_bytes)
        missed = set(self.rounds[-1].missed if done else roster)
        members = {}
        for client, learner in zip(roster, self.learners, strict=True):
            if done:
                self._restore(learner, client, done)
            members[client] = Member(
                client=client,
                backend=self.backend,
                keyring=keyrings[client],
                learner=learner,
                layout=self.layout,
                config=config,
                metrics=self.metrics,
                entropy=secrets.token_bytes,
                parameters=self.parameters,
                policy=Policy(len(roster), federation.threshold, (self.backend.name,), roster),
                model=None if client in missed else self.model,
                rule=self.rule,
            )
        coordinator = Coordinator(
            run=self._name(),
            backend=self.backend,
            keyring=keyring,
            roster=roster,
            threshold=federation.threshold,
            layout=self.layout,
            config=config,
            metrics=self.metrics,
            model=self.model,
            parameters=self.parameters,
            rule=self.rule,
            round=done,
            current=set(roster) - missed,
        )
        return coordinator, members

    def _name(self) -> bytes:
        """Name this training, 16 bytes, so that no message of another stage can pass for one of it."""
        return hashlib.blake2b(bytes.fromhex(self.run) + self.name.encode(), digest_size=16).digest()

    def _restore(self, learner: Learner, client: ClientId, done: int) -> None:
        path = self.place.private(self.name, client, done)
        try:
            learner.restore(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error}); the run cannot go on without it") from None
