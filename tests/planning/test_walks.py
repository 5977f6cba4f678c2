from dataclasses import replace

import pytest
import torch

from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from planning.forecast import forecast
from planning.memory_model import DEFAULT_LEVELS
from planning.running import refuse_unmeasured
from planning.walks import is_walked, walk_of, weight_bytes, whole_bytes

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 5000,
    "hidden_size": 100,
    "intermediate_size": 300,
}
LEVELS = replace(DEFAULT_LEVELS, inspection_bytes=0)
MB = 10**6


@pytest.fixture
def checkpoint(save_model):
    """A checkpoint of 20 blocks of 4 MB, and an embedding and a head of 2 MB."""
    weights = {
        "model.embed_tokens.weight": torch.zeros(5000, 100),
        **{f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(10_000, 100) for i in range(20)},
        "lm_head.weight": torch.zeros(5000, 100),
    }
    return open_checkpoint(save_model(weights, config=CONFIG))


def recipe_of(budget=None, **more):
    members = {"steps": [{"op": "quantize", "scheme": "w8a16"}], "evaluate": {}, **more}
    return parse_recipe(members | ({"budget": {"host_memory": budget}} if budget else {}))


def test_a_model_is_run_block_by_block_where_all_of_it_would_pass_the_budget(checkpoint):
    needed = whole_bytes(checkpoint)
    assert needed == 470 * MB + round(1.15 * 84 * MB)

    assert not is_walked(checkpoint, recipe_of())
    assert not is_walked(checkpoint, recipe_of(needed))
    assert is_walked(checkpoint, recipe_of(needed - 1))
    assert not is_walked(checkpoint, parse_recipe({"steps": [{"op": "prune", "sparsity": 0.5}]}))


def test_int8_in_plain_files_is_run_so_whatever_the_budget(checkpoint):
    assert is_walked(checkpoint, recipe_of(10**12, output={"format": "safetensors"}))


def test_the_least_is_the_libraries_and_a_block_or_a_head_that_is_larger(checkpoint):
    walk = walk_of(checkpoint, recipe_of(), recipe_of().evaluate)

    assert (walk.block_bytes, walk.mapped_bytes) == (4 * MB, 2 * MB)
    assert walk.least_bytes == (400 + 4) * MB
    assert replace(walk, mapped_bytes=5 * MB).least_bytes == (400 + 5) * MB
    assert replace(walk, mapped_bytes=5 * MB, is_wide=False).least_bytes == (400 + 4) * MB


def test_what_int8_outside_of_blocks_becomes_stays_in_memory(checkpoint):
    recipe = recipe_of(steps=[{"op": "quantize", "scheme": "w8a16", "embeddings": True}])

    assert walk_of(checkpoint, recipe, recipe.evaluate).made_bytes == 4 * MB


def test_the_dtype_that_the_config_says_is_what_weights_take(checkpoint):
    halved = replace(checkpoint, config=CONFIG | {"dtype": "bfloat16"})

    assert 2 * weight_bytes(halved) == weight_bytes(checkpoint)


def test_activations_of_all_rows_are_counted_as_far_as_there_is_room(checkpoint):
    few, many = recipe_of(evaluate={"rows": 1}), recipe_of(evaluate={"rows": 100_000})
    walks = [walk_of(checkpoint, recipe, recipe.evaluate) for recipe in (few, many)]
    budget = 700 * MB

    assert walks[0].peak_bytes(budget) < 650 * MB
    # Libraries may take 60 MB more than they do as a rule.
    assert walks[1].peak_bytes(budget) == budget - 60 * MB
    assert walks[1].room_bytes(400 * MB) == 0
    one = walks[0].rows_bytes
    assert one == 128 * (2 * 100 * 4 + 128)


def test_a_plan_tells_the_peak_within_the_budget_and_the_smallest_one(checkpoint):
    few = {"rows": 4, "batch_size": 1, "max_length": 16}
    plans = [
        forecast(checkpoint, recipe_of(budget, evaluate=few), LEVELS).prediction
        for budget in (None, 560 * MB)
    ]

    assert plans[0].host_peak_bytes == whole_bytes(checkpoint)
    assert plans[1].host_peak_bytes < 560 * MB
    assert {plan.least_host_bytes for plan in plans} == {404 * MB}


def test_a_gate_on_latency_is_refused_with_the_budget_that_it_takes(checkpoint):
    gated = {"gate": {"max_latency_ratio": 1.5}}
    needed = whole_bytes(checkpoint)
    refuse_unmeasured(checkpoint, recipe_of(needed, **gated), "")

    with pytest.raises(Problem, match=str(needed)) as caught:
        forecast(checkpoint, recipe_of(needed - 1, **gated), LEVELS, "/spec")

    assert caught.value.errors[0].pointer == "/spec/gate/max_latency_ratio"
