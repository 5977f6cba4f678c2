import pytest
from pydantic import ValidationError

from jobs.gate import check, check_memory
from jobs.problems import Problem
from jobs.quality import Agreement, Quality, Running
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


def running(**members):
    common = {"rows_per_second": 1, "weight_bytes": 1, "resident_peak_bytes": 1, "seconds": 1}
    return Running(**common, **{"latency_seconds": {"1": 1}, **members})


@pytest.fixture
def run_report(report):
    quality = Quality(
        data="dataset",
        rows=10,
        before=running(accuracy=0.8, perplexity=10.0, latency_seconds={"1": 0.5}),
        after=running(accuracy=0.7, perplexity=11.0, latency_seconds={"1": 0.75}),
        agreement=Agreement(
            outputs=10,
            of="logits",
            mean_cosine=0.99,
            least_cosine=0.9,
            kl_divergence=0.125,
            top1_agreement=0.875,
        ),
    )
    return report.model_copy(update={"quality": quality})


@pytest.mark.parametrize(
    ("name", "limit", "missed"),
    [
        ("min_cosine", 0.99, 0.9900001),
        ("max_kl_divergence", 0.125, 0.1249999),
        ("min_top1_agreement", 0.875, 0.8750001),
        ("max_accuracy_drop", 0.1, 0.0999999),
        ("max_perplexity_ratio", 1.1, 1.0999999),
        ("max_latency_ratio", 1.5, 1.4999999),
    ],
)
def test_a_condition_on_answers_is_met_at_its_limit_and_not_beyond(run_report, name, limit, missed):
    check(run_report, Gate(**{name: limit}))

    with pytest.raises(Problem) as caught:
        check(run_report, Gate(**{name: missed}))
    assert [detail.pointer for detail in caught.value.errors] == [f"/gate/{name}"]
    assert caught.value.extra["measured"] == {name.partition("_")[2]: pytest.approx(limit)}
    assert caught.value.extra["limits"] == {name: missed}


def test_every_condition_that_is_not_met_is_told(run_report):
    with pytest.raises(Problem) as caught:
        check(run_report, Gate(max_size_ratio=0.1, min_cosine=1.0, max_kl_divergence=1.0))

    pointers = {detail.pointer for detail in caught.value.errors}
    assert pointers == {"/gate/max_size_ratio", "/gate/min_cosine"}


@pytest.mark.parametrize("name", ["max_accuracy_drop", "max_perplexity_ratio"])
def test_a_condition_on_what_was_not_measured_is_not_met(run_report, name):
    quality = run_report.quality
    silent = quality.model_copy(update={"before": running(), "after": running()})

    with pytest.raises(Problem, match="cannot be judged"):
        check(run_report.model_copy(update={"quality": silent}), Gate(**{name: 1}))


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


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        (Agreement, {"mean_cosine": 7.0}),
        (Agreement, {"mean_cosine": float("nan")}),
        (Agreement, {"kl_divergence": -1.0}),
        (Agreement, {"top1_agreement": 99.0}),
        (Running, {"perplexity": float("inf")}),
        (Running, {"accuracy": 1.5}),
    ],
)
def test_what_cannot_have_been_measured_is_no_report(run_report, kind, members):
    quality = run_report.quality
    known = (quality.agreement if kind is Agreement else quality.before).model_dump()

    with pytest.raises(ValidationError):
        kind.model_validate(known | members)
