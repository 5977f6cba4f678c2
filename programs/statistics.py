"""Statistics of BatchNorms taken anew, for a program that lost channels before them.

Each BatchNorm is run as in training, so that those after it see what it will give, and the mean of
what its batches had is kept.

Dimension key: B rows, C channels.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name

from evaluation.datasets import read_rows
from evaluation.faults import blamed_on
from jobs.recipe import Evaluate
from planning.graph_values import given_of, operator_of, tensor_of
from planning.operator_kinds import NORMS
from programs.loading import LoadedProgram
from programs.running import inputs_of

#: Where each operator has its eps.
_TARGETS: dict[Any, int] = {
    torch.ops.aten.batch_norm.default: 7,
    torch.ops.aten._native_batch_norm_legit_no_training.default: 6,  # noqa: SLF001 - its name
}
#: A batch of one row has no variance where the places of an image are gone.
_LEAST_ROWS = 2


def find_statistics(
    path: Path, dataset: Path, wanted: Evaluate
) -> dict[str, npt.NDArray[np.float32]]:
    """Run a program over a data set, and see what its BatchNorms meet.

    Args:
        path: The program, as this project writes it.
        dataset: The uploaded file.
        wanted: How many rows, and how many at a time.

    Returns:
        The mean and the variance of each, float32 [C], by the names of their buffers.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`.
    """
    loaded = LoadedProgram(path)
    norms = _norms(loaded)
    if not norms:
        return {}
    watch = _Watch(loaded, norms)
    for rows in read_rows(dataset, wanted.batch_size, wanted.rows):
        # Labels may be anything here: they are what the data set is for elsewhere.
        inputs, _ = inputs_of(loaded.described, rows)
        if len(next(iter(inputs.values()))) >= _LEAST_ROWS:
            with blamed_on("invalid_dataset", "The program does not take the data set"):
                watch.see(inputs)
    return watch.statistics()


def _norms(loaded: LoadedProgram) -> dict[str, str]:
    """Give the float32 buffers that hold statistics, by what the graph calls them."""
    described = loaded.described
    found = {}
    for node in described.graph["nodes"]:
        if operator_of(node) not in NORMS:
            continue
        for argument in ("running_mean", "running_var"):
            passed = tensor_of(given_of(node), argument)
            name = described.sources.get(passed or "")
            if passed and name and described.tensors[name].spec.dtype == "F32":
                found[passed] = name
    return found


class _Watch(torch.fx.Interpreter):
    """Runs a program with its BatchNorms as in training."""

    def __init__(self, loaded: LoadedProgram, norms: dict[str, str]) -> None:
        super().__init__(loaded.exported.graph_module)
        self._loaded = loaded
        self._norms = norms
        self._sums: dict[str, tuple[Any, int]] = {}

    def see(self, inputs: dict[str, torch.Tensor]) -> None:
        exported = self._loaded.exported
        held = {**exported.state_dict, **exported.constants}
        specs = exported.graph_signature.input_specs
        with torch.inference_mode():
            self.run(*(held[s.target] if s.target else inputs[s.arg.name] for s in specs))

    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401 - whatever the node gives
        if n.target not in _TARGETS:
            return super().run_node(n)
        arguments, _ = self.fetch_args_kwargs_from_env(n)
        image, weight, bias = arguments[:3]
        variance, mean = torch.var_mean(image.double(), [d for d in range(image.ndim) if d != 1])
        for buffer, statistic in zip(n.args[3:5], (mean, variance), strict=True):
            name = self._norms.get(str(buffer))
            if name is not None:
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + statistic, count + 1
        eps = arguments[_TARGETS[n.target]]
        given = F.batch_norm(image, None, None, weight, bias, training=True, eps=eps)
        is_plain = n.target is torch.ops.aten.batch_norm.default
        return given if is_plain else (given, mean.float(), variance.float())

    def statistics(self) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: (total / count).float().numpy() for name, (total, count) in self._sums.items()
        }
