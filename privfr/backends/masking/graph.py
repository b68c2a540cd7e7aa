"""Who shares secrets and masks with whom: how many neighbours, how many shares, and who they are.

Each of n clients draws k neighbours (in the spirit of Bell et al. 2020, eprint 2020/704, but each client
draws from its own entropy, so that no server can choose for it); `shares` = t of its k neighbours can
open one of its secrets. A committee agrees on who survived, the same for all. Two things must hold, each
but for a probability of 2^-40 in a round:

privacy      There is no set A of honest clients, at most half of them, each of whose members has at least
             t of its k neighbours in A or among the c corrupt. (So fewer than t of anyone's neighbours
             are corrupt, and whose secrets can be opened is masked with honest survivors outside of A.)
             Union bound over A; draws of different clients are independent, h = n - c are honest:

                 sum over a = 1 .. floor(h/2) of  C(h, a) P[Hypergeometric(n-1, a-1+c, k) >= t]^a

correctness  With d clients dropped out, each client still has t of its k neighbours:

                 n P[Hypergeometric(n-1, d, k) > k-t]

Both take it that who is corrupt or drops out does not depend on what the others drew. Where everyone is
everyone's neighbour nothing is left to chance: each of the two holds always or not at all. Of a single
honest client nothing is promised, since the sum less what the corrupt ones gave is its update.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache
from hashlib import blake2b

import msgspec
import numpy as np
from numpy.typing import NDArray

from privfr.errors import InputError, LocalProtocolError
from privfr.protocol import ClientId, Entropy

__all__ = [
    "COMMITTEE_RISK_BITS",
    "COMPLETE_UP_TO",
    "RISK_BITS",
    "Committee",
    "Graph",
    "Promise",
    "check",
    "convene",
    "derive",
    "draw",
    "fewest",
    "partners",
    "risk",
]

# Either guarantee may fail with a probability of 2^-RISK_BITS a round (Bell et al. 2020, section 3.4).
RISK_BITS = 40

# That a committee can be split: its drawing may be tried again and again by whoever opens the round.
COMMITTEE_RISK_BITS = 128

# Up to here all are neighbours of all: a mask costs about a millisecond per million numbers, and the
# complete graph survives the loss of nearly half of the clients.
COMPLETE_UP_TO = 50

# Above, a sparse graph must spare a quarter of the masks to be worth its smaller tolerance.
_WORTH_IT = 0.75

# 0.07 * 100 is 7.000000000000001 in floating point, and 0.29 * 100 is 28.999999999999996.
_FUZZ = 1e-9

_KEY_BYTES = 16  # by which neighbours are drawn: two keys out of 10,000 are equal once in 2^102 draws

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Promise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a round withstands: the shares in [0, 1) of clients that collude with the server, or drop out.

    Raises `InputError` for other numbers.
    """

    corruption: float
    dropout: float

    def __post_init__(self) -> None:
        """Refuse shares outside of [0, 1)."""
        for name, share in (("corruption", self.corruption), ("dropout", self.dropout)):
            if not 0 <= share < 1:
                raise InputError(
                    f"{name} = {share} is not a share of the clients: give 0 or more and below 1"
                )

    def corrupt(self, clients: int) -> int:
        """Number of `clients` that may be corrupt, rounded up."""
        return math.ceil(self.corruption * clients - _FUZZ)

    def dropped(self, clients: int) -> int:
        """Number of `clients` that may drop out, rounded down."""
        return min(math.floor(self.dropout * clients + _FUZZ), clients - 1)


