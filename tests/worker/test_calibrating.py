"""Jobs whose weights data decide about: real models, in real runners and sandboxes."""

import json
import signal
import threading

import psutil
import pytest
import torch
from safetensors.torch import load_file, save

from calibration.running import calibrate
from engine.pipeline import compress
from jobs.checkpoint import open_checkpoint
from jobs.recipe import parse_recipe
from planning.forecast import forecast
from planning.memory_model import DEFAULT_LEVELS

WANDA = {"op": "prune", "method": "wanda", "sparsity": 0.5}
GPTQ = {"op": "quantize", "scheme": "w8a8", "method": "gptq"}
BY_DATA = {"op": "shrink", "width": 0.5, "importance": "activation"}


@pytest.fixture
def tokens(put):
    """Store rows of tokens, so many."""

    def tokens(rows=20, digit="d"):
        ids = torch.randint(101, (rows, 24), generator=torch.Generator().manual_seed(rows))
        return put(save({"input_ids": ids}), digit)

    return tokens


def test_a_job_is_calibrated_and_its_report_says_by_what(workshop, llama, tokens):
    recipe = {"steps": [WANDA, GPTQ], "calibrate": {"dataset": tokens(), "rows": 16}}

    job = workshop.run(llama, recipe)

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    found = report["calibration"]
    assert (found["rows"], found["tokens"], found["blocks"]) == (16, 16 * 24, 2)
    assert len(found["error_ratios"]) == 14
    assert report["memory"]["measured_peak_bytes"] >= found["resident_peak_bytes"] > 10**8
    assert report["verification"]["tensors"] == 21
    written = load_file(workshop.blobs.artifact_folder(job.id) / "model.safetensors")
    weights = [tensor for tensor in written.values() if tensor.dtype == torch.int8]
    assert len(weights) == 14
    assert all(((weight == 0).sum(1) >= weight.shape[1] // 2).all() for weight in weights)
    assert {path.name for path in workshop.blobs.job_folder(job.id).glob("work-*")} == set()


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_data_decide_what_a_job_keeps(workshop, llama, tokens, importance):
    step = {"op": "shrink", "width": 0.5, "importance": importance}
    recipe = {"steps": [step], "calibrate": {"dataset": tokens(), "rows": 16}}

    job = workshop.run(llama, recipe)

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    assert report["steps"][0]["method"] == importance
    assert report["calibration"]["rows"] == 16
    assert {one["unit"] for one in report["shrunk"]["kept"]} == {"heads", "channels"}


def test_an_equal_job_is_one_with_equal_data(workshop, llama, tokens):
    recipe = {"steps": [WANDA]}
    sections = [{"dataset": tokens(rows, digit)} for rows, digit in ((20, "d"), (9, "e"))]

    jobs = [
        workshop.run(llama, recipe | {"calibrate": section}, use_cache=True)
        for section in (sections[0], sections[1], sections[0])
    ]

    assert [job.cache for job in jobs] == ["miss", "miss", "hit"]
    digests = [job.artifact.digest for job in jobs]
    assert digests[0] == digests[2] != digests[1]


def test_data_that_do_not_fit_the_model_fail_the_job_with_their_place(workshop, llama, put):
    data = put(save({"input_ids": torch.full((3, 8), 101)}))

    job = workshop.run(llama, {"steps": [WANDA], "calibrate": {"dataset": data}})

    assert (job.state, job.failure["code"]) == ("failed", "invalid_dataset")
    assert "knows tokens from 0 to 100" in job.failure["detail"]


def test_a_worker_without_a_sandbox_runs_no_model(workshop, llama, tokens, monkeypatch):
    monkeypatch.setattr(workshop.supervisor.runners, "level", "none")

    job = workshop.run(llama, {"steps": [WANDA], "calibrate": {"dataset": tokens()}})

    # Another worker may have one.
    assert (job.state, job.attempts[0].reason) == ("queued", "sandbox_unavailable")


def test_a_budget_is_held_by_the_calibration_too(workshop, llama, tokens):
    recipe = {"steps": [WANDA], "calibrate": {"dataset": tokens()}}

    refused = workshop.run(llama, recipe | {"budget": {"host_memory": "300MB"}})
    smallest = refused.failure["smallest_bytes"]
    allowed = workshop.run(llama, recipe | {"budget": {"host_memory": smallest}})

    assert refused.failure["code"] == "memory_budget_exceeded"
    assert allowed.state == "succeeded", allowed.failure
    memory = workshop.blobs.report(allowed.id)["memory"]
    assert refused.failure["predicted_bytes"] <= memory["measured_peak_bytes"] <= smallest


def test_what_is_left_is_calibrated_as_in_jobs_one_after_the_other(
    workshop, llama, tokens, tmp_path
):
    section = {"calibrate": {"dataset": tokens(), "rows": 16}}
    parts = [[BY_DATA], [WANDA, GPTQ | {"smooth": 0.5}]]
    recipe = {"steps": parts[0] + parts[1], **section}
    model = workshop.blobs.files("models", llama.removeprefix("mdl_"))
    data = workshop.blobs.files("datasets", section["calibrate"]["dataset"][3:]) / "data"

    job = workshop.run(llama, recipe)

    assert job.state == "succeeded", job.failure
    report, folder = workshop.blobs.report(job.id), workshop.blobs.artifact_folder(job.id)
    expected, found = [], model
    for part in parts:
        made, work = (tmp_path / f"{kind}-{len(part)}" for kind in ("made", "work"))
        made.mkdir()
        alone = parse_recipe({"steps": part, **section})
        expected.append(calibrate(found, data, alone, work, lambda *_: None))
        compress(found, made, alone, on_progress=lambda _: None, calibrated=work)
        found = made
    written, wanted = (load_file(one / "model.safetensors") for one in (folder, found))
    assert written.keys() == wanted.keys()
    for name, tensor in wanted.items():
        # Another number of threads adds inputs up in another order.
        assert (written[name] == tensor).float().mean() > 0.999, name
    assert (folder / "config.json").read_bytes() == (found / "config.json").read_bytes()
    told = report["calibration"]
    assert told["error_ratios"] == pytest.approx(expected[1].error_ratios, rel=1e-3)
    assert told["smoothed_norms"] == list(expected[1].smoothed_norms) != []
    assert told["blocks"] == expected[0].blocks + expected[1].blocks == 4
    assert report["memory"]["measured_peak_bytes"] >= told["resident_peak_bytes"]
    assert [stage["steps"] for stage in report["stages"]] == [[1], [2, 3]]
    assert {one["unit"] for one in report["shrunk"]["kept"]} == {"heads", "channels"}
    planned = forecast(open_checkpoint(model), parse_recipe(recipe), DEFAULT_LEVELS).prediction
    counted = ("bytes_read", "bytes_written", "tensors_changed")
    for step, said in zip(planned.steps, report["steps"], strict=True):
        assert [getattr(step, name) for name in counted] == [said[name] for name in counted]
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert planned.artifact_bytes == sum(sizes.values()) - sizes["manifest.json"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_that_is_killed_ends_with_the_bytes_of_one_that_was_not(
    workshop, llama, tokens, wait_until
):
    data = tokens(400)
    recipe = {
        "steps": [{"op": "shrink", "width": 0.5}, WANDA, GPTQ],
        "calibrate": {"dataset": data, "rows": 400, "batch_size": 4},
        "evaluate": {"dataset": data, "rows": 400},
    }
    whole = workshop.run(llama, recipe)
    job_id = workshop.submit(llama, recipe)

    for phase in ("calibrate", "evaluate the original"):
        kill_in(phase, workshop, job_id, wait_until)
        assert workshop.store.get(job_id).state == "queued"
    workshop.supervisor.run("default", job_id)

    job = workshop.store.get(job_id)
    assert job.state == "succeeded", job.failure
    assert [row.reason for row in job.attempts] == ["runner_died", "runner_died", None]
    assert job.artifact.digest == whole.artifact.digest
    reports = [workshop.blobs.report(i)["calibration"]["error_ratios"] for i in (job_id, whole.id)]
    assert json.dumps(reports[0]) == json.dumps(reports[1])


def kill_in(phase, workshop, job_id, wait_until):
    """Run a job until it is in a phase, and kill what works on it."""
    thread = threading.Thread(target=workshop.supervisor.run, args=("default", job_id))
    thread.start()

    def runs():
        progress = workshop.store.get(job_id).progress
        return progress is not None and progress.phase == phase

    wait_until(runs, phase, 60)
    template = psutil.Process(workshop.supervisor.runners.template_pid)
    for process in template.children(recursive=True):
        if not process.children():
            process.send_signal(signal.SIGKILL)
    thread.join()
