"""What all stages of a recipe will do to an exported program, each to what the one before made."""

from dataclasses import dataclass

from jobs.program import Program, assemble_program
from jobs.program_archive import CONSTANTS, CONSTANTS_CONFIG, GRAPH, WEIGHTS, WEIGHTS_CONFIG
from jobs.program_graph import read_graph
from jobs.program_tensors import read_config, read_tensors
from jobs.recipe import Recipe
from jobs.report import Skipped
from planning.program_limits import refuse_unsupported
from planning.program_plan import ProgramPlan, make_program_plan, plan_training
from planning.program_training import refuse_untrainable


@dataclass(frozen=True)
class ProgramStages:
    """Everything decided about a job on a program, whatever its recipe trains in between.

    Attributes:
        program: The model.
        recipe: What to do.
        plans: Of each stage, in order.
    """

    program: Program
    recipe: Recipe
    plans: tuple[ProgramPlan, ...]

    @property
    def artifact_bytes(self) -> int:
        """Size of the artifact."""
        return self.plans[-1].artifact_bytes

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Every tensor that a step could have changed, with the reason."""
        return tuple(one for plan in self.plans for one in plan.skipped)


def plan_program_stages(program: Program, recipe: Recipe, pointer: str = "") -> ProgramStages:
    """Decide everything about a job on a program.

    Args:
        program: The model.
        recipe: What to do.
        pointer: Where the recipe stands in the request.

    Returns:
        The plans of its stages.

    Raises:
        Problem: As `make_program_plan` and `refuse_untrainable`.
    """
    refuse_unsupported(recipe, pointer)
    plans: list[ProgramPlan] = []
    current, first = program, 0
    for stage in recipe.stages:
        if plans:
            current = _made_by(plans[-1])
        step = stage.finetune_step
        if step is None:
            plans.append(make_program_plan(current, stage, pointer))
        else:
            refuse_untrainable(current, step, f"{pointer}/steps/{first}")
            plans.append(plan_training(current, stage))
        first += len(stage.steps)
    return ProgramStages(program, recipe, tuple(plans))


def _made_by(plan: ProgramPlan) -> Program:
    """Give the program that a plan makes, which lies nowhere yet."""
    if plan.recipe.finetune_step is not None:
        return plan.program
    spans = {entry: (0, nbytes) for entry, nbytes in plan.sizes.items()}
    tensors = {
        **read_tensors(read_config(plan.texts[WEIGHTS_CONFIG], WEIGHTS), WEIGHTS, spans),
        **read_tensors(read_config(plan.texts[CONSTANTS_CONFIG], CONSTANTS), CONSTANTS, spans),
    }
    document = read_graph(plan.texts[GRAPH])
    return assemble_program(Program(plan.program.path, document, tensors, spans))
