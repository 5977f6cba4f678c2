"""What a tensor's name and shape tell about its module, where no model is there to ask.

The rules err towards leaving a tensor alone: it is then reported as skipped, and an include pattern
still reaches it.
"""

from jobs.safetensors_header import TensorSpec

#: Kinds whose weights are pruned and quantized unless the recipe says otherwise.
COMPRESSED_KINDS = frozenset({"Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d"})

_HEADS = frozenset(
    {"lm_head", "embed_out", "output_head", "head", "classifier", "score", "qa_outputs"}
)
_EMBEDDINGS = frozenset({"wte", "wpe", "shared", "relative_attention_bias"})
_TRANSPOSED_CONVOLUTIONS = ("transpose", "deconv", "upconv")
#: Sibling modules that loaders fuse into one, so all of them have one scheme or none.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
_QUANTIZED_SUFFIXES = (
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "qweight",
    "qzeros",
    "SCB",
)
_QUANTIZED_DTYPES = frozenset({"I8", "U8", "F8_E4M3", "F8_E5M2"})


def module_of(tensor_name: str) -> str | None:
    """Give the module whose `weight` or `bias` a tensor is; None where its name tells none."""
    module, _, role = f".{tensor_name}".rpartition(".")
    return module.removeprefix(".") if role in {"weight", "bias"} else None


def kind_by_shape(tensor: TensorSpec, module: str) -> str:
    """Guess a module's kind from its weight.

    Rank 2 is a Linear, unless the last part of the name is that of an embedding (it contains
    ``embed``, ends in ``emb``, or is ``wte``, ``wpe``, ``shared``); rank 3, 4 and 5 are
    convolutions, unless the name speaks of a transposed one; rank 3 under ``experts`` is a stack of
    experts; rank 0 and 1 is a norm.

    Args:
        tensor: The weight.
        module: The name of its module.

    Returns:
        A kind as in `planning.module_kinds`.
    """
    last = module.rpartition(".")[2].lower()
    rank = len(tensor.shape)
    if rank < 2:
        return "Norm"
    if rank == 2:
        is_embedding = "embed" in last or last.endswith("emb") or last in _EMBEDDINGS
        return "Embedding" if is_embedding and last not in _HEADS else "Linear"
    if "experts" in module:
        return "Experts"
    convolution = {3: "Conv1d", 4: "Conv2d", 5: "Conv3d"}.get(rank, f"rank-{rank} module")
    if any(part in module.lower() for part in _TRANSPOSED_CONVOLUTIONS):
        return convolution.replace("Conv", "ConvTranspose")
    return convolution


def is_weight(tensor: TensorSpec) -> bool:
    """Whether a tensor could be a weight that steps change: floats of two or more dimensions."""
    is_float = tensor.dtype.startswith(("F", "BF"))
    return is_float and len(tensor.shape) > 1 and not tensor.name.endswith("bias")


def is_head(module: str) -> bool:
    """Whether a name is that of a model's output head."""
    return module.rpartition(".")[2] in _HEADS or module == "output"


def is_router(module: str) -> bool:
    """Whether a name is that of a module that sends tokens to experts."""
    return module.rpartition(".")[2] in {"gate", "router", "shared_expert_gate"} or (
        ".router." in f".{module}."
    )


def fused_siblings(module: str) -> tuple[str, ...]:
    """Give the modules that loaders fuse with this one, itself included; empty where none."""
    parent, dot, last = module.rpartition(".")
    for group in _FUSED:
        if last in group:
            return tuple(f"{parent}{dot}{name}" for name in group)
    return ()


def expert_block(module: str) -> str | None:
    """Give the module that holds all experts beside this one; None where it is no expert's."""
    block, mark, rest = module.partition(".experts.")
    return block + mark if mark and rest[:1].isdigit() else None


def is_quantized(tensor: TensorSpec) -> bool:
    """Whether a tensor can only come from a quantized checkpoint."""
    is_weight = module_of(tensor.name) is not None and len(tensor.shape) > 1
    return tensor.name.rpartition(".")[2] in _QUANTIZED_SUFFIXES or (
        is_weight and tensor.dtype in _QUANTIZED_DTYPES
    )
