"""Which channels of a program stay: those whose weights are largest.

Dimension key: C channels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from jobs.program import Program
from planning.channels import Cut, Shrinkage, ShrinkPlan
from programs.values import ProgramFile, Raw

#: Which places of each dimension of a tensor stay.
Kept = dict[str, dict[int, npt.NDArray[np.int64]]]


def choose_channels(program: Program, plan: ShrinkPlan, file: ProgramFile) -> Kept:
    """Choose the channels that stay.

    A channel's importance is the sum of the squares of all weights that make or take it, where
    those of each tensor count in units of their mean, so that no large layer decides alone (the
    group norm of Fang et al., 2023, arXiv:2301.12900, section 3.3).

    Args:
        program: The program.
        plan: How many stay, and where they are.
        file: Its values.

    Returns:
        By tensor and dimension, the places that stay, in order. Equal channels: the first stays.
    """
    kept: Kept = {}
    for shrinkage in plan.shrinkages:
        scores = _scores(program, shrinkage, file)
        order = np.argsort(-scores, kind="stable")[: shrinkage.kept]
        channels = np.sort(order)
        for cut in shrinkage.cuts:
            places = channels[:, None] * cut.places + np.arange(cut.places)
            kept.setdefault(cut.tensor, {})[cut.dimension] = places.reshape(-1)
    return kept


def take(raw: Raw, kept: Mapping[int, Sequence[int] | npt.NDArray[np.int64]]) -> Raw:
    """Give what stays of a tensor.

    Args:
        raw: The tensor.
        kept: By dimension, the places that stay.

    Returns:
        A copy without the others.
    """
    for dimension, places in kept.items():
        raw = np.take(raw, places, axis=dimension)
    return raw


def _scores(program: Program, shrinkage: Shrinkage, file: ProgramFile) -> npt.NDArray[np.float64]:
    """Give the importance of each channel, [C]."""
    total = np.zeros(shrinkage.channels)
    for cut in shrinkage.cuts:
        if len(program.tensors[cut.tensor].spec.shape) < 2:
            continue
        squares = _squares(cut, file, shrinkage.channels)
        total += squares / max(float(squares.mean()), 1e-300)
    return total


def _squares(cut: Cut, file: ProgramFile, channels: int) -> npt.NDArray[np.float64]:
    floats = file.read_floats(cut.tensor)
    first = np.moveaxis(floats, cut.dimension, 0).reshape(channels, -1)
    squares: npt.NDArray[np.float64] = np.square(first, dtype=np.float64).sum(axis=1)
    return squares
