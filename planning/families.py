"""Which architectures can be shrunk, and where their heads, channels and layers are.

What a class of transformers cannot express stays as it is, with the reason: BERT's attention takes
the size of a head from their number, so there are always as many as fill the hidden size.
`tests/engine/test_shrinking.py` opens a shrunk model of every type and compares what it answers.
"""

from planning.anatomy import Channels, Family, HeadKeys, Heads, Stack

_DERIVED = (
    "Its class takes a head to be as large as the hidden size over the number of heads, so none "
    "can be left out."
)
_COUNT = ("num_hidden_layers",)
_SLIDING = ("use_sliding_window", "layer_types")


def _mlp(first: str, second: str, size_key: str = "intermediate_size") -> Channels:
    return Channels(size_key, ((first,),), second)


def _heads(
    output: str = "o_proj", beside: tuple[str, ...] = (), *, fills_hidden: bool = False
) -> Heads:
    return Heads(
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        f"self_attn.{output}",
        tuple(f"self_attn.{name}" for name in beside),
        fills_hidden,
    )


def _family(
    *model_types: str,
    channels: Channels,
    heads: Heads | str = _DERIVED,
    path: str = "layers",
    count_keys: tuple[str, ...] = _COUNT,
    is_transposed: bool = False,
    ordered_by: tuple[tuple[str | None, str | None], ...] = (),
) -> Family:
    stack = Stack(path, channels, heads if isinstance(heads, str) else (heads,), count_keys)
    return Family(frozenset(model_types), (stack,), is_transposed, ordered_by)


def _t5_mlp(layer: int) -> Channels:
    block = f"layer.{layer}.DenseReluDense"
    outputs = ((f"{block}.wi_0", f"{block}.wi_1"), (f"{block}.wi",))
    return Channels("d_ff", outputs, f"{block}.wo")


def _t5_heads(block: str, shared_bias: str | None) -> Heads:
    query, key, value, output = (f"{block}.{name}" for name in ("q", "k", "v", "o"))
    # Files of before have one beside the heads of the cross-attention too, which nobody reads.
    beside = (f"{block}.relative_attention_bias",)
    keys = HeadKeys("num_heads", None, "d_kv")
    return Heads(query, key, value, output, beside, keys=keys, shared_bias=shared_bias)


_GATED = Channels("intermediate_size", (("mlp.gate_proj", "mlp.up_proj"),), "mlp.down_proj")
_FUSED = Channels("intermediate_size", (("mlp.gate_up_proj",),), "mlp.down_proj", fused=2)
_BERT = Channels(
    "intermediate_size", (("intermediate.dense",),), "output.dense", beside=("output.LayerNorm",)
)
_NORMS = ("q_norm", "k_norm")
_T5_SELF = _t5_heads("layer.0.SelfAttention", "layer.0.SelfAttention.relative_attention_bias")
_T5_CROSS = _t5_heads("layer.1.EncDecAttention", None)
_T5 = (
    Stack("encoder.block", _t5_mlp(1), (_T5_SELF,), ("num_layers",)),
    Stack("decoder.block", _t5_mlp(2), (_T5_SELF, _T5_CROSS), ("num_decoder_layers",)),
)
_BART = (
    Stack(
        "encoder.layers",
        _mlp("fc1", "fc2", "encoder_ffn_dim"),
        _DERIVED,
        ("encoder_layers", "num_hidden_layers"),
    ),
    Stack("decoder.layers", _mlp("fc1", "fc2", "decoder_ffn_dim"), _DERIVED, ("decoder_layers",)),
)

#: The first whose model types and names of modules fit.
FAMILIES = (
    _family("llama", channels=_GATED, heads=_heads(fills_hidden=True)),
    _family("mistral", "gemma", "granite", "olmo", "cohere", channels=_GATED, heads=_heads()),
    _family("qwen2", channels=_GATED, heads=_heads(), ordered_by=(_SLIDING,)),
    _family("qwen3", channels=_GATED, heads=_heads(beside=_NORMS), ordered_by=(_SLIDING,)),
    _family(
        "smollm3",
        channels=_GATED,
        heads=_heads(),
        ordered_by=((None, "no_rope_layers"), _SLIDING),
    ),
    _family(
        "gemma2",
        "gemma3_text",
        channels=_GATED,
        heads=_heads(beside=_NORMS, fills_hidden=True),
        ordered_by=((None, "layer_types"),),
    ),
    _family(
        "phi3", channels=_FUSED, heads=Heads("self_attn.qkv_proj", None, None, "self_attn.o_proj")
    ),
    _family("phi", channels=_mlp("mlp.fc1", "mlp.fc2"), heads=_heads("dense")),
    _family("starcoder2", channels=_mlp("mlp.c_fc", "mlp.c_proj"), heads=_heads()),
    _family("gpt_neox", channels=_mlp("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    _family("opt", channels=_mlp("fc1", "fc2", "ffn_dim"), path="decoder.layers"),
    _family(
        "gpt2",
        channels=_mlp("mlp.c_fc", "mlp.c_proj", "n_inner"),
        path="h",
        count_keys=("n_layer",),
        is_transposed=True,
        ordered_by=(("scale_attn_by_inverse_layer_idx", None),),
    ),
    _family(
        *("bert", "roberta", "xlm-roberta", "camembert", "electra", "mpnet", "deberta-v2"),
        channels=_BERT,
        path="encoder.layer",
    ),
    _family(
        "modernbert",
        channels=Channels("intermediate_size", (("mlp.Wi",),), "mlp.Wo", fused=2),
        ordered_by=((None, "layer_types"),),
    ),
    _family(
        "gptj",
        channels=_mlp("mlp.fc_in", "mlp.fc_out", "n_inner"),
        path="h",
        count_keys=("n_layer",),
    ),
    _family(
        "distilbert",
        channels=_mlp("ffn.lin1", "ffn.lin2", "hidden_dim"),
        path="transformer.layer",
        count_keys=("n_layers",),
    ),
    # The names in files of before, and those that transformers 5 has in memory.
    _family(
        "vit", "deit", channels=_mlp("intermediate.dense", "output.dense"), path="encoder.layer"
    ),
    _family("vit", "deit", channels=_mlp("mlp.fc1", "mlp.fc2")),
    Family(
        frozenset({"esm"}),
        (Stack("encoder.layer", _BERT, _DERIVED, _COUNT),),
        layers_stay="Its contact head has weights for the heads of every layer.",
    ),
    Family(frozenset({"t5", "mt5"}), _T5),
    Family(
        frozenset({"whisper", "bart", "mbart", "marian"}),
        _BART,
        layers_stay="Its generation_config.json may name layers by their numbers.",
    ),
)


def find_families(model_type: object) -> list[Family]:
    """Give the families that a config's model type may belong to; empty where there is none."""
    return [family for family in FAMILIES if str(model_type) in family.model_types]


def offered_types() -> list[str]:
    """Give the model types of all families, in the order of the alphabet."""
    return sorted({name for family in FAMILIES for name in family.model_types})
