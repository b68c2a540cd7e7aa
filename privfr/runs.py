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
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import torch

from privfr.averaging import FedAvg
from privfr.backends import backend as backend_named
from privfr.budgets import Budgets
from privfr.directory import Checkpoint, RunDirectory
from privfr.errors import BudgetSpent, InputError
from privfr.experiment import Experiment, Training
from privfr.faces.datasets import Faces
from privfr.faces.partition import Split, split
from privfr.faces.recogniser import Recogniser
from privfr.faces.sources import load_faces
from privfr.faces.verification import Verification, evaluate, likeness
from privfr.imposters.gan import Generator
from privfr.imposters.pool import made_by, others, too_like
from privfr.methods import method_of, pretraining_of
from privfr.methods.supervised import Supervised
from privfr.models import FacePart, Part, judged, own_eer
from privfr.plan import (
    averaging,
    check,
    check_pictures,
    gan_of,
    gan_training,
    given,
    imposters_of,
    parameters,
    resolved,
    weighed,
)
from privfr.report import (
    ClientTrained,
    Event,
    Generated,
    Measured,
    Notice,
    Observer,
    Own,
    Report,
    RoundEnded,
    Spread,
    Stage,
    collapse,
    collapsing,
)
from privfr.stage import FederatedStage
from privfr.trainer import Learner, Pictures, layout_of, seed_of
from privfr.vector import Aggregate, Vector

__all__ = ["resume", "run"]

T = TypeVar("T")

# Stages that all clients train in together, by the name of their checkpoints, and what a person calls them.
GENERATOR, MODEL = "imposters", "round"
_NAMES = {GENERATOR: "imposters", MODEL: "federated"}

_SHOWN = 10  # skipped pictures named one by one
_RECIPE = (
    "batch",
    "learning_rate",
    "weight_decay",
    "decay",
    "shift",
    "dropout",
)  # what pretraining sets for itself


def run(
    experiment: Experiment,
    directory: str | Path,
    observe: Observer = lambda event: None,
    faces: Faces | None = None,
    *,
    imposters_only: bool = False,
) -> Report:
    """Run an experiment in a new directory; gives the report that also lies there as report.json.

    faces: those of `data.source`, where they are loaded already.  imposters_only: stop when the generator of
    imposters is trained; `resume` goes on from there.
    Raises `InputError` for data or settings that cannot be used, and for a directory already in use.
    """
    place, experiment = RunDirectory(directory), resolved(experiment)
    check(experiment)
    if imposters_only:
        _check_trained(experiment)
    place.claim()
    faces = faces or _load(experiment, observe)
    parts = _split(faces, experiment)
    experiment = weighed(experiment, faces, parts)
    if experiment.privacy.example:
        check_pictures(experiment, faces, parts)
    new = _Run(experiment, place, faces, parts, observe)
    place.begin(experiment, parts, new.report)
    return new.execute(imposters_only)


def resume(
    directory: str | Path,
    observe: Observer = lambda event: None,
    faces: Faces | None = None,
    *,
    imposters_only: bool = False,
) -> Report:
    """Go on with an interrupted run; its models are those of a run that was not interrupted, to the bit.

    faces, imposters_only: as of `run`. Raises `InputError` where the directory holds no run.
    """
    place = RunDirectory(directory)
    report = place.report()
    place.sweep()
    if imposters_only:
        _check_trained(place.experiment())
    if report.finished:
        return report
    experiment = place.experiment()
    if experiment.digest() != msgspec.convert(report.experiment, Experiment).digest():
        raise InputError(
            f"{place.root / 'experiment.toml'}: not the experiment that report.json was begun with, which "
            "says what is promised; put it back, or start a new run"
        )
    faces = faces or _load(experiment, observe)
    old = _Run(experiment, place, faces, place.split(), observe)
    old.report = report
    return old.execute(imposters_only)


