"""Which weights of a program become zero: an exact number, the smallest or a seeded draw.

Dimension key: C output channels, I inputs of one channel, G groups of M inputs, P places of a
convolution's kernel.
"""

import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from jobs.steps import PruneStep
from planning.matrices import Matrix, pruned_count
from programs.values import Floats

Mask = npt.NDArray[np.bool_]


def prune_mask(
    weight: Floats, matrix: Matrix, step: PruneStep, norms: Floats | None = None
) -> Mask:
    """Choose the weights of one tensor.

    Args:
        weight: float32 [C, I].
        matrix: How its values belong to channels.
        step: Any step whose scope is not global.
        norms: Of the inputs of each weight, [C, I], for wanda: a weight counts as much as its
            magnitude times that (Sun et al., 2023, arXiv:2306.11695, section 3).

    Returns:
        What becomes zero, [C, I]. Where magnitudes are equal, the earlier weight goes first.
    """
    keys = _keys(weight, matrix.tensor.name, step)
    if norms is not None:
        keys = keys * norms
    if step.structure != "unstructured":
        return _smallest_of_groups(keys, matrix.positions, int(step.structure[-1]))
    if step.scope == "row":
        return smallest_of_rows(keys, pruned_count(step.sparsity or 0.0, matrix.inputs))
    count = pruned_count(step.sparsity or 0.0, weight.size)
    return smallest_of_rows(keys.reshape(1, -1), count).reshape(weight.shape)


def prune_masks(weights: Iterable[tuple[str, Floats]], step: PruneStep) -> dict[str, Mask]:
    """Choose among the weights of all tensors that a step with scope global takes.

    Args:
        weights: By name, in the order in which ties are decided.
        step: The step.

    Returns:
        What becomes zero, by name.
    """
    shapes, parts = {}, []
    for name, weight in weights:
        shapes[name] = weight.shape
        parts.append(_keys(weight, name, step).reshape(-1))
    keys = np.concatenate(parts)
    del parts
    mask = smallest_of_rows(keys[None], pruned_count(step.sparsity or 0.0, keys.size))[0]
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = mask[start : start + size].reshape(shape)
        start += size
    return found


def smallest_of_rows(keys: Floats, count: int) -> Mask:
    """Mark the smallest of each row.

    Args:
        keys: float32 [C, I].
        count: How many of each row, at most I.

    Returns:
        Exactly `count` True in each row, [C, I]; of equal keys the first.
    """
    if not count:
        return np.zeros(keys.shape, np.bool_)
    threshold = np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
    mask: Mask = keys < threshold
    missing = count - mask.sum(axis=1, keepdims=True)
    ties = keys == threshold
    mask |= ties & (np.cumsum(ties, axis=1) <= missing)
    return mask


def _smallest_of_groups(keys: Floats, positions: int, size: int) -> Mask:
    """Mark half of every group of consecutive inputs at the same place of the kernel."""
    channels = len(keys)
    grouped = keys.reshape(channels, -1, size, positions).transpose(0, 1, 3, 2)
    shape = grouped.shape
    mask = smallest_of_rows(grouped.reshape(-1, size), size // 2).reshape(shape)
    return mask.transpose(0, 1, 3, 2).reshape(keys.shape)


def _keys(weight: Floats, name: str, step: PruneStep) -> Floats:
    if step.method != "random":
        return np.abs(weight)
    # Each tensor has a draw of its own, whatever others there are.
    generator = np.random.default_rng([step.seed, zlib.crc32(name.encode())])
    return generator.random(weight.shape, np.float32)
