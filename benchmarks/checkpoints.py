"""Checkpoints of any size, written tensor by tensor: no more than one is ever in memory."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig

Shapes = dict[str, tuple[int, ...]]

_HIDDEN, _FEED_FORWARD, _VOCABULARY = 2048, 5440, 32_000


def write_file(path: Path, nbytes: int) -> None:
    """Write a bfloat16 .safetensors file of square matrices.

    Args:
        path: Where.
        nbytes: About how large; small files get smaller matrices.
    """
    side = 4096 if nbytes >= 256 * 1024**2 else 256
    count = max(1, round(nbytes / (2 * side * side)))
    _write(path, {f"layers.{i}.weight": (side, side) for i in range(count)})


def write_llama(folder: Path, nbytes: int) -> None:
    """Write a transformers folder of a Llama in bfloat16, one shard per layer and two more.

    Args:
        folder: Where; made.
        nbytes: About how large; the number of layers follows, or their width for a small one.
    """
    hidden, feed_forward, vocabulary = _HIDDEN, _FEED_FORWARD, _VOCABULARY
    if nbytes < 400_000_000:
        hidden, feed_forward, vocabulary = 256, 640, 1000
    layer = _layer_shapes(0, hidden, feed_forward)
    layer_bytes = 2 * sum(rows * (rest or [1])[0] for rows, *rest in layer.values())
    layers = max(1, round((nbytes - 4 * vocabulary * hidden) / layer_bytes))
    folder.mkdir(parents=True)
    LlamaConfig(
        architectures=["LlamaForCausalLM"], dtype="bfloat16", vocab_size=vocabulary,
        hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64,
        tie_word_embeddings=False,
    ).save_pretrained(folder)  # fmt: skip
    places: dict[str, str] = {}
    for name, shapes in _shards(layers, hidden, feed_forward, vocabulary):
        _write(folder / name, shapes)
        places |= dict.fromkeys(shapes, name)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(
    layers: int, hidden: int, feed_forward: int, vocabulary: int
) -> Iterator[tuple[str, Shapes]]:
    count = layers + 2
    yield (
        f"model-00001-of-{count:05}.safetensors",
        {"model.embed_tokens.weight": (vocabulary, hidden)},
    )
    for i in range(layers):
        yield f"model-{i + 2:05}-of-{count:05}.safetensors", _layer_shapes(i, hidden, feed_forward)
    yield (
        f"model-{count:05}-of-{count:05}.safetensors",
        {
            "model.norm.weight": (hidden,),
            "lm_head.weight": (vocabulary, hidden),
        },
    )


def _layer_shapes(number: int, hidden: int, feed_forward: int) -> Shapes:
    shapes: Shapes = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj.weight": (feed_forward, hidden) for name in ("gate", "up")}
    shapes["mlp.down_proj.weight"] = (hidden, feed_forward)
    shapes |= {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    return {f"model.layers.{number}.{name}": shape for name, shape in shapes.items()}


def _write(path: Path, shapes: Shapes) -> None:
    # By hand, because safetensors' own writer wants every tensor of the file in memory.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            weights = torch.randn(shape, dtype=torch.bfloat16).mul_(0.02)
            file.write(weights.view(torch.uint8).numpy().data)
