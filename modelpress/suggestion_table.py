"""Suggested recipes as tables for a terminal."""

from typing import Any

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelpress.sizes import format_bytes, printable

_LEGEND = (
    "loss: predicted; the root mean square, over all weights that could be rounded, of their "
    "relative RMSE. What the model answers is measured by evaluate."
)


def render_suggestions(found: dict[str, Any]) -> Group:
    """Lay suggestions out.

    Args:
        found: The members of the service's answer.

    Returns:
        What rich can print: a line for each recipe, the one with the least loss first.
    """
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", overflow="fold")
    for column in ("size", "of the model", "loss", "peak memory"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("opens with", overflow="fold")
    for one in found["suggestions"]:
        plan = one["plan"]
        opens = [name for name, loader in one["loaders"].items() if loader["ok"]]
        table.add_row(
            Text(printable(_recipe(one["recipe"]))),
            format_bytes(plan["artifact"]["total_bytes"]),
            f"{plan['artifact']['size_ratio']:.1%}",
            f"{one['loss']:.4f}",
            format_bytes(plan["memory"]["predicted_peak_bytes"]),
            Text(printable(", ".join(opens))),
        )
    return Group(table, Padding(Text(_LEGEND), (1, 0, 0, 0), expand=False))


def _recipe(recipe: dict[str, Any]) -> str:
    """Write the steps of a recipe in a line, such as ``shrink width 0.9; quantize w8a16``."""
    steps = [_step(dict(step)) for step in recipe["steps"]]
    form = (recipe.get("output") or {}).get("format")
    return "; ".join(steps) + (f"; output {form}" if form else "")


def _step(step: dict[str, Any]) -> str:
    words = [str(step.pop("op")), str(step.pop("scheme", ""))]
    if step.get("target_bytes"):
        step["target_bytes"] = format_bytes(step["target_bytes"])
    options = [name if value is True else f"{name} {value}" for name, value in step.items()]
    return ", ".join([" ".join(filter(None, words)), *options])
