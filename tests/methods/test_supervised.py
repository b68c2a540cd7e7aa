"""Method `supervised`: what it shares, how its head starts, and that nothing of it is lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import experiment, write_noise

from privfr.errors import InputError
from privfr.faces.backbones import backbone, to_tensor
from privfr.faces.datasets import Faces, load_folder
from privfr.faces.recogniser import embed
from privfr.methods import METHODS, method_of
from privfr.methods.base import FaceModel, class_means
from privfr.methods.supervised import Supervised

HEADS = ["cosface", "arcface", "softmax", "sphereface2"]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    root: Path = tmp_path_factory.mktemp("data") / "noise"
    return load_folder(write_noise(root, {"Ann": 3, "Bob": 1, "Cid": 2}), (64, 64))


def method(head: str = "cosface", **changes: object) -> Supervised:
    return method_of(experiment("synthetic", method__head=head, **changes))


@pytest.mark.parametrize("head", HEADS)
def test_the_backbone_leaves_and_the_head_stays(head: str) -> None:
    found = method(head)
    names = found.build(3, 0).state_dict()
    shared = {name for name in names if found.shared(name)}
    assert {name.partition(".")[0] for name in shared} == {"backbone"}
    assert {name.partition(".")[0] for name in set(names) - shared} == {"head"}
    assert found.discloses == ()
    assert found.metrics == ("loss",)


@pytest.mark.parametrize("head", HEADS)
def test_build_is_the_seeds(head: str) -> None:
    found = method(head)
    one, same, other = (found.build(3, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("head", HEADS)
def test_the_shared_part_does_not_depend_on_the_clients_people(head: str) -> None:
    found = method(head)
    few, many = found.build(1, 0).state_dict(), found.build(7, 0).state_dict()
    for name in few:
        if found.shared(name):
            assert torch.equal(few[name], many[name]), name


@pytest.mark.parametrize("head", HEADS)
def test_loss_is_one_number_an_example(head: str, faces: Faces) -> None:
    found = method(head)
    module = found.build(3, 0)
    losses = found.loss(module, to_tensor(faces.images), torch.from_numpy(faces.labels))
    assert losses.shape == (6,)
    assert losses.dtype == torch.float32
    assert bool(torch.isfinite(losses).all())
    for i, loss in enumerate(losses.tolist()):
        one, label = to_tensor(faces.images[i : i + 1]), torch.from_numpy(faces.labels[i : i + 1])
        assert found.loss(module, one, label).item() == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("head", HEADS)
def test_the_head_starts_at_the_class_means(head: str, faces: Faces) -> None:
    """FedFace, eq. 6: the row of a person is the mean of their unit embeddings, by direction."""
    found = method(head)
    module = found.build(3, 0)
    assert isinstance(module, FaceModel)
    found.start(module, faces, True)
    rows = next(p for p in module.head.parameters() if p.ndim == 2 and 3 in p.shape and 128 in p.shape)
    rows = rows.detach() if rows.shape[0] == 3 else rows.detach().T
    embeddings = embed(module.backbone, faces.images)
    for label in range(3):
        mean = embeddings[faces.labels == label].mean(0)
        cosine = float(rows[label].numpy() @ mean / np.linalg.norm(rows[label]) / np.linalg.norm(mean))
        assert cosine == pytest.approx(1, abs=1e-4)


def test_a_head_that_is_not_fresh_is_kept(faces: Faces) -> None:
    found = method()
    module = found.build(3, 0)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found.start(module, faces, False)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_restart_replaces_a_head_that_is_not_fresh(faces: Faces) -> None:
    found = method(method__restart=True)
    one, other = found.build(3, 0), found.build(3, 0)
    found.start(one, faces, False)
    method().start(other, faces, True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_starting_at_class_means_helps(faces: Faces) -> None:
    found = method()
    module = found.build(3, 0)
    labels = torch.from_numpy(faces.labels)
    before = float(found.loss(module, to_tensor(faces.images), labels).mean())
    found.start(module, faces, True)
    assert float(found.loss(module, to_tensor(faces.images), labels).mean()) < before


def test_class_means_by_hand(faces: Faces) -> None:
    network = backbone("small", (64, 64), 16)
    means = class_means(network, faces)
    embeddings = embed(network, faces.images)
    assert means.shape == (3, 16)
    np.testing.assert_allclose(means[0], embeddings[:3].mean(0), atol=1e-6)
    np.testing.assert_allclose(means[1], embeddings[3], atol=1e-6)


def test_the_head_computes_in_float32_under_autocast(faces: Faces) -> None:
    found = method()
    module = found.build(3, 0)
    with torch.autocast("cpu", torch.bfloat16):
        losses = found.loss(module, to_tensor(faces.images), torch.from_numpy(faces.labels))
    assert losses.dtype == torch.float32
    losses.mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in module.head.parameters())


def test_settings_reach_the_head(faces: Faces) -> None:
    labels = torch.from_numpy(faces.labels)
    losses = set()
    for changes in ({}, {"method__margin": 0.4}, {"method__scale": 10.0}):
        found = method(**changes)
        losses.add(float(found.loss(found.build(3, 0), to_tensor(faces.images), labels).mean()))
    assert len(losses) == 3


def test_dim_is_the_networks_own_or_what_is_asked() -> None:
    assert method().dim == 128
    assert method(model__dim=16).dim == 16
    module = method(model__dim=16).build(2, 0)
    assert module.backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 16)


def test_unknown_names_get_their_near_one() -> None:
    with pytest.raises(InputError, match="did you mean 'supervised'"):
        method(method__name="superviced")
    with pytest.raises(InputError, match="did you mean 'resnet'"):
        method(model__backbone="resnt")
    with pytest.raises(InputError, match="choose from"):
        method(model__backbone="qqqqq")
    assert set(METHODS) >= {"supervised"}
