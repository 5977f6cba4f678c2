"""What the report's page shows: the figures, and bars laid out for its charts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from jobs.report import Report
from service.report_curves import Curve, draw_curves

# A page with ten thousand bars helps nobody: the worst tell the most.
_MOST_TENSORS = 24


@dataclass(frozen=True)
class Bar:
    """One bar of a chart.

    Attributes:
        label: What it is.
        text: Its value as people read it.
        share: Its length, from 0 to 1.
        kind: `before`, `after` or `warn`, which chooses its colour.
    """

    label: str
    text: str
    share: float
    kind: str


@dataclass(frozen=True)
class Chart:
    """A horizontal bar chart.

    Attributes:
        title: What it shows.
        note: What to know when reading it.
        bars: From top to bottom.
    """

    title: str
    note: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Page:
    """Everything that the page draws.

    Attributes:
        figures: Name, value and a remark, for the top of the page.
        charts: Below them.
        curves: How a training went, below these.
        report: For the tables.
    """

    figures: tuple[tuple[str, str, str], ...]
    charts: tuple[Chart, ...]
    curves: tuple[Curve, ...]
    report: Report


def draw(report: Report) -> Page:
    """Lay out a report.

    Args:
        report: The report.

    Returns:
        The page's content.
    """
    charts = (
        _sizes(report),
        _memory(report),
        _probes(report),
        _seconds(report),
        _errors(report),
        _sensitivity(report),
    )
    curves = draw_curves(report.training, human_bytes)
    return Page(_figures(report), tuple(chart for chart in charts if chart.bars), curves, report)


def human_bytes(count: float) -> str:
    """Write a size as people do: ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _figures(report: Report) -> tuple[tuple[str, str, str], ...]:
    memory = report.memory
    headroom = (
        "no budget was set"
        if memory.headroom_bytes is None
        else f"{human_bytes(memory.headroom_bytes)} below the budget"
    )
    verified = (
        ("nothing", "the artifact did not get so far")
        if report.verification is None
        else (
            f"{report.verification.tensors} tensors",
            f"{report.verification.rows} of their rows compared with the model",
        )
    )
    return (
        (
            "Size",
            f"{report.artifact.size_ratio:.0%}",
            f"{human_bytes(report.artifact.bytes)} of {human_bytes(report.model.bytes)}",
        ),
        ("Peak memory", human_bytes(memory.measured_peak_bytes), headroom),
        (
            "Memory added",
            human_bytes(memory.added_anonymous_bytes),
            "anonymous memory above the idle runner",
        ),
        (
            "Time",
            f"{report.speed.total_seconds:.1f} s",
            f"{human_bytes(report.speed.input_bytes_per_second)}/s of input",
        ),
        ("Verified", *verified),
        *_calibrated(report),
        *_trained(report),
        *_answers(report),
        *_inferred(report),
    )


def _calibrated(report: Report) -> Iterator[tuple[str, str, str]]:
    found = report.calibration
    if found is None:
        return
    tokens = "" if found.tokens is None else f"{found.tokens} tokens, "
    peak = human_bytes(found.resident_peak_bytes)
    yield (
        "Calibrated",
        f"{found.rows} rows",
        f"{tokens}{found.blocks} blocks one by one, peak {peak}",
    )
    if found.error_ratios:
        ratio = median(found.error_ratios.values())
        yield "Error by gptq", f"{ratio:.0%}", "squared, of plain rounding's, in outputs; median"


def _trained(report: Report) -> Iterator[tuple[str, str, str]]:
    found = report.training
    if found is None:
        return
    saved = "".join(f", {saving}" for saving in found.savings)
    peak = human_bytes(found.resident_peak_bytes)
    rows = f"of {found.batch_size} rows, {found.micro_batch_size} at a time{saved}; peak {peak}"
    if found.stopped_by is not None:
        why = "on request" if found.stopped_by == "request" else "as it got no better"
        rows += f"; stopped {why}, {found.planned_steps} were planned"
    yield "Trained", f"{found.steps} steps", rows
    if found.quantize_aware:
        aware = found.quantize_aware
        inputs = " and what they are multiplied with" if aware.rounds_inputs else ""
        remark = f"{aware.tensors} weights{inputs} were rounded, also for the losses"
        yield "Trained for", aware.scheme, remark
    if found.bf16:
        yield "Computed in", "bfloat16", "layers; weights, gradients and losses were float32"
    elif found.bf16 is not None:
        yield "Computed in", "float32", "the device has no bfloat16, which was asked for"
    if found.losses:
        last, first = found.losses[-1].loss, found.losses[0].loss
        yield "Loss", f"{last:.4g}", f"it was {first:.4g} in the first step"


