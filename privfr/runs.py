"""One experiment from its first picture to its report, in a run directory.

The stages: measure the untrained network, pretrain on the public identities, federate, and what was asked
for in comparison. Each asks the report whether it is done and commits to it when it is, so that `resume`
repeats at most the round in progress, from the same seeds and so with the same result.
"""

from __future__ import annotations

import math
import platform
import secrets
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError

from privfr.averaging import AdaptiveClip, FedAvg
from privfr.backends import backend as backend_named
from privfr.coding import Coding
from privfr.directory import Checkpoint, RunDirectory
from privfr.engines.local import Dropouts, LocalEngine
from privfr.errors import BudgetSpent, InputError
from privfr.experiment import Experiment, Training
from privfr.faces.datasets import Faces
from privfr.faces.partition import Split, split
from privfr.faces.recogniser import Recogniser
from privfr.faces.sources import load_faces
from privfr.faces.verification import Verification, evaluate
from privfr.federation import Coordinator, Member, Policy, RoundReport, run_round
from privfr.methods import method_of
from privfr.models import Part, judged
from privfr.privacy.accounting import noise_for
from privfr.privacy.client import ClientLevel, calibrated
from privfr.privacy.example import ExampleLevel, steps_of
from privfr.privacy.guard import ExampleBudget, Guarantee, Guarded, guarantees
from privfr.privacy.ledger import Ledger
from privfr.protocol import Backend
from privfr.report import (
    ClientTrained,
    Event,
    Individual,
    Measured,
    Notice,
    Observer,
    Report,
    RoundEnded,
    Stage,
)
from privfr.storage import write_atomic
from privfr.trainer import Learner, device_of, layout_of
from privfr.vector import Vector

__all__ = ["client_level", "resume", "run"]

_SHOWN = 10  # skipped pictures named one by one
_RECIPE = (
    "batch",
    "learning_rate",
    "weight_decay",
    "decay",
    "shift",
    "dropout",
)  # what pretraining sets for itself


def run(experiment: Experiment, directory: str | Path, observe: Observer = lambda event: None) -> Report:
    """Run an experiment in a new directory; gives the report that also lies there as report.json.

    Raises `InputError` for data or settings that cannot be used, and for a directory already in use.
    """
    place, experiment = RunDirectory(directory), _resolved(experiment)
    _check(experiment)
    place.claim()
    faces = _load(experiment, observe)
    parts = _split(faces, experiment)
    experiment = _weighed(experiment, faces, parts)
    if experiment.privacy.example:
        _check_pictures(experiment, faces, parts)
    new = _Run(experiment, place, faces, parts, observe)
    place.begin(experiment, parts, new.report)
    return new.execute()


def resume(directory: str | Path, observe: Observer = lambda event: None) -> Report:
    """Go on with an interrupted run; its models are those of a run that was not interrupted, to the bit.

    Raises `InputError` where the directory holds no run.
    """
    place = RunDirectory(directory)
    report = place.report()
    place.sweep()
    if report.finished:
        return report
    experiment = place.experiment()
    if experiment.digest() != msgspec.convert(report.experiment, Experiment).digest():
        raise InputError(
            f"{place.root / 'experiment.toml'}: not the experiment that report.json was begun with, which "
            "says what is promised; put it back, or start a new run"
        )
    faces = _load(experiment, observe)
    old = _Run(experiment, place, faces, place.split(), observe)
    old.report = report
    return old.execute()


_BITS = 16  # of a coding, where the backend needs one and the experiment does not say


def _resolved(experiment: Experiment) -> Experiment:
    backend, clients = backend_named(experiment.federation.backend), experiment.data.clients
    fewest = backend.fewest(clients, experiment.options(backend.table))
    privacy = experiment.privacy
    if privacy.client and not backend.central:  # whose noise is missing must not be missed
        fewest = max(fewest, clients - math.floor(privacy.dropout * clients + 1e-9))
    knows = backend.server_learns != "nothing"
    if experiment.federation.evaluate == "server" and not knows:
        raise InputError(
            f"federation.evaluate: with backend {backend.name} the server never holds a model to evaluate; "
            'set it to "member"'
        )
    bits = _BITS if backend.integers or privacy.client else 0
    return experiment.resolved(fewest, bits, "server" if knows else "member")


