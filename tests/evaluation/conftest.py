import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from engine.inspection import find_module_kinds

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ate", "fish", "while", "it", "rained"]
SPECIAL = ["[PAD]", "[UNK]"]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = SMALL | {"vocab_size": 40, "max_position_embeddings": 64}
VISION = SMALL | {"image_size": 16, "patch_size": 4}

CONFIGS = {
    "bert": (transformers.BertModel, transformers.BertConfig(**TEXT)),
    "bert-classifier": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**TEXT, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"},
                                label2id={"bad": 0, "fair": 1, "good": 2}),
    ),
    "bert-scores": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**TEXT, num_labels=1),
    ),
    "bert-lm": (transformers.BertLMHeadModel, transformers.BertConfig(**TEXT)),
    "bert-mlm": (transformers.BertForMaskedLM, transformers.BertConfig(**TEXT)),
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**TEXT, num_key_value_heads=2, pad_token_id=0),
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    ),
    "t5": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2,
                              num_heads=4, decoder_start_token_id=0),
    ),
    "vit": (transformers.ViTForImageClassification, transformers.ViTConfig(**VISION, num_labels=5)),
    "resnet": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                                  layer_type="basic", num_labels=4),
    ),
    "resnet-features": (
        transformers.ResNetModel,
        transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                                  layer_type="basic"),
    ),
    "whisper": (
        transformers.WhisperForConditionalGeneration,
        transformers.WhisperConfig(vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1,
                                   encoder_attention_heads=4, decoder_attention_heads=4,
                                   encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8,
                                   max_source_positions=20, max_target_positions=16,
                                   decoder_start_token_id=1, pad_token_id=0, bos_token_id=1,
                                   eos_token_id=2),
    ),
}  # fmt: skip

_KINDS = {}


def kinds_of(checkpoint):
    """Say what a checkpoint's modules are; a class that the table does not hold is asked once."""
    key = checkpoint.config["architectures"][0], checkpoint.config["model_type"]
    if key not in _KINDS:
        _KINDS[key] = find_module_kinds(checkpoint)
    return _KINDS[key]


@pytest.fixture
def make_folder(tmp_path):
    """Write a transformers folder of a small model by name, with a tokenizer of a few words."""

    def make(name: str, folder: str = "model"):
        torch.manual_seed(0)
        model_class, config = CONFIGS[name]
        model = model_class(config).eval()
        target = tmp_path / folder
        model.save_pretrained(target)
        vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
        ).save_pretrained(target)
        return target, model

    return make


@pytest.fixture
def write_lines(tmp_path):
    """Write a data set of JSON lines."""

    def write(*rows):
        path = tmp_path / "lines"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
