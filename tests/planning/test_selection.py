import pytest
import torch

from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.recipe import parse_recipe
from planning.module_kinds import ModuleKinds
from planning.selection import Selection, select

W8A16 = {"op": "quantize", "scheme": "w8a16"}
HALF = {"op": "prune", "sparsity": 0.5}
WEIGHT = torch.ones(8, 8)


@pytest.fixture
def select_by(save_model):
    """Select among 8 by 8 weights of the given names."""

    def run(
        tensors, *steps, kinds: ModuleKinds | None = None, output: str = "safetensors"
    ) -> Selection:
        if not isinstance(tensors, dict):
            tensors = dict.fromkeys(tensors, WEIGHT)
        checkpoint = open_checkpoint(save_model(tensors))
        return select(checkpoint, kinds, parse_recipe({"steps": list(steps)}), output)

    return run


def reasons(selection: Selection) -> dict[str, str]:
    return {skip.name: skip.reason for skip in selection.skipped}


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "output.weight",
        "embed_out.weight",
        "wte.weight",
        "tok_embeddings.weight",
        "time_emb.weight",
        "mlp.gate.weight",
        "block.router.weight",
        "router.classifier.weight",
    ],
)
def test_heads_embeddings_and_routers_are_pruned_only_where_a_pattern_names_them(select_by, name):
    default = select_by([name, "a.weight"], HALF)
    named = select_by([name, "a.weight"], {**HALF, "include": [name.removesuffix(".weight"), "a"]})

    assert set(default.targets) == {"a.weight"}
    assert name in reasons(default)
    assert set(named.targets) == {name, "a.weight"}


@pytest.mark.parametrize(
    "name",
    [
        "0.weight",
        "weight",
        "encoder.layer.0.attention.output.dense.weight",
        "mlp.gate_proj.weight",
        "patch_embed.proj.weight",
    ],
)
def test_other_matrices_are_selected_by_default(select_by, name):
    assert set(select_by([name], W8A16).targets) == {name}


def test_exclude_is_applied_last(select_by):
    selection = select_by(
        ["a.x.weight", "a.y.weight", "b.x.weight"],
        {**HALF, "include": ["a.*"], "exclude": ["*.y"]},
    )

    assert set(selection.targets) == {"a.x.weight"}
    assert "exclude" in reasons(selection)["a.y.weight"]


def test_an_embedding_is_quantized_only_where_the_step_says_so(select_by):
    with pytest.raises(Problem, match="embeddings: true"):
        select_by(["embed.weight"], {**W8A16, "include": ["*"]})

    step = {**W8A16, "embeddings": True, "group_size": 16}
    targets = select_by({"embed.weight": WEIGHT, "a.weight": torch.ones(8, 16)}, step).targets

    assert {n: (t.is_packed, t.group_size) for n, t in targets.items()} == {
        "embed.weight": (False, None),
        "a.weight": (True, 16),
    }
    excluded = {**W8A16, "embeddings": True, "exclude": ["embed"]}
    assert set(select_by(["embed.weight", "a.weight"], excluded).targets) == {"a.weight"}


def test_an_embedding_that_the_model_does_not_have_stays_float_where_transformers_would_miss_it(
    select_by,
):
    kinds = ModuleKinds({"a": "Linear", "m.embed": "Embedding"}, prefix="m")
    names = ["a.weight", "embed.weight", "old_embed.weight"]

    selection = select_by(
        names, {**W8A16, "embeddings": True}, kinds=kinds, output="compressed-tensors"
    )

    assert set(selection.targets) == {"a.weight", "embed.weight"}
    assert "no module of this name" in reasons(selection)["old_embed.weight"]


def test_a_tied_head_is_never_quantized_and_a_stored_copy_never_pruned(select_by):
    kinds = ModuleKinds(
        {"m.embed": "Embedding", "head": "Linear", "a": "Linear"},
        tied=[["m.embed.weight", "head.weight"]],
        head="head",
        prefix="m",
    )
    names = ["embed.weight", "head.weight", "a.weight"]

    selection = select_by(
        names,
        {**HALF, "include": ["*"]},
        {**W8A16, "include": ["*"], "embeddings": True},
        kinds=kinds,
    )

    assert set(selection.targets) == {"a.weight"}
    pairs = {(skip.op, skip.name): skip.reason for skip in selection.skipped}
    assert "tied to m.embed.weight" in pairs["quantize", "head.weight"]
    assert "must stay equal" in pairs["prune", "head.weight"]
    assert "must stay equal" in pairs["prune", "embed.weight"]


