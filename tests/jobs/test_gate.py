import pytest

from jobs.gate import check, check_memory
from jobs.problems import Problem
from jobs.recipe import Gate
from jobs.report import ArtifactFacts, DeviceMemory, HostMemory, Memory, ModelFacts, Report


@pytest.fixture
def report():
    artifact = ArtifactFacts(format="safetensors", bytes=600, size_ratio=0.6)
    model = ModelFacts(
        format="safetensors", architecture=None, bytes=1000, parameters=500, parameters_by_dtype={}
    )
    return Report.model_construct(model=model, artifact=artifact)


def test_a_result_at_the_limit_passes(report):
    check(report, Gate(max_size_ratio=report.artifact.size_ratio))
    check(report, Gate())


def test_a_result_above_the_limit_fails_with_what_was_measured(report):
    with pytest.raises(Problem, match=r"max_size_ratio is 0.1") as caught:
        check(report, Gate(max_size_ratio=0.1))

    assert caught.value.code == "gate_failed"
    assert caught.value.extra["measured"] == {"size_ratio": report.artifact.size_ratio}
    assert caught.value.errors[0].pointer == "/gate/max_size_ratio"


def measured(peak_bytes, budget_bytes, device=None):
    held = HostMemory(anonymous_peak_bytes=1, file_peak_bytes=1, resident_peak_bytes=2)
    return Report.model_construct(
        memory=Memory(
            idle=held,
            peak=held,
            device=device,
            measured_peak_bytes=peak_bytes,
            added_anonymous_bytes=0,
            budget_bytes=budget_bytes,
            headroom_bytes=None,
        )
    )


def test_a_job_that_held_no_more_than_its_budget_or_had_none_passes():
    check_memory(measured(100, 100))
    check_memory(measured(100, None))


def test_a_job_that_held_more_than_its_budget_fails_however_short_it_did():
    device = DeviceMemory(allocated_peak_bytes=5, reserved_peak_bytes=8, budget_bytes=7)

    for report, member in ((measured(101, 100), "host"), (measured(1, None, device), "device")):
        with pytest.raises(Problem) as caught:
            check_memory(report)
        assert caught.value.code == "memory_budget_exceeded"
        assert caught.value.errors[0].pointer == f"/budget/{member}_memory"
