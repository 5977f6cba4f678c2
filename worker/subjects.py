"""Which models a runner can run, and how each is opened. Imports torch."""

from functools import partial
from pathlib import Path

from evaluation.running import OpenSubject
from jobs.program import is_program
from jobs.program_archive import PROGRAM_NAME


def opener(folder: Path, original: Path) -> OpenSubject:
    """Give what opens a model.

    Args:
        folder: Its files: the original's, or the artifact's.
        original: The original's.

    Returns:
        A function that opens it, and imports what that takes.
    """
    if is_program(folder):
        from programs.running import ProgramSubject  # noqa: PLC0415 - without transformers

        return partial(ProgramSubject, folder / PROGRAM_NAME)
    from evaluation.folders import TransformersSubject  # noqa: PLC0415 - takes seconds

    return partial(TransformersSubject, folder, original)
