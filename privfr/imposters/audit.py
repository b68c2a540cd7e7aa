"""What imposters are: nobody's face, no copy, varied, and like faces. Four questions, each with a control.

Not its owner: the share that a client would leave out (`too_like`), beside that of real strangers.
No copy: see `privfr.imposters.copies`.
Varied: coverage and density (Naeem et al. 2020, arXiv 2002.09797), beside those of real strangers.
Like faces: Frechet distance to real ones (Heusel et al. 2017, arXiv 1706.08500) between embeddings of a
recogniser, beside that of real strangers, and that of noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.imposters.copies import Copies, Embed, copies
from privfr.imposters.pool import too_like

__all__ = ["Audit", "Copies", "Embed", "Owners", "Realism", "Variety", "audit", "frechet"]

Pictures = NDArray[np.uint8]
Rows = NDArray[np.float32]

_FEWEST = 10  # pictures of each kind
_LIKE = 0.05  # share by which more imposters than strangers may be like an owner
_NEIGHBOURS = 5  # Naeem et al.'s
_EACH = 8  # pictures for each number of an embedding that a covariance is estimated of


class Owners(msgspec.Struct, frozen=True):
    """Whether imposters are their owner.

    share: of imposters that are too like a client's people, mean over clients; worst: of one client.
    control, worst_control: of real pictures of strangers.  cosine, control_cosine: quantiles 5, 50 and 95 %,
    over clients and imposters, or strangers, of the highest cosine with a picture of the client's people.
    """

    share: float
    worst: float
    control: float
    worst_control: float
    cosine: tuple[float, float, float]
    control_cosine: tuple[float, float, float]

    @property
    def passed(self) -> bool:
        """Whether there are few more to leave out than of real strangers: on average, as one is chance."""
        return self.share <= self.control + _LIKE


class Variety(msgspec.Struct, frozen=True):
    """Whether imposters are varied. pictures: of either kind that were compared.

    coverage: share of real pictures that have an imposter as near as their fifth nearest picture of another
    person.  density: how often imposters are that near, 1 for as often as real pictures of the same people.
    cosine: mean of two imposters.  control, control_density, control_cosine: of as many real pictures of
    people who are not among those they are compared with.
    """

    pictures: int
    coverage: float
    density: float
    cosine: float
    control: float
    control_density: float
    control_cosine: float

    @property
    def passed(self) -> bool:
        """Whether they cover at least half of what real pictures cover."""
        return self.coverage >= self.control / 2


class Realism(msgspec.Struct, frozen=True):
    """Whether imposters look like faces, to a recogniser.

    distance: Frechet distance of their embeddings to real ones; control: of as many real pictures of other
    people; noise: of as many of noise.  numbers: of an embedding that are compared: its main components, few
    enough for the pictures, and the length of the rest.  pictures: of each kind.
    """

    distance: float
    control: float
    noise: float
    numbers: int
    pictures: int

    @property
    def passed(self) -> bool:
        """Whether they are nearer to faces than to noise."""
        return self.distance - self.control < (self.noise - self.control) / 2


class Audit(msgspec.Struct, frozen=True):
    """What was found about so many imposters."""

    imposters: int
    owners: Owners
    copies: Copies
    variety: Variety
    realism: Realism

    @property
    def passed(self) -> dict[str, bool]:
        """The verdict on each question, by its name."""
        return {
            "owners": self.owners.passed,
            "copies": self.copies.passed,
            "variety": self.variety.passed,
            "realism": self.realism.passed,
        }


def audit(
    made: Pictures,
    training: Faces,
    heldout: Faces,
    embed: Embed,
    owners: Sequence[Faces] = (),
    *,
    blind: Embed | None = None,
    seed: int = 0,
) -> Audit:
    """Ask the four questions of imposters, uint8 [n, height, width, 3].

    training: pictures the generator has learnt from.  heldout: pictures of other people, of the same kind.
    embed: to unit embeddings, float32 [n, dim].  owners: each client's pictures; without, each person's of
    `training`.  blind: as `embed`, to look for copies with, where that one has learnt from one
    side and so does not treat people alike.  seed: of what is drawn.

    Raises `InputError` for people on both sides, other sizes, or too few pictures or people.
    """
    _check(made, training, heldout)
    rng = np.random.default_rng(seed)
    known, real = embed(made), embed(heldout.images)
    one, other = _halves(heldout, rng)
    noise = embed(rng.integers(0, 256, (len(one), *made.shape[1:]), np.uint8))
    return Audit(
        len(made),
        _owners(known, real, [embed(each.images) for each in owners or _people(training)]),
        copies(made, training, heldout, blind or embed, rng),
        _variety(known, real[one], heldout.labels[one], real[other], rng),
        _realism(known, real[one], real[other], noise, rng),
    )


def _check(made: Pictures, training: Faces, heldout: Faces) -> None:
    for name, images in {"training": training.images, "held-out": heldout.images}.items():
        if images.shape[1:] != made.shape[1:]:
            raise InputError(
                f"{name} pictures are {images.shape[1]}x{images.shape[2]}, imposters {made.shape[1]}x"
                f"{made.shape[2]}; load them at one size"
            )
    for name, count in {"imposters": len(made), "held-out pictures": len(heldout)}.items():
        if count < _FEWEST:
            raise InputError(f"{count} {name}: an audit needs at least {_FEWEST}")
    if not len(training):
        raise InputError("no training pictures: an audit needs those that the generator has learnt from")
    if len(_people(heldout)) < 4:
        raise InputError(f"{len(_people(heldout))} held-out people: an audit needs at least 4")
    sides = [{faces.names[label] for label in np.flatnonzero(faces.counts)} for faces in (training, heldout)]
    if shared := sides[0] & sides[1]:
        raise InputError(
            f"{min(shared)!r} is among training and held-out people, as {len(shared)} are; a control needs "
            "people whom the generator has not learnt from"
        )


def _people(faces: Faces) -> list[Faces]:
    return [faces.select(np.flatnonzero(faces.labels == label)) for label in np.flatnonzero(faces.counts)]


def _halves(faces: Faces, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Part pictures by person into halves of one size: the rows of each."""
    order = rng.permutation(np.flatnonzero(faces.counts))
    halves = [rng.permutation(np.flatnonzero(np.isin(faces.labels, order[i::2]))) for i in (0, 1)]
    size = min(map(len, halves))
    return halves[0][:size], halves[1][:size]


