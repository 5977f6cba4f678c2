"""Opens a model to be trained, whatever kind it is."""

from pathlib import Path

from jobs.finetuning import FinetuneStep
from training.folders import TrainedFolder
from training.trainables import Trainable


def open_trainable(folder: Path, step: FinetuneStep, device: str) -> Trainable:
    """Open a model.

    Args:
        folder: The model's.
        step: What is to be done.
        device: Where it is trained.

    Returns:
        The model, its weights in memory.
    """
    return TrainedFolder(folder, step, device)
