"""Puts the measurements of a program's training together into its report."""

from pathlib import Path

from engine.memory import MemoryMeter
from jobs.program import FORMAT, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import Recipe
from jobs.report import ArtifactFacts, Loader, ModelFacts, Report, Speed
from jobs.training import Training
from programs.reporting import DENSE_NOTE
from training.program_comparing import ProgramPair
from training.reporting import memory_of, step_report, tensor_report, versions


def build_program_report(
    model_folder: Path,
    artifact_folder: Path,
    recipe: Recipe,
    training: Training,
    meter: MemoryMeter,
) -> Report:
    """Put the measurements of a trained program together.

    Args:
        model_folder: What was trained.
        artifact_folder: What came of it.
        recipe: Its finetune step, and the budget.
        training: What training gave.
        meter: Measured the host's memory since before the program was opened.

    Returns:
        The report: of each tensor that changed, its zeros before and after and by how much it did.
    """
    model = open_program(model_folder / PROGRAM_NAME)
    artifact = open_program(artifact_folder / PROGRAM_NAME)
    pair = ProgramPair(model, artifact)
    found = {name: pair.compare(name) for name in model.tensors}
    tensors = tuple(
        tensor_report(model.tensors[name].spec, difference)
        for name, difference in found.items()
        if difference.is_changed
    )
    facts, sizes = model.facts(), [model.file_bytes, artifact.file_bytes]
    meter.sample()
    return Report(
        model=ModelFacts(
            format=FORMAT,
            architecture=None,
            bytes=sizes[0],
            parameters=facts["parameters"],
            parameters_by_dtype=facts["parameters_by_dtype"],
        ),
        artifact=ArtifactFacts(format="pt2", bytes=sizes[1], size_ratio=sizes[1] / sizes[0]),
        memory=memory_of(meter, recipe, training),
        steps=(step_report(recipe, training, sizes, len(tensors)),),
        tensors=tensors,
        skipped=(),
        loaders={"torch.export.load": Loader(ok=True, note=DENSE_NOTE)},
        speed=Speed(
            total_seconds=training.seconds,
            input_bytes_per_second=sizes[0] / max(training.seconds, 1e-9),
        ),
        training=training,
        versions=versions(),
    )
