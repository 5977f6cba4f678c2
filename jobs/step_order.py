"""Which steps a recipe may have, in which order, and which of them one pass does together."""

from collections.abc import Sequence

from jobs.finetuning import FinetuneStep
from jobs.inferring import InferStep
from jobs.steps import AnyStep


def parts_of(steps: Sequence[AnyStep]) -> list[tuple[AnyStep, ...]]:
    """Split steps into those that one pass over the model does together.

    Args:
        steps: Of a recipe.

    Returns:
        The steps in order. A finetune step stands alone. A calibrated one looks at the model as its
        pass finds it, so it begins one, unless it rounds what data have just pruned.
    """
    parts: list[tuple[AnyStep, ...]] = []
    for step in steps:
        if parts and _go_together(parts[-1][-1], step):
            parts[-1] = (*parts[-1], step)
        else:
            parts.append((step,))
    return parts


def _go_together(before: AnyStep, step: AnyStep) -> bool:
    """Say whether a step is done in the pass that the one before it is done in."""
    if isinstance(step, FinetuneStep) or isinstance(before, FinetuneStep):
        return False
    is_after_wanda = before.op == "prune" and before.is_calibrated and step.op == "quantize"
    return is_after_wanda or not step.is_calibrated


def without_infer(steps: Sequence[AnyStep]) -> tuple[AnyStep, ...]:
    """Give the steps that change the model, which is all but an infer step."""
    return tuple(step for step in steps if not isinstance(step, InferStep))


def refuse_disorder(steps: Sequence[AnyStep]) -> None:
    """Refuse steps that make no sense one after the other.

    Args:
        steps: Of a recipe.

    Raises:
        ValueError: In words for whoever wrote the recipe.
    """
    if len(steps) > 1 and any(step.op == "measure" for step in steps):
        raise ValueError("measure stands alone: it finds out about the model as it came")
    if any(step.op == "infer" for step in steps[:-1]):
        raise ValueError("a recipe has at most one infer step, and it is the last step")
    last = steps[-1]
    # Alone, it follows nothing that it could disagree with.
    steps = without_infer(steps) or steps
    quantizations = [i for i, step in enumerate(steps) if step.op == "quantize"]
    if len(quantizations) > 1:
        raise ValueError("a recipe has at most one quantize step")
    if quantizations and quantizations[0] != len(steps) - 1:
        raise ValueError(
            "quantize is the last step: prune first, train then what is left, then quantize"
        )
    if any(step.op == "shrink" for step in steps[1:]):
        raise ValueError("a recipe has at most one shrink step, and it is the first step")
    if sum(step.op == "finetune" for step in steps) > 1:
        raise ValueError("a recipe has at most one finetune step")
    kept_apart = [s for s in steps if isinstance(s, FinetuneStep) and s.lora and not s.lora.merge]
    if kept_apart and last is not kept_apart[0]:
        raise ValueError(
            "adapters that are not merged end a recipe: finetune is its last step then"
        )


def refuse_uncalibrated(steps: Sequence[AnyStep], *, has_data: bool) -> None:
    """Refuse calibrated steps without data, and data without such steps.

    Args:
        steps: Of a recipe.
        has_data: Whether it has a calibrate section.

    Raises:
        ValueError: In words for whoever wrote the recipe.
    """
    calibrated = [i for i, step in enumerate(steps) if step.is_calibrated]
    if calibrated and not has_data:
        raise ValueError(f"step {calibrated[0] + 1} needs data: a calibrate section with a dataset")
    if has_data and not calibrated:
        raise ValueError(
            "no step needs the calibrate section: prune with method wanda, quantize with method "
            "gptq or smooth, or shrink by importance activation or taylor does"
        )
