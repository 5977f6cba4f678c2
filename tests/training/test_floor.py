"""A budget in which not one row fits names one in which it does; each in a process of its own."""

import json
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import save_file

from jobs.checkpoint import open_checkpoint
from jobs.recipe import Budget, Recipe
from planning.running import least_running_bytes, sufficient_running_bytes
from planning.walks import LIBRARY_BYTES, MORE_LIBRARY_BYTES
from tests.training.conftest import finetune_step

CHILD = """
import json, sys, tempfile
from pathlib import Path
from jobs.problems import Problem
from jobs.recipe import Budget, Recipe
from tests.training.conftest import finetune_step
from evaluation.resident import level_bytes
import training.folders
from training.course import Watcher
from training.running import Place, finetune

folder, dataset, budget, above = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
budget = budget or level_bytes() + above
step = finetune_step(batch_size=8, max_length=512, steps=2)
recipe = Recipe.model_construct(steps=(step,), budget=Budget(host_memory=budget))
with tempfile.TemporaryDirectory() as name:
    work = Path(name)
    place = Place(Path(folder), Path(folder), Path(dataset), work / "out", work / "scratch", "cpu")
    try:
        found = finetune(place, recipe, Watcher(lambda _told: None))
        said = {"peak": found.resident_peak_bytes, "savings": found.savings,
                "rows": found.micro_batch_size, "budget": budget}
    except Problem as problem:
        said = {"code": problem.code, "budget": budget, **problem.extra}
print(json.dumps(said))
"""


@pytest.fixture
def materials(tmp_path):
    """Write a model whose logits take more than its weights, and rows of the same length."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16384, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    save_file({"input_ids": torch.randint(16384, (16, 512))}, tmp_path / "rows")
    return tmp_path / "model", tmp_path / "rows"


def train(materials, budget=0, above=0):
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, materials), str(budget), str(above)],
        capture_output=True, text=True, check=True, timeout=150,
    )  # fmt: skip
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_budget_that_is_too_small_is_refused_with_one_that_works(materials):
    refused = train(materials, above=90 * 10**6)
    assert refused["code"] == "memory_budget_exceeded"
    assert refused["smallest_bytes"] > refused["budget"]

    kept = train(materials, budget=refused["smallest_bytes"])

    assert kept["peak"] <= kept["budget"]
    assert kept["peak"] > 0.75 * kept["budget"]


@pytest.mark.slow
def test_a_budget_in_which_not_even_the_weights_fit_is_refused_with_one_that_works(materials):
    refused = train(materials, above=1)
    assert refused["code"] == "memory_budget_exceeded"
    assert refused["smallest_bytes"] > refused["budget"]

    kept = train(materials, budget=refused["smallest_bytes"])

    assert 0 < kept["peak"] <= kept["budget"]


@pytest.mark.slow
def test_the_budget_that_a_plan_names_works(materials):
    checkpoint = open_checkpoint(materials[0])
    step = finetune_step(batch_size=8, max_length=512, steps=2)
    recipe = Recipe.model_construct(steps=(step,), budget=Budget())

    named = sufficient_running_bytes(checkpoint, recipe, [])

    assert named > least_running_bytes(checkpoint, recipe)
    # What a test's process has imported is not what a runner has: the room beside it is the same.
    kept = train(materials, above=named - LIBRARY_BYTES - MORE_LIBRARY_BYTES)
    assert 0 < kept.get("peak", 0) <= kept["budget"], kept
