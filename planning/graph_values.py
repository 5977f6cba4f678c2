"""What a node of a program's graph takes and makes, and what is known of a value's shape."""

from collections.abc import Mapping
from typing import Any

_PREFIX = "torch.ops.aten."

Node = Mapping[str, Any]
#: The arguments of a node by their names.
Given = Mapping[str, Mapping[str, Any]]


def operator_of(node: Node) -> str:
    """Give the name of a node's operator, without namespace, overload and in-place form."""
    name: str = node["target"].removeprefix(_PREFIX).partition(".")[0]
    return name.removesuffix("_") if not name.endswith("__") else name


def given_of(node: Node) -> dict[str, Mapping[str, Any]]:
    """Give a node's arguments by their names."""
    return {argument["name"]: argument["arg"] for argument in node["inputs"]}


def taken_by(node: Node) -> list[str]:
    """Give the tensors that a node takes, in order."""
    return [name for argument in node["inputs"] for name in _tensors(argument["arg"])]


def made_by(node: Node) -> list[str]:
    """Give the tensors that a node makes, in order."""
    return [name for argument in node["outputs"] for name in _tensors(argument)]


def tensor_of(given: Given, name: str) -> str | None:
    """Give the tensor that an argument is; None where it is none."""
    found: str | None = given.get(name, {}).get("as_tensor", {}).get("name")
    return found


def int_of(given: Given, name: str, default: int) -> int:
    """Give the whole number that an argument is."""
    found: int = given.get(name, {}).get("as_int", default)
    return found


def ints_of(given: Given, name: str) -> list[int]:
    """Give the whole numbers that an argument is; one of them may stand for itself."""
    argument = given.get(name, {})
    return [argument["as_int"]] if "as_int" in argument else list(argument.get("as_ints", ()))


def shape_of(values: Mapping[str, Any], name: str) -> list[int]:
    """Give the shape of a value, sizes that vary as -1."""
    return [size.get("as_int", -1) for size in values[name]["sizes"]]


def tokens_of(values: Mapping[str, Any], name: str) -> list[int | str]:
    """Give the shape of a value, sizes that vary as their expressions."""
    sizes = values[name]["sizes"]
    return [size["as_int"] if "as_int" in size else size["as_expr"]["expr_str"] for size in sizes]


def strides_of(sizes: list[Any]) -> list[Any]:
    """Give the strides of a contiguous value, as the schema writes sizes."""
    strides: list[Any] = []
    factors: list[Any] = []
    for size in reversed(sizes):
        strides.append(size_product(factors))
        factors.append(size)
    return strides[::-1]


def size_product(factors: list[Any]) -> Any:  # noqa: ANN401 - a size of the schema
    """Give the product of sizes, as the schema writes them."""
    number, words, hint = 1, [], 1
    for factor in factors:
        if "as_int" in factor:
            number *= factor["as_int"]
            continue
        words.append(factor["as_expr"]["expr_str"])
        hint *= ((factor["as_expr"].get("hint") or {}).get("as_int")) or 1
    if not words:
        return {"as_int": number}
    parts = words if number == 1 else [f"Integer({number})", *words]
    text = parts[0] if len(parts) == 1 else f"Mul({', '.join(parts)})"
    return {"as_expr": {"expr_str": text, "hint": {"as_int": number * hint}}}


def _tensors(argument: Mapping[str, Any]) -> list[str]:
    [(kind, value)] = argument.items()
    if kind == "as_tensor":
        return [value["name"]]
    if kind == "as_optional_tensor":
        return _tensors(value) if "as_tensor" in value else []
    if kind == "as_tensors":
        return [tensor["name"] for tensor in value]
    if kind == "as_optional_tensors":
        return [tensor["as_tensor"]["name"] for tensor in value if "as_tensor" in tensor]
    if kind == "as_nested_tensors":
        return [tensor["name"] for tensors in value for tensor in tensors]
    return []
