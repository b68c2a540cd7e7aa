"""Whom pictures look like without a network."""

from __future__ import annotations

import numpy as np
import torch

from privfr.faces.sources import load_faces
from privfr.methods.appearance import appearance


def test_a_picture_and_its_mirror_image_look_alike() -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), np.uint8)
    one, other = appearance(images), appearance(images[:, :, ::-1].copy())
    assert one.shape == (20, 400) and one.dtype == torch.float32
    assert torch.allclose((one * other).sum(1), torch.ones(20), atol=1e-3)


def test_the_edge_does_not_count() -> None:
    images = np.random.default_rng(1).integers(0, 256, (20, 64, 64, 3), np.uint8)
    framed = images.copy()
    framed[:, :12], framed[:, -12:], framed[:, :, :12], framed[:, :, -12:] = 0, 255, 7, 99
    assert torch.equal(appearance(images), appearance(framed))


def test_nearest_pictures_are_more_often_of_one_person_than_by_pixels() -> None:
    faces = load_faces("synthetic:identities=12,images=12,seed=3", (64, 64))
    same = torch.from_numpy(faces.labels[:, None] == faces.labels)

    def right(described: torch.Tensor) -> float:
        cosines = described @ described.T
        cosines.fill_diagonal_(-2)
        return float(same.gather(1, cosines.topk(2, 1).indices).float().mean())

    pixels = torch.from_numpy(faces.images.reshape(len(faces), -1).astype(np.float32) - 127.5)
    assert right(appearance(faces.images)) > 1.3 * right(torch.nn.functional.normalize(pixels))


def test_one_picture_alone_is_described() -> None:
    found = appearance(np.full((1, 112, 96, 3), 90, np.uint8))
    assert found.shape == (1, 400) and bool(found.isfinite().all())
