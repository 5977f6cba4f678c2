"""Batch sizes against a memory that is known: a level, and so much for each cell."""

import pytest

from evaluation.batch_sizes import BatchSizer
from jobs.problems import Problem

MIB = 1024**2
LEVEL = 300 * MIB


def run(sizer, rows, length, cell_bytes):
    """Run rows of one length, and give the batches and their peaks."""
    seen, left = [], rows
    while left:
        count = sizer.rows_for(length, left)
        seen.append((count, LEVEL + cell_bytes * count * length))
        sizer.observe(count, length, seen[-1][1])
        left -= count
    return seen


def make(budget=None, rows=None, free=2**40):
    return BatchSizer(budget, rows, LEVEL, free)


@pytest.mark.parametrize("length", [1, 30, 512])
@pytest.mark.parametrize("cell_bytes", [1000, 100_000, 2_000_000])
def test_batches_grow_to_most_of_the_budget_and_never_pass_it(length, cell_bytes):
    budget = LEVEL + max(100 * MIB, 2 * cell_bytes * length)

    seen = run(make(budget), 20_000, length, cell_bytes)

    assert max(peak for _, peak in seen) <= budget
    largest = max(count for count, _ in seen)
    one_more = LEVEL + cell_bytes * (largest + max(1, largest // 7)) * length
    assert one_more > budget - 14 * MIB or largest in (256, 16_384 // length)


def test_a_fit_tells_what_a_cell_takes():
    sizer = make(LEVEL + 200 * MIB)

    run(sizer, 1000, 64, 40_000)

    assert sizer.fit.cell_bytes == pytest.approx(40_000)
    assert sizer.fit.base_bytes == pytest.approx(LEVEL)
    assert sizer.largest == max(probe.rows for probe in sizer.probes)


def run_one(sizer, cell_bytes=500_000):
    """Run more and more of one row."""
    for part in (25, 50, 100):
        sizer.require(1, part, in_the_end=100)
        sizer.observe(1, part, LEVEL + cell_bytes * part)


def test_the_smallest_budget_that_a_refusal_names_works():
    with pytest.raises(Problem) as caught:
        run_one(make(LEVEL + 40 * MIB))

    assert caught.value.code == "memory_budget_exceeded"
    run_one(make(caught.value.extra["smallest_bytes"]))


def test_a_batch_size_that_was_asked_for_is_reached_or_refused():
    reached = run(make(LEVEL + 100 * MIB, rows=24), 100, 10, 100_000)

    assert {count for count, _ in reached[3:-1]} == {24}
    with pytest.raises(Problem, match="A batch of 240 rows"):
        run(make(LEVEL + 100 * MIB, rows=240), 1000, 10, 100_000)


def test_without_a_budget_half_of_what_is_free_is_used_at_most():
    seen = run(make(free=100 * MIB), 1000, 10, 100_000)

    assert max(peak for _, peak in seen) <= LEVEL + 50 * MIB


def test_longer_rows_than_any_before_are_run_fewer_at_a_time():
    sizer = make(LEVEL + 100 * MIB)
    run(sizer, 2000, 10, 100_000)

    assert 1 <= sizer.rows_for(40, 1000) <= sizer.largest // 4
