"""Which step touches which tensor, and why the others are left alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.checkpoint import Checkpoint
from jobs.finetuning import FinetuneStep
from jobs.inferring import InferStep
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.report import Skipped
from jobs.safetensors_header import DTYPE_BYTES
from jobs.steps import PruneStep, QuantizeStep, ShrinkStep
from planning.candidates import Candidate, find_candidates
from planning.cuts import Cut, Shrinkage
from planning.groups import find_units, leave_split_groups, refuse_float_merges
from planning.matrices import Matrix, pruned_count
from planning.module_kinds import ModuleKinds
from planning.reasons import reason_against


@dataclass(frozen=True)
class Target:
    """A tensor that the job changes.

    Attributes:
        matrix: Its values by output channel.
        module: Its module's name in the checkpoint.
        model_module: Its module's name in the model; equal where there is no model to ask.
        prune_steps: Which steps of the recipe prune it, in order.
        scheme: How it is quantized; None leaves it float.
        is_embedding: Whether rows of it are looked up, so that it has one scale per row and is not
            packed.
        group_size: How many inputs share a scale; None gives every channel one.
        groups: How many consecutive inputs each N:M step prunes together.
        whole_channels: Whether some step needs to know all inputs of a channel.
        is_calibrated: Whether data decide what it becomes.
        cut: How it is cut from a tensor of the model; None where it is one.
    """

    matrix: Matrix
    module: str
    model_module: str
    prune_steps: tuple[int, ...]
    scheme: str | None
    is_embedding: bool
    group_size: int | None
    groups: tuple[int, ...]
    whole_channels: bool
    is_calibrated: bool = False
    cut: Cut | None = None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.matrix.tensor.name

    @property
    def is_packed(self) -> bool:
        """Whether the artifact has four of its values in an int32, rather than an int8 for each."""
        return self.scheme == "w8a16" and not self.is_embedding

    @property
    def itemsize(self) -> int:
        """How many bytes one of its weights takes."""
        return DTYPE_BYTES[self.matrix.tensor.dtype]

    def as_float(self, recipe: Recipe) -> "Target":
        """Give what is left to do to it where it stays float."""
        return replace(
            self,
            scheme=None,
            group_size=None,
            whole_channels=_looks_at_rows(self.prune_steps, recipe),
        )


@dataclass(frozen=True)
class Selection:
    """What a job changes and what it leaves.

    Attributes:
        targets: Every tensor to change, by its name, in the order of the files.
        skipped: Every tensor that a step could have changed, with the reason.
        units: Names of quantized tensors that could stay float, each with those that loaders take
            together with it.
    """

    targets: dict[str, Target]
    skipped: tuple[Skipped, ...]
    units: tuple[tuple[str, ...], ...]


def select(
    checkpoint: Checkpoint,
    kinds: ModuleKinds | None,
    recipe: Recipe,
    output_format: str,
    keep_float: Mapping[str, str] | None = None,
    shrinkage: Shrinkage | None = None,
) -> Selection:
    """Decide what every step does to every tensor.

    Args:
        checkpoint: The model.
        kinds: What its own code says about it; None goes by names and shapes.
        recipe: What to do.
        output_format: ``compressed-tensors``, which takes quantized Linears only, or
            ``safetensors``.
        keep_float: Tensors that the quantize step leaves alone, with the reason.
        shrinkage: How the checkpoint comes from the model, where the recipe shrinks.

    Returns:
        The decision.

    Raises:
        Problem: `nothing_changed`: no step changes any tensor; the detail says why.
            `output_unsupported`: transformers could not open the artifact.
    """
    candidates = find_candidates(checkpoint, kinds)
    names = list(checkpoint.tensors)
    return choose(candidates, names, recipe, output_format, keep_float, shrinkage)


def choose(
    candidates: list[Candidate],
    names: Sequence[str],
    recipe: Recipe,
    output_format: str,
    keep_float: Mapping[str, str] | None = None,
    shrinkage: Shrinkage | None = None,
) -> Selection:
    """Decide what every step that prunes or quantizes does to every weight.

    Args:
        candidates: The weights that could change.
        names: Of all tensors, in the order of the files.
        recipe: What to do.
        output_format: Of the artifact.
        keep_float: Tensors that the quantize step leaves alone, with the reason.
        shrinkage: How the checkpoint comes from the model, where the recipe shrinks.

    Returns:
        The decision.

    Raises:
        Problem: As `select`.
    """
    skipped = list(shrinkage.skipped) if shrinkage else []
    cuts = shrinkage.cuts if shrinkage else {}
    pruned: dict[str, list[int]] = {}
    rounding: QuantizeStep | None = None
    quantized: set[str] = set()
    units: tuple[tuple[str, ...], ...] = ()
    for index, step in enumerate(recipe.steps):
        if isinstance(step, ShrinkStep | FinetuneStep | InferStep):
            continue
        reasons = {c.weight.name: reason_against(c, step, output_format) for c in candidates}
        if isinstance(step, QuantizeStep):
            rounding = step
            reasons = {name: r or (keep_float or {}).get(name) for name, r in reasons.items()}
            if output_format == "compressed-tensors":
                leave_split_groups(candidates, reasons)
                refuse_float_merges(candidates, reasons)
        skipped += [Skipped(name=n, op=step.op, reason=r) for n, r in reasons.items() if r]
        chosen = [c for c in candidates if reasons[c.weight.name] is None]
        if not chosen:
            raise Problem("nothing_changed", _explain(names, index, step, reasons))
        if isinstance(step, QuantizeStep):
            quantized |= {candidate.weight.name for candidate in chosen}
            units = find_units(chosen, output_format)
            continue
        for matrix in _matrices(chosen, step):
            pruned.setdefault(matrix.tensor.name, []).append(index)
    targets = {
        matrix.tensor.name: _target(
            candidate,
            matrix,
            tuple(pruned.get(matrix.tensor.name, ())),
            rounding if matrix.tensor.name in quantized else None,
            recipe,
            cuts.get(matrix.tensor.name),
        )
        for candidate in candidates
        for matrix in candidate.matrices
        if any(matrix.tensor.name in changed for changed in (quantized, pruned, cuts))
    }
    if not targets and any(isinstance(step, PruneStep) for step in recipe.steps):
        raise Problem(
            "nothing_changed",
            "Every sparsity of the recipe rounds to no weight at all in every selected tensor.",
        )
    order = {name: place for place, name in enumerate(names)}
    ordered = dict(sorted(targets.items(), key=lambda item: order[item[0]]))
    return Selection(ordered, tuple(skipped), units)


def _target(
    candidate: Candidate,
    matrix: Matrix,
    prune_steps: tuple[int, ...],
    rounding: QuantizeStep | None,
    recipe: Recipe,
    cut: Cut | None,
) -> Target:
    steps = [step for i in prune_steps if isinstance(step := recipe.steps[i], PruneStep)]
    is_embedding = candidate.kind == "Embedding"
    return Target(
        matrix,
        candidate.module,
        candidate.model_module or candidate.module,
        prune_steps,
        rounding.scheme if rounding else None,
        is_embedding,
        rounding.group_size if rounding and not is_embedding else None,
        groups=tuple(int(s.structure[-1]) for s in steps if s.structure != "unstructured"),
        whole_channels=rounding is not None or _looks_at_rows(prune_steps, recipe),
        is_calibrated=any(step.is_calibrated for step in steps)
        or (rounding is not None and rounding.method == "gptq" and candidate.is_watched),
        cut=cut,
    )


def _looks_at_rows(prune_steps: tuple[int, ...], recipe: Recipe) -> bool:
    steps = [step for i in prune_steps if isinstance(step := recipe.steps[i], PruneStep)]
    return any(step.structure == "unstructured" and step.scope == "row" for step in steps)


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
