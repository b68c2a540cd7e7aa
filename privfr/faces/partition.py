"""Who holds which faces: public data, clients and test people, disjoint by identity and drawn from a seed.

A `Split` names identities and picture files, never positions, so it can be written to JSON and used again on
the same data wherever it lies. Every draw starts from sorted names and has its own random stream: the order
of files on disk does not matter, and the test people stay the same when the number of clients changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfr.errors import InputError
from privfr.faces.datasets import Faces
from privfr.storage import write_atomic

Scheme = Literal["one", "many", "dirichlet"]

# The streams' numbers are part of what a seed means: never renumber them.
_TEST, _PUBLIC, _CLIENTS, _PICTURES, _HOLDOUT = range(5)


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client holds: its people, the pictures it trains on and those held out for its own test."""

    names: tuple[str, ...]
    files: tuple[str, ...]
    holdout: tuple[str, ...] = ()


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A partition of a face data set.

    public: identities anyone may see (pre-training, anchors).  test: identities nobody trains on.
    clients: each client's share.  The three hold different people; only under "dirichlet" may two clients
    hold (different) pictures of one person. Identities left over belong to nobody.
    """

    scheme: Scheme
    seed: int
    public: tuple[str, ...]
    test: tuple[str, ...]
    clients: tuple[Share, ...]
    format: Literal[1] = 1

    def __post_init__(self) -> None:
        """Raise InputError if a person or picture is on two sides, or a client has nothing to train on."""
        groups = [("public", self.public), ("test", self.test)]
        held = [(f"client {i}", share.names) for i, share in enumerate(self.clients)]
        if self.scheme == "dirichlet":
            held = [("a client", tuple({name for _, names in held for name in names}))]
        _disjoint([*groups, *held], "identity")
        _disjoint(
            [(f"client {i}", share.files + share.holdout) for i, share in enumerate(self.clients)], "picture"
        )
        for i, share in enumerate(self.clients):
            if not share.names or not share.files:
                raise InputError(f"split: client {i} has no picture to train on; make the split anew")

    def faces_of(self, faces: Faces, client: int) -> Faces:
        """Return the pictures that client `client` trains on; labels 0..k-1 index its own names.

        Raises InputError, here and below, if `faces` is not the data this split was made from.
        """
        share = self._share(client)
        return _pictures(faces, share.names, share.files)

    def holdout_of(self, faces: Faces, client: int) -> Faces:
        """Return the pictures client `client` keeps for its own test; labels as in `faces_of`."""
        share = self._share(client)
        return _pictures(faces, share.names, share.holdout)

    def public_faces(self, faces: Faces) -> Faces:
        """All pictures of the public identities."""
        _require(self.public, faces.names, "identities")
        return faces.of(self.public)

    def test_faces(self, faces: Faces) -> Faces:
        """All pictures of the test identities."""
        _require(self.test, faces.names, "identities")
        return faces.of(self.test)

    def save(self, path: str | Path) -> None:
        """Write as JSON. Raises InputError if the file cannot be written."""
        write_atomic(Path(path), msgspec.json.format(msgspec.json.encode(self)) + b"\n", private=True)

    @classmethod
    def load(cls, path: str | Path) -> Split:
        """Read what `save` wrote. Raises InputError if the file is absent, malformed or no valid split."""
        try:
            return msgspec.json.decode(Path(path).read_bytes(), type=cls)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a split file ({error}); make the split anew") from None

    def _share(self, client: int) -> Share:
        if not 0 <= client < len(self.clients):
            raise InputError(f"client {client}: this split has clients 0 to {len(self.clients) - 1}")
        return self.clients[client]


def split(
    faces: Faces,
    *,
    clients: int,
    public: int | float = 0,
    test: int | float = 0,
    scheme: Scheme = "one",
    per_client: int | None = None,
    alpha: float = 0.5,
    holdout: int = 0,
    min_images: int = 1,
    seed: int,
) -> Split:
    """Part the identities of `faces` into public, test and client people, reproducibly.

    public, test: a number of identities (int) or a fraction of them (float below 1). Test people are drawn
    first, as far as possible among those with two pictures or more: others give no genuine pair.
    scheme "one": one identity a client.  "many": `per_client` identities a client, or, when that is None,
    all that remain, as evenly as possible.  "dirichlet": the pictures of every remaining identity are spread
    over the clients in proportions drawn from Dirichlet(alpha), as Yurochkin et al. (arXiv 1905.12022) do
    by class; small alpha means unlike clients. (Hsu et al., arXiv 1909.06335, draw the other way round:
    classes by client.) No client stays empty.
    holdout: pictures per client and identity kept for a test on known people; one always stays to train on.
    min_images: identities with fewer pictures belong to nobody.

    Raises InputError if the people or pictures do not suffice, naming both numbers, or if a value makes no
    sense.
    """
    _check_arguments(clients, scheme, per_client, alpha, holdout, seed)
    files = _files_by_name(faces, min_images)
    n_test, n_public = _number(test, len(files), "test"), _number(public, len(files), "public")
    if n_test + n_public > len(files):
        raise InputError(
            f"{n_test} test and {n_public} public identities are asked for, {len(files)} have "
            f"{min_images} pictures or more; lower them"
        )
    order = _shuffled(sorted(files), seed, _TEST)
    order.sort(key=lambda name: len(files[name]) < 2)  # stable: those without a genuine pair come last
    tested = order[:n_test]
    _check_test(tested, files)
    rest = _shuffled(sorted(order[n_test:]), seed, _PUBLIC)
    private = _shuffled(sorted(rest[n_public:]), seed, _CLIENTS)
    if scheme == "dirichlet":
        shares = _dirichlet({name: files[name] for name in private}, clients, alpha, seed)
    else:
        shares = _whole(private, files, clients, 1 if scheme == "one" else per_client)
    return Split(
        scheme=scheme,
        seed=seed,
        public=tuple(sorted(rest[:n_public])),
        test=tuple(sorted(tested)),
        clients=tuple(_hold_out(share, holdout, seed, i) for i, share in enumerate(shares)),
    )


_Holding = dict[str, list[str]]
"""One client's picture files by name of the person."""


