"""Jobs that train: real models, in real runners and sandboxes."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save

from jobs.equal_jobs import answer
from jobs.job import new_job_id
from jobs.recipe import parse_recipe
from tests.worker.conftest import LLAMA
from worker.order import Order
from worker.orders import making_orders
from worker.runners import most_written_bytes

PRUNE = {"op": "prune", "sparsity": 0.5}
INT8 = {"op": "quantize", "scheme": "w8a16"}


@pytest.fixture
def tokens(put):
    """Store rows of tokens that can be learnt: each is the one before it and one more."""

    def tokens(rows=64):
        return put(save({"input_ids": counting(rows)}))

    return tokens


def counting(rows):
    starts = torch.randint(101, (rows, 1), generator=torch.Generator().manual_seed(rows))
    return (starts + torch.arange(24)) % 101


def finetune(dataset, **choices):
    plain = {"op": "finetune", "dataset": dataset, "steps": 6, "batch_size": 16}
    return plain | {"learning_rate": 1e-2} | choices


def test_a_model_is_pruned_trained_for_its_rounding_and_quantized_in_one_job(
    workshop, llama, tokens, put
):
    rows = 16
    data = tokens()
    held_out = put(save({"input_ids": counting(64)[-rows:].clone()}), "d")
    looks = {"quantize_aware": True, "evaluate_every": 3, "evaluation_rows": rows}
    recipe = {
        "steps": [PRUNE, finetune(data, **looks), INT8],
        "evaluate": {"dataset": held_out},
        "gate": {"max_perplexity_ratio": 1.0},
    }

    job = workshop.run(llama, recipe)

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    assert [step["op"] for step in report["steps"]] == ["prune", "finetune", "quantize"]
    training = report["training"]
    assert (training["objective"], training["rows"], training["steps"]) == ("causal_lm", 48, 6)
    assert training["micro_batch_size"] == 16
    assert training["losses"][-1]["loss"] < training["losses"][0]["loss"]
    pruned = [t for t in report["tensors"] if t["max_error_steps"] is not None]
    assert len(pruned) == 14
    assert all(t["after"]["sparsity"] >= 0.5 > t["before"]["sparsity"] for t in pruned)
    assert training["weights_held_zero"] == report["steps"][0]["weights_pruned"]
    assert report["model"]["bytes"] > report["artifact"]["bytes"]
    before, after = (report["quality"][when] for when in ("before", "after"))
    assert after["perplexity"] < before["perplexity"]
    # What training saw of its held-out rows is what the artifact answers to them.
    assert training["quantize_aware"] == {"scheme": "w8a16", "tensors": 14, "rounds_inputs": False}
    assert training["looks"][-1]["loss"] == pytest.approx(after["loss"], abs=1e-4)
    assert report["memory"]["measured_peak_bytes"] >= training["resident_peak_bytes"] > 10**8
    artifact = workshop.blobs.artifact_folder(job.id)
    assert {path.name for path in artifact.iterdir()} >= {"model.safetensors", "config.json"}
    assert {path.name for path in workshop.blobs.job_folder(job.id).glob("work-*")} == set()


def test_training_alone_gives_a_folder_that_opens_and_has_learnt(workshop, llama, tokens):
    job = workshop.run(llama, {"steps": [finetune(tokens(), steps=40)]})

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    folder = workshop.blobs.artifact_folder(job.id)
    model, loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    ids = (torch.arange(24) + 50)[None]
    assert (model(ids).logits.argmax(-1)[0, 8:-1] == ids[0, 9:]).float().mean() > 0.9
    changed = {tensor["name"] for tensor in report["tensors"]}
    assert changed == load_file(folder / "model.safetensors").keys()


def test_a_model_that_is_killed_in_training_ends_as_one_that_was_not(
    workshop, llama, tokens, wait_until
):
    recipe = {"steps": [PRUNE, finetune(tokens(), steps=120, micro_batch_size=4), INT8]}
    whole = workshop.run(llama, recipe)
    assert whole.state == "succeeded", whole.failure
    job_id = workshop.submit(llama, recipe)
    kept = workshop.blobs.job_folder(job_id)

    def kill(runner):
        # The pruning runner ends by itself; a checkpoint is there when it has trained for a second.
        wait_until(
            lambda: list(kept.glob("work-*/stage-2/training/checkpoints/training.json")),
            "a checkpoint",
            60,
        )
        workshop.runner().kill()

    workshop.while_running(job_id, kill)
    job = workshop.store.get(job_id)
    assert job.state == "queued"
    assert job.attempts[0].reason == "runner_died"
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert job.state == "succeeded", job.failure
    found, expected = (workshop.blobs.report(i)["training"] for i in (job_id, whole.id))
    assert found["resumed_at"] > 0
    assert expected["resumed_at"] is None
    assert [p["loss"] for p in found["losses"]] == [p["loss"] for p in expected["losses"]]
    assert job.artifact.digest == whole.artifact.digest


@pytest.mark.slow
def test_a_budget_is_kept_by_training_in_micro_batches(workshop, tmp_path, put):
    torch.manual_seed(0)
    config = LLAMA | {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 1024}
    folder = tmp_path / "wide"
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**config | {"max_position_embeddings": 256})
    )
    model.save_pretrained(folder)
    data = put(save({"input_ids": torch.randint(8192, (64, 128))}))
    step = finetune(data, steps=2, batch_size=64)
    budget = 900 * 10**6

    jobs = [
        workshop.run(put(folder), {"steps": [step], "budget": {"host_memory": limit}})
        for limit in (budget, 300 * 10**6)
    ]

    assert jobs[0].state == "succeeded", jobs[0].failure
    report = workshop.blobs.report(jobs[0].id)
    training, memory = report["training"], report["memory"]
    assert 1 < training["micro_batch_size"] < 64
    assert 0.6 * budget < memory["measured_peak_bytes"] <= budget
    assert memory["headroom_bytes"] >= 0
    assert (jobs[1].state, jobs[1].failure["code"]) == ("failed", "memory_budget_exceeded")
    assert jobs[1].failure["smallest_bytes"] > 300 * 10**6


def test_data_without_labels_fail_a_classifier_and_leave_nothing(workshop, tmp_path, put, tokens):
    folder = tmp_path / "bert"
    config = transformers.BertConfig(
        vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)

    job = workshop.run(put(folder), {"steps": [finetune(tokens())]})

    assert (job.state, job.failure["code"]) == ("failed", "invalid_dataset")
    assert "no labels" in job.failure["detail"]
    assert list(workshop.blobs.job_folder(job.id).glob("work-*")) == []


def test_evaluation_between_steps_tells_of_each_and_changes_no_byte(workshop, llama, tokens):
    section = {"dataset": tokens(), "rows": 16}
    whole, split = (
        workshop.run(llama, {"steps": [PRUNE, INT8], "evaluate": section | {"between": between}})
        for between in (False, True)
    )

    assert split.state == "succeeded", split.failure
    first, second = (workshop.blobs.report(job.id) for job in (whole, split))
    assert first["stages"] == []
    assert [stage["steps"] for stage in second["stages"]] == [[1], [2]]
    pruned, rounded = second["stages"]
    assert pruned["artifact_bytes"] > rounded["artifact_bytes"] == second["artifact"]["bytes"]
    assert pruned["after"]["perplexity"] != second["quality"]["before"]["perplexity"]
    assert rounded["after"] == second["quality"]["after"]
    assert pruned["agreement"]["kl_divergence"] > 0
    # Rounding moves answers far less than pruning half of the weights does.
    assert rounded["agreement"]["kl_divergence"] == pytest.approx(
        pruned["agreement"]["kl_divergence"], rel=0.2
    )
    files = {f.path: f.blake3 for f in whole.artifact.files if f.path.endswith(".safetensors")}
    others = {f.path: f.blake3 for f in split.artifact.files if f.path.endswith(".safetensors")}
    assert files == others


def test_a_cancelled_training_leaves_nothing_behind(workshop, llama, tokens, wait_until):
    job_id = workshop.submit(llama, {"steps": [finetune(tokens(), steps=5000)]})
    kept = workshop.blobs.job_folder(job_id)

    def cancel(_runner):
        wait_until(
            lambda: list(kept.glob("work-*/training/checkpoints/*.json")), "a checkpoint", 60
        )
        workshop.store.cancel(job_id)

    workshop.while_running(job_id, cancel)

    assert workshop.store.get(job_id).state == "cancelled"
    assert list(kept.glob("work-*")) == []


def test_what_training_may_write_goes_by_the_model_before_the_stage_it_begins_with_is_made(
    tmp_path,
):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(10**6))
    (tmp_path / "data").write_bytes(b"{}")
    dataset = "ds_" + "c" * 64
    members = {"steps": [PRUNE, finetune(dataset), INT8]}
    order = Order(str(tmp_path / "model"), str(tmp_path / "work"), members, "cpu")

    orders = making_orders(order, parse_recipe(members), {dataset: tmp_path / "data"})

    training = next(order for order in orders if order.task == "finetune")
    pruning = next(order for order in orders if order.task == "compress")
    assert not Path(training.model_folder).exists()
    # Two checkpoints of weights and two moments, in float32.
    assert most_written_bytes(training) - most_written_bytes(pruning) > 2 * 6 * 10**6


def trains(blobs, job_id, folder="work-*"):
    """Give the checkpoints of a training, which are there when it has trained for a second."""
    return list(blobs.job_folder(job_id).glob(f"{folder}/training/checkpoints/training.json"))


def test_a_training_that_is_asked_to_end_is_kept_and_the_steps_after_it_are_done(
    workshop, llama, tokens, wait_until
):
    recipe = {"steps": [PRUNE, finetune(tokens(), steps=50_000), INT8]}
    job_id = workshop.submit(llama, recipe, use_cache=True)

    def stop(_runner):
        wait_until(lambda: trains(workshop.blobs, job_id, "work-*/stage-2"), "a checkpoint", 60)
        workshop.blobs.note_stop(job_id)

    workshop.while_running(job_id, stop)

    job = workshop.store.get(job_id)
    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job_id)
    training = report["training"]
    assert (training["stopped_by"], training["stopped_early"]) == ("request", True)
    assert 0 < training["steps"] < training["planned_steps"] == 50_000
    assert [step["op"] for step in report["steps"]] == ["prune", "finetune", "quantize"]
    assert training["weights_held_zero"] == report["steps"][0]["weights_pruned"]
    assert report["verification"]["tensors"] > 0
    artifact = workshop.blobs.artifact_folder(job_id)
    assert json.loads((artifact / "manifest.json").read_text())["training"] == {
        "stopped_by": "request",
        "steps": training["steps"],
    }
    # It is no answer to whoever asks for all of the steps.
    twin = workshop.blobs.read_spec(job_id).model_copy(update={"id": new_job_id()})
    workshop.blobs.write_spec(twin)
    assert answer(workshop.blobs, twin) is None


def test_a_training_that_was_killed_is_kept_at_its_checkpoint_after_a_loss_of_redis(
    workshop, llama, tokens, wait_until
):
    job_id = workshop.submit(llama, {"steps": [finetune(tokens(), steps=50_000)]})

    def kill(runner):
        wait_until(lambda: trains(workshop.blobs, job_id), "a checkpoint", 60)
        runner.kill()

    workshop.while_running(job_id, kill)
    [checkpoint] = trains(workshop.blobs, job_id)
    steps = json.loads(checkpoint.read_text())["record"]["steps_done"]
    workshop.blobs.note_stop(job_id)
    workshop.store.redis.flushdb()
    workshop.store.submit(workshop.blobs.read_spec(job_id))
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert job.state == "succeeded", job.failure
    training = workshop.blobs.report(job_id)["training"]
    assert (training["stopped_by"], training["steps"]) == ("request", steps)
    assert training["resumed_at"] == steps


def test_a_training_that_was_asked_to_end_is_cancelled_still(workshop, llama, tokens, wait_until):
    job_id = workshop.submit(llama, {"steps": [finetune(tokens(), steps=50_000)]})

    def stop_and_cancel(_runner):
        wait_until(lambda: trains(workshop.blobs, job_id), "a checkpoint", 60)
        workshop.blobs.note_stop(job_id)
        workshop.store.stop(job_id)
        workshop.store.cancel(job_id)

    workshop.while_running(job_id, stop_and_cancel)

    job = workshop.store.get(job_id)
    assert (job.state, job.stop_requested) == ("cancelled", True)
    assert list(workshop.blobs.job_folder(job_id).glob("work-*")) == []