def _weighed(experiment: Experiment, faces: Faces, parts: Split) -> Experiment:
    """Fill in the largest weight, once it is known who has how many pictures."""
    if experiment.privacy.client:
        most = 1
    elif experiment.coding.max_weight or not experiment.coding.bits:
        return experiment
    else:
        most = max(len(parts.faces_of(faces, client)) for client in range(len(parts.clients)))
    return msgspec.structs.replace(
        experiment, coding=msgspec.structs.replace(experiment.coding, max_weight=most)
    )


def _check_pictures(experiment: Experiment, faces: Faces, parts: Split) -> None:
    """Refuse at once a delta or a budget that does not suit the pictures a client has."""
    delta = experiment.privacy.delta
    for pictures in sorted({len(parts.faces_of(faces, client)) for client in range(len(parts.clients))}):
        if delta >= 1 / pictures:
            raise InputError(
                f"privacy.delta: {delta:g} is not below one in the {pictures} pictures of a client, and "
                "would allow one of them to be given away whole; lower it"
            )
        example_budget(experiment, pictures)


def _parameters(experiment: Experiment) -> bytes:
    """The backend's parameters, which server and clients each work out from the experiment."""
    backend, wanted = backend_named(experiment.federation.backend), experiment.coding
    coding = None
    if wanted.bits:
        level = client_level(experiment)
        weight = 1 if level else wanted.max_weight or 1
        noise = level.noise if level else None
        coding = Coding(wanted.clip, wanted.bits, weight, wanted.rounding, wanted.rotate, noise)
    return backend.plan(
        experiment.data.clients, experiment.federation.threshold, coding, experiment.options(backend.table)
    )


@lru_cache(maxsize=4)  # the same for every client, and it builds a network and searches for the noise
def client_level(experiment: Experiment) -> ClientLevel | None:
    """Noise of the client level, as server and clients each work it out from the experiment."""
    privacy, federation = experiment.privacy, experiment.federation
    if not privacy.client:
        return None
    return calibrated(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        multiplier=privacy.client_noise,
        clip=privacy.client_clip,
        corruption=privacy.corruption,
        step=Coding(experiment.coding.clip, experiment.coding.bits, 1).step,
        clients=experiment.data.clients,
        threshold=federation.threshold,
        rounds=federation.rounds,
        size=layout_of(method_of(experiment)).size + (1 if privacy.clip_share else 0),
        central=backend_named(federation.backend).central,
    )


def averaging(experiment: Experiment) -> FedAvg:
    """What a round does to the model, as server and clients each take it from the experiment."""
    privacy = experiment.privacy
    clip = AdaptiveClip(privacy.client_clip, privacy.clip_share, privacy.clip_quantile)
    return FedAvg(experiment.federation.momentum, clip if privacy.clip_share else None)


def example_budget(experiment: Experiment, pictures: int) -> ExampleBudget:
    """What a client with so many pictures books for each round, with noise that makes them affordable."""
    privacy, rounds = experiment.privacy, experiment.federation.rounds
    rate, steps = steps_of(pictures, experiment.training)
    noise = privacy.example_noise
    if not noise:
        # To two digits and up, which costs little noise, so that like clients share one calibration.
        unit = 10 ** (math.floor(math.log10(rate)) - 1)
        alike = min(1.0, math.ceil(rate / unit) * unit)
        noise = noise_for(privacy.epsilon, privacy.delta, alike, steps * rounds, privacy.accountant)
    return ExampleBudget((noise, rate, steps), privacy.epsilon or math.inf, privacy.delta, privacy.accountant)


