import pytest

from jobs.gate import check
from jobs.problems import Problem
from jobs.recipe import Gate

W8A8 = {"op": "quantize", "scheme": "w8a8"}


def test_a_result_at_the_limit_passes(save_model, press, weights):
    report = press(save_model({"a.weight": weights(64, 64)}), W8A8).report

    check(report, Gate(max_size_ratio=report.artifact.size_ratio))
    check(report, Gate())


def test_a_result_above_the_limit_fails_with_what_was_measured(save_model, press, weights):
    report = press(save_model({"a.weight": weights(64, 64)}), W8A8).report

    with pytest.raises(Problem, match=r"max_size_ratio is 0.1") as caught:
        check(report, Gate(max_size_ratio=0.1))

    assert caught.value.code == "gate_failed"
    assert caught.value.extra["measured"] == {"size_ratio": report.artifact.size_ratio}
    assert caught.value.errors[0].pointer == "/gate/max_size_ratio"
