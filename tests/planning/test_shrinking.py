import json
from pathlib import Path

import pytest

from jobs.checkpoint import Shard, assemble
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from jobs.safetensors_header import Header, TensorSpec
from planning.forecast import forecast
from planning.memory_model import DEFAULT_LEVELS
from planning.shrinking import shrink
from planning.shrunk_sizes import kept_count

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}

MLP = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def shapes_of(layers=4, hidden=64, intermediate=96, queries=64, groups=32, biases=()):
    shapes = {"model.embed_tokens.weight": (50, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": (groups, hidden),
            f"{prefix}.self_attn.v_proj.weight": (groups, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, queries),
            f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, intermediate),
            f"{prefix}.input_layernorm.weight": (hidden,),
        }
    return shapes | {"lm_head.weight": (50, hidden)} | dict(biases)


def checkpoint_of(config=LLAMA, shapes=None, dtype="BF16"):
    tensors, end = [], 0
    for name, shape in (shapes or shapes_of()).items():
        tensors.append(TensorSpec(name, dtype, shape, end))
        end += tensors[-1].nbytes
    shard = Shard("model.safetensors", Header(tuple(tensors), {}, 4096))
    return assemble((shard,), config, {}, Path())


def shrink_by(checkpoint, **step):
    return shrink(checkpoint, parse_recipe({"steps": [{"op": "shrink", **step}]}), "/spec")


@pytest.mark.parametrize(
    ("fraction", "count", "multiple", "kept"),
    [
        (0.75, 1536, 1, 1152),
        (0.7, 10, 1, 7),
        (0.5, 7, 1, 4),
        (0.01, 10, 1, 1),
        (0.5, 100, 64, 64),
        (0.9, 100, 64, 128),
    ],
)
def test_the_nearest_number_is_kept_and_never_less_than_a_multiple(fraction, count, multiple, kept):
    assert kept_count(fraction, count, multiple) == kept


def test_what_is_left_has_the_names_of_before_and_smaller_shapes():
    left = shrink_by(checkpoint_of(), width=0.5)

    shapes = {name: spec.shape for name, spec in left.checkpoint.tensors.items()}
    assert shapes == shapes_of(intermediate=48, queries=32, groups=16)
    assert left.checkpoint.config == LLAMA | {
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }


def test_the_first_layers_and_the_last_are_kept():
    left = shrink_by(checkpoint_of(LLAMA | {"layer_types": list("abcd")}), layers=0.5)

    assert left.layers == {"model.layers": (4, (0, 3))}
    assert left.checkpoint.tensors.keys() == shapes_of(layers=2).keys()
    assert left.sources["model.layers.1.mlp.up_proj.weight"].name.startswith("model.layers.3.")
    assert left.edits == {"num_hidden_layers": 2, "layer_types": ["a", "d"]}


def test_channels_are_rounded_up_to_a_multiple():
    left = shrink_by(checkpoint_of(), width=0.6, round_to=32)

    assert left.edits["intermediate_size"] == 64


@pytest.mark.parametrize(
    ("patterns", "edited"),
    [
        ({"exclude": ["*.self_attn.*"]}, {"intermediate_size"}),
        ({"include": ["*.mlp.*"]}, {"intermediate_size"}),
        ({"exclude": ["*.mlp.*"]}, {"num_attention_heads", "num_key_value_heads", "head_dim"}),
    ],
)
def test_patterns_choose_between_heads_and_channels(patterns, edited):
    left = shrink_by(checkpoint_of(), width=0.5, **patterns)

    assert set(left.edits) == edited
    assert [one.reason.split(". ")[1] for one in left.skipped] == [
        "The patterns of the recipe leave them alone."
    ]


@pytest.mark.parametrize(
    ("importance", "scored"),
    [
        ("magnitude", ["self_attn.v_proj", "self_attn.o_proj", *MLP]),
        ("activation", ["self_attn.o_proj", "mlp.down_proj"]),
        ("taylor", []),
    ],
)
def test_what_decides_changes_what_is_read_and_not_what_is_left(importance, scored):
    checkpoint, step = checkpoint_of(), {"op": "shrink", "width": 0.5, "importance": importance}
    data = {"calibrate": {"dataset": "ds_" + "0" * 64}} if importance != "magnitude" else {}

    left = shrink(checkpoint, parse_recipe({"steps": [step], **data}))

    assert left.checkpoint == shrink_by(checkpoint, width=0.5).checkpoint
    read = {cut.source.name for cut in left.cuts.values() if cut.is_scored}
    assert read == {f"model.layers.{i}.{name}.weight" for i in range(4) for name in scored}


T5 = {
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 2,
    "num_decoder_layers": 2,
}


def t5_shapes(**tables):
    shapes = {"shared.weight": (50, 64)}
    parts = {"encoder": ["SelfAttention"], "decoder": ["SelfAttention", "EncDecAttention"]}
    for stack, attentions in parts.items():
        for layer in range(2):
            prefix = f"{stack}.block.{layer}.layer"
            for number, name in enumerate(attentions):
                shapes |= {f"{prefix}.{number}.{name}.{one}.weight": (64, 64) for one in "qkvo"}
            mlp = f"{prefix}.{len(attentions)}.DenseReluDense"
            shapes |= {f"{mlp}.wi.weight": (96, 64), f"{mlp}.wo.weight": (64, 96)}
        table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[table] = tables.get(stack, (32, 4))
    return shapes


