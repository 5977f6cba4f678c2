"""What training takes with one row at a time, guessed where not even part of one could be tried."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from jobs.checkpoint import open_checkpoint
from jobs.finetuning import FinetuneStep
from jobs.program import is_program, open_program
from jobs.program_archive import PROGRAM_NAME
from planning.program_training_memory import held_bytes
from planning.training import GRADIENTS_AT_ONCE, MARGIN, sufficient_training_bytes
from planning.walks import LIBRARY_BYTES

_FLOAT_BYTES = 4
#: By optimizer: bytes of its states for each trained weight.
_STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.2, "adafactor": 0.2, "sgd": 4.0}
#: Logits in their own dtype and in float32, their softmax, and their gradient.
_LOGITS_AT_ONCE = 4


def guess_least_bytes(
    level_bytes: int,
    parameters: Mapping[str, torch.nn.Parameter],
    embeddings: Collection[str],
    step: FinetuneStep,
    savings: Collection[str],
    tokens: int,
) -> int:
    """Guess the peak of one row.

    Args:
        level_bytes: What is held without gradients and states.
        parameters: What is trained, by name.
        embeddings: Names of those whose states are never of 8 bits.
        step: Names the optimizer.
        savings: What is turned on.
        tokens: Of the longest row.

    Returns:
        Bytes: what is held, gradients, states, and what the largest weight and the logits take
        while gradients are computed; the activations of other layers are in a margin of a tenth.
    """
    has_8bit = "adamw8bit" in savings or step.optimizer == "adamw8bit"
    optimizer = "adamw8bit" if has_8bit else step.optimizer
    sizes = {name: parameter.numel() for name, parameter in parameters.items()}
    whole = sum(sizes[name] for name in embeddings if name in sizes)
    states = _STATE_BYTES[optimizer] * (sum(sizes.values()) - whole)
    states += _STATE_BYTES["adamw" if has_8bit else optimizer] * whole
    if "offload_optimizer" in savings:
        states = _STATE_BYTES["adamw"] * max(sizes.values(), default=0)
    gradients = 0 if "optimizer_in_backward" in savings else sum(sizes.values())
    classes = max((len(p) for p in parameters.values() if p.ndim > 1), default=0)
    floats = gradients + GRADIENTS_AT_ONCE * max(sizes.values(), default=0)
    floats += _LOGITS_AT_ONCE * tokens * classes
    return level_bytes + round(MARGIN * (states + _FLOAT_BYTES * floats))


def foresee_least_bytes(folder: Path, step: FinetuneStep, level_bytes: int) -> int:
    """Guess the peak of a training that could not even open its model.

    Args:
        folder: The model's; its headers are read.
        step: Names the optimizer, and what may save memory.
        level_bytes: What is held without the model, which may not be all that libraries take.

    Returns:
        Bytes of libraries, weights, gradients and states, in the smallest form that the step
        allows, and of a row of a folder's model.
    """
    libraries = max(LIBRARY_BYTES, level_bytes)
    if not is_program(folder):
        checkpoint = open_checkpoint(folder)
        return libraries + sufficient_training_bytes(checkpoint, step)
    has_8bit = step.optimizer == "adamw" and "adamw8bit" in step.savings
    optimizer = "adamw8bit" if has_8bit else step.optimizer
    held = held_bytes(open_program(folder / PROGRAM_NAME), step, optimizer)
    return libraries + round(MARGIN * held)