def _check_trained(experiment: Experiment) -> None:
    """Refuse to stop after a generator that is not trained."""
    if not experiment.imposters.trained:
        raise InputError(
            f'imposters.source: "{experiment.imposters.source}" trains no generator here; take federated, '
            "public or device, and give no imposters.model"
        )


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
        holdout=data.holdout,
        min_images=data.min_images,
        seed=experiment.seed,
    )


class _Run:
    """The stages of one run."""

    def __init__(
        self, experiment: Experiment, place: RunDirectory, faces: Faces, parts: Split, observe: Observer
    ) -> None:
        self.experiment, self.place, self.watch = experiment, place, observe
        every = range(len(parts.clients))
        self.public = parts.public_faces(faces) if parts.public else None
        self.test = parts.test_faces(faces)
        self.clients = [parts.faces_of(faces, client) for client in every]
        held_out = experiment.data.holdout
        self.probes = [parts.holdout_of(faces, client) for client in every] if held_out else []
        self.method, self.labelled = method_of(experiment), pretraining_of(experiment)
        self.backend = backend_named(experiment.federation.backend)
        self.budgets = Budgets(experiment, self.backend, place)
        # A loss in clear would tell of pictures what no epsilon accounts for.
        self.metrics = () if experiment.privacy.level != "none" else self.method.metrics
        self.pools: dict[int, Pictures | None] = {}
        self.alike: dict[int, float] = {}
        self._stop = False
        self.report = self._blank_report()

    def execute(self, imposters_only: bool) -> Report:
        """Go through the stages that the report does not yet have."""
        before, started = self.report.seconds, time.perf_counter()
        baselines = {"individual": self._individual, "centralised": self._centralised}
        wanted = [baselines[name] for name in self.experiment.baselines]
        every = (self._untrained, self._pretrain, self._generate, self._federate, *wanted)
        for stage in (self._generate,) if imposters_only else every:
            stage()
            self.report.seconds = before + time.perf_counter() - started
            self.place.commit(self.report)
        self.report.finished = not imposters_only
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
            self.report.pretrained = self._publish("pretrained", given(self.experiment))
        elif epochs := self.experiment.pretraining.epochs:
            assert self.public is not None
            model = self._in_one_place("pretraining", self.whole, self.public, epochs)
            self.report.pretrained = self._publish("pretrained", self.whole.recogniser(model))

    def _generate(self) -> None:
        """Train the generator of imposters where one is to be trained."""
        wanted, found = self.experiment.imposters, self.report.imposters
        if not wanted.trained or (found and found.finished):
            return
        if found is None:
            found = self.report.imposters = Generated(wanted.source, self.gan.layout.size)
        rule = averaging(self.experiment, generator=True)
        if wanted.source == "federated":
            self._publish_generator(rule.result(self._train_together(GENERATOR, rule)))
        elif wanted.source == "public":
            assert self.public is not None
            share = sum(map(len, self.clients)) / len(self.public)
            learner = self._gan_learner("imposters", self.public, share)
            learner.optimiser = {}
            path = self.place.model("imposters-state")
            self._publish_generator(
                rule.result(self._alone("imposters", learner, self.gan.start, path, rule))
            )
        else:
            self._of_each("imposters", self._train_own_generator)
        found.finished = True

    def _train_own_generator(self, client: int) -> None:
        rule = averaging(self.experiment, generator=True)
        learner = self._gan_learner(client, self.clients[client])
        path = self.place.client(client) / "imposters-state.safetensors"
        model = rule.result(self._alone("", learner, self.gan.start, path, rule))
        self._generator(model).save(self.place.client(client) / "generator.safetensors", private=True)

    def _federate(self) -> None:
        if self.report.final is not None:
            return
        rule = averaging(self.experiment)
        model = rule.result(self._train_together(MODEL, rule))
        self.report.final = self._publish("federated", self.part.recogniser(model))
        if self.probes:
            self._judge_own(self.part.recogniser(model))

    def _individual(self) -> None:
        """Every client alone, from the same start, for as many steps: what it has without the others."""
        if self.report.individual is not None:
            return

        def train(client: int) -> tuple[float, float]:
            learner = self._face_learner(client)
            path = self.place.client(client) / "training.safetensors"
            found = self.part.recogniser(self._alone("", learner, self.part.start, path))
            curve, _ = judged(found, self.test)
            found.save(self.place.client(client) / "individual.safetensors", private=True)
            return curve.eer, own_eer(found, *self._own_trials(client)) if self.probes else math.nan

        eer, own = zip(*self._of_each("individual", train), strict=True)
        self.report.individual = Spread.of(eer)
        if self.report.own:
            self.report.own.individual = Spread.of(own)

    def _centralised(self) -> None:
        """All clients' pictures in one place, from the same start, for as many steps: the upper bound."""
        if self.report.centralised is not None:
            return
        epochs = max(1, round(self.experiment.federation.rounds * self.experiment.training.epochs))
        pools = [pool for client in range(len(self.clients)) if (pool := self._imposters(client)) is not None]
        everybody = _together(self.clients)
        imposters = np.concatenate(pools) if pools else None
        model = self._in_one_place("centralised", self.part, everybody, epochs, imposters)
        self.report.centralised = self._publish("centralised", self.part.recogniser(model))

    # What they train

    @cached_property
    def whole(self) -> FacePart:
        """The whole network, as it is pretrained."""
        return FacePart(self.labelled, self.experiment.seed)

    @cached_property
    def part(self) -> FacePart:
        """What federation and baselines train, all from one start: the pretrained model if there is one."""
        path = self.place.model("pretrained")
        pretrained = Recogniser.load(path) if self.report.pretrained else None
        found = FacePart(self.method, self.experiment.seed, pretrained)
        if self.report.start not in ("", found.origin.hex()):
            raise InputError(
                f"{path}: not the model this run was begun with; put it back, or start a new run"
            )
        self.report.start = found.origin.hex()
        return found

    @cached_property
    def gan(self) -> Part:
        """The generator, as it starts."""
        return Part(gan_of(self.experiment), self.experiment.seed)

    # Together

    def _train_together(self, stage: str, rule: FedAvg) -> Vector:
        """Train the model, or the generator, over the backend; gives its model vector."""
        generator = stage == GENERATOR
        every = range(len(self.clients))
        if generator:
            assert self.report.imposters is not None
            part, rounds, done = self.gan, self.experiment.imposters.rounds, self.report.imposters.rounds
            learners = [self._gan_learner(client, self.clients[client]) for client in every]
        else:
            part, rounds, done = self.part, self.experiment.federation.rounds, self.report.rounds
            learners = [self._face_learner(client) for client in every]
            self.report.alike = statistics.fmean(self.alike.values()) if self.alike else None
        found = FederatedStage(
            name=stage,
            run=self.report.run,
            experiment=self.experiment,
            backend=self.backend,
            place=self.place,
            rule=rule,
            layout=part.digest,
            start=part.start,
            learners=self.budgets.guard(learners, rule, generator),
            parameters=parameters(self.experiment),
            metrics=self.metrics,
            rounds=done,
            profile=self.report.profile,
            give_up=self._give_up,
        )
        self.budgets.compare(self.report.privacy, rule)
        self._observe(Stage(_NAMES[stage], len(done), rounds))
        while len(done) < rounds and self._affordable(found, rounds):
            outcome = found.round()
            self.budgets.settle(outcome)
            self.report.privacy = self.budgets.stated(rule, found.model)
            self.report.overhead = self.report.profile.overhead
            done.append(outcome)
            eer = None if generator else self._judge_round(rule.result(found.model))
            self.place.commit(self.report)
            self.place.forget(stage, len(done) - 1)
            self._observe(RoundEnded(outcome, eer))
            self._observe(Stage(_NAMES[stage], len(done), rounds, outcome.metrics.get("loss")))
        return found.model

    def _affordable(self, stage: FederatedStage, rounds: int) -> bool:
        """Tell whether enough clients can pay for another round; if not, say so in the report."""
        if not (shortage := self.budgets.shortage(self.experiment.federation.threshold)):
            return True
        self.report.privacy = self.budgets.stated(stage.rule, stage.model)
        done = len(stage.rounds)
        self.report.stopped = f"{shortage} for round {done + 1} of {rounds}"
        if not done:
            raise BudgetSpent(f"privacy.epsilon: {self.report.stopped}; raise it or plan fewer rounds")
        self._observe(Notice(f"stopped: {self.report.stopped}"))
        return False

    def _judge_round(self, model: Vector) -> float:
        """Measure the model after a round, and warn where it no longer tells people apart."""
        torch.set_num_threads(self.experiment.engine.cores)
        curve, embeddings = judged(self.part.recogniser(model), self.test)
        self.report.eer.append(curve.eer)
        now = likeness(embeddings, self.test.labels)
        if not self.report.likeness:
            start = self.part.recogniser(self.part.start).embed(self.test.images)
            self.report.likeness.append(likeness(start, self.test.labels))
        self.report.likeness.append(now)
        if collapsing(self.report.likeness) and not self.report.collapsed:
            self.report.collapsed = len(self.report.eer)
            self._observe(Notice(collapse(self.report)))
        return curve.eer

    # Imposters

    def _imposters(self, client: int) -> Pictures | None:
        """Give a client pictures of nobody it knows, the same ones each time it is asked."""
        if client not in self.pools:
            self.pools[client] = self._drawn(client)
        return self.pools[client]

    def _drawn(self, client: int) -> Pictures | None:
        """Draw a client's imposters, those too like its people left out."""
        wanted, own = self.experiment.imposters, self.clients[client]
        count = imposters_of(self.experiment, len(own))
        if not count:
            return None
        torch.set_num_threads(self.experiment.training.threads)  # the last bit of a picture depends on them
        seed = seed_of(self.experiment.seed, client, "imposters")
        if wanted.source == "real":
            return others(self.clients, client, count, seed)
        if wanted.source == "device" and not wanted.model:
            path = self.place.client(client) / "generator.safetensors"
        else:
            path = Path(wanted.model) if wanted.model else self.place.model("generator")
        made = made_by(Generator.load(path), count, seed, self.experiment.data.size)
        if self.experiment.privacy.example:
            return made  # to look at its own people here would be without noise
        start = self.part.recogniser(self.part.start)
        alike = too_like(start.embed(made), start.embed(own.images))
        self.alike[client] = float(alike.mean())
        return made[~alike]

    def _generator(self, model: Vector) -> Generator:
        """Make a generator of its vector."""
        wanted = self.experiment.imposters
        found = Generator(wanted.width, wanted.latent)
        tensors = self.gan.layout.restore(model)
        found.load_state_dict(
            {name.removeprefix("generator."): torch.from_numpy(tensor) for name, tensor in tensors.items()}
        )
        return found

    def _publish_generator(self, model: Vector) -> None:
        self._generator(model).save(self.place.model("generator"))

    # Each client's own people

    def _own_trials(self, client: int) -> tuple[Faces, Faces, Faces]:
        return self.clients[client], self.probes[client], self.test

    def _judge_own(self, found: Recogniser) -> None:
        """Measure how well the start and the result tell each client's people from people of the test."""
        start = self.part.recogniser(self.part.start)
        every = [self._own_trials(client) for client in range(len(self.clients))]
        self.report.own = Own(
            *(Spread.of([own_eer(model, *trials) for trials in every]) for model in (start, found))
        )

    # Training in one place

    def _learner(
        self, who: int | str, part: Part, faces: Faces, training: Training, rounds: int,
        imposters: Pictures | None = None,
    ) -> Learner:  # fmt: skip
        def stepped(done: int, total: int, loss: float) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self.watch(ClientTrained(str(who), done, total, loss))

        return Learner(
            who, part.method, faces, training, part.layout, rounds, self.experiment.seed, imposters,
            frozen=part.frozen, stepped=stepped,
        )  # fmt: skip

    def _face_learner(self, client: int) -> Learner:
        experiment = self.experiment
        return self._learner(
            client, self.part, self.clients[client], experiment.training, experiment.federation.rounds,
            self._imposters(client),
        )  # fmt: skip

    def _gan_learner(self, who: int | str, faces: Faces, share: float = 1.0) -> Learner:
        """Make what trains a generator. share: of what a client goes over of its pictures in a round."""
        training = gan_training(self.experiment)
        training = msgspec.structs.replace(training, epochs=share * training.epochs)
        return self._learner(who, self.gan, faces, training, self.experiment.imposters.rounds)

    def _in_one_place(
        self, stage: str, part: FacePart, faces: Faces, epochs: int, imposters: Pictures | None = None
    ) -> Vector:
        """Train on pictures that lie together, an epoch a round, as one continuous training."""
        wanted, cores = self.experiment.pretraining, self.experiment.engine.cores
        shared = {name: getattr(wanted, name) for name in _RECIPE}
        training = msgspec.structs.replace(self.experiment.training, epochs=1.0, threads=cores, **shared)
        learner = self._learner(stage, part, faces, training, epochs, imposters)
        learner.optimiser = {}

        def raise_margin(epoch: int) -> None:
            if not isinstance(part.method, Supervised):
                return
            reached = min(1.0, epoch / (wanted.warmup * epochs)) if wanted.warmup else 1.0
            scale = wanted.scale or part.method.scale
            learner.method = replace(part.method, margin=wanted.margin * reached, scale=scale)

        return self._alone(
            stage, learner, part.start, self.place.model(f"{stage}-state"), before=raise_margin
        )

    def _alone(
        self,
        stage: str,
        learner: Learner,
        start: Vector,
        path: Path,
        rule: FedAvg = FedAvg(),  # noqa: B008
        before: Callable[[int], None] = lambda round: None,
    ) -> Vector:
        """Train one learner for its rounds, as a client would without a federation; resumes from `path`."""
        found = Checkpoint.load(path) or Checkpoint(0, rule.begin(start), {}, learner.optimiser or {})
        model, learner.private = found.model, found.private
        if learner.optimiser is not None:
            learner.optimiser = found.optimiser
        for round in range(found.done, learner.rounds):
            before(round)
            update = learner.learn(model[: start.size], round)
            model = rule.step(model, Aggregate(update.vector, update.weight, 1, update.metrics))
            Checkpoint(round + 1, model, learner.private, learner.optimiser or {}).save(path)
            if stage:
                self._observe(Stage(stage, round + 1, learner.rounds, update.metrics["loss"]))
        return model

    def _of_each(self, stage: str, work: Callable[[int], T]) -> list[T]:
        """Do something for every client, several at once where there are several workers."""
        total, found = len(self.clients), list[T]()
        self._observe(Stage(stage, 0, total))
        with ThreadPoolExecutor(self.experiment.engine.workers) as pool:
            try:
                for value in pool.map(work, range(total)):
                    found.append(value)
                    self._observe(Stage(stage, len(found), total))
            except BaseException:
                self._give_up()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return found

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

    def _observe(self, event: Event) -> None:
        self.place.log(event)
        self.watch(event)

    def _blank_report(self) -> Report:
        distributions = ("privfr", "torch", "numpy", "pynacl", "cryptography", "tenseal")
        versions = {name: version(name) for name in distributions} | {"python": platform.python_version()}
        groups, whole = {"public": self.public, "test": self.test}, self.whole.layout
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
            parameters=layout_of(self.method).size,
            frozen=sum(
                math.prod(shape)
                for name, shape in zip(whole.names, whole.shapes, strict=True)
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
