"""What follows from an experiment before anything is trained: numbers it leaves open, noise, and refusals."""

from __future__ import annotations

import math
from functools import lru_cache

import msgspec

from privfr.averaging import AdaptiveClip, FedAvg
from privfr.backends import backend as backend_named
from privfr.coding import Coding
from privfr.errors import InputError
from privfr.experiment import Experiment, Training
from privfr.faces.datasets import Faces
from privfr.faces.partition import Split
from privfr.faces.recogniser import Recogniser
from privfr.imposters.gan import Gan, Generator
from privfr.methods import method_of
from privfr.privacy.accounting import noise_for
from privfr.privacy.client import ClientLevel, calibrated
from privfr.privacy.example import steps_of
from privfr.privacy.guard import ExampleBudget
from privfr.protocol import Backend
from privfr.trainer import device_of, layout_of

__all__ = [
    "averaging", "check", "check_pictures", "client_level", "example_budget", "gan_of", "gan_training",
    "given", "imposters_of", "parameters", "resolved", "weighed",
]  # fmt: skip

_BITS = 16  # of a coding, where the backend needs one and the experiment does not say


def resolved(experiment: Experiment) -> Experiment:
    """Fill in what an experiment leaves to the machine and the backend, as `Experiment.resolved`."""
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


def weighed(experiment: Experiment, faces: Faces, parts: Split) -> Experiment:
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


def check_pictures(experiment: Experiment, faces: Faces, parts: Split) -> None:
    """Refuse at once a delta or a budget that does not suit the pictures a client has."""
    delta = experiment.privacy.delta
    for pictures in sorted({len(parts.faces_of(faces, client)) for client in range(len(parts.clients))}):
        if delta >= 1 / pictures:
            raise InputError(
                f"privacy.delta: {delta:g} is not below one in the {pictures} pictures of a client, and "
                "would allow one of them to be given away whole; lower it"
            )
        example_budget(experiment, pictures)


def parameters(experiment: Experiment) -> bytes:
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
        rounds=federation.rounds + (experiment.imposters.rounds if _federated(experiment) else 0),
        size=_largest(experiment) + (1 if privacy.clip_share else 0),
        central=backend_named(federation.backend).central,
    )


def _federated(experiment: Experiment) -> bool:
    """Whether a generator is trained over the backend, too."""
    return experiment.imposters.source == "federated" and experiment.imposters.trained


def _largest(experiment: Experiment) -> int:
    """Numbers of the longest vector that is summed."""
    sizes = [layout_of(method_of(experiment)).size]
    return max([*sizes, layout_of(gan_of(experiment)).size] if _federated(experiment) else sizes)


def averaging(experiment: Experiment, generator: bool = False) -> FedAvg:
    """What a round does to the model, as server and clients each take it from the experiment.

    generator: of the rounds that train the generator.
    """
    privacy = experiment.privacy
    clip = AdaptiveClip(privacy.client_clip, privacy.clip_share, privacy.clip_quantile)
    learnt = clip if privacy.clip_share else None
    if generator:
        return FedAvg(0.0, learnt, experiment.imposters.average)
    return FedAvg(experiment.federation.momentum, learnt)


def gan_of(experiment: Experiment) -> Gan:
    """Make the method that trains a generator."""
    return Gan(experiment.imposters.width, experiment.imposters.latent)


def gan_training(experiment: Experiment) -> Training:
    """How a generator is trained: what has to do with the machine is as for the model.

    Without a first moment, as is customary where two networks chase each other (Karras et al. 2018, arXiv
    1710.10196).
    """
    wanted = experiment.imposters
    return msgspec.structs.replace(
        experiment.training, epochs=wanted.epochs, batch=wanted.batch, learning_rate=wanted.learning_rate,
        optimizer="adamw", betas=(0.0, 0.99), weight_decay=0.0, decay=0.05, shift=0, flip=True, dropout=0.0,
    )  # fmt: skip


def example_budget(experiment: Experiment, pictures: int, generator: bool = False) -> ExampleBudget:
    """What a client with so many pictures books for each round, with noise that makes all rounds affordable.

    generator: of the rounds that train the generator, on the same budget.
    """
    privacy, imposters = experiment.privacy, experiment.imposters
    shown = pictures + imposters_of(experiment, pictures)
    phases = {False: (*steps_of(shown, experiment.training), experiment.federation.rounds)}
    if _federated(experiment):
        phases[True] = (*steps_of(pictures, gan_training(experiment)), imposters.rounds)
    noise = privacy.example_noise
    if not noise:
        # To two digits and up, which costs little noise, so that like clients share one calibration.
        plan = tuple((_rounded_up(rate), steps * rounds) for rate, steps, rounds in phases.values())
        noise = noise_for(privacy.epsilon, privacy.delta, plan, privacy.accountant)
    rate, steps, _ = phases[generator]
    return ExampleBudget((noise, rate, steps), privacy.epsilon or math.inf, privacy.delta, privacy.accountant)


def _rounded_up(rate: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(rate)) - 1)
    return min(1.0, math.ceil(rate / unit) * unit)


def imposters_of(experiment: Experiment, pictures: int) -> int:
    """Count the imposters of a client with so many pictures, those too like its people among them."""
    wanted = experiment.imposters
    return 0 if wanted.source == "none" else round(wanted.ratio * pictures)


def check(experiment: Experiment) -> None:
    """Refuse at once what would else fail after minutes of loading or training."""
    device_of(experiment.training.device)
    method_of(experiment).build(1, 0)
    if experiment.pretraining.model:
        given(experiment)
    elif experiment.pretraining.epochs and not experiment.data.public:
        raise InputError("pretraining.epochs: needs public identities; set data.public above 0")
    _check_imposters(experiment)
    parameters(experiment)
    backend = backend_named(experiment.federation.backend)
    _check_collusion(experiment, backend)
    kinds = {str(step.expects.__struct_config__.tag) for step in backend.client_steps} | {"result"}
    kinds |= {"handover"} if backend.handover else set()
    if unknown := set(experiment.engine.phases) - kinds:
        known = ", ".join(sorted(kinds))
        raise InputError(f"engine.phases: no message of kind {min(unknown)!r} here; choose from {known}")


def _check_imposters(experiment: Experiment) -> None:
    """Refuse imposters that cannot be had, and those that would go round a promise of privacy."""
    wanted, privacy = experiment.imposters, experiment.privacy
    if wanted.source == "public" and wanted.trained and not experiment.data.public:
        raise InputError("imposters.source: public needs public identities; set data.public above 0")
    if wanted.source == "real" and privacy.level != "none":
        raise InputError(
            "imposters.source: real shows clients each other's pictures, to measure by, and privacy.level is "
            f"{privacy.level!r}; take federated or public"
        )
    if wanted.source == "device" and privacy.example:
        raise InputError(
            "imposters.source: device trains on a client's pictures without noise, which privacy.level "
            f"{privacy.level!r} forbids; take federated or public"
        )
    if wanted.model:
        if wanted.source in ("none", "real"):
            raise InputError(
                f'imposters.model: a generator, and imposters.source is "{wanted.source}"; say where it '
                'was trained, such as "federated"'
            )
        Generator.load(wanted.model)


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


def given(experiment: Experiment) -> Recogniser:
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
