"""The report of a job in a few lines of text, above its tables."""

from typing import Any

from rich.text import Text

from modelpress.inference_text import describe_inference
from modelpress.report_values import count_text, decimal_text, percent_text, size_text
from modelpress.sizes import format_bytes, format_seconds, printable


def report_lines(report: dict[str, Any]) -> list[Text]:
    """Write a report's headline and what follows it: a line for each subject that it has.

    Args:
        report: The members of the report.

    Returns:
        The lines.
    """
    lines = [_headline(report), _memory(report.get("memory") or {})]
    if report.get("shrunk"):
        lines.append(_shrunk(report["shrunk"], report.get("model") or {}))
    if report.get("verification"):
        lines.append(_verification(report["verification"]))
    if report.get("calibration"):
        lines.append(_calibration(report["calibration"]))
    if report.get("training"):
        lines.append(_training(report["training"]))
    if report.get("quality"):
        lines.append(_agreement(report["quality"]))
    if report.get("inference"):
        lines.append(describe_inference(report["inference"]))
    return lines


def _headline(report: dict[str, Any]) -> Text:
    model, artifact = report.get("model") or {}, report.get("artifact") or {}
    if all(step.get("op") == "infer" for step in report.get("steps") or [{}]):
        return Text(f"{size_text(artifact.get('bytes'))} of answers", style="bold")
    before, after = size_text(model.get("bytes")), size_text(artifact.get("bytes"))
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
    before, after = count_text(model.get("parameters")), count_text(shrunk.get("parameters"))
    sizes = ", ".join(f"{key} {value}" for key, value in (shrunk.get("config") or {}).items())
    return Text(printable(f"shrunk: {before} -> {after} parameters; {sizes}"))


def _verification(found: dict[str, Any]) -> Text:
    tensors, rows, error = (found.get(name) for name in ("tensors", "rows", "max_error_steps"))
    compared = f"{tensors or 0:,} tensors, {rows or 0:,} of their rows compared with the model"
    return Text(f"verified: {compared}" + (f", error {error:.3f} steps" if error else ""))


def _calibration(found: dict[str, Any]) -> Text:
    facts = [f"{count_text(found.get('rows'))} rows"]
    if found.get("tokens") is not None:
        facts.append(f"{count_text(found['tokens'])} tokens")
    facts.append(f"{count_text(found.get('blocks'))} blocks one by one")
    facts.append(f"peak {size_text(found.get('resident_peak_bytes'))}")
    if found.get("seconds") is not None:
        facts.append(format_seconds(found["seconds"]))
    if found.get("smoothed_norms"):
        facts.append(f"{len(found['smoothed_norms'])} norms smoothed")
    ratios = sorted((found.get("error_ratios") or {}).values())
    if ratios:
        median = percent_text(ratios[len(ratios) // 2])
        facts.append(f"squared error of outputs {median} of plain rounding's")
    return Text("calibrated: " + ", ".join(facts))


def _training(found: dict[str, Any]) -> Text:
    facts = [
        f"{count_text(found.get('steps'))} steps of {count_text(found.get('batch_size'))} rows",
        f"{count_text(found.get('micro_batch_size'))} at a time",
    ]
    if found.get("stopped_by"):
        why = "on request" if found["stopped_by"] == "request" else "as it got no better"
        facts.append(f"stopped {why}, {count_text(found.get('planned_steps'))} were planned")
    facts += [str(saving) for saving in found.get("savings") or []]
    if found.get("quantize_aware"):
        aware = found["quantize_aware"]
        facts.append(f"{count_text(aware.get('tensors'))} weights as {aware.get('scheme')}")
    if found.get("bf16") is not None:
        facts.append(
            "in bfloat16" if found["bf16"] else "in float32, as the device has no bfloat16"
        )
    losses = [point["loss"] for point in found.get("losses") or [] if "loss" in point]
    if losses:
        facts.append(f"loss {losses[0]:.4g} -> {losses[-1]:.4g}")
    facts.append(f"peak {size_text(found.get('resident_peak_bytes'))}")
    if found.get("rows_per_second"):
        facts.append(f"{found['rows_per_second']:.3g} rows/s")
    return Text(printable("trained: " + ", ".join(facts)))


def _agreement(quality: dict[str, Any]) -> Text:
    found = quality.get("agreement") or {}
    facts = [
        ("cosine", decimal_text(found.get("mean_cosine"))),
        ("lowest", decimal_text(found.get("least_cosine"))),
        ("KL", decimal_text(found.get("kl_divergence"))),
        ("same first choice", percent_text(found.get("top1_agreement"))),
    ]
    known = ", ".join(f"{name} {value}" for name, value in facts if value != "-")
    inputs = "random inputs" if quality.get("data") == "synthetic" else "data set"
    return Text(f"answers: {known} ({count_text(found.get('outputs'))} outputs, {inputs})")
