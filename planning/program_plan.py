"""What a recipe will do to an exported program, decided before a byte of a weight is read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.program import Program
from jobs.program_archive import (
    CONSTANTS,
    CONSTANTS_CONFIG,
    FIXED,
    GRAPH,
    WEIGHTS,
    WEIGHTS_CONFIG,
    archive_bytes,
)
from jobs.program_graph import canonical
from jobs.program_schema import DTYPES
from jobs.program_tensors import ProgramTensor
from jobs.recipe import Recipe
from jobs.report import Skipped
from jobs.safetensors_header import TensorSpec
from jobs.steps import QuantizeStep, ShrinkStep
from planning.channels import ShrinkPlan, plan_shrink, shrink_document
from planning.graph_values import strides_of
from planning.program_limits import refuse_unsupported
from planning.program_rounding import round_document, scale_name, shape_of_scale
from planning.program_weights import find_program_weights
from planning.selection import Selection, Target, choose

_CODES = {name: code for code, name in DTYPES.items()}


@dataclass(frozen=True)
class Written:
    """A tensor of the artifact.

    Attributes:
        spec: Its name, dtype and shape.
        entry: The entry that holds it.
        source: The tensor of the model that it is made from.
        is_scale: Whether it holds the scales of the source's int8 values.
    """

    spec: TensorSpec
    entry: str
    source: str
    is_scale: bool = False


@dataclass(frozen=True)
class ProgramPlan:
    """Everything decided about a job on a program.

    Attributes:
        program: The model.
        recipe: What to do.
        shrink: Which channels go; None where all stay.
        selection: Which other step touches which tensor, by the shapes after shrinking.
        written: The tensors of the artifact, those that share an entry one after the other.
        texts: What the JSON entries of the artifact hold, by their names.
        sizes: How many bytes each entry of the artifact has, in their order.
    """

    program: Program
    recipe: Recipe
    shrink: ShrinkPlan | None
    selection: Selection
    written: tuple[Written, ...]
    texts: Mapping[str, bytes]
    sizes: Mapping[str, int]

    @property
    def artifact_bytes(self) -> int:
        """Size of the artifact."""
        return archive_bytes(self.sizes)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Every tensor that a step could have changed, with the reason."""
        shrinking = self.shrink.skipped if self.shrink else ()
        return (*shrinking, *self.selection.skipped)


def make_program_plan(program: Program, recipe: Recipe, pointer: str = "") -> ProgramPlan:
    """Decide everything about a job on a program.

    Args:
        program: The model.
        recipe: What to do.
        pointer: Where the recipe stands in the request.

    Returns:
        The plan. Equal programs and recipes give equal plans.

    Raises:
        Problem: `step_unsupported`, `output_unsupported`: what is asked for is not done to
            programs; `nothing_changed`, `already_quantized`.
    """
    refuse_unsupported(recipe, pointer)
    first = recipe.steps[0]
    shrink = plan_shrink(program, first) if isinstance(first, ShrinkStep) else None
    shrunk = program if shrink is None else _shrunk(program, shrink)
    candidates = find_program_weights(shrunk)
    selection = choose(candidates, list(shrunk.tensors), recipe, "pt2")
    rounded = {name: t for name, t in selection.targets.items() if t.scheme is not None}
    document = shrunk.document
    if rounded:
        scales = {name: _scale_shape(target) for name, target in rounded.items()}
        last = recipe.steps[-1]
        is_w8a8 = isinstance(last, QuantizeStep) and last.scheme == "w8a8"
        document = round_document(document, scales, rounds_activations=is_w8a8)
    written = tuple(_written(shrunk, rounded))
    texts = _texts(shrunk, document, written)
    sizes = {one.entry: _entry_bytes(program, one) for one in written}
    sizes |= {name: len(text) for name, text in texts.items()}
    return ProgramPlan(program, recipe, shrink, selection, written, texts, sizes)


def plan_training(program: Program, recipe: Recipe) -> ProgramPlan:
    """Give the plan of a stage that trains: a program of the same form.

    Args:
        program: What is trained.
        recipe: The stage's, with its finetune step alone.

    Returns:
        The plan. Nothing in it says which weights will change.
    """
    written = tuple(_written(program, {}))
    sizes = {name: nbytes for name, (_, nbytes) in program.spans.items() if name not in FIXED}
    texts = _texts(program, program.document, written)
    return ProgramPlan(program, recipe, None, Selection({}, (), ()), written, texts, sizes)


