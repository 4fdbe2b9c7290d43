"""The minimum cut against an exhaustive search."""

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from export.hoist.cut import Crossing, CutProblem, Shared, cost_of_cut, largest_legal, minimum_cut


@st.composite
def problems(draw: st.DrawFn) -> CutProblem:
    count = draw(st.integers(1, 6))
    costs = st.integers(0, 5)
    crossings = []
    for _ in range(draw(st.integers(0, 7))):
        producer = draw(st.none() | st.integers(0, count - 1))
        behind = range(0 if producer is None else producer + 1, count)
        readers = draw(st.lists(st.sampled_from(behind), unique=True)) if behind else []
        crossings.append(Crossing(producer, tuple(readers), draw(st.none() | costs), draw(st.booleans())))
    users = st.lists(st.integers(0, count - 1), unique=True, min_size=1).map(tuple)
    return CutProblem(
        stay=tuple(draw(st.lists(costs, min_size=count, max_size=count))),
        pinned=frozenset(draw(st.sets(st.integers(0, count - 1), max_size=2))),
        crossings=tuple(crossings),
        shared=tuple(draw(st.lists(st.builds(Shared, users, costs), max_size=2))),
    )


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_cut_is_legal_and_none_is_cheaper(problem: CutProblem) -> None:
    nodes = range(len(problem.stay))
    subsets = [frozenset(s) for size in range(len(nodes) + 1) for s in combinations(nodes, size)]
    costs = {s: cost for s in subsets if (cost := cost_of_cut(problem, s)) is not None}
    found = minimum_cut(problem)
    if found is None:
        assert not costs
        return
    assert costs[found] == min(costs.values())
    largest = largest_legal(problem)
    assert all(s <= largest for s in costs)
    assert largest in costs or frozenset() not in costs
    assert len(found) == max(len(s) for s, cost in costs.items() if cost == costs[found])  # the fewest stay


def test_a_value_with_many_readers_crosses_once() -> None:
    crossing = Crossing(producer=0, readers=(1, 2, 3), cost=10)
    problem = CutProblem((15, 0, 0, 0), frozenset((1, 2, 3)), (crossing,))
    assert minimum_cut(problem) == {0}
    assert cost_of_cut(problem, {0}) == 10


def test_a_weight_that_the_rest_needs_anyway_is_not_saved_twice() -> None:
    problem = CutProblem((0, 0), frozenset((1,)), (Crossing(0, (1,), 5),), (Shared((0, 1), 100),))
    assert cost_of_cut(problem, {0}) == 105
    assert minimum_cut(problem) == frozenset()


def test_what_must_leave_and_must_stay_has_no_cut() -> None:
    problem = CutProblem((None,), frozenset((0,)), ())
    assert minimum_cut(problem) is None
    assert cost_of_cut(problem, ()) is None
    assert cost_of_cut(problem, {0}) is None
