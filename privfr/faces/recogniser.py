"""A trained backbone as people use it: faces in, unit embeddings out; saved as safetensors, never pickle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import nn

from privfr.errors import InputError
from privfr.faces.backbones import BACKBONES, backbone, to_tensor
from privfr.storage import write_atomic

__all__ = ["Recogniser", "embed"]

_BATCH = 128  # pictures at once: larger only costs memory on a CPU


def embed(network: nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Embed pictures, uint8 [n, height, width, 3], as unit vectors, float32 [n, dim].

    A picture whose embedding is exactly zero stays zero: it is like nobody.
    """
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            batch = to_tensor(images[start : start + _BATCH]).to(device)
            parts.append(nn.functional.normalize(network(batch).float()).cpu().numpy())
    if not parts:
        raise InputError("no pictures to embed")
    return np.concatenate(parts)


@dataclass
class Recogniser:
    """A face recogniser.

    backbone: key of `BACKBONES`.  size: (height, width) of its pictures.  dim: width of its embeddings.
    thresholds: FAR such as "1e-2" -> the cosine at and above which two faces are called one person, as
    measured on test identities.  about: free text facts (run, round) that travel with the file.
    """

    backbone: str
    size: tuple[int, int]
    dim: int
    network: nn.Module
    thresholds: dict[str, float] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)

    @classmethod
    def new(cls, name: str, size: tuple[int, int], dim: int = 0, seed: int = 0) -> Recogniser:
        """Make an untrained one. dim: 0 for the network's own. Raises `InputError` for unknown names."""
        network = backbone(name, size, dim or None, seed=seed)
        return cls(name, size, dim or BACKBONES[name].dim, network.to(memory_format=torch.channels_last))

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Embed pictures, uint8 [n, height, width, 3], as unit vectors, float32 [n, dim]."""
        if images.shape[1:3] != self.size:
            raise InputError(
                f"pictures are {images.shape[1]}x{images.shape[2]}, this model takes {self.size}"
            )
        return embed(self.network, images)

    def threshold_at(self, far: float) -> float:
        """Cosine to decide at for a false accept rate. Raises `InputError` for one that was not measured."""
        for known, threshold in self.thresholds.items():
            if math.isclose(float(known), far):
                return threshold
        known = ", ".join(self.thresholds)
        hint = f"choose from {known}" if known else "train with more test identities"
        raise InputError(f"FAR {far:g}: this model's test pairs gave no threshold for it; {hint}")

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor by name, as float32 arrays."""
        state = self.network.state_dict()
        return {name: tensor.cpu().contiguous().numpy() for name, tensor in state.items()}

    def load_tensors(self, tensors: Mapping[str, NDArray[np.float32]]) -> None:
        """Set every tensor by name."""
        with torch.no_grad():
            for name, tensor in self.network.state_dict().items():
                tensor.copy_(torch.tensor(tensors[name]))

    def save(self, path: str | Path, *, private: bool = False) -> None:
        """Write as safetensors, atomically. private: readable by its owner alone.

        Raises `InputError` where the path cannot be written.
        """
        facts = {"backbone": self.backbone, "size": self.size, "dim": self.dim}
        metadata = {"privfr": json.dumps(facts | {"thresholds": self.thresholds, "about": self.about})}
        write_atomic(Path(path), safetensors.numpy.save(self.tensors(), metadata), private=private)

    @classmethod
    def load(cls, path: str | Path) -> Recogniser:
        """Read what `save` wrote. Raises `InputError` for a missing, cut short or foreign file."""
        path = Path(path)
        try:
            with safetensors.safe_open(path, "numpy") as file:
                facts = json.loads((file.metadata() or {})["privfr"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = cls.new(facts["backbone"], tuple(facts["size"]), facts["dim"])
            thresholds = {str(far): float(value) for far, value in facts["thresholds"].items()}
            about = {str(key): str(value) for key, value in facts["about"].items()}
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such file; give a run directory or a .safetensors checkpoint"
            ) from None
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: not a whole safetensors file ({error}); copy it again") from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not a privfr checkpoint ({error}); write one with `privfr run`"
            ) from None
        _check_tensors(found, tensors, path)
        found.load_tensors(tensors)
        found.thresholds, found.about = thresholds, about
        return found


def _check_tensors(found: Recogniser, tensors: Mapping[str, NDArray[np.float32]], path: Path) -> None:
    expected = {name: tensor.shape for name, tensor in found.tensors().items()}
    held = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != held:
        odd = sorted(set(expected.items()) ^ set(held.items()))[0][0]
        raise InputError(
            f"{path}: tensor {odd!r} does not belong to a {found.backbone}: another architecture"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise InputError(f"{path}: tensor {name!r} is not finite float32; the checkpoint is damaged")
