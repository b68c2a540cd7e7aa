"""Method `unsupervised`: no label, three losses against second implementations, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import write_noise, write_people
from torch import Tensor, nn
from torch.nn.functional import normalize

from privfr.errors import InputError
from privfr.experiment import Training
from privfr.faces.backbones import to_tensor
from privfr.faces.datasets import Faces, load_folder
from privfr.faces.recogniser import embed
from privfr.faces.verification import all_pairs_roc
from privfr.methods.base import Method, is_private
from privfr.methods.unsupervised import Unsupervised, _judged, _shape
from privfr.privacy.example import ExampleLevel, fit_private
from privfr.stepping import drawing
from privfr.trainer import Learner, fit, layout_of, shared_vector

VARIANTS = ["siamese", "autoencoder", "contrastive"]
every_variant = pytest.mark.parametrize("variant", VARIANTS)
TRAINING = Training(batch=4, device="cpu")


class Unlabelled:
    """Pictures that fail whoever asks who they show."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"unsupervised training asked for {name}")


def method(variant: str = "contrastive", **changes: Any) -> Unsupervised:
    return Unsupervised(backbone="small", size=(64, 64), dim=16, variant=cast(Any, variant), **changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Faces:
    root: Path = tmp_path_factory.mktemp("data") / "noise"
    return load_folder(write_noise(root, {"Ann": 4, "Bob": 1, "Cid": 3}), (64, 64))


def losses_of(found: Unsupervised, images: NDArray[np.uint8], views: int, seed: int = 0) -> Tensor:
    module = found.build(0, 0)
    with drawing(module, 0.0, generator(seed)):
        return found.loss(module, to_tensor(images), torch.zeros(len(images) // views, dtype=torch.int64))


# No label


@every_variant
@pytest.mark.parametrize("imposters", [None, noise(5, 9)], ids=["alone", "imposters"])
def test_no_label_is_read(variant: str, imposters: NDArray[np.uint8] | None) -> None:
    """A round as a client trains it, from its pictures to its update, on faces that have nothing else."""
    found = method(variant)
    layout = layout_of(found)
    learner = Learner(
        0, found, cast(Faces, Unlabelled(noise(8))), TRAINING, layout, 2, 0, imposters=imposters
    )
    start = shared_vector(found.build(0, 0), found, layout)
    update = learner.learn(start, 0)
    assert update.weight == 8
    assert np.isfinite(update.vector).all()
    assert np.abs(update.vector).max() > 0
    assert math.isfinite(update.metrics["loss"])


@every_variant
def test_labels_change_nothing(variant: str, faces: Faces) -> None:
    found = method(variant)
    other = Faces(faces.images, faces.labels[::-1].copy(), faces.names[::-1], faces.files)
    layout = layout_of(found)
    start = shared_vector(found.build(0, 0), found, layout)
    one, same = (Learner(0, found, some, TRAINING, layout, 2, 0).learn(start, 0) for some in (faces, other))
    assert np.array_equal(one.vector, same.vector)


# What is shared


@every_variant
def test_the_backbone_leaves_and_the_decoder_stays(variant: str) -> None:
    found: Method = method(variant)
    names = found.build(0, 0).state_dict()
    shared = {name for name in names if found.shared(name)}
    assert {name.partition(".")[0] for name in shared} == {"backbone"}
    private = {name.partition(".")[0] for name in names if is_private(found, name)}
    assert private == ({"decoder"} if variant == "autoencoder" else set())
    assert found.discloses == ()


@every_variant
@pytest.mark.parametrize("part", ["last", "norms", "adapter"])
def test_a_part_is_trained_and_the_rest_stays(variant: str, part: str, faces: Faces) -> None:
    found = method(variant, trainable=part, rank=4)
    module = found.build(0, 0)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not found.frozen(name))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fit(module, found, faces, TRAINING, lambda done: 1e-2, generator())
    moved = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved >= {name for name in before if found.shared(name)}
    assert not any(found.frozen(name) for name in moved)


def test_build_is_the_seeds() -> None:
    found = method("autoencoder")
    one, same, other = (found.build(0, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(not torch.equal(one[name], other[name]) for name in one if one[name].std() > 0)


def test_privacy_of_examples_is_refused_with_its_reason(faces: Faces) -> None:
    found = method()
    level = ExampleLevel(1.0, 1.0)
    with pytest.raises(InputError, match="loss of method unsupervised compares pictures"):
        fit_private(found.build(0, 0), found, faces, TRAINING, level, lambda done: 1e-3, lambda n: b"\0" * n)


# The examples


@every_variant
def test_every_picture_is_an_example_once(variant: str, faces: Faces) -> None:
    found = method(variant, neighbours=2)
    rows = found.examples(found.build(0, 0), faces, 0, generator()).rows
    assert rows[:, 0].tolist() == list(range(8))
    assert rows.shape[1] == (2 if variant == "contrastive" else 5)
    assert rows.max() < 8


@every_variant
def test_imposters_are_never_an_example_nor_similar(variant: str, faces: Faces) -> None:
    found = method(variant, neighbours=2)
    rows = found.examples(found.build(0, 0), faces, 50, generator()).rows
    alike = 2 if variant == "contrastive" else 3
    assert rows[:, :alike].max() < 8
    assert rows[:, alike:].max() >= 8


def test_examples_follow_the_network(faces: Faces) -> None:
    found = method("siamese")
    one, other = (found.examples(found.build(0, seed), faces, 0, generator()).rows for seed in (0, 1))
    assert not np.array_equal(one[:, 1:3], other[:, 1:3])


def test_a_picture_and_its_mirror_image_are_judged_alike() -> None:
    images = noise(12)
    module = method().build(0, 0)
    one, other = _judged(module, images), _judged(module, images[:, :, ::-1].copy())
    assert torch.allclose((one * other).sum(1), torch.ones(12), atol=1e-4)


def test_what_pictures_have_in_common_is_taken_off() -> None:
    """As an untrained network sees them, all are alike."""
    images = noise(40)
    module = method().build(0, 0)
    raw, even = unit(module, images), _judged(module, images)
    apart = ~torch.eye(40, dtype=torch.bool)
    assert float((raw @ raw.T)[apart].mean()) > 0.5
    assert abs(float((even @ even.T)[apart].mean())) < 0.1


# The losses


@every_variant
@pytest.mark.parametrize("imposters", [0, 1])
def test_loss_is_one_number_an_example(variant: str, imposters: int) -> None:
    views = 2 + imposters if variant == "contrastive" else 5
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(method(variant), noise(4 * views), views)
    assert losses.shape == (4,)
    assert losses.dtype == torch.float32
    assert bool(losses.isfinite().all())
    assert len(set(losses.tolist())) == 4


def unit(module: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(embed(module, images))


def test_siamese_by_hand() -> None:
    found = method("siamese", augmentation=0.0, temperature=0.3, similar=0.7, dissimilar=0.1)
    images = noise(3 * 5)
    e = unit(found.build(0, 0), images).view(5, 3, 16)
    for i, loss in enumerate(losses_of(found, images, 5).tolist()):
        terms = []
        for view in range(1, 5):
            chance = 1 / (1 + math.exp(-(float(e[0, i] @ e[view, i]) - 0.4) / 0.3))
            terms.append(-math.log(chance if view < 3 else 1 - chance))
        assert loss == pytest.approx(sum(terms) / 4, rel=1e-3)


@pytest.mark.parametrize("imposters", [0, 1])
def test_contrastive_by_hand(imposters: int) -> None:
    found = method(augmentation=0.0, temperature=0.3)
    images = noise(3 * (2 + imposters))
    e = unit(found.build(0, 0), images)
    for i, loss in enumerate(losses_of(found, images, 2 + imposters).tolist()):
        terms = []
        for a, b in ((i, i + 3), (i + 3, i)):
            all_others = sum(math.exp(float(e[a] @ e[j]) / 0.3) for j in range(len(e)) if j != a)
            terms.append(-math.log(math.exp(float(e[a] @ e[b]) / 0.3) / all_others))
        assert loss == pytest.approx(sum(terms) / 2, rel=1e-3)


def test_autoencoder_by_hand() -> None:
    found = method("autoencoder", augmentation=0.0, temperature=0.3)
    images = noise(3 * 5)
    module = found.build(0, 0)
    with torch.no_grad():
        given = normalize(module.get_submodule("decoder")(unit(module, images[:3])))
    wanted = _shape(to_tensor(images[3:]))
    for i, loss in enumerate(losses_of(found, images, 5).tolist()):
        own = {i, i + 3}  # the first two of four views are the similar ones
        against = sum(math.exp(float(given[i] @ wanted[j]) / 0.3) for j in range(12) if j not in own)
        likes = [float(given[i] @ wanted[j]) for j in own]
        terms = [1 - x - math.log(math.exp(x / 0.3) / (math.exp(x / 0.3) + against)) for x in likes]
        assert loss == pytest.approx(sum(terms) / 2, rel=1e-3)


def test_what_is_given_back_knows_no_light_and_no_surroundings() -> None:
    smooth = np.full((1, 64, 64, 3), 128, np.uint8) + (noise(1) // 8)
    darker = (smooth * 0.8).astype(np.uint8)
    bordered = smooth.copy()
    bordered[:, :10], bordered[:, :, -10:] = 0, 255
    shapes = [_shape(to_tensor(images))[0] for images in (smooth, darker, bordered, noise(1, 1))]
    assert float(shapes[0] @ shapes[1]) > 0.95
    assert torch.equal(shapes[0], shapes[2])
    assert float(shapes[0] @ shapes[3]) < 0.3


def test_the_autoencoder_looks_at_the_picture_and_gives_back_its_partners() -> None:
    """Only the first view is embedded; the others are what is wanted and what is not."""
    found = method("autoencoder", augmentation=0.0)
    images, changed = noise(5), noise(5, 1)
    module = found.build(0, 0)
    target = torch.zeros(1, dtype=torch.int64)
    seen = []
    module.get_submodule("backbone").register_forward_hook(lambda layer, given, out: seen.append(len(out)))
    first = found.loss(module, to_tensor(images), target).detach()
    assert seen == [1]
    for view in range(5):
        other = images.copy()
        other[view] = changed[view]
        assert float(found.loss(module, to_tensor(other), target).detach()) != pytest.approx(
            float(first), rel=1e-5
        )


@pytest.mark.parametrize("variant", ["siamese", "autoencoder"])
def test_without_dissimilar_partners_the_similar_ones_count(variant: str) -> None:
    losses = losses_of(method(variant), noise(2 * 3), 3)
    assert losses.shape == (2,)
    assert bool(losses.isfinite().all())


@every_variant
def test_one_picture_is_enough(variant: str) -> None:
    found = method(variant)
    module = found.build(0, 0)
    loss = fit(module, found, cast(Faces, Unlabelled(noise(1))), TRAINING, lambda done: 1e-3, generator())
    assert math.isfinite(loss)
    assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())


# That it learns


@pytest.mark.parametrize(
    "variant", ["contrastive", *(pytest.param(each, marks=pytest.mark.slow) for each in VARIANTS[:2])]
)
def test_it_learns_to_tell_people_apart(variant: str, tmp_path: Path) -> None:
    """Of strangers, after nine passes over forty people: a little, but no label said so."""
    known, strangers = (
        load_folder(write_people(tmp_path / str(seed), 40, 10, seed), (64, 64)) for seed in (0, 1)
    )
    found = method(variant)
    module = found.build(0, 0)
    before = all_pairs_roc(unit(module, strangers.images).numpy(), strangers.labels).eer
    training = Training(batch=32, device="cpu", epochs=1, precision="bfloat16")
    for round in range(9):
        unlabelled = cast(Faces, Unlabelled(known.images))
        fit(module, found, unlabelled, training, lambda done: 2e-3, generator(round))
    after = all_pairs_roc(unit(module, strangers.images).numpy(), strangers.labels).eer
    assert after < before - 0.015


def test_cosines_are_of_normalised_embeddings() -> None:
    found = method()
    out = found.build(0, 0)(to_tensor(noise(3)))
    assert torch.allclose(out, normalize(out))