@pytest.mark.parametrize(
    "group",
    [("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value")],
)
def test_a_fused_group_is_quantized_whole_or_not_at_all(select_by, group):
    names = [f"l.{name}.weight" for name in group]
    kinds = ModuleKinds({f"l.{name}": "Linear" for name in (*group, "o_proj")})
    step = {**W8A16, "exclude": [f"*.{group[0]}"]}

    fused = select_by([*names, "l.o_proj.weight"], step, kinds=kinds, output="compressed-tensors")
    plain = select_by([*names, "l.o_proj.weight"], step, kinds=kinds)

    assert set(fused.targets) == {"l.o_proj.weight"}
    assert "fuse" in reasons(fused)[names[1]]
    assert set(plain.targets) == {*names[1:], "l.o_proj.weight"}


def test_compressed_tensors_quantizes_only_linears_that_the_model_has(select_by):
    tensors = {
        "a.weight": WEIGHT,
        "conv.weight": torch.ones(4, 4, 3),
        "moe.experts.0.w1.weight": WEIGHT,
    }
    kinds = ModuleKinds({"a": "Linear", "conv": "Conv1d"})

    selection = select_by(tensors, W8A16, kinds=kinds, output="compressed-tensors")

    assert set(selection.targets) == {"a.weight"}
    assert "Conv1d" in reasons(selection)["conv.weight"]
    assert "no module of this name" in reasons(selection)["moe.experts.0.w1.weight"]


EXPERTS = [f"l.experts.{i}.{part}.weight" for i in range(2) for part in ("w1", "w2", "w3")]
MERGING = ModuleKinds(
    {"a": "Linear"},
    renamed={name: f"l.experts.{name[-9:-7]}" for name in EXPERTS},
    merged=frozenset(EXPERTS),
)


def test_experts_that_transformers_stacks_are_packed_together(select_by):
    selection = select_by([*EXPERTS, "a.weight"], W8A16, kinds=MERGING, output="compressed-tensors")

    assert set(selection.targets) == {*EXPERTS, "a.weight"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scheme": "w8a8"}, "from w8a16 only"),
        ({"exclude": ["l.experts.1.*"]}, "An exclude pattern"),
        ({"include": ["a"]}, "No include pattern"),
    ],
)
def test_experts_of_which_some_stay_float_are_refused(select_by, change, words):
    with pytest.raises(Problem, match=rf"merges weights.*{words}") as caught:
        select_by(
            [*EXPERTS, "a.weight"], W8A16 | change, kinds=MERGING, output="compressed-tensors"
        )

    assert caught.value.code == "output_unsupported"


def test_a_weight_that_is_split_while_it_is_loaded_is_refused(select_by):
    kinds = ModuleKinds(
        {"a": "Linear", "q": "Linear"},
        renamed={"qkv.weight": "q.weight"},
        merged=frozenset({"qkv.weight"}),
    )

    with pytest.raises(Problem, match="from floats only") as caught:
        select_by(["a.weight", "qkv.weight"], W8A16, kinds=kinds, output="compressed-tensors")

    assert caught.value.code == "output_unsupported"


def test_a_linear_that_must_have_a_weight_is_not_packed(select_by):
    kinds = ModuleKinds({"a": "Linear", "b": "Linear"}, named_weights=frozenset({"b"}))
    names = ["a.weight", "b.weight"]

    packed = select_by(names, W8A16, kinds=kinds, output="compressed-tensors")
    plain = select_by(names, W8A16, kinds=kinds)
    unpacked = select_by(
        names, W8A16 | {"scheme": "w8a8"}, kinds=kinds, output="compressed-tensors"
    )

    assert set(packed.targets) == {"a.weight"}
    assert "scheme w8a8" in reasons(packed)["b.weight"]
    assert set(plain.targets) == set(unpacked.targets) == set(names)


def test_fused_experts_are_left_as_they_are(select_by):
    tensors = {"a.weight": WEIGHT, "mlp.experts.gate_up_proj": torch.ones(2, 4, 4)}

    assert "fused experts" in reasons(select_by(tensors, HALF))["mlp.experts.gate_up_proj"]


def test_the_models_own_names_are_kept_beside_those_of_the_checkpoint(select_by):
    kinds = ModuleKinds({"bert.pooler": "Linear"}, prefix="bert")

    (target,) = select_by(["pooler.weight"], W8A16, kinds=kinds).targets.values()

    assert (target.module, target.model_module) == ("pooler", "bert.pooler")


def test_a_group_that_does_not_fit_the_width_is_skipped(select_by):
    tensors = {"a.weight": torch.ones(4, 12), "conv.weight": torch.ones(4, 3, 4, 4)}

    selection = select_by(tensors, {"op": "prune", "structure": "2:4"})

    assert set(selection.targets) == {"a.weight"}
    assert reasons(selection) == {"conv.weight": "Its 3 inputs are not divisible into groups of 4."}


def test_a_quantization_config_is_refused(save_model):
    model = save_model({"a.weight": WEIGHT}, config={"quantization_config": {"bits": 4}})

    with pytest.raises(Problem, match="quantization_config") as caught:
        select(open_checkpoint(model), None, parse_recipe({"steps": [HALF]}), "safetensors")

    assert caught.value.code == "already_quantized"
