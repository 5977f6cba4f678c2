"""What the layers of a stack have the same number of: their heads and their channels.

Dimension key: U units (heads with the keys and values that they share, or channels) of one layer.
"""

from dataclasses import replace
from typing import Any, Literal

from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec
from planning.anatomy import Channels, Heads
from planning.matrices import WEIGHT_DTYPES
from planning.stacks import Dimension, Layers, Part, Piece, Unit

Importance = Literal["magnitude", "activation", "taylor"]
#: A module, the axis of its weight, and where units are along it.
_Roles = list[tuple[str, int, tuple[Part, ...]]]


def find_channels(layers: Layers, importance: Importance = "magnitude") -> Dimension | str:
    """Find the channels of a stack's MLPs, or say why none of them can be left out.

    Args:
        layers: The stack.
        importance: What decides which are.

    Returns:
        The channels, or the reason.

    Raises:
        Problem: `invalid_checkpoint`: a tensor is missing or has another shape than its
            neighbours.
    """
    channels = layers.stack.channels
    outputs = _choose(layers, channels)
    modules = (*outputs, channels.inputs)
    count = _size(layers, 0, channels.inputs, _inputs_axis(layers))
    is_bounded = importance == "magnitude"
    parts = tuple(Part(i * count, 1, is_scored=is_bounded) for i in range(channels.fused))
    roles = [(module, _outputs_axis(layers), parts) for module in outputs]
    taken = Part(0, 1, is_scored=importance != "taylor")
    roles.append((channels.inputs, _inputs_axis(layers), (taken,)))
    return _dimension(layers, "channels", modules, channels.beside, count, (1, 1), roles)


