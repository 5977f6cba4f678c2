"""The choice of what stays float, against exhaustive search and by its invariants."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from planning.sensitivity import Unit, keep_float, units_of

units = st.lists(
    st.builds(
        lambda error, size: (error, size),
        st.floats(0, 1, allow_subnormal=False),
        st.integers(1, 50),
    ),
    max_size=9,
).map(
    lambda pairs: [
        Unit((f"layer.{i}.weight",), error, size) for i, (error, size) in enumerate(pairs)
    ]
)


def total(chosen):
    return sum(unit.saved_bytes for unit in chosen)


@given(units, st.integers(0, 300))
def test_the_room_is_kept_and_no_unit_that_would_fit_is_left_out(units, room):
    chosen = keep_float(units, room)
    left = [unit for unit in units if unit not in chosen]

    assert total(chosen) <= room
    assert len(set(chosen)) == len(chosen)
    assert all(unit.saved_bytes > room - total(chosen) for unit in left)


@given(units, st.integers(0, 300))
def test_no_single_exchange_comes_nearer_to_the_room(units, room):
    chosen = keep_float(units, room)
    left = [unit for unit in units if unit not in chosen]
    gap = room - total(chosen)

    assert not any(0 < i.saved_bytes - o.saved_bytes <= gap for o in chosen for i in left)


@given(units, st.integers(0, 300))
def test_of_few_sizes_no_exchange_of_three_for_three_comes_nearer_to_the_room(units, room):
    chosen = keep_float(units, room)
    left = [unit for unit in units if unit not in chosen]
    gap = room - total(chosen)
    sums = {total(into) for n in (1, 2, 3) for into in combinations(left, n)}

    for out in (out for n in (1, 2, 3) for out in combinations(chosen, n)):
        assert not any(0 < n - total(out) <= gap for n in sums)


@given(units, st.integers(0, 300))
def test_the_order_of_the_units_does_not_matter(units, room):
    assert set(keep_float(units, room)) == set(keep_float(units[::-1], room))


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=7), st.integers(0, 7))
def test_of_units_of_one_size_the_most_sensitive_are_chosen(errors, count):
    units = [Unit((f"{i:02}",), error, 10) for i, error in enumerate(errors)]

    chosen = keep_float(units, 10 * count)

    subsets = combinations(units, min(count, len(units)))
    most = max(sum(unit.relative_squared_error for unit in subset) for subset in subsets)
    assert sum(unit.relative_squared_error for unit in chosen) >= most - 1e-12


@given(units, st.integers(0, 300), st.integers(0, 300))
def test_slack_saves_exchanges_and_never_passes_the_room(units, room, slack):
    greedy, chosen = keep_float(units, room, room), keep_float(units, room, slack)

    assert total(greedy) <= total(chosen) <= room
    assert set(greedy) == set(chosen) or room - total(greedy) > slack


def test_a_hundred_thousand_units_take_no_time():
    units = [Unit((f"{i:06}",), (i * 7919) % 1000 / 1000, 1000 + i % 5) for i in range(100_000)]

    chosen = keep_float(units, 33_333_333)

    assert 33_333_333 - total(chosen) <= 1


def test_a_group_is_one_unit_and_what_saves_nothing_is_none():
    errors = {"q": 0.1, "k": 0.2, "v": 0.3, "bias": 0.5}
    saved = {"q": 30, "k": 20, "v": 10, "bias": 0}

    units = units_of([("q", "k", "v"), ("bias",)], errors, saved)

    assert units == [Unit(("q", "k", "v"), 0.1 + 0.2 + 0.3, 60)]
