"""Who looks like whom, judged by the network itself: what stands in for labels where there are none.

UFace's rule (Solomon, Woubie & Emiru, Electronics 2022, 11(23):3909): the partners of a picture are the k
most similar ones above one cosine, and k drawn at random from those below another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Partners", "partners"]

_TOGETHER = 512  # pictures compared with all others at once: bounds the memory at 2 kB a picture


class Partners(NamedTuple):
    """Rows of pictures to go with each one of n.

    similar: int64 [n, k], nearest first; a picture that has too few has itself in their place.
    dissimilar: int64 [n, k], or fewer columns where there are not as many pictures.
    """

    similar: Tensor
    dissimilar: Tensor


def partners(
    embeddings: Tensor,
    imposters: int,
    k: int,
    similar: float,
    dissimilar: float,
    generator: torch.Generator,
) -> Partners:
    """Find each picture's partners.

    embeddings: unit vectors, float32 [n, dim].  imposters: how many pictures of nobody follow these; all are
    dissimilar to everybody.  similar, dissimilar: cosines above and below which two pictures are; where they
    do not fit the data, others are taken (see `_thresholds`).
    """
    least, most = _thresholds(embeddings, similar, dissimilar, generator)
    likes, unlikes = [], []
    for start in range(0, len(embeddings), _TOGETHER):
        own = torch.arange(start, min(start + _TOGETHER, len(embeddings)))
        cosines = embeddings[own] @ embeddings.T
        likes.append(_similar(cosines, own, k, least))
        unlikes.append(_dissimilar(cosines, own, imposters, k, most, generator))
    return Partners(torch.cat(likes), torch.cat(unlikes))


def _similar(cosines: Tensor, own: Tensor, k: int, least: float) -> Tensor:
    """Choose the k nearest of others, cosines [rows, n], if not below `least`; else the picture itself."""
    others = cosines.clone()
    others[torch.arange(len(own)), own] = -torch.inf
    near, columns = others.topk(min(k, others.shape[1]), 1)
    found = own[:, None].repeat(1, k)
    found[:, : columns.shape[1]] = torch.where(near >= least, columns, found[:, : columns.shape[1]])
    return found


def _dissimilar(
    cosines: Tensor, own: Tensor, imposters: int, k: int, most: float, generator: torch.Generator
) -> Tensor:
    """Draw k of the imposters and of the others below `most`; where those are too few, the least similar."""
    chance = torch.rand((len(own), cosines.shape[1] + imposters), generator=generator)
    seen = chance[:, : cosines.shape[1]]
    order = torch.cat([torch.where(cosines < most, seen, -2 - cosines), chance[:, cosines.shape[1] :]], 1)
    order[torch.arange(len(own)), own] = -torch.inf
    return order.topk(min(k, order.shape[1] - 1), 1).indices


def _thresholds(
    embeddings: Tensor, similar: float, dissimilar: float, generator: torch.Generator
) -> tuple[float, float]:
    """Take thresholds from the data where the given ones do not fit.

    They fit where half of the pictures have a similar one, and a tenth of the pairs are dissimilar. (All the
    cosines of an untrained network are close to 1, for example.) Else half of the pictures get a similar
    one, and half of the pairs are dissimilar.
    """
    sample = torch.randperm(len(embeddings), generator=generator)[:_TOGETHER]
    cosines = embeddings[sample] @ embeddings.T
    others = torch.ones_like(cosines, dtype=torch.bool)
    others[torch.arange(len(sample)), sample] = False
    pairs = cosines[others]
    if not len(pairs):
        return similar, dissimilar
    nearest = pairs.view(len(sample), -1).amax(1)
    fits = float((pairs < dissimilar).float().mean()) >= 0.1
    return min(similar, float(nearest.median())), dissimilar if fits else float(pairs.median())
