"""Which models a runner can run, and how each is opened.

torch is imported when one is, as a process that asks transformers about a model comes before.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.inspection import find_module_kinds
from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.program import is_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from planning.stored_weights import as_floats
from planning.walks import is_walked, walk_of

if TYPE_CHECKING:
    from evaluation.running import OpenEvaluated, OpenSubject


def opener(folder: Path, original: Path) -> "OpenSubject":
    """Give what opens a model as a whole.

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


def evaluated_opener(folder: Path, original: Path, recipe: Recipe) -> "OpenEvaluated":
    """Give what opens a model to be evaluated, block by block where all of it is too large.

    Args:
        folder: Its files: the original's, or the artifact's.
        original: The original's.
        recipe: The job's, which evaluates, with its budget.

    Returns:
        A function that opens it, and imports what that takes.

    Raises:
        Problem: As of `find_module_kinds`, where it is run block by block.
    """
    if is_program(folder):
        return opener(folder, original)
    model = open_checkpoint(original)
    if recipe.evaluate is None or not is_walked(model, recipe):
        return opener(folder, original)
    checkpoint = open_checkpoint(folder)
    kinds = find_module_kinds(as_floats(checkpoint))
    if kinds is None:
        raise Problem("evaluation_unsupported", "evaluate runs transformers folders only.")
    room = walk_of(model, recipe, recipe.evaluate).room_bytes(recipe.budget.host_memory)
    from evaluation.walked_folders import WalkedSubject  # noqa: PLC0415 - takes seconds

    return partial(WalkedSubject, checkpoint, kinds, original, room)
