"""Methods: what is learnt from a client's faces, and which tensors may leave the device."""

from __future__ import annotations

import difflib
from typing import Any

from privfr.errors import InputError
from privfr.experiment import Experiment
from privfr.faces.backbones import BACKBONES
from privfr.methods.supervised import Supervised
from privfr.methods.unsupervised import Unsupervised

__all__ = ["METHODS", "FaceMethod", "method_of", "pretraining_of"]

FaceMethod = Supervised | Unsupervised
METHODS: dict[str, type[FaceMethod]] = {"supervised": Supervised, "unsupervised": Unsupervised}

_NOBODY = 0.35  # about what a picture has to its own class mean and hardly one to another's


def method_of(experiment: Experiment) -> FaceMethod:
    """Make the method an experiment names. Raises `InputError` for an unknown name."""
    settings = experiment.method
    for kind, name, known in (
        ("method", settings.name, METHODS),
        ("backbone", experiment.model.backbone, BACKBONES),
    ):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"{kind} {name!r} does not exist: {hint}")
    part: dict[str, Any] = {"trainable": settings.trainable, "rank": settings.rank}
    if settings.name == "unsupervised":
        return _unsupervised(experiment, **part)
    return _supervised(experiment, nobody=_nobody(experiment), restart=settings.restart, **part)


def pretraining_of(experiment: Experiment) -> FaceMethod:
    """Make the method that trains the start on the public people: with labels where clients have them.

    All of the network, under a plain head: the public people are many.
    """
    unsupervised = experiment.method.name == "unsupervised"
    return _unsupervised(experiment) if unsupervised else _supervised(experiment)


def _supervised(experiment: Experiment, **more: Any) -> Supervised:
    settings = experiment.method
    loss: dict[str, Any] = {"head": settings.head, "scale": settings.scale, "margin": settings.margin}
    return Supervised(**_network(experiment), **loss, **more)


def _unsupervised(experiment: Experiment, **part: Any) -> Unsupervised:
    settings = experiment.method
    return Unsupervised(
        **_network(experiment), **part, variant=settings.variant, neighbours=settings.neighbours,
        similar=settings.similar, dissimilar=settings.dissimilar, temperature=settings.temperature,
        augmentation=settings.augmentation,
    )  # fmt: skip


def _network(experiment: Experiment) -> dict[str, Any]:
    model = experiment.model
    dim = model.dim or BACKBONES[model.backbone].dim
    return {"backbone": model.backbone, "size": experiment.data.size, "dim": dim}


def _nobody(experiment: Experiment) -> float:
    """Cosine of the class "nobody" that a head has beside a client's people."""
    needed = experiment.imposters.source != "none" or experiment.data.scheme == "one"
    return experiment.method.nobody or (_NOBODY if needed else 0.0)