class Graph(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """neighbours: how many each client draws (k).  shares: how many of them open a secret of its own (t)."""

    neighbours: int
    shares: int

    def complete(self, clients: int) -> bool:
        """Whether everyone is everyone's neighbour."""
        return self.neighbours == clients - 1


class Committee(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Whose agreement on the survivors is asked for. size: members.  quorum: how many of them must agree."""

    size: int
    quorum: int

    def members(self, clients: tuple[ClientId, ...], context: bytes) -> frozenset[ClientId]:
        """Draw the members by hash, so that everybody draws the same: those with the smallest BLAKE2b."""

        def lot(client: ClientId) -> bytes:
            data = context + client.to_bytes(8, "big")
            return blake2b(data, digest_size=32, person=b"privfr committee").digest()

        return frozenset(sorted(clients, key=lot)[: self.size])


@lru_cache(maxsize=128)
def derive(clients: int, promise: Promise) -> Graph:
    """Give the graph that keeps the promise: complete for few clients, else with the fewest neighbours.

    Raises `InputError` where there is none.
    """
    if clients < 2:
        raise InputError(f"{clients} client cannot mask with anyone: at least 2 are needed")
    corrupt, dropped = promise.corrupt(clients), promise.dropped(clients)
    _check_honest(clients, promise)
    # Of a complete graph, the largest set A has floor(h/2) members, each with all the others in it.
    complete = Graph(clients - 1, (clients - corrupt) // 2 + corrupt)
    # Where this fails a sparse graph does too: t would lie below the number expected in A or corrupt.
    if complete.shares > clients - 1 - dropped:
        raise InputError(
            f"masking cannot do with {corrupt} of {clients} clients corrupt and {dropped} dropped out: "
            "lower --corruption or --dropout, or take more clients"
        )
    sparse = None if clients <= COMPLETE_UP_TO else _sparsest(clients, corrupt, dropped)
    return sparse if sparse and partners(clients, sparse) <= _WORTH_IT * (clients - 1) else complete


def _check_honest(clients: int, promise: Promise) -> None:
    corrupt = promise.corrupt(clients)
    if clients - corrupt < 2:
        raise InputError(
            f"{corrupt} of {clients} clients may be corrupt, and a sum hides nothing of the one left: "
            "take more clients, or --corruption 0 if all are honest"
        )


def partners(clients: int, graph: Graph) -> float:
    """Expected number of clients that one exchanges masks with: those it draws, and those who draw it."""
    k = graph.neighbours
    return 2 * k - k * k / (clients - 1)


@lru_cache(maxsize=128)
def convene(clients: int, promise: Promise, graph: Graph) -> Committee:
    """Give the smallest committee of which no two quorums can agree on different survivors.

    Of `size` members with c' corrupt, two quorums share an honest member, who agrees once, if
    2 quorum > size + c'. The server has a hand in the hash that draws the members and may try many times, so
    this may fail with a probability of 2^-128 only. A quorum is there with the promised dropout but for a
    probability of 2^-40. The whole roster needs no such luck: quorum = floor((n + c) / 2) + 1. It is taken
    for few clients and where the graph is complete, so that nothing is left to chance there.
    """
    corrupt, dropped = promise.corrupt(clients), promise.dropped(clients)
    drawn = clients > COMPLETE_UP_TO and not graph.complete(clients)
    for size in range(1, clients) if drawn else ():
        quorum = _safe_quorum(clients, corrupt, size)
        if quorum and _log2_tail(clients, dropped, size, size - quorum + 1) <= -RISK_BITS:
            return Committee(size, quorum)
    return Committee(clients, (clients + corrupt) // 2 + 1)


def _safe_quorum(clients: int, corrupt: int, size: int) -> int:
    """Give the smallest quorum of a drawn committee that cannot be split, 0 if there is none."""
    quorums = range(size // 2 + 1, size + 1)
    at = bisect_left(
        quorums, True, key=lambda q: _log2_tail(clients, corrupt, size, 2 * q - size) <= -COMMITTEE_RISK_BITS
    )
    return quorums[at] if at < len(quorums) else 0


def _log2_tail(population: int, marked: int, draws: int, least: int) -> float:
    return float(_log_tail(population, np.array([marked]), draws, least)[0]) / math.log(2)


def check(clients: int, promise: Promise, graph: Graph) -> None:
    """Raise `InputError` unless the graph keeps the promise, saying which guarantee fails and how often."""
    k, t = graph.neighbours, graph.shares
    if not 1 <= t <= k <= clients - 1:
        raise InputError(
            f"{k} neighbours and {t} shares for {clients} clients: take 1 <= shares <= neighbours <= "
            f"{clients - 1}, or leave them out and have them derived"
        )
    _check_honest(clients, promise)
    privacy, correctness = risk(clients, promise, graph)
    if privacy > -RISK_BITS:
        raise InputError(
            f"privacy: with {k} neighbours and {t} shares, {promise.corrupt(clients)} corrupt of {clients} "
            f"clients open an update {_instead(privacy)}: more shares, more neighbours or less --corruption"
        )
    if correctness > -RISK_BITS:
        raise InputError(
            f"correctness: with {k} neighbours and {t} shares, {promise.dropped(clients)} of {clients} gone "
            f"end a round {_instead(correctness)}: fewer shares, more neighbours or less --dropout"
        )


def risk(clients: int, promise: Promise, graph: Graph) -> tuple[float, float]:
    """Give log2 of the bounds on the probabilities that privacy and correctness fail in a round.

    From -inf (never) to 0 (the bound says nothing).
    """
    corrupt, dropped = promise.corrupt(clients), promise.dropped(clients)
    sizes = np.arange(1, (clients - corrupt) // 2 + 1)
    return _privacy(clients, corrupt, graph, sizes), _correctness(clients, dropped, graph)


def fewest(clients: int, graph: Graph, committee: Committee) -> int:
    """Give the fewest survivors with whom a round can end: each needs `shares` others, all need a quorum.

    In a complete graph so many are enough for certain; in a sparse one while no more clients drop out than
    the promise says, but for a probability of 2^-40.
    """
    return max(graph.shares + 1, committee.quorum if committee.size == clients else 0)


def draw(client: ClientId, clients: tuple[ClientId, ...], k: int, entropy: Entropy) -> tuple[ClientId, ...]:
    """Draw k neighbours of a client uniformly from the other clients, without replacement; ascending.

    All the others are drawn without entropy. Raises `LocalProtocolError` for a k that cannot be.
    """
    others = sorted(set(clients) - {client})
    if not 1 <= k <= len(others):
        raise LocalProtocolError(f"{k} neighbours out of {len(others)} other clients")
    if k == len(others):
        return tuple(others)
    # Those with the k smallest of independent random keys: every set of k is equally likely.
    drawn = entropy(_KEY_BYTES * len(others))
    keys = [drawn[at : at + _KEY_BYTES] for at in range(0, len(drawn), _KEY_BYTES)]
    return tuple(sorted(other for _, other in sorted(zip(keys, others, strict=True))[:k]))


def _instead(log2: float) -> str:
    """Word a probability that is too high; rounded up, so that it never reads as the one promised."""
    return f"with a probability of 2^{math.ceil(log2)} instead of 2^-{RISK_BITS}"


def _sparsest(clients: int, corrupt: int, dropped: int) -> Graph | None:
    """Find the incomplete graph with the fewest neighbours that keeps both guarantees.

    Not by bisection: t is a whole number, so that k may do where k + 1 does not.
    """
    sizes = np.arange(1, (clients - corrupt) // 2 + 1)
    # Terms of a sum of positive ones: where these alone are too many, so are all. It spares most of the work.
    some = sizes[np.unique(np.linspace(0, len(sizes) - 1, 16).astype(np.int64))]
    for k in range(1, clients - 1):
        # Privacy is the better and correctness the worse for every share more: take the most that can be.
        graph = Graph(k, _most_shares(clients, dropped, k))
        if graph.shares and all(_privacy(clients, corrupt, graph, a) <= -RISK_BITS for a in (some, sizes)):
            return graph
    return None


def _most_shares(clients: int, dropped: int, k: int) -> int:
    """Give the most shares of k that can be needed for correctness, 0 if there is no such number."""
    fits = range(k, 0, -1)
    at = bisect_left(fits, True, key=lambda t: _correctness(clients, dropped, Graph(k, t)) <= -RISK_BITS)
    return fits[at] if at < k else 0


def _privacy(clients: int, corrupt: int, graph: Graph, sizes: Ints) -> float:
    """Give log2 of the privacy bound, of its terms for sets A of the given sizes."""
    honest = clients - corrupt
    tails = _log_tail(clients - 1, sizes - 1 + corrupt, graph.neighbours, graph.shares)
    terms = _log_choose(np.array([honest]), sizes) + sizes * tails
    return min(0.0, float(np.logaddexp.reduce(terms)) / math.log(2))


def _correctness(clients: int, dropped: int, graph: Graph) -> float:
    """Give log2 of the correctness bound."""
    tail = _log_tail(clients - 1, np.array([dropped]), graph.neighbours, graph.neighbours - graph.shares + 1)
    return min(0.0, (math.log(clients) + float(tail[0])) / math.log(2))


def _log_tail(population: int, marked: Ints, draws: int, least: int) -> Floats:
    """Give ln P[Hypergeometric(population, marked, draws) >= least] for each of `marked`, shape (m,)."""
    rows, found = marked[:, None], np.arange(least, draws + 1)[None, :]
    ways = _log_choose(rows, found) + _log_choose(population - rows, draws - found)
    whole = _log_choose(np.array([population]), np.array([draws]))
    tail: Floats = np.minimum(np.logaddexp.reduce(ways, axis=1) - whole, 0.0)
    return tail


def _log_choose(n: Ints, k: Ints) -> Floats:
    """Give ln C(n, k) element by element, -inf where that is 0."""
    table = _log_factorials(int(n.max(initial=0)))
    inside = (k >= 0) & (k <= n)
    k = np.where(inside, k, 0)
    logs: Floats = np.where(inside, table[n] - table[k] - table[n - k], -np.inf)
    return logs


@lru_cache(maxsize=8)
def _log_factorials(most: int) -> Floats:
    """Give ln i! for i = 0 .. most."""
    return np.array([math.lgamma(i + 1) for i in range(most + 1)])