def _check(experiment: Experiment) -> None:
    """Refuse at once what would else fail after minutes of loading or training."""
    device_of(experiment.training.device)
    method_of(experiment).build(1, 0)
    if experiment.pretraining.model:
        _given(experiment)
    elif experiment.pretraining.epochs and not experiment.data.public:
        raise InputError("pretraining.epochs: needs public identities; set data.public above 0")
    _parameters(experiment)
    backend = backend_named(experiment.federation.backend)
    _check_collusion(experiment, backend)
    kinds = {str(step.expects.__struct_config__.tag) for step in backend.client_steps} | {"result"}
    kinds |= {"handover"} if backend.handover else set()
    if unknown := set(experiment.engine.phases) - kinds:
        known = ", ".join(sorted(kinds))
        raise InputError(f"engine.phases: no message of kind {min(unknown)!r} here; choose from {known}")


def _check_collusion(experiment: Experiment, backend: Backend) -> None:
    """Refuse noise for more accomplices than the backend keeps single updates from: it would not count."""
    level, clients = client_level(experiment), experiment.data.clients
    options = experiment.options(backend.table)
    known = backend.describe(clients, experiment.federation.threshold, options).get("corrupt")
    if level and known is not None and level.corrupt > known:
        raise InputError(
            f"privacy.corruption: {level.corrupt} of {clients} clients may collude, and {backend.table}."
            f"corruption says {known:.0f}: more could open a single update; set both alike"
        )


def _given(experiment: Experiment) -> Recogniser:
    """Load the recogniser that an experiment is to start from."""
    path, wanted = experiment.pretraining.model, method_of(experiment)
    if experiment.pretraining.epochs:
        raise InputError("pretraining.model: is there already; set pretraining.epochs to 0 or leave it out")
    found = Recogniser.load(path)
    if (found.backbone, found.size, found.dim) != (wanted.backbone, wanted.size, wanted.dim):
        height, width = found.size
        raise InputError(
            f"pretraining.model: {path} is a {found.backbone} of {found.dim} numbers for {height}x{width}; "
            "set model.backbone, model.dim and data.size to these"
        )
    return found


def _load(experiment: Experiment, observe: Observer) -> Faces:
    data = experiment.data
    faces = load_faces(
        data.source,
        data.size,
        download=data.download,
        min_images=data.min_images,
        progress=lambda done, total: observe(Stage("pictures", done, total)),
    )
    for file, reason in faces.skipped[:_SHOWN]:
        observe(Notice(f"skipped {file}: {reason}"))
    if len(faces.skipped) > _SHOWN:
        observe(Notice(f"skipped {len(faces.skipped) - _SHOWN} more; `privfr data inspect` lists them"))
    return faces


def _split(faces: Faces, experiment: Experiment) -> Split:
    data = experiment.data
    return split(
        faces,
        clients=data.clients,
        public=data.public,
        test=data.test,
        scheme=data.scheme,
        per_client=data.per_client or None,
        alpha=data.alpha,
        min_images=data.min_images,
        seed=experiment.seed,
    )


