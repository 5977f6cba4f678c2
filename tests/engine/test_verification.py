import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from engine.pipeline import compress
from engine.verification import verify
from engine.verified_forms import claims_of
from jobs.checkpoint import INDEX_NAME, open_checkpoint
from jobs.problems import Problem
from jobs.recipe import parse_recipe

W8A16 = {"op": "quantize", "scheme": "w8a16"}
W8A8 = {"op": "quantize", "scheme": "w8a8"}
HALF = {"op": "prune", "sparsity": 0.5}
BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 31,
    "hidden_size": 32,
    "intermediate_size": 50,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
RECIPES = {
    "packed": ([W8A16], {}),
    "int8": ([W8A8], {}),
    "groups": ([{**W8A16, "group_size": 16}], {}),
    "pruned": ([HALF, {"op": "prune", "sparsity": 0.2, "method": "random", "biases": True}], {}),
    "n:m": ([{"op": "prune", "structure": "2:4"}, W8A16], {}),
    "pruned groups": ([{**HALF, "scope": "row"}, {**W8A16, "group_size": 32}], {}),
    "global": ([{**HALF, "scope": "global"}, W8A8], {}),
    "heads too": ([{**W8A16, "include": ["*"]}], {}),
    "embeddings too": ([{**W8A16, "embeddings": True, "group_size": 16}], {}),
    "int8 embeddings": ([HALF, {**W8A8, "embeddings": True}], {}),
}


def run(press, model, steps, members):
    pressed = press(model, *steps, **members)
    return pressed, parse_recipe({"steps": steps, **members})


def check(model, pressed, recipe):
    return verify(
        model, pressed.folder, recipe, claims_of(pressed.report), on_progress=lambda _: None
    )


@pytest.fixture
def everything(weights):
    """Give tensors of every kind that a state dict may hold, with weights of one dtype."""

    def make(dtype):
        return {
            "a.weight": weights(40, 64, dtype=dtype),
            "a.bias": weights(40, dtype=dtype),
            "odd.weight": weights(5, 30, dtype=dtype, seed=1),
            "one.weight": weights(1, 32, dtype=dtype, seed=2),
            "thin.weight": weights(9, 1, dtype=dtype, seed=3),
            "conv.weight": weights(6, 16, 3, 3, dtype=dtype, seed=4),
            "zeros.weight": torch.zeros(3, 32, dtype=dtype),
            "embed_tokens.weight": weights(33, 8, dtype=dtype, seed=5),
            "lm_head.weight": weights(33, 32, dtype=dtype, seed=6),
            "experts.weight": weights(3, 4, 32, dtype=dtype, seed=7),
            "wide.weight": weights(2, 20_000, dtype=dtype, seed=8),
            "long": weights(30_000, dtype=dtype, seed=9),
            "empty.weight": torch.zeros(0, 4, dtype=dtype),
            "scalar": torch.tensor(3),
            "mask": torch.tensor([True, False]),
            "byte": torch.arange(5, dtype=torch.uint8),
            "double.weight": weights(4, 4).double(),
            "float8": weights(4, 4).to(torch.float8_e4m3fn),
            "complex": torch.complex(weights(3), weights(3)),
        }

    return make


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", RECIPES)
def test_what_the_engine_makes_passes(save_model, press, everything, name, dtype):
    tensors = everything(dtype)
    model = save_model(tensors, shards=2)

    pressed, recipe = run(press, model, *RECIPES[name])

    verification = pressed.verification
    assert verification.tensors == len(tensors)
    is_quantized = recipe.steps[-1].op == "quantize"
    assert (verification.max_error_steps is not None) == is_quantized
    if is_quantized:
        # It saw a part of what the engine saw all of.
        worst = max(t.max_error_steps or 0 for t in pressed.report.tensors)
        assert 0.4 < verification.max_error_steps <= worst + 2.0**-17


