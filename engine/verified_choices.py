"""Whether a shrink step kept the most important heads and channels.

Importances are found anew, by plain numpy, for one layer that is drawn by the names of all.
"""

import math
from zlib import crc32

import numpy as np

from engine.measured_importance import MeasuredImportance
from engine.samples import TensorFiles, Values
from engine.verified_cuts import KeptNumbers
from jobs.problems import Problem
from planning.cuts import Cut, Group, Shrinkage

#: Importances that differ by less are taken to be equal: sums were taken in another order.
_TOLERANCE = 1e-9


def check_choice(
    files: TensorFiles,
    shrinkage: Shrinkage,
    kept: KeptNumbers,
    importance: str,
    measured: MeasuredImportance,
) -> None:
    """Check that what is kept of one layer is what is most important there.

    Args:
        files: The model's files, open.
        shrinkage: What is left of the model.
        kept: Which heads and channels are kept.
        importance: What was to decide.
        measured: What a calibration found, where data decide.

    Raises:
        Problem: `invalid_artifact`: something more important was left out.
    """
    if not shrinkage.groups:
        return
    names = "\n".join(shrinkage.cuts)
    group = shrinkage.groups[crc32(names.encode()) % len(shrinkage.groups)]
    if importance == "taylor":
        found = measured.read(group.name, group.count)
    else:
        inputs = measured if importance == "activation" else None
        found = _norms(files, shrinkage, group, inputs)
    is_kept = np.zeros(group.count, np.bool_)
    is_kept[kept[group.name]] = True
    least, most = found[is_kept].min(), found[~is_kept].max()
    if least < most * (1 - _TOLERANCE):
        detail = f"Of {group.name} {group.unit} were left out that are more important than others."
        raise Problem("invalid_artifact", detail)


def _norms(
    files: TensorFiles, shrinkage: Shrinkage, group: Group, inputs: MeasuredImportance | None
) -> Values:
    """Multiply the squared norms of each unit's weights in a layer, and those of their inputs."""
    cuts = [cut for cut in shrinkage.cuts.values() if cut.group == group and cut.is_scored]
    norms: dict[str, dict[tuple[str, int], Values]] = {}
    for cut in cuts:
        squares = _squares(files, cut)
        if inputs is not None:
            squares = squares * inputs.read(cut.source.name, len(squares))
        for i, part in enumerate(cut.parts):
            if part.is_scored:
                own, key = norms.setdefault(cut.block, {}), (cut.source.name.rpartition(".")[0], i)
                end = part.start + part.width * group.count
                found = squares[part.start : end].reshape(group.count, part.width).sum(axis=1)
                own[key] = own[key] + found if key in own else found
    importance = np.zeros(group.count)
    for own in norms.values():
        product = np.ones(group.count)
        for norm in own.values():
            product *= norm
        importance += product
    return importance


def _squares(files: TensorFiles, cut: Cut) -> Values:
    """Sum the squares along the axis of a tensor that is not cut, a row at a time."""
    tensor = cut.source
    columns = tensor.shape[-1]
    is_by_row = cut.axis == 0 and len(tensor.shape) > 1
    sums = np.zeros(tensor.shape[cut.axis])
    for row in range(math.prod(tensor.shape[:-1])):
        squares = files.read_floats(tensor, row * columns, columns) ** 2
        if is_by_row:
            sums[row] = squares.sum()
        else:
            sums += squares
    return sums
