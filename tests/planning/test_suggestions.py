"""Which recipes are suggested for a goal, from headers and given errors alone."""

import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.checkpoint import Shard, assemble
from jobs.goal import Goal
from jobs.problems import Problem
from jobs.recipe import Budget, load_recipe
from jobs.safetensors_header import check_members
from jobs.sensitivities import Rounding, Sensitivities, Variant
from planning.architectures import known_kinds
from planning.forecast import forecast
from planning.losses import loss_of
from planning.memory_model import DEFAULT_LEVELS
from planning.palette import GROUP_SIZES, measuring_families
from planning.plan import make_plan
from planning.shrinking import shrink
from planning.suggestions import MOST, choose, suggest

PROJECTIONS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (192, 64),
    "mlp.up_proj": (192, 64),
    "mlp.down_proj": (64, 192),
}
#: What groups leave of the error of a whole channel, about as for normally distributed weights.
BY_GROUP = {None: 1.0, 128: 0.7, 32: 0.5}


def checkpoint_of(shapes, config=None):
    members, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        members[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    others = {"tokenizer.json": 500} | ({"config.json": 300} if config else {})
    shard = Shard("model.safetensors", check_members(members))
    return assemble((shard,), config, others, Path())


def llama(layers=2):
    shapes = {"model.embed_tokens.weight": (256, 64), "lm_head.weight": (256, 64)}
    for layer in range(layers):
        for name, shape in PROJECTIONS.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 192,
        "tie_word_embeddings": False,
    }
    return checkpoint_of(shapes, config)


def measured(checkpoint, errors):
    """Sensitivities as a worker would find them, with an error for each weight in turn."""
    found, base = [], {}
    for family in measuring_families(checkpoint):
        recipe = family.measuring(Budget())
        shrinkage = shrink(checkpoint, recipe)
        left = shrinkage.checkpoint if shrinkage else checkpoint
        try:
            plan = make_plan(left, known_kinds(left), recipe, shrinkage=shrinkage)
        except Problem as problem:
            if problem.code != "nothing_changed":
                raise
            continue
        weights = {}
        for i, target in enumerate(t for t in plan.selection.targets.values() if t.scheme):
            elements = checkpoint.tensors[target.name].elements
            base.setdefault(target.name, errors[i % len(errors)])
            by_group = 1.0 if target.is_embedding else BY_GROUP[family.group_size]
            # Those with the largest squares are kept, so more than their number is.
            energy = elements * (target.matrix.tensor.elements / elements) ** 0.7
            rmse = base[target.name] * by_group
            weights[target.name] = Rounding(relative_rmse=rmse, energy=energy)
        found.append(Variant(width=family.width, group_size=family.group_size, weights=weights))
    return Sensitivities(
        engine_version=1,
        variants=tuple(found),
        seconds=0,
        predicted_peak_bytes=0,
        measured_peak_bytes=0,
    )


ERRORS = [0.006, 0.019, 0.008, 0.012, 0.01, 0.03, 0.007]


@pytest.fixture(scope="module")
def model():
    checkpoint = llama()
    return checkpoint, measured(checkpoint, ERRORS)


def ask(model, **goal):
    checkpoint, found = model
    return suggest(checkpoint, Goal(**goal), found, DEFAULT_LEVELS)


def refused(model, **goal):
    with pytest.raises(Problem) as caught:
        ask(model, **goal)
    return caught.value


def steps(one):
    return [step.op for step in one.recipe.steps]


def least_bytes(model, *, width=None):
    """The smallest artifact of all recipes, by planning each of them."""
    sizes = []
    for embeddings in (None, True):
        for group_size in (None, 32):
            step = {"op": "quantize", "scheme": "w8a16", "group_size": group_size}
            before = [{"op": "shrink", "width": width}] if width else []
            recipe = {"steps": [*before, {**step, "embeddings": embeddings}]}
            made = forecast(model[0], load_recipe(json.dumps(recipe)), DEFAULT_LEVELS)
            sizes.append(made.plan.artifact_bytes)
    return min(sizes)


@settings(max_examples=12, deadline=None)
@given(errors=st.lists(st.floats(1e-3, 0.2), min_size=15, max_size=15), part=st.floats(0.42, 0.95))
def test_every_suggestion_reaches_the_goal_and_is_worth_its_line(errors, part):
    checkpoint = llama()
    found = measured(checkpoint, errors)
    target = int(part * sum(tensor.nbytes for tensor in checkpoint.tensors.values()))

    suggested = suggest(checkpoint, Goal(target_bytes=target), found, DEFAULT_LEVELS)

    assert 1 <= len(suggested) <= MOST
    for one in suggested:
        again = load_recipe(one.recipe.model_dump_json(exclude_defaults=True))
        assert again == one.recipe
        assert one.artifact_bytes == one.made.prediction.artifact_bytes <= target
        assert one.made.prediction.steps[-1].bytes_written < one.artifact_bytes
    for before, after in pairwise(suggested):
        assert before.loss <= after.loss
        assert before.artifact_bytes > after.artifact_bytes or after.opens_with > before.opens_with


def brute_force(model, target):
    """The least loss of any choice of what stays float, of every way to round, by trying all."""
    checkpoint, found = model
    kinds = known_kinds(checkpoint)
    best = math.inf
    for group_size in GROUP_SIZES:
        variant = found.find(None, group_size)
        step = {"op": "quantize", "scheme": "w8a16", "embeddings": True, "group_size": group_size}
        recipe = load_recipe(json.dumps({"steps": [step]}))
        units = make_plan(checkpoint, kinds, recipe).selection.units
        for count in range(len(units)):
            for kept in combinations(units, count):
                floats = {name: "" for names in kept for name in names}
                plan = make_plan(checkpoint, kinds, recipe, floats)
                if plan.artifact_bytes <= target:
                    names = {t.name for t in plan.selection.targets.values() if t.scheme}
                    best = min(best, loss_of(found, variant, names))
    return best


