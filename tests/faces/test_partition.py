"""Splits: people never on two sides, nobody empty, the same from the same seed whatever the order on disk."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.faces.partition import Share, Split, split


def made(counts: list[int], order: np.random.Generator | None = None) -> Faces:
    """Faces whose every picture is unique, in the order of names or in a random one."""
    names = [f"p{i:03d}" for i in range(len(counts))]
    pairs = [(who, i) for who, count in enumerate(counts) for i in range(count)]
    rank = np.arange(len(names))
    if order is not None:
        rank = order.permutation(len(names))
        pairs = [pairs[i] for i in order.permutation(len(pairs))]
    position = {int(who): i for i, who in enumerate(rank)}
    images = np.zeros((len(pairs), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = [who for who, _ in pairs], [i for _, i in pairs]
    return Faces(
        images,
        np.array([position[who] for who, _ in pairs], np.int64).reshape(-1),
        tuple(names[who] for who in rank),
        tuple(f"{names[who]}/{i:02d}.jpg" for who, i in pairs),
    )


def people_of(part: Split) -> list[set[str]]:
    return [set(part.public), set(part.test), {name for share in part.clients for name in share.names}]


ASKED = st.fixed_dictionaries(
    {
        "scheme": st.sampled_from(["one", "many", "dirichlet"]),
        "clients": st.integers(1, 8),
        "public": st.one_of(st.integers(0, 4), st.floats(0, 0.2)),
        "test": st.one_of(st.sampled_from([0, 2, 3]), st.just(0.2)),
        "alpha": st.sampled_from([1e-3, 0.1, 1.0, 100.0]),
        "holdout": st.integers(0, 3),
        "seed": st.integers(0, 2**40),
    }
)
COUNTS = st.lists(st.integers(2, 7), min_size=16, max_size=24)


@settings(max_examples=120, deadline=None)
@given(counts=COUNTS, asked=ASKED, shuffle=st.integers(0, 1000))
def test_promises_of_every_scheme(counts: list[int], asked: dict[str, Any], shuffle: int) -> None:
    faces = made(counts)
    part = split(faces, **asked)
    assert (
        split(made(counts, np.random.default_rng(shuffle)), **asked) == part
    )  # order on disk does not matter
    for one, other in combinations(people_of(part), 2):
        assert not one & other
    assert len(part.clients) == asked["clients"]
    held = [file for share in part.clients for file in share.files + share.holdout]
    assert len(set(held)) == len(held)
    for i, share in enumerate(part.clients):
        own, kept = part.faces_of(faces, i), part.holdout_of(faces, i)
        assert len(own) >= 1 and (own.counts >= 1).all()  # each of its people is trained on
        assert own.names == kept.names == share.names
        assert all(
            file.split("/")[0] == own.names[label] for file, label in zip(own.files, own.labels, strict=True)
        )
        assert (kept.counts == np.minimum(asked["holdout"], (own.counts + kept.counts) - 1)).all()
        if asked["scheme"] != "dirichlet":
            whole = faces.of(share.names)
            assert sorted(own.files + kept.files) == sorted(whole.files)
    if asked["scheme"] != "one":  # these two schemes hand out everybody
        assert set.union(*people_of(part)) == set(faces.names)
    if asked["scheme"] == "dirichlet":
        assert len(held) + len(part.public_faces(faces)) + len(part.test_faces(faces)) == len(faces)
    else:
        for one_share, other_share in combinations(part.clients, 2):
            assert not set(one_share.names) & set(other_share.names)
    assert msgspec.json.decode(msgspec.json.encode(part), type=Split) == part


def test_schemes_deal_as_they_say() -> None:
    faces = made([4] * 20)
    one = split(faces, clients=12, public=3, test=4, scheme="one", seed=1)
    assert (
        [len(share.names) for share in one.clients] == [1] * 12
        and len(one.public) == 3
        and len(one.test) == 4
    )
    many = split(faces, clients=4, public=3, test=4, scheme="many", per_client=3, seed=1)
    assert [len(share.names) for share in many.clients] == [3] * 4
    evenly = split(faces, clients=5, public=3, test=4, scheme="many", seed=1)
    assert sorted(len(share.names) for share in evenly.clients) == [2, 2, 3, 3, 3]
    fractions = split(faces, clients=2, public=0.25, test=0.5, scheme="one", seed=1)
    assert (len(fractions.public), len(fractions.test)) == (5, 10)


def test_alpha_sets_how_unlike_clients_are() -> None:
    faces = made([40] * 20)

    def largest_share(alpha: float) -> float:
        part = split(faces, clients=10, scheme="dirichlet", alpha=alpha, seed=3)
        table = np.zeros((20, 10))
        for i in range(10):
            own = part.faces_of(faces, i)
            for name, count in zip(own.names, own.counts, strict=True):
                table[faces.names.index(name), i] = count
        assert (table.sum(1) == 40).all()
        return float(table.max(1).mean() / 40)

    even, unlike = largest_share(1000), largest_share(0.01)
    assert even < 0.25 < 0.85 < unlike


def test_an_even_spread_favours_no_client() -> None:
    # Three pictures a person over 30 clients: rounding proportions would give everything to the same three.
    part = split(made([3] * 200), clients=30, scheme="dirichlet", alpha=1e6, seed=0)
    sizes = [len(share.files) for share in part.clients]
    assert sum(sizes) == 600 and min(sizes) >= 5 and max(sizes) <= 40


def test_no_client_stays_empty_even_with_one_picture_each() -> None:
    faces = made([5, 4, 3])
    part = split(faces, clients=12, scheme="dirichlet", alpha=1e-3, seed=0)
    assert [len(share.files) for share in part.clients] == [1] * 12


def test_streams_are_independent() -> None:
    faces = made([4] * 30)
    base = split(faces, clients=5, public=4, test=6, scheme="one", seed=7)
    more = split(faces, clients=9, public=4, test=6, scheme="dirichlet", alpha=0.1, holdout=1, seed=7)
    assert (base.test, base.public) == (more.test, more.public)
    assert split(faces, clients=5, public=8, test=6, scheme="one", seed=7).test == base.test
    other = split(faces, clients=5, public=4, test=6, scheme="one", seed=8)
    assert other.test != base.test and other.public != base.public and other.clients != base.clients


def test_test_people_have_genuine_pairs_where_possible() -> None:
    faces = made([1] * 20 + [3] * 4)
    part = split(faces, clients=5, test=4, scheme="one", seed=0)
    assert set(part.test) == {f"p{i:03d}" for i in range(20, 24)}
    assert (split(faces, clients=5, test=6, scheme="one", seed=0).test_faces(faces).counts == 3).sum() == 4
    with pytest.raises(InputError, match="no identity has two pictures"):
        split(made([1] * 20), clients=5, test=4, scheme="one", seed=0)


def test_min_images_leaves_people_out() -> None:
    faces = made([2] * 5 + [6] * 5)
    part = split(faces, clients=2, public=1, test=2, scheme="many", min_images=3, seed=0)
    assert set.union(*people_of(part)) == {f"p{i:03d}" for i in range(5, 10)}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"clients": 9}, "9 clients need 9 identities, 8 remain beside test and public"),
        ({"clients": 3, "scheme": "many", "per_client": 3}, "3 clients need 9 identities, 8 remain"),
        ({"clients": 9, "scheme": "many"}, "9 clients need 9 identities, 8 remain"),
        ({"clients": 17, "scheme": "dirichlet"}, "17 clients, but 16 pictures remain"),
        ({"clients": 1, "public": 5, "test": 6}, "6 test and 5 public identities are asked for, 10 have"),
        ({"clients": 1, "public": 1.0}, "public=1.0: a fraction lies in [0, 1); a number"),
        ({"clients": 1, "test": -1}, "test=-1: a number of identities cannot be negative"),
        ({"clients": 1, "test": 1}, "one identity gives no impostor pair"),
        ({"clients": 0}, "clients=0: at least one is needed"),
        ({"clients": 1, "scheme": "two"}, "scheme='two': choose one of one, many, dirichlet"),
        ({"clients": 1, "scheme": "one", "per_client": 2}, "per_client=2: goes with scheme='many' only"),
        ({"clients": 1, "scheme": "many", "per_client": 0}, "per_client=0"),
        ({"clients": 1, "scheme": "dirichlet", "alpha": 0.0}, "alpha=0.0"),
        ({"clients": 1, "scheme": "dirichlet", "alpha": float("nan")}, "alpha=nan"),
        ({"clients": 1, "holdout": -1}, "holdout=-1"),
        ({"clients": 1, "seed": -1}, "seed=-1"),
    ],
)
def test_impossible_requests(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        split(made([2] * 10), **{"test": 2, "seed": 0, **asked})


def test_two_pictures_of_one_name_are_refused() -> None:
    faces = made([2, 2])
    same = Faces(faces.images, faces.labels, faces.names, ("a", "a", "b", "c"))
    with pytest.raises(InputError, match="two pictures share a file name"):
        split(same, clients=1, seed=0)


def test_file_round_trip_and_damaged_files(tmp_path: Path) -> None:
    faces = made([3] * 10)
    part = split(faces, clients=3, public=2, test=2, scheme="many", holdout=1, seed=5)
    part.save(path := tmp_path / "split.json")
    assert Split.load(path) == part
    text = path.read_text()
    path.write_text(text.replace(f'"{part.public[0]}"', f'"{part.test[0]}"', 1))
    with pytest.raises(InputError, match=f"{part.test[0]!r} is given to public and to test"):
        Split.load(path)
    for broken in (
        text[:-20],
        "{}",
        "[1]",
        "\xff",
        text.replace('"seed"', '"sead"'),
        text.replace('"many"', '"few"'),
    ):
        path.write_text(broken, encoding="latin-1")
        with pytest.raises(InputError, match=r"split\.json: not a split file \("):
            Split.load(path)
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        Split.load(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be written"):
        part.save(path / "split.json")


def test_other_data_is_recognised() -> None:
    faces = made([3] * 10)
    part = split(faces, clients=3, public=2, test=2, scheme="one", seed=5)
    fewer = faces.of([name for name in faces.names if name not in (part.public[1], part.test[0])])
    with pytest.raises(
        InputError, match=f"1 of its identities are absent from this data set, the first {part.public[1]!r}"
    ):
        part.public_faces(fewer)
    with pytest.raises(InputError, match=f"the first {part.test[0]!r}"):
        part.test_faces(fewer)
    (name,) = part.clients[0].names
    with pytest.raises(InputError, match=f"the first {name!r}"):
        part.faces_of(faces.of(part.public), 0)
    with pytest.raises(InputError, match="2 of its pictures are absent"):
        part.faces_of(
            faces.select([i for i, file in enumerate(faces.files) if not file.endswith(("1.jpg", "2.jpg"))]),
            0,
        )
    with pytest.raises(InputError, match="client 3: this split has clients 0 to 2"):
        part.faces_of(faces, 3)


def test_a_split_that_breaks_a_promise_cannot_be_made() -> None:
    ann, bob = Share(("ann",), ("ann/1",)), Share(("bob",), ("bob/1",))
    rest: dict[str, Any] = {"scheme": "one", "seed": 0, "public": (), "test": ()}
    Split(**{**rest, "clients": (ann, bob)})
    for change, words in [
        ({"clients": (ann, ann)}, "identity 'ann' is given to client 0 and to client 1"),
        ({"clients": (ann, bob), "test": ("bob",)}, "identity 'bob' is given to test and to client 1"),
        ({"clients": (ann, bob), "public": ("x",), "test": ("x",)}, "'x' is given to public and to test"),
        (
            {"clients": (ann, Share(("bob",), ("ann/1",)))},
            "picture 'ann/1' is given to client 0 and to client 1",
        ),
        ({"clients": (ann, ann), "scheme": "dirichlet"}, "picture 'ann/1' is given to client 0"),
        ({"clients": (ann, Share(("bob",), (), ("bob/1",)))}, "client 1 has no picture to train on"),
        (
            {"clients": (ann,), "public": ("ann",), "scheme": "dirichlet"},
            "'ann' is given to public and to a client",
        ),
    ]:
        with pytest.raises(InputError, match=re.escape(words)):
            Split(**{**rest, **change})