@pytest.mark.parametrize("scheme", [W8A16, W8A8])
@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    exponent=st.integers(-140, 127),
    seed=st.integers(0, 99),
)
def test_weights_of_any_size_pass(tmp_path_factory, scheme, dtype, rows, columns, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    exact = torch.rand(rows, columns, generator=generator, dtype=torch.float64) * 2 - 1
    weight = (exact * 2.0**exponent).to(dtype)
    weight[~torch.isfinite(weight)] = torch.finfo(dtype).max
    model, artifact = (tmp_path_factory.mktemp(name) for name in ("model", "artifact"))
    save_file({"a.weight": weight}, model / "model.safetensors")
    recipe = parse_recipe({"steps": [scheme]})

    report = compress(model, artifact, recipe, on_progress=lambda _: None)

    verification = verify(model, artifact, recipe, claims_of(report), on_progress=lambda _: None)
    assert verification.max_error_steps <= 0.5 + 2.0**-17


@pytest.fixture
def bert(save_model, weights):
    """Make a folder of a BERT, with a tokenizer and in shards, that the table knows."""
    hidden, wide = BERT["hidden_size"], BERT["intermediate_size"]
    layer = "encoder.layer.0"
    linears = {
        "attention.self.query": (hidden, hidden),
        "attention.self.key": (hidden, hidden),
        "attention.self.value": (hidden, hidden),
        "attention.output.dense": (hidden, hidden),
        "intermediate.dense": (wide, hidden),
        "output.dense": (hidden, wide),
    }
    norms = ["embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm"]
    tensors = {
        "embeddings.word_embeddings.weight": weights(BERT["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": weights(16, hidden),
        "embeddings.token_type_embeddings.weight": weights(2, hidden),
    }
    shapes = {f"{layer}.{name}": shape for name, shape in linears.items()}
    shapes["pooler.dense"] = (hidden, hidden)
    for number, (name, shape) in enumerate(shapes.items()):
        tensors[f"{name}.weight"] = weights(*shape, seed=number)
        tensors[f"{name}.bias"] = weights(shape[0], seed=number)
    for name in (*norms, f"{layer}.output.LayerNorm"):
        tensors |= {f"{name}.weight": weights(hidden), f"{name}.bias": weights(hidden)}
    model = save_model(tensors, BERT | {"auto_map": {"AutoModel": "code.Model"}}, shards=2)
    (model / "tokenizer.json").write_text('{"model": {}}')
    (model / "code.py").write_text("raise SystemExit")
    return model


@pytest.mark.parametrize(
    ("step", "output"),
    [
        (W8A16, "auto"),
        (W8A8, "auto"),
        ({**W8A16, "group_size": 16}, "auto"),
        ({**W8A16, "embeddings": True}, "auto"),
        ({**W8A8, "embeddings": True}, "auto"),
        ({**W8A8, "embeddings": True, "include": ["*word_embeddings"]}, "auto"),
        (W8A16, "safetensors"),
        (HALF, "auto"),
    ],
)
def test_folders_for_transformers_pass(press, bert, step, output):
    pressed, _ = run(press, bert, [step], {"output": {"format": output}})

    assert pressed.verification.tensors == len(open_checkpoint(bert).tensors)


def test_a_transposed_module_passes_and_its_scales_are_looked_at(press, save_model, weights):
    config = {
        "architectures": ["GPT2Model"],
        "model_type": "gpt2",
        "vocab_size": 11,
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 4,
    }
    shapes = {
        "wte": (11, 8),
        "wpe": (4, 8),
        "h.0.attn.c_attn": (8, 24),
        "h.0.attn.c_proj": (8, 8),
        "h.0.mlp.c_fc": (8, 32),
        "h.0.mlp.c_proj": (32, 8),
    }
    tensors = {f"{name}.weight": weights(*shape) for name, shape in shapes.items()}
    tensors |= {f"{n}.bias": weights(s[1]) for n, s in shapes.items() if n.startswith("h")}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors |= {f"{name}.weight": weights(8), f"{name}.bias": weights(8)}
    model = save_model(tensors, config)

    for scheme in (W8A16, W8A8):
        pressed, recipe = run(press, model, [scheme], {"output": {"format": "safetensors"}})
        assert pressed.verification.max_error_steps > 0.4
        assert pressed.tensors["h.0.attn.c_attn.weight_scale"].shape == (1, 24)

        flip(pressed.folder, "h.0.attn.c_attn.weight_scale", 4 * 23 + 3)
        with pytest.raises(Problem, match=r"'h.0.attn.c_attn.weight', row 0: column 23"):
            check(model, pressed, recipe)


def flip(folder, tensor_name, byte, mask=0x40):
    """Change a byte of a tensor, or of what a negative number counts from its end."""
    for shard in open_checkpoint(folder).shards:
        for tensor in shard.header.tensors:
            if tensor.name == tensor_name:
                position = shard.header.data_start + tensor.start + byte % tensor.nbytes
                path = folder / shard.name
                content = bytearray(path.read_bytes())
                content[position] ^= mask
                path.write_bytes(content)
                return
    raise LookupError(tensor_name)


@pytest.mark.parametrize(
    ("steps", "changed", "tensor"),
    [
        ([W8A16], "a.weight_packed", "a.weight"),
        ([W8A16], "a.weight_scale", "a.weight"),
        ([W8A16], "a.weight_shape", "a.weight"),
        ([W8A8], "a.weight", "a.weight"),
        ([W8A8], "a.weight_scale", "a.weight"),
        ([W8A8], "conv.weight", "conv.weight"),
        ([{**W8A16, "group_size": 16}], "a.weight_scale", "a.weight"),
        ([HALF], "a.weight", "a.weight"),
        ([HALF], "odd.weight", "odd.weight"),
        ([W8A16], "embed_tokens.weight", "embed_tokens.weight"),
        ([{**W8A16, "embeddings": True}], "embed_tokens.weight", "embed_tokens.weight"),
        ([{**W8A16, "embeddings": True}], "embed_tokens.weight_scale", "embed_tokens.weight"),
        ([W8A16], "experts.weight", "experts.weight"),
        ([W8A16], "long", "long"),
        ([W8A16], "scalar", "scalar"),
        ([W8A16], "mask", "mask"),
        ([W8A16], "float8", "float8"),
        ([W8A16], "complex", "complex"),
    ],
)
@pytest.mark.parametrize("byte", [1, -1], ids=["first", "last"])
def test_a_changed_byte_is_found(save_model, press, everything, steps, changed, tensor, byte):
    model = save_model(everything(torch.bfloat16), shards=2)
    pressed, recipe = run(press, model, steps, {})

    flip(pressed.folder, changed, byte)

    with pytest.raises(Problem) as caught:
        check(model, pressed, recipe)
    assert caught.value.code == "invalid_artifact"
    assert caught.value.extra["tensor"] == tensor
    assert f"Tensor {tensor!r}, row {caught.value.extra['row']}" in caught.value.detail


def test_padding_that_is_not_empty_is_found(save_model, press, everything):
    model = save_model(everything(torch.bfloat16))
    pressed, recipe = run(press, model, [W8A16], {})

    flip(pressed.folder, "odd.weight_packed", -1)

    with pytest.raises(Problem, match=r"'odd.weight', row 4: is padded"):
        check(model, pressed, recipe)


def rewrite(folder, change):
    """Load the tensors of an artifact of one file, change them, and save them again."""
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def drop_a_scale(tensors):
    del tensors["a.weight_scale"]


def lose_the_shape(tensors):
    del tensors["a.weight_shape"]


def drop_a_tensor(tensors):
    del tensors["a.bias"]


def add_a_tensor(tensors):
    tensors["new"] = torch.zeros(3)


def change_a_dtype(tensors):
    tensors["a.bias"] = tensors["a.bias"].float()


def change_a_shape(tensors):
    tensors["experts.weight"] = tensors["experts.weight"].reshape(4, 3, 32)


def widen_the_scales(tensors):
    tensors["a.weight_scale"] = tensors["a.weight_scale"].float()


def spread_the_scales(tensors):
    tensors["a.weight_scale"] = tensors["a.weight_scale"].repeat(1, 2)


def quantize_one_more(tensors):
    weight = tensors.pop("lm_head.weight")
    tensors["lm_head.weight"] = weight.to(torch.int8)
    tensors["lm_head.weight_scale"] = weight[:, :1].clone()


def leave_one_float(tensors):
    tensors["a.weight"] = tensors.pop("a.weight_packed")[:, :1].repeat(1, 64).bfloat16()
    del tensors["a.weight_scale"], tensors["a.weight_shape"]


@pytest.mark.parametrize(
    ("change", "tensor"),
    [
        (drop_a_scale, "a.weight"),
        (lose_the_shape, "a.weight"),
        (drop_a_tensor, "a.bias"),
        (add_a_tensor, "new"),
        (change_a_dtype, "a.bias"),
        (change_a_shape, "experts.weight"),
        (widen_the_scales, "a.weight"),
        (spread_the_scales, "a.weight"),
        (quantize_one_more, "lm_head.weight"),
        (leave_one_float, "a.weight"),
    ],
)
def test_tensors_that_are_not_what_was_to_become_of_them_are_named(
    save_model, press, everything, change, tensor
):
    model = save_model(everything(torch.bfloat16))
    pressed, recipe = run(press, model, [W8A16], {})

    rewrite(pressed.folder, change)

    with pytest.raises(Problem, match=f"'{tensor}'") as caught:
        check(model, pressed, recipe)
    assert (caught.value.code, caught.value.extra["tensor"]) == ("invalid_artifact", tensor)


def test_a_scale_far_larger_than_its_row_needs_is_found_although_every_value_is_within_half_a_step(
    save_model, press, weights
):
    model = save_model({"a.weight": weights(4, 8)})
    pressed, recipe = run(press, model, [W8A8], {})

    def round_all_to_zero(tensors):
        tensors["a.weight"].zero_()
        tensors["a.weight_scale"].fill_(1000.0)

    rewrite(pressed.folder, round_all_to_zero)

    with pytest.raises(Problem, match=r"'a.weight', row 0: column 0 has a larger scale"):
        check(model, pressed, recipe)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_no_positive_number_is_found(save_model, press, weights, scale):
    model = save_model({"a.weight": weights(4, 8)})
    pressed, recipe = run(press, model, [W8A8], {})

    rewrite(pressed.folder, lambda tensors: tensors["a.weight_scale"].fill_(scale))

    with pytest.raises(Problem, match=r"row 0: column 0 has a scale that is no"):
        check(model, pressed, recipe)


def test_what_the_report_says_of_other_tensors_is_refused(save_model, press, weights):
    model = save_model({"a.weight": weights(4, 8), "b.weight": weights(4, 8)})
    pressed, recipe = run(press, model, [W8A8], {})
    (first, second) = pressed.report.tensors

    def claim(*tensors):
        report = pressed.report.model_copy(update={"tensors": tensors})
        verify(model, pressed.folder, recipe, claims_of(report), on_progress=lambda _: None)

    claim(first, second)
    with pytest.raises(Problem, match=r"'b.weight': is quantized, and the report"):
        claim(first)
    with pytest.raises(Problem, match=r"'c.weight': is in the report"):
        claim(first, second, first.model_copy(update={"name": "c.weight"}))
    small = first.after.model_copy(update={"bytes": 9})
    with pytest.raises(Problem, match=r"'a.weight': is I8 of 48 bytes; the report says I8 of 9"):
        claim(first.model_copy(update={"after": small}), second)


def set_member(*path, value):
    def change(folder):
        members = document = json.loads((folder / "config.json").read_text())
        for key in path[:-1]:
            members = members[key]
        members[path[-1]] = value
        (folder / "config.json").write_text(json.dumps(document))

    return change


def change_the_index(key, value):
    def change(folder):
        index = json.loads((folder / INDEX_NAME).read_text())
        index[key] = {**index[key], **value}
        (folder / INDEX_NAME).write_text(json.dumps(index))

    return change


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text=""):
    return lambda folder: (folder / name).write_text(text)


def link(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/etc/hostname")


def link_weights(folder):
    shutil.move(folder / "model-00001-of-00002.safetensors", folder.parent / "elsewhere")
    (folder / "model-00001-of-00002.safetensors").symlink_to(folder.parent / "elsewhere")


GROUP = ("quantization_config", "config_groups", "group_0")


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (set_member("hidden_size", value=64), "config.json: 'hidden_size' is not as"),
        (set_member("auto_map", value={}), "config.json: 'auto_map' is not as"),
        (set_member("quantization_config", value=None), "quantization_config is None"),
        (set_member("quantization_config", "format", value="int-quantized"), "config.format is"),
        (set_member(*GROUP, "weights", "num_bits", value=4), "group_0.weights.num_bits is 4"),
        (set_member(*GROUP, "weights", "group_size", value=16), "weights.group_size is 16"),
        (set_member(*GROUP, "input_activations", value={}), "input_activations is {}, not None"),
        (set_member(*GROUP, "targets", value=["Conv2d"]), "targets is"),
        (
            set_member("quantization_config", "ignore", value=["pooler.dense"]),
            "Tensor 'pooler.dense.weight': is int8, and config.json says",
        ),
        (write("config.json", "{"), "config.json is not JSON"),
        (change_the_index("metadata", {"total_size": 1}), "total_size"),
        (
            change_the_index("weight_map", {"pooler.dense.bias": "x.safetensors"}),
            "puts tensor 'pooler.dense.bias' into",
        ),
        (change_the_index("weight_map", {"ghost": "x"}), "names tensor 'ghost'"),
        (remove(INDEX_NAME), "no model.safetensors.index.json"),
        (remove("config.json"), "'config.json' is not in the artifact"),
        (remove("tokenizer.json"), "'tokenizer.json' is not in the artifact"),
        (remove("model-00002-of-00002.safetensors"), "which is in no shard"),
        (write("tokenizer.json", '{"model": []}'), "'tokenizer.json' is not the model's"),
        (write("modeling.py"), "'modeling.py' is in the artifact, and should not be"),
        (link, "'tokenizer.json' is neither a file nor a folder"),
        (link_weights, "'model-00001-of-00002.safetensors' is neither a file nor a folder"),
    ],
)
def test_files_beside_the_tensors_that_are_not_as_they_should_be_are_found(
    press, bert, change, detail
):
    pressed, recipe = run(press, bert, [W8A16], {})

    change(pressed.folder)

    with pytest.raises(Problem) as caught:
        check(bert, pressed, recipe)
    assert caught.value.code == "invalid_artifact"
    assert detail in caught.value.detail


ROWS = ("quantization_config", "config_groups", "group_1")


@pytest.mark.parametrize("scheme", [W8A16, W8A8])
@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (set_member(*ROWS, value=None), "group_1"),
        (set_member(*ROWS, "targets", value=["Linear"]), "targets is"),
        (set_member(*ROWS, "format", value="pack-quantized"), "format is"),
        (set_member(*ROWS, "input_activations", value={}), "input_activations is {}, not None"),
        (set_member(*ROWS[:2], "group_2", value={}), "config_groups are"),
    ],
)
def test_a_config_that_says_otherwise_of_int8_embeddings_is_found(
    press, bert, scheme, change, detail
):
    pressed, recipe = run(press, bert, [{**scheme, "embeddings": True}], {})

    change(pressed.folder)

    with pytest.raises(Problem, match=r"config\.json: ") as caught:
        check(bert, pressed, recipe)
    assert detail in caught.value.detail