def _owners(made: Rows, strangers: Rows, owners: Sequence[Rows]) -> Owners:
    share, control = ([float(too_like(each, own).mean()) for own in owners] for each in (made, strangers))
    return Owners(
        float(np.mean(share)), max(share), float(np.mean(control)), max(control),
        _quantiles(made, owners), _quantiles(strangers, owners),
    )  # fmt: skip


def _quantiles(made: Rows, owners: Sequence[Rows]) -> tuple[float, float, float]:
    highest = np.concatenate([(made @ own.T).max(axis=1) for own in owners])
    low, middle, high = np.quantile(highest, (0.05, 0.5, 0.95)).tolist()
    return low, middle, high


def _variety(
    made: Rows, real: Rows, labels: NDArray[np.int64], others: Rows, rng: np.random.Generator
) -> Variety:
    """Compare imposters, and other people, with real pictures of people who are told apart by labels."""
    size = min(len(made), len(real))
    rows = rng.permutation(len(real))[:size]
    real, labels, made, others = real[rows], labels[rows], made[:size], others[:size]
    among = real @ real.T
    among[labels[:, None] == labels] = -1  # one's own pictures are nearer than any stranger's
    least = -np.partition(-among, min(_NEIGHBOURS, size) - 1, axis=1)[:, min(_NEIGHBOURS, size) - 1]
    (coverage, density), (control, control_density) = (_covered(real, least, each) for each in (made, others))
    return Variety(
        size, coverage, density, _mean_cosine(made), control, control_density, _mean_cosine(others)
    )


def _covered(real: Rows, least: Rows, found: Rows) -> tuple[float, float]:
    """Coverage and density: of real pictures, and what is within their cosine, float32 [n], of them."""
    near = real @ found.T >= least[:, None]
    return float(near.any(axis=1).mean()), float(near.sum() / (_NEIGHBOURS * len(found)))


def _mean_cosine(rows: Rows) -> float:
    total, count = float(np.sum(rows.sum(axis=0, dtype=np.float64) ** 2)), len(rows)
    return (total - count) / (count * (count - 1))


def _realism(made: Rows, real: Rows, others: Rows, noise: Rows, rng: np.random.Generator) -> Realism:
    size = min(len(made), len(real))
    rows = rng.permutation(len(real))[:size]
    kinds = [each[:size].astype(np.float64) for each in (made, real[rows], others, noise)]
    numbers = max(1, min(real.shape[1], size // _EACH))
    middle = kinds[1].mean(axis=0)
    axes = np.linalg.svd(kinds[1] - middle, full_matrices=False)[2][:numbers]
    imposters, reference, control, far = (_projected(each - middle, axes) for each in kinds)
    return Realism(
        frechet(imposters, reference), frechet(control, reference), frechet(far, reference), numbers, size
    )


def _projected(rows: NDArray[np.float64], axes: NDArray[np.float64]) -> NDArray[np.float64]:
    inside = rows @ axes.T
    rest = np.linalg.norm(rows - inside @ axes, axis=1, keepdims=True)
    return np.concatenate([inside, rest], axis=1)


def frechet(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Squared Frechet distance of normal distributions fitted to rows, [n, dim] and [m, dim]."""
    covariances = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (one, other)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    # The trace of the root of a product: its eigenvalues are those of a symmetric matrix.
    mixed = np.linalg.eigvalsh(root @ covariances[1] @ root)
    between = float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2))
    return between + float(sum(map(np.trace, covariances)) - 2 * np.sum(np.sqrt(np.maximum(mixed, 0))))
