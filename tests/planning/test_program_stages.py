"""What is planned and refused of recipes that train a program, tried on what torch exported."""

import pytest
import torch
from torch import nn

from jobs.problems import Problem
from jobs.program import open_program
from jobs.recipe import parse_recipe
from planning.memory_model import Levels
from planning.program_prediction import predict_stages
from planning.program_stages import plan_program_stages
from planning.program_training_memory import activation_bytes, held_bytes
from programs.pipeline import compress_program
from tests.programs.conftest import export, store, store_kind

DATASET = f"ds_{'0' * 64}"
TRAIN = {"op": "finetune", "dataset": DATASET, "steps": 10}
SHRINK = {"op": "shrink", "width": 0.5}
PRUNE = {"op": "prune", "sparsity": 0.5}
ROUND = {"op": "quantize", "scheme": "w8a8"}
LEVELS = Levels(100_000_000, 0, 1)


def plan(folder, *steps, **more):
    recipe = parse_recipe({"steps": list(steps), **more})
    return plan_program_stages(open_program(folder / "model.pt2"), recipe, "/spec")


@pytest.fixture
def stored(tmp_path):
    """Give a function that exports a model and stores the program."""

    def make(model, inputs, **options):
        return store(export(model, inputs, **options), tmp_path / "model")

    return make


@pytest.mark.parametrize("kind", ["residual", "pooled"])
def test_each_stage_is_planned_of_what_the_one_before_it_makes(tmp_path, kind):
    folder, _ = store_kind(tmp_path, kind)
    stages = plan(folder, SHRINK, PRUNE, TRAIN, ROUND)

    model, made = folder, []
    for number in (0, 2):
        out = tmp_path / f"stage-{number}"
        out.mkdir()
        compress_program(model, out, stages.plans[number].recipe, on_progress=lambda _: None)
        made.append((out / "model.pt2").stat().st_size)
        model = out

    assert [one.artifact_bytes for one in stages.plans] == [made[0], made[0], made[1]]
    predicted = predict_stages(stages, LEVELS)
    assert [step.op for step in predicted.steps] == ["shrink", "prune", "finetune", "quantize"]
    assert predicted.artifact_bytes == made[1] == stages.artifact_bytes
    size = (folder / "model.pt2").stat().st_size
    assert [step.bytes_read for step in predicted.steps] == [0, size, made[0], made[0]]
    assert [step.bytes_written for step in predicted.steps] == [0, made[0], made[0], made[1]]


def test_memory_grows_with_rows_and_states(tmp_path):
    folder, model = store_kind(tmp_path, "residual", dtype=torch.bfloat16)
    program = open_program(folder / "model.pt2")
    [step] = parse_recipe({"steps": [TRAIN]}).steps
    weights = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())

    assert held_bytes(program, step, "adamw") == 16 * weights + 4 * buffers + 4 * 2
    assert held_bytes(program, step, "adamw8bit") == 10 * weights + 4 * buffers + 4 * 2
    made = [8 * 8 * 16] * 8 + [24 * 3 * 3] * 2 + [5]
    assert activation_bytes(program, 1) == 4 * sum(made)
    assert activation_bytes(program, 7) == 7 * activation_bytes(program, 1)


def test_a_calibration_is_planned_with_the_largest_of_what_its_rows_make(tmp_path):
    folder, _ = store_kind(tmp_path, "residual")
    wanda = PRUNE | {"method": "wanda"}
    section = {"dataset": DATASET, "batch_size": 4000}

    few, many = (
        predict_stages(plan(folder, SHRINK, wanda, calibrate=one), LEVELS)
        for one in (section | {"batch_size": 1}, section)
    )

    assert [step.method for step in many.steps] == ["magnitude", "wanda"]
    # An image of 8 channels of 8 by 8 once half of 16 are gone; four are held.
    assert many.host_peak_bytes - few.host_peak_bytes == 4 * 3999 * 4 * 8 * 8 * 8
    assert few.host_peak_bytes > predict_stages(plan(folder, SHRINK, PRUNE), LEVELS).host_peak_bytes


def test_a_budget_that_weights_gradients_and_states_pass_is_too_small(tmp_path):
    folder, _ = store_kind(tmp_path, "pooled")
    predicted = predict_stages(plan(folder, PRUNE, TRAIN), LEVELS)

    assert predicted.least_host_bytes < predicted.host_peak_bytes
    fitted = predict_stages(plan(folder, PRUNE, TRAIN, budget={"host_memory": "400MiB"}), LEVELS)
    assert fitted.steps[-1].host_peak_bytes >= fitted.host_peak_bytes


def test_what_is_made_on_the_way_may_be_larger_than_the_artifact(tmp_path):
    folder, _ = store_kind(tmp_path, "pooled")
    stages = plan(folder, PRUNE, TRAIN, ROUND, budget={"disk": "1GiB", "host_memory": "2GiB"})

    budgets = [one.recipe.budget for one in stages.plans]
    assert [budget.disk for budget in budgets] == [None, None, 2**30]
    assert {budget.host_memory for budget in budgets} == {2 * 2**30}


