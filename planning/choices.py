"""Which weights each step of a recipe changes, and why it leaves the others alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.report import Skipped
from jobs.steps import PruneStep, QuantizeStep
from planning.candidates import Candidate
from planning.groups import find_units, leave_split_groups, refuse_float_merges
from planning.matrices import Matrix, pruned_count
from planning.reasons import reason_against


@dataclass
class Choices:
    """What the steps of a recipe change.

    Attributes:
        skipped: Every weight that a step leaves alone, with the reason.
        pruned: The steps that prune a tensor, in order, by its name.
        rounding: The step that quantizes; None without one.
        quantized: The names of the weights that it quantizes.
        units: Those names, each with what loaders take together with it.
    """

    skipped: list[Skipped] = field(default_factory=list)
    pruned: dict[str, list[int]] = field(default_factory=dict)
    rounding: QuantizeStep | None = None
    quantized: set[str] = field(default_factory=set)
    units: tuple[tuple[str, ...], ...] = ()


def find_choices(
    candidates: list[Candidate],
    names: Sequence[str],
    recipe: Recipe,
    output_format: str,
    keep_float: Mapping[str, str],
) -> Choices:
    """Say of every step that prunes or quantizes which weights it changes.

    Args:
        candidates: The weights that could change.
        names: Of all tensors, for the problem.
        recipe: What to do.
        output_format: Of the artifact.
        keep_float: Tensors that the quantize step leaves alone, with the reason.

    Returns:
        What they change. A tensor of which a step prunes not one weight is not among them.

    Raises:
        Problem: `nothing_changed`: a step changes no tensor. `output_unsupported`: transformers
            could not open the artifact.
    """
    choices = Choices()
    for index, step in enumerate(recipe.steps):
        if not isinstance(step, PruneStep | QuantizeStep):
            continue
        reasons = _reasons(candidates, step, output_format, keep_float)
        choices.skipped += [Skipped(name=n, op=step.op, reason=r) for n, r in reasons.items() if r]
        chosen = [c for c in candidates if reasons[c.weight.name] is None]
        if not chosen:
            raise Problem("nothing_changed", _explain(names, index, step, reasons))
        if isinstance(step, QuantizeStep):
            choices.rounding = step
            choices.quantized |= {candidate.weight.name for candidate in chosen}
            choices.units = find_units(chosen, output_format)
            continue
        for matrix in _matrices(chosen, step):
            choices.pruned.setdefault(matrix.tensor.name, []).append(index)
    return choices


def _reasons(
    candidates: list[Candidate],
    step: PruneStep | QuantizeStep,
    output_format: str,
    keep_float: Mapping[str, str],
) -> dict[str, str | None]:
    """Say why a step leaves each weight alone; None of those that it changes."""
    reasons = {c.weight.name: reason_against(c, step, output_format) for c in candidates}
    if isinstance(step, QuantizeStep):
        reasons = {name: reason or keep_float.get(name) for name, reason in reasons.items()}
        if output_format == "compressed-tensors":
            leave_split_groups(candidates, reasons)
            refuse_float_merges(candidates, reasons)
    return reasons


def _matrices(chosen: list[Candidate], step: PruneStep) -> list[Matrix]:
    """Give what a step prunes, leaving out tensors of which it prunes not one weight."""
    matrices = [m for c in chosen for m in (c.matrices if step.biases else c.matrices[:1])]
    if step.structure != "unstructured":
        return matrices
    sparsity = step.sparsity or 0.0
    if step.scope == "global":
        total = sum(matrix.tensor.elements for matrix in matrices)
        return matrices if pruned_count(sparsity, total) else []
    if step.scope == "row":
        return [m for m in matrices if pruned_count(sparsity, m.inputs)]
    return [m for m in matrices if pruned_count(sparsity, m.tensor.elements)]


def _explain(
    names: Sequence[str],
    index: int,
    step: PruneStep | QuantizeStep,
    reasons: dict[str, str | None],
) -> str:
    opening = f"Step {index + 1} ({step.op}) would change no tensor."
    if not reasons:
        return (
            f"{opening} None of the {len(names)} tensors ({', '.join(names[:5])}) is the weight of "
            "a Linear, a convolution or an embedding: such a weight is named <module>.weight and "
            "has two or more dimensions."
        )
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason or "", []).append(name)
    told = " ".join(
        f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
        for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    )
    return f"{opening} {told[:2000]}"
