"""Opens a model to be trained, whatever kind it is."""

from pathlib import Path

from jobs.finetuning import FinetuneStep
from jobs.program import is_program
from jobs.program_archive import PROGRAM_NAME
from training.trainables import Trainable


def open_trainable(folder: Path, dataset: Path, step: FinetuneStep, device: str) -> Trainable:
    """Open a model.

    Args:
        folder: The model's.
        dataset: The uploaded file; labels say what a program learns.
        step: What is to be done.
        device: Where it is trained.

    Returns:
        The model, its weights in memory.
    """
    if is_program(folder):
        from training.programs import TrainedProgram  # noqa: PLC0415 - without transformers

        return TrainedProgram(folder / PROGRAM_NAME, dataset, step, device)
    from training.folders import TrainedFolder  # noqa: PLC0415 - it takes seconds

    return TrainedFolder(folder, step, device)
