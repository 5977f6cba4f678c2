"""Adds nodes to the graph of a program, with what torch wants to know of each value."""

from collections.abc import Mapping
from typing import Any

from planning.graph_values import strides_of

_ATEN = "torch.ops.aten."
_POSITIONAL, _KEYWORD = 1, 2

Meta = dict[str, Any]


class GraphBuilder:
    """A graph's nodes, written anew from the first to the last.

    Args:
        graph: The graph, as its document has it; its values are added to.

    Attributes:
        values: What is known of each value, by its name.
        nodes: The nodes so far.
    """

    values: dict[str, Meta]
    nodes: list[dict[str, Any]]

    def __init__(self, graph: dict[str, Any]) -> None:
        self.values = graph["tensor_values"]
        self.nodes = []
        named = {node["name"] for node in graph["nodes"] if node["name"]}
        self._names = set(self.values) | named

    def add(
        self,
        target: str,
        inputs: Mapping[str, Any],
        meta: Meta,
        keywords: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> str:
        """Add a node that makes one tensor.

        Args:
            target: Its operator and overload, without the namespace.
            inputs: Its arguments in their order; a text is the name of a tensor.
            meta: What it makes.
            keywords: Arguments that are given by their names alone.
            name: What its value is called; by default a name that is free.

        Returns:
            The name.
        """
        made = name or self.fresh(target.partition(".")[0].strip("_"))
        self.values[made] = meta
        given = [(key, value, _POSITIONAL) for key, value in inputs.items()]
        given += [(key, value, _KEYWORD) for key, value in (keywords or {}).items()]
        self.nodes.append(
            {
                "target": _ATEN + target,
                "inputs": [
                    {"name": key, "arg": tensor(value) if isinstance(value, str) else value,
                     "kind": kind}
                    for key, value, kind in given
                ],
                "outputs": [tensor(made)],
                "metadata": {},
                "is_hop_single_tensor_return": None,
                "name": made,
            }
        )  # fmt: skip
        return made

    def fresh(self, wanted: str) -> str:
        """Give a name that nothing has, and take it."""
        name, number = wanted, 0
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name


def tensor(name: str) -> dict[str, Any]:
    """Give the argument that is a tensor."""
    return {"as_tensor": {"name": name}}


def meta_like(meta: Meta, sizes: list[Any] | None = None, dtype: int | None = None) -> Meta:
    """Describe a contiguous value that takes no gradients.

    Args:
        meta: A value like it.
        sizes: Its sizes, where they differ.
        dtype: The number of its dtype, where it differs.

    Returns:
        The description.
    """
    shape = meta["sizes"] if sizes is None else sizes
    return {
        **meta,
        "dtype": meta["dtype"] if dtype is None else dtype,
        "requires_grad": False,
        "sizes": shape,
        "strides": strides_of(shape),
        "storage_offset": {"as_int": 0},
    }
