"""Which layers are kept, and what the config says of them then."""

from dataclasses import dataclass
from typing import Any

from jobs.problems import Problem
from jobs.report import Skipped
from jobs.steps import ShrinkStep
from planning.anatomy import Family
from planning.shrunk_sizes import kept_count
from planning.stacks import Layers

#: Lists in a config with a member for each layer.
_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")


@dataclass(frozen=True)
class Depth:
    """Which layers are kept.

    Attributes:
        kept: Their numbers, by the name of their stack; stacks that stay whole are not in here.
        edits: The members of the config that change, and what they become.
        skipped: The stacks that stay whole, with the reason.
    """

    kept: dict[str, tuple[int, ...]]
    edits: dict[str, Any]
    skipped: tuple[Skipped, ...]


def choose_layers(
    family: Family, stacks: tuple[Layers, ...], step: ShrinkStep, config: dict[str, Any]
) -> Depth:
    """Decide which layers are kept: the first ones and the last.

    Args:
        family: What the model belongs to.
        stacks: Its layers.
        step: What is wanted.
        config: The members of config.json.

    Returns:
        The decision.

    Raises:
        Problem: `invalid_config`: it counts other layers than there are.
    """
    for layers in stacks:
        _check_count(layers, config)
    if step.layers is None:
        return Depth({}, {}, ())
    kept: dict[str, tuple[int, ...]] = {}
    edits: dict[str, Any] = {}
    skipped = []
    for layers in stacks:
        count = len(layers.tensors)
        wanted = kept_count(step.layers, count)
        against = _reason_against(family, config, count, wanted)
        if against is not None:
            reason = f"All layers stay. {against}"
            skipped.append(Skipped(name=f"{layers.path}.*", op="shrink", reason=reason))
            continue
        kept[layers.path] = (*range(wanted - 1), count - 1) if wanted > 1 else (0,)
        edits |= _edits_of(layers, kept[layers.path], config)
    return Depth(kept, edits, tuple(skipped))


def _check_count(layers: Layers, config: dict[str, Any]) -> None:
    key, count = layers.stack.count_keys[0], len(layers.tensors)
    if config.get(key) not in (None, count):
        raise Problem(
            "invalid_config", f"{key} is {config[key]!r}, and {layers.path} has {count} layers."
        )


def _reason_against(family: Family, config: dict[str, Any], count: int, kept: int) -> str | None:
    if family.layers_stay is not None:
        return family.layers_stay
    if kept >= count:
        return f"As many of {count} are nearest to the fraction."
    for flag, members in family.ordered_by:
        if flag is not None and not config.get(flag):
            continue
        if members is None:
            return f"With {flag} a layer depends on its number."
        if not _is_list(config.get(members), count):
            return (
                f"What a layer does depends on its number, and config.json has no {members} that "
                "tells it; save the model with a current transformers, which writes it."
            )
    return None


def _edits_of(layers: Layers, kept: tuple[int, ...], config: dict[str, Any]) -> dict[str, Any]:
    first, *others = layers.stack.count_keys
    edits: dict[str, Any] = dict.fromkeys([first, *(k for k in others if k in config)], len(kept))
    for key in _LISTS:
        if _is_list(config.get(key), len(layers.tensors)):
            edits[key] = [config[key][number] for number in kept]
    return edits


def _is_list(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count