@pytest.mark.parametrize("scheme", [W8A16, W8A8])
def test_int8_embeddings_that_nobody_asked_for_are_found(press, bert, scheme):
    pressed, _ = run(press, bert, [{**scheme, "embeddings": True}], {})

    with pytest.raises(Problem) as caught:
        check(bert, pressed, parse_recipe({"steps": [scheme]}))
    assert caught.value.code == "invalid_artifact"


def test_a_loader_of_another_text_is_refused(save_model, press, weights):
    model = save_model({"a.weight": weights(4, 8)})
    pressed, recipe = run(press, model, [W8A16], {})

    with (pressed.folder / "load.py").open("a") as file:
        file.write("import os\n")

    with pytest.raises(Problem, match=r"load.py is not the loader"):
        check(model, pressed, recipe)


def test_a_file_cut_short_is_refused(save_model, press, weights):
    model = save_model({"a.weight": weights(4, 8)})
    pressed, recipe = run(press, model, [W8A16], {})

    path = pressed.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(Problem, match=r"ends at data byte") as caught:
        check(model, pressed, recipe)
    assert caught.value.code == "invalid_artifact"


def test_progress_counts_the_tensors(save_model, press, everything):
    tensors = everything(torch.bfloat16)
    model = save_model(tensors)
    pressed, recipe = run(press, model, [HALF, W8A16], {})
    told = []

    verify(model, pressed.folder, recipe, claims_of(pressed.report), on_progress=told.append)

    assert {(p.phase, p.step, p.steps, p.unit) for p in told} == {("verify", 2, 2, "tensors")}
    assert [p.done for p in told] == list(range(len(tensors) + 1))
