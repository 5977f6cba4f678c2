"""Weights that loaders take together, so that what is done to one is done to all or refused."""

from collections import defaultdict

from jobs.problems import Problem
from planning.candidates import Candidate
from planning.naming import expert_block, fused_siblings


def leave_split_groups(candidates: list[Candidate], reasons: dict[str, str | None]) -> None:
    """Leave every member of a fused group float where one of them is.

    Args:
        candidates: The weights.
        reasons: Why each is left float, by its name, or None; those of such members are set.
    """
    by_module = {candidate.module: candidate for candidate in candidates}
    left = {c.module for c in candidates if reasons[c.weight.name] is not None}
    for candidate in candidates:
        siblings = [by_module[m] for m in fused_siblings(candidate.module) if m in by_module]
        float_siblings = [sibling.module for sibling in siblings if sibling.module in left]
        if float_siblings and candidate.module not in left:
            reasons[candidate.weight.name] = (
                f"Loaders fuse it with {', '.join(float_siblings)}, left float, and a fused group "
                "has one scheme."
            )


def find_units(chosen: list[Candidate], output_format: str) -> tuple[tuple[str, ...], ...]:
    """Say which quantized weights could stay float, each with those that then must too.

    Args:
        chosen: The weights that are quantized.
        output_format: Of the artifact; what plain safetensors hold is fused by no loader.

    Returns:
        Their names, every one once, in the order of the files. Weights that transformers merges
        while loading are not among them: they are packed, all of them.
    """
    units: dict[object, list[str]] = defaultdict(list)
    for candidate in chosen:
        module = candidate.module
        if output_format != "compressed-tensors":
            units[module].append(candidate.weight.name)
        elif not candidate.is_merged:
            key = expert_block(module) or fused_siblings(module) or module
            units[key].append(candidate.weight.name)
    return tuple(tuple(names) for names in units.values())


def refuse_float_merges(candidates: list[Candidate], reasons: dict[str, str | None]) -> None:
    """Refuse what transformers cannot open: it merges int8 experts while loading, or none at all.

    Args:
        candidates: The weights.
        reasons: Why each is left float, by its name, or None.

    Raises:
        Problem: `output_unsupported`: a merged weight stays float.
    """
    left = [c.weight.name for c in candidates if c.is_merged and reasons[c.weight.name]]
    if left:
        raise Problem(
            "output_unsupported",
            f"transformers merges weights such as {left[0]!r} while loading, which works where "
            f"all are packed int8, and {len(left)} would stay float. {reasons[left[0]]} Use scheme "
            "w8a16 for all of them, or output.format safetensors.",
        )
