"""Methods: what is learnt from a client's faces, and which tensors may leave the device."""

from __future__ import annotations

import difflib

from privfr.errors import InputError
from privfr.experiment import Experiment
from privfr.faces.backbones import BACKBONES
from privfr.methods.supervised import Supervised

__all__ = ["METHODS", "method_of"]

METHODS = {"supervised": Supervised}


def method_of(experiment: Experiment) -> Supervised:
    """Make the method an experiment names. Raises `InputError` for an unknown name."""
    settings, model = experiment.method, experiment.model
    for kind, name, known in (("method", settings.name, METHODS), ("backbone", model.backbone, BACKBONES)):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"{kind} {name!r} does not exist: {hint}")
    return METHODS[settings.name](
        backbone=model.backbone,
        size=experiment.data.size,
        dim=model.dim or BACKBONES[model.backbone].dim,
        head=settings.head,
        scale=settings.scale,
        margin=settings.margin,
        restart=settings.restart,
        trainable=settings.trainable,
        rank=settings.rank,
    )
