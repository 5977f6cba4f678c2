"""Writes an exported program anew, with other values in the same tensors."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from jobs.problems import Problem
from jobs.program import Program
from programs.rewriting import rewrite
from programs.values import ProgramFile

_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def write_program(program: Program, values: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write a program with other values.

    Args:
        program: As it came in: its graph, and the dtypes and places of its tensors, are kept.
        values: By the names of float tensors, in any float dtype; tied ones are equal. Tensors that
            are not named stay as they are, to the bit.
        path: The file to make; what is there is replaced. Nothing waits for the disk.

    Raises:
        Problem: `training_diverged`: a value is not finite in the dtype of the program.
    """
    file = ProgramFile(program)
    names = {program.tensors[name].entry: name for name in values}

    def change(entry: str) -> memoryview | None:
        if entry not in names:
            return None
        name = names[entry]
        tensor = program.tensors[name]
        dtype = _DTYPES[tensor.spec.dtype]
        # Bytes between its values, if there are any, stay as they are.
        raw = torch.from_numpy(np.array(file.entry(entry)))
        whole = raw[: len(raw) // dtype.itemsize * dtype.itemsize].view(dtype)
        place = whole.as_strided(tensor.spec.shape, tensor.strides, tensor.offset)
        place.copy_(values[name].detach().reshape(tensor.spec.shape))
        if not bool(torch.isfinite(place).all()):
            raise Problem(
                "training_diverged",
                f"{name!r} holds a NaN, an infinity or more than {tensor.spec.dtype} can. Lower "
                "the learning rate.",
            )
        return raw.numpy().data

    path.parent.mkdir(parents=True, exist_ok=True)
    rewrite(program, path, change)