REFUSED = {
    "next tokens": ({"objective": "causal_lm"}, ["/objective"], "says nothing of tokens"),
    "hidden tokens": ({"objective": "masked_lm"}, ["/objective"], "says nothing of tokens"),
    "bfloat16": ({"bf16": True}, ["/bf16"], "Leave bf16 out"),
    "adapters": ({"method": "lora", "lora": {}}, ["/method"], "Adapters stand beside modules"),
    "adapters to save memory": (
        {"savings": ["adamw8bit", "lora"]}, ["/savings/1"], "Adapters stand beside modules",
    ),
    "both": (
        {"method": "lora", "objective": "causal_lm"}, ["/objective", "/method"], "Adapters",
    ),
}  # fmt: skip


def test_training_for_a_rounding_holds_the_rounded_weights_once_more(tmp_path):
    folder, _ = store_kind(tmp_path, "pooled")

    plain, aware = (
        predict_stages(
            plan(folder, TRAIN | {"quantize_aware": is_aware}, ROUND | {"scheme": "w8a16"}), LEVELS
        )
        for is_aware in (None, True)
    )

    rounded = 12 * 2 * 3 + 8 * 12 * 3 + 20 * 8 + 3 * 20
    difference = aware.steps[0].host_peak_bytes - plain.steps[0].host_peak_bytes
    assert difference == 4 * rounded


def test_training_for_rounded_activations_is_refused_by_its_place(tmp_path):
    folder, _ = store_kind(tmp_path, "pooled")

    with pytest.raises(Problem, match="Choose scheme w8a16") as caught:
        plan(folder, TRAIN | {"quantize_aware": True}, ROUND)

    assert caught.value.code == "step_unsupported"
    assert [one.pointer for one in caught.value.errors] == ["/spec/steps/0/quantize_aware"]


@pytest.mark.parametrize(("choice", "places", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_programs_are_not_trained_by_is_refused_by_its_place(tmp_path, choice, places, told):
    folder, _ = store_kind(tmp_path, "pooled")

    with pytest.raises(Problem, match=told) as caught:
        plan(folder, PRUNE, {**TRAIN, **choice}, ROUND)

    assert caught.value.code == "step_unsupported"
    assert [one.pointer for one in caught.value.errors] == [f"/spec/steps/1{p}" for p in places]


class Counting(nn.Module):
    """Changes a buffer of its own each time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))

    def forward(self, x):
        self.seen.add_(x.sum(0))
        return self.linear(x + self.seen)


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x).argmax(1)


def frozen():
    return nn.Linear(6, 3).requires_grad_(False)


def normed(**options):
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, **options), nn.Linear(8, 3))


UNTRAINABLE = {
    "statistics of a batch": (normed().train, "finetune_unsupported", "statistics of its batch"),
    "no statistics": (
        normed(track_running_stats=False).eval, "finetune_unsupported", "statistics of its batch",
    ),
    "a state": (Counting().eval, "finetune_unsupported", "changes its tensor 'seen'"),
    "whole numbers": (Choosing().eval, "finetune_unsupported", "gives no float tensor"),
    "nothing that took gradients": (frozen().eval, "nothing_changed", "would train no parameter"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "code", "told"), UNTRAINABLE.values(), ids=UNTRAINABLE.keys())
def test_a_program_that_cannot_be_trained_is_refused_with_the_reason(stored, make, code, told):
    folder = stored(make(), torch.zeros(4, 6))

    with pytest.raises(Problem, match=told) as caught:
        plan(folder, TRAIN)

    assert caught.value.code == code
    assert [one.pointer for one in caught.value.errors] == ["/spec/steps/0"]


@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "decomposed"])
def test_normalizations_of_each_row_by_itself_are_trained(stored, decomposed):
    layers = [nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4), nn.GroupNorm(2, 4), nn.LayerNorm(6)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 3)).train()

    stages = plan(stored(model, torch.zeros(2, 2, 8), decomposed=decomposed), TRAIN)

    assert predict_stages(stages, LEVELS).steps[0].tensors_changed == 8


def test_a_choice_needs_an_answer_for_each_row(tmp_path):
    folder, _ = store_kind(tmp_path, "tied")

    with pytest.raises(Problem, match=r"the program gives \['any', 5, 30\]") as caught:
        plan(folder, {**TRAIN, "objective": "classification"})

    assert caught.value.code == "finetune_unsupported"
    assert [one.pointer for one in caught.value.errors] == ["/spec/steps/0/objective"]


def test_an_int8_program_is_not_trained(tmp_path):
    folder, _ = store_kind(tmp_path, "pooled")
    out = tmp_path / "int8"
    out.mkdir()
    compress_program(folder, out, parse_recipe({"steps": [ROUND]}), on_progress=lambda _: None)

    with pytest.raises(Problem) as caught:
        plan(out, TRAIN)

    assert caught.value.code == "already_quantized"
