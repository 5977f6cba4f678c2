"""What a runner says of what it did not expect."""

import json
import os

import pytest

from worker import runner


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory"),
        (RuntimeError("std::bad_alloc"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("shapes do not match"), "internal_error"),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors_and_names_the_budget(
    monkeypatch, tmp_path, raised, code
):
    def fail(_order, _on_progress):
        raise raised

    monkeypatch.setitem(runner._TASKS, "compress", fail)
    recipe = {"steps": [], "budget": {"host_memory": 10**9}}
    reading, writing = os.pipe()
    runner.run(runner.Order(str(tmp_path), str(tmp_path), recipe, "cpu"), writing)
    os.close(writing)
    with os.fdopen(reading) as said:
        problem = json.loads(said.read().splitlines()[-1])["problem"]

    assert problem["code"] == code
    assert (problem.get("budget_bytes") == 10**9) == (code == "out_of_memory")
