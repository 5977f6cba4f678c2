"""An artifact opened again and compared with the program it was made from.

Runs in a process of its own after the one that wrote the artifact, and shares no arithmetic with
it: plain numpy in double precision over rows of every tensor, and torch for the graph.

Dimension key: R rows that are looked at, W values of a row.
"""

import math
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.memory import own_peak_bytes
from engine.progress import Progress, Ticker
from jobs.problems import Problem
from jobs.program import Program, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from jobs.report import Report, Verification
from programs.channels import Kept, take
from programs.values import ProgramFile

_ROWS = 16
#: Half a step, and what a float32 quotient of up to 128 steps can be off.
_MAX_ERROR_STEPS = 0.5 + 128 * 2.0**-24
#: A scale may be so much larger than the largest weight needs: half floats round up by 2**-10.
_SLACK = (1 + 2.0**-7) / 127.5
_LEAST_SCALE = {"BF16": 2.0**-126, "F16": 2.0**-24, "F32": 2.0**-126}
_STATISTICS = ("running_mean", "running_var")

Doubles = npt.NDArray[np.float64]


def verify_program(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    report: Report,
    kept: Kept,
    *,
    on_progress: Callable[[Progress], None],
    has_dataset: bool = False,
) -> Verification:
    """Compare an artifact with the program it was made from, and with what is claimed of it.

    Args:
        model_folder: The program.
        artifact_folder: The artifact.
        recipe: What was to be done.
        report: What is said to have been done.
        kept: Which places of which tensors are said to have stayed.
        on_progress: Told how far it is.
        has_dataset: Whether statistics of BatchNorms were taken anew where channels went.

    Returns:
        What was looked at. torch opens the artifact, whose graph takes and gives what the model's
        does. Every tensor of the model is in it: as it was, with zeros, with fewer channels, or as
        int8 within half a step of its scale, which is no larger than the weights ask for.

    Raises:
        Problem: `invalid_artifact`, with the tensor and the row where they are known.
    """
    started = time.perf_counter()
    before = open_program(model_folder / PROGRAM_NAME)
    try:
        after = open_program(artifact_folder / PROGRAM_NAME)
    except Problem as problem:
        raise Problem("invalid_artifact", problem.detail) from problem
    _check_interface(before, after)
    _check_opens(before, after)
    changed = {one.name for one in report.tensors}
    comparison = _Comparison(before, after, recipe, changed, kept, has_dataset)
    names = list(before.tensors)
    steps = len(recipe.steps)
    ticker = Ticker(on_progress, Progress("verify", steps, steps, 0, len(names), "tensors"))
    errors = []
    for name in names:
        errors.append(comparison.compare(name))
        ticker.advance(1)
    comparison.refuse_strangers()
    return Verification(
        tensors=len(names),
        rows=comparison.rows,
        max_error_steps=max((error for error in errors if error is not None), default=None),
        seconds=time.perf_counter() - started,
        peak_bytes=own_peak_bytes(),
    )


def _check_interface(before: Program, after: Program) -> None:
    if before.interface() != after.interface():
        raise Problem("invalid_artifact", "The artifact takes or gives other tensors.")


def _check_opens(before: Program, after: Program) -> None:
    # It takes a second and 300 MB, and reading the archive comes first.
    from programs.opening import give_shapes  # noqa: PLC0415

    try:
        shapes = give_shapes(before.path), give_shapes(after.path)
    except Problem as problem:
        raise Problem("invalid_artifact", problem.detail) from problem
    if shapes[0] != shapes[1]:
        raise Problem(
            "invalid_artifact", f"The artifact gives {shapes[1]}, and the model {shapes[0]}."
        )


