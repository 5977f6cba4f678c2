"""What training a program holds at a time, told by the shapes that its graph names.

A forward pass keeps what each operator makes until the backward pass has used it; what is only
another view of a value takes nothing.
"""

from collections.abc import Mapping
from typing import Any

from jobs.finetuning import FinetuneStep
from jobs.program import Program
from jobs.program_schema import DTYPES
from jobs.safetensors_header import DTYPE_BYTES
from planning.graph_values import made_by, operator_of
from planning.operator_kinds import SHAPED
from planning.program_training import find_trained

#: Operators that give another view of what they are given.
_VIEWS = SHAPED | frozenset(
    """
    alias chunk detach diagonal expand expand_as getitem movedim narrow numpy_T permute select slice
    split split_with_sizes squeeze swapaxes t transpose unbind unsqueeze
    """.split()  # noqa: SIM905 - a list reads worse
)
#: Bytes of states for each weight: two moments, two of a byte, sums of rows and columns, or one.
_STATE_BYTES = {"adamw": 8, "adamw8bit": 2, "adafactor": 0, "sgd": 4}
#: A weight and its gradient, in float32.
_WEIGHT_BYTES, _GRADIENT_BYTES = 4, 4


def held_bytes(program: Program, step: FinetuneStep, optimizer: str) -> int:
    """Give the bytes of weights, gradients and states, whatever the rows.

    Args:
        program: The program.
        step: What is to be done.
        optimizer: The one whose states are held.

    Returns:
        Bytes. Floats of 16 bits are held in float32.
    """
    specs = [tensor.spec for tensor in program.tensors.values()]
    weights = sum(max(_WEIGHT_BYTES, DTYPE_BYTES[s.dtype]) * s.elements for s in specs)
    trained = sum(program.tensors[name].spec.elements for name in find_trained(program, step))
    states = 0 if optimizer == "sgd" and not step.momentum else _STATE_BYTES[optimizer]
    return weights + trained * (_GRADIENT_BYTES + states)


def activation_bytes(program: Program, rows: int) -> int:
    """Give the bytes of all that one forward pass makes.

    Args:
        program: The program.
        rows: How many rows it is given.

    Returns:
        Bytes; other sizes that vary are those that it was exported with.
    """
    return sum(_sizes_made(program, rows))


def largest_made_bytes(program: Program, rows: int) -> int:
    """Give the bytes of the largest value that one forward pass makes; as `activation_bytes`."""
    return max(_sizes_made(program, rows), default=0)


def _sizes_made(program: Program, rows: int) -> list[int]:
    values = program.graph["tensor_values"]
    symbol = _row_symbol(program)
    return [
        _bytes_of(values[name], symbol, rows)
        for node in program.graph["nodes"]
        if operator_of(node) not in _VIEWS
        for name in made_by(node)
        if name in values
    ]


def _row_symbol(program: Program) -> str:
    first = program.graph["tensor_values"][program.inputs[0]]["sizes"][:1]
    text: str = first[0]["as_expr"]["expr_str"] if first and "as_expr" in first[0] else ""
    return text


def _bytes_of(meta: Mapping[str, Any], symbol: str, rows: int) -> int:
    nbytes = max(4, DTYPE_BYTES[DTYPES[meta["dtype"]]])
    for size in meta["sizes"]:
        if "as_int" in size:
            nbytes *= size["as_int"]
            continue
        expression = size["as_expr"]
        hint = (expression.get("hint") or {}).get("as_int") or 1
        nbytes *= rows if symbol and expression["expr_str"] == symbol else hint
    return nbytes
