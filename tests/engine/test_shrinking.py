"""Shrunk models of every type, opened by transformers and run beside those that they come from."""

import json
import logging
import re
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from jobs.problems import Problem
from jobs.ranges import numbers_of
from planning.families import offered_types

HALF = {"op": "shrink", "width": 0.5}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SMALL, **TOKENS, "num_key_value_heads": 4}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
BERT_TOKENS = {"cls_token_id": 1, "sep_token_id": 2}
VIT = {**SMALL, "image_size": 16, "patch_size": 4}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 3, "num_heads": 4}
DISTIL = {"vocab_size": 64, "dim": 32, "hidden_dim": 40, "n_layers": 3, "n_heads": 4}
PAIR = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
    **TOKENS,
}
WHISPER = {**PAIR, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 30}

#: By model type: the class, its config, where channels come in, and where heads do.
CASES = {
    "llama": ("LlamaForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "mistral": ("MistralForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "gemma": ("GemmaForCausalLM", GROUPED | {"head_dim": 8}, "mlp.down_proj", "self_attn.o_proj"),
    "gemma2": ("Gemma2ForCausalLM", GROUPED | {"head_dim": 8}, "mlp.down_proj", "self_attn.o_proj"),
    "gemma3_text": (
        "Gemma3ForCausalLM",
        GROUPED | {"head_dim": 8},
        "mlp.down_proj",
        "self_attn.o_proj",
    ),
    "granite": ("GraniteForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "olmo": ("OlmoForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "qwen2": ("Qwen2ForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "qwen3": ("Qwen3ForCausalLM", GROUPED | {"head_dim": 8}, "mlp.down_proj", "self_attn.o_proj"),
    "smollm3": ("SmolLM3ForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "phi": ("PhiForCausalLM", GROUPED, "mlp.fc2", "self_attn.dense"),
    "phi3": ("Phi3ForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "starcoder2": ("Starcoder2ForCausalLM", GROUPED, "mlp.c_proj", "self_attn.o_proj"),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL, "mlp.dense_4h_to_h", None),
    "opt": ("OPTForCausalLM", SMALL | {"ffn_dim": 40, "word_embed_proj_dim": 32}, "fc2", None),
    "cohere": ("CohereForCausalLM", GROUPED, "mlp.down_proj", "self_attn.o_proj"),
    "gptj": ("GPTJForCausalLM", GPT2 | TOKENS | {"rotary_dim": 4}, "mlp.fc_out", None),
    "gpt2": ("GPT2LMHeadModel", GPT2, "mlp.c_proj", None),
    "bert": ("BertForMaskedLM", SMALL, "output.dense", None),
    "roberta": ("RobertaForMaskedLM", SMALL, "output.dense", None),
    "xlm-roberta": ("XLMRobertaForMaskedLM", SMALL, "output.dense", None),
    "camembert": ("CamembertForMaskedLM", SMALL, "output.dense", None),
    "electra": ("ElectraForMaskedLM", SMALL | {"embedding_size": 16}, "output.dense", None),
    "deberta-v2": ("DebertaV2ForMaskedLM", SMALL, "output.dense", None),
    "esm": (
        "EsmForMaskedLM",
        SMALL | {"mask_token_id": 1, "pad_token_id": 0},
        "output.dense",
        None,
    ),
    "modernbert": ("ModernBertForMaskedLM", SMALL | TOKENS | BERT_TOKENS, "mlp.Wo", None),
    "mpnet": ("MPNetForMaskedLM", SMALL, "output.dense", None),
    "distilbert": ("DistilBertForMaskedLM", DISTIL, "ffn.lin2", None),
    "vit": ("ViTForImageClassification", VIT, "mlp.fc2", None),
    "deit": ("DeiTForImageClassification", VIT, "mlp.fc2", None),
    "t5": ("T5ForConditionalGeneration", T5, "DenseReluDense.wo", "o"),
    "mt5": (
        "MT5ForConditionalGeneration",
        T5 | {"feed_forward_proj": "gated-gelu"},
        "DenseReluDense.wo",
        "o",
    ),
    "whisper": ("WhisperForConditionalGeneration", WHISPER, "fc2", None),
    "mbart": ("MBartForConditionalGeneration", PAIR, "fc2", None),
    "marian": ("MarianMTModel", PAIR, "fc2", None),
    "bart": ("BartForConditionalGeneration", PAIR, "fc2", None),
}
STAY = {"whisper", "bart", "mbart", "marian", "esm"}


@pytest.fixture
def make(tmp_path):
    """Save a small model of a type with random weights; give it and its folder."""

    def save(model_type, **config):
        name, small, _, _ = CASES[model_type]
        torch.manual_seed(0)
        model_class = getattr(transformers, name)
        model = model_class(model_class.config_class(**(small | config))).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Far from 0, so that what is left out is missed. Sines are not saved.
                if "embed_positions" not in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        folder = tmp_path / f"model-{model_type}"
        model.save_pretrained(folder)
        return model, folder

    return save


def run(model):
    config = model.config
    tokens = torch.arange(10)[None] % 60 + 3
    inputs = {"input_ids": tokens}
    if config.model_type in {"vit", "deit"}:
        torch.manual_seed(1)
        inputs = {"pixel_values": torch.randn(1, 3, 16, 16)}
    elif config.model_type == "whisper":
        torch.manual_seed(1)
        inputs = {"input_features": torch.randn(1, 8, 40), "decoder_input_ids": tokens}
    elif config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens.flip(1)
    with torch.no_grad():
        return model.eval()(**inputs).logits


@contextmanager
def silence():
    """Fail where anything is warned of or logged."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(handler)
    assert not [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def open_quietly(model_class, folder):
    with silence():
        model, loaded = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def own_name(name):
    # What transformers saves a ViT under are its names of before.
    return re.sub(r"^(vit|deit)\.encoder\.layer", r"\1.layers", name)


def layer_of(model, name):
    return model.get_submodule(re.match(r"(.+?\.\d+)\.", f"{own_name(name)}.")[1])


def leave_out(model, kept, down, output):
    """Zero what heads and channels that are not kept would add: an independent reference."""
    for one in kept:
        numbers = numbers_of(one.kept, one.count)
        if one.unit == "layers":
            layers = model.get_submodule(one.name)
            for number in sorted(set(range(one.count)) - set(numbers), reverse=True):
                del layers[number]
            continue
        for module in takers(model, one, down, output):
            is_transposed = type(module).__name__ == "Conv1D"
            weight = module.weight.data.T if is_transposed else module.weight.data
            width = weight.shape[1] // one.count
            for number in set(range(one.count)) - set(numbers):
                weight[:, number * width : (number + 1) * width] = 0


def takers(model, one, down, output):
    """Give the modules that take what heads or channels give: of one layer, or of all."""
    if one.unit == "heads":
        pattern = own_name(one.name).replace(".", r"\.").replace("*", r"\d+")
        end = output.rpartition(".")[2]
        found = [m for n, m in model.named_modules() if re.fullmatch(rf"{pattern}\.{end}", n)]
        assert found
        return found
    layer = layer_of(model, one.name)
    names = sorted((n for n, _ in layer.named_modules() if n.endswith(down)), key=len)
    return [layer.get_submodule(names[0])]


def test_every_family_that_is_offered_is_tried_here():
    assert sorted(CASES) == offered_types()


@pytest.mark.parametrize("model_type", CASES)
def test_a_shrunk_model_answers_as_the_whole_one_without_what_was_left_out(make, press, model_type):
    model, folder = make(model_type)
    _, _, down, output = CASES[model_type]

    pressed = press(folder, HALF)

    small = open_quietly(type(model), pressed.folder)
    kept = pressed.report.shrunk.kept
    assert {one.unit for one in kept} == ({"channels"} if output is None else {"heads", "channels"})
    before = run(model)
    leave_out(model, kept, down, output)
    torch.testing.assert_close(run(small), run(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(run(model), before, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("model_type", sorted(CASES.keys() - STAY))
def test_a_model_without_some_layers_answers_as_the_whole_one_that_skips_them(
    make, press, model_type
):
    model, folder = make(model_type)

    pressed = press(folder, {"op": "shrink", "layers": 0.6})

    small = open_quietly(type(model), pressed.folder)
    kept = pressed.report.shrunk.kept
    assert {(one.unit, one.kept) for one in kept} == {("layers", "0,2")}
    for one in kept:
        layers = model.get_submodule(own_name(one.name))
        del layers[1]
    model.config.use_cache = False
    torch.testing.assert_close(run(small), run(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["vit", "deit"])
def test_names_as_transformers_has_them_in_memory_are_known_too(make, press, model_type):
    model, folder = make(model_type)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})

    pressed = press(folder, HALF)

    assert f"{model_type}.layers.0.mlp.fc2.weight" in pressed.tensors
    small = open_quietly(type(model), pressed.folder)
    leave_out(model, pressed.report.shrunk.kept, "mlp.fc2", None)
    torch.testing.assert_close(run(small), run(model), rtol=1e-4, atol=1e-4)


def norms_of(tensors, layer):
    """Importances in numpy, from what the docstrings say."""
    mlp, attention = (f"model.layers.{layer}.{name}" for name in ("mlp", "self_attn"))
    double = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    channels = (
        np.linalg.norm(double[f"{mlp}.gate_proj.weight"], axis=1)
        * np.linalg.norm(double[f"{mlp}.up_proj.weight"], axis=1)
        * np.linalg.norm(double[f"{mlp}.down_proj.weight"], axis=0)
    )
    values = double[f"{attention}.v_proj.weight"]
    outputs = double[f"{attention}.o_proj.weight"]
    groups = len(values) // 4
    heads = np.linalg.norm(values.reshape(groups, -1), axis=1) * np.linalg.norm(
        outputs.reshape(len(outputs), groups, -1), axis=(0, 2)
    )
    return {"channels": channels, "heads": heads}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_most_important_heads_and_channels_are_kept(make, press, dtype):
    model, folder = make("mistral")
    model.to(dtype).save_pretrained(folder)

    kept = press(folder, {"op": "shrink", "width": 0.75}).report.shrunk.kept

    for one in kept:
        found = norms_of(model.state_dict(), one.name.split(".")[2])[one.unit]
        best = np.argsort(-found, kind="stable")[: len(found) * 3 // 4]
        assert numbers_of(one.kept, one.count) == sorted(best)
    assert len(kept) == 2 * 3


RECIPES = {
    "alone": [HALF],
    "layers too": [HALF | {"layers": 0.7}],
    "pruned": [HALF, {"op": "prune", "sparsity": 0.5, "scope": "global"}],
    "rounded": [HALF, {"op": "quantize", "scheme": "w8a8"}],
    "all of it": [
        HALF,
        {"op": "prune", "sparsity": 0.3},
        {"op": "quantize", "scheme": "w8a16", "max_relative_rmse": 0.02},
    ],
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model_type", ["mistral", "gpt2", "phi3", "t5"])
def test_the_artifact_is_the_same_for_any_chunks_and_threads(make, press, model_type, recipe):
    _, folder = make(model_type)

    # compressed-tensors has no Conv1D, and T5 asks its weights for their dtype.
    output = {"format": "auto" if model_type in {"mistral", "phi3"} else "safetensors"}

    artifacts = [
        press(folder, *RECIPES[recipe], chunk_bytes=n, threads=threads, output=output).folder
        for n, threads in ((2**20, 1), (1000, 2), (100, 3))
    ]

    first, *others = ({p.name: p.read_bytes() for p in a.iterdir()} for a in artifacts)
    assert all(other == first for other in others)


@pytest.mark.parametrize("model_type", ["llama", "bert", "gpt2"])
def test_what_is_shrunk_and_then_rounded_opens_and_is_what_rounding_the_shrunk_model_gives(
    make, press, model_type
):
    model, folder = make(model_type)
    rounding = {"op": "quantize", "scheme": "w8a8"}
    shape = {"output": {"format": "safetensors"}} if model_type == "gpt2" else {}

    at_once = press(folder, HALF, rounding, **shape)
    in_turn = press(press(folder, HALF).folder, rounding, **shape)

    assert at_once.tensors.keys() == in_turn.tensors.keys()
    for name, tensor in in_turn.tensors.items():
        assert torch.equal(at_once.tensors[name], tensor), name
    if model_type != "gpt2":
        opened = type(model).from_pretrained(at_once.folder)
        assert torch.isfinite(run(opened)).all()


def test_shards_of_which_nothing_is_left_are_not_written(make, press):
    model, folder = make("mistral")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="8KB")
    before = sorted(path.name for path in folder.glob("*.safetensors"))

    pressed = press(folder, {"op": "shrink", "layers": 0.4, "width": 0.5})

    after = sorted(path.name for path in pressed.folder.glob("*.safetensors"))
    index = json.loads((pressed.folder / "model.safetensors.index.json").read_text())
    assert set(after) < set(before)
    assert set(index["weight_map"].values()) == set(after)
    open_quietly(type(model), pressed.folder)


def test_the_report_says_what_was_cut_from_what(make, press):
    model, folder = make("mistral")

    report = press(folder, HALF, {"op": "prune", "sparsity": 0.5}).report

    shrink, prune = report.steps
    assert (shrink.op, shrink.method, shrink.tensors_changed) == ("shrink", "magnitude", 3 * 7)
    scored = sum(
        tensor.nbytes
        for name, tensor in model.state_dict().items()
        if name.split(".")[-2] in {"gate_proj", "up_proj", "down_proj", "v_proj", "o_proj"}
    )
    assert (shrink.bytes_read, shrink.bytes_written) == (scored, 0)
    assert shrink.weights_removed == report.model.parameters - report.shrunk.parameters
    assert prune.bytes_written == report.artifact.bytes
    assert report.shrunk.config == {
        "intermediate_size": 20,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    down = next(t for t in report.tensors if t.name == "model.layers.1.mlp.down_proj.weight")
    assert (down.shape_before, down.shape) == ((32, 40), (32, 20))
    assert (down.before.bytes, down.after.bytes) == (32 * 40 * 4, 32 * 20 * 4)
    assert (down.before.sparsity, down.after.sparsity) == (0, 0.5)


def test_a_weight_that_is_no_number_is_named(make, press):
    model, folder = make("mistral")
    model.model.layers[1].mlp.down_proj.weight.data[3, 5] = float("nan")
    model.save_pretrained(folder)

    with pytest.raises(Problem, match="NaN or an infinity in column 5") as caught:
        press(folder, HALF)

    assert caught.value.extra["tensor"] == "model.layers.1.mlp.down_proj.weight"


def test_sizes_that_the_config_class_refuses_are_not_made(make, press):
    _, folder = make("llama")

    report = press(folder, {"op": "shrink", "width": 0.75}).report

    assert {one.unit for one in report.shrunk.kept} == {"channels"}
    reasons = [one.reason for one in report.skipped if one.op == "shrink"]
    assert len(reasons) == 1
    assert "hidden_size to be a multiple of num_attention_heads" in reasons[0]


def test_heads_that_share_a_table_are_those_that_may_add_most_in_all_layers(make, press):
    model, folder = make("t5")
    with torch.no_grad():
        # By its own weights, the last layer would keep others than the first.
        for number, block in enumerate(model.encoder.block):
            scale = torch.tensor([4.0, 3, 2, 1] if number < 2 else [1.0, 2, 3, 8])
            block.layer[0].SelfAttention.v.weight.mul_(scale.repeat_interleave(8)[:, None])
    model.save_pretrained(folder)

    kept = {one.name: one for one in press(folder, HALF).report.shrunk.kept if one.unit == "heads"}

    shared = "{}.block.*.layer.0.SelfAttention"
    crossed = [f"decoder.block.{i}.layer.1.EncDecAttention" for i in range(3)]
    assert list(kept) == [shared.format("encoder"), shared.format("decoder"), *crossed]
    double = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    for name, one in kept.items():
        numbers = range(3) if "*" in name else [0]
        added = sum(bound_of(double, name.replace("*", str(number))) for number in numbers)
        best = np.argsort(-added, kind="stable")[:2]
        assert numbers_of(one.kept, one.count) == sorted(best), name
    assert numbers_of(kept[shared.format("encoder")].kept, 4) == [0, 3]


def bound_of(tensors, attention):
    values = tensors[f"{attention}.v.weight"].reshape(4, -1)
    outputs = tensors[f"{attention}.o.weight"].reshape(-1, 4, 8)
    return (values**2).sum(1) * (outputs**2).sum((0, 2))


def test_an_encoder_alone_loses_heads_and_layers_at_once(make, press):
    model, folder = make("t5")
    encoder = transformers.T5EncoderModel(model.config)
    encoder.load_state_dict(model.state_dict(), strict=False)
    encoder.save_pretrained(folder)

    pressed = press(folder, HALF | {"layers": 0.6})

    small = open_quietly(type(encoder), pressed.folder)
    leave_out(encoder, pressed.report.shrunk.kept, "DenseReluDense.wo", "o")
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        answers = [one.eval()(ids).last_hidden_state for one in (small, encoder)]
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)


def test_a_table_that_nobody_reads_any_more_stays_whole(make, press):
    model, folder = make("t5")
    old = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors = load_file(folder / "model.safetensors") | {old: torch.ones(32, 4)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    pressed = press(folder, HALF)

    assert pressed.tensors[old].shape == (32, 4)
    small = open_quietly(type(model), pressed.folder)
    assert small.config.num_heads == 2
    leave_out(model, pressed.report.shrunk.kept, "DenseReluDense.wo", "o")
    torch.testing.assert_close(run(small), run(model), rtol=1e-4, atol=1e-4)


def test_ties_keep_the_first_channels(make, press):
    model, folder = make("mistral")
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            torch.nn.init.ones_(layer.mlp.get_submodule(name).weight)
    model.save_pretrained(folder)

    kept = press(folder, HALF).report.shrunk.kept

    assert {one.kept for one in kept if one.unit == "channels"} == {"0-19"}