def _whole(private: list[str], files: _Holding, clients: int, per_client: int | None) -> list[_Holding]:
    """Whole identities to each client."""
    need = clients * (per_client or 1)
    if need > len(private):
        raise InputError(
            f"{clients} clients need {need} identities, {len(private)} remain beside test and public; "
            "ask for fewer clients, fewer test or public identities, or take scheme='dirichlet'"
        )
    dealt = private if per_client is None else private[:need]
    return [{name: files[name] for name in dealt[i::clients]} for i in range(clients)]


def _dirichlet(files: _Holding, clients: int, alpha: float, seed: int) -> list[_Holding]:
    """Spread each identity's pictures over all clients, in proportions from Dirichlet(alpha)."""
    total = sum(map(len, files.values()))
    if clients > total:
        raise InputError(
            f"{clients} clients, but {total} pictures remain beside test and public; ask for fewer clients"
        )
    rng = np.random.default_rng([seed, _PICTURES])
    shares: list[_Holding] = [{} for _ in range(clients)]
    for name in sorted(files):
        # A draw per picture, not cuts at rounded proportions: with more clients than pictures, rounding would
        # favour the same clients at every identity.
        weights = rng.dirichlet(np.full(clients, alpha))
        for file, client in zip(files[name], rng.choice(clients, len(files[name]), p=weights), strict=True):
            shares[client].setdefault(name, []).append(file)
    _fill_empty(shares)
    return shares


def _fill_empty(shares: list[_Holding]) -> None:
    """Give each client without a picture one of the client that has most; ends, as pictures >= clients."""
    sizes = [sum(map(len, share.values())) for share in shares]
    for empty in [i for i, size in enumerate(sizes) if size == 0]:
        giver = int(np.argmax(sizes))
        name = max(shares[giver], key=lambda person: (len(shares[giver][person]), person))
        shares[empty][name] = [shares[giver][name].pop()]
        if not shares[giver][name]:
            del shares[giver][name]
        sizes[giver], sizes[empty] = sizes[giver] - 1, 1


