"""Jobs that run their model before and after: real models, in real runners and sandboxes."""

import json
import math
import signal

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

BERT = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
W8A16 = {"op": "quantize", "scheme": "w8a16"}


@pytest.fixture
def bert(tmp_path, put):
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(folder)
    return put(folder)


def test_a_job_runs_its_model_before_and_after_and_tells_how_far_it_moved(workshop, bert):
    recipe = {"steps": [W8A16], "evaluate": {"rows": 20, "max_length": 16}}

    job = workshop.run(bert, recipe | {"gate": {"min_cosine": 0.999}})

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    quality = report["quality"]
    assert (quality["data"], quality["rows"], quality["tokens"]) == ("synthetic", 20, 320)
    assert 0.999 < quality["agreement"]["mean_cosine"] < 1
    assert quality["agreement"]["outputs"] == 20
    peaks = [quality[name]["resident_peak_bytes"] for name in ("before", "after")]
    assert report["memory"]["measured_peak_bytes"] == max(peaks)
    assert {path.name for path in workshop.blobs.job_folder(job.id).glob("work-*")} == set()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["w8a16", "w8a8"])
def test_the_cosine_of_a_job_is_that_of_transformers_itself(workshop, bert, put, scheme):
    ids = torch.randint(101, (12, 10), generator=torch.Generator().manual_seed(1))
    path = workshop.settings.data_dir / "ids"
    save_file({"input_ids": ids}, path)
    recipe = {
        "steps": [{"op": "quantize", "scheme": scheme, "embeddings": True}],
        "evaluate": {"dataset": put(path.read_bytes()), "batch_size": 5},
    }

    job = workshop.run(bert, recipe)

    assert job.state == "succeeded", job.failure
    folders = workshop.blobs.files("models", bert[4:]), workshop.blobs.artifact_folder(job.id)
    pooled = []
    for folder in folders:
        model = transformers.BertModel.from_pretrained(folder).eval()
        with torch.no_grad():
            pooled.append(model(ids).last_hidden_state.mean(1).double())
    expected = torch.cosine_similarity(*pooled, dim=1)
    agreement = workshop.blobs.report(job.id)["quality"]["agreement"]
    assert agreement["mean_cosine"] == pytest.approx(float(expected.mean()), abs=1e-6)
    assert agreement["least_cosine"] == pytest.approx(float(expected.min()), abs=1e-6)


def test_a_gate_on_answers_that_is_not_met_withholds_the_artifact_and_keeps_the_report(
    workshop, bert
):
    recipe = {
        "steps": [{"op": "prune", "sparsity": 0.9}],
        "evaluate": {"rows": 4, "max_length": 8},
        "gate": {"min_cosine": 0.9999},
    }

    job = workshop.run(bert, recipe)

    assert (job.state, job.failure["code"]) == ("failed", "gate_failed")
    measured = workshop.blobs.report(job.id)["quality"]["agreement"]["mean_cosine"]
    assert job.failure["measured"] == {"cosine": measured}
    assert workshop.blobs.artifact_folder(job.id) is None


def test_a_data_set_that_does_not_fit_fails_the_job_with_its_place(workshop, bert, put):
    rows = b'{"text": "a"}\n{"txt": "b"}\n'

    job = workshop.run(bert, {"steps": [W8A16], "evaluate": {"dataset": put(rows)}})

    assert (job.state, job.failure["code"]) == ("failed", "invalid_dataset")
    assert "Line 2" in job.failure["detail"]


def test_a_data_set_that_is_gone_fails_the_job(workshop, bert):
    job = workshop.run(bert, {"steps": [W8A16], "evaluate": {"dataset": "ds_" + "9" * 64}})

    assert (job.state, job.failure["code"]) == ("failed", "dataset_not_found")


def test_a_model_that_answers_with_no_numbers_fails_the_job(workshop, bert):
    path = workshop.blobs.files("models", bert[4:]) / "model.safetensors"
    state = load_file(path)
    state["encoder.layer.0.output.LayerNorm.bias"][:] = math.inf
    save_file(state, path, {"format": "pt"})

    job = workshop.run(bert, {"steps": [W8A16], "evaluate": {"rows": 2, "max_length": 4}})

    assert (job.state, job.failure["code"]) == ("failed", "evaluation_failed")
    assert "NaN or infinity" in job.failure["detail"]


