"""What a stage of a run trains, and how its vector becomes a recogniser."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.faces.recogniser import Recogniser
from privfr.faces.verification import Roc, all_pairs_roc, roc
from privfr.methods import FaceMethod
from privfr.methods.base import Method
from privfr.trainer import layout_of
from privfr.vector import Vector

__all__ = ["FacePart", "Part", "judged", "own_eer"]


class Part:
    """The part of a module that is trained, and what stays as it is beside it.

    method: says which tensors are which.  start: of the part, float32 [layout.size].  frozen: the rest, by
    name.  digest: commits to the layout and the frozen tensors; members that hold the same one train the
    same thing.  origin: commits to the start, too.
    """

    method: Method

    def __init__(self, method: Method, seed: int, given: Mapping[str, Vector] | None = None) -> None:
        state = method.build(1, seed).state_dict()
        state |= {name: torch.from_numpy(tensor) for name, tensor in (given or {}).items()}
        arrays = {name: tensor.contiguous().numpy() for name, tensor in state.items()}
        self.method, self.layout = method, layout_of(method)
        self.start = self.layout.flatten(arrays)
        self.frozen = {name: tensor for name, tensor in state.items() if method.frozen(name)}
        self.digest = self.layout.committed({name: arrays[name] for name in self.frozen})
        self.origin = self.layout.committed(
            {name: arrays[name] for name in (*self.layout.names, *self.frozen)}
        )


class FacePart(Part):
    """A part of a face network, from the seed's start or a pretrained one, that becomes a recogniser."""

    method: FaceMethod

    def __init__(self, method: FaceMethod, seed: int, pretrained: Recogniser | None = None) -> None:
        tensors = pretrained.tensors() if pretrained else {}
        super().__init__(method, seed, {f"backbone.{name}": tensor for name, tensor in tensors.items()})

    def recogniser(self, model: Vector) -> Recogniser:
        """Make an ordinary recogniser of a part, float32 [layout.size], and what is frozen."""
        found = Recogniser.new(self.method.backbone, self.method.size, self.method.dim)
        frozen = {name: tensor.contiguous().numpy() for name, tensor in self.frozen.items()}
        found.load_tensors(self.method.deployed(frozen | self.layout.restore(model)))
        return found


def own_eer(found: Recogniser, enrolled: Faces, probes: Faces, strangers: Faces) -> float:
    """Equal error rate of a device that lets its own people in and strangers not.

    Genuine trials: each probe against each picture enrolled of the same person; impostor trials: each
    stranger's picture against each enrolled one.  probes: labelled as `enrolled`.
    """
    known = found.embed(enrolled.images)
    genuine = (found.embed(probes.images) @ known.T)[probes.labels[:, None] == enrolled.labels]
    return roc(genuine, found.embed(strangers.images) @ known.T).eer


def judged(found: Recogniser, test: Faces) -> tuple[Roc, NDArray[np.float32]]:
    """Compare all pairs of test pictures, and set the recogniser's thresholds: the ROC, the embeddings.

    Raises `InputError` for a model that has diverged.
    """
    embeddings = found.embed(test.images)
    try:
        curve = all_pairs_roc(embeddings, test.labels)
    except InputError as error:  # an embedding that is zero or not a number
        raise InputError(f"the model has diverged ({error}); lower training.learning_rate") from None
    found.thresholds = {far: curve.threshold_at(float(far)) for far in curve.tar_at_far_table()}
    return curve, embeddings
