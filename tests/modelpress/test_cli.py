import json
import socket
from pathlib import Path

import pytest
import yaml
from blake3 import blake3
from click.testing import CliRunner
from flask import Response

from modelpress.cli import cli

SUGGESTIONS = json.loads((Path(__file__).parent / "suggestions.json").read_text())


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("steps:\n  - {op: quantize, scheme: w8a16}\n")
    return str(path)


@pytest.fixture
def invoke(service):
    def invoke(*words, **options):
        arguments = ["--url", service.url, *map(str, words)]
        return CliRunner().invoke(cli, arguments, catch_exceptions=False, **options)

    return invoke


@pytest.fixture
def run(invoke, model_file, recipe_file, tmp_path):
    def run(*options, before=()):
        words = ["run", model_file, "--recipe", recipe_file, "-o", tmp_path / "out", *options]
        return invoke(*before, *words)

    return run


@pytest.fixture
def unused_url():
    # A port that is bound but not listened on refuses, and nobody else can take it meanwhile.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_run_downloads_the_artifact_and_prints_the_report(service, run, tmp_path):
    service.will("succeeded")

    done = run("--label", "team=a", "--label", "why=x=y")

    assert done.exit_code == 0
    assert "2.00 GiB -> 1.00 GiB" in done.stdout
    assert (tmp_path / "out" / "a" / "b.json").read_bytes() == b"{}"
    assert service.jobs["job_0000"]["labels"] == {"team": "a", "why": "x=y"}


def test_run_tells_its_progress_in_lines_on_standard_error(service, run):
    service.will("succeeded")

    lines = run().stderr.splitlines()

    assert "job job_0000" in lines
    assert "running: quantize (step 1 of 1): 5 of 10 tensors, 2.5s left" in lines
    assert lines[-1].endswith("digests verified")


@pytest.mark.parametrize("words", [("run", "-o", "out"), ("submit",)])
def test_a_data_set_is_uploaded_and_named_in_the_recipe(
    service, invoke, model_file, tmp_path, words
):
    recipe = tmp_path / "evaluating.yaml"
    recipe.write_text("steps: [{op: quantize, scheme: w8a16}]\nevaluate: {rows: 9}\n")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "a"}\n')
    known = "ds_" + "1" * 64

    for dataset in (lines, known):
        service.will("succeeded")
        words = [str(tmp_path / word) if word == "out" else word for word in words]
        done = invoke(*words, model_file, "--recipe", recipe, "--dataset", dataset)
        assert done.exit_code == 0, done.output

    asked = [job["recipe"]["evaluate"] for job in service.jobs.values()]
    uploaded = "ds_" + blake3(lines.read_bytes()).hexdigest()
    assert asked == [{"rows": 9, "dataset": uploaded}, {"rows": 9, "dataset": known}]
    assert len(service.requests("POST", "/datasets")) == 1


def test_a_data_set_is_named_in_a_step_that_runs_the_model_over_it(
    service, invoke, model_file, tmp_path
):
    recipe = tmp_path / "inferring.yaml"
    recipe.write_text("steps: [{op: quantize, scheme: w8a16}, {op: infer, rows: 9}]\n")
    known = "ds_" + "1" * 64
    service.will("succeeded")

    done = invoke("submit", model_file, "--recipe", recipe, "--dataset", known)

    assert done.exit_code == 0, done.output
    [asked] = [job["recipe"] for job in service.jobs.values()]
    assert asked["steps"][1] == {"op": "infer", "rows": 9, "dataset": known}
    assert "evaluate" not in asked


def test_json_is_all_that_is_on_standard_output(service, run):
    service.will("succeeded")

    done = run(before=["--json"])

    members = json.loads(done.stdout)
    assert members["job"]["state"] == "succeeded"
    assert members["report"]["artifact"]["size_ratio"] == 0.5
    assert [Path(file).name for file in members["files"]] == ["model.safetensors", "b.json"]


@pytest.mark.parametrize(
    ("state", "code", "exit_code"),
    [
        ("failed", "gate_failed", 3),
        ("failed", "out_of_memory", 4),
        ("cancelled", None, 6),
    ],
)
def test_a_bad_end_of_the_job_has_its_own_exit_code(service, run, state, code, exit_code):
    failure = {"code": code, "detail": "It is too large."} if code else None
    service.will(state, failure=failure)

    done = run(before=["--json"])

    assert done.exit_code == exit_code
    error = json.loads(done.stdout)["error"]
    assert (error["exit_code"], error["job"]["state"]) == (exit_code, state)
    assert error["job"]["failure"] == failure


def test_a_refused_recipe_ends_with_2_and_prints_the_pointers(service, run, problem_answer):
    fault = {"pointer": "/spec/steps/0/op", "code": "missing", "detail": "op is missing"}
    service.fail_next("POST", "/jobs", problem_answer(422, "invalid_recipe", errors=[fault]))

    done = run()

    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Error: invalid_recipe: It is wrong." in done.stderr
    assert "  /spec/steps/0/op: op is missing" in done.stderr.splitlines()