class _Run:
    """The stages of one run."""

    def __init__(
        self, experiment: Experiment, place: RunDirectory, faces: Faces, parts: Split, observe: Observer
    ) -> None:
        self.experiment, self.place, self.watch = experiment, place, observe
        self.public = parts.public_faces(faces) if parts.public else None
        self.test = parts.test_faces(faces)
        self.clients = [parts.faces_of(faces, client) for client in range(len(parts.clients))]
        self.method = method_of(experiment)
        self.backend = backend_named(experiment.federation.backend)
        self.layout = layout_of(self.method)
        self.rule = averaging(experiment)
        self.whole = Part(replace(self.method, trainable="all"), experiment.seed)
        # A loss in clear would tell of pictures what no epsilon accounts for.
        self.metrics = () if experiment.privacy.level != "none" else self.method.metrics
        self.guarded: dict[int, Guarded] = {}
        self._stop = False
        self.report = self._blank_report()

    def execute(self) -> Report:
        """Go through the stages that the report does not yet have."""
        before, started = self.report.seconds, time.perf_counter()
        baselines = {"individual": self._individual, "centralised": self._centralised}
        wanted = [baselines[name] for name in self.experiment.baselines]
        for stage in (self._untrained, self._pretrain, self._federate, *wanted):
            stage()
            self.report.seconds = before + time.perf_counter() - started
            self.place.commit(self.report)
        self.report.finished = True
        self.place.commit(self.report)
        return self.report

    # The stages

    def _untrained(self) -> None:
        if self.report.untrained is None:
            self.report.untrained = self._publish("untrained", self.whole.recogniser(self.whole.start))

    def _pretrain(self) -> None:
        if self.report.pretrained is not None:
            return
        if self.experiment.pretraining.model:
            self.report.pretrained = self._publish("pretrained", _given(self.experiment))
        elif epochs := self.experiment.pretraining.epochs:
            assert self.public is not None
            model = self._in_one_place("pretraining", self.whole, self.public, epochs)
            self.report.pretrained = self._publish("pretrained", self.whole.recogniser(model))

    @cached_property
    def part(self) -> Part:
        """What federation and baselines train, all from one start: the pretrained model if there is one."""
        path = self.place.model("pretrained")
        pretrained = Recogniser.load(path) if self.report.pretrained else None
        found = Part(self.method, self.experiment.seed, pretrained)
        if self.report.start not in ("", found.origin.hex()):
            raise InputError(
                f"{path}: not the model this run was begun with; put it back, or start a new run"
            )
        self.report.start = found.origin.hex()
        return found

    def _federate(self) -> None:
        rounds, done = self.experiment.federation.rounds, len(self.report.rounds)
        if self.report.final is not None:
            return
        found = Checkpoint.load(self._shared(done)) if done else None
        model = found.model if found else self.rule.begin(self.part.start)
        coordinator, members = self._federation(model, done)
        self._compare_ledgers()
        self.place.forget(done - 1)
        engine = self._engine(members)
        self._observe(Stage("federated", done, rounds))
        while coordinator.round < rounds and self._affordable(coordinator, model):
            model = self._round(coordinator, engine, members)
        self.report.final = self._publish("federated", self.part.recogniser(model[: self.layout.size]))

    def _individual(self) -> None:
        """Every client alone, from the same start, for as many steps: what it has without the others."""
        if self.report.individual is not None:
            return
        rounds, total, part = self.experiment.federation.rounds, len(self.clients), self.part

        def train(client: int) -> float:
            learner = self._learner(client, part, self.clients[client], self.experiment.training, rounds)
            model = self._alone("", learner, part.start, self.place.client(client) / "training.safetensors")
            own = part.recogniser(model)
            curve, _ = judged(own, self.test)
            own.save(self.place.client(client) / "individual.safetensors", private=True)
            return curve.eer

        eer: list[float] = []
        self._observe(Stage("individual", 0, total))
        with ThreadPoolExecutor(self.experiment.engine.workers) as pool:
            try:
                for value in pool.map(train, range(total)):
                    eer.append(value)
                    self._observe(Stage("individual", len(eer), total))
            except BaseException:
                self._give_up()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        mean, spread = statistics.fmean(eer), statistics.pstdev(eer)
        self.report.individual = Individual(tuple(eer), mean, spread, min(eer), max(eer))

    def _centralised(self) -> None:
        """All clients' pictures in one place, from the same start, for as many steps: the upper bound."""
        if self.report.centralised is not None:
            return
        epochs = max(1, round(self.experiment.federation.rounds * self.experiment.training.epochs))
        model = self._in_one_place("centralised", self.part, _together(self.clients), epochs)
        self.report.centralised = self._publish("centralised", self.part.recogniser(model))

    # Privacy

    def _guarded(self, learner: Learner, client: int) -> Learner | Guarded:
        """Put a client's learner under its budget, if there is one."""
        privacy = self.experiment.privacy
        if privacy.level == "none":
            return learner
        ledger = Ledger(self._ledger(client))
        budget = None
        if privacy.example:
            budget = example_budget(self.experiment, len(learner.faces))
            learner.example = ExampleLevel(privacy.example_clip, budget.steps[0])
            learner.entropy = secrets.token_bytes
        self.guarded[client] = Guarded(learner, ledger, client_level(self.experiment), budget, self.rule.clip)
        return self.guarded[client]

    def _affordable(self, coordinator: Coordinator, model: Vector) -> bool:
        """Tell whether enough clients can pay for another round; if not, say so in the report."""
        able = sum(each.affords for each in self.guarded.values())
        if not self.guarded or able >= coordinator.threshold:
            return True
        self._state_privacy(model)
        self.report.stopped = (
            f"the privacy budget of {len(self.guarded) - able} of {len(self.guarded)} clients does not pay "
            f"for round {coordinator.round + 1} of {self.experiment.federation.rounds}"
        )
        if not self.report.rounds:
            raise BudgetSpent(f"privacy.epsilon: {self.report.stopped}; raise it or plan fewer rounds")
        self._observe(Notice(f"stopped: {self.report.stopped}"))
        return False

    def _compare_ledgers(self) -> None:
        """Refuse ledgers that know of less than the report does: a file has gone, or has lost lines."""
        if not (stated := self.report.privacy):
            return
        for then, now in zip(stated, self._guarantees(None), strict=True):
            for client, (before, after) in enumerate(zip(then.clients, now.clients, strict=True)):
                if after < before * (1 - 1e-9):
                    raise InputError(
                        f"{self._ledger(client)}: knows of epsilon {after:.2f} at the {now.level} level, and "
                        f"report.json of {before:.2f}; put the file back: what was spent stays spent"
                    )

    def _settle(self, outcome: RoundReport, model: Vector) -> None:
        """Book what a round has really cost, now that its survivors are known."""
        for each in self.guarded.values():
            if not outcome.failed:
                each.settle(outcome.round, outcome.survivors)
        self._state_privacy(model)

    def _state_privacy(self, model: Vector) -> None:
        """Say in the report what the ledgers say: also of rounds that were broken off."""
        clip = self.rule.clip
        if self.guarded:
            self.report.privacy = self._guarantees(clip.at(model[self.layout.size]) if clip else None)

    def _guarantees(self, last_clip: float | None) -> list[Guarantee]:
        every = [self.guarded[client] for client in sorted(self.guarded)]
        return guarantees(every, self.experiment, self.backend, last_clip)

    def _ledger(self, client: int) -> Path:
        return self.place.client(client) / "privacy.jsonl"

    # One round

    def _round(self, coordinator: Coordinator, engine: LocalEngine, members: dict[int, Member]) -> Vector:
        """Run one round and put it on record; gives the model it ends with."""

        def trained() -> float:
            return sum(member.learn_seconds for member in members.values())

        def spent() -> float:
            return engine.seconds - trained()

        before = trained(), spent()
        outcome = run_round(engine.exchange, coordinator, spent)
        self._account(trained() - before[0], spent() - before[1], outcome.server_seconds)
        outcome.faults = [*outcome.faults, *engine.refusals]
        engine.refusals.clear()
        done, model = coordinator.round, self._held(coordinator, members)
        if self.backend.server_learns == "nothing" and not outcome.failed:
            told = [members[client].outcome for client in sorted(coordinator.current)]
            if told and told[0]:
                outcome.tell(told[0])
        self._settle(outcome, model)
        Checkpoint(done, model, {}).save(self._shared(done))
        for client, member in members.items():
            write_atomic(self._private(client, done), member.learner.save(), private=True)
        torch.set_num_threads(self.experiment.engine.cores)
        eer = judged(self.part.recogniser(model[: self.layout.size]), self.test)[0].eer
        self.report.rounds.append(outcome)
        self.report.eer.append(eer)
        self.place.commit(self.report)
        self.place.forget(done - 1)
        self._observe(RoundEnded(outcome, eer))
        self._observe(
            Stage("federated", done, self.experiment.federation.rounds, outcome.metrics.get("loss"))
        )
        return model

    def _held(self, coordinator: Coordinator, members: dict[int, Member]) -> Vector:
        """Model to measure: the server's, or a member's where that is who measures."""
        if self.experiment.federation.evaluate == "server":
            assert coordinator.model is not None  # what is asked of a server that has none is refused
            return coordinator.model
        for client in sorted(coordinator.current):
            if (held := members[client].holds(coordinator.digest)) is not None:
                return held
        raise InputError(
            f"round {coordinator.round - 1}: no client is known to hold the model, and the server may not; "
            "lower engine.losses"
        )

    def _federation(self, model: Vector, done: int) -> tuple[Coordinator, dict[int, Member]]:
        """Set up the server and the clients, as they are after `done` rounds."""
        experiment, roster = self.experiment, tuple(range(len(self.clients)))
        federation = experiment.federation
        keyring, keyrings = self.backend.provision(roster, secrets.token_bytes)
        missed = set(self.report.rounds[-1].missed if done else roster)
        parameters = _parameters(experiment)
        members = {}
        for client in roster:
            faces = self.clients[client]
            learner = self._learner(client, self.part, faces, experiment.training, federation.rounds)
            if done:
                self._restore(learner, self._private(client, done))
            members[client] = Member(
                client=client,
                backend=self.backend,
                keyring=keyrings[client],
                learner=self._guarded(learner, client),
                layout=self.part.digest,
                config=experiment.digest(),
                metrics=self.metrics,
                entropy=secrets.token_bytes,
                parameters=parameters,
                policy=Policy(len(roster), federation.threshold, (self.backend.name,), roster),
                model=None if client in missed else model,
                rule=self.rule,
            )
        coordinator = Coordinator(
            run=bytes.fromhex(self.report.run),
            backend=self.backend,
            keyring=keyring,
            roster=roster,
            threshold=federation.threshold,
            layout=self.part.digest,
            config=experiment.digest(),
            metrics=self.metrics,
            model=model,
            parameters=parameters,
            rule=self.rule,
            round=done,
            current=set(roster) - missed,
        )
        return coordinator, members

    def _restore(self, learner: Learner, path: Path) -> None:
        try:
            learner.restore(path.read_bytes())
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be read ({error}); the run cannot go on without it") from None

    def _engine(self, members: dict[int, Member]) -> LocalEngine:
        wanted = self.experiment.engine
        dropouts = Dropouts(wanted.losses, self.experiment.seed, wanted.phases)
        return LocalEngine(members, wanted.workers, dropouts, self._give_up)

    def _account(self, training: float, clients: float, server: float) -> None:
        profile = self.report.profile
        profile.training, profile.clients = profile.training + training, profile.clients + clients
        profile.server += server
        self.report.overhead = profile.overhead

    # Training in one place

    def _learner(self, who: int | str, part: Part, faces: Faces, training: Training, rounds: int) -> Learner:
        def stepped(done: int, total: int, loss: float) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self.watch(ClientTrained(str(who), done, total, loss))

        return Learner(
            who, part.method, faces, training, part.layout, rounds, self.experiment.seed,
            frozen=part.frozen, stepped=stepped,
        )  # fmt: skip

    def _in_one_place(self, stage: str, part: Part, faces: Faces, epochs: int) -> Vector:
        """Train on pictures that lie together, an epoch a round, as one continuous training."""
        wanted, cores = self.experiment.pretraining, self.experiment.engine.cores
        shared = {name: getattr(wanted, name) for name in _RECIPE}
        training = msgspec.structs.replace(self.experiment.training, epochs=1.0, threads=cores, **shared)
        learner = self._learner(stage, part, faces, training, epochs)
        learner.optimiser = {}

        def raise_margin(epoch: int) -> None:
            reached = min(1.0, epoch / (wanted.warmup * epochs)) if wanted.warmup else 1.0
            scale = wanted.scale or part.method.scale
            learner.method = replace(part.method, margin=wanted.margin * reached, scale=scale)

        return self._alone(stage, learner, part.start, self.place.model(f"{stage}-state"), raise_margin)

    def _alone(
        self,
        stage: str,
        learner: Learner,
        start: Vector,
        path: Path,
        before: Callable[[int], None] = lambda round: None,
    ) -> Vector:
        """Train one learner for its rounds, as a client would without a federation; resumes from `path`."""
        found = Checkpoint.load(path) or Checkpoint(0, start, {}, learner.optimiser or {})
        model, learner.private = found.model, found.private
        if learner.optimiser is not None:
            learner.optimiser = found.optimiser
        for round in range(found.done, learner.rounds):
            before(round)
            update = learner.learn(model, round)
            model = model + update.vector
            Checkpoint(round + 1, model, learner.private, learner.optimiser or {}).save(path)
            if stage:
                self._observe(Stage(stage, round + 1, learner.rounds, update.metrics["loss"]))
        return model

    def _give_up(self) -> None:
        """Have every training in a worker end at its next step."""
        self._stop = True

    def _publish(self, name: str, found: Recogniser) -> Verification:
        """Measure a model on the test identities and write it."""
        torch.set_num_threads(self.experiment.engine.cores)
        _, embeddings = judged(found, self.test)
        found.about = {"run": self.report.run, "model": name}
        found.save(self.place.model(name))
        measured = evaluate(embeddings, self.test.labels, self.experiment.seed)
        self._observe(Measured(name, measured.eer, measured.auc))
        return measured

    # The record

    def _shared(self, round: int) -> Path:
        return self.place.model(f"round-{round}")

    def _private(self, client: int, round: int) -> Path:
        return self.place.client(client) / f"round-{round}.safetensors"

    def _observe(self, event: Event) -> None:
        self.place.log(event)
        self.watch(event)

    def _blank_report(self) -> Report:
        distributions = ("privfr", "torch", "numpy", "pynacl", "cryptography", "tenseal")
        versions = {name: version(name) for name in distributions} | {"python": platform.python_version()}
        groups = {"public": self.public, "test": self.test}
        return Report(
            run=secrets.token_hex(16),
            experiment=msgspec.to_builtins(self.experiment),
            versions=versions,
            server_learns=self.backend.server_learns,
            trust=self.backend.trust,
            discloses=self.method.discloses,
            security=self.backend.describe(
                self.experiment.data.clients,
                self.experiment.federation.threshold,
                self.experiment.options(self.backend.table),
            ),
            people={name: len(group.names) if group else 0 for name, group in groups.items()}
            | {"clients": len({name for faces in self.clients for name in faces.names})},
            pictures={name: len(group) if group else 0 for name, group in groups.items()}
            | {"clients": sum(map(len, self.clients))},
            parameters=self.layout.size,
            frozen=sum(
                math.prod(shape)
                for name, shape in zip(self.whole.layout.names, self.whole.layout.shapes, strict=True)
                if self.method.frozen(name)
            ),
        )


def _together(clients: list[Faces]) -> Faces:
    """Merge the clients' faces as one data set; a person on two clients is one person."""
    names = sorted({name for faces in clients for name in faces.names})
    number = {name: label for label, name in enumerate(names)}
    labels = [np.array([number[name] for name in faces.names], np.int64)[faces.labels] for faces in clients]
    return Faces(
        np.concatenate([faces.images for faces in clients]),
        np.concatenate(labels),
        tuple(names),
        tuple(file for faces in clients for file in faces.files),
    )