def _answers(report: Report) -> Iterator[tuple[str, str, str]]:
    quality = report.quality
    if quality is None:
        return
    before, after, agreement = quality.before, quality.after, quality.agreement
    inputs = "random inputs" if quality.data == "synthetic" else "the data set"
    remark = f"mean cosine of {agreement.outputs} outputs with the model's, on {inputs}"
    yield "Same answers", f"{agreement.mean_cosine:.5f}", remark
    if after.accuracy is not None and before.accuracy is not None:
        yield "Accuracy", f"{after.accuracy:.2%}", f"it was {before.accuracy:.2%}"
    if after.perplexity is not None and before.perplexity is not None:
        yield "Perplexity", f"{after.perplexity:.4g}", f"it was {before.perplexity:.4g}"
    now, then = after.latency_seconds.get("1"), before.latency_seconds.get("1")
    if now is not None and then is not None:
        yield "Latency", f"{now * 1000:.1f} ms", f"of one row; it was {then * 1000:.1f} ms"
    if after.blocks:
        yield "Run", f"{after.blocks} blocks", "one in memory at a time, so no latency was measured"


def _inferred(report: Report) -> Iterator[tuple[str, str, str]]:
    found = report.inference
    if found is None:
        return
    tokens = "" if found.tokens is None else f"{found.tokens} tokens, "
    yield "Rows answered", f"{found.rows}", f"{tokens}{found.output} in {found.file}"
    remark = f"in {found.batches} batches of at most {found.batch_size} rows"
    yield "Rows per second", f"{found.rows_per_second:.4g}", remark
    peak = human_bytes(found.resident_peak_bytes)
    headroom = (
        "no budget was set"
        if found.headroom_bytes is None
        else f"{human_bytes(found.headroom_bytes)} below the budget"
    )
    yield "Peak of inference", peak, headroom
    if found.recheck is not None:
        worst = f"the largest difference is {found.recheck.max_difference:.2g}"
        yield "Run again", f"{found.recheck.rerun} rows", f"each alone; {worst}"


def _probes(report: Report) -> Chart:
    found = report.inference
    shown = () if found is None else found.probes[-_MOST_TENSORS:]
    rows: list[tuple[str, float, str]] = [
        (f"{p.rows} rows, {p.cells} in all", p.peak_bytes, "after") for p in shown
    ]
    if rows and found is not None and found.budget_bytes is not None:
        rows.append(("budget", found.budget_bytes, "warn"))
    note = "Resident peak of batches while their size was found; in all: tokens or rows."
    return _chart("Memory by batch", note, rows, human_bytes)


def _sizes(report: Report) -> Chart:
    rows: list[tuple[str, float, str]] = [
        ("before", report.model.bytes, "before"),
        ("after", report.artifact.bytes, "after"),
    ]
    return _chart("Size", "Bytes of the weights' files.", rows, human_bytes)


def _memory(report: Report) -> Chart:
    memory = report.memory
    rows: list[tuple[str, float, str]] = [
        ("idle runner", memory.idle.resident_peak_bytes, "before"),
        ("runner at work", memory.peak.resident_peak_bytes, "after"),
    ]
    if memory.inspection_peak_bytes is not None:
        rows.insert(1, ("inspection of the model", memory.inspection_peak_bytes, "before"))
    if memory.device is not None:
        rows.append(("peak on the device", memory.device.allocated_peak_bytes, "after"))
    if memory.budget_bytes is not None:
        rows.append(("budget", memory.budget_bytes, "warn"))
    return _chart("Memory", "Resident memory of the job's processes.", rows, human_bytes)


def _seconds(report: Report) -> Chart:
    rows = [
        (f"{i}. {step.op} {step.method}", step.seconds, "after")
        for i, step in enumerate(report.steps, 1)
    ]
    return _chart("Time per step", "Seconds in the step's own arithmetic.", rows, "{:.2f} s".format)


def _errors(report: Report) -> Chart:
    worst = sorted(report.tensors, key=lambda tensor: -tensor.relative_rmse)[:_MOST_TENSORS]
    rows = [(tensor.name, tensor.relative_rmse, "after") for tensor in worst]
    note = f"Relative root mean square error; the {len(rows)} largest of {len(report.tensors)}."
    return _chart("Error per tensor", note, rows, "{:.4f}".format)


def _sensitivity(report: Report) -> Chart:
    ranked = report.sensitivity
    shown = ranked[:_MOST_TENSORS]
    rows = [(s.name, s.relative_rmse, "before" if s.kept_float else "after") for s in shown]
    kept = sum(sensitivity.kept_float for sensitivity in ranked)
    note = (
        f"Relative root mean square error of rounding alone; of {len(ranked)} the {len(rows)} with "
        f"the largest error per byte. {kept} stay float, in the colour of before."
    )
    return _chart("Sensitivity", note, rows, "{:.4f}".format)


def _chart(
    title: str, note: str, rows: Sequence[tuple[str, float, str]], write: Callable[[float], str]
) -> Chart:
    most = max((value for _, value, _ in rows), default=0) or 1
    bars = tuple(Bar(label, write(value), value / most, kind) for label, value, kind in rows)
    return Chart(title, note, bars)
