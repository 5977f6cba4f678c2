"""One tensor of a program after another, as the recipe leaves it.

Dimension key: C output channels, I inputs of one channel.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from engine.ledger import StepEntry, TensorEntry
from engine.measured_importance import MeasuredImportance
from jobs.problems import Problem
from jobs.steps import PruneStep
from planning.matrices import Matrix
from planning.program_plan import ProgramPlan
from planning.selection import Target
from programs.channels import Kept, take
from programs.pruning import Mask, prune_mask, prune_masks
from programs.rounding import round_weight
from programs.values import Floats, ProgramFile, Raw, to_floats


@dataclass(frozen=True)
class Treated:
    """What becomes of a tensor.

    Attributes:
        values: What is written in its place.
        scales: Its scales; None where it stays float.
    """

    values: Raw
    scales: Raw | None = None


class Treatment:
    """Does to tensors what a plan says.

    Args:
        plan: The plan.
        file: The model's values.
        kept: Which channels stay.
        entries: What is counted, one for each step.
        measured: What a calibration found of the inputs of weights.

    Attributes:
        tensors: What became of each tensor that changed, by its name.
    """

    tensors: dict[str, TensorEntry]

    def __init__(
        self,
        plan: ProgramPlan,
        file: ProgramFile,
        kept: Kept,
        entries: list[StepEntry],
        measured: MeasuredImportance,
    ) -> None:
        self.tensors = {}
        self._plan = plan
        self._file = file
        self._kept = kept
        self._entries = entries
        self._measured = measured
        self._global: dict[int, dict[str, Mask]] = {}
        for index, step in enumerate(plan.recipe.steps):
            if isinstance(step, PruneStep) and step.scope == "global":
                with _counted(entries[index]):
                    self._global[index] = self._choose_globally(index, step)

    def is_changed(self, name: str) -> bool:
        """Whether a tensor is not written as it was."""
        return name in self._kept or name in self._plan.selection.targets

    def treat(self, name: str) -> Treated:
        """Give what becomes of a tensor that changes, and count it.

        Args:
            name: Its name.

        Returns:
            What is written.

        Raises:
            Problem: `non_finite_weight`.
        """
        whole = self._file.read(name)
        dtype = self._plan.program.tensors[name].spec.dtype
        raw = take(whole, self._kept[name]) if name in self._kept else whole
        entry = self.tensors[name] = TensorEntry()
        _count_before(entry, whole, raw, dtype)
        target = self._plan.selection.targets.get(name)
        if target is None:
            entry.zeros_after = _zeros(raw)
            return Treated(raw)
        floats = _matrix(to_floats(raw, dtype), target.matrix)
        _require_finite(floats, target.matrix)
        mask = self._mask(target, floats, len(self._entries))
        entry.squared_error += float(np.square(floats[mask], dtype=np.float64).sum())
        floats[mask] = 0
        if target.scheme is None:
            pruned = np.array(raw)
            _matrix(pruned, target.matrix)[mask] = 0
            entry.zeros_after = _zeros(pruned)
            return Treated(pruned)
        with _counted(self._entries[-1]):
            rounded = round_weight(floats, dtype)
        entry.zeros_after = _zeros(rounded.values)
        entry.squared_error += rounded.squared_error
        entry.max_error_steps = rounded.max_error_steps
        turn = target.matrix.is_transposed
        values = (rounded.values.T if turn else rounded.values).reshape(raw.shape)
        return Treated(values, rounded.scales.T if turn else rounded.scales)

    def _choose_globally(self, index: int, step: PruneStep) -> dict[str, Mask]:
        chosen = [t for t in self._plan.selection.targets.values() if index in t.prune_steps]
        floats = ((target.name, self._floats(target, index)) for target in chosen)
        return prune_masks(floats, step)

    def _floats(self, target: Target, before: int) -> Floats:
        """Give a tensor as the steps before one leave it, [C, I]."""
        raw = self._file.read(target.name)
        if target.name in self._kept:
            raw = take(raw, self._kept[target.name])
        dtype = self._plan.program.tensors[target.name].spec.dtype
        floats = _matrix(to_floats(raw, dtype), target.matrix)
        floats[self._mask(target, floats, before)] = 0
        return floats

    def _mask(self, target: Target, floats: Floats, before: int) -> Mask:
        """Give what the prune steps before one set to zero, [C, I]."""
        mask = np.zeros(floats.shape, np.bool_)
        for index in target.prune_steps:
            step = self._plan.recipe.steps[index]
            if index >= before or not isinstance(step, PruneStep):
                continue
            with _counted(self._entries[index]):
                if index in self._global:
                    new = self._global[index][target.name]
                else:
                    left = np.where(mask, np.float32(0), floats)
                    norms = self._norms(target.matrix) if step.is_calibrated else None
                    new = prune_mask(left, target.matrix, step, norms)
            if before == len(self._entries):
                self._entries[index].weights_pruned += int(new.sum())
                self._entries[index].tensors_changed += 1
            mask |= new
        return mask

    def _norms(self, matrix: Matrix) -> Floats:
        """Give the norm of what each weight is given, [C, I]: the same for channels of a group."""
        name, inputs = matrix.tensor.name, matrix.inputs
        groups = max(1, self._measured.count(name) // inputs)
        squares = self._measured.read(name, groups * inputs).reshape(groups, inputs)
        norms: Floats = np.sqrt(squares).astype(np.float32)
        return np.repeat(norms, matrix.channels // groups, axis=0)


@contextmanager
def _counted(entry: StepEntry) -> Iterator[None]:
    started = time.perf_counter()
    yield
    entry.seconds += time.perf_counter() - started


def _matrix(values: Raw, matrix: Matrix) -> Raw:
    """Give a view of a contiguous tensor as output channels, [C, I]."""
    if matrix.is_transposed:
        return values.T
    return values.reshape(matrix.channels, matrix.inputs)


def _require_finite(floats: Floats, matrix: Matrix) -> None:
    is_bad = ~np.isfinite(floats)
    if is_bad.any():
        place = int(np.argmax(is_bad.reshape(-1)))
        name, index = matrix.tensor.name, list(matrix.index(place))
        raise Problem(
            "non_finite_weight",
            f"Tensor {name!r} holds {floats.reshape(-1)[place]} at {index}. Save the model from "
            "before its training diverged.",
            extra={"tensor": name, "index": index},
        )


def _count_before(entry: TensorEntry, whole: Raw, raw: Raw, dtype: str) -> None:
    entry.zeros_before = _zeros(whole)
    before, after = _squares(whole, dtype), _squares(raw, dtype)
    entry.squares = before
    # What goes with its channel is an error too.
    entry.squared_error = max(0.0, before - after)


def _zeros(values: Raw) -> int:
    if values.dtype == np.uint16:
        # A bfloat16 of either sign.
        values = values & np.uint16(0x7FFF)
    return int(values.size - np.count_nonzero(values))


def _squares(values: Raw, dtype: str) -> float:
    floats = to_floats(values, dtype)
    return float(np.square(floats, dtype=np.float64).sum())
