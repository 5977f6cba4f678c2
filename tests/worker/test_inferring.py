"""Jobs that run a data set through a model: real ones, in real runners and sandboxes."""

import json
from functools import partial

import pytest
import torch
import transformers
from pyarrow import parquet
from safetensors.torch import load_file, save, save_file

from evaluation.folders import TransformersSubject
from evaluation.inferring import AnswerPlace, infer
from jobs.inferring import InferStep
from jobs.recipe import Budget

BERT = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
W8A16 = {"op": "quantize", "scheme": "w8a16"}


@pytest.fixture
def bert(tmp_path, put):
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    model = transformers.BertModel(transformers.BertConfig(**BERT)).eval()
    model.save_pretrained(folder)
    return put(folder), model


@pytest.fixture
def rows(tmp_path, put):
    """Store rows of ids, some of them padded, as a data set."""
    ids = torch.randint(101, (50, 12), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(12) < (torch.arange(50) % 12 + 1)[:, None]).long()
    inputs = {"input_ids": ids * mask, "attention_mask": mask}
    save_file(inputs, tmp_path / "ids")
    return put((tmp_path / "ids").read_bytes()), inputs


def embed(model, inputs):
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    return (hidden * mask).sum(1) / mask.sum(1)


def test_a_job_that_only_infers_gives_the_answers_of_one_big_forward(workshop, bert, rows):
    (model_id, model), (dataset, inputs) = bert, rows
    step = {"op": "infer", "dataset": dataset}

    job = workshop.run(model_id, {"steps": [step], "budget": {"host_memory": "1GiB"}})

    assert job.state == "succeeded", job.failure
    assert [file.path for file in job.artifact.files] == ["embeddings.parquet", "manifest.json"]
    folder = workshop.blobs.artifact_folder(job.id)
    table = parquet.read_table(folder / "embeddings.parquet")
    got = torch.tensor(table.column("embedding").to_pylist())
    torch.testing.assert_close(got, embed(model, inputs), atol=1e-5, rtol=1e-5)
    report = workshop.blobs.report(job.id)
    found, memory = report["inference"], report["memory"]
    assert (found["rows"], found["recheck"]["rows"], found["recheck"]["rerun"]) == (50, 50, 18)
    assert found["tokens"] == int(inputs["attention_mask"].sum())
    peaks = [one["resident_peak_bytes"] for one in (found, found["recheck"])]
    assert memory["measured_peak_bytes"] == max(peaks)
    assert memory["headroom_bytes"] == 2**30 - max(peaks)
    assert memory["measured_peak_bytes"] == pytest.approx(memory["predicted_peak_bytes"], rel=0.25)
    assert {path.name for path in workshop.blobs.job_folder(job.id).glob("work-*")} == set()


def test_after_compression_the_artifact_answers_and_the_answers_lie_beside_it(workshop, bert, rows):
    (model_id, _), (dataset, inputs) = bert, rows
    step = {"op": "infer", "dataset": dataset, "format": "safetensors", "rows": 20}

    job = workshop.run(model_id, {"steps": [W8A16, step]})

    assert job.state == "succeeded", job.failure
    folder = workshop.blobs.artifact_folder(job.id)
    model = transformers.BertModel.from_pretrained(folder).eval()
    expected = embed(model, {name: values[:20] for name, values in inputs.items()})
    got = load_file(folder / "answers/embeddings.safetensors")["embedding"]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    report = workshop.blobs.report(job.id)
    assert [step["op"] for step in report["steps"]] == ["quantize", "infer"]
    assert report["inference"]["file"] == "answers/embeddings.safetensors"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {file["path"] for file in manifest["files"]} == {
        "answers/embeddings.safetensors",
        "config.json",
        "model.safetensors",
    }


def test_a_budget_in_which_no_row_can_be_run_is_refused_with_one_that_works(workshop, bert, rows):
    model_id, dataset = bert[0], rows[0]
    recipe = {"steps": [{"op": "infer", "dataset": dataset, "rows": 5}]}

    refused = workshop.run(model_id, recipe | {"budget": {"host_memory": "300MB"}})
    smallest = refused.failure["smallest_bytes"]
    allowed = workshop.run(model_id, recipe | {"budget": {"host_memory": smallest}})

    assert refused.failure["code"] == "memory_budget_exceeded"
    assert allowed.state == "succeeded", allowed.failure
    assert smallest < 530_000_000


@pytest.mark.parametrize("is_trained", [False, True], ids=["parquet", "safetensors-of-a-training"])
def test_an_infer_step_that_is_killed_goes_on_to_the_bytes_of_one_that_was_not(
    workshop, llama, put, tmp_path, wait_until, is_trained
):
    ids = torch.randint(101, (2500, 12), generator=torch.Generator().manual_seed(2))
    data = put(save({"input_ids": ids}), "d")
    train = {"op": "finetune", "dataset": data, "rows": 16, "steps": 2, "learning_rate": 1e-2}
    form = "safetensors" if is_trained else "parquet"
    step = {"op": "infer", "dataset": data, "batch_size": 8, "format": form}
    job_id = workshop.submit(llama, {"steps": [train, step] if is_trained else [step]})
    kept = workshop.blobs.job_folder(job_id)

    def kill(_runner):
        def windows():
            journals = kept.glob("work-*/inferring/journal")
            return sum(len(path.read_bytes().splitlines()) for path in journals)

        wait_until(lambda: windows() >= 2, "a window of rows", 120)
        workshop.runner().kill()

    workshop.while_running(job_id, kill)
    job = workshop.store.get(job_id)
    assert (job.state, job.attempts[0].reason) == ("queued", "runner_died")
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert job.state == "succeeded", job.failure
    found = workshop.blobs.report(job_id)["inference"]
    # A training that was done again would have made other files, and there are no answers of those.
    assert 0 < found["resumed_at"] < found["rows"] == 2500
    artifact = workshop.blobs.artifact_folder(job_id)
    model = artifact if is_trained else workshop.blobs.files("models", llama.removeprefix("mdl_"))
    whole = infer(
        partial(TransformersSubject, model, model),
        workshop.blobs.files("datasets", "d" * 64) / "data",
        InferStep.model_validate(step),
        AnswerPlace(tmp_path / "expected", tmp_path / "scratch", "job"),
        Budget(),
        lambda *_: None,
    )
    expected = (tmp_path / "expected" / whole.file).read_bytes()
    assert found["batches"] == whole.batches
    assert (artifact / found["file"]).read_bytes() == expected
