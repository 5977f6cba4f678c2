"""Ten thousand rows through the whole stack within 512 MiB, beside one big forward."""

import json
import random

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from modelpress import Client

pytestmark = pytest.mark.slow

ROWS = 10_000
WORDS = [f"w{i}" for i in range(200)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    config = transformers.BertConfig(
        vocab_size=202, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=66,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    fast.save_pretrained(folder)
    return folder


def test_ten_thousand_rows_within_512_mib_equal_one_big_forward(stack, encoder, tmp_path):
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 40))) for _ in range(ROWS)]
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    with Client(stack.url) as client:
        step = {"op": "infer", "dataset": client.upload_dataset(dataset).id}
        recipe = {
            "steps": [step | {"format": "safetensors"}],
            "budget": {"host_memory": "512MiB"},
        }
        job = client.submit(client.upload_model(encoder).id, recipe, use_cache=False)
        client.wait(job.id, timeout=170)
        client.download(job.id, tmp_path / "answers")
        report = client.report(job.id)

    tokenizer = transformers.AutoTokenizer.from_pretrained(encoder)
    inputs = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        hidden = transformers.BertModel.from_pretrained(encoder).eval()(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    expected = (hidden * mask).sum(1) / mask.sum(1)
    got = load_file(tmp_path / "answers" / "embeddings.safetensors")["embedding"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert report["memory"]["measured_peak_bytes"] <= 512 * 2**20
    assert report["memory"]["headroom_bytes"] >= 0
    assert report["inference"]["rows"] == ROWS
    assert report["inference"]["batch_size"] > 16
