import copy
import io

import pytest
from rich.console import Console

from jobs.report import Report
from modelpress.report_table import render_report


def printed(report, **options) -> str:
    stream = io.StringIO()
    Console(file=stream, width=120, highlight=False).print(render_report(report, **options))
    return stream.getvalue()


def test_the_report_of_these_tests_is_one_that_the_service_may_send(report):
    assert Report.model_validate(report).model_dump(mode="json") == report


def test_the_headline_tells_the_sizes_the_ratio_and_the_time(report):
    assert printed(report).splitlines()[0] == "2.00 GiB -> 1.00 GiB (50.0% of the model) in 12s"


def test_the_memory_line_tells_what_was_measured_against_the_budget(report):
    assert printed(report).splitlines()[1] == (
        "memory: peak 300.00 MiB, planned 296.00 MiB, added to idle 150.00 MiB, "
        "budget 512.00 MiB, headroom 212.00 MiB"
    )


def test_the_third_line_tells_what_was_verified_where_it_was(report):
    unverified = report | {"verification": None}

    assert printed(report).splitlines()[2] == (
        "verified: 12 tensors, 120 of their rows compared with the model, error 0.500 steps"
    )
    assert "verified" not in printed(unverified)


def test_what_running_the_model_gave_is_told_where_it_was_run(report):
    text = printed(report)

    assert text.splitlines()[3] == (
        "answers: cosine 0.9991, lowest 0.98, KL 0.012, same first choice 97.00% "
        "(100 outputs, data set)"
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["perplexity", "2.718", "2.858"] in rows
    assert ["latency,", "batch", "1", "20.0", "ms", "30.0", "ms"] in rows
    assert not [row for row in rows if row[:1] == ["accuracy"]]
    assert "answers" not in printed(report | {"quality": None})


def test_what_training_did_is_a_line_and_stages_are_rows(report):
    point = {"step": 1, "loss": 4.25, "learning_rate": 0.1, "resident_bytes": 2**20}
    training = {
        "steps": 200, "batch_size": 32, "micro_batch_size": 4, "savings": ["adamw8bit"],
        "losses": [point, point | {"step": 200, "loss": 1.5}], "resident_peak_bytes": 2**29,
        "rows_per_second": 12.5,
    }  # fmt: skip
    stage = {
        "steps": [1], "artifact_bytes": 2**20, "measured_peak_bytes": 2**29, "seconds": 12.0,
        "after": {"perplexity": 9.5}, "agreement": None,
    }  # fmt: skip

    text = printed(report | {"training": training, "stages": [stage]})

    assert (
        "trained: 200 steps of 32 rows, 4 at a time, adamw8bit, loss 4.25 -> 1.5, "
        "peak 512.00 MiB, 12.5 rows/s"
    ) in text
    stopped = training | {"stopped_by": "request", "planned_steps": 500}
    text_of_stopped = printed(report | {"training": stopped})
    assert "4 at a time, stopped on request, 500 were planned, adamw8bit" in text_of_stopped
    row = ["1.", report["steps"][0]["op"], "1.00", "MiB", "512.00", "MiB", "12s", "9.5", "-", "-"]
    assert row in [line.split() for line in text.splitlines()]
    aware = {"scheme": "w8a8", "tensors": 14, "rounds_inputs": True}
    told = printed(report | {"training": training | {"quantize_aware": aware}})
    assert "adamw8bit, 14 weights as w8a8, loss 4.25" in told
    assert "adamw8bit, in bfloat16, loss" in printed(
        report | {"training": training | {"bf16": True}}
    )
    assert "trained" not in printed(report)
    assert "Stages" not in printed(report)


def test_the_ten_tensors_with_the_largest_error_come_first(report):
    text = printed(report)

    assert "Tensors, 10 of 12, largest error first" in text
    assert text.index("layer.11.weight") < text.index("layer.2.weight")
    assert "layer.1.weight" not in text


def test_all_tensors_are_listed_when_asked_for(report):
    text = printed(report, all_tensors=True)

    assert all(f"layer.{i}.weight" in text for i in range(12))


def test_what_gains_most_as_a_float_comes_first(report):
    lines = printed(report).splitlines()

    start = next(i for i, line in enumerate(lines) if line.startswith("Sensitivity"))
    assert lines[start].rstrip() == "Sensitivity, 2 of 2, 1 float"
    assert lines[start + 2].split() == ["layer.90.weight", "0.02000", "2.89", "KiB", "float"]
    assert lines[start + 3].split() == ["layer.11.weight", "0.01100", "2.89", "KiB", "int8"]


def test_a_report_of_a_job_without_an_aim_has_no_sensitivity(report):
    assert "Sensitivity" not in printed({**report, "sensitivity": []})


def test_what_was_skipped_is_counted_by_reason(report):
    lines = printed(report).splitlines()

    counted = next(line for line in lines if "one dimension" in line)
    assert counted.split() == ["quantize", "one", "dimension", "2", "b.bias"]


def test_the_text_of_a_loader_is_not_taken_for_markup(report):
    assert "[bold]no[/bold] code of ours" in printed(report)


def test_an_escape_sequence_in_a_tensor_name_stays_text(report):
    hostile = copy.deepcopy(report)
    hostile["tensors"][11]["name"] = "\x1b[2J[red]weight"

    text = printed(hostile)

    assert "\x1b" not in text
    assert "\ufffd[2J[red]weight" in text


@pytest.mark.parametrize("missing", ["model", "artifact", "memory", "steps", "tensors", "speed"])
def test_a_report_that_lacks_a_part_still_prints(report, missing):
    rest = {name: part for name, part in report.items() if name != missing}

    assert "Loaders" in printed(rest)


def test_an_empty_report_still_prints():
    assert printed({}).splitlines() == ["- -> -", "memory: not measured"]


def test_what_a_shrink_step_left_out_has_a_line(report):
    shrunk = {"kept": [], "config": {"intermediate_size": 1152}, "parameters": 400_000_000}

    lines = printed(report | {"shrunk": shrunk}).splitlines()

    assert "shrunk: 536,870,912 -> 400,000,000 parameters; intermediate_size 1152" in lines


def test_what_a_model_was_run_over_is_told_in_a_line(report):
    inference = {
        "file": "answers/embeddings.parquet",
        "output": "embeddings",
        "rows": 10_000,
        "rows_per_second": 812.34,
        "batch_size": 128,
        "resident_peak_bytes": 480 * 2**20,
        "budget_bytes": 512 * 2**20,
        "headroom_bytes": 32 * 2**20,
        "recheck": {"rerun": 17},
    }
    only = report | {"inference": inference, "steps": [{"op": "infer"}]}

    assert (
        "embeddings: 10,000 rows, 812.3 rows/s, batches of at most 128, peak 480.00 MiB, "
        "budget 512.00 MiB, headroom"
    ) in printed(only)
    assert printed(only).splitlines()[0] == "1.00 GiB of answers"
    resumed = only | {"inference": inference | {"resumed_at": 2048}}
    assert "embeddings: 10,000 rows, 2,048 of them before a kill, 812.3 rows/s" in printed(resumed)
