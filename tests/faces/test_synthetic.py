"""Synthetic faces: reproducible, told apart by who they show, and not by their raw pixels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.faces.synthetic import Shot, SyntheticIdentity, draw, identity, render, shot, synthetic_faces


@pytest.fixture(scope="module")
def crowd() -> Faces:
    return synthetic_faces(identities=20, images=10, seed=7)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def portrait(who: SyntheticIdentity, how: Shot | None = None, size: int = 64) -> NDArray[np.float64]:
    return draw(who, how or Shot(), rng(), size).astype(np.float64)


def equal_error_rate(vectors: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """EER of the cosine over all pairs."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    left, right = np.triu_indices(len(labels), 1)
    scores, same = (unit @ unit.T)[left, right], labels[left] == labels[right]
    ranked = same[np.argsort(-scores)]
    missed = 1.0 - np.cumsum(ranked) / ranked.sum()
    false = np.cumsum(~ranked) / (~ranked).sum()
    at = int(np.argmin(np.abs(missed - false)))
    return float(missed[at] + false[at]) / 2


# --- the set ---------------------------------------------------------------------------------------------


def test_shapes_types_and_names() -> None:
    faces = synthetic_faces(identities=3, images=2, size=48)
    assert faces.images.shape == (6, 48, 48, 3)
    assert faces.images.dtype == np.uint8
    assert faces.labels.dtype == np.int64
    assert faces.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert faces.names == ("synthetic-0000", "synthetic-0001", "synthetic-0002")
    assert faces.files[0] == "synthetic-0000/0000.png"
    assert faces.files[-1] == "synthetic-0002/0001.png"
    assert len(faces) == 6


def test_same_seed_same_bits() -> None:
    again = synthetic_faces(identities=3, images=3, seed=5).images
    np.testing.assert_array_equal(synthetic_faces(identities=3, images=3, seed=5).images, again)


def test_same_bits_in_a_fresh_process() -> None:
    code = (
        "import zlib; from privfr.faces.synthetic import synthetic_faces as f; "
        "print(zlib.crc32(f(2, 2, 32, 9).images.tobytes()))"
    )
    seen = {
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    }
    assert len(seen) == 1


def test_a_picture_does_not_depend_on_the_counts() -> None:
    small, large = synthetic_faces(2, 3, seed=1), synthetic_faces(4, 5, seed=1)
    at = dict(zip(large.files, large.images, strict=True))
    for file, image in zip(small.files, small.images, strict=True):
        np.testing.assert_array_equal(image, at[file])


def test_other_seeds_show_other_people() -> None:
    assert identity(0, 0) != identity(1, 0)
    assert identity(0, 0) != identity(0, 1)
    assert not np.array_equal(synthetic_faces(1, 1, seed=0).images, synthetic_faces(1, 1, seed=1).images)


def test_no_two_pictures_are_alike(crowd: Faces) -> None:
    assert len({image.tobytes() for image in crowd.images}) == len(crowd)


def test_needs_no_torch() -> None:
    code = "import sys, privfr.faces.synthetic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- one person ------------------------------------------------------------------------------------------


def test_identity_is_frozen_and_reproducible() -> None:
    who = identity(3, 4)
    assert who == identity(3, 4)
    with pytest.raises(FrozenInstanceError):
        who.jaw = 1.0  # type: ignore[misc]


def test_people_span_many_skins_and_shapes() -> None:
    people = [identity(0, i) for i in range(200)]
    light = np.array([np.mean(who.skin) for who in people])
    assert light.min() < 0.2
    assert light.max() > 0.6
    assert any(who.beard > 0 for who in people)
    assert any(who.hair_length < -1.0 for who in people)
    for name in (field.name for field in fields(SyntheticIdentity)):
        assert len({getattr(who, name) for who in people}) > 1, f"{name} is the same for everybody"


