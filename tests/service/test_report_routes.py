import pytest

from jobs.problems import Problem
from jobs.report import Report
from service.report_page import draw, human_bytes

HOST = {"anonymous_peak_bytes": 2**20, "file_peak_bytes": 2**20, "resident_peak_bytes": 2**21}
STATE = {"dtype": "BF16", "bytes": 64, "sparsity": 0.5}
REPORT = {
    "model": {
        "format": "safetensors",
        "architecture": None,
        "bytes": 2000,
        "parameters": 1000,
        "parameters_by_dtype": {"BF16": 1000},
    },
    "artifact": {"format": "safetensors", "bytes": 1100, "size_ratio": 0.55},
    "memory": {
        "idle": HOST,
        "peak": HOST,
        "device": None,
        "inspection_peak_bytes": None,
        "measured_peak_bytes": 2**21,
        "added_anonymous_bytes": 4096,
        "budget_bytes": 2**30,
        "headroom_bytes": 2**30 - 2**21,
    },
    "steps": [
        {
            "op": "quantize",
            "method": "w8a16",
            "seconds": 0.25,
            "bytes_read": 2000,
            "bytes_written": 1100,
            "tensors_changed": 1,
            "weights_pruned": 0,
        }
    ],
    "tensors": [
        {
            "name": "<script>alert(1)</script>",
            "shape": [8, 4],
            "before": STATE,
            "after": STATE,
            "relative_rmse": 0.0081,
            "max_error_steps": 0.5,
        }
    ],
    "skipped": [{"name": "head", "op": "quantize", "reason": "output head"}],
    "loaders": {"torch": {"ok": True, "note": "by load.py"}},
    "speed": {"total_seconds": 0.5, "input_bytes_per_second": 4000.0},
    "verification": {
        "tensors": 3,
        "rows": 40,
        "max_error_steps": 0.5,
        "seconds": 0.1,
        "peak_bytes": 2**21,
    },
    "versions": {"torch": "2.13.0"},
}
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def reported(job_id, finish):
    finish(job_id, {"m": b"x"}, report=REPORT)
    return job_id


@pytest.mark.parametrize("accept", ["application/json", "*/*", None])
def test_programs_get_json(client, reported, accept):
    answer = client.get(f"/jobs/{reported}/report", headers={"Accept": accept} if accept else {})

    assert answer.json == REPORT
    assert "Accept" in answer.headers["Vary"]


def test_browsers_get_a_page_whose_names_are_harmless(client, reported):
    answer = client.get(f"/jobs/{reported}/report", headers=BROWSER)

    assert answer.mimetype == "text/html"
    assert "<svg" in answer.text
    assert "55%" in answer.text
    assert "3 tensors" in answer.text
    assert "40 of their rows compared with the model" in answer.text
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "script-src" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_a_job_under_way_has_no_report_yet(client, job_id):
    answer = client.get(f"/jobs/{job_id}/report", headers=BROWSER)

    assert (answer.status_code, answer.json["code"]) == (409, "artifact_not_ready")


def test_a_failed_job_shows_its_problem_to_people_and_has_no_json(client, job_id, finish):
    finish(job_id, failure=Problem("out_of_memory", "It needed 9 GiB."))

    page = client.get(f"/jobs/{job_id}/report", headers=BROWSER)
    document = client.get(f"/jobs/{job_id}/report")

    assert page.status_code == 200
    assert "It needed 9 GiB." in page.text
    assert "/docs/problems#out_of_memory" in page.text
    assert (document.status_code, document.json["code"]) == (409, "no_report")


def test_a_job_stopped_by_its_gate_has_a_report(client, job_id, finish):
    finish(job_id, failure=Problem("gate_failed", "Too big."), report=REPORT)

    page = client.get(f"/jobs/{job_id}/report", headers=BROWSER)

    assert client.get(f"/jobs/{job_id}/report").json == REPORT
    assert "Too big." in page.text
    assert "<svg" in page.text


def test_a_cancelled_job_has_a_page(client, job_id):
    client.post(f"/jobs/{job_id}/cancel")

    assert "cancelled" in client.get(f"/jobs/{job_id}/report", headers=BROWSER).text


def test_bars_are_as_long_as_their_share_of_the_largest():
    page = draw(Report.model_validate(REPORT))

    [sizes, memory, *_] = page.charts
    assert [(bar.label, bar.share) for bar in sizes.bars] == [("before", 1.0), ("after", 0.55)]
    assert [bar.share for bar in memory.bars] == [2**-9, 2**-9, 1.0]


def test_what_stays_float_has_the_colour_of_before():
    sensitivity = [
        {"name": "a", "relative_rmse": 0.02, "saved_bytes": 9, "kept_float": True},
        {"name": "b", "relative_rmse": 0.01, "saved_bytes": 9, "kept_float": False},
    ]

    page = draw(Report.model_validate(REPORT | {"sensitivity": sensitivity}))

    bars = [(bar.label, bar.share, bar.kind) for bar in page.charts[-1].bars]
    assert page.charts[-1].title == "Sensitivity"
    assert bars == [("a", 1.0, "before"), ("b", 0.5, "after")]