def _hold_out(holding: _Holding, holdout: int, seed: int, client: int) -> Share:
    rng = np.random.default_rng([seed, _HOLDOUT, client])
    kept: list[str] = []
    held: list[str] = []
    for name in sorted(holding):
        pictures = [holding[name][i] for i in rng.permutation(len(holding[name]))]
        out = min(holdout, len(pictures) - 1)
        held += pictures[:out]
        kept += pictures[out:]
    return Share(tuple(sorted(holding)), tuple(sorted(kept)), tuple(sorted(held)))


def _files_by_name(faces: Faces, min_images: int) -> _Holding:
    if len(set(faces.files)) != len(faces):
        raise InputError("two pictures share a file name; a split refers to pictures by name, so rename one")
    files: _Holding = {name: [] for name in faces.names}
    for file, label in zip(faces.files, faces.labels, strict=True):
        files[faces.names[label]].append(file)
    return {name: sorted(own) for name, own in files.items() if len(own) >= max(1, min_images)}


def _number(asked: int | float, of: int, what: str) -> int:
    if isinstance(asked, float):
        if not 0 <= asked < 1:
            raise InputError(
                f"{what}={asked}: a fraction lies in [0, 1); a number of identities is an integer"
            )
        return round(asked * of)
    if asked < 0:
        raise InputError(f"{what}={asked}: a number of identities cannot be negative")
    return asked


def _check_arguments(
    clients: int, scheme: Scheme, per_client: int | None, alpha: float, holdout: int, seed: int
) -> None:
    if scheme not in get_args(Scheme):
        raise InputError(f"scheme={scheme!r}: choose one of {', '.join(get_args(Scheme))}")
    if clients < 1:
        raise InputError(f"clients={clients}: at least one is needed")
    if per_client is not None and (scheme != "many" or per_client < 1):
        raise InputError(f"per_client={per_client}: goes with scheme='many' only, and is 1 or more")
    if not 0 < alpha <= 1e6:
        raise InputError(f"alpha={alpha}: give a number above 0, at most 1e6 (which is an even spread)")
    if holdout < 0 or seed < 0:
        raise InputError(f"holdout={holdout}, seed={seed}: neither can be negative")


def _check_test(tested: Sequence[str], files: _Holding) -> None:
    if not tested:
        return
    if len(tested) < 2:
        raise InputError("test: one identity gives no impostor pair; ask for none, or two or more")
    if all(len(files[name]) < 2 for name in tested):
        raise InputError(
            "test: no identity has two pictures, so there is no genuine pair; add pictures or test=0"
        )


def _shuffled(names: Sequence[str], seed: int, stream: int) -> list[str]:
    rng = np.random.default_rng([seed, stream])
    return [names[i] for i in rng.permutation(len(names))]


def _disjoint(groups: Iterable[tuple[str, tuple[str, ...]]], what: str) -> None:
    owner: dict[str, str] = {}
    for group, members in groups:
        for member in members:
            if member in owner:
                raise InputError(f"split: {what} {member!r} is given to {owner[member]} and to {group}")
            owner[member] = group


def _require(wanted: Iterable[str], present: Iterable[str], what: str) -> None:
    have = set(present)
    missing = [item for item in wanted if item not in have]
    if missing:
        raise InputError(
            f"split: {len(missing)} of its {what} are absent from this data set, the first {missing[0]!r}; "
            "use the data the split was made from, or make it anew"
        )


def _pictures(faces: Faces, names: tuple[str, ...], files: tuple[str, ...]) -> Faces:
    """Those files, in their order, with labels that index `names`."""
    _require(names, faces.names, "identities")
    own: NDArray[np.intp] = np.flatnonzero(np.isin(faces.labels, [faces.names.index(name) for name in names]))
    row = {faces.files[i]: int(i) for i in own}
    _require(files, row, "pictures")
    part = faces.select([row[file] for file in files])
    label = {name: i for i, name in enumerate(names)}
    labels = np.array([label[faces.names[old]] for old in part.labels], np.int64)
    return Faces(part.images, labels, names, part.files)
