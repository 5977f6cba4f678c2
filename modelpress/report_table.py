"""The report of a job as tables for a terminal.

Members that are missing are left out, so that a report of another version still prints.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelpress.report_lines import report_lines
from modelpress.report_values import count_text, decimal_text, percent_text, size_text
from modelpress.sizes import format_seconds, printable

WORST_TENSORS = 10


def render_report(report: dict[str, Any], *, all_tensors: bool = False) -> Group:
    """Lay a report out.

    Args:
        report: The members of the report.
        all_tensors: Whether to list each changed tensor rather than those that lost most.

    Returns:
        What rich can print: the sizes, the memory, what was left out, what was verified, what data
        decided, how the model answers before and after, the steps, the tensors with the largest
        error first, those that gain most as floats, what was skipped, and the loaders.
    """
    tables: list[Table] = []
    if report.get("quality"):
        tables.append(_quality(report["quality"]))
    if report.get("steps"):
        tables.append(_steps(report["steps"]))
    if report.get("stages"):
        tables.append(_stages(report["stages"], report.get("steps") or []))
    if report.get("tensors"):
        tables.append(_tensors(report["tensors"], all_tensors=all_tensors))
    if report.get("sensitivity"):
        tables.append(_sensitivity(report["sensitivity"], all_tensors=all_tensors))
    if report.get("skipped"):
        tables.append(_skipped(report["skipped"]))
    if report.get("loaders"):
        tables.append(_loaders(report["loaders"]))
    spaced: list[RenderableType] = [Padding(table, (1, 0, 0, 0), expand=False) for table in tables]
    return Group(*report_lines(report), *spaced)


def _quality(quality: dict[str, Any]) -> Table:
    table = _table("Run before and after", "", "before>", "after>")
    before, after = quality.get("before") or {}, quality.get("after") or {}
    rows: list[tuple[str, Callable[[Any], str]]] = [
        ("accuracy", percent_text),
        ("perplexity", decimal_text),
        ("loss", decimal_text),
        ("rows_per_second", decimal_text),
        ("tokens_per_second", decimal_text),
        ("weight_bytes", size_text),
        ("resident_peak_bytes", size_text),
    ]
    for name, shown in rows:
        if before.get(name) is not None or after.get(name) is not None:
            label = name.removesuffix("_bytes").replace("_", " ")
            table.add_row(label, shown(before.get(name)), shown(after.get(name)))
    if after.get("blocks"):
        counts = (count_text(row.get("blocks")) for row in (before, after))
        table.add_row("blocks, one at a time", *counts)
    latencies = [row.get("latency_seconds") or {} for row in (before, after)]
    for size in latencies[0]:
        shown_latencies = [_milliseconds(latency.get(size)) for latency in latencies]
        table.add_row(f"latency, batch {_text(size)}", *shown_latencies)
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _steps(steps: list[dict[str, Any]]) -> Table:
    table = _table("Steps", "step", "time>", "read>", "written>", "tensors changed>", "pruned>")
    for step in steps:
        seconds = step.get("seconds")
        table.add_row(
            _text(f"{step.get('op', '')} {step.get('method', '')}"),
            "-" if seconds is None else format_seconds(seconds),
            size_text(step.get("bytes_read")),
            size_text(step.get("bytes_written")),
            count_text(step.get("tensors_changed")),
            count_text(step.get("weights_pruned")),
        )
    return table


def _stages(stages: list[dict[str, Any]], steps: list[dict[str, Any]]) -> Table:
    table = _table("Stages", "steps", "size>", "peak>", "time>", "perplexity>", "accuracy>", "KL>")
    for stage in stages:
        numbers = [n for n in stage.get("steps") or [] if n <= len(steps)]
        after, agreement = stage.get("after") or {}, stage.get("agreement") or {}
        seconds = stage.get("seconds")
        table.add_row(
            _text(", ".join(f"{n}. {steps[n - 1].get('op', '')}" for n in numbers)),
            size_text(stage.get("artifact_bytes")),
            size_text(stage.get("measured_peak_bytes")),
            "-" if seconds is None else format_seconds(seconds),
            decimal_text(after.get("perplexity")),
            percent_text(after.get("accuracy")),
            decimal_text(agreement.get("kl_divergence")),
        )
    return table


def _tensors(tensors: list[dict[str, Any]], *, all_tensors: bool) -> Table:
    ranked = sorted(tensors, key=lambda tensor: -(tensor.get("relative_rmse") or 0.0))
    shown = ranked if all_tensors else ranked[:WORST_TENSORS]
    title = f"Tensors, {len(shown)} of {len(ranked)}, largest error first"
    table = _table(title, "tensor", "shape", "dtype", "size>", "sparsity>", "relative RMSE>")
    for tensor in shown:
        before, after = tensor.get("before") or {}, tensor.get("after") or {}
        table.add_row(
            _text(tensor.get("name", "")),
            _text("x".join(str(n) for n in tensor.get("shape") or ())),
            _text(f"{before.get('dtype', '?')} -> {after.get('dtype', '?')}"),
            f"{size_text(before.get('bytes'))} -> {size_text(after.get('bytes'))}",
            f"{after.get('sparsity') or 0.0:.1%}",
            f"{tensor.get('relative_rmse') or 0.0:.5f}",
        )
    return table


def _sensitivity(ranked: list[dict[str, Any]], *, all_tensors: bool) -> Table:
    shown = ranked if all_tensors else ranked[:WORST_TENSORS]
    kept = sum(one.get("kept_float", False) for one in ranked)
    title = f"Sensitivity, {len(shown)} of {len(ranked)}, {kept} float"
    table = _table(title, "tensor", "relative RMSE>", "saves>", "becomes")
    for one in shown:
        table.add_row(
            _text(one.get("name", "")),
            f"{one.get('relative_rmse') or 0.0:.5f}",
            size_text(one.get("saved_bytes")),
            "float" if one.get("kept_float") else "int8",
        )
    return table


def _skipped(skipped: list[dict[str, Any]]) -> Table:
    reasons = Counter((one.get("op", ""), one.get("reason", "")) for one in skipped)
    example = {(one.get("op", ""), one.get("reason", "")): one.get("name", "") for one in skipped}
    table = _table("Skipped", "step", "reason", "tensors>", "for example")
    for (op, reason), count in reasons.most_common():
        table.add_row(_text(op), _text(reason), str(count), _text(example[op, reason]))
    return table


def _loaders(loaders: dict[str, Any]) -> Table:
    table = _table("Loaders", "loader", "opens", "note")
    for name, loader in loaders.items():
        opens = "yes" if loader.get("ok") else "no"
        table.add_row(_text(name), opens, _text(loader.get("note", "")))
    return table


def _table(title: str, *columns: str) -> Table:
    # A column whose name ends in ">" holds numbers, which line up on the right.
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        is_number = column.endswith(">")
        table.add_column(
            column.removesuffix(">"),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
        )
    return table


def _text(value: object) -> Text:
    # As a Text, square brackets in a name are not taken for markup.
    return Text(printable(value))
