"""What the inputs of a program's weights are like over a data set: their norms, for wanda.

A product or convolution is linear in its weight. So where it is given the squares of its inputs,
the gradient of the sum of what it gives is, for every place of the weight, the sum of the squares
that meet this place: of all tokens for a Linear, of all places of an image that the kernel passes
over for a convolution. One output channel of each group tells that for all.

Dimension key: B rows, C output channels, G groups of a convolution, I inputs of one channel.
"""

import resource
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from evaluation.datasets import read_rows
from evaluation.faults import blamed_on
from jobs.problems import Problem
from jobs.program_archive import PROGRAM_NAME
from jobs.quality import Calibration
from jobs.recipe import Calibrate, Recipe
from planning.calibrated_files import IMPORTANCE
from planning.program_plan import make_program_plan
from planning.program_weights import ACTIVATIONS, TURNS, WEIGHTS
from programs.loading import LoadedProgram, row_limits
from programs.running import inputs_of


def calibrate_program(
    model_folder: Path,
    dataset: Path,
    recipe: Recipe,
    folder: Path,
    on_rows: Callable[[int], None],
) -> Calibration:
    """Run a program over data, and measure what its weights are given that wanda prunes.

    Args:
        model_folder: The program.
        dataset: The uploaded file.
        recipe: The stage's, with its calibrate section.
        folder: Where the squared norms go, float64 [G * I] by the name of a weight, as
            `planning.calibrated_files` says; empty.
        on_rows: Told how many rows are done.

    Returns:
        What was found. All of the program is in memory, as no block of it is known.

    Raises:
        Problem: `invalid_dataset`, `evaluation_failed`.
    """
    started = time.perf_counter()
    if recipe.calibrate is None:
        raise Problem("evaluation_failed", "The recipe names no data to calibrate with.")
    loaded = LoadedProgram(model_folder / PROGRAM_NAME)
    plan = make_program_plan(loaded.described, recipe)
    targets = plan.selection.targets.values()
    watch = _Watch(loaded, {target.name for target in targets if target.is_calibrated})
    rows = 0
    for inputs in _batches(loaded, dataset, recipe.calibrate):
        with blamed_on("invalid_dataset", "The program does not take the data set"):
            watch.see(inputs)
        rows += len(next(iter(inputs.values())))
        on_rows(rows)
    if not rows:
        least = row_limits(loaded.described)[0]
        detail = f"The data set has fewer rows than the {least} that the program takes at once."
        raise Problem("invalid_dataset", detail)
    (folder / IMPORTANCE).mkdir(parents=True)
    save_file(watch.squares(), folder / IMPORTANCE / "00000.safetensors")
    return Calibration(
        rows=rows,
        blocks=0,
        resident_peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        seconds=time.perf_counter() - started,
    )


def _batches(
    loaded: LoadedProgram, dataset: Path, wanted: Calibrate
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield inputs of as many rows as the program takes; fewer than that are left over."""
    least, most = row_limits(loaded.described)
    for rows in read_rows(dataset, max(least, min(wanted.batch_size, most)), wanted.rows):
        # Labels may be anything here: they are what the data set is for elsewhere.
        inputs, _ = inputs_of(loaded.described, rows)
        if len(next(iter(inputs.values()))) >= least:
            yield inputs


class _Watch(torch.fx.Interpreter):
    """Runs a program, and sums up the squares of what some of its weights are given."""

    def __init__(self, loaded: LoadedProgram, wanted: set[str]) -> None:
        super().__init__(loaded.exported.graph_module)
        self._exported = loaded.exported
        specs = self._exported.graph_signature.input_specs
        #: The weights, by what the graph calls them, as they are or turned.
        self._names = {s.arg.name: s.target for s in specs if s.target in wanted}
        self._sums = dict.fromkeys(sorted(wanted), torch.zeros(0, dtype=torch.float64))

    def see(self, inputs: Mapping[str, torch.Tensor]) -> None:
        held = {**self._exported.state_dict, **self._exported.constants}
        specs = self._exported.graph_signature.input_specs
        with torch.no_grad():
            self.run(*(held[s.target] if s.target else _given(s.arg, inputs) for s in specs))

    def run_node(self, n: torch.fx.Node) -> Any:  # noqa: ANN401 - whatever the node gives
        operator = _operator_of(n)
        names = {str(one): self._names[str(one)] for one in n.all_input_nodes
                 if str(one) in self._names}  # fmt: skip
        if operator in TURNS:
            self._names |= dict.fromkeys([n.name], *names.values()) if names else {}
        elif names and operator in ACTIVATIONS:
            arguments, named = self.fetch_args_kwargs_from_env(n)
            schema = n.target._schema.arguments  # type: ignore[union-attr]  # noqa: SLF001
            keys = [argument.name for argument in schema]
            given = dict(zip(keys, arguments, strict=False)) | named
            taken = dict(zip(keys, n.args, strict=False)) | n.kwargs
            weight = names.get(str(taken.get(WEIGHTS[operator])))
            if weight is not None:
                self._add(weight, _squares(n.target, operator, given))
        return super().run_node(n)

    def squares(self) -> dict[str, torch.Tensor]:
        """Give the sums, float64 [G * I] each."""
        for name, found in self._sums.items():
            if not found.numel() or not bool(torch.isfinite(found).all()):
                detail = f"What the program gives to {name} is nothing, or holds a NaN."
                raise Problem("evaluation_failed", detail)
        return self._sums

    def _add(self, name: str, squares: torch.Tensor) -> None:
        known = self._sums[name]
        self._sums[name] = known + squares if known.numel() else squares


def _squares(target: Any, operator: str, given: dict[str, Any]) -> torch.Tensor:  # noqa: ANN401
    """Sum the squares that meet each place of one output channel of each group, [G * I]."""
    weight = given[WEIGHTS[operator]]
    groups = given.get("groups", 1)
    is_turned = operator in {"mm", "addmm", "matmul"}
    shape = (weight.shape[0], 1) if is_turned else (groups, *weight.shape[1:])
    one = torch.zeros(shape, requires_grad=True)
    changed = {WEIGHTS[operator]: one, ACTIVATIONS[operator]: given[ACTIVATIONS[operator]]}
    changed[ACTIVATIONS[operator]] = changed[ACTIVATIONS[operator]].float().square()
    if operator == "addmm":
        changed["self"] = torch.zeros(())
    elif "bias" in given:
        changed["bias"] = None
    with torch.enable_grad():
        [found] = torch.autograd.grad(target(**{**given, **changed}).sum(), one)
    return found.double().reshape(-1)


def _operator_of(node: torch.fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def _given(argument: Any, inputs: Mapping[str, torch.Tensor]) -> Any:  # noqa: ANN401
    return inputs[argument.name] if argument.name in inputs else getattr(argument, "value", None)
