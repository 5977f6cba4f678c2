"""Shrunk artifacts and reports that are not what they should be."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from engine.verification import verify
from engine.verified_forms import claims_of
from jobs.problems import Problem
from jobs.ranges import numbers_of
from jobs.recipe import parse_recipe
from jobs.report import Report

HALF = {"op": "shrink", "width": 0.5, "layers": 0.6}
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    transformers.MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def check(folder, press):
    """Verify an artifact after something was done to it or its report."""
    return checking(folder, press)


def checking(folder, press):
    pressed = press(folder, HALF)

    def run(change):
        members = pressed.report.model_dump(mode="json")
        change(members, pressed.folder)
        report = Report.model_validate(members)
        recipe = parse_recipe({"steps": [HALF]})
        claims = claims_of(report)
        verify(folder, pressed.folder, recipe, claims, report.shrunk, on_progress=lambda _: None)

    return run


def test_what_was_not_changed_passes(check):
    check(lambda *_: None)


def keep_one_more(report, _):
    report["shrunk"]["kept"][0] |= {"kept": "0-2"}


def keep_others(report, _):
    for one in report["shrunk"]["kept"]:
        if one["unit"] == "channels":
            one["kept"] = "0-19"


def keep_what_is_not_there(report, _):
    report["shrunk"]["kept"][0] |= {"kept": "3-4"}


def say_nothing(report, _):
    report["shrunk"] = None


def leave_a_layer_unsaid(report, _):
    report["shrunk"]["kept"] = report["shrunk"]["kept"][1:]


def keep_other_layers(report, _):
    report["shrunk"]["kept"][-1] |= {"kept": "0-1"}


def exchange_columns(_, artifact):
    tensors = load_file(artifact / "model.safetensors")
    tensors[DOWN] = tensors[DOWN].flip(1).contiguous()
    save_file(tensors, artifact / "model.safetensors", metadata={"format": "pt"})


def claim_another_size(_, artifact):
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (keep_one_more, "keeps 3 of model.layers.0.self_attn, which should keep 2"),
        (keep_others, "column|more important"),
        (keep_what_is_not_there, "does not follow below 4"),
        (say_nothing, "does not say what was left out"),
        (leave_a_layer_unsaid, "speaks of other heads"),
        (keep_other_layers, "keeps other layers of model.layers"),
        (exchange_columns, "neither the model's value"),
        (claim_another_size, "intermediate_size"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_as_it_should_be_is_refused(check, change, said):
    with pytest.raises(Problem, match=said) as caught:
        check(change)

    assert caught.value.code == "invalid_artifact"


def claim_all_heads(_, artifact):
    config = json.loads((artifact / "config.json").read_text())
    (artifact / "config.json").write_text(json.dumps(config | {"num_heads": 4}))


def exchange_biases(_, artifact):
    tensors = load_file(artifact / "model.safetensors")
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tensors[name] = tensors[name].flip(1).contiguous()
    save_file(tensors, artifact / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (claim_all_heads, "'num_heads' is not as"),
        (exchange_biases, "relative_attention_bias"),
        (keep_one_more, r"keeps 3 of encoder\.block\.\*\.layer\.0\.SelfAttention"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_heads_that_share_a_table_are_checked_with_it(tmp_path, press, change, said):
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=32, d_model=32, d_kv=8, d_ff=40, num_layers=3, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    check = checking(tmp_path / "model", press)

    check(lambda *_: None)
    with pytest.raises(Problem, match=said) as caught:
        check(change)

    assert caught.value.code == "invalid_artifact"


def test_what_was_left_out_must_be_less_important(folder, check):
    def make_the_others_important(report, _):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for one in report["shrunk"]["kept"]:
            if one["unit"] != "layers":
                module = "mlp.gate_proj" if one["unit"] == "channels" else "self_attn.v_proj"
                layer = one["name"].rpartition(".")[0]
                rows = tensors[f"{layer}.{module}.weight"].view(one["count"], -1, 32)
                left_out = set(range(one["count"])) - set(numbers_of(one["kept"], one["count"]))
                rows[sorted(left_out)] *= 1000
        save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(Problem, match="were left out that are more important"):
        check(make_the_others_important)
