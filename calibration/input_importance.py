"""What the columns of a shrunk model's weights are given, by data: importance by activation.

What a channel or head puts out goes to the columns of one weight; the squared norm of each of these
inputs over all tokens is measured block by block. `engine.importance` makes importances of them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from calibration.observation import input_squares
from evaluation.inputs import Batch
from evaluation.skeletons import Block, Skeleton
from evaluation.walking import Call, walk
from jobs.problems import Problem
from planning.cuts import Shrinkage


def measure_inputs(
    skeleton: Skeleton,
    batches: Sequence[Batch],
    shrinkage: Shrinkage,
    folder: Path,
    on_blocks: Callable[[int, int], None],
) -> int:
    """Measure what goes into the weights that decide what is kept.

    Args:
        skeleton: The model as it came.
        batches: The data.
        shrinkage: What is to be left of it.
        folder: Where the vectors go, by the names of the weights, float64.
        on_blocks: Told how many blocks are done, and how many there are.

    Returns:
        How many blocks there are.

    Raises:
        Problem: `invalid_dataset`: some weight is given nothing by any row; `evaluation_failed`:
            what is given to it is no number, or the model runs past it.
    """
    wanted = {cut.source.name for cut in shrinkage.cuts.values() if cut.is_scored}
    found: set[str] = set()
    done = 0

    def visit(block: Block, calls: Sequence[Call]) -> None:
        nonlocal done
        modules = {
            stored: skeleton.model.get_submodule(name.removesuffix(".weight"))
            for name, stored in block.weights.items()
            if stored in wanted
        }
        squares = input_squares(block, modules, calls) if modules else {}
        for name, values in squares.items():
            _require_finite(name, values)
        if squares:
            save_file(squares, folder / f"{done:05}.safetensors")
        found.update(squares)
        done += 1
        on_blocks(done, len(skeleton.blocks))

    walk(skeleton, batches, visit)
    missing = sorted(wanted - found)
    if missing:
        raise Problem(
            "invalid_dataset",
            f"No row of calibrate.dataset reaches {len(missing)} of the weights, such as "
            f"{missing[0]}. Give more rows, or importance: magnitude.",
        )
    return done


def _require_finite(name: str, values: torch.Tensor) -> None:
    if not bool(torch.isfinite(values).all()):
        raise Problem(
            "evaluation_failed", f"What the model gives to {name} holds a NaN or an infinity."
        )
