"""Artifacts made from transformers folders, opened by transformers itself."""

import importlib.util
import json
import logging

import pytest
import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

from jobs.problems import Problem

LLAMA = {
    "vocab_size": 199,
    "hidden_size": 120,
    "intermediate_size": 250,  # Not divisible by 4, so down_proj is padded when packed.
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 30,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 98,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
slow = pytest.mark.slow
QUANTIZE = {"op": "quantize"}


def make_llama(folder, *, tied: bool, dtype: torch.dtype = torch.bfloat16):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=tied)
    model = transformers.LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    return model


def make_bert(folder):
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(**BERT))
    model.save_pretrained(folder)
    return model


def make_gpt2(folder):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2))
    model.save_pretrained(folder)
    return model


def open_strictly(model_class, folder, caplog, **kwargs):
    """Open a folder; keys that are missing, left over or complained about are an error."""
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING, logger="transformers"):
        model, info = model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert "key" not in caplog.text.lower()
    return model.eval()


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(torch.cosine_similarity(first.double().ravel(), second.double().ravel(), dim=0))


def tokens(vocabulary: int) -> torch.Tensor:
    return torch.randint(3, vocabulary, (2, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("scheme", "tied"),
    [
        ("w8a16", False),
        pytest.param("w8a8", False, marks=slow),
        pytest.param("w8a16", True, marks=slow),
    ],
)
def test_a_llama_opens_with_from_pretrained_and_answers_as_before(
    tmp_path, press, caplog, scheme, tied
):
    original = make_llama(tmp_path / "model", tied=tied).eval()

    pressed = press(tmp_path / "model", {**QUANTIZE, "scheme": scheme})
    model = open_strictly(transformers.AutoModelForCausalLM, pressed.folder, caplog)

    with torch.no_grad():
        answer, expected = (m(tokens(199)).logits for m in (model, original))
    assert cosine(answer, expected) > 0.999
    assert pressed.report.artifact.format == "compressed-tensors"
    config = json.loads((pressed.folder / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"]
    assert config["format"] == {"w8a16": "pack-quantized", "w8a8": "int-quantized"}[scheme]
    assert len(pressed.report.tensors) == 14
    assert {skip.name for skip in pressed.report.skipped} == {"model.embed_tokens.weight"} | (
        set() if tied else {"lm_head.weight"}
    )


@pytest.mark.parametrize("scheme", [pytest.param("w8a16", marks=slow), "w8a8"])
def test_a_bert_opens_with_from_pretrained_and_gives_the_same_hidden_states(
    tmp_path, press, caplog, scheme
):
    original = make_bert(tmp_path / "model").eval()

    pressed = press(tmp_path / "model", {**QUANTIZE, "scheme": scheme})
    model = open_strictly(transformers.AutoModel, pressed.folder, caplog)

    with torch.no_grad():
        answer, expected = (m(tokens(101)).last_hidden_state for m in (model, original))
    assert cosine(answer, expected) > 0.999
    assert len(pressed.report.tensors) == 2 * 6 + 1


@pytest.mark.parametrize("scheme", ["w8a16", pytest.param("w8a8", marks=slow)])
@pytest.mark.parametrize("include", [None, pytest.param(["*embeddings*"], marks=slow)])
def test_a_bert_with_int8_embeddings_opens_and_gives_the_same_hidden_states(
    tmp_path, press, caplog, scheme, include
):
    original = make_bert(tmp_path / "model").eval()

    step = {**QUANTIZE, "scheme": scheme, "embeddings": True, "exclude": ["*token_type*"]}
    pressed = press(tmp_path / "model", step | ({"include": include} if include else {}))
    model = open_strictly(transformers.AutoModel, pressed.folder, caplog)

    with torch.no_grad():
        answer, expected = (m(tokens(101)).last_hidden_state for m in (model, original))
    assert cosine(answer, expected) > 0.999
    words = "embeddings.word_embeddings.weight"
    assert pressed.tensors[words].dtype == torch.int8
    assert len(pressed.report.tensors) == (0 if include else 2 * 6 + 1) + 2
    assert not pressed.report.loaders["vllm"].ok
    # What the loader makes of a row is what its int8 values and its one scale say.
    table = pressed.tensors[words].float() * pressed.tensors[f"{words}_scale"]
    torch.testing.assert_close(
        model.embeddings.word_embeddings.weight.detach(), table, rtol=0, atol=0
    )
    left = model.embeddings.token_type_embeddings.weight
    assert torch.equal(left, original.embeddings.token_type_embeddings.weight)


@pytest.mark.slow
def test_decompression_by_compressed_tensors_equals_that_of_load_py(tmp_path, press, caplog):
    make_llama(tmp_path / "model", tied=False)
    for form in (
        {"scheme": "w8a16"},
        {"scheme": "w8a8"},
        {"scheme": "w8a16", "group_size": 20},
        {"scheme": "w8a16", "group_size": 20, "embeddings": True},
        {"scheme": "w8a8", "embeddings": True},
    ):
        step = QUANTIZE | form
        compressed = press(tmp_path / "model", step)
        plain = press(tmp_path / "model", step, output={"format": "safetensors"})

        spec = importlib.util.spec_from_file_location("load", plain.folder / "load.py")
        load = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(load)
        expected = load.load_state_dict(plain.folder)
        model = open_strictly(transformers.AutoModelForCausalLM, compressed.folder, caplog)
        # The first forward pass has compressed-tensors decompress the whole model.
        with torch.no_grad():
            model(tokens(199))

        state = model.state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
        if form == {"scheme": "w8a16"}:
            name = "model.layers.0.mlp.down_proj.weight"
            values = unpack_from_int32(compressed.tensors[f"{name}_packed"], 8, (120, 250))
            scale = compressed.tensors[f"{name}_scale"]
            torch.testing.assert_close(
                values.to(scale.dtype) * scale, expected[name], rtol=0, atol=0
            )


@pytest.mark.slow
def test_a_fused_group_of_which_a_part_is_excluded_stays_float_and_loads(tmp_path, press, caplog):
    make_llama(tmp_path / "model", tied=False)

    pressed = press(
        tmp_path / "model",
        {**QUANTIZE, "scheme": "w8a16", "exclude": ["*.0.*.k_proj", "*.1.*.up_proj"]},
    )

    open_strictly(transformers.AutoModelForCausalLM, pressed.folder, caplog)
    config = json.loads((pressed.folder / "config.json").read_text())["quantization_config"]
    left = [
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
        "layers.0.self_attn.v_proj",
        "layers.1.mlp.gate_proj",
        "layers.1.mlp.up_proj",
    ]
    assert config["ignore"] == [f"model.{name}" for name in left] + ["lm_head", *left]
    reasons = {skip.name: skip.reason for skip in pressed.report.skipped}
    assert "k_proj" in reasons["model.layers.0.self_attn.q_proj.weight"]


@pytest.mark.slow
def test_the_base_model_opens_alone_where_a_part_of_it_is_excluded(tmp_path, press):
    original = make_llama(tmp_path / "model", tied=True).eval()

    pressed = press(tmp_path / "model", {**QUANTIZE, "scheme": "w8a16", "exclude": ["*layers.0*"]})

    model = transformers.AutoModel.from_pretrained(pressed.folder).eval()
    with torch.no_grad():
        answer = model(tokens(199)).last_hidden_state
        expected = original.model(tokens(199)).last_hidden_state
    assert cosine(answer, expected) > 0.999


@pytest.mark.slow
def test_a_pruned_folder_opens_as_before_with_its_config_untouched(tmp_path, press, caplog):
    original = make_llama(tmp_path / "model", tied=True)
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}})
    )

    pressed = press(
        tmp_path / "model",
        {"op": "prune", "structure": "2:4"},
        {"op": "prune", "sparsity": 0.1, "include": ["*embed_tokens"]},
    )

    model = open_strictly(transformers.AutoModelForCausalLM, pressed.folder, caplog)
    assert json.loads((pressed.folder / "config.json").read_text()) == config
    assert not (pressed.folder / "load.py").exists()
    assert set(pressed.tensors) == set(original.state_dict()) - {"lm_head.weight"}
    q_proj = model.model.layers[0].self_attn.q_proj.weight
    assert torch.all((q_proj.reshape(-1, 4) == 0).sum(1) == 2)
    assert int((model.lm_head.weight == 0).sum()) == round(0.1 * 199 * 120)
    skipped = {skip.name for skip in pressed.report.skipped if "not divisible" in skip.reason}
    assert skipped == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)}