@pytest.mark.parametrize(
    "change",
    [
        {"face_width": 0.7},
        {"chin": -1.1},
        {"eye_spacing": 0.52},
        {"brow_thickness": 0.1},
        {"nose_width": 0.4},
        {"mouth_width": 0.2},
        {"skin": (0.1, 0.05, 0.03)},
        {"hair": (0.6, 0.5, 0.3)},
        {"iris": (0.1, 0.6, 0.9)},
        {"beard": 1.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_parameter_is_seen(change: dict[str, float]) -> None:
    who = replace(identity(0, 5), beard=0.0)
    changed = portrait(replace(who, **change))  # type: ignore[arg-type]
    assert np.abs(portrait(who) - changed).max() > 20


@pytest.mark.parametrize(
    "how",
    [
        Shot(yaw=0.5),
        Shot(pitch=0.2),
        Shot(roll=0.2),
        Shot(light=(-1.2, 0.0)),
        Shot(exposure=2.0),
        Shot(smile=1.0),
        Shot(mouth=1.0),
        Shot(eyes=0.05),
        Shot(gaze=(0.5, 0.0)),
        Shot(brow=0.1),
        Shot(glasses=1.0),
        Shot(glasses=1.0, tint=0.9),
        Shot(hat=True),
        Shot(scarf=True),
        Shot(hand=1.0),
        Shot(strand=0.3),
        Shot(make_up=1.0),
        Shot(noise=0.1),
    ],
    ids=repr,
)
def test_every_condition_is_seen(how: Shot) -> None:
    assert np.abs(portrait(identity(0, 3), how) - portrait(identity(0, 3))).max() > 12


def test_the_light_side_is_the_bright_side() -> None:
    who = identity(0, 2)
    left, right = (portrait(who, Shot(light=(side, 0.0)))[24:48] for side in (-1.2, 1.2))
    assert left[:, 18:32].mean() > right[:, 18:32].mean() + 20
    assert right[:, 32:46].mean() > left[:, 32:46].mean() + 20


def test_a_mild_turn_is_closer_than_another_person() -> None:
    """Under neutral conditions the parameters decide: a person resembles itself more than anybody else."""
    people = [identity(2, i) for i in range(12)]
    front = [portrait(who) for who in people]
    turned = [portrait(who, Shot(yaw=0.08, smile=0.3, mouth=0.2)) for who in people]
    distance = np.array([[np.abs(a - b).mean() for b in turned] for a in front])
    assert (distance.argmin(axis=1) == np.arange(12)).all()


def test_nuisance_hides_identity_from_raw_pixels(crowd: Faces) -> None:
    pixels = crowd.images.reshape(len(crowd), -1).astype(np.float64)
    assert equal_error_rate(pixels - pixels.mean(axis=1, keepdims=True), crowd.labels) > 0.38
    assert equal_error_rate(pixels - pixels.mean(axis=0), crowd.labels) > 0.36


def test_neutral_pictures_can_be_told_apart() -> None:
    """The counterpart: without the nuisance, the same measure finds the identity."""
    turns = (-0.05, 0.0, 0.05)
    vectors = np.array([portrait(identity(4, i), Shot(yaw=a)).ravel() for i in range(15) for a in turns])
    labels = np.repeat(np.arange(15, dtype=np.int64), len(turns))
    assert equal_error_rate(vectors - vectors.mean(axis=0), labels) < 0.1


def test_pictures_are_neither_black_nor_burnt_out(crowd: Faces) -> None:
    assert (crowd.images.std(axis=(1, 2, 3)) > 8).all()
    assert (crowd.images == 255).mean() < 0.1
    assert (crowd.images == 0).mean() < 0.05


@pytest.mark.filterwarnings("error")
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**64), index=st.integers(0, 2**40), size=st.integers(16, 72))
def test_render_draws_anybody_at_any_size(seed: int, index: int, size: int) -> None:
    image = render(identity(seed, index), rng(seed % 1000), size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert image.std() > 3


@pytest.mark.filterwarnings("error")
def test_arithmetic_stays_finite() -> None:
    extremes = [
        Shot(strand=-0.5, hat=True, yaw=0.7, pitch=0.3),
        Shot(hand=-1.0, scarf=True, yaw=-0.7, pitch=-0.3),
    ]
    for index in range(30):
        for how in extremes:
            assert draw(identity(6, index), how, rng(), 32).std() > 3


def test_conditions_vary_and_come_from_the_generator() -> None:
    assert shot(rng(1)) == shot(rng(1))
    shots = [shot(rng(i)) for i in range(120)]
    for name in (field.name for field in fields(Shot)):
        assert len({getattr(how, name) for how in shots}) > 1, f"{name} never varies"
    for one, other in combinations(shots[:10], 2):
        assert one != other


# --- bad arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"identities": 0}, "identities"),
        ({"images": 0}, "images"),
        ({"images": 2.5}, "images"),
        ({"size": 15}, "size"),
        ({"size": True}, "size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_counts_are_named(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(InputError, match=f"^{named} is "):
        synthetic_faces(**arguments)


def test_bad_keys_are_named() -> None:
    with pytest.raises(InputError, match=r"^index is -1"):
        identity(0, -1)
    with pytest.raises(InputError, match=r"^seed is -2"):
        identity(-2, 0)
    with pytest.raises(InputError, match=r"^size is 3"):
        render(identity(0, 0), rng(), 3)
