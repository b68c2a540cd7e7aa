"""The audit: it notices planted faults, each by its own question, and passes what has none."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.faces.recogniser import Recogniser
from privfr.faces.sources import load_faces
from privfr.imposters.audit import Audit, audit, frechet
from privfr.imposters.copies import ALPHA, copies

Pictures = NDArray[np.uint8]
Change = Callable[[Pictures], Pictures]
COUNT = 200


def people(first: int, last: int) -> Faces:
    faces = everybody()
    return faces.of(faces.names[first:last])


@cache
def everybody() -> Faces:
    torch.set_num_threads(1)
    return load_faces("synthetic:identities=90,images=5,seed=4", (64, 64))


TRAINING, HELDOUT, STRANGERS = (0, 30), (30, 60), (60, 90)


@cache
def recogniser() -> Recogniser:
    return Recogniser.new("small", (64, 64), seed=1)


def embed(images: Pictures) -> NDArray[np.float32]:
    return recogniser().embed(images)


def drawn(faces: Faces, count: int = COUNT, seed: int = 0) -> Pictures:
    return faces.images[np.random.default_rng(seed).integers(len(faces), size=count)]


def blurred(pictures: Pictures) -> Pictures:
    """As a young generator's: nearer to everything than sharp ones."""
    planes = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    soft = torch.nn.functional.interpolate(
        torch.nn.functional.avg_pool2d(planes, 8), (64, 64), mode="bilinear"
    )
    return soft.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def noisy(pictures: Pictures) -> Pictures:
    noise = np.random.default_rng(1).normal(0, 10, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def mirrored(pictures: Pictures) -> Pictures:
    return np.ascontiguousarray(pictures[:, :, ::-1])


def moved(pictures: Pictures) -> Pictures:
    return np.roll(pictures, 3, axis=2)


def found(made: Pictures, seed: int = 0) -> Audit:
    return audit(made, people(*TRAINING), people(*HELDOUT), embed, seed=seed)


@cache
def honest() -> Audit:
    """Of the best generator there is: it draws new people, as sharp as those it has learnt from."""
    return found(drawn(people(*STRANGERS)))


# --- no copy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda p: p, mirrored, noisy, moved, blurred])
def test_a_generator_that_replays_its_training_faces_is_caught(change: Change) -> None:
    copied = found(change(drawn(people(*TRAINING)))).copies
    assert not copied.passed
    assert copied.pixels.p is not None
    assert copied.pixels.p <= ALPHA / 2
    assert copied.replays > 0.5


def test_one_that_replays_one_time_in_ten_is_caught() -> None:
    made = drawn(people(*STRANGERS))
    made[: COUNT // 10] = noisy(drawn(people(*TRAINING), COUNT // 10))
    copied = found(made).copies
    assert not copied.passed
    assert copied.replays == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("soft", [False, True])
def test_one_that_replays_nobody_passes(soft: bool) -> None:
    """Blurred pictures are nearer to everybody than sharp ones, to people learnt from as to others."""
    copied = (found(blurred(drawn(people(*STRANGERS)))) if soft else honest()).copies
    assert copied.passed
    assert copied.replays == copied.control == 0
    assert copied.people == copied.others == 30


def test_one_that_replays_held_out_faces_is_not_said_to_copy_its_training_faces() -> None:
    copied = found(drawn(people(*HELDOUT))).copies
    assert copied.passed
    assert copied.control > 0.9
    assert copied.pixels.share < 0.01


def test_one_that_makes_a_single_face_is_not_called_a_copier_for_whom_that_is_nearest_to() -> None:
    """A test that takes imposters for independent would be certain: all vote alike."""
    for one in drawn(people(*STRANGERS), 2):
        copied = found(np.repeat(one[None], 40, 0)).copies
        assert copied.pixels.share in (pytest.approx(0), pytest.approx(1))
        assert copied.passed


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Whoever is taken for learnt from, a generator that knows nobody passes 99 times in 100."""
    everyone, rng = people(0, 60), np.random.default_rng(5)
    made, alarms, p = drawn(people(*STRANGERS), 80), 0, []
    for _ in range(40):
        order = rng.permutation(60)
        sides = [everyone.of([everyone.names[i] for i in half]) for half in (order[:30], order[30:])]
        copied = copies(made, *sides, shrunk, rng)
        alarms += not copied.passed
        p += [copied.pixels.p, copied.embeddings.p]
    assert alarms <= 3  # 0.4 are expected
    assert 0.3 < np.mean([each for each in p if each is not None]) < 0.7


def shrunk(images: Pictures) -> NDArray[np.float32]:
    """Embed a picture as its smallest copy: fast."""
    small = images[:, ::16, ::16].reshape(len(images), -1).astype(np.float32) - 127.5
    return small / np.linalg.norm(small, axis=1, keepdims=True)


def test_what_it_says_it_would_have_noticed_it_notices() -> None:
    made, least = drawn(people(*STRANGERS)), honest().copies.catches
    assert least is not None
    assert least <= 0.05
    made[: round(least * COUNT)] = noisy(drawn(people(*TRAINING), round(least * COUNT)))
    assert not found(made).copies.passed


def test_one_person_is_too_few_for_a_test_but_not_to_see_replays() -> None:
    """As a device's own generator has learnt from."""
    owner, heldout = people(0, 1), people(*HELDOUT)
    for made, passed in ((noisy(drawn(owner, 40)), False), (drawn(people(*STRANGERS), 40), True)):
        copied = audit(made, owner, heldout, embed).copies
        assert copied.pixels.p is None
        assert copied.embeddings.p is None
        assert copied.passed == passed
    assert copied.catches is not None


def test_more_people_learnt_from_than_held_out_are_no_sign_of_copies() -> None:
    copied = audit(drawn(people(*STRANGERS)), people(0, 52), people(52, 60), embed).copies
    assert copied.pixels.share > 0.7
    assert copied.passed
    assert not audit(drawn(people(0, 52)), people(0, 52), people(52, 60), embed).copies.passed


def test_people_with_fewer_pictures_are_not_nearer_or_farther_for_it() -> None:
    """A client may hold some back; people with more pictures would be nearer by their number."""
    faces = people(*HELDOUT)
    fewer = faces.select(np.flatnonzero(np.arange(len(faces)) % 5 > 3))
    copied = audit(drawn(people(*STRANGERS)), people(*TRAINING), fewer, embed).copies
    assert copied.pictures == 30
    assert copied.passed


def test_copies_are_looked_for_with_the_blind_embedding() -> None:
    """One that has learnt from the training people is drawn to them, and proves nothing."""
    known = {picture.tobytes() for picture in people(*TRAINING).images}

    def partial(images: Pictures) -> NDArray[np.float32]:
        rows = embed(images) * 0.3
        rows[:, 0] += [0.0 if each.tobytes() not in known else 1.0 for each in images]
        rows[: len(images) if len(images) == COUNT else 0, 0] += 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    made = drawn(people(*STRANGERS))
    arguments = made, people(*TRAINING), people(*HELDOUT), partial
    assert not audit(*arguments).copies.passed
    assert audit(*arguments, blind=embed).copies.passed


# --- the other questions ---------------------------------------------------------------------------------


def test_imposters_like_their_owner_are_told_from_strangers() -> None:
    owner = people(0, 1)
    assert not audit(
        noisy(drawn(owner, 40)), people(*TRAINING), people(*HELDOUT), embed, [owner]
    ).owners.passed
    strangers = audit(drawn(people(*STRANGERS)), people(*TRAINING), people(*HELDOUT), embed, [owner]).owners
    assert strangers.passed
    assert strangers.cosine[1] == pytest.approx(strangers.control_cosine[1], abs=0.05)


def test_owners_are_each_person_learnt_from_unless_said() -> None:
    made, sides = drawn(people(*STRANGERS), 40), (people(*TRAINING), people(*HELDOUT))
    each = [people(i, i + 1) for i in range(*TRAINING)]
    assert audit(made, *sides, embed).owners == audit(made, *sides, embed, each).owners


@pytest.mark.parametrize(("different", "passed"), [(1, False), (5, False), (COUNT, True)])
def test_the_same_few_faces_are_not_varied(different: int, passed: bool) -> None:
    made = np.resize(drawn(people(*STRANGERS), different), (COUNT, 64, 64, 3))
    variety = found(made).variety
    assert variety.passed == passed
    assert variety.control > 0.9


def test_variety_of_faces_is_that_of_faces() -> None:
    variety = honest().variety
    assert variety.coverage == pytest.approx(variety.control, abs=0.1)
    assert variety.density == pytest.approx(variety.control_density, abs=0.4)
    assert variety.cosine == pytest.approx(variety.control_cosine, abs=0.05)


def test_faces_look_like_faces_and_noise_does_not() -> None:
    faces = honest().realism
    assert faces.passed
    assert faces.distance == pytest.approx(faces.control, abs=0.03)
    noise = np.random.default_rng(9).integers(0, 256, (COUNT, 64, 64, 3), np.uint8)
    realism = found(noise).realism
    assert not realism.passed
    assert realism.distance == pytest.approx(faces.noise, rel=0.2)


def test_frechet_distance_is_that_of_a_second_implementation() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(80, 5)) @ rng.normal(size=(5, 5)), rng.normal(1, 2, (60, 5))
    covariances = [np.cov(each.T) for each in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = np.sum((one.mean(0) - other.mean(0)) ** 2)
    assert frechet(one, other) == pytest.approx(means + np.trace(sum(covariances) - 2 * root), rel=1e-9)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_same_seed_gives_the_same_audit() -> None:
    made = drawn(people(*STRANGERS), 20)
    third = found(made, 3)
    assert third == found(made, 3)
    assert third != found(made, 4)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "heldout", "made", "what"),
    [
        (TRAINING, (20, 50), COUNT, "is among training and held-out people, as 10 are"),
        (TRAINING, (30, 33), COUNT, "3 held-out people"),
        (TRAINING, HELDOUT, 9, "9 imposters: an audit needs at least 10"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    training: tuple[int, int], heldout: tuple[int, int], made: int, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        audit(drawn(people(*STRANGERS), made), people(*training), people(*heldout), embed)


def test_pictures_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="imposters 32x32; load them at one size"):
        audit(drawn(people(*STRANGERS))[:, ::2, ::2], people(*TRAINING), people(*HELDOUT), embed)
