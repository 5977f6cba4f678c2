from dataclasses import replace

import torch

from jobs.checkpoint import open_checkpoint
from jobs.recipe import parse_recipe
from planning.memory_model import DEFAULT_LEVELS
from planning.plan import make_plan
from planning.prediction import find_overruns, predict
from planning.running import least_running_bytes, running_bytes

STEPS = {"steps": [{"op": "prune", "sparsity": 0.5}]}


def test_a_job_that_runs_its_model_is_planned_with_the_libraries_and_every_weight(save_model):
    checkpoint = open_checkpoint(save_model({"a.weight": torch.zeros(1000, 1000)}))

    levels = replace(DEFAULT_LEVELS, inspection_bytes=0)

    plain, running = (
        predict(make_plan(checkpoint, None, parse_recipe(STEPS | more)), levels)
        for more in ({}, {"evaluate": {}})
    )

    assert running.host_peak_bytes == running_bytes(checkpoint) > plain.host_peak_bytes
    assert running.least_host_bytes == least_running_bytes(checkpoint) > 4_000_000
    budget = parse_recipe(STEPS | {"budget": {"host_memory": running.least_host_bytes - 1}}).budget
    [problem] = find_overruns(running, budget)
    assert problem.extra["smallest_bytes"] == running.least_host_bytes
    assert find_overruns(plain, budget) == []
