import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import modelpress
from modelpress import Client, DigestMismatch, ProblemError

ROOT = Path(__file__).parents[2]
RECIPE = {"steps": [{"op": "quantize", "scheme": "w8a16"}]}


def test_an_upload_arrives_whole_and_counts_its_bytes(service, client, model_folder):
    shown = []

    model = client.upload_model(model_folder, lambda done, total: shown.append((done, total)))

    assert model.bytes == len(service.models[model.id])
    assert shown[-1] == (model.bytes, model.bytes)
    assert service.requests("POST", "/models")[0]["Content-Length"] == str(model.bytes)


def test_an_upload_is_skipped_when_the_service_has_the_model(service, client, model_folder):
    first = client.upload_model(model_folder)
    shown = []

    second = client.upload_model(model_folder, lambda *amounts: shown.append(amounts))

    assert second == first
    assert len(service.requests("POST", "/models")) == 1
    assert shown == []


def test_an_upload_is_sent_whole_again_after_a_failure(service, client, model_file, problem_answer):
    service.fail_next("POST", "/models", problem_answer(500, "internal_error", retryable=True))

    model = client.upload_model(model_file)

    assert service.models[model.id] == model_file.read_bytes()
    assert len(service.requests("POST", "/models")) == 2


def test_an_upload_whose_answer_names_other_bytes_is_an_error(
    service, client, model_file, problem_answer
):
    other = problem_answer(201, "unused", id="mdl_" + "0" * 64)
    service.fail_next("POST", "/models", other)

    with pytest.raises(DigestMismatch, match=r"net\.safetensors arrived as mdl_0000"):
        client.upload_model(model_file)


def test_a_refused_upload_says_why(service, client, model_file, problem_answer):
    service.fail_next("POST", "/models", problem_answer(413, "too_large"))

    with pytest.raises(ProblemError, match="too_large"):
        client.upload_model(model_file)


def test_a_data_set_is_uploaded_under_its_own_kind_of_id(service, client, tmp_path):
    (tmp_path / "data.jsonl").write_text("{}")

    dataset = client.upload_dataset(tmp_path / "data.jsonl")

    assert dataset.id.startswith("ds_")
    assert dataset.bytes == 2


def test_models_walks_over_all_pages(service, client, tmp_path):
    ids = []
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
        ids.append(client.upload_dataset(tmp_path / name).id.replace("ds_", "mdl_"))
    service.models.update(dict.fromkeys(ids, b"model"))

    found = [model.id for model in client.models(page_size=2)]

    assert found == sorted(ids)
    assert len(service.requests("GET", "/models")) == 2


def test_jobs_walks_over_all_pages(service, client):
    ids = [service.add_job() for _ in range(5)]
    service.add_job("failed")

    found = [job.id for job in client.jobs(state="succeeded", page_size=2)]

    assert found == ids
    assert len(service.requests("GET", "/jobs")) == 3


def test_a_job_keeps_members_that_this_client_does_not_know(service, client):
    job = client.job(service.add_job())

    assert job.raw["a_member_of_tomorrow"] == 1


def test_a_cancel_says_whether_it_keeps_what_was_trained(service, client):
    plain, kept = service.add_job("running"), service.add_job("running")

    jobs = [client.cancel(plain), client.cancel(kept, keep=True)]

    assert service.cancels == [{}, {"keep": True}]
    assert [job.state for job in jobs] == ["cancelled", "running"]


def test_delete_removes_a_job(service, client):
    job_id = service.add_job()

    client.delete(job_id)

    assert service.jobs == {}


def test_run_goes_from_a_folder_to_an_artifact(service, client, model_folder, tmp_path):
    service.will("succeeded")

    job = client.run(model_folder, RECIPE, tmp_path / "out", labels={"team": "a"})

    assert job.state == "succeeded"
    assert job.labels == {"team": "a"}
    assert job.recipe == RECIPE
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == service.files[
        "model.safetensors"
    ]


def test_run_takes_the_id_of_an_uploaded_model(service, client, model_file, tmp_path):
    service.will("succeeded")
    model = client.upload_model(model_file)

    job = client.run(model.id, RECIPE, tmp_path / "out")

    assert job.model == model.id
    assert len(service.requests("POST", "/models")) == 1


def test_run_can_ask_for_a_job_to_be_run_whatever_there_is(service, client, model_file, tmp_path):
    service.will("succeeded", cache="bypass")

    job = client.run(model_file, {"steps": []}, tmp_path / "out", use_cache=False)

    [headers] = service.requests("POST", "/jobs")
    assert (headers["Cache-Control"], job.cache) == ("no-cache", "bypass")


def test_a_client_can_be_closed_without_a_with(service):
    client = Client(service.url)

    client.close()

    with pytest.raises(RuntimeError, match="closed"):
        client.job("job_x")


def test_the_public_names_are_exactly_those_exported():
    public = {
        name
        for name, value in vars(modelpress).items()
        if isinstance(value, type) and not name.startswith("_")
    }

    assert sorted(public) == modelpress.__all__


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert modelpress.__version__ == project["version"]


def test_the_import_brings_neither_the_service_nor_the_terminal():
    # httpx loads click and rich for its own command where they are installed, so that is barred
    # here: what is left is what this package asks for.
    script = (
        "import sys; sys.modules['httpx._main'] = None; import modelpress; "
        "heavy = {'torch', 'numpy', 'pydantic', 'redis', 'celery', 'flask', 'click', 'rich', "
        "'jobs', 'engine', 'service', 'worker', 'yaml'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )

    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)

    assert (done.stdout, done.stderr) == ("[]\n", "")
