"""Jobs on exported programs: real ones, in real runners and sandboxes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs.problems import Problem
from jobs.program import open_program
from programs.values import ProgramFile
from tests.programs.conftest import MODELS, export, store

W8A16 = {"op": "quantize", "scheme": "w8a16"}


@pytest.fixture
def program(workshop, tmp_path):
    """Store a program as a model."""
    torch.manual_seed(0)
    cls, inputs = MODELS["residual"]
    with workshop.blobs.stage() as staged:
        store(export(cls().eval(), inputs(2)), staged / "files")
        facts = open_program(staged / "files/model.pt2").facts()
        workshop.blobs.publish("models", "d" * 64, staged, facts)
    return "mdl_" + "d" * 64


def test_a_job_makes_a_program_smaller_and_has_it_verified(workshop, program):
    job = workshop.run(program, {"steps": [{"op": "shrink", "width": 0.5}, W8A16]})

    assert job.state == "succeeded", job.failure
    assert {file.path for file in job.artifact.files} == {"model.pt2", "manifest.json"}
    report = workshop.blobs.report(job.id)
    assert report["verification"]["tensors"] == 19
    assert report["artifact"]["format"] == "pt2"
    assert [step["op"] for step in report["steps"]] == ["shrink", "quantize"]
    memory = report["memory"]
    assert memory["measured_peak_bytes"] == pytest.approx(memory["predicted_peak_bytes"], rel=0.25)


def test_what_is_left_of_a_program_is_pruned_by_data(workshop, program, put, tmp_path):
    rows = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    save_file({"image": rows}, tmp_path / "rows")
    section = {"dataset": put((tmp_path / "rows").read_bytes()), "rows": 16}
    wanda = {"op": "prune", "method": "wanda", "sparsity": 0.5}

    job = workshop.run(
        program, {"steps": [{"op": "shrink", "width": 0.5}, wanda, W8A16], "calibrate": section}
    )

    assert job.state == "succeeded", job.failure
    report = workshop.blobs.report(job.id)
    assert [stage["steps"] for stage in report["stages"]] == [[1], [2, 3]]
    assert [step["method"] for step in report["steps"]] == ["magnitude", "wanda", "w8a16"]
    found = report["calibration"]
    assert (found["rows"], found["blocks"], found["tokens"]) == (16, 0, None)
    memory = report["memory"]
    assert memory["measured_peak_bytes"] >= found["resident_peak_bytes"] > 10**8
    folder = workshop.blobs.artifact_folder(job.id)
    weight = ProgramFile(open_program(folder / "model.pt2")).read("down.weight")
    halves = (weight.reshape(len(weight), -1) == 0).sum(1)
    assert weight.dtype == "int8"
    assert (halves >= weight[0].size // 2).all()


def test_without_a_sandbox_no_program_is_opened(workshop, program):
    workshop.supervisor.runners.level = "none"

    job = workshop.run(program, {"steps": [W8A16]})

    # Another worker may have one.
    assert (job.state, job.attempt) == ("queued", 1)
    with pytest.raises(Problem, match="outside of a sandbox") as caught:
        workshop.supervisor._refuse_outside(workshop.blobs.files("models", "d" * 64))
    assert caught.value.code == "sandbox_unavailable"


def test_a_budget_below_what_torch_takes_is_refused(workshop, program):
    job = workshop.run(program, {"steps": [W8A16], "budget": {"host_memory": "100MiB"}})

    assert job.failure["code"] == "memory_budget_exceeded"
    assert job.failure["smallest_bytes"] > 300_000_000
    smallest = job.failure["smallest_bytes"]
    allowed = workshop.run(program, {"steps": [W8A16], "budget": {"host_memory": smallest}})
    assert allowed.state == "succeeded", allowed.failure


def test_a_program_answers_a_data_set(workshop, program, put, tmp_path):
    rows = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    save_file({"image": rows}, tmp_path / "rows")
    dataset = put((tmp_path / "rows").read_bytes())
    step = {"op": "infer", "dataset": dataset, "format": "safetensors", "output": "predictions"}

    job = workshop.run(program, {"steps": [step], "budget": {"host_memory": "600MB"}})

    assert job.state == "succeeded", job.failure
    torch.manual_seed(0)
    with torch.no_grad():
        expected = MODELS["residual"][0]().eval()(rows).softmax(1)
    path = workshop.blobs.artifact_folder(job.id) / "predictions.safetensors"
    torch.testing.assert_close(load_file(path)["probabilities"], expected, atol=1e-5, rtol=1e-5)
    assert workshop.blobs.report(job.id)["model"]["format"] == "pt2"
