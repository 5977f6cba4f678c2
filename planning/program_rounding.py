"""The graph of a program whose weights are int8: they become floats again where they are used.

Only operators of aten, so torch.export.load opens it wherever torch is. With w8a8, what such an
operator takes beside the weight is rounded too, with a scale for every token, or for every row of
images: the largest absolute value over 127.
"""

import copy
from collections.abc import Mapping
from typing import Any

from planning.graph_values import given_of, made_by, operator_of, tensor_of
from planning.program_weights import ACTIVATIONS, TURNS
from planning.shrinking import strides_of

#: What serialization calls the dtypes.
_INT8 = 2
_ATEN = "torch.ops.aten."
_POSITIONAL, _KEYWORD = 1, 2
_STEPS = 127
#: The least scale of an activation, so that one of zeros stays zeros: of half floats, and others.
_FLOAT16, _LEAST_OF_HALF, _LEAST = 6, 2.0**-24, 2.0**-120


def scale_name(tensor: str) -> str:
    """Give the name of the tensor that holds the scales of an int8 one."""
    return f"{tensor}_scale"


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
    editor = _Editor(changed)
    floats = {
        node: editor.store_int8(node, name, scales[name]) for node, name in editor.weights(scales)
    }
    editor.rewrite(floats, rounds_activations=rounds_activations)
    return changed


