"""Whether imposters are copies of the pictures that their generator has learnt from.

Each imposter votes for the person it is nearest to, among those the generator has learnt from and others,
with the logarithm of how many times as far away the next person is: much for a copy, next to nothing for a
blurred picture, which is near to everybody. The share of the votes for people learnt from is
compared with what it is when people are exchanged between the two kinds, which changes nothing where a
generator treats both alike. That test is exact however much votes depend on each other (a permutation test).
The one of Meehan, Chaudhuri & Dasgupta (2020, arXiv 2004.05675) compares imposters with held-out pictures
instead, and takes those that are less sharp than photographs for copies.

Where people are too few for a test, replays are counted: imposters nearer to a person learnt from than two
pictures of one person are to each other, and far from everybody else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from privfr.faces.datasets import Faces

__all__ = ["ALPHA", "Copies", "Embed", "Votes", "copies"]

Pictures = NDArray[np.uint8]
Rows = NDArray[np.float32]
Distances = NDArray[np.float64]
Embed = Callable[[Pictures], Rows]

ALPHA = 0.01  # how often a generator that copies nothing is said to, at most
_DRAWS = 1999  # of exchanges
_RARER = 4  # people of the rarer kind among whom exchanges are made
_REPLAYS = 0.02  # share of replays beyond the control's that says enough by itself
_NEXT = 1.5  # times as far as the person it replays is everybody else from a replay: measured, 2.4 and more
_PLANTED = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_MOST = 10_000  # pictures of one kind that are looked at
_SIDE = 16  # pixels of what pictures are shrunk to
_FLAT = 4.0  # standard deviation of a colour below which it is not stretched: noise alone
_PAIRS = 10  # of each person
_NOISE = 8.0  # standard deviation of what is planted, of 255
_BATCH = 128  # imposters at once
_SAME = 0.05  # distance below which all are the same, as a logarithm has to be finite


class Votes(msgspec.Struct, frozen=True):
    """Whether imposters are nearer to people learnt from than to others.

    share: of the votes, that is for people learnt from.  chance: its mean when people are exchanged.
    p: how often it is as large then; None where there are too few people to exchange.
    """

    share: float
    chance: float
    p: float | None


class Copies(msgspec.Struct, frozen=True):
    """Whether imposters are copies.

    people, pictures: learnt from, as far as they were compared; others: held-out people.  embeddings, pixels:
    votes by distance in the two spaces. Pixels are compared at 16x16, brightness and contrast of each colour
    taken out, and with mirrored pictures and those moved by up to a sixteenth, so that copies may
    be blurred, noisy, mirrored, moved or recoloured.  limit: distance in pixels that 99 of 100 pairs of
    pictures of one person exceed.  replays: share of imposters that are nearer than that to a picture learnt
    from, and at least half as far again from everybody else.  control: the same of held-out pictures.
    catches: smallest share of copies (of these pictures, noisy, half of them mirrored) that would have been
    noticed among these imposters, of 1, 2, 5, 10, 20, 50 and 100 %, as tried once; None for none.
    """

    people: int
    pictures: int
    others: int
    embeddings: Votes
    pixels: Votes
    limit: float
    replays: float
    control: float
    catches: float | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing points to copies. Half of `ALPHA` goes to each space."""
        tests = [each.p for each in (self.embeddings, self.pixels) if each.p is not None]
        return all(p > ALPHA / 2 for p in tests) and self.replays <= self.control + _REPLAYS


def copies(made: Pictures, training: Faces, heldout: Faces, embed: Embed, rng: np.random.Generator) -> Copies:
    """Look for copies among imposters, uint8 [n, height, width, 3].

    embed: to unit embeddings, float32 [n, dim]. It must have learnt from neither side, or people are not
    treated alike.
    """
    crowd = _Crowd.draw(training, heldout, rng)
    search = _Search(crowd, _limit(heldout, rng), crowd.exchanges(rng))
    planted = _planted(crowd.pictures[np.repeat(crowd.learnt, crowd.counts)], len(made), rng)
    known, small = embed(crowd.pictures), _middle(crowd.pictures)

    def distances(pictures: Pictures) -> tuple[Distances, Distances]:
        return crowd.nearest([embed(pictures)], known), crowd.nearest(_variants(pictures), small)

    true, false = distances(made), distances(planted)
    return msgspec.structs.replace(search.judge(*true), catches=search.power(true, false))


