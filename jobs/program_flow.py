"""How values flow through a program's graph: each is made once, and before it is taken."""

from collections.abc import Iterator, Mapping
from typing import Any

from jobs.program_values import refuse

#: What an argument holds names in, one of them or a list.
_NAMES = ("name", "as_name")


def check_flow(graph: Mapping[str, Any]) -> None:
    """Check that nothing is made twice, or taken before it is made.

    Args:
        graph: The graph, as it was read.

    Raises:
        Problem: `invalid_program`, with the name.
    """
    tensors = graph["tensor_values"]
    made: set[str] = set()
    for where, is_made, argument in _arguments(graph):
        for name, is_tensor in _named(argument):
            if is_made == (name in made):
                fault = "is made twice" if is_made else "is taken before it is made"
                refuse(where, f"{name} {fault}")
            if is_made and is_tensor and name not in tensors:
                refuse(where, f"the graph does not say what {name} is")
            made.add(name)


def _arguments(graph: Mapping[str, Any]) -> Iterator[tuple[str, bool, Any]]:
    """Yield where each argument stands, and whether it is made there rather than taken."""
    for argument in graph["inputs"]:
        yield "an input", True, argument
    for place, node in enumerate(graph["nodes"]):
        where = f"node {place}"
        for given in node["inputs"]:
            yield where, False, given["arg"]
        for argument in node["outputs"]:
            yield where, True, argument
    for argument in graph["outputs"]:
        yield "an output", False, argument


def _named(value: Any) -> Iterator[tuple[str, bool]]:  # noqa: ANN401
    """Yield the names in an argument, and whether each is a tensor's."""
    if isinstance(value, list):
        for member in value:
            yield from _named(member)
    elif isinstance(value, dict):
        for key, member in value.items():
            if key in _NAMES:
                yield member, key == "name"
            else:
                yield from _named(member)
