import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from werkzeug.routing import Rule

from service.contract import ATTRIBUTE, Operation, declare
from service.openapi import FILE_NAME, document, render

ROOT = Path(__file__).parents[2]


def test_the_committed_contract_is_up_to_date(app):
    assert (ROOT / FILE_NAME).read_text() == render(app)


def test_every_route_is_declared_and_every_declaration_has_a_route(app):
    declared = {(path, method) for path, item in document(app)["paths"].items() for method in item}
    routed = {
        (rule.rule.replace("<path:", "<").replace("<", "{").replace(">", "}"), method.lower())
        for rule in app.url_map.iter_rules()
        for method in rule.methods - {"OPTIONS", "HEAD"}
    }
    views = {view for view in app.view_functions.values() if hasattr(view, ATTRIBUTE)}

    assert {pair for pair in declared if pair[1] != "head"} == routed
    assert {path for path, method in declared if method == "head"} <= {path for path, _ in routed}
    assert len(views) == len(app.view_functions)


def test_a_route_without_a_declaration_is_found(app):
    app.view_functions["bare"] = lambda: ""
    app.url_map.add(Rule("/bare", endpoint="bare"))

    with pytest.raises(LookupError, match="/bare has no declaration"):
        document(app)


def test_a_declaration_leaves_the_view_as_it_is():
    def view() -> str:
        return "x"

    assert declare(Operation("s", "t", None, ()))(view) is view


def test_the_service_hands_out_its_contract(app, client):
    answer = client.get("/openapi.yaml")

    assert yaml.safe_load(answer.text) == document(app)


def test_real_answers_follow_the_contract(app, client, job_id, model_id):
    contract = yaml.safe_load(render(app))

    def validate(path, answer):
        responses = contract["paths"][path]["get"]["responses"]
        content = responses[str(answer.status_code)]["content"][answer.mimetype]
        schema = {**content["schema"], "components": contract["components"]}
        Draft202012Validator(schema).validate(answer.json)

    validate("/jobs", client.get("/jobs"))
    validate("/jobs/{job_id}", client.get(f"/jobs/{job_id}"))
    validate("/jobs/{job_id}", client.get("/jobs/x"))
    validate("/models/{model_id}", client.get(f"/models/{model_id}"))
    validate("/capabilities", client.get("/capabilities"))
    accept = {"Accept": "application/json"}
    validate("/jobs/{job_id}/events", client.get(f"/jobs/{job_id}/events", headers=accept))


@pytest.mark.slow
def test_the_command_notices_a_stale_file(tmp_path):
    command = [sys.executable, "-m", "service.openapi"]
    environment = {"PYTHONPATH": str(ROOT)}
    (tmp_path / FILE_NAME).write_text("old")

    stale = subprocess.run([*command, "--check"], cwd=tmp_path, env=environment, check=False)
    fresh = subprocess.run([*command, "--check"], cwd=ROOT, env=environment, check=False)

    assert (stale.returncode, fresh.returncode) == (1, 0)


def test_the_front_door_never_imports_torch():
    code = (
        "import service, service.server, modelpress, sys; "
        "assert not {'torch', 'numpy', 'numba', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
