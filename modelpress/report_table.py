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

from modelpress.sizes import format_bytes, format_seconds, printable

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
    if report.get("tensors"):
        tables.append(_tensors(report["tensors"], all_tensors=all_tensors))
    if report.get("sensitivity"):
        tables.append(_sensitivity(report["sensitivity"], all_tensors=all_tensors))
    if report.get("skipped"):
        tables.append(_skipped(report["skipped"]))
    if report.get("loaders"):
        tables.append(_loaders(report["loaders"]))
    spaced: list[RenderableType] = [Padding(table, (1, 0, 0, 0), expand=False) for table in tables]
    return Group(*_lines(report), *spaced)


def _lines(report: dict[str, Any]) -> list[Text]:
    lines = [_headline(report), _memory(report.get("memory") or {})]
    if report.get("shrunk"):
        lines.append(_shrunk(report["shrunk"], report.get("model") or {}))
    if report.get("verification"):
        lines.append(_verification(report["verification"]))
    if report.get("calibration"):
        lines.append(_calibration(report["calibration"]))
    if report.get("quality"):
        lines.append(_agreement(report["quality"]))
    return lines


def _headline(report: dict[str, Any]) -> Text:
    model, artifact = report.get("model") or {}, report.get("artifact") or {}
    before, after = _size(model.get("bytes")), _size(artifact.get("bytes"))
    ratio = artifact.get("size_ratio")
    percent = f" ({ratio:.1%} of the model)" if ratio is not None else ""
    seconds = (report.get("speed") or {}).get("total_seconds")
    took = f" in {format_seconds(seconds)}" if seconds is not None else ""
    return Text(f"{before} -> {after}{percent}{took}", style="bold")


def _memory(memory: dict[str, Any]) -> Text:
    facts = [
        ("peak", memory.get("measured_peak_bytes")),
        ("planned", memory.get("predicted_peak_bytes")),
        ("inspection", memory.get("inspection_peak_bytes")),
        ("added to idle", memory.get("added_anonymous_bytes")),
        ("device peak", (memory.get("device") or {}).get("reserved_peak_bytes")),
        ("budget", memory.get("budget_bytes")),
        ("headroom", memory.get("headroom_bytes")),
    ]
    known = [f"{name} {format_bytes(value)}" for name, value in facts if value is not None]
    return Text("memory: " + (", ".join(known) or "not measured"))


def _shrunk(shrunk: dict[str, Any], model: dict[str, Any]) -> Text:
    before, after = _count(model.get("parameters")), _count(shrunk.get("parameters"))
    sizes = ", ".join(f"{key} {value}" for key, value in (shrunk.get("config") or {}).items())
    return Text(printable(f"shrunk: {before} -> {after} parameters; {sizes}"))


def _verification(found: dict[str, Any]) -> Text:
    tensors, rows, error = (found.get(name) for name in ("tensors", "rows", "max_error_steps"))
    compared = f"{tensors or 0:,} tensors, {rows or 0:,} of their rows compared with the model"
    return Text(f"verified: {compared}" + (f", error {error:.3f} steps" if error else ""))


def _calibration(found: dict[str, Any]) -> Text:
    facts = [f"{_count(found.get('rows'))} rows"]
    if found.get("tokens") is not None:
        facts.append(f"{_count(found['tokens'])} tokens")
    facts.append(f"{_count(found.get('blocks'))} blocks one by one")
    facts.append(f"peak {_size(found.get('resident_peak_bytes'))}")
    if found.get("seconds") is not None:
        facts.append(format_seconds(found["seconds"]))
    if found.get("smoothed_norms"):
        facts.append(f"{len(found['smoothed_norms'])} norms smoothed")
    ratios = sorted((found.get("error_ratios") or {}).values())
    if ratios:
        median = _percent(ratios[len(ratios) // 2])
        facts.append(f"squared error of outputs {median} of plain rounding's")
    return Text("calibrated: " + ", ".join(facts))


def _agreement(quality: dict[str, Any]) -> Text:
    found = quality.get("agreement") or {}
    facts = [
        ("cosine", _decimal(found.get("mean_cosine"))),
        ("lowest", _decimal(found.get("least_cosine"))),
        ("KL", _decimal(found.get("kl_divergence"))),
        ("same first choice", _percent(found.get("top1_agreement"))),
    ]
    known = ", ".join(f"{name} {value}" for name, value in facts if value != "-")
    inputs = "random inputs" if quality.get("data") == "synthetic" else "data set"
    return Text(f"answers: {known} ({_count(found.get('outputs'))} outputs, {inputs})")


def _quality(quality: dict[str, Any]) -> Table:
    table = _table("Run before and after", "", "before>", "after>")
    before, after = quality.get("before") or {}, quality.get("after") or {}
    rows: list[tuple[str, Callable[[Any], str]]] = [
        ("accuracy", _percent),
        ("perplexity", _decimal),
        ("loss", _decimal),
        ("rows_per_second", _decimal),
        ("tokens_per_second", _decimal),
        ("weight_bytes", _size),
        ("resident_peak_bytes", _size),
    ]
    for name, shown in rows:
        if before.get(name) is not None or after.get(name) is not None:
            label = name.removesuffix("_bytes").replace("_", " ")
            table.add_row(label, shown(before.get(name)), shown(after.get(name)))
    latencies = [row.get("latency_seconds") or {} for row in (before, after)]
    for size in latencies[0]:
        shown_latencies = [_milliseconds(latency.get(size)) for latency in latencies]
        table.add_row(f"latency, batch {_text(size)}", *shown_latencies)
    return table


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.5g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _steps(steps: list[dict[str, Any]]) -> Table:
    table = _table("Steps", "step", "time>", "read>", "written>", "tensors changed>", "pruned>")
    for step in steps:
        seconds = step.get("seconds")
        table.add_row(
            _text(f"{step.get('op', '')} {step.get('method', '')}"),
            "-" if seconds is None else format_seconds(seconds),
            _size(step.get("bytes_read")),
            _size(step.get("bytes_written")),
            _count(step.get("tensors_changed")),
            _count(step.get("weights_pruned")),
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
            f"{_size(before.get('bytes'))} -> {_size(after.get('bytes'))}",
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
            _size(one.get("saved_bytes")),
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


def _size(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)


def _count(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"
