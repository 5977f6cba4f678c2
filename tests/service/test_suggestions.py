"""POST /plans with a goal, from sensitivities that lie beside the model."""

import pytest

from jobs.kept_sensitivities import keep_sensitivities
from jobs.recipe import ENGINE_VERSION
from jobs.sensitivities import Rounding, Sensitivities, Variant

#: Of one float32 weight of 64 by 128, with a group_size of 128 for which channels are groups.
ERRORS = {None: 0.009, 128: 0.009, 32: 0.005}


@pytest.fixture
def model(client, make_checkpoint):
    checkpoint = make_checkpoint({"fc.weight": (64, 128), "fc.bias": (64,)})
    return client.post("/models", data=checkpoint).json["id"]


@pytest.fixture
def measured(blobs, model):
    """The model's id, as if a worker had measured it."""
    variants = [
        Variant(
            width=None,
            group_size=size,
            weights={"fc.weight": Rounding(relative_rmse=error, energy=1.0)},
        )
        for size, error in ERRORS.items()
    ]
    found = Sensitivities(
        engine_version=ENGINE_VERSION,
        variants=tuple(variants),
        seconds=0.1,
        predicted_peak_bytes=1,
        measured_peak_bytes=1,
    )
    keep_sensitivities(blobs, model, found)
    return model


def ask(client, model, **goal):
    return client.post("/plans", json={"model": model, "goal": goal})


def test_a_model_that_was_not_measured_is_told_by_which_job_it_is(client, model):
    answer = ask(client, model, target_bytes="20KiB")

    assert (answer.status_code, answer.json["code"]) == (409, "not_measured")
    job = client.post("/jobs", json=answer.json["measure"])
    assert job.status_code == 202
    assert job.json["links"]["sensitivities"] == f"/models/{model}/sensitivities"
    assert client.get(f"/models/{model}/sensitivities").json["code"] == "not_measured"


def test_suggestions_are_complete_recipes_by_loss(client, measured):
    found = ask(client, measured, target_bytes="20KiB").json

    assert found["model"] == measured
    assert found["model_bytes"] > 64 * 128 * 4
    losses = [one["loss"] for one in found["suggestions"]]
    assert losses == sorted(losses) == [0.005, 0.009]
    for one in found["suggestions"]:
        assert one["plan"]["fits"] is True
        assert one["plan"]["artifact"]["total_bytes"] <= 20 * 1024
        assert one["loaders"]["plain_torch"]["ok"] is True
        planned = client.post("/plans", json={"model": measured, "spec": one["recipe"]}).json
        assert planned == one["plan"]
        assert (
            client.post("/jobs", json={"model": measured, "spec": one["recipe"]}).status_code == 202
        )


def test_a_goal_that_nothing_reaches_names_the_least_and_its_recipe(client, measured):
    refused = ask(client, measured, target_bytes=100)

    assert (refused.status_code, refused.json["code"]) == (422, "goal_unreachable")
    assert refused.json["errors"][0]["pointer"] == "/goal/target_bytes"
    least = ask(client, measured, target_bytes=refused.json["least_bytes"]).json
    assert least["suggestions"][0]["recipe"] == refused.json["recipe"]


def test_what_was_measured_can_be_looked_at_until_the_model_goes(client, measured):
    found = client.get(f"/models/{measured}/sensitivities").json
    assert [one["group_size"] for one in found["variants"]] == list(ERRORS)

    client.delete(f"/models/{measured}")

    assert client.get(f"/models/{measured}/sensitivities").json["code"] == "model_not_found"
    assert ask(client, measured, target_bytes=1000).json["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"model": "mdl_x", "goal": {}}, "/goal"),
        ({"model": "mdl_x", "goal": {"target_bytes": 0}}, "/goal/target_bytes"),
        ({"model": "mdl_x", "goal": {"target_bytes": 9, "speed": 2}}, "/goal/speed"),
        ({"model": "mdl_x", "goal": {"max_size_ratio": 1.5}}, "/goal/max_size_ratio"),
        ({"headers": {"a.safetensors": {}}, "goal": {"target_bytes": 9}}, ""),
        ({"model": "mdl_x"}, ""),
    ],
)
def test_a_goal_that_is_none_is_refused_with_its_place(client, members, pointer):
    answer = client.post("/plans", json=members)

    assert (answer.status_code, answer.json["code"]) == (400, "malformed_request")
    assert [error["pointer"] for error in answer.json["errors"]] == [pointer]


def test_a_recipe_and_a_goal_are_two_questions(client, measured, recipe):
    body = {"model": measured, "spec": recipe, "goal": {"target_bytes": 9}}

    assert client.post("/plans", json=body).json["code"] == "malformed_request"


def test_measuring_stands_alone_and_is_not_planned(client, measured, recipe):
    measure = {"op": "measure"}
    both = client.post(
        "/plans", json={"model": measured, "spec": {"steps": [measure, *recipe["steps"]]}}
    )
    gated = {"steps": [measure], "gate": {"max_size_ratio": 0.5}}
    alone = client.post("/plans", json={"model": measured, "spec": {"steps": [measure]}})

    assert both.json["code"] == "invalid_recipe"
    assert (
        client.post("/jobs", json={"model": measured, "spec": gated}).json["code"]
        == "invalid_recipe"
    )
    assert (alone.status_code, alone.json["code"]) == (422, "step_unsupported")


def test_a_measuring_job_that_would_find_nothing_or_hold_too_much_is_refused(
    client, make_checkpoint, model
):
    bare = client.post("/models", data=make_checkpoint({"bias": (4,)})).json["id"]
    measure = {"steps": [{"op": "measure"}]}
    tight = measure | {"budget": {"host_memory": 1000}}

    assert (
        client.post("/jobs", json={"model": bare, "spec": measure}).json["code"]
        == "nothing_changed"
    )
    refused = client.post("/jobs", json={"model": model, "spec": tight}).json
    assert refused["code"] == "memory_budget_exceeded"


def test_a_measuring_job_has_no_artifact_and_no_report_and_says_where_to_look(
    client, model, store, blobs
):
    from jobs.blobs import now_ms
    from jobs.job import JobResult

    spec = {"steps": [{"op": "measure"}]}
    job_id = client.post("/jobs", json={"model": model, "spec": spec}).json["id"]
    token = store.claim(job_id, "tester").token
    result = JobResult(id=job_id, state="succeeded", attempt=1, finished_ms=now_ms())
    blobs.publish_result(result)
    store.finish(result, token)

    job = client.get(f"/jobs/{job_id}").json
    assert (job["state"], job["artifact"]) == ("succeeded", None)
    for name, code in (("artifact", "no_artifact"), ("report", "no_report")):
        answer = client.get(f"/jobs/{job_id}/{name}")
        assert (answer.status_code, answer.json["code"]) == (409, code)
        assert f"/models/{model}/sensitivities" in answer.json["detail"]
