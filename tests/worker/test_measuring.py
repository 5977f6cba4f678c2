"""Jobs that measure a model, in real runners."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.kept_sensitivities import read_sensitivities
from jobs.problems import Problem
from jobs.recipe import Budget
from worker.measuring import take_measured
from worker.work_files import SENSITIVITIES_NAME

MEASURE = {"steps": [{"op": "measure"}]}


def test_a_job_measures_a_model_once_and_makes_no_artifact(workshop):
    model = workshop.small_model()

    job = workshop.run(model, MEASURE, use_cache=True)
    again = workshop.run(model, MEASURE, use_cache=True)
    anew = workshop.run(model, MEASURE)

    assert [(one.state, one.cache) for one in (job, again, anew)] == [
        ("succeeded", "miss"),
        ("succeeded", "hit"),
        ("succeeded", "bypass"),
    ]
    assert job.artifact is None
    found = read_sensitivities(workshop.blobs, model)
    assert found.whole.weights.keys() == {"fc.weight"}
    assert 0 < found.measured_peak_bytes < 2 * found.predicted_peak_bytes
    names = {path.name for path in workshop.blobs.job_folder(job.id).iterdir()}
    assert names == {"spec.json", "result.json"}


def test_a_model_that_cannot_be_measured_fails_the_job_and_nothing_is_kept(workshop):
    weights = np.full((4, 4), np.nan, np.float32)
    model = workshop.put_model("e", lambda path: save_file({"fc.weight": weights}, path))

    job = workshop.run(model, MEASURE)

    assert (job.state, job.failure["code"]) == ("failed", "non_finite_weight")
    assert read_sensitivities(workshop.blobs, model) is None


def test_a_budget_that_is_too_small_for_measuring_fails_the_job(workshop):
    job = workshop.run(workshop.small_model(), MEASURE | {"budget": {"host_memory": 1000}})

    assert (job.state, job.failure["code"]) == ("failed", "memory_budget_exceeded")


def test_a_runner_that_leaves_something_else_is_not_believed(tmp_path):
    for text in ("", "{}", '{"variants": [{"weights": {"w": {"relative_rmse": NaN}}}]}'):
        (tmp_path / SENSITIVITIES_NAME).write_text(text)
        with pytest.raises(Problem, match="invalid_artifact"):
            take_measured(tmp_path, Budget())


def test_a_runner_that_says_it_held_too_much_fails_the_job(tmp_path):
    weights = '{"fc.weight": {"relative_rmse": 0.01, "energy": 1.0}}'
    variant = f'{{"width": null, "group_size": null, "weights": {weights}}}'
    (tmp_path / SENSITIVITIES_NAME).write_text(
        f'{{"engine_version": 1, "variants": [{variant}], "seconds": 1, '
        '"predicted_peak_bytes": 10, "measured_peak_bytes": 200}'
    )

    assert take_measured(tmp_path, Budget(host_memory=200)).measured_peak_bytes == 200
    with pytest.raises(Problem, match=r"memory_budget_exceeded.*200"):
        take_measured(tmp_path, Budget(host_memory=199))
