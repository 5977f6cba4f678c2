"""What a calibration found out about heads and channels, read where a shrink step needs it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from jobs.problems import Problem
from planning.calibrated_files import IMPORTANCE, calibrated_files


class MeasuredImportance:
    """Vectors that a calibration wrote, by name; each is read when it is asked for.

    Args:
        folder: Where it wrote them; None where there was none.

    Raises:
        Problem: `invalid_checkpoint`: a file is damaged.
    """

    def __init__(self, folder: Path | None) -> None:
        self._places = {
            tensor.name: (file.path, file.header.data_start + tensor.start, tensor)
            for file in calibrated_files(folder, (IMPORTANCE,))
            for tensor in file.tensors
        }

    def count(self, name: str) -> int:
        """Give how many values a vector has; 0 where there is none."""
        _, _, tensor = self._places.get(name, (None, 0, None))
        return tensor.elements if tensor is not None else 0

    def read(self, name: str, count: int) -> npt.NDArray[np.float64]:
        """Give a vector.

        Args:
            name: Of a weight or a group; see `planning.calibrated_files`.
            count: How many values it must have.

        Returns:
            The values, finite and not negative.

        Raises:
            Problem: `invalid_checkpoint`: it is not there, or something else.
        """
        path, start, tensor = self._places.get(name, (None, 0, None))
        if path is None or tensor is None or (tensor.dtype, tensor.shape) != ("F64", (count,)):
            raise Problem("invalid_checkpoint", f"The calibration left no importance of {name!r}.")
        values = np.fromfile(path, np.float64, count, offset=start)
        if len(values) != count or not (np.isfinite(values) & (values >= 0)).all():
            raise Problem("invalid_checkpoint", f"The importance of {name!r} is damaged.")
        return values
