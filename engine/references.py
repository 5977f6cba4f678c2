"""What an artifact is compared with: the tensors of the model, or what a job first made of them."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from engine.measured_importance import MeasuredImportance
from engine.samples import Place, Reads, TensorFiles
from engine.verified_choices import check_choice
from engine.verified_cuts import CutFiles, check_sizes, kept_numbers
from engine.verified_forms import Form, wrong
from jobs.checkpoint import Checkpoint
from jobs.recipe import Recipe
from jobs.shrunk import Shrunk
from planning.calibrated_files import SMOOTHED, calibrated_files
from planning.cuts import Shrinkage

#: Smoothing moves factors up to this power of two.
_MOST_POWER = 12


class References:
    """What tensors of the artifact are compared with; a context that closes the files.

    Args:
        model: The model.
        calibrated: Where a calibration wrote what data decided about; None without one.
        recipe: What was to be done.
        shrinkage: What was to be left of the model; None where it was not shrunk.
        shrunk: What the report says of that.

    Raises:
        Problem: `invalid_artifact`: the report says something else than was to be done.
    """

    def __init__(
        self,
        model: Checkpoint,
        calibrated: Path | None,
        recipe: Recipe,
        shrinkage: Shrinkage | None,
        shrunk: Shrunk | None,
    ) -> None:
        files = list(calibrated_files(calibrated))
        smoothed = [file for file in files if file.kind == SMOOTHED]
        self._smoothed = {tensor.name for file in smoothed for tensor in file.tensors}
        self._chooses_steps = recipe.rounding is not None and recipe.rounding.method == "gptq"
        self._model = TensorFiles(model)
        self._floats = TensorFiles(model, smoothed)
        self._chosen = TensorFiles(model, files)
        self._shrinkage = shrinkage
        self._kept = kept_numbers(shrinkage, shrunk) if shrinkage else {}
        self._importance = recipe.shrink_step.importance if recipe.shrink_step else "magnitude"
        self._measured = MeasuredImportance(calibrated)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for files in (self._model, self._floats, self._chosen):
            self._stack.enter_context(files)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def of(self, form: Form) -> Reads:
        """Give where the floats are that a tensor of the artifact was made from."""
        if self._shrinkage is not None:
            # A calibration of its recipe has changed no weight.
            return CutFiles(self._model, self._shrinkage, self._kept)
        is_chosen = self._chooses_steps and form.scale is not None
        return self._chosen if is_chosen else self._floats

    def check_shrinking(self, artifact: Checkpoint) -> None:
        """Check what was left out.

        Args:
            artifact: The artifact.

        Raises:
            Problem: `invalid_artifact`; see `engine.verified_cuts`.
        """
        if self._shrinkage is not None:
            check_sizes(artifact, self._shrinkage, self._kept)
            check_choice(self._model, self._shrinkage, self._kept, self._importance, self._measured)

    def check_smoothing(self, form: Form, places: list[Place]) -> None:
        """Check that what smoothing changed is the model's own, times powers of two.

        Args:
            form: What became of a tensor.
            places: Where it is looked at.

        Raises:
            Problem: `invalid_artifact`, with the tensor and the row.
        """
        if form.source.name not in self._smoothed:
            return
        for place in places:
            part = place.row * form.columns + place.start, place.stop - place.start
            own, own_power = np.frexp(self._model.read_floats(form.source, *part))
            new, new_power = np.frexp(self._floats.read_floats(form.source, *part))
            if not np.array_equal(own, new) or np.abs(new_power - own_power).max() > _MOST_POWER:
                what = "is no power of two times the model's value"
                raise wrong(form.source.name, what, place.row)
