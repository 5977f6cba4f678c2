"""What is done to checkpoints and not to programs, refused by its place in the recipe."""

from collections.abc import Iterator

from jobs.finetuning import FinetuneStep
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe
from jobs.steps import QuantizeStep, ShrinkStep

#: Of a quantize step.
_FOR_CHECKPOINTS = ("group_size", "embeddings", "target_bytes", "max_relative_rmse")
_SCALES = "Weights of a .pt2 have a scale for each output channel. Leave it out."
_MEASURE = (
    "Suggestions are for checkpoints. A .pt2 is as small as it gets with scheme w8a16; POST /plans "
    "with that says how small."
)
_LAYERS = "A .pt2 says nothing of layers; shrink takes channels of it. Give width, and not layers."
_CALIBRATED = (
    "gptq, smooth and importance by data are for transformers folders; a .pt2 is shrunk by "
    "magnitude and rounded to the nearest step, and wanda prunes it by data. Leave it out."
)
_OBJECTIVES = (
    "A .pt2 takes tensors and says nothing of tokens. Its labels are classes or values: choose "
    "classification or regression, or leave objective out."
)
_LORA = (
    "Adapters stand beside modules, of which a .pt2 has none; all of its weights are trained, or "
    "those that include names. Leave lora out."
)
_BF16 = (
    "The operators of a .pt2 were chosen for the dtypes that it was exported with. Leave bf16 out."
)
_AWARE = (
    "A .pt2 is trained for the rounding of its weights alone, as its graph says in operators how "
    "activations are rounded. Choose scheme w8a16, or leave quantize_aware out."
)


def refuse_unsupported(recipe: Recipe, pointer: str = "") -> None:
    """Refuse what is done to checkpoints and not to programs.

    Args:
        recipe: What is asked for.
        pointer: Where the recipe stands in the request.

    Raises:
        Problem: `step_unsupported` or `output_unsupported`.
    """
    if recipe.output.format != "auto":
        detail = f"A .pt2 becomes a .pt2, not {recipe.output.format}. Leave output.format out."
        errors = [Detail(f"{pointer}/output/format", "output_unsupported", detail)]
        raise Problem("output_unsupported", detail, errors=errors)
    errors = [
        Detail(pointer + place, "step_unsupported", detail) for place, detail in _faults(recipe)
    ]
    if errors:
        raise Problem("step_unsupported", " ".join(e.detail for e in errors), errors=errors)


def _faults(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for index, step in enumerate(recipe.steps):
        place = f"/steps/{index}"
        if step.op == "measure":
            yield place, _MEASURE
        if isinstance(step, QuantizeStep):
            yield from ((f"{place}/{name}", detail) for name, detail in _rounding_faults(step))
        elif isinstance(step, ShrinkStep):
            yield from ((f"{place}/{name}", detail) for name, detail in _shrinking_faults(step))
        elif isinstance(step, FinetuneStep):
            yield from ((f"{place}/{name}", detail) for name, detail in _training_faults(step))
            if step.quantize_aware and recipe.rounding and recipe.rounding.scheme == "w8a8":
                yield f"{place}/quantize_aware", _AWARE


def _rounding_faults(step: QuantizeStep) -> Iterator[tuple[str, str]]:
    for name in _FOR_CHECKPOINTS:
        if getattr(step, name):
            yield name, f"{name} is for checkpoints. {_SCALES}"
    for name in ("method", "smooth"):
        if step.is_calibrated and getattr(step, name):
            yield name, _CALIBRATED


def _shrinking_faults(step: ShrinkStep) -> Iterator[tuple[str, str]]:
    if step.layers is not None or step.width is None:
        yield "layers", _LAYERS
    if step.is_calibrated:
        yield "importance", _CALIBRATED


def _training_faults(step: FinetuneStep) -> Iterator[tuple[str, str]]:
    if step.objective in {"causal_lm", "masked_lm"}:
        yield "objective", _OBJECTIVES
    if step.bf16:
        yield "bf16", _BF16
    if step.method == "lora":
        yield "method", _LORA
    if "lora" in step.savings:
        yield f"savings/{step.savings.index('lora')}", _LORA
