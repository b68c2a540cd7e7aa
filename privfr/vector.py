"""Models as flat vectors: what is added up.

A client's contribution to a round is one *summand*: its weight, its training metrics and its model
update, all in one vector, so that a backend which hides a vector hides all three. The law every backend
keeps, and the tests check, is

    decode(sum of the summands) == weighted mean of the updates

Layout
    A summand is float32 [1 + metrics + size]: weight, weight * metric for each metric, weight * update.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfr.errors import BadFrame, LocalProtocolError

__all__ = [
    "Aggregate",
    "Layout",
    "Update",
    "Vector",
    "digest",
    "from_bytes",
    "is_readable",
    "l2_norm",
    "mean_of_sum",
    "view",
]

Vector = NDArray[np.float32]

# A norm no honest sum comes near, and whose square float32 still holds: up to here a sum stays readable.
LARGEST_NORM = 1e19

# Numbers squared at a time, so that they stay in the processor's cache.
_PART = 1 << 16


class Layout(msgspec.Struct, frozen=True):
    """Order and shapes of the named tensors that make up a shared vector.

    names: tensor names in vector order.  shapes: their shapes, in the same order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.float32]]) -> Layout:
        """Layout of these tensors, in the mapping's order."""
        return cls(tuple(tensors), tuple(tuple(tensor.shape) for tensor in tensors.values()))

    @property
    def size(self) -> int:
        """Numbers in a vector of this layout."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def digest(self) -> bytes:
        """BLAKE2b-256 of the layout: two sides that hold the same digest mean the same tensors."""
        return hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=32).digest()

    def committed(self, frozen: Mapping[str, NDArray[np.float32]]) -> bytes:
        """BLAKE2b-256 of the layout, and of tensors that each side has beside the vector and never changes.

        Without such tensors it is `digest`.
        """
        if not frozen:
            return self.digest
        tensors = [(name, frozen[name].shape, digest(frozen[name])) for name in sorted(frozen)]
        return hashlib.blake2b(msgspec.msgpack.encode((self, tensors)), digest_size=32).digest()

    def flatten(self, tensors: Mapping[str, NDArray[np.float32]]) -> Vector:
        """Copy the named tensors into one float32 vector [size].

        Raises `LocalProtocolError` where a tensor is missing or of another shape.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            found = tensors[name].shape if name in tensors else None
            if found != shape:
                raise LocalProtocolError(f"tensor {name!r} is {found}, the layout says {shape}")
        parts = [np.asarray(tensors[name], np.float32).reshape(-1) for name in self.names]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def restore(self, vector: Vector) -> dict[str, Vector]:
        """View a float32 vector [size] as the named tensors; nothing is copied."""
        if vector.shape != (self.size,):
            raise LocalProtocolError(f"a vector of {vector.shape} does not fit a layout of {self.size}")
        tensors, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            end = start + math.prod(shape)
            tensors[name] = vector[start:end].reshape(shape)
            start = end
        return tensors


@dataclass(frozen=True, eq=False)
class Update:
    """What one client adds to a round.

    vector: float32 [size], local model minus the round's model.  weight: what the mean weighs it by,
    usually the number of pictures trained on.  metrics: name -> value, averaged by weight.
    """

    vector: Vector
    weight: float
    metrics: Mapping[str, float]

    def summand(self, metrics: tuple[str, ...]) -> Vector:
        """Weight, the named metrics and vector as the one float32 vector that is summed (see Layout above).

        Raises `LocalProtocolError` for other metrics, or a weight that float32 does not hold above 0.
        """
        if set(metrics) != set(self.metrics):
            raise LocalProtocolError(f"an update with metrics {sorted(self.metrics)}, not {sorted(metrics)}")
        with np.errstate(over="ignore", under="ignore"):
            weight = np.float32(self.weight)
        if not (np.isfinite(weight) and weight > 0):
            raise LocalProtocolError(f"an update's weight is a finite number above 0, not {self.weight}")
        head = np.array([1.0, *(self.metrics[name] for name in metrics)], np.float32)
        summand = np.concatenate([head, self.vector])
        summand *= weight
        return summand

    def __repr__(self) -> str:
        """Say the size only: an update describes its client's faces."""
        return f"<Update of {self.vector.size} numbers>"


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round gives: the weighted mean over its survivors.

    vector: float32 [size].  weight: sum of weights.  count: survivors.  metrics: weighted means.
    error: most a coordinate differs from the exact mean, 0 where the sum was not rounded to integers;
    holds if nothing saturated.  saturated: clients whose update had to be clipped to fit.
    """

    vector: Vector
    weight: float
    count: int
    metrics: Mapping[str, float]
    error: float = 0.0
    saturated: int = 0


def mean_of_sum(total: Vector, count: int, metrics: tuple[str, ...]) -> Aggregate:
    """Decode a sum of summands, float32 [1 + metrics + size]. Raises `BadFrame` where no weight is in it."""
    weight = float(total[0])
    if not (math.isfinite(weight) and weight > 0):
        raise BadFrame(f"the sum holds a total weight of {weight}")
    head = 1 + len(metrics)
    with np.errstate(over="ignore"):
        vector = total[head:] / np.float32(weight)
    if not np.isfinite(vector).all():
        raise BadFrame("the mean is not finite: the weights in the sum are next to nothing")
    means = {name: float(total[1 + i]) / weight for i, name in enumerate(metrics)}
    return Aggregate(vector, weight, count, means)


def view(data: memoryview | bytes, size: int) -> Vector:
    """View little-endian float32 bytes as a vector [size]. Raises `BadFrame` for another length."""
    if len(data) != 4 * size:
        raise BadFrame(f"{len(data)} bytes where {4 * size} belong ({size} numbers)")
    return np.frombuffer(data, np.dtype("<f4"))


def is_readable(vector: Vector) -> bool:
    """Whether every number is finite and the norm at most `LARGEST_NORM`: one pass, no temporary."""
    with np.errstate(all="ignore"):
        return bool(np.dot(vector, vector) <= np.float32(LARGEST_NORM) * np.float32(LARGEST_NORM))


def from_bytes(data: memoryview | bytes, size: int) -> Vector:
    """View little-endian float32 bytes as a vector [size]; nothing is copied.

    Raises `BadFrame` for another length, and for numbers that are not finite or absurdly large.
    """
    vector = view(data, size)
    if not is_readable(vector):
        raise BadFrame("the vector holds a number that is not finite, or absurdly large")
    return vector


def l2_norm(vector: Vector) -> float:
    """L2 norm, in float64, without a second vector."""
    parts = (vector[start : start + _PART] for start in range(0, vector.size, _PART))
    return math.sqrt(sum(float(np.sum(np.square(part, dtype=np.float64))) for part in parts))


def digest(vector: Vector) -> bytes:
    """BLAKE2b-256 of a vector's little-endian float32 bytes."""
    return hashlib.blake2b(np.ascontiguousarray(vector, "<f4").data, digest_size=32).digest()
