"""Make a Llama with random weights in bfloat16, as a transformers folder of several shards.

    python examples/make_llama.py llama/
    python examples/make_llama.py llama/ --size tiny

Nothing is downloaded. The seed is fixed, so the files have the same bytes each time.
"""

import argparse
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

# Hidden size, layers, vocabulary, and the size of a shard. The two larger ones have 95 million and
# 1.03 billion parameters.
SIZES = {
    "tiny": (64, 2, 256, "100KB"),
    "100m": (768, 10, 16_000, "50MB"),
    "1b": (2048, 18, 32_000, "500MB"),
}


def make_llama(hidden_size: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    """Build the model with seeded weights.

    Args:
        hidden_size: Width of the residual stream; a multiple of 64.
        layers: How many decoder layers.
        vocabulary: How many tokens.

    Returns:
        The model in bfloat16, its head apart from its embedding.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    """Save the model into the folder given as an argument."""
    parser = argparse.ArgumentParser(description="Make a Llama with random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="100m")
    arguments = parser.parse_args()
    hidden_size, layers, vocabulary, shard_size = SIZES[arguments.size]
    model = make_llama(hidden_size, layers, vocabulary)
    model.save_pretrained(arguments.folder, max_shard_size=shard_size)
    shards = len(list(arguments.folder.glob("*.safetensors")))
    print(f"{arguments.folder}: {model.num_parameters():,} parameters in {shards} shards")


if __name__ == "__main__":
    main()
