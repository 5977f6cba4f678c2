"""Modules that compute with their weights as a quantize step will round them.

What is rounded is made where it is used and let go at once, and made again for gradients: so it
takes the memory of one layer and not of the model, whether or not activations are kept.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.training import QuantizeAware
from planning.plan import Plan
from training.fake_rounding import WeightRounding, round_tokens, straight_through

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class RoundedModule:
    """What of a module is rounded.

    Attributes:
        rounding: Of its weight.
        rounds_inputs: Whether what it is given is rounded too.
    """

    rounding: WeightRounding
    rounds_inputs: bool


def find_rounded(
    plan: Plan, stored: Mapping[str, str], held: torch.dtype
) -> dict[str, RoundedModule]:
    """Find the modules whose weights a quantize step will round.

    Args:
        plan: Of the stage that rounds.
        stored: By the names of a model's weights, those of the checkpoint.
        held: In what loaders hold the model's floats.

    Returns:
        What of each is rounded, by its name in the model. Inputs are where the artifact tells its
        loaders to.
    """
    found = {}
    for name, source in stored.items():
        target = plan.selection.targets.get(source)
        if target is None or target.scheme is None:
            continue
        matrix = target.matrix
        rounding = WeightRounding(
            matrix.tensor.dtype, held, target.group_size, matrix.is_transposed
        )
        is_told = plan.output_format == "compressed-tensors" and target.scheme == "w8a8"
        rounds_inputs = is_told and not target.is_embedding
        found[name.removesuffix(".weight")] = RoundedModule(rounding, rounds_inputs)
    return found


def round_modules(model: torch.nn.Module, rounded: Mapping[str, RoundedModule]) -> int:
    """Have modules compute with what is rounded, in place; their parameters stay what they are.

    Args:
        model: Has the modules.
        rounded: What of each is rounded, by its name.

    Returns:
        How many bytes the largest rounded weight takes while it is there.
    """
    for name, what in rounded.items():
        _round_module(model.get_submodule(name), what)
    sizes = (model.get_parameter(f"{name}.weight").numel() for name in rounded)
    return _FLOAT_BYTES * max(sizes, default=0)


def describe(recipe: Recipe, tensors: int, *, rounds_inputs: bool) -> QuantizeAware:
    """Say for which rounding a model is trained.

    Args:
        recipe: Has the quantize step.
        tensors: How many weights are rounded.
        rounds_inputs: Whether what these are multiplied with is, too.

    Returns:
        What the report says.

    Raises:
        Problem: `internal_error`: the recipe has no quantize step.
    """
    if recipe.rounding is None:
        raise Problem("internal_error", "The recipe has no quantize step.")
    scheme = recipe.rounding.scheme
    return QuantizeAware(scheme=scheme, tensors=tensors, rounds_inputs=rounds_inputs)


def _round_module(module: torch.nn.Module, what: RoundedModule) -> None:
    forward = module.forward

    def run(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
        if what.rounds_inputs:
            given = (straight_through(given[0], round_tokens), *given[1:])
        with _rounded_weight(module, what.rounding):
            return forward(*given, **named)

    def recomputed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        # It stops before the product itself, which gradients do not need.
        return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False, **named)

    module.forward = recomputed


@contextmanager
def _rounded_weight(module: torch.nn.Module, rounding: WeightRounding) -> Iterator[None]:
    """Put the rounded weight where the module looks for its own."""
    held: dict[str, Any] = module._parameters  # noqa: SLF001 - torch gives no other way
    own = held["weight"]
    held["weight"] = straight_through(own, rounding)
    try:
        yield
    finally:
        held["weight"] = own
