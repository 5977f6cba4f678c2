"""What training made of every tensor of a program, found by reading both files."""

import numpy as np

from jobs.program import Program
from programs.values import ProgramFile
from training.comparing import Difference, add_piece

_PIECE_BYTES = 8 * 1024**2


class ProgramPair:
    """A program's tensors, before and after.

    Args:
        before: The program that came in.
        after: What training made of it; its tensors have the same dtypes and shapes.
    """

    def __init__(self, before: Program, after: Program) -> None:
        self._program = before
        self._files = ProgramFile(before), ProgramFile(after)

    def compare(self, name: str) -> Difference:
        """Compare a tensor, all of it."""
        spec = self._program.tensors[name].spec
        found = Difference(spec.dtype.startswith(("F", "BF")), spec.elements)
        before, after = (np.atleast_1d(file.read(name)) for file in self._files)
        step = max(1, _PIECE_BYTES * len(before) // max(1, spec.nbytes))
        for start in range(0, len(before), step):
            rows = slice(start, start + step)
            add_piece(found, spec, (before[rows].tobytes(), after[rows].tobytes()))
        return found