@pytest.mark.slow
def test_a_gpt2_has_nothing_that_compressed_tensors_quantizes_and_is_told_what_does(
    tmp_path, press
):
    make_gpt2(tmp_path / "model")

    with pytest.raises(Problem, match=r"Conv1D; output.format safetensors") as caught:
        press(tmp_path / "model", {**QUANTIZE, "scheme": "w8a16"})

    assert caught.value.code == "nothing_changed"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_a_gpt2_is_quantized_by_output_column_as_safetensors(tmp_path, press, scheme):
    original = make_gpt2(tmp_path / "model")

    step = {**QUANTIZE, "scheme": scheme}
    pressed = press(tmp_path / "model", step, output={"format": "safetensors"})
    blocks = press(tmp_path / "model", step, output={"format": "safetensors"}, chunk_bytes=999)

    spec = importlib.util.spec_from_file_location("load", pressed.folder / "load.py")
    load = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(load)
    state = load.load_state_dict(pressed.folder)
    name = "transformer.h.0.attn.c_attn.weight"
    weight = original.state_dict()[name]
    scale = pressed.tensors[f"{name}_scale"]
    assert scale.shape == (1, weight.shape[1])
    assert torch.all((state[name] - weight).abs() <= scale * (0.5 + 2.0**-15))
    torch.testing.assert_close(
        scale[0], weight.abs().amax(0) / 127.5, rtol=0, atol=0, check_stride=False
    )
    for other in (path.name for path in pressed.folder.glob("*.safetensors")):
        assert (pressed.folder / other).read_bytes() == (blocks.folder / other).read_bytes()
    missing, unexpected = original.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])


