"""The weights of an exported program that a step could change, told by what its graph does."""

from collections.abc import Mapping
from typing import Any

from jobs.problems import Problem
from jobs.program import Program
from planning.candidates import Candidate
from planning.graph_values import given_of, made_by, operator_of, taken_by, tensor_of
from planning.matrices import WEIGHT_DTYPES
from planning.naming import is_head, is_router, module_of

#: Which argument of an operator is a weight, and the kind of module that has it.
_TAKES = {
    "linear": ("weight", "Linear"),
    "conv1d": ("weight", "Conv1d"),
    "conv2d": ("weight", "Conv2d"),
    "conv3d": ("weight", "Conv3d"),
    "conv_transpose1d": ("weight", "ConvTranspose1d"),
    "conv_transpose2d": ("input", "ConvTranspose2d"),
    "conv_transpose3d": ("input", "ConvTranspose3d"),
    "convolution": ("weight", "convolution"),
    "embedding": ("weight", "Embedding"),
    "addmm": ("mat2", "product"),
    "mm": ("mat2", "product"),
    "matmul": ("other", "product"),
}
#: Which argument of an operator is multiplied with the weight.
ACTIVATIONS = {
    "linear": "input",
    "conv1d": "input",
    "conv2d": "input",
    "conv3d": "input",
    "convolution": "input",
    "addmm": "mat1",
    "mm": "self",
    "matmul": "self",
}
#: Which argument of those operators is the weight.
WEIGHTS = {operator: _TAKES[operator][0] for operator in ACTIVATIONS}
#: Operators that swap the dimensions of a matrix.
TURNS = frozenset({"t", "numpy_T", "permute", "transpose"})
_COMPRESSED = frozenset({"Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d"})


def find_program_weights(program: Program) -> list[Candidate]:
    """List every weight that a step could change, in the order of the file.

    Args:
        program: The program.

    Returns:
        Floats of two or more dimensions, with what speaks against each. A weight's kind is that of
        the operator that takes it; one that several kinds of operators take is left alone.

    Raises:
        Problem: `already_quantized`: the program turns int8 weights into floats.
    """
    kinds = _kinds_of(program)
    refuse_quantized(program)
    homes: dict[str, list[str]] = {}
    for name, tensor in program.tensors.items():
        homes.setdefault(tensor.entry, []).append(name)
    return [
        _candidate(program, name, kinds.get(name, set()), homes[tensor.entry])
        for name, tensor in program.tensors.items()
        if len(tensor.spec.shape) > 1 and tensor.spec.dtype.startswith(("F", "BF"))
    ]


def refuse_quantized(program: Program) -> None:
    """Refuse a program that turns int8 weights into floats, with `already_quantized`."""
    for tensor in program.tensors.values():
        if tensor.spec.dtype == "I8" and f"{tensor.spec.name}_scale" in program.tensors:
            raise Problem(
                "already_quantized",
                f"Tensor {tensor.spec.name!r} is int8 with a scale. Compress the program it was "
                "made from.",
            )


def _candidate(program: Program, name: str, kinds: set[str], shared: list[str]) -> Candidate:
    tensor = program.tensors[name]
    module = module_of(name)
    [kind] = kinds if len(kinds) == 1 else ["Parameter"]
    bias_name = f"{module}.bias" if module else "bias"
    has_bias = module is not None and bias_name in program.tensors and program.is_whole(bias_name)
    others = [other for other in shared if other != name]
    return Candidate(
        weight=tensor.spec,
        module=name if module is None else module,
        model_module=None,
        kind=kind,
        bias=program.tensors[bias_name].spec if has_bias else None,
        unsupported=_unsupported(program, name, kinds, others),
        left_by_default=_left_by_default(name if module is None else module, kind),
        tied_to=others[0] if others else None,
        is_stored_twice=False,
        is_merged=False,
        is_named=False,
        is_given=kind in _COMPRESSED,
    )


def _unsupported(program: Program, name: str, kinds: set[str], others: list[str]) -> str | None:
    tensor = program.tensors[name]
    against = {
        "It is a buffer or a constant, and no parameter.": not tensor.is_parameter,
        f"Its dtype is {tensor.spec.dtype}; {', '.join(sorted(WEIGHT_DTYPES))} are compressed.": (
            tensor.spec.dtype not in WEIGHT_DTYPES
        ),
        f"It shares its bytes with {', '.join(others[:1])}; tied weights stay.": bool(others),
        "It is empty, or its values do not lie one behind the other.": (
            tensor.spec.elements == 0 or not program.is_whole(name)
        ),
        f"Several kinds of operators take it: {', '.join(sorted(kinds))}.": len(kinds) > 1,
        f"{', '.join(kinds) or 'No operator'} takes it; those of Linear and Conv are compressed.": (
            not kinds & _COMPRESSED and "Embedding" not in kinds
        ),
    }
    return next((reason for reason, holds in against.items() if holds), None)


def _left_by_default(module: str, kind: str) -> str | None:
    if kind == "Embedding":
        return "It is an embedding"
    if is_head(module) or is_router(module):
        return "It is the output head" if is_head(module) else "It routes tokens to experts"
    return None


def _kinds_of(program: Program) -> dict[str, set[str]]:
    """Give the kinds of operators that take each tensor, by its name."""
    turned: dict[str, str] = {}
    kinds: dict[str, set[str]] = {}
    for node in program.graph["nodes"]:
        operator, given = operator_of(node), given_of(node)
        weight = _TAKES.get(operator)
        if operator in TURNS and _turns_matrix(operator, given):
            source = program.sources.get(tensor_of(given, "self") or "")
            if source is not None and len(program.tensors[source].spec.shape) == 2:
                turned[made_by(node)[0]] = source
                continue
        named = {tensor_of(given, name): name for name in given}
        for passed in taken_by(node):
            name = named.get(passed)
            kind = _kind(operator, given) if weight and name == weight[0] else operator
            if passed in turned:
                is_linear = kind == "product"
                kinds.setdefault(turned[passed], set()).add("Linear" if is_linear else operator)
            elif passed in program.sources:
                kind = "Conv1D" if kind == "product" else kind
                kinds.setdefault(program.sources[passed], set()).add(kind)
    return kinds


def _kind(operator: str, given: Mapping[str, Any]) -> str:
    kind = _TAKES[operator][1]
    if kind != "convolution":
        return kind
    rank = len(given.get("stride", {}).get("as_ints", ()))
    is_transposed = given.get("transposed", {}).get("as_bool", True)
    return f"ConvTranspose{rank}d" if is_transposed else f"Conv{rank}d"


def _turns_matrix(operator: str, given: Mapping[str, Any]) -> bool:
    """Whether an operator swaps the two dimensions of a matrix."""
    if operator == "permute":
        return given.get("dims", {}).get("as_ints") in ([1, 0], [-1, -2], [1, -2], [-1, 0])
    if operator == "transpose":
        dims = [given.get(name, {}).get("as_int", 0) % 2 for name in ("dim0", "dim1")]
        return sorted(dims) == [0, 1]
    return True
