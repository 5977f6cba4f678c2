"""What became of every tensor of a model, as the artifact's headers tell it.

Whether an artifact's tensors are those that the recipe and the report speak of is decided here,
before a byte of them is read.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.report import Report
from jobs.safetensors_header import DTYPE_BYTES, TensorSpec
from jobs.steps import QuantizeStep
from planning.matrices import WEIGHT_DTYPES


class Claim(NamedTuple):
    """What a report says of a tensor that the job changed, `is_pruned` only where it may be."""

    dtype: str
    nbytes: int
    shape: tuple[int, ...]
    is_quantized: bool
    is_pruned: bool = True


Claims = Mapping[str, Claim]


@dataclass(frozen=True, slots=True)
class Form:
    """What became of a tensor.

    Attributes:
        source: The tensor of the model.
        weight: The tensor of the artifact that holds its values.
        scale: The tensor with their scales; None where they are no int8.
        shape: The tensor with its shape, where four values are packed into an int32.
        may_be_pruned: Whether the report names it and the recipe prunes.
    """

    source: TensorSpec
    weight: TensorSpec
    scale: TensorSpec | None = None
    shape: TensorSpec | None = None
    may_be_pruned: bool = False

    @property
    def rows(self) -> int:
        """How many rows it has; what has no two dimensions is one row."""
        return self.source.shape[0] if len(self.source.shape) > 1 else 1

    @property
    def columns(self) -> int:
        """How many values a row has."""
        shape = self.source.shape
        return math.prod(shape[1:] if len(shape) > 1 else shape)

    @property
    def row_bytes(self) -> int:
        """How many bytes a row of `weight` takes."""
        return self.weight.nbytes // self.rows

    def is_row_wise(self, step: QuantizeStep) -> bool:
        """Whether only an embedding can have become this: int8 where other weights are packed."""
        return step.scheme == "w8a16" and self.shape is None

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the artifact that it became."""
        return tuple(spec for spec in (self.weight, self.scale, self.shape) if spec is not None)

    @property
    def groups(self) -> int:
        """How many scales a row has: one, one per group of inputs, or one per column."""
        return self.scale.shape[-1] if self.scale and len(self.scale.shape) == 2 else 1


def claims_of(report: Report) -> Claims:
    """Give what a report claims, by tensor: a small part of it, so that the rest can be let go."""
    return {
        tensor.name: Claim(
            tensor.after.dtype,
            tensor.after.bytes,
            tensor.shape,
            tensor.max_error_steps is not None,
            # What is no more than cut is in the report too.
            tensor.shape_before is None or tensor.after.sparsity != tensor.before.sparsity,
        )
        for tensor in report.tensors
    }


def find_forms(
    model: Mapping[str, TensorSpec],
    artifact: Mapping[str, TensorSpec],
    recipe: Recipe,
    claims: Claims,
) -> list[Form]:
    """Find what became of every tensor.

    Args:
        model: The model's tensors by name.
        artifact: The artifact's.
        recipe: What was to be done.
        claims: What is claimed to have been done.

    Returns:
        One form for each tensor of the model, in order. Every tensor of the artifact is in exactly
        one of them, with the dtype and the shape that loaders expect of it.

    Raises:
        Problem: `invalid_artifact`, with the tensor.
    """
    last = recipe.steps[-1]
    quantize = last if isinstance(last, QuantizeStep) else None
    is_pruning = any(step.op == "prune" for step in recipe.steps)
    forms = []
    for source in model.values():
        claim = claims.get(source.name)
        may_be_pruned = is_pruning and claim is not None and claim.is_pruned
        form = _find(source, artifact, may_be_pruned=may_be_pruned)
        _check_quantized(form, quantize)
        _check_claim(form, claim)
        forms.append(form)
    known = {output.name for form in forms for output in form.outputs}
    for name in artifact:
        if name not in known:
            raise wrong(name, "is in the artifact, and nothing of the model became it")
    for name in claims:
        if name not in model:
            raise wrong(name, "is in the report and not in the model")
    return forms


