"""Which steps a recipe may have, in which order, and which of them one pass does together."""

from collections.abc import Sequence
from typing import LiteralString

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from jobs.finetuning import FinetuneStep
from jobs.inferring import InferStep
from jobs.steps import AnyStep, QuantizeStep

#: What of a quantize step has weights become others than their nearest steps.
_OTHER_STEPS = ("method", "smooth", "target_bytes", "max_relative_rmse")


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


def refuse_unrounded(steps: Sequence[AnyStep]) -> None:
    """Refuse to train for a rounding that nobody knows before, or that does not come.

    Args:
        steps: Of a recipe.

    Raises:
        ValidationError: In words for whoever wrote the recipe, with the place among the steps.
    """
    aware = (i for i, s in enumerate(steps) if isinstance(s, FinetuneStep) and s.quantize_aware)
    place = next(aware, None)
    if place is None:
        return
    following = steps[place + 1] if place + 1 < len(steps) else None
    if not isinstance(following, QuantizeStep):
        raise _misplaced(
            (place, "quantize_aware"),
            "it trains for the quantize step that follows at once, and there is none: prune "
            "before, and quantize next",
        )
    named = [name for name in _OTHER_STEPS if getattr(following, name) is not None]
    if named:
        raise _misplaced(
            (place + 1, named[0]),
            "training with quantize_aware makes up for rounding to the nearest steps of every "
            "weight; leave this out, or quantize_aware",
        )


def _misplaced(place: tuple[int | str, ...], told: LiteralString) -> ValidationError:
    """Give a fault of a step's member; pydantic puts where the steps are before its place."""
    kind = PydanticCustomError("value_error", told)
    fault = InitErrorDetails(type=kind, loc=("steps", *place), input=None)
    return ValidationError.from_exception_data("Recipe", [fault])


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
