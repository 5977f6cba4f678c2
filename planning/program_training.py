"""What of an exported program is trained, and whether it can be: told by its graph alone."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from jobs.finetuning import FinetuneStep
from jobs.problems import Detail, Problem
from jobs.program import Program
from jobs.program_tensors import ProgramTensor
from planning.graph_values import given_of, operator_of, shape_of, taken_by, tensor_of
from planning.operator_kinds import NORMS
from planning.program_weights import refuse_quantized

#: Normalizations whose argument `training` says whose statistics they take.
_BATCH_NORMS = frozenset({"batch_norm", "native_batch_norm", "_native_batch_norm_legit"})
_STATISTICS = (
    "A BatchNorm of the program takes the statistics of its batch, and those of a few rows are not "
    "those of the whole batch. Export the model after model.eval()."
)
_STATE = (
    "Each call of the program changes its tensor {!r}, so what a row gives depends on the rows "
    "before it. Export the model after model.eval(), without a cache."
)
_CHOICE = (
    "classification needs logits of [rows, classes]; the program gives {}. Choose regression, or "
    "export the model with its head."
)


def find_trained(program: Program, step: FinetuneStep) -> dict[str, tuple[str, ...]]:
    """Give the parameters that a step trains.

    Args:
        program: The program.
        step: Says which modules; without `include`, all parameters that took gradients when the
            program was exported.

    Returns:
        By its first name, all names of each: tied ones are one parameter. No other tensor lies in
        the bytes of one.
    """
    homes: dict[str, list[str]] = {}
    for name, tensor in program.tensors.items():
        homes.setdefault(tensor.entry, []).append(name)
    return {
        names[0]: tuple(names)
        for names in homes.values()
        if _is_one_parameter([program.tensors[name] for name in names])
        and _is_wanted([program.tensors[name] for name in names], step)
    }


def answer_shape(program: Program) -> list[int | None] | None:
    """Give the shape of what a program answers, sizes that vary as None.

    Args:
        program: The program.

    Returns:
        That of its first output that is a float tensor with a dimension; None without one.
    """
    for seen in program.interface()[3]:
        if len(seen) == 2 and seen[0].startswith(("F", "BF")) and seen[1]:
            found: list[int | None] = seen[1]
            return found
    return None


def frozen_statistics(program: Program) -> int:
    """Count the batch normalizations, all of which keep the statistics that they came with."""
    return sum(
        operator_of(node) in NORMS | _BATCH_NORMS and not _takes_statistics(program, node)
        for node in program.graph["nodes"]
    )


def refuse_untrainable(program: Program, step: FinetuneStep, pointer: str = "") -> None:
    """Refuse a program that cannot be trained a few rows at a time, or not with this step.

    Args:
        program: The program.
        step: What is asked for.
        pointer: Where the step stands in the request.

    Raises:
        Problem: `finetune_unsupported`, `already_quantized`; `nothing_changed`: the step would
            train no parameter.
    """
    refuse_quantized(program)
    faults = [*_faults_of_graph(program), *_faults_of_answer(program, step)]
    if faults:
        code = "finetune_unsupported"
        errors = [Detail(pointer + place, code, detail) for place, detail in faults]
        raise Problem(code, " ".join(detail for _, detail in faults), errors=errors)
    if not find_trained(program, step):
        detail = (
            "The step would train no parameter: those that include and exclude leave took no "
            "gradients when the program was exported. Name their modules in include."
        )
        raise Problem(
            "nothing_changed", detail, errors=[Detail(pointer, "nothing_changed", detail)]
        )


def _faults_of_graph(program: Program) -> Iterator[tuple[str, str]]:
    changed = next(_changed_tensors(program), None)
    if any(_takes_statistics(program, node) for node in program.graph["nodes"]):
        yield "", _STATISTICS
    elif changed is not None:
        yield "", _STATE.format(changed[:80])
    specs = program.document["graph_module"]["signature"]["input_specs"]
    given = (spec["user_input"]["arg"] for spec in specs if "user_input" in spec)
    if any("as_tensor" not in argument for argument in given):
        yield "", "The program takes a number beside its tensors; export it with tensors alone."


def _faults_of_answer(program: Program, step: FinetuneStep) -> Iterator[tuple[str, str]]:
    shape = answer_shape(program)
    if shape is None:
        yield "", "The program gives no float tensor, so there is nothing to compare with labels."
    elif step.objective == "classification" and not is_choice(shape):
        told = ["any" if size is None else size for size in shape]
        yield "/objective", _CHOICE.format(told)


def is_choice(shape: Sequence[int | None]) -> bool:
    """Tell whether what a program answers can be logits of classes: [rows, two or more]."""
    return len(shape) == 2 and shape[1] != 1


def _is_one_parameter(tensors: Sequence[ProgramTensor]) -> bool:
    """Whether tensors that share an entry are the same floats, each in bytes of its own."""
    first = tensors[0]
    layouts = {(t.spec.dtype, t.spec.shape, t.strides, t.offset) for t in tensors}
    is_float = first.spec.dtype.startswith(("F", "BF")) and first.spec.elements > 0
    is_parameter = all(tensor.is_parameter for tensor in tensors)
    return is_parameter and is_float and len(layouts) == 1 and not _overlaps(first)


def _overlaps(tensor: ProgramTensor) -> bool:
    """Whether strides lead to a value twice."""
    reach = 0
    pairs = zip(tensor.strides, tensor.spec.shape, strict=True)
    for stride, size in sorted(pair for pair in pairs if pair[1] > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _is_wanted(tensors: Sequence[ProgramTensor], step: FinetuneStep) -> bool:
    modules = [tensor.spec.name.rpartition(".")[0] for tensor in tensors]
    if any(_matches(module, step.exclude) for module in modules):
        return False
    if step.include is None:
        return any(tensor.is_trained for tensor in tensors)
    return any(_matches(module, step.include) for module in modules)


def _matches(module: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def _takes_statistics(program: Program, node: Any) -> bool:  # noqa: ANN401 - a node of the schema
    """Whether a node is a BatchNorm that takes statistics of the rows that it is given."""
    given = given_of(node)
    if operator_of(node) not in _BATCH_NORMS or not given.get("training", {}).get("as_bool"):
        return False
    # What was an instance normalization has its rows among the channels.
    image = tensor_of(given, "input")
    return image is None or shape_of(program.graph["tensor_values"], image)[:1] != [1]


def _changed_tensors(program: Program) -> Iterator[str]:
    """Yield the names of stored tensors that a call changes."""
    for spec in program.document["graph_module"]["signature"]["output_specs"]:
        if "buffer_mutation" in spec:
            yield spec["buffer_mutation"]["buffer_name"]
    for node in program.graph["nodes"]:
        operator = node["target"].removeprefix("torch.ops.aten.").partition(".")[0]
        is_in_place = operator.endswith("_") and not operator.endswith("__")
        taken = taken_by(node)[:1] if is_in_place else []
        yield from (program.sources[name] for name in taken if name in program.sources)
