import pytest
import torch

from engine.verification import verify
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
}


def run(press, model, steps, members):
    pressed = press(model, *steps, **members)
    return pressed, parse_recipe({"steps": steps, **members})


def check(model, pressed, recipe):
    return verify(model, pressed.folder, recipe, pressed.report, on_progress=lambda _: None)


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
    verification = check(model, pressed, recipe)

    assert verification.tensors == len(tensors)
    is_quantized = recipe.steps[-1].op == "quantize"
    assert (verification.max_error_steps is not None) == is_quantized
    if is_quantized:
        # It saw a part of what the engine saw all of.
        worst = max(t.max_error_steps or 0 for t in pressed.report.tensors)
        assert 0.4 < verification.max_error_steps <= worst + 2.0**-17
