"""What stays float for a size or an error, from headers and given errors alone."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.checkpoint import Shard, assemble
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from jobs.safetensors_header import check_members
from planning.aims import predicted_bytes, refuse_target, settle
from planning.architectures import known_kinds
from planning.module_kinds import ModuleKinds
from planning.plan import make_plan

PROJECTIONS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (172, 64),
    "mlp.up_proj": (172, 64),
    "mlp.down_proj": (64, 172),
}


def checkpoint_of(shapes, config=None):
    members, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        members[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return assemble((Shard("model.safetensors", check_members(members)),), config, {}, Path())


def llama(layers):
    shapes = {"model.embed_tokens.weight": [128, 64], "lm_head.weight": [128, 64]}
    for layer in range(layers):
        for name, shape in PROJECTIONS.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = list(shape)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
    }
    return checkpoint_of(shapes, config)


def planned(checkpoint, *, kinds=None, prune=(), output="auto", **step):
    quantize = {"op": "quantize", "scheme": "w8a16", **step}
    recipe = parse_recipe({"steps": [*prune, quantize], "output": {"format": output}})
    kinds = kinds or (known_kinds(checkpoint) if checkpoint.config else None)
    return make_plan(checkpoint, kinds, recipe), kinds


def quantized(plan):
    return {target.name for target in plan.selection.targets.values() if target.scheme}


def reasons(plan):
    return {skip.name: skip.reason for skip in plan.selection.skipped}


def refused(plan, kinds, errors):
    with pytest.raises(Problem) as caught:
        settle(plan, kinds, errors)
    return caught.value


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    errors=st.lists(st.floats(1e-4, 0.5), min_size=84, max_size=84),
    part=st.floats(0.1, 0.9),
    output=st.sampled_from(["compressed-tensors", "safetensors"]),
)
def test_a_target_is_never_passed_and_nearly_all_of_it_is_used(errors, part, output):
    checkpoint = llama(12)
    whole, kinds = planned(checkpoint, output=output)
    names = sorted(quantized(whole))
    room = predicted_bytes(planned(checkpoint, output=output, target_bytes=10**9)[0])
    target = whole.artifact_bytes + int(part * (room - whole.artifact_bytes))
    plan, _ = planned(checkpoint, output=output, target_bytes=target)

    settled = settle(plan, kinds, dict(zip(names, errors, strict=True))).plan

    assert settled.artifact_bytes <= target
    assert settled.artifact_bytes >= 0.995 * target
    for unit in whole.selection.units:
        assert len({name in quantized(settled) for name in unit}) == 1


def test_fused_weights_are_one_unit_and_in_plain_safetensors_each_is_its_own():
    fused, _ = planned(llama(1))
    plain, _ = planned(llama(1), output="safetensors")

    names = [[name.split(".")[-2] for name in unit] for unit in fused.selection.units]
    assert names == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert [len(unit) for unit in plain.selection.units] == [1] * 7


def test_the_experts_of_a_layer_stay_together():
    experts = [
        f"layers.{layer}.mlp.experts.{i}.w{w}" for layer in "01" for i in "012" for w in "12"
    ]
    modules = [*experts, "layers.0.mlp.shared_experts.w1"]
    checkpoint = checkpoint_of({f"{module}.weight": [16, 16] for module in modules}, {})
    kinds = ModuleKinds(dict.fromkeys(modules, "Linear"))

    plan, _ = planned(checkpoint, kinds=kinds, max_relative_rmse=0.1)
    errors = {name: 0.2 if "0.mlp.experts.2.w1" in name else 0.01 for name in quantized(plan)}
    settled = settle(plan, kinds, errors).plan

    assert [len(unit) for unit in plan.selection.units] == [6, 6, 1]
    assert {name for name in quantized(plan) if ".0.mlp.experts." in name}.isdisjoint(
        quantized(settled)
    )
    assert len(quantized(settled)) == 7


def test_weights_that_transformers_merges_are_quantized_whatever_the_target():
    modules = [*(f"layers.0.experts.{i}.w1" for i in range(4)), "layers.0.o_proj"]
    names = [f"{module}.weight" for module in modules]
    kinds = ModuleKinds({"layers.0.o_proj": "Linear"}, merged=frozenset(names[:4]))
    checkpoint = checkpoint_of({name: [64, 64] for name in names}, {})
    errors = dict.fromkeys(names, 0.01)

    sized, _ = planned(checkpoint, kinds=kinds, target_bytes=10**6)
    settled = settle(sized, kinds, errors)
    limited, _ = planned(checkpoint, kinds=kinds, max_relative_rmse=0.001)

    assert quantized(settled.plan) == set(names[:4])
    assert {one.name for one in settled.sensitivity} == set(names)
    problem = refused(limited, kinds, errors)
    assert problem.code == "output_unsupported"
    assert "max_relative_rmse" in problem.detail


def test_a_limit_keeps_what_is_above_it_float_and_its_group_with_it():
    plan, kinds = planned(llama(2), max_relative_rmse=0.05)
    worst = "model.layers.1.self_attn.k_proj.weight"
    errors = {name: 0.06 if name == worst else 0.05 for name in quantized(plan)}

    settled = settle(plan, kinds, errors)

    kept = {worst, worst.replace("k_proj", "q_proj"), worst.replace("k_proj", "v_proj")}
    assert quantized(plan) - quantized(settled.plan) == kept
    assert {one.name for one in settled.sensitivity if one.kept_float} == kept
    told = reasons(settled.plan)
    assert told[worst] == "Rounding would change it by more than max_relative_rmse."
    assert told[worst.replace("k_proj", "q_proj")] == (
        f"Loaders take it together with {worst}, which stays float."
    )
    ignored = settled.plan.texts["config.json"]
    assert all(f'"{name.removesuffix(".weight")}"' in ignored for name in kept)


def test_the_ranking_is_by_error_per_byte_with_fused_weights_together():
    plan, kinds = planned(llama(1), target_bytes=10**5)
    errors = dict.fromkeys(quantized(plan), 0.01)
    errors["model.layers.0.mlp.down_proj.weight"] = 0.5

    ranked = [one.name.split(".")[-2] for one in settle(plan, kinds, errors).sensitivity]

    # One for 4 KiB of o; three for 8 KiB of q, k and v; two for 22 KiB of gate and up.
    assert ranked == ["down_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]


def test_a_target_below_what_int8_reaches_is_refused_with_what_works():
    least = planned(llama(2))[0].artifact_bytes

    with pytest.raises(Problem) as caught:
        refuse_target(planned(llama(2), target_bytes=least - 1)[0], "/spec")

    assert caught.value.code == "target_unreachable"
    assert caught.value.errors[0].pointer == "/spec/steps/0/target_bytes"
    assert caught.value.extra == {"target_bytes": least - 1, "smallest_bytes": least}
    refuse_target(planned(llama(2), target_bytes=least)[0])


def test_a_room_for_the_smallest_weight_alone_is_used_to_the_byte():
    least, kinds = planned(llama(2))
    one = make_plan(
        least.checkpoint, kinds, least.recipe, {"model.layers.1.self_attn.o_proj.weight": "x"}
    )
    plan, _ = planned(llama(2), target_bytes=one.artifact_bytes)
    errors = dict.fromkeys(quantized(plan), 0.01)

    settled = settle(plan, kinds, errors).plan

    assert settled.artifact_bytes == one.artifact_bytes


def test_a_single_weight_is_quantized_where_it_may_not_stay_float():
    plan, kinds = planned(checkpoint_of({"a.weight": [64, 64]}), target_bytes=8000)

    settled = settle(plan, kinds, {"a.weight": 0.5})

    assert settled.plan == plan
    assert [one.kept_float for one in settled.sensitivity] == [False]


def test_what_a_limit_keeps_float_may_make_a_target_unreachable():
    least = planned(llama(2))[0].artifact_bytes
    plan, kinds = planned(llama(2), target_bytes=least + 100, max_relative_rmse=0.05)
    errors = dict.fromkeys(quantized(plan), 0.01) | {"model.layers.0.mlp.up_proj.weight": 0.1}

    problem = refused(plan, kinds, errors)
    smallest = problem.extra["smallest_bytes"]
    again, _ = planned(llama(2), target_bytes=smallest, max_relative_rmse=0.05)

    assert problem.code == "target_unreachable"
    assert settle(again, kinds, errors).plan.artifact_bytes == smallest


@pytest.mark.parametrize("aim", [{"target_bytes": 10**7}, {"max_relative_rmse": 1e-9}])
def test_an_aim_that_leaves_everything_float_changes_nothing(aim):
    plan, kinds = planned(llama(2), **aim)

    problem = refused(plan, kinds, dict.fromkeys(quantized(plan), 0.01))

    assert problem.code == "nothing_changed"
    assert next(iter(aim)) in problem.detail


def test_a_weight_that_stays_float_is_pruned_all_the_same():
    prune = {"op": "prune", "sparsity": 0.5, "scope": "row"}
    plan, kinds = planned(llama(1), prune=[prune], max_relative_rmse=0.05)
    name = "model.layers.0.self_attn.o_proj.weight"
    errors = dict.fromkeys(quantized(plan), 0.01) | {name: 0.1}

    left = settle(plan, kinds, errors).plan.selection.targets[name]

    assert left == plan.selection.targets[name].as_float(plan.recipe)
    assert (left.prune_steps, left.scheme, left.whole_channels) == ((0,), None, True)
    assert left == replace(plan.selection.targets[name], scheme=None)


def test_equal_errors_give_equal_plans_whatever_the_last_digits_of_their_sums():
    plan, kinds = planned(llama(4), target_bytes=planned(llama(4))[0].artifact_bytes + 50_000)
    names = sorted(quantized(plan))

    exact = settle(plan, kinds, dict.fromkeys(names, 0.01)).plan
    nearly = {name: 0.01 * (1 + (i % 3 - 1) * 1e-12) for i, name in enumerate(names)}

    assert quantized(settle(plan, kinds, nearly).plan) == quantized(exact)
