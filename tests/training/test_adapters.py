"""Adapters beside frozen weights, and in them."""

import copy
import json

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from jobs.finetuning import Lora
from training.adapters import adaptable_names, add_adapters, merge_adapters, save_adapters

LORA = Lora(rank=3, alpha=6.0)
TOKENS = torch.arange(12).reshape(2, 6)


def make_model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=24, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval()


def trained(model, names=None, lora=LORA):
    """A model whose adapters are what chance makes of them."""
    parameters = add_adapters(model, lora, names or adaptable_names(model))
    chance = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.normal_(0, 0.2, generator=chance)
    return parameters


def test_every_matrix_can_have_one_but_for_a_head_that_is_tied_to_the_embedding():
    model = make_model()

    names = adaptable_names(model)

    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert names == tuple(f"transformer.h.{layer}.{kind}" for layer in (0, 1) for kind in kinds)
    with pytest.raises(ValueError, match=r"\['lm_head', 'nothing'\]"):
        add_adapters(model, LORA, [*names, "lm_head", "nothing"])
    with pytest.raises(ValueError, match="beside nothing"):
        add_adapters(model, LORA, [])


def test_what_only_derives_from_a_product_with_a_matrix_can_have_none():
    model = nn.TransformerEncoderLayer(8, 2, 16)

    # Attention reads out_proj's weight without calling it.
    assert adaptable_names(model) == ("linear1", "linear2")


def test_an_untrained_adapter_changes_nothing_and_only_adapters_are_trained():
    model = make_model()
    before, weights = model(TOKENS).logits, copy.deepcopy(model.state_dict())

    parameters = add_adapters(model, LORA, adaptable_names(model))
    after = model(TOKENS).logits
    after.square().mean().backward()

    assert torch.equal(before, after)
    assert [p for p in model.parameters() if p.requires_grad] == list(parameters.values())
    assert list(parameters)[:2] == [
        "transformer.h.0.attn.c_attn.lora_A.weight",
        "transformer.h.0.attn.c_attn.lora_B.weight",
    ]
    assert all(parameter.grad is not None for parameter in parameters.values())
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())


def test_equal_seeds_begin_alike():
    starts = []
    for seed in (1, 1, 2):
        parameters = add_adapters(model := make_model(), LORA, adaptable_names(model), seed=seed)
        starts.append(parameters["transformer.h.1.mlp.c_fc.lora_A.weight"])

    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize("bias", [False, True])
def test_the_answer_is_that_of_the_definition(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=bias))
    parameters = trained(model)
    first, second = parameters["0.lora_A.weight"], parameters["0.lora_B.weight"]
    given = torch.randn(4, 5)

    expected = F.linear(given, model[0].weight + 2 * second @ first, model[0].bias)

    torch.testing.assert_close(model(given), expected)
    assert (first.shape, second.shape) == ((3, 5), (7, 3))


def test_a_module_may_be_called_by_the_name_of_what_it_takes():
    model = nn.Sequential(nn.Linear(5, 7))
    trained(model)
    given = torch.randn(4, 5)

    assert torch.equal(model[0](input=given), model[0](given))


def test_a_merged_model_answers_as_with_its_adapters_and_has_none():
    model = make_model()
    names = [name for name, _ in model.named_parameters()]
    trained(model)
    with_adapters = model(TOKENS).logits

    lost = merge_adapters(model)

    torch.testing.assert_close(model(TOKENS).logits, with_adapters, rtol=1e-4, atol=1e-5)
    assert lost == {}
    assert [name for name, _ in model.named_parameters()] == names
    assert not any(module._forward_hooks for module in model.modules())


def test_a_merge_leaves_every_zero_of_a_sparse_weight_and_tells_how_many_it_left():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64))
    with torch.no_grad():
        model[0].weight[torch.rand(48, 64) < 0.5] = 0
    before = model[0].weight.detach().clone()
    parameters = trained(model)
    expected = before + 2 * parameters["0.lora_B.weight"] @ parameters["0.lora_A.weight"]

    lost = merge_adapters(model)

    zeros = before == 0
    assert lost == {"0": int(zeros.sum())}
    assert torch.equal(model[0].weight == 0, zeros)
    torch.testing.assert_close(model[0].weight[~zeros], expected[~zeros])


def test_an_adapter_beside_a_weight_of_zeros_is_merged():
    # A head begins so; it is not sparse.
    model = nn.Sequential(nn.Linear(6, 6, bias=False))
    nn.init.zeros_(model[0].weight)
    trained(model)
    given = torch.randn(3, 6)
    expected = model(given)

    assert merge_adapters(model) == {}
    torch.testing.assert_close(model(given), expected)


def test_weights_keep_their_dtype_and_are_rounded_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False)).bfloat16()
    before = model[0].weight.detach().clone()
    parameters = trained(model)
    change = 2 * parameters["0.lora_B.weight"] @ parameters["0.lora_A.weight"]

    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    assert model(torch.ones(2, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16
    merge_adapters(model)
    assert torch.equal(model[0].weight, (before.float() + change).bfloat16())


def test_a_merge_takes_a_bounded_piece_of_a_weight_at_a_time(largest_tensor):
    model = nn.Sequential(nn.Linear(1000, 5000, bias=False))
    trained(model)

    with largest_tensor:
        merge_adapters(model)

    assert largest_tensor.nbytes <= 2**20 * 4


def test_adapters_are_written_as_peft_names_them(tmp_path):
    model = make_model()
    names = ["transformer.h.1.attn.c_attn", "transformer.h.1.mlp.c_fc"]
    parameters = trained(model, names)

    save_adapters(model, LORA, tmp_path / "adapter")

    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = safetensors.torch.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (3, 6, True)
    assert config["target_modules"] == names
    assert tensors.keys() == {f"base_model.model.{name}" for name in parameters}
    for name, parameter in parameters.items():
        assert torch.equal(tensors[f"base_model.model.{name}"], parameter)


def test_a_name_that_ends_others_is_written_as_an_expression_that_only_it_fits(tmp_path):
    model = nn.ModuleDict(
        {"head": nn.Linear(4, 4), "inner": nn.ModuleDict({"head": nn.Linear(4, 4)})}
    )
    trained(model, ["head"])

    save_adapters(model, LORA, tmp_path)

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == "head"


# peft asks the model by a name that transformers has given up.
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_opens_what_was_written(tmp_path):
    peft = pytest.importorskip("peft", reason="it is no dependency, for it needs accelerate")
    model = make_model()
    trained(model)
    expected = model(TOKENS).logits
    save_adapters(model, LORA, tmp_path)

    opened = peft.PeftModel.from_pretrained(make_model(), tmp_path)

    torch.testing.assert_close(opened(TOKENS).logits, expected, rtol=1e-5, atol=1e-6)
