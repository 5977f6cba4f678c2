"""A plan as tables for a terminal."""

from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelpress.sizes import format_bytes, printable


def render_plan(plan: dict[str, Any]) -> Group:
    """Lay a plan out.

    Args:
        plan: The members of the plan.

    Returns:
        What rich can print: whether it fits, the smallest budget, the memory, the steps.
    """
    artifact, memory, least = plan["artifact"], plan["memory"], plan["smallest_budget"]
    verdict = "fits" if plan["fits"] else f"does not fit: {', '.join(plan['overruns'])}"
    facts = [
        ("budget", verdict),
        ("smallest budget", ", ".join(f"{k} {format_bytes(v)}" for k, v in least.items() if v)),
        ("peak memory", format_bytes(memory["predicted_peak_bytes"])),
        ("", _parts_of(memory)),
        ("artifact", f"{format_bytes(artifact['total_bytes'])}, {artifact['format']}"),
        ("tensor files", f"{format_bytes(artifact['bytes'])} ({artifact['size_ratio']:.1%})"),
        ("read, written", _traffic(plan)),
    ]
    if not plan["is_exact"]:
        facts.append(("note", "the architecture is not known; planned by names and shapes"))
    table = Table.grid(padding=(0, 2))
    for name, value in facts:
        table.add_row(name, Text(printable(value), overflow="fold"))
    return Group(table, Padding(_steps(plan["steps"]), (1, 0, 0, 0), expand=False))


def _parts_of(memory: dict[str, Any]) -> str:
    parts = [("an idle runner", memory["idle_bytes"]), ("buffers", memory["buffer_bytes"])]
    if memory["inspection_bytes"] is not None:
        parts.append(("inspection", memory["inspection_bytes"]))
    threads = f"{memory['threads']} threads, chunks of {format_bytes(memory['chunk_bytes'])}"
    return ", ".join([*(f"{name} {format_bytes(value)}" for name, value in parts), threads])


def _traffic(members: dict[str, Any]) -> str:
    return f"{format_bytes(members['bytes_read'])}, {format_bytes(members['bytes_written'])}"


def _steps(steps: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("step")
    for column in ("tensors changed", "read", "written", "peak memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for step in steps:
        sizes = (step["bytes_read"], step["bytes_written"], step["host_peak_bytes"])
        table.add_row(
            Text(printable(f"{step['op']} {step['method']}")),
            f"{step['tensors_changed']:,}",
            *(format_bytes(size) for size in sizes),
        )
    return table