def wrong(name: str, what: str, row: int | None = None) -> Problem:
    """Give the problem of a tensor.

    Args:
        name: The tensor.
        what: What is wrong with it.
        row: In which row.

    Returns:
        The problem, `invalid_artifact`, with tensor and row as members of their own.
    """
    where = f"Tensor {name!r}" if row is None else f"Tensor {name!r}, row {row}"
    extra = {"tensor": name} if row is None else {"tensor": name, "row": row}
    return Problem("invalid_artifact", f"{where}: {what}.", extra=extra)


def _find(source: TensorSpec, artifact: Mapping[str, TensorSpec], *, may_be_pruned: bool) -> Form:
    name = source.name
    weight = artifact.get(name)
    if weight is not None and (weight.dtype, weight.shape) == (source.dtype, source.shape):
        return Form(source, weight, may_be_pruned=may_be_pruned)
    scale = artifact.get(f"{name}_scale")
    if weight is not None and weight.dtype == "I8" and scale is not None:
        return Form(source, weight, scale, may_be_pruned=may_be_pruned)
    packed, shape = artifact.get(f"{name}_packed"), artifact.get(f"{name}_shape")
    if weight is None and packed and scale and shape:
        return Form(source, packed, scale, shape, may_be_pruned)
    if weight is None:
        raise wrong(name, "is not in the artifact, or not all of it")
    raise wrong(
        name,
        f"has dtype {weight.dtype} and shape {list(weight.shape)}; it was {source.dtype} of "
        f"{list(source.shape)}",
    )


def _check_quantized(form: Form, step: QuantizeStep | None) -> None:
    source, weight, scale = form.source, form.weight, form.scale
    if scale is None:
        return
    if step is None or not _is_form_of(form, step):
        raise wrong(source.name, "is quantized otherwise than the recipe says")
    if source.dtype not in WEIGHT_DTYPES or len(source.shape) < 2:
        raise wrong(source.name, f"is no weight, but {source.dtype} of {list(source.shape)}")
    if scale.dtype != source.dtype or scale.shape not in _scale_shapes(form, step):
        raise wrong(source.name, f"has scales of {scale.dtype} and shape {list(scale.shape)}")
    dtype, expected = "I8", source.shape
    if form.shape is not None:
        dtype, expected = "I32", (source.shape[0], -(-form.columns // 4))
        if (form.shape.dtype, form.shape.shape) != ("I64", (len(source.shape),)):
            raise wrong(source.name, f"has a shape of {form.shape.dtype} {list(form.shape.shape)}")
    if (weight.dtype, weight.shape) != (dtype, expected):
        raise wrong(source.name, f"is {weight.dtype} of {list(weight.shape)}, not {list(expected)}")


def _is_form_of(form: Form, step: QuantizeStep) -> bool:
    if form.shape is not None:
        return step.scheme == "w8a16"
    return step.scheme == "w8a8" or bool(step.embeddings)


def _scale_shapes(form: Form, step: QuantizeStep) -> set[tuple[int, ...]]:
    shape = form.source.shape
    if form.is_row_wise(step):
        return {(shape[0], 1)}
    if step.group_size is not None:
        groups, rest = divmod(form.columns, step.group_size)
        return set() if rest else {(shape[0], groups)}
    rank = 2 if step.scheme == "w8a16" else len(shape)
    shapes = {(shape[0], *[1] * (rank - 1))}
    # Only a matrix can have its channels in its columns.
    return shapes | {(1, shape[1])} if len(shape) == 2 else shapes


def _check_claim(form: Form, claim: Claim | None) -> None:
    if claim is None:
        if form.scale is not None:
            raise wrong(form.source.name, "is quantized, and the report does not say so")
        return
    nbytes = sum(spec.nbytes for spec in form.outputs)
    is_quantized = form.scale is not None
    found = Claim(
        form.weight.dtype, nbytes, form.source.shape, is_quantized, is_pruned=claim.is_pruned
    )
    if found != claim:
        raise wrong(
            form.source.name,
            f"is {found.dtype} of {nbytes} bytes; the report says {claim.dtype} of {claim.nbytes}",
        )


def bits_of(tensor: TensorSpec) -> str:
    """Give the numpy dtype of unsigned integers as which a tensor's elements are compared."""
    return f"u{DTYPE_BYTES[tensor.dtype]}"
