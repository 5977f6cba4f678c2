from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.recipe import Budget, parse_recipe
from jobs.safetensors_header import TensorSpec
from planning.matrices import Matrix
from planning.memory_model import DEFAULT_LEVELS, Levels, MemoryModel, TensorCounts, levels_of
from planning.selection import Target

RECIPE = parse_recipe({"steps": [{"op": "quantize", "scheme": "w8a8"}]})
LEVELS = Levels(idle_bytes=10**8, inspection_bytes=0, threads=8, has_device=True)


def model_of(levels=LEVELS, *, scheme="w8a8", tensors=100, tried=0):
    matrix = Matrix.of(TensorSpec("a.weight", "BF16", (4096, 4096), 0), "Linear")
    target = Target(
        matrix, "a", "a", (), scheme, is_embedding=False, group_size=None, groups=(),
        whole_channels=True,
    )  # fmt: skip
    counts = TensorCounts(tensors, tensors, tensors, tried)
    return MemoryModel.of([target], RECIPE, levels, tensors=counts, chunk_bytes=2**19)


@given(budget=st.integers(0, 2 * 10**8))
def test_a_budget_from_the_least_on_is_kept_and_a_smaller_one_gets_the_smallest_buffers(budget):
    model = model_of()

    found = model.fit(Budget.model_construct(host_memory=budget))

    if budget >= model.least_bytes:
        assert model.peak_bytes(found) <= budget
    else:
        assert (found.threads, found.chunk_bytes) == (1, 16 * 1024)


def test_more_memory_never_gets_smaller_buffers_and_enough_gets_all_that_is_wanted():
    model = model_of()

    budgets = range(model.least_bytes, model.least_bytes + 2**26, 2**20)
    sizes = [model.fit(Budget(host_memory=budget)).nbytes for budget in budgets]

    assert sizes == sorted(sizes)
    assert model.fit(Budget()) == model.fit(Budget(host_memory=10**12))
    assert (model.fit(Budget()).threads, model.fit(Budget()).chunk_bytes) == (8, 2**19)


def test_a_budget_of_device_memory_is_kept_by_fewer_threads_and_smaller_chunks():
    model = model_of()

    found = model.fit(Budget(device_memory=model.least_device_bytes + 2**25))

    assert model.device_bytes(found) <= model.least_device_bytes + 2**25
    assert found.threads < 8
    assert model.fit(Budget(device_memory=model.least_device_bytes)).threads == 1


def test_nothing_is_held_on_a_device_that_is_not_there_or_has_nothing_to_round():
    absent, idle = model_of(replace(LEVELS, has_device=False)), model_of(scheme=None)

    assert (absent.least_device_bytes, absent.device_bytes(absent.fit(Budget()))) == (None, None)
    assert (idle.least_device_bytes, idle.device_bytes(idle.fit(Budget()))) == (0, 0)


def test_the_larger_of_the_work_and_the_inspection_before_it_counts():
    small, large = (model_of(replace(LEVELS, inspection_bytes=n)) for n in (10**6, 4 * 10**8))
    over = model_of(replace(LEVELS, inspection_bytes=4 * 10**8, is_inspected=True))

    assert small.peak_bytes(small.fit(Budget())) == model_of().peak_bytes(model_of().fit(Budget()))
    assert large.peak_bytes(large.fit(Budget())) == 5 * 10**8
    # What is still to come may take a little more than it took the last time.
    assert large.least_bytes > over.least_bytes == 5 * 10**8


def test_memory_grows_with_the_number_of_tensors_alone():
    few, many = model_of(tensors=100), model_of(tensors=10_100)

    grown = many.peak_bytes(many.fit(Budget())) - few.peak_bytes(few.fit(Budget()))

    assert grown == pytest.approx(10_000 * 5000, rel=0.1)


def test_what_is_rounded_on_trial_first_takes_a_little_more_for_each():
    none, all_of_them = model_of(tensors=10_000), model_of(tensors=10_000, tried=10_000)

    more = all_of_them.peak_bytes(all_of_them.fit(Budget())) - none.peak_bytes(none.fit(Budget()))

    assert more == 10_000 * 2048


def test_what_no_worker_measured_is_taken_from_the_defaults():
    assert levels_of({}) == DEFAULT_LEVELS
    assert levels_of({"threads": 3, "unheard_of": 7}) == replace(DEFAULT_LEVELS, threads=3)
