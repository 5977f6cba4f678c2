from importlib.metadata import version
from pathlib import Path

import pytest

from jobs.checkpoint import Checkpoint, Shard
from jobs.safetensors_header import Header, TensorSpec
from planning.architectures import find_architecture, known_kinds, table_version

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
LINEARS = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LAYER]
NAMES = [f"{m}.weight" for m in ("model.embed_tokens", *LINEARS, "lm_head")]


def checkpoint_of(config, names, *, dtype="BF16", shape=(4, 4)):
    tensors = tuple(TensorSpec(name, dtype, shape, 0) for name in names)
    return Checkpoint(Path(), (Shard("model.safetensors", Header(tensors, {}, 0)),), config)


def test_the_table_is_of_the_installed_transformers():
    assert table_version() == version("transformers")


def test_a_known_model_is_told_by_its_names():
    kinds = known_kinds(checkpoint_of(LLAMA, NAMES))

    assert kinds is not None
    assert list(kinds.kinds) == ["model.embed_tokens", *LINEARS, "lm_head"]
    assert kinds.kinds["model.embed_tokens"] == "Embedding"
    assert {kinds.kinds[name] for name in (*LINEARS, "lm_head")} == {"Linear"}
    assert (kinds.head, kinds.prefix, kinds.tied) == ("lm_head", "model", [])
    assert kinds.peak_bytes is None


@pytest.mark.parametrize("has_head", [True, False])
def test_of_tied_weights_one_is_enough(has_head):
    tied = LLAMA | {"tie_word_embeddings": True}

    kinds = known_kinds(checkpoint_of(tied, NAMES if has_head else NAMES[:-1]))

    assert kinds is not None
    assert kinds.tied == [["model.embed_tokens.weight", "lm_head.weight"]]


def test_the_base_models_prefix_may_be_left_out():
    bare = [name.removeprefix("model.") for name in NAMES]

    kinds = known_kinds(checkpoint_of(LLAMA, bare))

    assert kinds is not None
    assert kinds.find("layers.0.mlp.up_proj") == "model.layers.0.mlp.up_proj"


def test_what_is_in_the_first_layer_alone_is_known():
    known = find_architecture("T5ForConditionalGeneration")
    config = {"model_type": "t5", "num_layers": 3, "num_decoder_layers": 2}

    names = known.weights(config)

    bias = "SelfAttention.relative_attention_bias.weight"
    assert {name for name in names if name.endswith(bias)} == {
        f"encoder.block.0.layer.0.{bias}",
        f"decoder.block.0.layer.0.{bias}",
    }
    assert "encoder.block.2.layer.0.SelfAttention.q.weight" in names
    assert "decoder.block.2.layer.0.SelfAttention.q.weight" not in names


@pytest.mark.parametrize(
    ("config", "names"),
    [
        pytest.param(None, NAMES, id="no config"),
        pytest.param(LLAMA | {"architectures": None}, NAMES, id="no architecture"),
        pytest.param(LLAMA | {"architectures": [{}]}, NAMES, id="architecture without a name"),
        pytest.param(LLAMA | {"architectures": ["Own"]}, NAMES, id="unknown architecture"),
        pytest.param(LLAMA | {"model_type": "mistral"}, NAMES, id="another model's config"),
        pytest.param(LLAMA | {"num_hidden_layers": 3}, NAMES, id="a layer is missing"),
        pytest.param(LLAMA | {"num_hidden_layers": 1}, NAMES, id="a layer too many"),
        pytest.param(LLAMA | {"num_hidden_layers": "2"}, NAMES, id="no number of layers"),
        pytest.param(LLAMA | {"num_hidden_layers": True}, NAMES, id="no number"),
        pytest.param(LLAMA | {"num_hidden_layers": 10**9}, NAMES, id="absurdly many layers"),
        pytest.param(LLAMA | {"tie_word_embeddings": None}, NAMES, id="no tie"),
        pytest.param(LLAMA, NAMES[:-1], id="an untied head is missing"),
        pytest.param(LLAMA, [*NAMES, "adapter.weight"], id="a weight too many"),
        pytest.param(LLAMA, [*NAMES[:-1], "head.weight"], id="another name"),
    ],
)
def test_what_does_not_fit_to_the_letter_is_not_known(config, names):
    assert known_kinds(checkpoint_of(config, names)) is None


def test_buffers_and_biases_do_not_hinder():
    kinds = known_kinds(checkpoint_of(LLAMA, NAMES))
    tensors = checkpoint_of(LLAMA, NAMES).shards[0].header.tensors
    more = (
        TensorSpec("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", (4,), 0),
        TensorSpec("model.layers.0.self_attn.bias", "F32", (4, 4), 0),
        TensorSpec("model.position_ids", "I64", (1, 4), 0),
    )
    shard = Shard("model.safetensors", Header((*tensors, *more), {}, 0))

    assert known_kinds(Checkpoint(Path(), (shard,), LLAMA)) == kinds