class _Editor:
    def __init__(self, document: dict[str, Any]) -> None:
        module = document["graph_module"]
        self._graph = module["graph"]
        self._specs = module["signature"]["input_specs"]
        self._values = self._graph["tensor_values"]
        self._names = set(self._values) | {
            node["name"] for node in self._graph["nodes"] if node["name"]
        }

    def weights(self, scales: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Give the weights to round: how the graph calls each, and its own name."""
        specs = [spec["parameter"] for spec in self._specs if "parameter" in spec]
        return [
            (spec["arg"]["name"], spec["parameter_name"])
            for spec in specs
            if spec["parameter_name"] in scales
        ]

    def store_int8(self, node: str, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        """Make a parameter an int8 buffer with scales; give what the float was."""
        place = next(
            i
            for i, spec in enumerate(self._specs)
            if spec.get("parameter", {}).get("parameter_name") == name
        )
        was = self._values[node]
        self._values[node] = {**was, "dtype": _INT8, "requires_grad": False}
        self._specs[place] = _buffer(node, name)
        scale = self._fresh(f"{node}_scale")
        sizes = [{"as_int": size} for size in shape]
        self._values[scale] = _meta(was, sizes)
        self._specs.insert(place + 1, _buffer(scale, scale_name(name)))
        self._graph["inputs"].insert(place + 1, {"as_tensor": {"name": scale}})
        return {"meta": {**was, "requires_grad": False}, "scale": scale}

    def rewrite(self, floats: Mapping[str, dict[str, Any]], *, rounds_activations: bool) -> None:
        """Put what makes floats before the first node that takes them."""
        nodes: list[dict[str, Any]] = []
        made: dict[str, str] = {}
        turned: dict[str, str] = {}
        rounded: dict[tuple[str, tuple[int, ...]], str] = {}
        for node in self._graph["nodes"]:
            for name in [name for name in _taken(node) if name in floats or name in turned]:
                weight = turned.get(name, name)
                if weight not in made:
                    made[weight] = self._make_float(weight, floats[weight], nodes)
                _replace(node, weight, made[weight])
                if operator_of(node) in TURNS:
                    turned[made_by(node)[0]] = weight
                elif rounds_activations:
                    self._round_activation(node, weight, name, rounded, nodes)
            nodes.append(node)
        self._graph["nodes"] = nodes

    def _make_float(self, weight: str, was: dict[str, Any], nodes: list[dict[str, Any]]) -> str:
        meta = was["meta"]
        cast = self._node(
            nodes,
            "_to_copy.default",
            [("self", {"as_tensor": {"name": weight}})],
            meta,
            {"dtype": {"as_scalar_type": meta["dtype"]}},
        )
        other = {"as_tensor": {"name": was["scale"]}}
        return self._node(nodes, "mul.Tensor", [("self", _tensor(cast)), ("other", other)], meta)

    def _round_activation(
        self,
        node: dict[str, Any],
        weight: str,
        name: str,
        rounded: dict[tuple[str, tuple[int, ...]], str],
        nodes: list[dict[str, Any]],
    ) -> None:
        argument = ACTIVATIONS.get(operator_of(node))
        given = given_of(node)
        taken = tensor_of(given, argument) if argument else None
        if argument is None or taken is None or taken == name:
            return
        rank = len(self._values[taken]["sizes"])
        # Of an image, one row is all its channels and places; of text, a token is all its features.
        kernel = len(self._values[weight]["sizes"])
        dimensions = (rank - 1,) if kernel == 2 else tuple(range(rank - kernel + 1, rank))
        key = (taken, dimensions)
        if key not in rounded:
            rounded[key] = self._round(taken, dimensions, nodes)
        _replace(node, taken, rounded[key], argument)

    def _round(self, taken: str, dimensions: tuple[int, ...], nodes: list[dict[str, Any]]) -> str:
        meta = {**self._values[taken], "requires_grad": False}
        narrow = _meta(
            meta,
            [{"as_int": 1} if i in dimensions else size for i, size in enumerate(meta["sizes"])],
        )
        least = _LEAST_OF_HALF if meta["dtype"] == _FLOAT16 else _LEAST
        peak = self._node(nodes, "abs.default", [("self", _tensor(taken))], meta)
        most = self._node(
            nodes,
            "amax.default",
            [
                ("self", _tensor(peak)),
                ("dim", {"as_ints": list(dimensions)}),
                ("keepdim", {"as_bool": True}),
            ],
            narrow,
        )
        step = self._node(
            nodes, "div.Scalar", [("self", _tensor(most)), ("other", {"as_int": _STEPS})], narrow
        )
        scale = self._node(
            nodes,
            "clamp_min.default",
            [("self", _tensor(step)), ("min", {"as_float": least})],
            narrow,
        )
        steps = self._node(
            nodes, "div.Tensor", [("self", _tensor(taken)), ("other", _tensor(scale))], meta
        )
        whole = self._node(nodes, "round.default", [("self", _tensor(steps))], meta)
        return self._node(
            nodes, "mul.Tensor", [("self", _tensor(whole)), ("other", _tensor(scale))], meta
        )

    def _node(
        self,
        nodes: list[dict[str, Any]],
        target: str,
        inputs: list[tuple[str, dict[str, Any]]],
        meta: dict[str, Any],
        keywords: Mapping[str, dict[str, Any]] | None = None,
    ) -> str:
        name = self._fresh(target.partition(".")[0].strip("_"))
        self._values[name] = meta
        named = [{"name": n, "arg": a, "kind": _POSITIONAL} for n, a in inputs]
        named += [{"name": n, "arg": a, "kind": _KEYWORD} for n, a in (keywords or {}).items()]
        nodes.append(
            {
                "target": _ATEN + target,
                "inputs": named,
                "outputs": [_tensor(name)],
                "metadata": {},
                "is_hop_single_tensor_return": None,
                "name": name,
            }
        )
        return name

    def _fresh(self, wanted: str) -> str:
        name, number = wanted, 0
        while name in self._names:
            number += 1
            name = f"{wanted}_{number}"
        self._names.add(name)
        return name


def _tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def _buffer(node: str, name: str) -> dict[str, Any]:
    return {"buffer": {"arg": {"name": node}, "buffer_name": name, "persistent": True}}


def _meta(like: dict[str, Any], sizes: list[Any]) -> dict[str, Any]:
    return {
        **like,
        "requires_grad": False,
        "sizes": sizes,
        "strides": strides_of(sizes),
        "storage_offset": {"as_int": 0},
    }


def _taken(node: Mapping[str, Any]) -> list[str]:
    found = (argument["arg"].get("as_tensor", {}).get("name") for argument in node["inputs"])
    return [name for name in found if name is not None]


def _replace(node: dict[str, Any], old: str, new: str, argument: str | None = None) -> None:
    for given in node["inputs"]:
        is_meant = argument is None or given["name"] == argument
        if is_meant and given["arg"].get("as_tensor", {}).get("name") == old:
            given["arg"] = _tensor(new)


def shape_of_scale(shape: tuple[int, ...], *, is_transposed: bool) -> tuple[int, ...]:
    """Give the shape of a weight's scales: one for each output channel, 1 in other dimensions."""
    axis = len(shape) - 1 if is_transposed else 0
    return tuple(size if i == axis else 1 for i, size in enumerate(shape))
