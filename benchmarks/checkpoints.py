"""Checkpoints of any size, written tensor by tensor: no more than one is ever in memory."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig

Shapes = dict[str, tuple[int, ...]]

_HEAD_SIZE = 64
#: Large enough for many layers of a small model, small enough for a large one to have many shards.
_SHARD_BYTES = 500_000_000


@dataclass(frozen=True)
class Llama:
    """The measures of a Llama in bfloat16, with an output head of its own.

    Attributes:
        hidden: Width of the residual stream, a multiple of 64.
        feed_forward: Width inside the MLPs.
        layers: Number of decoder layers.
        key_value_heads: Number of heads of 64 that keys and values have; queries fill `hidden`.
        vocabulary: Number of tokens.
    """

    hidden: int
    feed_forward: int
    layers: int
    key_value_heads: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes().values())

    def shapes(self) -> Shapes:
        """Give every tensor's shape, in the order of the model."""
        shapes: Shapes = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for number in range(self.layers):
            shapes |= {
                f"model.layers.{number}.{name}": shape
                for name, shape in self._layer_shapes().items()
            }
        shapes["model.norm.weight"] = (self.hidden,)
        shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        return shapes

    def config(self) -> LlamaConfig:
        """Give the config that transformers builds the model from."""
        return LlamaConfig(
            architectures=["LlamaForCausalLM"], dtype="bfloat16", vocab_size=self.vocabulary,
            hidden_size=self.hidden, intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers, num_attention_heads=self.hidden // _HEAD_SIZE,
            num_key_value_heads=self.key_value_heads, tie_word_embeddings=False,
        )  # fmt: skip

    def _layer_shapes(self) -> Shapes:
        hidden, narrow = self.hidden, self.key_value_heads * _HEAD_SIZE
        return {
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.k_proj.weight": (narrow, hidden),
            "self_attn.v_proj.weight": (narrow, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "mlp.gate_proj.weight": (self.feed_forward, hidden),
            "mlp.up_proj.weight": (self.feed_forward, hidden),
            "mlp.down_proj.weight": (hidden, self.feed_forward),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }


def write_file(path: Path, nbytes: int) -> None:
    """Write a bfloat16 .safetensors file of square matrices.

    Args:
        path: Where.
        nbytes: About how large; small files get smaller matrices.
    """
    side = 4096 if nbytes >= 256 * 1024**2 else 256
    count = max(1, round(nbytes / (2 * side * side)))
    _write(path, {f"layers.{i}.weight": (side, side) for i in range(count)}, torch.Generator())


def llama_of_size(nbytes: int) -> Llama:
    """Give a Llama of about that many bytes: more layers for a larger one, narrow for a small."""
    hidden, feed_forward, vocabulary = 2048, 5440, 32_000
    if nbytes < 400_000_000:
        hidden, feed_forward, vocabulary = 256, 640, 1000
    one, two = (
        Llama(hidden, feed_forward, layers, hidden // _HEAD_SIZE, vocabulary) for layers in (1, 2)
    )
    layer = two.parameters - one.parameters
    layers = max(1, 1 + round((nbytes / 2 - one.parameters) / layer))
    return Llama(hidden, feed_forward, layers, hidden // _HEAD_SIZE, vocabulary)


def write_llama(folder: Path, llama: Llama) -> None:
    """Write a transformers folder of a Llama, the same bytes each time, in shards of 500 MB.

    Its values are spread as a trained model's: normal within an output channel, with a deviation
    that differs from one channel to the next.

    Args:
        folder: Where; made.
        llama: The model.
    """
    folder.mkdir(parents=True)
    llama.config().save_pretrained(folder)
    shards = list(_shards(llama.shapes()))
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(folder / name, shapes, generator)
        places |= dict.fromkeys(shapes, name)
    index = {"metadata": {"total_size": 2 * llama.parameters}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _shards(shapes: Shapes) -> Iterator[Shapes]:
    shard: Shapes = {}
    filled = 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if shard and filled + nbytes > _SHARD_BYTES:
            yield shard
            shard, filled = {}, 0
        shard[name] = shape
        filled += nbytes
    yield shard


def _write(path: Path, shapes: Shapes, generator: torch.Generator) -> None:
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
            weights = _values(shape, generator).to(torch.bfloat16)
            file.write(weights.view(torch.uint8).numpy().data)


def _values(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return values.mul_(0.02).add_(1)
    deviations = torch.randn((shape[0], 1), generator=generator).mul_(0.3).exp_().mul_(0.02)
    return values.mul_(deviations)
