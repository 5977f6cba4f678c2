"""Activations rounded by a program's own graph, and their products with int8 weights.

Dimension key: M rows or tokens, I inputs, O outputs.

A Linear multiplies integers (`aten._int_mm`). What a convolution takes becomes whole numbers and is
multiplied as floats: torch has no operator for integers there.
"""

from collections.abc import Mapping
from typing import Any

from planning.graph_builder import GraphBuilder, Meta, meta_like
from planning.graph_values import given_of, made_by, size_product, tensor_of

INT8, INT32, FLOAT32 = 2, 4, 7
_STEPS = 127
#: The least scale of an activation, so that one of zeros stays zeros.
_LEAST = 2.0**-120


class Activations:
    """What was rounded already in a graph, once for all that take it.

    Args:
        builder: The graph.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._rounded: dict[tuple[str, tuple[int, ...]], tuple[str, str]] = {}
        self._products: dict[str, str] = {}

    def as_steps(self, taken: str, dimensions: tuple[int, ...]) -> tuple[str, str]:
        """Round an activation to whole steps.

        Args:
            taken: The activation.
            dimensions: Which of its dimensions share a scale: those of a token, or of an image.

        Returns:
            The names of the whole numbers, from -127 to 127 as float32, and of their scales: the
            largest absolute value over 127.
        """
        key = (taken, dimensions)
        if key not in self._rounded:
            self._rounded[key] = self._round(taken, dimensions)
        return self._rounded[key]

    def as_floats(self, taken: str, dimensions: tuple[int, ...]) -> str:
        """Round an activation, and give the floats that it then is."""
        steps, scale = self.as_steps(taken, dimensions)
        if steps not in self._products:
            wide, meta = self._builder.values[steps], self._builder.values[taken]
            product = self._builder.add("mul.Tensor", {"self": steps, "other": scale}, wide)
            self._products[steps] = cast(self._builder, product, meta["dtype"])
        return self._products[steps]

    def _round(self, taken: str, dimensions: tuple[int, ...]) -> tuple[str, str]:
        add = self._builder.add
        # Half floats have too few digits for 127 steps, of which one more would be none in int8.
        taken = cast(self._builder, taken, FLOAT32)
        meta = meta_like(self._builder.values[taken])
        sizes = [
            {"as_int": 1} if place in dimensions else size
            for place, size in enumerate(meta["sizes"])
        ]
        narrow = meta_like(meta, sizes)
        size = add("abs.default", {"self": taken}, meta)
        shared = {"dim": {"as_ints": list(dimensions)}, "keepdim": {"as_bool": True}}
        most = add("amax.default", {"self": size, **shared}, narrow)
        step = add("div.Scalar", {"self": most, "other": {"as_int": _STEPS}}, narrow)
        scale = add("clamp_min.default", {"self": step, "min": {"as_float": _LEAST}}, narrow)
        quotient = add("div.Tensor", {"self": taken, "other": scale}, meta)
        return add("round.default", {"self": quotient}, meta), scale


def cast(builder: GraphBuilder, value: str, dtype: int) -> str:
    """Give a value of another dtype; itself where it has that.

    Args:
        builder: The graph.
        value: The value.
        dtype: The number of the dtype.

    Returns:
        The name of what it is then.
    """
    meta = builder.values[value]
    if meta["dtype"] == dtype:
        return value
    keywords = {"dtype": {"as_scalar_type": dtype}}
    return builder.add("_to_copy.default", {"self": value}, meta_like(meta, dtype=dtype), keywords)


def has_integer_product(node: Mapping[str, Any], weight: str, values: Mapping[str, Meta]) -> bool:
    """Whether a Linear can multiply integers: of its rows' dimensions, one at most may vary.

    Args:
        node: The node.
        weight: The int8 weight, of [O, I].
        values: What is known of each value.

    Returns:
        Whether it can.
    """
    given = given_of(node)
    taken = tensor_of(given, "input")
    if taken is None or tensor_of(given, "weight") != weight:
        return False
    rows = values[taken]["sizes"][:-1]
    return bool(rows) and sum("as_int" not in size for size in rows) <= 1


def multiply_integers(
    builder: GraphBuilder,
    activations: Activations,
    node: Mapping[str, Any],
    weight: str,
    scale: str,
) -> None:
    """Add the nodes of a Linear whose activations and weight are int8.

    Args:
        builder: The graph.
        activations: What was rounded already.
        node: The Linear, which these nodes stand for.
        weight: The int8 weight, [O, I].
        scale: Its scales, [O, 1].
    """
    given, values, add = given_of(node), builder.values, builder.add
    taken, bias = tensor_of(given, "input") or "", tensor_of(given, "bias")
    [made] = made_by(node)
    meta = meta_like(values[made])
    *rows, inputs = values[taken]["sizes"]
    outputs = meta["sizes"][-1]
    count = size_product(rows)
    steps, steps_scale = activations.as_steps(taken, (len(rows),))
    left = cast(builder, steps, INT8)
    if len(rows) > 1:
        ends = {"start_dim": {"as_int": 0}, "end_dim": {"as_int": len(rows) - 1}}
        flat = meta_like(values[left], [count, inputs])
        left = add("flatten.using_ints", {"self": left, **ends}, flat)
        narrow = meta_like(values[steps_scale], [count, {"as_int": 1}])
        steps_scale = add("flatten.using_ints", {"self": steps_scale, **ends}, narrow)
    swap = {"dims": {"as_ints": [1, 0]}}
    right = add(
        "permute.default", {"self": weight, **swap}, meta_like(values[weight], [inputs, outputs])
    )
    scales = add(
        "permute.default",
        {"self": scale, **swap},
        meta_like(values[scale], [{"as_int": 1}, outputs]),
    )
    shape = [count, outputs]
    product = add(
        "_int_mm.default", {"self": left, "mat2": right}, meta_like(meta, shape, dtype=INT32)
    )
    # In between, half floats would lose digits of whole numbers.
    wide = meta_like(meta, shape, dtype=FLOAT32)
    value = cast(builder, product, FLOAT32)
    value = add("mul.Tensor", {"self": value, "other": steps_scale}, wide)
    value = add("mul.Tensor", {"self": value, "other": scales}, wide)
    if bias is not None:
        value = add("add.Tensor", {"self": value, "other": bias}, wide)
    value = cast(builder, value, meta["dtype"])
    sizes = [size.get("as_int", -1) for size in meta["sizes"]]
    add("view.default", {"self": value, "size": {"as_ints": sizes}}, meta, name=made)
