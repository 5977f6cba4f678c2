"""An artifact opened again and compared with the model it was made from.

Runs in a process of its own after the one that wrote the artifact, and shares none of its state and
none of its arithmetic: plain numpy in double precision over samples of every tensor's rows.

Dimension key: W values of a row that are looked at in one place.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from engine.memory import own_peak_bytes
from engine.progress import Progress, Ticker
from engine.references import References
from engine.samples import Place, Reads, TensorFiles, Values, choose_places
from engine.verified_files import check_files, open_artifact
from engine.verified_forms import Claims, Form, bits_of, find_forms, wrong
from jobs.checkpoint import open_checkpoint
from jobs.recipe import Recipe
from jobs.report import Verification
from jobs.safetensors_header import TensorSpec
from jobs.shrunk import Shrunk
from planning.shrinking import shrink

#: Half a step, and what a float32 quotient of up to 128 steps can be off.
_MAX_ERROR_STEPS = 0.5 + 128 * 2.0**-24
_STEPS = 127.5
#: A scale may be so much larger than the largest weight needs: scales whose 128 steps would
#: overflow the dtype are raised by a quarter, and then rounded up to 8 bits.
_SLACK = 1.25 * (1 + 2.0**-7)
#: The least scale of a dtype, which may be more than a weight needs.
_LEAST_SCALE = {"BF16": 2.0**-126, "F16": 2.0**-24, "F32": 2.0**-126}


def verify(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    claims: Claims,
    shrunk: Shrunk | None = None,
    *,
    on_progress: Callable[[Progress], None],
    calibrated: Path | None = None,
) -> Verification:
    """Compare an artifact with the model it was made from, and with what is claimed of it.

    Args:
        model_folder: The model.
        artifact_folder: The artifact, without its manifest.
        recipe: What was to be done.
        claims: What its report says to have been done.
        shrunk: What its report says to have been left out.
        on_progress: Told how far it is.
        calibrated: Where a calibration wrote what data decided about; None without one. Steps that
            gptq chose are compared with what it chose, pruned weights with the model's own, and
            what was smoothed must be the model's own times powers of two.

    Returns:
        What was looked at. Every tensor of the model is in the artifact, as itself or as int8, and
        nothing else is. In the sampled rows int8 values lie within half a step of the weights, and
        a step is no larger than the row's largest weight asks for, where all of the row or group
        was looked at; pruned weights are 0, and all others have the bits they had. Where heads,
        channels or layers were left out, all of that holds of what is left.

    Raises:
        Problem: `invalid_artifact`, with the tensor and the row where they are known.
    """
    started = time.perf_counter()
    model, artifact = open_checkpoint(model_folder), open_artifact(artifact_folder)
    shrinkage = shrink(model, recipe)
    left = shrinkage.checkpoint if shrinkage else model
    forms = find_forms(left.tensors, artifact.tensors, recipe, claims)
    check_files(left, artifact, forms, recipe)
    steps = len(recipe.steps)
    ticker = Ticker(on_progress, Progress("verify", steps, steps, 0, len(forms), "tensors"))
    rows, errors = 0, []
    references = References(model, calibrated, recipe, shrinkage, shrunk)
    with references, TensorFiles(artifact) as after:
        references.check_shrinking(artifact)
        for form in forms:
            places = choose_places(form.source.name, form.rows, form.columns, len(forms))
            references.check_smoothing(form, places)
            comparison = _Comparison(form, references.of(form), after)
            if form.scale is None:
                comparison.check_bits(places)
            else:
                errors.append(comparison.check_rounding(places, form.scale))
            rows += len({place.row for place in places})
            ticker.advance(1)
    return Verification(
        tensors=len(forms),
        rows=rows,
        max_error_steps=max(errors, default=None),
        seconds=time.perf_counter() - started,
        peak_bytes=own_peak_bytes(),
    )


@dataclass(frozen=True)
class _Comparison:
    """One tensor, before and after."""

    form: Form
    before: Reads
    after: TensorFiles

    def check_bits(self, places: list[Place]) -> None:
        """Check that a tensor stayed what it was, but for zeros where it may be pruned."""
        form, dtype = self.form, bits_of(self.form.source)
        for place in places:
            first = place.row * form.columns + place.start
            part = first, place.stop - place.start, dtype
            before = self.before.read(form.source, *part)
            after = self.after.read(form.weight, *part)
            is_wrong = before != after
            if form.may_be_pruned:
                is_wrong &= after != 0
            self._refuse(is_wrong, place, "is neither the model's value nor pruned to 0")

    def check_rounding(self, places: list[Place], scale: TensorSpec) -> float:
        """Check an int8 tensor, and give its largest error in steps."""
        if self.form.shape is not None:
            self._check_shape(self.form.shape)
        return max((self._check_place(place, scale) for place in places), default=0.0)

    def _check_place(self, place: Place, scale: TensorSpec) -> float:
        form = self.form
        first, count = place.row * form.columns + place.start, place.stop - place.start
        weights = self.before.read_floats(form.source, first, count)
        values = self._read_int8(place)
        scales = self._read_scales(place, scale)
        self._refuse(~((scales > 0) & (scales < np.inf)), place, "has a scale that is no number")
        is_pruned = (values == 0) if form.may_be_pruned else np.zeros(count, np.bool_)
        errors = np.where(is_pruned, 0, np.abs(values * scales - weights) / scales)
        self._refuse(errors > _MAX_ERROR_STEPS, place, "is not the int8 value of the weight")
        self._check_scales(np.where(is_pruned, 0, np.abs(weights)), scales, place)
        return float(errors.max())

    def _check_shape(self, tensor: TensorSpec) -> None:
        meant = list(self.form.source.shape)
        stored = self.after.read(tensor, 0, len(meant), np.int64).tolist()
        if stored != meant:
            raise wrong(self.form.source.name, f"{tensor.name} says {stored}, not {meant}", row=0)

    def _read_int8(self, place: Place) -> Values:
        form = self.form
        is_last = place.stop == form.columns
        width = (form.row_bytes if is_last else place.stop) - place.start
        first = place.row * form.row_bytes + place.start
        values = self.after.read(form.weight, first, width, np.uint8)
        count = place.stop - place.start
        if form.shape is None:
            return values.view(np.int8).astype(np.float64)
        if values[count:].any():
            raise wrong(form.source.name, "is padded with other than 0", place.row)
        return values[:count].astype(np.float64) - 128

    def _read_scales(self, place: Place, scale: TensorSpec) -> Values:
        """Give the scale of each value, or of all, [W] or [1]."""
        form = self.form
        if form.groups == 1:
            return self.after.read_floats(scale, place.row % scale.shape[0], 1)
        group = np.arange(place.start, place.stop) // (form.columns // form.groups)
        # One scale per column is the same for all rows.
        first = place.row % scale.shape[0] * form.groups + int(group[0])
        scales = self.after.read_floats(scale, first, int(group[-1] - group[0]) + 1)
        spread: Values = scales[group - group[0]]
        return spread

    def _check_scales(self, magnitudes: Values, scales: Values, place: Place) -> None:
        """Refuse scales that are larger than the largest weight of their row or group asks for."""
        form = self.form
        size = form.columns // form.groups
        # Of a column only one weight was read, and of a long row only a part.
        if size == 1 or (form.groups == 1 and len(magnitudes) < size):
            return
        whole = slice(-place.start % size, (place.stop // size) * size - place.start)
        peaks = np.repeat(magnitudes[whole].reshape(-1, size).max(axis=1), size)
        limit = peaks * (_SLACK / _STEPS) + _LEAST_SCALE[form.source.dtype]
        is_wrong = np.zeros(len(magnitudes), np.bool_)
        is_wrong[whole] = (peaks > 0) & (np.broadcast_to(scales, len(magnitudes))[whole] > limit)
        self._refuse(is_wrong, place, "has a larger scale than any weight of its row needs")

    def _refuse(self, is_wrong: npt.NDArray[np.bool_], place: Place, what: str) -> None:
        if is_wrong.any():
            column = place.start + int(np.argmax(is_wrong))
            raise wrong(self.form.source.name, f"column {column} {what}", place.row)