@pytest.mark.slow
@pytest.mark.parametrize("chunk_bytes", [777, 2**20])
def test_a_conv1d_is_pruned_along_the_inputs_of_each_output_column(tmp_path, press, chunk_bytes):
    original = make_gpt2(tmp_path / "model")

    pressed = press(
        tmp_path / "model",
        {"op": "prune", "structure": "2:4", "include": ["*.attn.c_attn"]},
        {"op": "prune", "sparsity": 0.25, "scope": "row", "include": ["*.mlp.c_fc"]},
        {"op": "prune", "sparsity": 0.3, "include": ["*.mlp.c_proj"]},
        chunk_bytes=chunk_bytes,
    )

    name = "transformer.h.1.attn.c_attn.weight"
    grouped = original.state_dict()[name].T.reshape(144, 12, 4)
    rank = grouped.abs().argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    expected = torch.where(rank < 2, grouped, 0.0).reshape(144, 48).T
    assert torch.equal(pressed.tensors[name], expected)
    name = "transformer.h.1.mlp.c_fc.weight"
    weight = original.state_dict()[name]
    rank = weight.abs().argsort(dim=0, stable=True).argsort(dim=0)
    assert torch.equal(pressed.tensors[name], torch.where(rank < 12, 0.0, weight))
    name = "transformer.h.1.mlp.c_proj.weight"
    assert int((pressed.tensors[name] == 0).sum()) == round(0.3 * 192 * 48)


@pytest.mark.slow
def test_a_model_is_asked_only_where_the_table_does_not_fit_and_its_memory_is_in_the_report(
    tmp_path, press
):
    make_bert(tmp_path / "known")
    headless = transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False)
    headless.save_pretrained(tmp_path / "headless")

    known, asked = (
        press(tmp_path / name, {**QUANTIZE, "scheme": "w8a8"}).report
        for name in ("known", "headless")
    )

    assert known.memory.inspection_peak_bytes is None
    # A process that has imported torch and transformers is much larger than a runner's work.
    assert asked.memory.inspection_peak_bytes > 100 * 1024**2
    assert asked.memory.predicted_peak_bytes == pytest.approx(
        asked.memory.measured_peak_bytes, rel=0.1
    )
