"""Small models of many shapes and dtypes, for claims about every kind of model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from benchmarks.checkpoints import Llama, write_file, write_llama


def _llama(folder: Path) -> None:
    write_llama(folder, Llama(1024, 2816, 8, 16, 16_000))


def _square_matrices(folder: Path) -> None:
    folder.mkdir()
    write_file(folder / "model.safetensors", 256 * 1024**2)


def _gpt2(folder: Path) -> None:
    config = GPT2Config(
        n_embd=768, n_layer=6, n_head=12, vocab_size=8000, bos_token_id=0, eos_token_id=0
    )
    _save(GPT2LMHeadModel(config).float(), folder)


def _bert_without_pooler(folder: Path) -> None:
    config = BertConfig(
        hidden_size=512, num_attention_heads=8, num_hidden_layers=8, intermediate_size=2048
    )
    _save(BertModel(config, add_pooling_layer=False).half(), folder)


def _mixture_of_experts(folder: Path) -> None:
    config = MixtralConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, num_local_experts=8, vocab_size=8000,
    )  # fmt: skip
    _save(MixtralForCausalLM(config).bfloat16(), folder)


def _convolutions(folder: Path) -> None:
    shapes = {f"layers.{i}.weight": (512, 512, 3, 3) for i in range(8)}
    _save_file(folder, shapes, torch.float32)


def _long_rows(folder: Path) -> None:
    _save_file(folder, {"wide.weight": (16, 1_500_000)}, torch.float32)


def _many_tensors(folder: Path) -> None:
    _save_file(folder, {f"layers.{i}.weight": (64, 256) for i in range(4000)})


@dataclass(frozen=True)
class Specimen:
    """A model of the zoo.

    Attributes:
        write: Writes it into a folder that does not exist yet.
        output_format: In what an artifact can hold all of it quantized; see `jobs.recipe.Output`.
    """

    write: Callable[[Path], None]
    output_format: str = "auto"


#: By what each is called in a table.
ZOO = {
    "Llama, bf16": Specimen(_llama),
    "GPT-2, fp32, [in, out]": Specimen(_gpt2, "safetensors"),
    "BERT that only its code knows, fp16": Specimen(_bert_without_pooler),
    "Mixtral, bf16": Specimen(_mixture_of_experts, "safetensors"),
    "matrices of 32 MB, bf16": Specimen(_square_matrices),
    "convolutions, fp32": Specimen(_convolutions),
    "rows of 6 MB, fp32": Specimen(_long_rows),
    "4,000 small tensors, bf16": Specimen(_many_tensors),
}


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def _save_file(
    folder: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16
) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
