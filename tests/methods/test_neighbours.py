"""UFace's rule, against a second implementation that goes picture by picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from privfr.methods.neighbours import Partners, partners

SIMILAR, DISSIMILAR = 0.6, 0.2


def crowd(people: int = 10, each: int = 4, noise: float = 0.2, seed: int = 0) -> Tensor:
    """Unit embeddings of people who are far apart: float32 [people * each, 32]."""
    generator = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(people, 32, generator=generator)).repeat_interleave(each, 0)
    return normalize(centres + noise * normalize(torch.randn(centres.shape, generator=generator)))


def found(
    embeddings: Tensor, k: int, imposters: int = 0, similar: float = SIMILAR, dissimilar: float = DISSIMILAR
) -> Partners:
    generator = torch.Generator().manual_seed(1)
    return partners(embeddings, imposters, k, similar, dissimilar, generator)


def test_the_similar_are_the_nearest_above_the_threshold() -> None:
    embeddings = crowd()
    rows = found(embeddings, 5).similar
    for i, row in enumerate(rows.tolist()):
        cosines = {j: float(embeddings[i] @ embeddings[j]) for j in range(len(embeddings)) if j != i}
        near = [j for j in sorted(cosines, key=lambda j: -cosines[j]) if cosines[j] >= SIMILAR]
        assert row == near + [i] * (5 - len(near))  # of three others of one person, and itself for the rest
        assert len(near) == 3


def test_the_dissimilar_are_below_the_threshold_and_drawn() -> None:
    embeddings = crowd()
    rows = found(embeddings, 3).dissimilar
    assert rows.shape == (40, 3)
    for i, row in enumerate(rows.tolist()):
        assert len({*row, i}) == 4
        assert all(float(embeddings[i] @ embeddings[j]) < DISSIMILAR for j in row)
    # By lot: the least similar ones, or the first ones, would be the same few for all of a person's pictures.
    assert len(set(rows.flatten().tolist())) > 30


def test_a_given_threshold_that_fits_is_kept() -> None:
    """A picture like none other has itself, however many others have a partner."""
    lonely = torch.zeros(1, 32)
    lonely[0, 0] = 1
    embeddings = torch.cat([crowd(), lonely])
    assert found(embeddings, 2).similar[-1].tolist() == [40, 40]


def test_thresholds_come_from_the_data_where_all_look_alike() -> None:
    """As an untrained network sees it: every cosine is above 0.9."""
    common = torch.zeros(32)
    common[0] = 4
    embeddings = normalize(crowd() + common)
    cosines = embeddings @ embeddings.T
    assert float(cosines.min()) > 0.9
    rows = found(embeddings, 2).dissimilar
    middle = float(cosines[~torch.eye(40, dtype=torch.bool)].median())
    assert all(float(cosines[i, j]) < middle for i, row in enumerate(rows.tolist()) for j in row)


def test_thresholds_come_from_the_data_where_none_look_alike() -> None:
    embeddings = crowd(noise=3.0)
    others = (embeddings @ embeddings.T).fill_diagonal_(-1).amax(1)
    assert float(others.median()) < SIMILAR
    rows = found(embeddings, 1).similar
    alone = sum(row == [i] for i, row in enumerate(rows.tolist()))
    assert 15 <= alone <= 20  # half of them


def test_imposters_are_dissimilar_to_everybody_and_similar_to_nobody() -> None:
    rows = found(crowd(), 4, imposters=100)
    assert int(rows.similar.max()) < 40
    drawn = set(rows.dissimilar.flatten().tolist())
    assert max(drawn) < 140
    assert len([j for j in drawn if j >= 40]) > 50
    assert any(j < 40 for j in drawn)


@pytest.mark.parametrize(("count", "imposters", "columns"), [(1, 0, 0), (1, 5, 3), (2, 0, 1), (3, 1, 3)])
def test_few_pictures(count: int, imposters: int, columns: int) -> None:
    rows = found(crowd()[:count], 3, imposters)
    assert rows.similar.shape == (count, 3)
    assert rows.dissimilar.shape == (count, columns)
    assert all(i not in row for i, row in enumerate(rows.dissimilar.tolist()))
    assert int(rows.similar.max()) < count


def test_more_pictures_than_are_compared_at_once() -> None:
    embeddings = crowd(people=150)  # 600
    rows = found(embeddings, 3)
    cosines = (embeddings @ embeddings.T).fill_diagonal_(-1)
    assert torch.equal(rows.similar, cosines.topk(3).indices)
    assert bool((cosines.gather(1, rows.dissimilar) < DISSIMILAR).all())
    assert bool((rows.dissimilar != torch.arange(600)[:, None]).all())


def test_the_lot_is_the_generators() -> None:
    one, same = found(crowd(), 3), found(crowd(), 3)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    other = partners(crowd(), 0, 3, SIMILAR, DISSIMILAR, torch.Generator().manual_seed(2))
    assert torch.equal(one.similar, other.similar)
    assert not torch.equal(one.dissimilar, other.dissimilar)
