"""The example dashboard and alerts ask for metrics that there are."""

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.report import Report
from jobs.tally import add_report

DOCS = Path(__file__).parents[2] / "docs" / "monitoring"
NAME = re.compile(r"\bmodelpress_[a-z_]+\b")


@pytest.fixture
def exposed(client, store, job_id, finish, report):
    finish(job_id, {"model.safetensors": b"x"})
    add_report(store.redis, Report.model_validate(report))
    client.get("/jobs")
    return set(NAME.findall(client.get("/metrics").text))


def test_every_panel_asks_for_a_metric_that_there_is(exposed):
    dashboard = json.loads((DOCS / "dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]

    assert len(asked) > 10
    for expression in asked:
        assert set(NAME.findall(expression)) <= exposed, expression


def test_every_alert_asks_for_a_metric_that_there_is_and_says_what_is_wrong(exposed):
    [group] = yaml.safe_load((DOCS / "alerts.yml").read_text())["groups"]

    for rule in group["rules"]:
        assert set(NAME.findall(rule["expr"])) <= exposed, rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("page", "ticket")
