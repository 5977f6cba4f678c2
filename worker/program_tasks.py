"""What a runner does where the model is an exported program."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine.progress import Progress
from jobs.quality import Calibration
from jobs.recipe import Recipe
from jobs.report import Report
from planning.memory_model import Levels
from programs.channels import Kept
from programs.pipeline import compress_program
from programs.verification import verify_program
from worker.work_files import ARTIFACT_NAME, KEPT_NAME, REPORT_NAME, VERIFICATION_NAME


def calibrate(
    model: Path,
    dataset: Path,
    recipe: Recipe,
    folder: Path,
    on_progress: Callable[[Progress], None],
) -> Calibration:
    """Measure what the weights are given that data decide about.

    Args:
        model: The program's folder.
        dataset: The data set.
        recipe: What is to be done.
        folder: Where it is written.
        on_progress: Told how far it is.

    Returns:
        What was found.
    """
    # torch takes a second and 300 MB, which other jobs need not pay.
    from programs.calibration import calibrate_program  # noqa: PLC0415

    wanted = recipe.calibrate.rows if recipe.calibrate else 0

    def on_rows(rows: int) -> None:
        on_progress(Progress("calibrate", 1, len(recipe.steps), rows, wanted, "rows"))

    return calibrate_program(model, dataset, recipe, folder, on_rows)


def compress(
    model: Path,
    work: Path,
    recipe: Recipe,
    *,
    idle_bytes: int | None,
    dataset: Path | None,
    calibrated: Path | None,
    on_progress: Callable[[Progress], None],
) -> None:
    """Make the artifact and the report.

    Args:
        model: The program's folder.
        work: The job's work folder, with one for the artifact in it.
        recipe: What to do.
        idle_bytes: What the plan took an idle runner to hold.
        dataset: The data set; None where the recipe names none.
        calibrated: What a calibration found; None without one.
        on_progress: Told how far it is.
    """
    report, kept = compress_program(
        model,
        work / ARTIFACT_NAME,
        recipe,
        on_progress=on_progress,
        levels=None if idle_bytes is None else Levels(idle_bytes, 0, 1),
        dataset=dataset,
        calibrated=calibrated,
    )
    plain = {
        name: {str(dimension): places.tolist() for dimension, places in cuts.items()}
        for name, cuts in kept.items()
    }
    (work / KEPT_NAME).write_text(json.dumps(plain))
    (work / REPORT_NAME).write_text(report.model_dump_json())


def verify(
    model: Path,
    work: Path,
    recipe: Recipe,
    *,
    has_dataset: bool,
    on_progress: Callable[[Progress], None],
) -> None:
    """Compare the artifact with the program, and write down what was looked at.

    Args:
        model: The program's folder.
        work: The job's work folder.
        recipe: What was to be done.
        has_dataset: Whether `compress` had one.
        on_progress: Told how far it is.
    """
    report = Report.model_validate_json((work / REPORT_NAME).read_bytes())
    plain = json.loads((work / KEPT_NAME).read_bytes())
    kept: Kept = {
        name: {int(dimension): np.array(places, np.int64) for dimension, places in cuts.items()}
        for name, cuts in plain.items()
    }
    found = verify_program(
        model,
        work / ARTIFACT_NAME,
        recipe,
        report,
        kept,
        has_dataset=has_dataset,
        on_progress=on_progress,
    )
    (work / VERIFICATION_NAME).write_text(found.model_dump_json())
