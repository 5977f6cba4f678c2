"""Why a step leaves a weight alone that it could have changed."""

from fnmatch import fnmatchcase

from jobs.steps import PruneStep, QuantizeStep
from planning.candidates import Candidate


def reason_against(
    candidate: Candidate, step: PruneStep | QuantizeStep, output_format: str
) -> str | None:
    """Say why a step leaves a weight alone.

    Args:
        candidate: The weight.
        step: The step.
        output_format: Of the artifact.

    Returns:
        The reason, as the report gives it; None where the step takes the weight.
    """
    if any(fnmatchcase(candidate.module, pattern) for pattern in step.exclude):
        return "An exclude pattern of the recipe names it."
    is_named = False
    if step.include is not None:
        is_named = any(fnmatchcase(candidate.module, pattern) for pattern in step.include)
        if not is_named:
            return "No include pattern of the recipe names it."
    if candidate.unsupported is not None:
        return candidate.unsupported
    against = (
        _reason_against_quantizing(candidate, step, output_format)
        if isinstance(step, QuantizeStep)
        else _reason_against_pruning(candidate, step)
    )
    is_wanted = is_named or (isinstance(step, QuantizeStep) and candidate.kind == "Embedding")
    if against is None and candidate.left_by_default is not None and not is_wanted:
        return f"{candidate.left_by_default}; an include pattern that names it selects it."
    return against


def _reason_against_quantizing(candidate: Candidate, step: QuantizeStep, output: str) -> str | None:
    if candidate.tied_to is not None:
        return f"It is tied to {candidate.tied_to}, and tied weights stay float."
    if candidate.kind == "Embedding":
        return _reason_against_rows(candidate, step, output)
    against = _reason_against_grouping(candidate, step.group_size)
    if against is None and output == "compressed-tensors":
        return _reason_against_packing(candidate, step.scheme)
    return against


def _reason_against_rows(candidate: Candidate, step: QuantizeStep, output: str) -> str | None:
    if not step.embeddings:
        return "Embeddings stay float unless the step says embeddings: true."
    if output == "compressed-tensors" and candidate.model_module is None:
        return "The installed transformers' model has no module of this name."
    return None


def _reason_against_grouping(candidate: Candidate, group_size: int | None) -> str | None:
    matrix = candidate.matrices[0]
    if group_size is None:
        return None
    if matrix.is_transposed:
        return f"Groups of {group_size} inputs lie across the rows of a {candidate.kind}."
    if matrix.inputs % group_size:
        return f"Its {matrix.inputs} inputs are not divisible into groups of {group_size}."
    return None


def _reason_against_packing(candidate: Candidate, scheme: str) -> str | None:
    if candidate.kind != "Linear":
        return (
            f"compressed-tensors quantizes Linear modules, and this is a {candidate.kind}; "
            "output.format safetensors quantizes it."
        )
    if candidate.is_stacked:
        return None if scheme == "w8a16" else "transformers stacks experts from w8a16 only."
    if candidate.is_merged:
        return "transformers makes it into other tensors while loading, from floats only."
    if candidate.model_module is None:
        return "The installed transformers' model has no module of this name."
    if candidate.is_named and scheme == "w8a16":
        return (
            "The installed transformers' model cannot open it packed; scheme w8a8 or output.format "
            "safetensors quantizes it."
        )
    return None


def _reason_against_pruning(candidate: Candidate, step: PruneStep) -> str | None:
    if candidate.is_stored_twice:
        return f"It is tied to {candidate.tied_to}, and both are stored: they must stay equal."
    if step.is_calibrated and not candidate.is_watched:
        return (
            "wanda prunes Linears in the numbered blocks of a model, or Linears and Convs of a "
            ".pt2, whose inputs it can see."
        )
    if step.structure != "unstructured":
        group = int(step.structure[-1])
        matrix = candidate.matrices[0]
        inputs = matrix.inputs // matrix.positions
        if inputs % group:
            return f"Its {inputs} inputs are not divisible into groups of {group}."
    return None
