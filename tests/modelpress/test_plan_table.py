import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from modelpress.plan_table import render_plan
from service.plan_documents import PlanDocument


@pytest.fixture
def plan():
    return json.loads((Path(__file__).parent / "plan.json").read_text())


def printed(plan) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False).print(render_plan(plan))
    return stream.getvalue()


def test_the_plan_of_these_tests_is_one_that_the_service_may_send(plan):
    assert PlanDocument.model_validate(plan).model_dump(mode="json") == plan


def test_a_plan_tells_whether_it_fits_and_what_each_step_costs(plan):
    lines = [" ".join(line.split()) for line in printed(plan).splitlines()]

    assert lines == [
        "budget fits",
        "smallest budget host_memory 96.00 MiB, disk 1.00 GiB",
        "peak memory 100.00 MiB",
        "an idle runner 80.00 MiB, buffers 2.00 MiB, 2 threads, chunks of 512.00 KiB",
        "artifact 1.00 GiB, compressed-tensors",
        "tensor files 1.00 GiB (50.0%)",
        "read, written 4.00 GiB, 1.00 GiB",
        "",
        "step tensors changed read written peak memory",
        "prune magnitude 155 2.00 GiB 0 B 100.00 MiB",
        "quantize w8a16 1,155 2.00 GiB 1.00 GiB 100.00 MiB",
    ]


def test_a_plan_tells_which_budget_is_too_small_and_what_is_not_certain(plan):
    plan |= {"fits": False, "overruns": ["host_memory", "disk"], "is_exact": False}
    plan["memory"]["inspection_bytes"] = 2**28

    text = printed(plan)

    assert "does not fit: host_memory, disk" in text
    assert "inspection 256.00 MiB" in text
    assert "planned by names and shapes" in text