@pytest.mark.parametrize("part", [0.1, 0.4, 0.8])
def test_the_first_suggestion_is_near_the_best_there_is(part):
    checkpoint = llama(1)
    model = checkpoint, measured(checkpoint, ERRORS)
    least = least_bytes(model)
    whole = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    target = least + int(part * (whole - least))

    first = ask(model, target_bytes=target)[0]

    best = brute_force(model, target)
    assert best * (1 - 1e-9) <= first.loss <= 1.35 * best


def test_layers_are_made_smaller_only_where_no_rounding_does(model):
    least = least_bytes(model)

    assert {op for one in ask(model, target_bytes=least) for op in steps(one)} == {"quantize"}
    below = ask(model, target_bytes=least - 1)
    assert all(steps(one) == ["shrink", "quantize"] for one in below)
    assert min(one.loss for one in below) > 5 * ask(model, target_bytes=least)[0].loss


def test_a_size_that_nothing_reaches_is_refused_with_the_least_and_its_recipe(model):
    problem = refused(model, target_bytes=1000)

    assert problem.code == "goal_unreachable"
    assert problem.errors[0].pointer == "/goal/target_bytes"
    assert problem.extra["least_bytes"] == least_bytes(model, width=0.5)
    nearest = ask(model, target_bytes=problem.extra["least_bytes"])
    assert problem.extra["recipe"] in [
        one.recipe.model_dump(mode="json", exclude_defaults=True) for one in nearest
    ]


def test_a_ratio_is_of_tensor_files_and_becomes_a_gate(model):
    for one in ask(model, max_size_ratio=0.7):
        plan = one.made.plan
        tensors = sum(shard.nbytes for shard in plan.shards)
        assert tensors / plan.model_bytes <= 0.7
        assert one.recipe.gate.max_size_ratio == 0.7

    problem = refused(model, max_size_ratio=0.2)
    assert problem.errors[0].pointer == "/goal/max_size_ratio"
    # The recipe that comes nearest would not pass such a gate.
    assert "gate" not in problem.extra["recipe"]
    assert ask(model, max_size_ratio=problem.extra["least_size_ratio"])


def test_memory_and_loss_that_no_recipe_keeps_are_refused_with_the_least(model):
    hungry = refused(model, max_size_ratio=0.8, host_memory=1000)
    lossy = refused(model, max_size_ratio=0.8, max_loss=1e-5)

    assert hungry.errors[0].pointer == "/goal/host_memory"
    least = hungry.extra["least_host_memory"]
    assert hungry.extra["recipe"]["budget"] == {"host_memory": least}
    assert all(
        one.recipe.budget.host_memory == least
        for one in ask(model, max_size_ratio=0.8, host_memory=least)
    )
    assert lossy.errors[0].pointer == "/goal/max_loss"
    best = ask(model, max_size_ratio=0.8, max_loss=lossy.extra["loss"])
    assert [one.loss for one in best] == [lossy.extra["loss"]]


def test_limits_on_quality_go_into_the_recipes(model):
    for one in ask(model, max_size_ratio=0.8, max_relative_rmse=0.01, min_cosine=0.99):
        assert one.recipe.rounding.max_relative_rmse == 0.01
        assert one.recipe.gate.min_cosine == 0.99
        assert one.recipe.evaluate is not None


def test_a_model_that_is_small_enough_needs_no_recipe(model):
    problem = refused(model, target_bytes=10**9)

    assert problem.code == "nothing_changed"
    assert problem.extra["model_bytes"] > 500 + 300


def test_answers_of_what_cannot_be_run_have_no_limit():
    checkpoint = checkpoint_of({"fc.weight": (64, 64)})
    model = checkpoint, measured(checkpoint, ERRORS)

    problem = refused(model, max_size_ratio=0.8, min_cosine=0.9)

    assert problem.code == "evaluation_unsupported"
    assert problem.errors[0].pointer == "/goal/min_cosine"


def test_weights_that_were_not_measured_are_not_suggested_about(model):
    checkpoint, found = model
    whole = found.whole
    some = dict(list(whole.weights.items())[:3])
    partly = found.model_copy(update={"variants": (whole.model_copy(update={"weights": some}),)})

    problem = refused((checkpoint, partly), max_size_ratio=0.8)

    assert problem.code == "goal_unreachable"


@given(
    st.lists(
        st.tuples(
            st.integers(1, 9), st.integers(1, 9), st.frozensets(st.sampled_from("tv"), max_size=2)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_what_is_chosen_is_beaten_by_nothing_and_begins_with_the_least_loss(drawn):
    offers = [
        SimpleNamespace(loss=loss, artifact_bytes=100 * size, opens_with=opens)
        for loss, size, opens in drawn
    ]

    chosen = choose(offers)

    assert 1 <= len(chosen) <= MOST
    assert chosen[0].loss == min(one.loss for one in offers)
    assert [one.loss for one in chosen] == sorted(one.loss for one in chosen)
    for one in chosen:
        for other in offers:
            is_no_worse = (
                other.loss <= one.loss
                and other.artifact_bytes <= one.artifact_bytes
                and other.opens_with >= one.opens_with
            )
            as_good = (other.loss, other.artifact_bytes, other.opens_with)
            assert not is_no_worse or as_good == (one.loss, one.artifact_bytes, one.opens_with)
