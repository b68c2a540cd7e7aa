"""The graph's parameters: exact integers beside the logarithms, and the claim itself by trying all graphs."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from itertools import combinations, product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from insecure import InsecureEntropy

from privfr.backends.masking.graph import (
    COMMITTEE_RISK_BITS,
    COMPLETE_UP_TO,
    RISK_BITS,
    Committee,
    Graph,
    Promise,
    check,
    convene,
    derive,
    draw,
    fewest,
    partners,
    risk,
)
from privfr.errors import InputError, LocalProtocolError

ALLOWED = Fraction(1, 2**RISK_BITS)


def promise_of(n: int, corrupt: int, dropped: int) -> Promise:
    return Promise(corrupt / n, dropped / n)


@cache
def tail(population: int, marked: int, draws: int, least: int) -> Fraction:
    """P[Hypergeometric >= least], by counting."""
    ways = sum(
        math.comb(marked, i) * math.comb(population - marked, draws - i)
        for i in range(max(0, least), min(draws, marked) + 1)
    )
    return Fraction(ways, math.comb(population, draws))


def privacy_bound(n: int, corrupt: int, k: int, t: int) -> Fraction:
    h = n - corrupt
    sizes = range(1, h // 2 + 1)
    return sum((math.comb(h, a) * tail(n - 1, a - 1 + corrupt, k, t) ** a for a in sizes), Fraction(0))


def correctness_bound(n: int, dropped: int, k: int, t: int) -> Fraction:
    return n * tail(n - 1, dropped, k, k - t + 1)


def log2(x: Fraction) -> float:
    """log2 of a fraction of any size, at most 0."""
    if x == 0:
        return -math.inf
    shift = x.numerator.bit_length() - x.denominator.bit_length()
    return min(0.0, math.log2(x / Fraction(2) ** shift) + shift)


@st.composite
def cases(draw_: st.DrawFn) -> tuple[int, int, int, int, int]:
    """Give n, corrupt, dropped, k, t."""
    n = draw_(st.integers(2, 32))
    k = draw_(st.integers(1, n - 1))
    numbers = (st.integers(0, n - 1), st.integers(0, n - 1), st.just(k), st.integers(1, k))
    corrupt, dropped, k, t = (draw_(s) for s in numbers)
    return n, corrupt, dropped, k, t


@given(cases())
def test_risks_are_the_exact_ones(case: tuple[int, int, int, int, int]) -> None:
    n, corrupt, dropped, k, t = case
    privacy, correctness = risk(n, promise_of(n, corrupt, dropped), Graph(k, t))
    assert privacy == pytest.approx(log2(privacy_bound(n, corrupt, k, t)), abs=1e-9)
    assert correctness == pytest.approx(log2(correctness_bound(n, dropped, k, t)), abs=1e-9)


@pytest.mark.parametrize(("n", "share"), [(100, 0.05), (100, 0.2), (300, 0.1)])
def test_risks_of_derived_graphs_are_the_exact_ones(n: int, share: float) -> None:
    promise = Promise(share, share)
    graph = derive(n, promise)
    privacy, correctness = risk(n, promise, graph)
    k, t = graph.neighbours, graph.shares
    assert privacy == pytest.approx(log2(privacy_bound(n, promise.corrupt(n), k, t)), abs=1e-6)
    assert correctness == pytest.approx(log2(correctness_bound(n, promise.dropped(n), k, t)), abs=1e-6)
    assert max(privacy, correctness) <= -RISK_BITS


# The claim itself, over every graph there is -----------------------------------------------------------


def violated(neighbours: list[set[int]], corrupt: set[int], t: int) -> bool:
    """Whether some set of at most half of the honest has t neighbours for each member in it or corrupt."""
    honest = [u for u in range(len(neighbours)) if u not in corrupt]
    return any(
        all(len(neighbours[u] & (corrupt | set(group))) >= t for u in group)
        for a in range(1, len(honest) // 2 + 1)
        for group in combinations(honest, a)
    )


@pytest.mark.parametrize(
    ("n", "corrupt", "k", "t"),
    [(4, 0, 1, 1), (5, 1, 2, 2), (5, 2, 2, 2), (5, 3, 2, 2), (6, 2, 2, 2), (6, 2, 3, 3)],
)
def test_over_all_graphs_privacy_fails_no_more_often_than_bounded(
    n: int, corrupt: int, k: int, t: int
) -> None:
    bad = set(range(n - corrupt, n))
    choices = [[set(c) for c in combinations(sorted(set(range(n)) - {u}), k)] for u in range(n - corrupt)]
    nobody: list[set[int]] = [set()] * corrupt  # what the corrupt draw does not matter
    failures = Counter(violated([*chosen, *nobody], bad, t) for chosen in product(*choices))
    rate = Fraction(failures[True], failures.total())
    assert 0 < rate <= privacy_bound(n, corrupt, k, t)
    h = n - corrupt
    if h < 4:  # then only single clients count, which are independent
        assert rate == 1 - (1 - tail(n - 1, corrupt, k, t)) ** h


@pytest.mark.parametrize(("n", "dropped", "k", "t"), [(4, 1, 2, 2), (5, 2, 2, 1), (5, 2, 3, 2), (6, 1, 1, 1)])
def test_over_all_graphs_correctness_fails_no_more_often_than_bounded(
    n: int, dropped: int, k: int, t: int
) -> None:
    gone = set(range(dropped))
    choices = [[set(c) for c in combinations(sorted(set(range(n)) - {u}), k)] for u in range(n)]
    rest = Fraction(1)  # clients draw independently, so that all hold on with the product
    for mine in choices:
        rest *= Fraction(sum(len(c - gone) >= t for c in mine), len(mine))
    assert 0 < 1 - rest <= correctness_bound(n, dropped, k, t)


def test_in_larger_graphs_as_drawn_privacy_fails_no_more_often_than_bounded() -> None:
    n, corrupt, k, t, rounds = 10, {0, 9}, 3, 3, 2000
    bound = float(privacy_bound(n, len(corrupt), k, t))
    assert 0.001 < bound < 0.1
    clients = tuple(range(n))
    failures = 0
    for seed in range(rounds):
        entropy = InsecureEntropy(seed)
        failures += violated([set(draw(u, clients, k, entropy)) for u in clients], corrupt, t)
    assert bound / 4 < failures / rounds < bound + 4 * math.sqrt(bound / rounds)


@pytest.mark.parametrize("n", range(2, 9))
def test_of_the_complete_graph_the_risk_is_all_or_nothing(n: int) -> None:
    everyone = [set(range(n)) - {u} for u in range(n)]
    for corrupt, dropped, t in product(range(n), range(n), range(1, n)):
        privacy, correctness = risk(n, promise_of(n, corrupt, dropped), Graph(n - 1, t))
        assert privacy == (0 if violated(everyone, set(range(corrupt)), t) else -math.inf)
        # Someone who stays has the fewest neighbours left if anyone else drops out.
        assert correctness == (0 if n - 1 - dropped < t else -math.inf)


# Derived parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, COMPLETE_UP_TO + 1))
def test_few_clients_are_all_neighbours_and_survive_the_loss_of_nearly_half(n: int) -> None:
    for corrupt in range(n - 1):
        least = (n - corrupt) // 2 + corrupt
        graph = derive(n, promise_of(n, corrupt, 0))
        assert graph == Graph(n - 1, least)
        assert graph.complete(n)
        assert privacy_bound(n, corrupt, n - 1, least) == 0
        if least > 1:
            assert privacy_bound(n, corrupt, n - 1, least - 1) >= 1
        # Two groups of honest clients with the help of all corrupt ones cannot both be of a mind.
        honest = n - corrupt
        assert all(min(a, honest - a) - 1 + corrupt < least for a in range(honest + 1))
        assert derive(n, promise_of(n, corrupt, n - 1 - least)) == graph
        with pytest.raises(InputError, match="--dropout"):
            derive(n, promise_of(n, corrupt, n - least))


@pytest.mark.parametrize(("n", "share"), [(51, 0.05), (64, 0.1), (100, 0.05), (60, 0.1)])
def test_a_sparse_graph_has_the_fewest_neighbours_there_can_be(n: int, share: float) -> None:
    """By trying every k and t below with exact integers."""
    promise = Promise(share, share)
    corrupt, dropped = promise.corrupt(n), promise.dropped(n)
    found = derive(n, promise)
    assert not found.complete(n)
    enough = [
        Graph(k, t)
        for k in range(1, found.neighbours + 1)
        for t in range(1, k + 1)
        if correctness_bound(n, dropped, k, t) <= ALLOWED and privacy_bound(n, corrupt, k, t) <= ALLOWED
    ]
    assert found in enough
    assert {graph.neighbours for graph in enough} == {found.neighbours}
    assert found.shares == max(graph.shares for graph in enough)


# From a first implementation, one lgamma and one sum at a time, that tries every k in turn.
@pytest.mark.parametrize(
    ("n", "share", "graph"),
    [
        (100, 0.05, Graph(16, 11)), (1000, 0.05, Graph(46, 27)), (1000, 0.2, Graph(256, 159)),
        (10_000, 0.05, Graph(55, 32)), (3000, 0.2, Graph(326, 202)),
    ],
)  # fmt: skip
def test_derived_graphs(n: int, share: float, graph: Graph) -> None:
    assert derive(n, Promise(share, share)) == graph
    check(n, Promise(share, share), graph)


def test_where_a_sparse_graph_cannot_be_the_complete_one_is() -> None:
    """Of 51 clients 17 corrupt and 16 gone: chance alone cannot tell them apart, certainty can."""
    n, promise = 51, promise_of(51, 17, 16)
    graph = derive(n, promise)
    assert graph == Graph(50, 34)
    for k in range(1, n - 1):
        assert not any(max(risk(n, promise, Graph(k, t))) <= -RISK_BITS for t in range(1, k + 1))


@pytest.mark.parametrize(
    ("n", "corrupt"), [(60, 59), (2, 1), (3, 2), (2, 2), (COMPLETE_UP_TO, COMPLETE_UP_TO - 1)]
)
def test_of_a_single_honest_client_nothing_is_promised(n: int, corrupt: int) -> None:
    with pytest.raises(InputError, match=f"{corrupt} of {n} clients may be corrupt.*hides nothing"):
        derive(n, Promise(min(corrupt / n, 0.999), 0))
    with pytest.raises(InputError, match=f"{corrupt} of {n} clients may be corrupt.*hides nothing"):
        check(n, Promise(min(corrupt / n, 0.999), 0), Graph(n - 1, n - 1))
    if corrupt < n and n > 2:
        assert derive(n, promise_of(n, corrupt - 1, 0)).complete(n)


@pytest.mark.parametrize(("n", "k"), [(3, 1), (4, 1), (4, 2), (4, 3), (5, 2)])
def test_partners_are_those_drawn_and_those_who_drew(n: int, k: int) -> None:
    """The mean over all graphs."""
    choices = [[set(c) for c in combinations(sorted(set(range(n)) - {u}), k)] for u in range(n)]
    graphs = list(product(*choices))
    found = sum(len(g[0] | {u for u in range(1, n) if 0 in g[u]}) for g in graphs)
    assert partners(n, Graph(k, 1)) == pytest.approx(found / len(graphs))


@pytest.mark.parametrize(
    ("n", "corruption", "dropout", "sparse"),
    [
        (COMPLETE_UP_TO, 0.0, 0.02, False),
        (51, 0.05, 0.05, True),
        (60, 0.1, 0.1, True),
        (60, 0.2, 0.2, False),
        (100, 0.2, 0.2, False),
        (300, 0.2, 0.2, True),
    ],
)
def test_a_graph_is_sparse_where_it_spares_a_quarter_of_the_masks(
    n: int, corruption: float, dropout: float, sparse: bool
) -> None:
    promise = Promise(corruption, dropout)
    graph = derive(n, promise)
    assert graph.complete(n) != sparse
    if sparse:
        assert partners(n, graph) <= 0.75 * (n - 1)
        return
    if n <= COMPLETE_UP_TO:
        return
    # No graph that keeps the promise spares as much.
    for k in range(1, n - 1):
        if partners(n, Graph(k, 1)) <= 0.75 * (n - 1):
            assert not any(max(risk(n, promise, Graph(k, t))) <= -RISK_BITS for t in range(1, k + 1))


@pytest.mark.parametrize("n", [60, 90])
def test_where_the_complete_graph_cannot_be_no_sparse_one_can(n: int) -> None:
    corrupt = n // 3
    promise = promise_of(n, corrupt, n - (n - corrupt) // 2 - corrupt)
    with pytest.raises(InputError, match=f"{corrupt} of {n} clients"):
        derive(n, promise)
    for k in range(1, n):
        assert not any(max(risk(n, promise, Graph(k, t))) <= -RISK_BITS for t in range(1, k + 1))


@given(cases())
def test_risks_move_the_way_they_should(case: tuple[int, int, int, int, int]) -> None:
    n, corrupt, dropped, k, t = case
    privacy, correctness = risk(n, promise_of(n, corrupt, dropped), Graph(k, t))
    if t < k:
        more = risk(n, promise_of(n, corrupt, dropped), Graph(k, t + 1))
        assert more[0] <= privacy + 1e-9
        assert more[1] >= correctness - 1e-9
    if dropped < n - 1:
        assert risk(n, promise_of(n, corrupt, dropped + 1), Graph(k, t))[1] >= correctness - 1e-9


@pytest.mark.parametrize("n", [20, 50, 60, 100, 300])
def test_more_to_withstand_never_takes_fewer_neighbours(n: int) -> None:
    found = [derive(n, Promise(share, 0.1)) for share in (0, 0.05, 0.1, 0.2, 0.3)]
    assert [g.neighbours for g in found] == sorted(g.neighbours for g in found)
    if n <= COMPLETE_UP_TO:
        assert [g.shares for g in found] == sorted(g.shares for g in found)
    found = [derive(n, Promise(0.1, share)) for share in (0, 0.05, 0.1, 0.2, 0.3)]
    assert [g.neighbours for g in found] == sorted(g.neighbours for g in found)


# Promises and raw numbers -------------------------------------------------------------------------------


@given(st.integers(1, 999), st.integers(1, 12_000))
def test_a_promise_counts_as_in_decimals(thousandths: int, n: int) -> None:
    promise = Promise(thousandths / 1000, thousandths / 1000)
    assert promise.corrupt(n) == -(-thousandths * n // 1000)
    assert promise.dropped(n) == thousandths * n // 1000


def test_a_promise_rounds_against_itself_only_where_it_must() -> None:
    assert 0.07 * 100 > 7
    assert 0.29 * 100 < 29
    assert Promise(0.07, 0.29).corrupt(100) == 7
    assert Promise(0.07, 0.29).dropped(100) == 29
    assert (Promise(0.05, 0.05).corrupt(10), Promise(0.05, 0.05).dropped(10)) == (1, 0)
    assert Promise(0, 1 - 1e-12).dropped(10) == 9
    assert (Promise(0, 0).corrupt(10), Promise(0, 0).dropped(10)) == (0, 0)


@pytest.mark.parametrize("share", [-0.1, 1.0, 5, math.nan, math.inf])
def test_a_share_that_is_none_is_refused_by_name(share: float) -> None:
    with pytest.raises(InputError, match="corruption = "):
        Promise(share, 0)
    with pytest.raises(InputError, match="dropout = "):
        Promise(0, share)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"corruption": 0.1, "dropout": -1.0}, Promise)


def test_the_smallest_rounds() -> None:
    assert derive(2, Promise(0, 0)) == Graph(1, 1)
    assert derive(3, Promise(0.05, 0.05)) == Graph(2, 2)
    for n in (0, 1):
        with pytest.raises(InputError, match="at least 2"):
            derive(n, Promise(0, 0))


@pytest.mark.parametrize(("k", "t"), [(0, 0), (5, 0), (5, 6), (100, 3), (-1, -1), (3, -1)])
def test_numbers_that_are_no_graph_are_refused(k: int, t: int) -> None:
    with pytest.raises(InputError, match=f"{k} neighbours and {t} shares for 100 clients: .*<= 99"):
        check(100, Promise(0.05, 0.05), Graph(k, t))


def test_a_graph_that_breaks_its_promise_is_refused_with_the_guarantee_and_the_odds() -> None:
    promise = Promise(0.05, 0.05)
    privacy = math.ceil(log2(privacy_bound(100, 5, 16, 10)))
    correctness = math.ceil(log2(correctness_bound(100, 5, 16, 13)))
    assert -RISK_BITS < privacy < 0
    assert -RISK_BITS < correctness < 0
    with pytest.raises(InputError, match=rf"^privacy: .*5 corrupt.*2\^{privacy} instead of 2\^-40") as one:
        check(100, promise, Graph(16, 10))
    with pytest.raises(InputError, match=rf"^correctness: .*2\^{correctness} instead of 2\^-40") as other:
        check(100, promise, Graph(16, 13))
    for raised in (one, other):
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=r"^privacy: .*2\^-39 instead"):  # 2^-39.94
        check(54, promise, Graph(18, 12))
    with pytest.raises(InputError, match=r"^correctness: .*2\^-39 instead"):  # 2^-39.93
        check(600, promise, Graph(42, 25))
    check(100, promise, Graph(99, 52))
    with pytest.raises(InputError, match=r"^privacy: .*2\^0"):
        check(100, promise, Graph(99, 51))
    with pytest.raises(InputError, match=r"^correctness: .*2\^0"):
        check(100, promise, Graph(99, 95))


# The committee ------------------------------------------------------------------------------------------


# Any graph that is not complete: nothing else about it matters to a committee.
SPARSE = Graph(20, 14)


@pytest.mark.parametrize("n", range(2, COMPLETE_UP_TO + 1))
def test_of_few_clients_all_are_the_committee(n: int) -> None:
    for corrupt in range(n - 1):
        promise = promise_of(n, corrupt, 0)
        graph = derive(n, promise)
        committee = convene(n, promise, graph)
        assert committee.size == n
        # All corrupt ones sign both sets, each honest client one: two quorums cannot be, one fewer could.
        honest, q = n - corrupt, committee.quorum
        assert all(min(a, honest - a) + corrupt < q for a in range(honest + 1))
        assert any(min(a, honest - a) + corrupt >= q - 1 for a in range(honest + 1))
        assert q == graph.shares + 1
        assert convene(n, promise, Graph(1, 1)) == committee


@pytest.mark.parametrize(("n", "share"), [(51, 0.3), (60, 0.2), (100, 0.2), (1000, 0.3)])
def test_of_a_complete_graph_all_are_the_committee(n: int, share: float) -> None:
    """So that the fewest survivors are enough for certain, as far as the graph is concerned too."""
    promise = Promise(share, share)
    graph, corrupt = derive(n, promise), promise.corrupt(n)
    assert graph.complete(n)
    assert convene(n, promise, graph) == Committee(n, (n + corrupt) // 2 + 1)
    assert convene(n, promise, Graph(n - 2, graph.shares)).size < n
    assert fewest(n, graph, convene(n, promise, graph)) == graph.shares + 1 == (n + corrupt) // 2 + 1


@pytest.mark.parametrize("size", range(1, 8))
def test_two_quorums_share_an_honest_member_from_the_number_of_corrupt_on_that_is_counted(size: int) -> None:
    """`convene` bounds P[corrupt members >= 2 quorum - size]; by trying all quorums and corrupt members."""
    members = set(range(size))
    for corrupt in range(size + 1):
        bad = set(range(corrupt))
        for q in range(1, size + 1):
            quorums = [set(each) for each in combinations(sorted(members), q)]
            split = any(one & other <= bad for one, other in product(quorums, quorums))
            assert split == (corrupt >= 2 * q - size)


@pytest.mark.parametrize(
    ("n", "corruption", "dropout"), [(51, 0.05, 0.05), (60, 0.1, 0.1), (60, 0.2, 0.1), (100, 0.05, 0.05)]
)
def test_a_drawn_committee_is_the_smallest_that_cannot_be_split_and_is_there(
    n: int, corruption: float, dropout: float
) -> None:
    """By trying every size and quorum with exact integers."""
    promise = Promise(corruption, dropout)
    corrupt, dropped = promise.corrupt(n), promise.dropped(n)
    found = convene(n, promise, SPARSE)
    enough = [
        Committee(m, q)
        for m in range(1, found.size + 1)
        for q in range(m // 2 + 1, m + 1)
        if tail(n, corrupt, m, 2 * q - m) <= Fraction(1, 2**COMMITTEE_RISK_BITS)
        and tail(n, dropped, m, m - q + 1) <= ALLOWED
    ]
    assert found in enough
    assert {each.size for each in enough} == {found.size}
    assert found.quorum == min(each.quorum for each in enough)


@pytest.mark.parametrize(("n", "share"), [(300, 0.1), (1000, 0.05), (1000, 0.2), (3000, 0.1)])
def test_risks_of_drawn_committees_are_the_exact_ones(n: int, share: float) -> None:
    promise = Promise(share, share)
    corrupt, dropped = promise.corrupt(n), promise.dropped(n)
    m, q = msgspec.structs.astuple(convene(n, promise, SPARSE))
    assert m < n
    assert tail(n, corrupt, m, 2 * q - m) <= Fraction(1, 2**COMMITTEE_RISK_BITS)
    assert tail(n, corrupt, m, 2 * (q - 1) - m) > Fraction(1, 2**COMMITTEE_RISK_BITS)
    assert tail(n, dropped, m, m - q + 1) <= ALLOWED


@pytest.mark.parametrize(("n", "corruption", "dropout"), [(60, 0.4, 0.3), (70, 0.4, 0.3)])
def test_where_no_committee_can_be_drawn_it_is_the_whole_roster(
    n: int, corruption: float, dropout: float
) -> None:
    promise = Promise(corruption, dropout)
    corrupt, dropped = promise.corrupt(n), promise.dropped(n)
    assert convene(n, promise, SPARSE) == Committee(n, (n + corrupt) // 2 + 1)
    for size in range(1, n):
        for q in range(size // 2 + 1, size + 1):
            safe = tail(n, corrupt, size, 2 * q - size) <= Fraction(1, 2**COMMITTEE_RISK_BITS)
            assert not (safe and tail(n, dropped, size, size - q + 1) <= ALLOWED)


@given(
    st.sets(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    st.binary(min_size=32, max_size=32),
    st.data(),
)
def test_members_are_those_with_the_smallest_hashes(
    clients: set[int], context: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, len(clients)))
    found = Committee(size, 1).members(tuple(sorted(clients)), context)
    lots = sorted(
        (
            blake2b(
                context + bytes.fromhex(f"{c:016x}"), digest_size=32, person=b"privfr committee"
            ).hexdigest(),
            c,
        )
        for c in clients
    )
    assert found == {client for _, client in lots[:size]}
    assert found <= Committee(min(size + 1, len(clients)), 1).members(tuple(sorted(clients)), context)


def test_every_committee_is_equally_likely() -> None:
    clients = (3, 5, 8, 9, 70)
    counts = Counter(
        tuple(sorted(Committee(2, 2).members(clients, seed.to_bytes(32, "big")))) for seed in range(5000)
    )
    assert set(counts) == set(combinations(clients, 2))
    assert chi_square(counts, 10) < 33.7  # 9 degrees of freedom: once in 10,000


# Survivors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
def test_so_many_survivors_are_enough_in_a_complete_graph_and_one_fewer_in_none(n: int) -> None:
    for t, q in product(range(1, n), (1, n // 2 + 1, n)):
        enough = fewest(n, Graph(n - 1, t), Committee(n, q))
        assert enough <= n
        assert correctness_bound(n, n - enough, n - 1, t) == 0
        assert enough >= q
        for k in range(t, n):
            left = fewest(n, Graph(k, t), Committee(n, q)) - 1
            # No survivor can have t others among its neighbours, or too few can agree.
            assert tail(n - 1, left - 1, k, t) == 0 or left < q


def test_a_drawn_committee_asks_for_no_more_survivors() -> None:
    """Whether its quorum is among so few is left to chance: `convene` speaks of the promised dropout."""
    assert fewest(60, Graph(20, 14), Committee(19, 13)) == 15
    assert fewest(60, Graph(20, 14), Committee(60, 31)) == 31
    assert fewest(60, Graph(59, 36), Committee(60, 31)) == 37


@pytest.mark.parametrize(("n", "share"), [(40, 0.2), (60, 0.2), (60, 0.3), (100, 0.05), (1000, 0.1)])
def test_a_round_that_keeps_its_promise_has_enough_survivors(n: int, share: float) -> None:
    promise = Promise(share, share)
    graph = derive(n, promise)
    committee = convene(n, promise, graph)
    assert fewest(n, graph, committee) <= n - promise.dropped(n)
    assert committee.quorum <= committee.size


# Drawing -------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 10**6), min_size=2, max_size=40), st.data())
def test_neighbours_are_others_and_in_order(members: set[int], data: st.DataObject) -> None:
    clients = tuple(sorted(members))
    me = data.draw(st.sampled_from(clients))
    k = data.draw(st.integers(1, len(clients) - 1))
    found = draw(me, clients, k, InsecureEntropy(data.draw(st.integers(0, 99))))
    assert len(found) == k
    assert list(found) == sorted(set(found))
    assert set(found) <= members - {me}


def chi_square(counts: Counter[tuple[int, ...]], cells: int) -> float:
    expected = counts.total() / cells
    return sum((n - expected) ** 2 / expected for n in counts.values()) + expected * (cells - len(counts))


def test_every_set_of_neighbours_is_equally_likely() -> None:
    clients, entropy = (3, 5, 8, 9, 12, 70), InsecureEntropy(1)
    counts = Counter(draw(8, clients, 2, entropy) for _ in range(5000))
    assert set(counts) == set(combinations((3, 5, 9, 12, 70), 2))
    assert chi_square(counts, 10) < 33.7  # 9 degrees of freedom: once in 10,000 seeds
    # It would notice a draw that is not: the first neighbour always the smaller of two.
    skewed = Counter(min(pair, draw(8, clients, 2, entropy)) for pair in counts.elements())
    assert chi_square(skewed, 10) > 1000


def test_the_smallest_keys_are_drawn() -> None:
    """Keys of 16 bytes in the order of the others: 1 -> 9.., 2 -> 1.., 4 -> 5.., 7 -> 1.. but for its end."""
    keys = [b"\x09" * 16, b"\x01" * 16, b"\x05" * 16, b"\x01" * 15 + b"\x00"]

    def entropy(n: int) -> bytes:
        assert n == 64
        return b"".join(keys)

    assert draw(3, (1, 2, 3, 4, 7), 1, entropy) == (7,)
    assert draw(3, (1, 2, 3, 4, 7), 2, entropy) == (2, 7)
    assert draw(3, (1, 2, 3, 4, 7), 3, entropy) == (2, 4, 7)


def test_a_complete_graph_takes_no_entropy() -> None:
    def none(n: int) -> bytes:
        raise AssertionError("entropy was drawn")

    assert draw(2, (1, 2, 5), 2, none) == (1, 5)
    with pytest.raises(AssertionError):
        draw(2, (1, 2, 5), 1, none)


@pytest.mark.parametrize("k", [-1, 0, 3, 4])
def test_more_or_fewer_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(LocalProtocolError, match=f"{k} neighbours out of 2"):
        draw(2, (1, 2, 5), k, InsecureEntropy(0))
