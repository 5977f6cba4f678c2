"""The plan that meets what a quantize step aims at: a size, an error, or both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.problems import Detail, Problem
from jobs.report import Sensitivity
from planning.module_kinds import ModuleKinds
from planning.plan import Plan, make_plan
from planning.sensitivity import keep_float, units_of

#: What may stay unused of a target: one part of this many.
_SLACK = 200
#: The same while bytes of headers and texts are not known to the last one.
_AIMED_SLACK = 220
#: How often the files are laid out anew to learn what stays float costs in headers and texts.
_TRIES = 12


@dataclass(frozen=True)
class Settled:
    """What became of a plan once its weights were rounded on trial.

    Attributes:
        plan: What to do.
        sensitivity: Every weight that was tried, those first that gain most by the byte as floats.
    """

    plan: Plan
    sensitivity: tuple[Sensitivity, ...] = ()


def settle(plan: Plan, kinds: ModuleKinds | None, errors: Mapping[str, float]) -> Settled:
    """Decide what stays float.

    The reasons that the report gives are few, so that it can count by them; what each weight would
    have lost stands beside them in `sensitivity`.

    Args:
        plan: The plan that quantizes all it can, of a recipe whose quantize step aims.
        kinds: The model's modules.
        errors: By name, the relative RMSE of rounding each quantized weight.

    Returns:
        The plan that keeps what is above max_relative_rmse float, and then as much as target_bytes
        has room for, the largest error per byte first. Its artifact is never larger than the
        target, and less than 0.5 % of that is unused where exchanging one weight for another can
        do it. Equal plans and errors give equal plans.

    Raises:
        Problem: `target_unreachable`: what must stay float is too large for the target.
            `nothing_changed`: everything would stay float. `output_unsupported`: what must stay
            float is a weight that transformers merges with others.
    """
    kept = _above_limit(plan, errors)
    settled = make_plan(plan.checkpoint, kinds, plan.recipe, kept, plan.shrinkage) if kept else plan
    refuse_target(settled)
    settled = _fill(settled, kinds, kept, errors)
    return Settled(settled, _rank(plan, settled, errors))


def refuse_target(plan: Plan, pointer: str = "") -> None:
    """Refuse a target_bytes that no choice can meet, or that leaves nothing to choose.

    Args:
        plan: The plan that quantizes all it can.
        pointer: Where the recipe stands in the request.

    Raises:
        Problem: `target_unreachable`, with the smallest target that can be met; or
            `nothing_changed`: the target has room for every weight as it is.
    """
    target = _target_of(plan)
    if target is None:
        return
    place = f"{pointer}/steps/{len(plan.recipe.steps) - 1}/target_bytes"
    smallest = plan.artifact_bytes
    if target < smallest:
        detail = (
            f"target_bytes is {target}, and with everything quantized that may be, the artifact "
            f"has {smallest} bytes. The smallest that can be met is {smallest}."
        )
        extra = {"target_bytes": target, "smallest_bytes": smallest}
        errors = [Detail(place, "target_unreachable", detail)]
        raise Problem("target_unreachable", detail, errors=errors, extra=extra)
    free = sum(map(len, plan.selection.units))
    if target >= _most_bytes(plan) and free == len(_saved_bytes(plan)):
        detail = (
            f"target_bytes is {target}, which has room for every weight as it is, so the quantize "
            f"step would change no tensor. Give a target well below {_most_bytes(plan)}."
        )
        raise Problem("nothing_changed", detail, errors=[Detail(place, "nothing_changed", detail)])


def predicted_bytes(plan: Plan) -> int:
    """Give the size that the artifact of a plan will have, once it is known what stays float.

    Args:
        plan: The plan that quantizes all it can.

    Returns:
        The size; with target_bytes it is the most, and with max_relative_rmse alone the least.
    """
    target = _target_of(plan)
    return plan.artifact_bytes if target is None else min(target, _most_bytes(plan))


def _most_bytes(plan: Plan) -> int:
    """Give about the size of the artifact where all stays float that may; headers apart."""
    saved = _saved_bytes(plan)
    free = (saved[name] for names in plan.selection.units for name in names)
    return plan.artifact_bytes + sum(max(0, nbytes) for nbytes in free)


def _saved_bytes(plan: Plan) -> dict[str, int]:
    """Give by name how many bytes of tensors quantizing each saves."""
    return {
        placement.source.name: placement.source.nbytes
        - sum(output.nbytes for output in placement.outputs.values())
        for shard in plan.shards
        for placement in shard.placements
        if placement.target is not None and placement.target.scheme is not None
    }


def _target_of(plan: Plan) -> int | None:
    step = plan.recipe.aimed_step
    return None if step is None else step.target_bytes


def _above_limit(plan: Plan, errors: Mapping[str, float]) -> dict[str, str]:
    """Say why max_relative_rmse keeps weights float, and with them those of their unit."""
    step = plan.recipe.aimed_step
    limit = math.inf if step is None else step.max_relative_rmse or math.inf
    kept = {
        name: "Rounding would change it by more than max_relative_rmse."
        for name, error in errors.items()
        if error > limit
    }
    for names in plan.selection.units:
        above = next((name for name in names if name in kept), None)
        for name in names if above else ():
            kept.setdefault(name, f"Loaders take it together with {above}, which stays float.")
    return kept


def _fill(
    plan: Plan, kinds: ModuleKinds | None, kept: Mapping[str, str], errors: Mapping[str, float]
) -> Plan:
    """Keep float what target_bytes has room for, beside what is kept already."""
    target = _target_of(plan)
    if target is None:
        return plan
    saved, squares = _saved_bytes(plan), _squares(errors)
    first = plan.selection.units[:1]
    if not first or len(first[0]) == len(saved):
        return plan
    best, (_, beside) = plan, _keep(plan, kinds, kept, first[0])
    for _ in range(_TRIES):
        sized = {name: nbytes + beside for name, nbytes in saved.items()}
        units = units_of(plan.selection.units, squares, sized)
        chosen = keep_float(units, target - plan.artifact_bytes, target // _AIMED_SLACK)
        if not chosen:
            break
        made, learned = _keep(plan, kinds, kept, [name for u in chosen for name in u.names])
        unused = target - made.artifact_bytes
        if unused >= 0:
            best = max(best, made, key=lambda known: known.artifact_bytes)
            if unused <= target // _SLACK or learned == beside:
                break
        beside = max(learned, beside + 1) if unused < 0 else learned
    return best


def _keep(
    plan: Plan, kinds: ModuleKinds | None, kept: Mapping[str, str], names: Sequence[str]
) -> tuple[Plan, int]:
    """Lay out the artifact with more weights float, and tell what each takes beside its values.

    In headers and texts too a float weight takes another number of bytes than an int8 one.
    """
    saved = _saved_bytes(plan)
    reasons = {**kept, **dict.fromkeys(names, "It stays float to meet target_bytes.")}
    made = make_plan(plan.checkpoint, kinds, plan.recipe, reasons, plan.shrinkage)
    added = made.artifact_bytes - plan.artifact_bytes - sum(saved[name] for name in names)
    return made, math.ceil(added / len(names))


def _squares(errors: Mapping[str, float]) -> dict[str, float]:
    """Square the errors, to the digits that do not depend on the order of a sum."""
    return {name: float(f"{error * error:.6g}") for name, error in errors.items()}


def _rank(plan: Plan, settled: Plan, errors: Mapping[str, float]) -> tuple[Sensitivity, ...]:
    saved = _saved_bytes(plan)
    free = {name for names in plan.selection.units for name in names}
    groups = [*plan.selection.units, *((name,) for name in saved if name not in free)]
    known = {name: max(1, nbytes) for name, nbytes in saved.items()}
    units = units_of(groups, _squares(errors), known)
    quantized = {t.name for t in settled.selection.targets.values() if t.scheme is not None}
    return tuple(
        Sensitivity(
            name=name,
            relative_rmse=errors[name],
            saved_bytes=saved[name],
            kept_float=name not in quantized,
        )
        for unit in sorted(units, key=lambda unit: (-unit.density, unit.names))
        for name in unit.names
    )
