import json
from pathlib import Path

import pytest

from jobs.quality import Calibration
from jobs.report import Report
from jobs.stage_reports import joined

EXAMPLE = Path(__file__).parents[1] / "modelpress" / "report.json"


@pytest.fixture
def report():
    return Report.model_validate(json.loads(EXAMPLE.read_text()) | {"calibration": None})


def calibration(**found):
    return Calibration(rows=16, resident_peak_bytes=100, seconds=2, **{"blocks": 3, **found})


def test_calibrations_of_several_stages_are_one_and_neither_is_lost(report):
    first = calibration(tokens=90, error_ratios={"a": 0.5}).model_copy(
        update={"resident_peak_bytes": 700}
    )
    second = calibration(tokens=90, blocks=4, smoothed_norms=("n",), error_ratios={"b": 0.7})

    found = joined([report.calibrated(first), report, report.calibrated(second)])

    assert found.calibration == Calibration(
        rows=16,
        tokens=90,
        blocks=7,
        smoothed_norms=("n",),
        error_ratios={"a": 0.5, "b": 0.7},
        resident_peak_bytes=700,
        seconds=4,
    )
    assert joined([report.calibrated(first), report]).calibration == first
    assert joined([report, report]).calibration is None