@dataclass
class _Comparison:
    before: Program
    after: Program
    recipe: Recipe
    changed: set[str]
    kept: Kept
    has_dataset: bool
    rows: int = 0

    def __post_init__(self) -> None:
        self._old, self._new = ProgramFile(self.before), ProgramFile(self.after)
        ops = {step.op for step in self.recipe.steps}
        self._prunes, self._rounds = "prune" in ops, "quantize" in ops
        evaluate = self.recipe.evaluate
        has_dataset = self.has_dataset or (evaluate is not None and evaluate.dataset is not None)
        self._renews = "shrink" in ops and has_dataset
        self._scales: set[str] = set()
        if self.kept and "shrink" not in ops:
            raise _wrong(min(self.kept), "is said to be cut, which nothing asked for")

    def compare(self, name: str) -> float | None:
        """Compare a tensor; give its largest error in steps where it is int8."""
        old = self.before.tensors[name].spec
        found = self.after.tensors.get(name)
        if found is None:
            raise _wrong(name, "is not in the artifact")
        cuts = self.kept.get(name, {})
        shape = _shape(name, old.shape, cuts)
        is_int8 = found.spec.dtype == "I8" != old.dtype
        if found.spec.shape != shape or not (is_int8 or found.spec.dtype == old.dtype):
            raise _wrong(name, f"is {found.spec.dtype} {list(found.spec.shape)}, not {list(shape)}")
        may_change = name in self.changed
        if self._renews and name.endswith(_STATISTICS) and not is_int8:
            values = np.asarray(self._new.read(name), np.float64)
            self._refuse(name, ~np.isfinite(values).reshape(1, -1), [0], "is no number")
            return None
        expected = take(self._old.read(name), cuts) if cuts else self._old.read(name)
        if not is_int8:
            self._compare_bits(name, expected, may_be_zero=self._prunes and may_change)
            return None
        if not (self._rounds and may_change):
            raise _wrong(name, "is int8, which nothing asked for")
        return self._compare_int8(name, expected)

    def _compare_bits(
        self, name: str, expected: npt.NDArray[np.generic], *, may_be_zero: bool
    ) -> None:
        # What has one dimension is one row.
        width = max(1, math.prod(expected.shape[1:]) if expected.ndim > 1 else expected.size)
        rows = _rows(name, expected.size // width)
        was = expected.reshape(-1, width)[rows]
        now = self._new.read(name).reshape(-1, width)[rows]
        bits = [side.view(np.uint8).reshape(*side.shape, side.itemsize) for side in (was, now)]
        is_wrong = (bits[0] != bits[1]).any(axis=-1)
        if may_be_zero:
            is_wrong &= now != 0
        self.rows += len(rows)
        self._refuse(name, is_wrong, rows, "is neither the model's value nor pruned to 0")

    def refuse_strangers(self) -> None:
        """Refuse tensors that are neither the model's nor scales of them."""
        others = self.after.tensors.keys() - self.before.tensors.keys() - self._scales
        if others:
            raise _wrong(min(others), "is no tensor of the model")

    def _compare_int8(self, name: str, expected: npt.NDArray[np.generic]) -> float:
        scale_name = f"{name}_scale"
        scale = self.after.tensors.get(scale_name)
        dtype = self.before.tensors[name].spec.dtype
        if scale is None or scale.spec.dtype != dtype:
            raise _wrong(name, "is int8 without scales of the weight's dtype")
        self._scales.add(scale_name)
        shape = expected.shape
        axes = [i for i, size in enumerate(scale.spec.shape) if size != 1]
        axis = axes[0] if axes else 0
        wanted = tuple(size if i == axis else 1 for i, size in enumerate(shape))
        if scale.spec.shape != wanted or axis not in (0, len(shape) - 1):
            raise _wrong(name, f"has scales of {list(scale.spec.shape)}")
        rows = _rows(name, shape[axis])
        weights = self._doubles(np.take(expected, rows, axis=axis), dtype, axis)
        int8 = np.take(self._new.read(name), rows, axis=axis)
        values = np.moveaxis(int8, axis, 0).reshape(len(rows), -1).astype(np.float64)
        scales = self._doubles(np.take(self._new.read(scale_name), rows, axis=axis), dtype, axis)
        self._refuse(name, ~((scales > 0) & (scales < np.inf)), rows, "has a scale that is none")
        is_pruned = (values == 0) if self._prunes else np.zeros(values.shape, np.bool_)
        errors = np.where(is_pruned, 0, np.abs(values * scales - weights) / scales)
        self._refuse(name, errors > _MAX_ERROR_STEPS, rows, "is not the int8 value of the weight")
        peaks = np.where(is_pruned, 0, np.abs(weights)).max(axis=1, keepdims=True)
        limit = peaks * _SLACK + _LEAST_SCALE[dtype]
        self._refuse(name, (peaks > 0) & (scales > limit), rows, "has a larger scale than it needs")
        self.rows += len(rows)
        return float(errors.max(initial=0))

    def _doubles(self, raw: npt.NDArray[np.generic], dtype: str, axis: int) -> Doubles:
        """Give rows as doubles, [R, W]."""
        if dtype == "BF16":
            raw = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return np.moveaxis(raw, axis, 0).reshape(raw.shape[axis], -1).astype(np.float64)

    def _refuse(
        self, name: str, is_wrong: npt.NDArray[np.bool_], rows: list[int], what: str
    ) -> None:
        if is_wrong.any():
            row, column = np.argwhere(is_wrong)[0][:2]
            raise _wrong(name, f"column {column} {what}", rows[int(row)])


def _shape(
    name: str, shape: tuple[int, ...], cuts: Mapping[int, npt.NDArray[np.int64]]
) -> tuple[int, ...]:
    """Give the shape that is left, where the places that stay are places of the tensor."""
    left = list(shape)
    for dimension, places in cuts.items():
        if not 0 <= dimension < len(shape) or not len(places):
            raise _wrong(name, f"is said to be cut in dimension {dimension}")
        is_rising = bool((np.diff(places) > 0).all())
        if not is_rising or places[0] < 0 or places[-1] >= shape[dimension]:
            raise _wrong(name, f"is said to keep places of dimension {dimension} that are none")
        left[dimension] = len(places)
    return tuple(left)


def _rows(name: str, count: int) -> list[int]:
    """Choose rows by the tensor's name: the first, the last and some between."""
    if count <= _ROWS:
        return list(range(max(count, 0)))
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    chosen = {0, count - 1, *generator.choice(count, _ROWS - 2, replace=False).tolist()}
    return sorted(chosen)


def _wrong(name: str, what: str, row: int | None = None) -> Problem:
    place = "" if row is None else f" row {row}"
    extra = {"tensor": name} if row is None else {"tensor": name, "row": row}
    return Problem("invalid_artifact", f"Tensor {name!r}{place}: {what}.", extra=extra)
