"""Views of a picture: each on its own, by the generator's coins, and nothing outside of training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from privfr.faces.augmentation import Augmentation


def pictures(count: int = 8) -> Tensor:
    """Smooth pictures, all the same: float32 [count, 3, 64, 64]."""
    x = torch.linspace(-0.5, 0.5, 64)
    one = torch.stack([x[None] + x[:, None], x[None] - x[:, None], (3 * x[None]).sin() * x[:, None]])
    return one.repeat(count, 1, 1, 1)


def viewed(images: Tensor, strength: float = 1.0, seed: int = 0) -> Tensor:
    layer = Augmentation(strength)
    layer.generator = torch.Generator().manual_seed(seed)
    return layer(images)  # type: ignore[no-any-return]


def test_without_a_generator_nothing_changes() -> None:
    images = pictures()
    assert Augmentation(1.0)(images) is images


def test_without_strength_nothing_changes() -> None:
    images = pictures()
    assert torch.equal(viewed(images, 0.0), images)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_every_picture_is_changed_on_its_own(strength: float) -> None:
    views = viewed(pictures(), strength)
    assert views.shape == (8, 3, 64, 64)
    assert views.dtype == torch.float32
    assert bool(views.isfinite().all())
    differences = (views[:, None] - views).abs().mean((2, 3, 4)) + torch.eye(8)
    assert float(differences.min()) > 0.01


def test_the_pictures_themselves_are_left_alone() -> None:
    images = pictures()
    viewed(images)
    assert torch.equal(images, pictures())


def test_views_are_the_generators() -> None:
    images = pictures()
    assert torch.equal(viewed(images), viewed(images))
    assert not torch.equal(viewed(images), viewed(images, seed=1))


def test_more_strength_changes_more() -> None:
    images = pictures(64)
    moved = [float((viewed(images, strength) - images).abs().mean()) for strength in (0.25, 0.5, 1.0)]
    assert moved == sorted(moved)
    assert moved[2] > 2 * moved[0]


def test_a_weak_view_is_the_picture_nearly() -> None:
    """What is drawn lies around no change: no view is out of place. Nothing is covered, if not a border."""
    images = pictures(64)
    assert float((viewed(images, 0.02) - images)[:, :, 2:-2, 2:-2].abs().max()) < 0.1


def test_what_surrounds_the_face_is_covered_and_the_face_is_not() -> None:
    views = viewed(1 + pictures(64))  # nothing of which is 0
    covered = (views == 0).all(1).float().mean(0)
    assert float(covered[20:44, 20:44].max()) == 0
    assert 0.9 < float(covered[0].mean()) <= 1
    assert 0.3 < float(covered[10, 32]) < 0.7  # on about half of them
    assert len({float((view == 0).float().mean()) for view in views}) > 50