def find_heads(
    layers: Layers, heads: Heads, config: dict[str, Any], importance: Importance = "magnitude"
) -> Dimension | str:
    """Find the heads of one of a stack's attentions, or say why none of them can be left out.

    Args:
        layers: The stack.
        heads: Of which of its attentions.
        config: The members of config.json.
        importance: What decides which are.

    Returns:
        The heads, in units that share keys and values, or the reason.

    Raises:
        Problem: `invalid_config`: the number of heads is missing or does not fit the tensors.
            `invalid_checkpoint`, as `find_channels`.
    """
    keys = heads.keys
    number = config.get(keys.number)
    inputs = _size(layers, 0, heads.output, 1)
    if type(number) is not int or number < 1 or inputs % number:
        raise Problem(
            "invalid_config",
            f"{keys.number} is {number!r}; the {inputs} inputs of {heads.output} in "
            f"{layers.path} must be divisible by it.",
        )
    size = inputs // number
    rows = _size(layers, 0, heads.query, 0)
    groups = (rows // size - number) // 2
    if heads.key is not None:
        groups = _size(layers, 0, heads.key, 0) // size
    if groups < 1 or number % groups or config.get(keys.size) not in (None, size):
        raise Problem(
            "invalid_config",
            f"{number} heads of {config.get(keys.size) or size} values do not fit the {rows} "
            f"outputs of {heads.query} in {layers.path}.",
        )
    queries = number // groups
    dimension = _dimension(
        layers,
        "heads",
        tuple(name for name in (heads.query, heads.key, heads.value, heads.output) if name),
        heads.beside,
        groups,
        (queries, size),
        _roles_of_heads(heads, groups, queries, size, importance),
    )
    if isinstance(dimension, str):
        return dimension
    return _with_shared_bias(replace(dimension, heads=heads), heads.shared_bias)


def _with_shared_bias(dimension: Dimension, module: str | None) -> Dimension:
    """Add the weight in the first layer that has a column for each head of all."""
    if module is None:
        return dimension
    first, *others = dimension.pieces
    if _size(dimension.layers, 0, module, 1) != dimension.count:
        raise Problem(
            "invalid_checkpoint",
            f"Tensor '{dimension.layers.path}.0.{module}.weight' has no column for each of "
            f"{dimension.count} heads.",
        )
    tensor = dimension.layers.tensors[0][f"{module}.weight"]
    bias = Piece(tensor, 1, (Part(0, 1, is_scored=False),))
    return replace(dimension, pieces=((bias, *first), *others))


def _roles_of_heads(
    heads: Heads, groups: int, queries: int, size: int, importance: Importance
) -> _Roles:
    is_bounded = importance == "magnitude"
    query, wide = Part(0, queries * size, is_scored=False), groups * queries * size
    key, value = Part(0, size, is_scored=False), Part(0, size, is_scored=is_bounded)
    output = (heads.output, 1, (Part(0, queries * size, is_scored=importance != "taylor"),))
    if heads.key is None or heads.value is None:
        key = Part(wide, size, is_scored=False)
        value = Part(wide + groups * size, size, is_scored=is_bounded)
        return [(heads.query, 0, (query, key, value)), output]
    return [(heads.query, 0, (query,)), (heads.key, 0, (key,)), (heads.value, 0, (value,)), output]


def _dimension(
    layers: Layers,
    unit: Unit,
    modules: tuple[str, ...],
    beside: tuple[str, ...],
    count: int,
    sizes: tuple[int, int],
    roles: _Roles,
) -> Dimension | str:
    block = modules[0].rpartition(".")[0] or unit
    stranger = _find_stranger(layers, modules, beside)
    if stranger is not None:
        return f"It has {stranger}, of which it is not known how that would become smaller."
    pieces = tuple(
        tuple(piece for role in roles for piece in _pieces(layers, number, *role, count))
        for number in range(len(layers.tensors))
    )
    odd = next((p.tensor for layer in pieces for p in layer if not _is_float(p.tensor)), None)
    if odd is not None:
        return f"{odd.name} is of dtype {odd.dtype}; {', '.join(sorted(WEIGHT_DTYPES))} are cut."
    return Dimension(layers, unit, block, modules, count, *sizes, pieces)


def _pieces(
    layers: Layers, number: int, module: str, axis: int, parts: tuple[Part, ...], count: int
) -> list[Piece]:
    """Give the weight of a module, and its bias where that has the units too."""
    wanted = count * sum(part.width for part in parts)
    if _size(layers, number, module, axis) != wanted:
        tensor = layers.tensors[number][f"{module}.weight"]
        raise Problem(
            "invalid_checkpoint",
            f"Tensor {tensor.name!r} has the shape {list(tensor.shape)}; there should be {wanted} "
            f"along axis {axis}, as its neighbours have it.",
        )
    pieces = [Piece(layers.tensors[number][f"{module}.weight"], axis, parts)]
    bias = layers.tensors[number].get(f"{module}.bias")
    if bias is not None and axis == _outputs_axis(layers):
        if bias.shape != (wanted,):
            raise Problem(
                "invalid_checkpoint",
                f"Tensor {bias.name!r} has the shape {list(bias.shape)}, not [{wanted}].",
            )
        pieces.append(Piece(bias, 0, parts))
    return pieces


def _choose(layers: Layers, channels: Channels) -> tuple[str, ...]:
    names = layers.tensors[0]
    for outputs in channels.outputs:
        if f"{outputs[0]}.weight" in names:
            return outputs
    return channels.outputs[0]


def _size(layers: Layers, number: int, module: str, axis: int) -> int:
    tensor = layers.tensors[number].get(f"{module}.weight")
    if tensor is None or len(tensor.shape) != 2:
        name = f"{layers.path}.{number}.{module}.weight"
        raise Problem("invalid_checkpoint", f"There is no matrix {name!r}.")
    return tensor.shape[axis]


def _find_stranger(layers: Layers, modules: tuple[str, ...], beside: tuple[str, ...]) -> str | None:
    """Find a tensor near those that are cut of which nothing is known."""
    known = {f"{module}.{role}" for module in modules for role in ("weight", "bias")}
    parents = {module.rpartition(".")[0] for module in modules} - {""}
    near = tuple(f"{name}." for name in (*modules, *parents))
    for layer in layers.tensors:
        for rest, tensor in layer.items():
            is_known = rest in known or rest.rpartition(".")[0] in beside or "rotary_emb" in rest
            if rest.startswith(near) and not is_known:
                return tensor.name
    return None


def _is_float(tensor: TensorSpec) -> bool:
    return tensor.dtype in WEIGHT_DTYPES


def _outputs_axis(layers: Layers) -> int:
    return 1 if layers.is_transposed else 0


def _inputs_axis(layers: Layers) -> int:
    return 0 if layers.is_transposed else 1
