import pytest

from jobs.gate import check
from jobs.problems import Problem
from jobs.recipe import Gate
from jobs.report import ArtifactFacts, ModelFacts, Report


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