def test_all_layers_that_share_a_table_keep_the_same_heads_and_others_their_own():
    left = shrink_by(checkpoint_of(T5, t5_shapes()), width=0.5, exclude=["*.DenseReluDense.*"])

    shapes = {name: spec.shape for name, spec in left.checkpoint.tensors.items()}
    table = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert shapes[table.format("encoder")] == shapes[table.format("decoder")] == (32, 2)
    assert shapes["decoder.block.1.layer.1.EncDecAttention.o.weight"] == (64, 32)
    assert [(group.name, group.count, group.kept) for group in left.groups] == [
        ("encoder.block.*.layer.0.SelfAttention", 4, 2),
        ("decoder.block.*.layer.0.SelfAttention", 4, 2),
        ("decoder.block.0.layer.1.EncDecAttention", 4, 2),
        ("decoder.block.1.layer.1.EncDecAttention", 4, 2),
    ]
    assert left.checkpoint.config == T5 | {"num_heads": 2}
    assert left.units == 4 * 4


def test_attentions_that_one_member_counts_lose_heads_together_or_not_at_all():
    left = shrink_by(checkpoint_of(T5, t5_shapes()), width=0.5, exclude=["*.1.EncDecAttention.*"])

    assert set(left.edits) == {"d_ff"}
    assert [(one.name, one.reason) for one in left.skipped] == [
        (
            "encoder.block.*",
            "All heads stay. config.json has one num_heads, which other layers need as it is.",
        ),
        (
            "decoder.block.*",
            "All heads stay. config.json has one num_heads, which other layers need as it is.",
        ),
        ("decoder.block.*", "All heads stay. The patterns of the recipe leave them alone."),
    ]


def test_a_table_that_has_other_heads_than_there_are_is_no_such_model():
    with pytest.raises(Problem, match="no column for each of 4 heads") as caught:
        shrink_by(checkpoint_of(T5, t5_shapes(decoder=(32, 5))), width=0.5)

    assert caught.value.code == "invalid_checkpoint"


def test_patterns_that_leave_one_layer_alone_leave_all():
    left = shrink_by(checkpoint_of(), width=0.5, exclude=["model.layers.2.mlp.*"])

    assert "intermediate_size" not in left.edits
    assert left.skipped[0].reason.endswith("leave out model.layers.2.mlp.gate_proj.")


@pytest.mark.parametrize(
    ("config", "shapes", "step", "code", "said"),
    [
        (None, None, {"width": 0.5}, "shrink_unsupported", "config.json"),
        (LLAMA | {"model_type": "mamba"}, None, {"width": 0.5}, "shrink_unsupported", "qwen2"),
        (LLAMA | {"model_type": "bert"}, None, {"width": 0.5}, "shrink_unsupported", "names"),
        (LLAMA, None, {"width": 0.999}, "nothing_changed", "0.999 of 96 is 96"),
        (LLAMA, None, {"width": 0.5, "exclude": ["*"]}, "nothing_changed", "patterns"),
        (LLAMA, None, {"layers": 0.9}, "nothing_changed", "As many of 4"),
        (LLAMA | {"num_hidden_layers": 5}, None, {"layers": 0.5}, "invalid_config", "4 layers"),
        (LLAMA | {"num_attention_heads": 7}, None, {"width": 0.5}, "invalid_config", "divisible"),
        (
            LLAMA,
            shapes_of() | {"model.layers.2.mlp.up_proj.weight": (95, 64)},
            {"width": 0.5},
            "invalid_checkpoint",
            r"layers\.2\.mlp\.up_proj.*\[95, 64\]; there should be 96",
        ),
    ],
)
def test_what_cannot_be_shrunk_is_refused_with_the_reason(config, shapes, step, code, said):
    with pytest.raises(Problem, match=said) as caught:
        shrink_by(checkpoint_of(config, shapes), **step)

    assert caught.value.code == code
    assert caught.value.status == 422


def test_a_tensor_of_which_nothing_is_known_keeps_its_neighbours_whole():
    strange = {f"model.layers.{i}.mlp.gate_proj.lora_A.weight": (4, 64) for i in range(4)}

    left = shrink_by(checkpoint_of(shapes=shapes_of(biases=strange)), width=0.5)

    assert "intermediate_size" not in left.edits
    assert "lora_A" in left.skipped[0].reason


def test_layers_that_differ_by_their_numbers_stay_unless_the_config_lists_them():
    config = LLAMA | {"model_type": "qwen2", "use_sliding_window": True}

    with pytest.raises(Problem, match="has no layer_types that tells it"):
        shrink_by(checkpoint_of(config), layers=0.5)

    listed = config | {"layer_types": ["full_attention"] * 4}
    assert shrink_by(checkpoint_of(listed), layers=0.5).edits["num_hidden_layers"] == 2


def test_a_forecast_is_of_what_is_left():
    recipe = parse_recipe({"steps": [{"op": "shrink", "width": 0.5}]})

    made = forecast(checkpoint_of(), recipe, DEFAULT_LEVELS)

    assert made.is_exact
    step = made.prediction.steps[0]
    assert (step.op, step.method, step.tensors_changed) == ("shrink", "magnitude", 4 * 7)
    weights = sum(spec.nbytes for spec in made.plan.checkpoint.tensors.values())
    assert made.prediction.artifact_bytes > weights
    assert json.loads(made.plan.texts["config.json"])["num_key_value_heads"] == 2