@dataclass(frozen=True)
class _Crowd:
    """Pictures of people of both kinds, person by person, those with few pictures first.

    counts: int64 [people], pictures of each.  learnt: bool [people], by the generator.
    """

    pictures: Pictures
    counts: NDArray[np.int64]
    learnt: NDArray[np.bool_]

    @classmethod
    def draw(cls, training: Faces, heldout: Faces, rng: np.random.Generator) -> _Crowd:
        """Take everybody, in random order, but of nobody more pictures than both kinds have of somebody."""
        cap = int(min(training.counts.max(), heldout.counts.max()))
        people: list[tuple[Pictures, bool]] = []
        for faces, learnt in ((training, True), (heldout, False)):
            rows = [rng.permutation(np.flatnonzero(faces.labels == label))[:cap] for label in _present(faces)]
            order = rng.permutation(len(rows))
            before = np.cumsum([0, *(len(rows[i]) for i in order)])
            people += [
                (faces.images[rows[i]], learnt) for i, n in zip(order, before, strict=False) if n < _MOST
            ]
        people = [people[i] for i in rng.permutation(len(people))]
        people.sort(key=lambda person: len(person[0]))
        counts = np.array([len(pictures) for pictures, _ in people], np.int64)
        return cls(np.concatenate([each for each, _ in people]), counts, np.array([who for _, who in people]))

    def nearest(self, probes: Sequence[Rows], known: Rows) -> Distances:
        """Distance of each probe, at its nearest variant, to each person's nearest picture: [n, people]."""
        starts = np.cumsum(self.counts) - self.counts
        found = []
        for first in range(0, len(probes[0]), _BATCH):
            cosines = np.maximum.reduce([each[first : first + _BATCH] @ known.T for each in probes])
            found.append(np.maximum.reduceat(cosines, starts, axis=1))
        return np.sqrt(np.maximum(2 - 2 * np.concatenate(found).astype(np.float64), 0))

    def exchanges(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draw who could have been learnt from, among people with about as many pictures: [draws, people].

        No draw at all where there are so few ways that the test could not say anything.
        """
        people, rarer = len(self.learnt), min(self.learnt.sum(), (~self.learnt).sum())
        blocks = np.arange(people) // math.ceil(_RARER * people / rarer)
        sizes, learnt = np.bincount(blocks), np.bincount(blocks, self.learnt).astype(int)
        ways = math.prod(math.comb(int(n), int(k)) for n, k in zip(sizes, learnt, strict=True))
        draws = _DRAWS if ways * ALPHA >= 20 else 0
        return np.array([self.learnt[np.lexsort((rng.random(people), blocks))] for _ in range(draws)], bool)


@dataclass(frozen=True)
class _Search:
    """limit: as of `Copies`.  exchanges: as of `_Crowd`."""

    crowd: _Crowd
    limit: float
    exchanges: NDArray[np.bool_]

    def judge(self, embeddings: Distances, pixels: Distances) -> Copies:
        """Say what the distances of imposters to people, [n, people], point to."""
        learnt, counts = self.crowd.learnt, self.crowd.counts
        person, factor = _closest(pixels)
        replays = (pixels.min(axis=1) < self.limit) & (factor > _NEXT)
        return Copies(
            people=int(learnt.sum()),
            pictures=int(counts[learnt].sum()),
            others=int((~learnt).sum()),
            embeddings=self._votes(embeddings),
            pixels=self._votes(pixels),
            limit=self.limit,
            replays=float((replays & learnt[person]).mean()),
            control=float((replays & ~learnt[person]).mean()),
        )

    def _votes(self, distances: Distances) -> Votes:
        learnt = self.crowd.learnt
        person, factor = _closest(distances)
        votes = np.bincount(person, np.log(factor), minlength=len(learnt))
        votes = votes / max(votes.sum(), np.finfo(np.float64).tiny)
        share = float(votes @ learnt)
        if not len(self.exchanges):
            return Votes(share, float(learnt.mean()), None)
        by_chance = self.exchanges @ votes
        larger = int((by_chance >= share - 1e-12).sum())  # sums in another order are the same
        return Votes(share, float(by_chance.mean()), (1 + larger) / (1 + len(by_chance)))

    def power(self, true: tuple[Distances, ...], false: tuple[Distances, ...]) -> float | None:
        """Find the smallest share of copies that is noticed when they replace imposters."""
        for share in _PLANTED:
            count = math.ceil(share * len(true[0]))
            mixed = (
                np.concatenate([bad[:count], good[count:]]) for good, bad in zip(true, false, strict=True)
            )
            if not self.judge(*mixed).passed:
                return share
        return None


def _present(faces: Faces) -> NDArray[np.intp]:
    return np.flatnonzero(faces.counts)


def _closest(distances: Distances) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Person each imposter is nearest to, and how many times as far away the next one is: both [n]."""
    two = np.maximum(np.partition(distances, 1, axis=1)[:, :2], _SAME)
    return distances.argmin(axis=1), two[:, 1] / two[:, 0]


def _limit(faces: Faces, rng: np.random.Generator) -> float:
    """Distance that 99 of 100 pairs of pictures of one person exceed; 0 where nobody has two."""
    pairs = [
        rng.choice(rows, 2, replace=False)
        for label in _present(faces)
        if len(rows := np.flatnonzero(faces.labels == label)) > 1
        for _ in range(_PAIRS)
    ]
    if not pairs:
        return 0.0
    first, second = np.array(pairs).T
    shown = _middle(faces.images[second])
    cosines = np.maximum.reduce([(each * shown).sum(axis=1) for each in _variants(faces.images[first])])
    return float(np.quantile(np.sqrt(np.maximum(2 - 2 * cosines, 0)), 0.01))


def _planted(pictures: Pictures, count: int, rng: np.random.Generator) -> Pictures:
    """Copy random pictures with a little noise, every other one mirrored: uint8 [count, ...]."""
    copied = pictures[rng.integers(len(pictures), size=count)]
    copied[1::2] = copied[1::2, :, ::-1]
    return np.clip(copied + rng.normal(0, _NOISE, copied.shape).round(), 0, 255).astype(np.uint8)


# --- pictures as they are compared -----------------------------------------------------------------------


def _shrunk(pictures: Pictures) -> Rows:
    planes = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float()
    small: Rows = adaptive_avg_pool2d(planes, _SIDE).numpy()
    return small


def _normed(small: Rows) -> Rows:
    """Take brightness and contrast out of each colour: [n, 3, ...] to unit rows [n, numbers]."""
    planes = small.reshape(len(small), 3, -1)
    planes = planes - planes.mean(axis=2, keepdims=True)
    rows = (planes / np.maximum(planes.std(axis=2, keepdims=True), _FLAT)).reshape(len(small), -1)
    found: Rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    return found


def _middle(pictures: Pictures) -> Rows:
    """All but the edge of shrunk pictures, which `_variants` of a copy match: unit rows."""
    return _normed(_shrunk(pictures)[:, :, 1:-1, 1:-1])


def _variants(pictures: Pictures) -> list[Rows]:
    """Shrunk pictures as `_middle` shows them, moved by a pixel at most and mirrored: 18 of unit rows."""
    small, side = _shrunk(pictures), _SIDE - 2
    moved = [small[:, :, y : y + side, x : x + side] for y in range(3) for x in range(3)]
    return [_normed(each) for crop in moved for each in (crop, crop[:, :, :, ::-1])]
