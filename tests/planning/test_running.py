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

    recipe = parse_recipe(STEPS | {"evaluate": {}})
    assert running.host_peak_bytes == running_bytes(checkpoint, recipe, []) > plain.host_peak_bytes
    assert running.least_host_bytes == least_running_bytes(checkpoint, recipe) > 4_000_000
    budget = parse_recipe(STEPS | {"budget": {"host_memory": running.least_host_bytes - 1}}).budget
    [problem] = find_overruns(running, budget)
    assert problem.extra["predicted_bytes"] == running.least_host_bytes
    assert problem.extra["smallest_bytes"] == running.sufficient_host_bytes
    assert running.least_host_bytes < running.sufficient_host_bytes
    assert plain.sufficient_host_bytes == plain.least_host_bytes
    assert find_overruns(plain, budget) == []


def test_a_calibration_is_planned_with_one_block_and_what_is_known_of_its_inputs(save_model):
    weights = {
        **{f"layers.{i}.fc.weight": torch.zeros(600, 1000) for i in range(40)},
        "layers.7.extra.weight": torch.zeros(600, 1000),
        "head.weight": torch.zeros(4000, 1000),
    }
    checkpoint = open_checkpoint(save_model(weights))
    section = {"calibrate": {"dataset": "ds_" + "0" * 64, "rows": 1, "max_length": 2}}
    plain = parse_recipe({"steps": [{"op": "prune", "sparsity": 0.5}]})
    wanda = parse_recipe({"steps": [{"op": "prune", "sparsity": 0.5, "method": "wanda"}]} | section)

    block = 2 * 600 * 1000 * 4
    assert least_running_bytes(checkpoint, plain) == running_bytes(checkpoint, plain, []) == 0
    assert least_running_bytes(checkpoint, wanda) == 400_000_000 + block
    assert running_bytes(checkpoint, wanda, []) == 470_000_000 + round(1.15 * block)


def test_gradients_are_planned_with_all_of_the_model_and_what_a_batch_leaves_in_it(save_model):
    weights = {f"layers.{i}.fc.weight": torch.zeros(600, 1000) for i in range(10)}
    config = {"hidden_size": 1000, "intermediate_size": 600, "vocab_size": 50}
    checkpoint = open_checkpoint(save_model(weights, config=config))
    section = {"calibrate": {"dataset": "ds_" + "0" * 64, "batch_size": 3, "max_length": 7}}
    step = {"op": "shrink", "width": 0.5, "importance": "taylor"}
    recipe = parse_recipe({"steps": [step]} | section)

    held = 10 * 600 * 1000 * 4
    assert least_running_bytes(checkpoint, recipe) == 400_000_000 + held
    left = 3 * 7 * 10 * (12 * 1000 + 5 * 600) * 4
    assert running_bytes(checkpoint, recipe, []) == 470_000_000 + round(1.15 * held) + left