def test_a_refusal_in_json_carries_the_problem_document(service, invoke):
    done = invoke("--json", "status", "job_x")

    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"]["problem"]["code"] == "job_not_found"


def test_an_unexpected_error_of_the_service_ends_with_1(service, invoke, problem_answer):
    service.fail_next("GET", "/jobs", problem_answer(500, "internal_error"))

    assert invoke("ls").exit_code == 1


@pytest.mark.slow
def test_a_service_that_is_not_there_ends_with_5(unused_url):
    done = CliRunner().invoke(cli, ["--url", unused_url, "--json", "ls"])

    assert done.exit_code == 5
    assert "No answer from" in json.loads(done.stdout)["error"]["detail"]


def test_a_timeout_ends_with_7_and_leaves_the_job(service, invoke):
    job_id = service.add_job("running")

    done = invoke("wait", job_id, "--timeout", "0")

    assert done.exit_code == 7
    assert service.jobs[job_id]["state"] == "running"


@pytest.mark.parametrize(
    "words",
    [
        ["run", "model"],
        ["wait", "job_x", "--timeout", "soon"],
        ["submit", "model", "--recipe", "/dev/null"],
        ["--url", "no url", "ls"],
        ["ls", "--state", "sleeping"],
        ["nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_says_nothing_on_standard_output(invoke, words):
    done = invoke(*words)

    assert done.exit_code == 2
    assert done.stdout == ""


def test_a_label_without_a_value_is_wrong_usage(run):
    done = run("--label", "team")

    assert done.exit_code == 2
    assert "'team' is not of the form key=value" in done.stderr


def test_a_path_without_a_model_ends_with_2(invoke, recipe_file, tmp_path):
    done = invoke("submit", tmp_path, "--recipe", recipe_file)

    assert done.exit_code == 2
    assert "save_file" in done.stderr


def test_a_folder_that_cannot_be_made_ends_with_1(service, invoke, tmp_path):
    (tmp_path / "file").touch()

    done = invoke("download", service.add_job(), "-o", tmp_path / "file" / "out")

    assert done.exit_code == 1
    assert "Not a directory" in done.stderr


def test_submit_prints_the_id_alone_and_reads_the_recipe_from_standard_input(service, invoke):
    model = "mdl_" + "0" * 64

    done = invoke("submit", model, "--recipe", "-", input='{"steps": []}')

    assert done.stdout == "job_0000\n"
    assert service.jobs["job_0000"]["model"] == model
    assert service.jobs["job_0000"]["recipe"] == {"steps": []}


def test_submit_with_the_same_key_makes_one_job(service, invoke, recipe_file):
    words = ["submit", "mdl_" + "0" * 64, "--recipe", recipe_file, "--idempotency-key", "k"]

    assert invoke(*words).stdout == invoke(*words).stdout
    assert len(service.jobs) == 1


def test_an_equal_job_that_had_the_artifact_is_told(service, invoke, run, tmp_path):
    job_id = service.add_job(cache="hit")
    answer = Response(json.dumps(service.jobs[job_id]), 202, mimetype="application/json")
    service.fail_next("POST", "/jobs", answer)

    done = run()

    assert done.exit_code == 0
    assert "An equal job had the artifact" in done.stderr
    assert (tmp_path / "out" / "a" / "b.json").exists()
    assert "hit: an equal job" in invoke("status", job_id).stdout


@pytest.mark.parametrize(("options", "sent"), [((), None), (("--no-cache",), "no-cache")])
def test_a_job_is_run_whatever_there_is_where_that_is_asked_for(service, run, options, sent):
    service.will("succeeded")

    assert run(*options).exit_code == 0

    [headers] = service.requests("POST", "/jobs")
    assert headers.get("Cache-Control") == sent


def test_status_of_a_failed_job_shows_why_and_is_no_error(service, invoke):
    failure = {"code": "out_of_memory", "detail": "It needs more \x1b[31m memory."}
    job_id = service.add_job("failed", failure=failure)

    done = invoke("status", job_id)

    assert done.exit_code == 0
    assert "out_of_memory: It needs more \ufffd[31m memory." in done.stdout


def test_cancel_download_report_ls_and_rm_answer_in_json(service, invoke, tmp_path):
    running, ended = service.add_job("running"), service.add_job()

    answers = [
        json.loads(invoke("--json", *words).stdout)
        for words in (
            ["cancel", running],
            ["download", ended, "-o", tmp_path],
            ["report", ended],
            ["ls", "--state", "cancelled", "--label", "a=b"],
            ["rm", running, ended],
        )
    ]

    assert answers[0]["state"] == "cancelled"
    assert answers[1] == {"files": [str(tmp_path / path) for path in service.files]}
    assert answers[2]["a_member_of_tomorrow"] == {}
    assert [job["id"] for job in answers[3]["data"]] == [running]
    assert answers[4] == {"removed": [running, ended]}
    assert service.jobs == {}


def test_cancel_can_keep_what_was_trained_and_says_so(service, invoke):
    done = invoke("cancel", "--keep", service.add_job("running"))

    assert (done.exit_code, service.cancels) == (0, [{"keep": True}])
    assert "asked to end; what was trained is kept" in done.stdout


def test_ls_prints_the_newest_jobs_up_to_the_limit(service, invoke):
    for _ in range(3):
        service.add_job(labels={"team": "[red]a"})

    lines = invoke("ls", "--limit", "2").stdout.splitlines()

    assert len(lines) == 3
    assert lines[1].split() == ["job_0000", "succeeded", "2030-01-01T00:00:00Z", "team=[red]a"]


def test_a_plan_is_printed_and_nothing_is_uploaded(service, invoke, model_folder, recipe_file):
    (model_folder / "config.json").write_text("{}")

    done = invoke("plan", model_folder, "--recipe", recipe_file)

    assert done.exit_code == 0
    assert "fits" in done.stdout
    assert service.models == {}
    assert service.planned[0]["spec"] == {"steps": [{"op": "quantize", "scheme": "w8a16"}]}


def test_a_plan_that_does_not_fit_has_its_own_exit_code(service, invoke, model_file, recipe_file):
    service.plan |= {"fits": False, "overruns": ["host_memory"]}

    done = invoke("--json", "plan", model_file, "--recipe", recipe_file)

    assert done.exit_code == 8
    assert json.loads(done.stdout) == service.plan


def test_an_uploaded_model_is_planned_by_its_id(service, invoke, recipe_file):
    model = "mdl_" + "0" * 64

    done = invoke("plan", model, "--recipe", recipe_file)

    assert done.exit_code == 0
    assert service.planned == [
        {"model": model, "spec": {"steps": [{"op": "quantize", "scheme": "w8a16"}]}}
    ]


def test_a_model_is_uploaded_and_measured_before_recipes_are_suggested(
    service, invoke, model_file, tmp_path
):
    service.will("succeeded")
    path = tmp_path / "best.yaml"

    done = invoke("suggest", model_file, "--target", "500MiB", "--write", path)

    assert done.exit_code == 0
    assert "quantize w8a16, group_size 128" in done.stdout
    assert "job job_0000 measures the model" in done.stderr
    [model] = service.models
    asked = {"model": model, "goal": {"target_bytes": "500MiB"}}
    assert service.planned == [asked, asked]
    assert yaml.safe_load(path.read_text()) == SUGGESTIONS["suggestions"][0]["recipe"]


def test_a_model_that_was_measured_is_asked_about_at_once(service, invoke):
    model = "mdl_" + "0" * 64
    service.measured.add(model)

    options = ["--max-size-ratio", "0.4", "--max-loss", "0.01", "--min-cosine", "0.9"]
    done = invoke("--json", "suggest", model, *options, "--host-memory", "1GiB")

    assert json.loads(done.stdout) == SUGGESTIONS | {"model": model}
    assert service.jobs == {}
    goal = {"max_size_ratio": 0.4, "max_loss": 0.01, "min_cosine": 0.9, "host_memory": "1GiB"}
    assert service.planned == [{"model": model, "goal": goal}]


def test_a_goal_without_a_size_and_one_that_nothing_reaches_are_refused(
    service, invoke, problem_answer
):
    model = "mdl_" + "0" * 64
    service.fail_next("POST", "/plans", problem_answer(422, "goal_unreachable", "Least is 7."))

    unsized = invoke("suggest", model, "--max-loss", "0.1")
    unreached = invoke("suggest", model, "--target", "1MB")

    assert unsized.exit_code == unreached.exit_code == 2
    assert "--target or --max-size-ratio" in unsized.stderr
    assert "goal_unreachable: Least is 7." in unreached.stderr
    assert service.jobs == {}


def test_a_model_whose_measuring_fails_gets_no_suggestions(service, invoke, model_file):
    service.will("failed", failure={"code": "non_finite_weight", "detail": "It is NaN."})

    done = invoke("suggest", model_file, "--target", "1MB")

    assert done.exit_code == 4
    assert "non_finite_weight" in done.stderr


def test_the_url_comes_from_the_environment(service):
    done = CliRunner().invoke(cli, ["ls"], env={"MODELPRESS_URL": service.url})

    assert done.exit_code == 0


def test_help_tells_every_exit_code(invoke):
    text = invoke("--help").stdout

    for code in ("0  done", "3  the result does not pass", "8  the plan", "130  interrupted"):
        assert code in text
