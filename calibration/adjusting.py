"""What is done to one block: smoothed, pruned and rounded, from what its inputs have in common."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from calibration.gptq import Compensation, choose_steps
from calibration.grids import Grid
from calibration.observation import hessians, input_norms
from calibration.smoothing_blocks import smooth
from calibration.wanda import Scope, keep_mask
from evaluation.skeletons import Block
from evaluation.walking import Call
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.steps import PruneStep
from planning.selection import Target


@dataclass
class Adjuster:
    """Changes one block after the other.

    Attributes:
        recipe: What to do.
        targets: What the job changes, by the names of the modules in the model.
        smoothed_norms: Names of the norms that were smoothed.
        error_ratios: By module, the squared error that rounding leaves in its outputs, over what
            rounding every weight to its nearest step would leave.
    """

    recipe: Recipe
    targets: Mapping[str, Target]
    smoothed_norms: list[str] = field(default_factory=list)
    error_ratios: dict[str, float] = field(default_factory=dict)

    def smooth(self, block: Block, calls: Sequence[Call]) -> set[str]:
        """Smooth a block, where the recipe says so.

        Args:
            block: Loaded; changed, but not in what it puts out.
            calls: What it is run with.

        Returns:
            Names in the model of the tensors that changed.
        """
        step = self.recipe.rounding
        if step is None or step.smooth is None:
            return set()
        linears = {
            name: module
            for name, module in block.module.named_modules(prefix=block.name)
            if isinstance(module, torch.nn.Linear)
        }
        rounded = {name for name in linears if name in self.targets and self.targets[name].scheme}
        changed: set[str] = set()
        for feed in smooth(block, linears, rounded, calls, step.smooth):
            self.smoothed_norms.append(feed.norm)
            changed |= {f"{feed.norm}.{name}" for name, _ in feed.module.named_parameters()}
            changed |= {f"{name}.weight" for name in feed.linears}
        return changed

    def choose(self, block: Block, calls: Sequence[Call]) -> set[str]:
        """Prune and round the weights of a block that data decide about.

        Args:
            block: Loaded; changed to what the artifact will hold.
            calls: What it is run with.

        Returns:
            Names in the model of the weights that were chosen.

        Raises:
            Problem: `invalid_dataset`: some weight is given no input by any row.
        """
        chosen = {
            name: block.module.get_submodule(name.removeprefix(block.name).removeprefix("."))
            for name, target in self.targets.items()
            if target.is_calibrated and (name == block.name or name.startswith(f"{block.name}."))
        }
        for index, step in enumerate(self.recipe.steps):
            if isinstance(step, PruneStep) and step.is_calibrated:
                pruned = {n: m for n, m in chosen.items() if index in self.targets[n].prune_steps}
                self._prune(block, pruned, calls, step)
        rounding = self.recipe.rounding
        if rounding is not None and rounding.method == "gptq":
            rounded = {name: m for name, m in chosen.items() if self.targets[name].scheme}
            self._round(block, rounded, calls)
        return {f"{name}.weight" for name in chosen}

    def _prune(
        self,
        block: Block,
        modules: Mapping[str, torch.nn.Module],
        calls: Sequence[Call],
        step: PruneStep,
    ) -> None:
        norms = input_norms(block, modules, calls) if modules else {}
        _require_all(modules, norms)
        scope: Scope = "row" if step.scope == "row" else "tensor"
        if step.structure != "unstructured":
            scope = int(step.structure[-1])
        for name, module in modules.items():
            weight = self._matrix(name, module)
            kept = keep_mask(weight, norms[name], step.sparsity or 0.0, scope)
            # Not times 0, which would leave the sign of what was negative.
            weight.masked_fill_(~kept, 0.0)

    def _round(
        self, block: Block, modules: Mapping[str, torch.nn.Module], calls: Sequence[Call]
    ) -> None:
        found = hessians(block, modules, calls) if modules else []
        _require_all(modules, {name for names, _ in found for name in names})
        while found:
            # Each is as large as a layer, and is let go when it has been used.
            names, hessian = found.pop()
            compensation = Compensation.of(hessian)
            for name in names:
                weight = self._matrix(name, modules[name])
                grid = Grid.of(weight, self.targets[name].group_size)
                rounding = choose_steps(grid, compensation)
                weight.copy_(grid.floats(rounding.steps))
                nearest = rounding.squared_error_of_nearest
                self.error_ratios[name] = rounding.squared_error / nearest if nearest else 1.0

    def _matrix(self, name: str, module: torch.nn.Module) -> torch.Tensor:
        """Give a module's weight by output channel, [O, I], in the module's own memory."""
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        return weight.T if self.targets[name].matrix.is_transposed else weight


def _require_all(modules: Mapping[str, torch.nn.Module], reached: Iterable[str]) -> None:
    missing = sorted(set(modules) - set(reached))
    if missing:
        raise Problem(
            "invalid_dataset",
            f"No row of calibrate.dataset reaches {len(missing)} of the modules, such as "
            f"{missing[0]}. Give more rows, or exclude them.",
        )