def test_a_training_is_drawn_as_curves_from_its_first_step_to_its_last():
    losses = [
        {"step": step, "loss": loss, "learning_rate": 0.1, "resident_bytes": 2**20 * step}
        for step, loss in ((1, 4.0), (2, 3.0), (3, 2.0))
    ]
    training = {
        "objective": "causal_lm", "optimizer": "adamw", "method": "full", "rows": 9,
        "held_out_rows": 2, "steps": 3, "epochs": 1.0, "batch_size": 3, "micro_batch_size": 1,
        "savings": ["adamw8bit"], "decisions": [], "trained_parameters": 7,
        "weights_held_zero": 0, "frozen_statistics": 0, "losses": losses,
        "looks": [{"step": 0, "loss": 4.0}, {"step": 3, "loss": 3.0}], "rows_per_second": 2.0,
        "optimizer_bytes": 56, "resident_peak_bytes": 2**21, "device_peak_bytes": None,
        "seconds": 1.5, "stopped_by": "request", "planned_steps": 50,
        "quantize_aware": {"scheme": "w8a8", "tensors": 4, "rounds_inputs": True},
    }  # fmt: skip

    page = draw(Report.model_validate(REPORT | {"training": training}))

    loss, memory = page.curves
    assert (loss.lowest, loss.highest) == ("2", "4")
    looks_and_losses = {line.kind: line.points for line in loss.lines}
    assert looks_and_losses["after"] == "320.0,0.0 640.0,90.0 960.0,180.0"
    assert looks_and_losses["before"] == "0.0,0.0 960.0,90.0"
    assert memory.lines[0].points == "0.0,120.0 480.0,60.0 960.0,0.0"
    said = next(remark for name, _, remark in page.figures if name == "Trained")
    assert said.endswith("; stopped on request, 50 were planned")
    assert ("Loss", "2", "it was 4 in the first step") in page.figures
    remark = "4 weights and what they are multiplied with were rounded, also for the losses"
    assert ("Trained for", "w8a8", remark) in page.figures
    for has, told in ((True, "bfloat16"), (False, "float32")):
        page = draw(Report.model_validate(REPORT | {"training": training | {"bf16": has}}))
        assert told in [figure for name, figure, _ in page.figures if name == "Computed in"]
    assert draw(Report.model_validate(REPORT)).curves == ()


def test_a_page_of_a_training_has_its_curves_and_stages(client, job_id, finish):
    losses = [
        {"step": step, "loss": 1.0, "learning_rate": 0.1, "resident_bytes": 0} for step in (1, 2)
    ]
    training = {
        "objective": "causal_lm", "optimizer": "adamw", "method": "full", "rows": 9,
        "held_out_rows": 0, "steps": 2, "epochs": 1.0, "batch_size": 3, "micro_batch_size": 1,
        "savings": [], "decisions": [], "trained_parameters": 7, "weights_held_zero": 0,
        "frozen_statistics": 0, "losses": losses, "rows_per_second": 2.0, "optimizer_bytes": 56,
        "resident_peak_bytes": 2**21, "device_peak_bytes": None, "seconds": 1.5,
    }  # fmt: skip
    stage = {"steps": [1], "artifact_bytes": 1100, "measured_peak_bytes": 2**21, "seconds": 0.5}
    finish(job_id, {"m": b"x"}, report=REPORT | {"training": training, "stages": [stage]})

    page = client.get(f"/jobs/{job_id}/report", headers=BROWSER).text

    assert page.count("<polyline") == 2
    assert "Stage by stage" in page
    assert "1. quantize" in page


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (-2048, "-2.0 KiB"), (2**41, "2.0 TiB")],
)
def test_sizes_read_as_people_write_them(count, text):
    assert human_bytes(count) == text


def test_what_a_model_was_run_over_is_among_the_figures_and_the_charts():
    inference = {
        "file": "embeddings.parquet",
        "output": "embeddings",
        "format": "parquet",
        "columns": [{"name": "embedding", "dtype": "float32", "shape": [8]}],
        "bytes": 320,
        "rows": 10,
        "batch_size": 4,
        "batches": 3,
        "probes": [{"rows": 4, "cells": 40, "peak_bytes": 2**28}],
        "rows_per_second": 5.0,
        "resident_peak_bytes": 2**28,
        "budget_bytes": 2**29,
        "headroom_bytes": 2**28,
        "seconds": 2.0,
    }

    page = draw(Report.model_validate(REPORT | {"inference": inference}))

    figures = {name: (value, remark) for name, value, remark in page.figures}
    assert figures["Rows answered"] == ("10", "embeddings in embeddings.parquet")
    assert figures["Peak of inference"] == ("256.0 MiB", "256.0 MiB below the budget")
    [chart] = [chart for chart in page.charts if chart.title == "Memory by batch"]
    assert [bar.share for bar in chart.bars] == [0.5, 1.0]
