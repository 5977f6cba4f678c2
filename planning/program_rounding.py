"""The graph of a program whose weights are int8: they become floats again where they are used.

Only operators of aten, so torch.export.load opens it wherever torch is. With w8a8, what such an
operator takes beside the weight is rounded too (`planning.integer_products`).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planning.graph_builder import GraphBuilder, Meta, meta_like, tensor
from planning.graph_values import given_of, made_by, operator_of, tensor_of
from planning.integer_products import (
    INT8,
    Activations,
    cast,
    has_integer_product,
    multiply_integers,
)
from planning.program_weights import ACTIVATIONS, TURNS


@dataclass(frozen=True)
class _Stored:
    """A weight that is int8 now.

    Attributes:
        meta: What it was as floats.
        scale: What its scales are called in the graph.
    """

    meta: Meta
    scale: str


def scale_name(tensor_name: str) -> str:
    """Give the name of the tensor that holds the scales of an int8 one."""
    return f"{tensor_name}_scale"


def shape_of_scale(shape: tuple[int, ...], *, is_transposed: bool) -> tuple[int, ...]:
    """Give the shape of a weight's scales: one for each output channel, 1 in other dimensions."""
    axis = len(shape) - 1 if is_transposed else 0
    return tuple(size if i == axis else 1 for i, size in enumerate(shape))


def round_document(
    document: Mapping[str, Any],
    scales: Mapping[str, tuple[int, ...]],
    *,
    rounds_activations: bool,
) -> dict[str, Any]:
    """Give a program's document as it is when weights are int8.

    Args:
        document: The document.
        scales: By the name of each weight that becomes int8, the shape of its scales.
        rounds_activations: Whether what is multiplied with them is rounded as well.

    Returns:
        A new document, with int8 buffers of the weights' names, and scales beside them.
    """
    changed: dict[str, Any] = copy.deepcopy(dict(document))
    module = changed["graph_module"]
    graph, specs = module["graph"], module["signature"]["input_specs"]
    builder = GraphBuilder(graph)
    stored = {}
    for spec in [spec["parameter"] for spec in specs if "parameter" in spec]:
        node, name = spec["arg"]["name"], spec["parameter_name"]
        if name in scales:
            stored[node] = _store(builder, graph, specs, (node, name), scales[name])
    _Rewriting(builder, stored, rounds_activations=rounds_activations).run(graph["nodes"])
    graph["nodes"] = builder.nodes
    return changed


def _store(
    builder: GraphBuilder,
    graph: dict[str, Any],
    specs: list[Any],
    names: tuple[str, str],
    shape: tuple[int, ...],
) -> _Stored:
    """Make a parameter an int8 buffer, and its scales another one behind it."""
    node, name = names
    kinds = [spec.get("parameter", {}) for spec in specs]
    place = next(i for i, spec in enumerate(kinds) if spec.get("parameter_name") == name)
    was = meta_like(builder.values[node])
    builder.values[node] = meta_like(was, dtype=INT8)
    scale = builder.fresh(f"{node}_scale")
    builder.values[scale] = meta_like(was, [{"as_int": size} for size in shape])
    specs[place] = _buffer(node, name)
    specs.insert(place + 1, _buffer(scale, scale_name(name)))
    graph["inputs"].insert(place + 1, tensor(scale))
    return _Stored(was, scale)


def _buffer(node: str, name: str) -> dict[str, Any]:
    return {"buffer": {"arg": {"name": node}, "buffer_name": name, "persistent": True}}


class _Rewriting:
    """Writes the nodes of a graph anew, each with what it takes before it."""

    def __init__(
        self, builder: GraphBuilder, stored: Mapping[str, _Stored], *, rounds_activations: bool
    ) -> None:
        self._builder = builder
        self._stored = stored
        self._activations = Activations(builder) if rounds_activations else None
        self._floats: dict[str, str] = {}
        #: Weights whose dimensions were swapped, by the name of that value.
        self._turned: dict[str, str] = {}

    def run(self, nodes: list[dict[str, Any]]) -> None:
        for node in nodes:
            weights = [name for name in _taken(node) if name in self._stored]
            is_linear = operator_of(node) == "linear" and len(weights) == 1
            if (
                self._activations is not None
                and is_linear
                and has_integer_product(node, weights[0], self._builder.values)
            ):
                scale = self._stored[weights[0]].scale
                multiply_integers(self._builder, self._activations, node, weights[0], scale)
                continue
            for name in weights:
                _replace(node, name, self._as_floats(name))
                if operator_of(node) in TURNS:
                    self._turned[made_by(node)[0]] = name
                else:
                    self._round_beside(node, name, self._floats[name])
            for name in [name for name in _taken(node) if name in self._turned]:
                self._round_beside(node, self._turned[name], name)
            self._builder.nodes.append(node)

    def _as_floats(self, weight: str) -> str:
        if weight not in self._floats:
            stored, add = self._stored[weight], self._builder.add
            steps = cast(self._builder, weight, stored.meta["dtype"])
            product = {"self": steps, "other": stored.scale}
            self._floats[weight] = add("mul.Tensor", product, stored.meta)
        return self._floats[weight]

    def _round_beside(self, node: dict[str, Any], weight: str, passed: str) -> None:
        """Round what a node multiplies with a weight that is passed to it under some name."""
        argument = ACTIVATIONS.get(operator_of(node))
        taken = tensor_of(given_of(node), argument) if argument else None
        if self._activations is None or argument is None or taken in (None, passed):
            return
        values = self._builder.values
        rank, kernel = len(values[str(taken)]["sizes"]), len(values[weight]["sizes"])
        # Of an image, one row is all its channels and places; of text, a token is all its features.
        first = rank - 1 if kernel == 2 else rank - kernel + 1
        rounded = self._activations.as_floats(str(taken), tuple(range(first, rank)))
        _replace(node, str(taken), rounded, argument)


def _taken(node: Mapping[str, Any]) -> list[str]:
    found = (argument["arg"].get("as_tensor", {}).get("name") for argument in node["inputs"])
    return [name for name in found if name is not None]


def _replace(node: dict[str, Any], old: str, new: str, argument: str | None = None) -> None:
    for given in node["inputs"]:
        is_meant = argument is None or given["name"] == argument
        if is_meant and given["arg"].get("as_tensor", {}).get("name") == old:
            given["arg"] = tensor(new)
