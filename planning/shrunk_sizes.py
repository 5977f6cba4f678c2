"""How many heads and channels every layer keeps, and why some cannot be left out."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

from jobs.report import Skipped
from jobs.steps import ShrinkStep
from planning.dimensions import find_channels, find_heads
from planning.stacks import Dimension, Layers, Unit


@dataclass(frozen=True)
class Sizes:
    """What every layer keeps.

    Attributes:
        chosen: The heads and channels of which some are left out, with how many are kept.
        edits: The members of the config that change, and what they become.
        skipped: What is kept whole, with the reason.
    """

    chosen: tuple[tuple[Dimension, int], ...]
    edits: dict[str, Any]
    skipped: tuple[Skipped, ...]


def kept_count(fraction: float, count: int, multiple: int = 1) -> int:
    """Say how many are kept: the number nearest to the fraction, at least 1, of a multiple or more.

    The fraction is taken as it is written, so 0.7 of 10 is 7 whatever 0.7 is in binary.
    """
    nearest = max(1, math.floor(Fraction(str(fraction)) * count + Fraction(1, 2)))
    return -(-nearest // multiple) * multiple


def choose_sizes(stacks: tuple[Layers, ...], step: ShrinkStep, config: dict[str, Any]) -> Sizes:
    """Decide how many heads and channels are kept.

    Args:
        stacks: The model's layers.
        step: What is wanted.
        config: The members of config.json.

    Returns:
        The decision. Sizes that one member of the config counts for several stacks change in all
        of them or in none.

    Raises:
        Problem: `invalid_config` or `invalid_checkpoint`: config and tensors do not fit.
    """
    if step.width is None:
        return Sizes((), {}, ())
    found = [
        (layers, unit, key, _decide(dimension, step, step.width))
        for layers in stacks
        for unit, key, dimension in _dimensions(layers, step, config)
    ]
    whole = {key for _, _, key, kept in found if isinstance(kept, str)}
    chosen: list[tuple[Dimension, int]] = []
    edits: dict[str, Any] = {}
    skipped: list[Skipped] = []
    for layers, unit, key, kept in found:
        if isinstance(kept, str):
            skipped.append(_skip(layers, unit, kept))
        elif key in whole:
            against = f"config.json has one {key}, which other layers need as it is."
            skipped.append(_skip(layers, unit, against))
        else:
            chosen.append(kept)
            edits |= _edits_of(*kept)
    # Attentions of one layer stay for the same reason.
    return Sizes(tuple(chosen), edits, tuple(dict.fromkeys(skipped)))


def _dimensions(
    layers: Layers, step: ShrinkStep, config: dict[str, Any]
) -> Iterator[tuple[Unit, str, Dimension | str]]:
    """Yield what a stack has heads and channels of, each with the config's member for it."""
    heads = layers.stack.heads
    if isinstance(heads, str):
        yield "heads", f"heads of {layers.path}", heads
    else:
        for one in heads:
            yield "heads", one.keys.number, find_heads(layers, one, config, step.importance)
    yield "channels", layers.stack.channels.size_key, find_channels(layers, step.importance)


def _skip(layers: Layers, unit: str, against: str) -> Skipped:
    return Skipped(name=f"{layers.path}.*", op="shrink", reason=f"All {unit} stay. {against}")


def _decide(
    dimension: Dimension | str, step: ShrinkStep, width: float
) -> tuple[Dimension, int] | str:
    """Say how many are kept, or why all are."""
    if isinstance(dimension, str):
        return dimension
    kept = _excluded(dimension, step) or _count(dimension, step, width)
    return kept if isinstance(kept, str) else (dimension, kept)


def _count(dimension: Dimension, step: ShrinkStep, width: float) -> int | str:
    count, queries = dimension.count, dimension.queries
    is_channels = dimension.unit == "channels"
    nearest = kept_count(width, count, step.round_to if is_channels else 1)
    kept = next((n for n in range(nearest, count) if _is_allowed(n, dimension)), None)
    if kept is not None:
        return kept
    if is_channels:
        return f"{width:g} of {count} is {nearest}, rounded up to a multiple of {step.round_to}."
    if nearest == count:
        return f"{width:g} of {count} groups of {queries} heads is {count}."
    return (
        f"The class of its config wants hidden_size to be a multiple of num_attention_heads, and "
        f"no number of whole groups from {nearest * queries} to {(count - 1) * queries} heads is."
    )


def _is_allowed(groups: int, dimension: Dimension) -> bool:
    if dimension.unit == "channels":
        return True
    hidden = dimension.pieces[0][-1].tensor.shape[0]
    is_bound = dimension.heads is not None and dimension.heads.fills_hidden
    return not is_bound or hidden % (groups * dimension.queries) == 0


def _excluded(dimension: Dimension, step: ShrinkStep) -> str | None:
    """Say why patterns leave something whole: they must take all of it in every layer."""
    names = [
        f"{dimension.layers.path}.{number}.{module}"
        for number in range(len(dimension.pieces))
        for module in dimension.modules
    ]
    left = [name for name in names if not _is_selected(name, step)]
    if not left:
        return None
    if len(left) == len(names):
        return "The patterns of the recipe leave them alone."
    return f"Every layer has the same number, and the patterns of the recipe leave out {left[0]}."


def _is_selected(name: str, step: ShrinkStep) -> bool:
    is_included = step.include is None or _matches(name, step.include)
    return is_included and not _matches(name, step.exclude)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _edits_of(dimension: Dimension, kept: int) -> dict[str, Any]:
    if dimension.heads is None:
        return {dimension.layers.stack.channels.size_key: kept}
    keys = dimension.heads.keys
    groups = {} if keys.groups is None else {keys.groups: kept}
    return {
        keys.number: kept * dimension.queries,
        **groups,
        keys.size: dimension.head_size,
    }
