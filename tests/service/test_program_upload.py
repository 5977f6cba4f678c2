import io
import json

import pytest
import torch

from tests.programs.conftest import MODELS, export

W8A16 = {"op": "quantize", "scheme": "w8a16"}


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    cls, inputs = MODELS["pooled"]
    buffer = io.BytesIO()
    torch.export.save(export(cls().eval(), inputs(2)), buffer)
    return buffer.getvalue()


@pytest.fixture
def program(client, exported):
    answer = client.post("/models", data=exported)
    assert answer.status_code == 201, answer.text
    return answer.json


def test_a_program_is_stored_and_tells_of_itself(program):
    assert (program["format"], program["files"]) == ("pt2", ["model.pt2"])
    # Two Conv1d and two Linear, each with its bias.
    assert program["tensors"] == 8
    assert program["parameters"] == sum(p.numel() for p in MODELS["pooled"][0]().parameters())
    assert program["parameters_by_dtype"] == {"F32": program["parameters"]}
    assert "data/sample_inputs/model.pt" in program["ignored_files"]


def test_a_plan_tells_the_steps_and_what_is_left_alone(client, program):
    spec = {"steps": [{"op": "shrink", "width": 0.5, "exclude": ["hidden"]}, W8A16]}

    plan = client.post("/plans", json={"model": program["id"], "spec": spec}).json

    assert plan["fits"]
    assert plan["is_exact"]
    assert [(s["op"], s["method"], s["tensors_changed"]) for s in plan["steps"]] == [
        ("shrink", "magnitude", 5),
        ("quantize", "w8a16", 4),
    ]
    assert plan["artifact"]["format"] == "pt2"
    assert plan["smallest_budget"]["disk"] == plan["artifact"]["total_bytes"]
    assert "It is an output of the program." in plan["skipped"]


REFUSED = {
    "a group size": ({"steps": [{**W8A16, "group_size": 32}]}, "step_unsupported"),
    "another format": (
        {"steps": [W8A16], "output": {"format": "safetensors"}}, "output_unsupported",
    ),
    "nothing to do": ({"steps": [{**W8A16, "include": ["nothing"]}]}, "nothing_changed"),
    "too small a budget": (
        {"steps": [W8A16], "budget": {"disk": "1KiB"}}, "disk_budget_exceeded",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_program_cannot_have_is_refused_when_it_is_asked_for(client, program, spec, code):
    answer = client.post("/jobs", json={"model": program["id"], "spec": spec})

    assert (answer.status_code, answer.json["code"]) == (422, code)
    assert all(one["pointer"].startswith("/spec/") for one in answer.json["errors"])


def test_a_form_takes_a_program_with_its_recipe(client, exported):
    form = {"model": (io.BytesIO(exported), "model.pt2"), "spec": json.dumps({"steps": [W8A16]})}

    answer = client.post("/jobs", data=form, content_type="multipart/form-data")

    assert answer.status_code == 202, answer.text


def test_nothing_is_measured_or_suggested_of_a_program(client, program):
    measure = {"model": program["id"], "spec": {"steps": [{"op": "measure"}]}}
    goal = {"model": program["id"], "goal": {"target_bytes": "1KiB"}}

    for answer in (client.post("/jobs", json=measure), client.post("/plans", json=goal)):
        assert (answer.status_code, answer.json["code"]) == (422, "step_unsupported")
        assert "scheme w8a16" in answer.json["detail"]