@pytest.mark.slow
def test_a_runner_that_is_killed_while_it_runs_a_model_is_tried_again(workshop, bert, wait_until):
    import threading

    recipe = {"steps": [W8A16], "evaluate": {"rows": 1000, "max_length": 32}}
    job_id = workshop.submit(bert, recipe)
    thread = threading.Thread(target=workshop.supervisor.run, args=("default", job_id))
    thread.start()

    def runs():
        progress = workshop.store.get(job_id).progress
        return progress is not None and progress.phase == "evaluate the original"

    wait_until(runs, "the original to be run", 60)
    template = psutil.Process(workshop.supervisor.runners.template_pid)
    for process in template.children(recursive=True):
        if not process.children():
            process.send_signal(signal.SIGKILL)
    thread.join()

    job = workshop.store.get(job_id)
    assert (job.state, job.attempts[0].reason) == ("queued", "runner_died")
    workshop.supervisor.run("default", job_id)
    assert workshop.store.get(job_id).state == "succeeded"


@pytest.mark.slow
def test_a_job_with_an_evaluation_is_answered_by_an_equal_one_only(workshop, bert):
    recipe = {"steps": [W8A16], "evaluate": {"rows": 3, "max_length": 8}}
    plain = workshop.run(bert, {"steps": [W8A16]}, use_cache=True)

    first = workshop.run(bert, recipe, use_cache=True)
    second = workshop.run(bert, recipe, use_cache=True)

    assert (plain.cache, first.cache, second.cache) == ("miss", "miss", "hit")
    reports = [workshop.blobs.report(job.id)["quality"] for job in (first, second)]
    assert json.dumps(reports[0]) == json.dumps(reports[1])
    assert first.artifact.digest == plain.artifact.digest


def test_a_budget_in_which_no_model_can_be_run_is_refused_before_the_start(workshop, bert):
    recipe = {"steps": [W8A16], "evaluate": {"rows": 2, "max_length": 4}}

    refused = workshop.run(bert, recipe | {"budget": {"host_memory": "300MB"}})
    smallest = refused.failure["smallest_bytes"]
    allowed = workshop.run(bert, recipe | {"budget": {"host_memory": smallest}})

    assert refused.failure["code"] == "memory_budget_exceeded"
    assert allowed.state == "succeeded", allowed.failure
    memory = workshop.blobs.report(allowed.id)["memory"]
    assert refused.failure["predicted_bytes"] <= memory["measured_peak_bytes"] <= smallest
    assert memory["headroom_bytes"] == smallest - memory["measured_peak_bytes"]
    assert memory["predicted_peak_bytes"] == pytest.approx(memory["measured_peak_bytes"], rel=0.25)


def test_a_model_that_the_budget_does_not_hold_is_run_block_by_block(workshop, tmp_path, put):
    torch.manual_seed(0)
    large = BERT | {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    folder = tmp_path / "large"
    transformers.BertModel(transformers.BertConfig(**large)).save_pretrained(folder)
    recipe = {
        "steps": [{"op": "quantize", "scheme": "w8a8"}],
        "evaluate": {"rows": 12, "batch_size": 3, "max_length": 16},
        "budget": {"host_memory": "600MB"},
    }

    job = workshop.run(put(folder), recipe)

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    memory, quality = report["memory"], report["quality"]
    assert memory["measured_peak_bytes"] <= 600 * 10**6
    assert memory["predicted_peak_bytes"] == pytest.approx(memory["measured_peak_bytes"], rel=0.1)
    assert 0.9 < quality["agreement"]["mean_cosine"] < 1 - 1e-6
    for name in ("before", "after"):
        assert (quality[name]["blocks"], quality[name]["latency_seconds"]) == (12, {})
        # A twelfth of 151 MB, and what is outside of blocks.
        assert quality[name]["weight_bytes"] < 16 * 10**6
