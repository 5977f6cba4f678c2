"""A small language model, trained in minutes on the source of Python's standard library."""

import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 512
LENGTH = 96
_BATCH = 16
_RATE = 6e-3
_MODULES = 150


def train(folder: Path, steps: int) -> list[float]:
    """Train a model, and write it as a transformers folder with its tokenizer.

    Args:
        folder: Where.
        steps: How many batches of 16 rows of 96 tokens it sees.

    Returns:
        The loss of each step, in nats.
    """
    torch.manual_seed(0)
    train_texts, _ = texts()
    tokenizer = _train_tokenizer(train_texts)
    ids = torch.tensor(tokenizer("\n".join(train_texts))["input_ids"])
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=512, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(ids) - LENGTH, (_BATCH,))
        rows = torch.stack([ids[start : start + LENGTH] for start in starts.tolist()])
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return losses


def write_rows(path: Path, held_out: list[str], rows: int, seed: int = 0) -> None:
    """Write passages of some texts as JSON lines.

    Args:
        path: The file.
        held_out: The texts.
        rows: How many passages.
        seed: Which.
    """
    chance = random.Random(seed)
    joined = "\n".join(held_out)
    with path.open("w") as file:
        for _ in range(rows):
            start = chance.randrange(len(joined) - 600)
            file.write(json.dumps({"text": joined[start : start + 600]}) + "\n")


def texts() -> tuple[list[str], list[str]]:
    """Give modules of the standard library: those to train on, and others."""
    found = list(_modules())
    return found[: 4 * len(found) // 5], found[4 * len(found) // 5 :]


def _modules() -> Iterator[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    random.Random(0).shuffle(paths)
    for path in paths[:_MODULES]:
        yield path.read_text(encoding="utf-8", errors="replace")


def _train_tokenizer(train_texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(train_texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>"
    )