def _scale_shape(target: Target) -> tuple[int, ...]:
    matrix = target.matrix
    return shape_of_scale(matrix.tensor.shape, is_transposed=matrix.is_transposed)


def _shrunk(program: Program, shrink: ShrinkPlan) -> Program:
    tensors, spans = dict(program.tensors), dict(program.spans)
    for name, shape in shrink.shapes.items():
        tensor = tensors[name]
        spec = TensorSpec(name, tensor.spec.dtype, shape, 0)
        strides = tuple(size["as_int"] for size in strides_of([{"as_int": n} for n in shape]))
        tensors[name] = replace(tensor, spec=spec, strides=strides)
        spans[tensor.entry] = (spans[tensor.entry][0], spec.nbytes)
    document = shrink_document(program.document, shrink)
    return replace(program, document=document, tensors=tensors, spans=spans)


def _written(program: Program, rounded: Mapping[str, Target]) -> Iterable[Written]:
    """Lay the tensors out: weights and constants each counted, tied ones in one entry."""
    entries: dict[str, str] = {}
    counts = {WEIGHTS: 0, CONSTANTS: 0}
    ordered = sorted(program.tensors.values(), key=lambda tensor: _place(tensor.entry))

    def number(folder: str) -> str:
        counts[folder] += 1
        kind = "weight" if folder == WEIGHTS else "tensor"
        return f"{folder}{kind}_{counts[folder] - 1}"

    for tensor in ordered:
        name, folder = tensor.spec.name, WEIGHTS if tensor.entry.startswith(WEIGHTS) else CONSTANTS
        if tensor.entry not in entries:
            entries[tensor.entry] = number(folder)
        target = rounded.get(name)
        if target is None:
            yield Written(tensor.spec, entries[tensor.entry], name)
            continue
        yield Written(replace(tensor.spec, dtype="I8"), entries[tensor.entry], name)
        scale = TensorSpec(scale_name(name), tensor.spec.dtype, _scale_shape(target), 0)
        yield Written(scale, number(folder), name, is_scale=True)


def _place(entry: str) -> tuple[str, int]:
    folder, _, number = entry.rpartition("_")
    return folder, int(number)


def _entry_bytes(program: Program, written: Written) -> int:
    """Give the size of the entry that holds a tensor: what changes is written without holes."""
    source = program.tensors[written.source]
    is_same = not written.is_scale and written.spec == source.spec
    return program.spans[source.entry][1] if is_same else written.spec.nbytes


def _texts(
    program: Program, document: Mapping[str, Any], written: Iterable[Written]
) -> dict[str, bytes]:
    configs: dict[str, dict[str, Any]] = {WEIGHTS: {}, CONSTANTS: {}}
    for one in written:
        source = program.tensors[one.source]
        folder, _, path_name = one.entry.rpartition("/")
        changed = one.is_scale or one.spec.dtype != source.spec.dtype
        configs[folder + "/"][one.spec.name] = _payload(one, source, path_name, changed=changed)
    return {
        WEIGHTS_CONFIG: canonical({"config": configs[WEIGHTS]}),
        CONSTANTS_CONFIG: canonical({"config": configs[CONSTANTS]}),
        GRAPH: canonical(dict(document)),
    }


def _payload(
    written: Written, source: ProgramTensor, path_name: str, *, changed: bool
) -> dict[str, Any]:
    sizes = [{"as_int": size} for size in written.spec.shape]
    strides = strides_of(sizes) if changed else [{"as_int": n} for n in source.strides]
    is_parameter = source.is_parameter and not changed
    return {
        "path_name": path_name,
        "is_param": is_parameter,
        "use_pickle": False,
        "tensor_meta": {
            "dtype": _CODES[written.spec.dtype],
            "sizes": sizes,
            "requires_grad": is_parameter and source.is_trained,
            "device": {"type": "cpu", "index": None},
            "strides": strides,
            "storage_offset": {"as_int": 0 if changed else source.offset},
            "layout": 7,
        },
    }
