"""The runner: the fresh process that does one job, or verifies what another one did, and dies.

It is forked from the warm template (`worker.template`), holds no connection to anything, and talks
to its supervisor through one pipe: a JSON line per message.

    {"progress": {...}}         any number of times
    {"problem": {...}}          the job failed for a reason that the catalogue names
    {"done": true}              what it was to make is in the work folder
    {"log": "..."}              for people; nothing follows from it
"""

import json
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.pipeline import Progress, compress
from engine.sensitivities import measure
from engine.verification import verify
from engine.verified_forms import claims_of
from evaluation.faults import is_out_of_memory
from jobs.problems import Problem
from jobs.program import is_program
from jobs.quality import Calibration
from jobs.recipe import Evaluate, Recipe, parse_recipe
from jobs.report import Report
from worker import inferring, program_tasks
from worker.collect import MANIFEST_NAME
from worker.order import Order, Task
from worker.subjects import evaluated_opener
from worker.work_files import (
    AFTER_NAME,
    ANSWERS_NAME,
    ARTIFACT_NAME,
    BEFORE_NAME,
    CALIBRATED_NAME,
    CALIBRATION_NAME,
    DONE_NAME,
    JOURNAL_NAME,
    OUTPUTS_NAME,
    REPORT_NAME,
    SENSITIVITIES_NAME,
    VERIFICATION_NAME,
)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOST_LOGGED = 4000

OnProgress = Callable[[Progress], None]


def run(order: Order, pipe: int) -> None:
    """Do a job and report over the pipe; every end is a message.

    Args:
        order: The job.
        pipe: File descriptor of the pipe's write end.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def on_progress(progress: Progress) -> None:
        before, after = order.steps_before, order.steps_after
        progress = replace(
            progress, step=progress.step + before, steps=progress.steps + before + after
        )
        _send(pipe, {"progress": asdict(progress)})

    try:
        _TASKS[order.task](order, on_progress)
    except Problem as problem:
        _send(pipe, {"problem": problem.to_dict()})
    except Exception as error:  # noqa: BLE001 - whatever it is, the supervisor must learn of it
        _send(pipe, {"log": traceback.format_exc()[-_MOST_LOGGED:]})
        _send(pipe, {"problem": _named(error, order.recipe).to_dict()})
    else:
        _send(pipe, {"done": True})


def _calibrate(order: Order, on_progress: OnProgress) -> None:
    work = Path(order.work_folder)
    if (work / CALIBRATION_NAME).exists():
        # An attempt before this one, which was killed later on, had come so far.
        return
    _keep_libraries_home(work)
    recipe, model = parse_recipe(order.recipe), Path(order.model_folder)
    dataset, folder = Path(order.dataset or ""), work / CALIBRATED_NAME
    shutil.rmtree(folder, ignore_errors=True)
    act = program_tasks.calibrate if is_program(model) else _calibrate_folder
    found = act(model, dataset, recipe, folder, on_progress)
    (work / CALIBRATION_NAME).write_text(found.model_dump_json())


def _calibrate_folder(
    model: Path, dataset: Path, recipe: Recipe, folder: Path, on_progress: OnProgress
) -> Calibration:
    # torch and transformers take seconds to import, and most jobs never need them.
    from calibration.running import calibrate  # noqa: PLC0415

    is_whole = recipe.shrink_step is not None and recipe.shrink_step.importance == "taylor"
    unit = "batches" if is_whole else "blocks"

    def on_done(done: int, total: int) -> None:
        on_progress(Progress("calibrate", 1, len(recipe.steps), done, total, unit))

    return calibrate(model, dataset, recipe, folder, on_done)


def _calibrated(order: Order) -> Path | None:
    is_calibrated = order.recipe.get("calibrate") is not None
    return Path(order.work_folder) / CALIBRATED_NAME if is_calibrated else None


def _compress(order: Order, on_progress: OnProgress) -> None:
    work = Path(order.work_folder)
    artifact = work / ARTIFACT_NAME
    _remove_additions(artifact)
    if is_done(order):
        return
    # It is there where an attempt before this one was killed.
    artifact.mkdir(exist_ok=True)
    if is_program(Path(order.model_folder)):
        program_tasks.compress(
            Path(order.model_folder),
            work,
            parse_recipe(order.recipe),
            idle_bytes=order.idle_bytes,
            dataset=Path(order.dataset) if order.dataset else None,
            calibrated=_calibrated(order),
            on_progress=on_progress,
        )
        mark_done(order)
        return
    report = compress(
        Path(order.model_folder),
        artifact,
        parse_recipe(order.recipe),
        device=order.device,
        on_progress=on_progress,
        idle_bytes=order.idle_bytes,
        journal=work / JOURNAL_NAME,
        writes_back=True,
        calibrated=_calibrated(order),
    )
    (work / REPORT_NAME).write_text(report.model_dump_json())
    mark_done(order)


def _finetune(order: Order, on_progress: OnProgress) -> None:
    _remove_additions(Path(order.work_folder) / ARTIFACT_NAME)
    if is_done(order):
        return
    _keep_libraries_home(Path(order.work_folder))
    # torch and transformers take seconds to import, and most jobs never need them.
    from worker.training_tasks import train  # noqa: PLC0415

    train(order, on_progress)
    mark_done(order)


def _verify(order: Order, on_progress: OnProgress) -> None:
    work = Path(order.work_folder)
    if parse_recipe(order.recipe).finetune_step is not None:
        from worker.training_tasks import verify_trained  # noqa: PLC0415 - it needs the engine only

        verify_trained(order, on_progress)
        return
    if is_program(Path(order.model_folder)):
        program_tasks.verify(
            Path(order.model_folder),
            work,
            parse_recipe(order.recipe),
            has_dataset=order.dataset is not None,
            on_progress=on_progress,
        )
        return
    report = Report.model_validate_json((work / REPORT_NAME).read_bytes())
    claims, shrunk = claims_of(report), report.shrunk
    # Of thousands of tensors it is large.
    del report
    verification = verify(
        Path(order.model_folder),
        work / ARTIFACT_NAME,
        parse_recipe(order.recipe),
        claims,
        shrunk,
        on_progress=on_progress,
        calibrated=_calibrated(order),
    )
    (work / VERIFICATION_NAME).write_text(verification.model_dump_json())


def _run_original(order: Order, on_progress: OnProgress) -> None:
    _run_model(order, BEFORE_NAME, on_progress)


def _run_artifact(order: Order, on_progress: OnProgress) -> None:
    _run_model(order, AFTER_NAME, on_progress)


def _run_model(order: Order, name: str, on_progress: OnProgress) -> None:
    work, model = Path(order.work_folder), Path(order.model_folder)
    _keep_libraries_home(work)
    recipe = parse_recipe(order.recipe)
    is_original = name == BEFORE_NAME
    folder = model if is_original else Path(order.artifact_folder or work / ARTIFACT_NAME)
    open_subject = evaluated_opener(folder, model, recipe)
    # torch and transformers take seconds to import, and most jobs never need them.
    from evaluation.running import run_artifact, run_original  # noqa: PLC0415

    wanted = recipe.evaluate or Evaluate()
    steps = len(recipe.steps)

    def on_rows(rows: int) -> None:
        phase = "evaluate the original" if is_original else "evaluate the artifact"
        on_progress(Progress(phase, steps, steps, rows, wanted.rows, "rows"))

    dataset = Path(order.dataset) if order.dataset else None
    kept = work / OUTPUTS_NAME
    run = run_original if is_original else run_artifact
    ran = run(open_subject, dataset, wanted, kept, on_rows)
    if not is_original:
        # Beside the artifact: those of stages have folders of their own.
        name = str(folder.parent.relative_to(work) / name)
    (work / name).write_text(ran.model_dump_json())


def _answer(
    order: Order,
    on_progress: OnProgress,
    act: Callable[[Path, Path, Recipe, Path, OnProgress], None],
) -> None:
    model, work, dataset = map(Path, (order.model_folder, order.work_folder, order.dataset or ""))
    _keep_libraries_home(work)
    act(model, work, parse_recipe(order.recipe), dataset, on_progress)


def _measure(order: Order, on_progress: OnProgress) -> None:
    found = measure(
        Path(order.model_folder),
        parse_recipe(order.recipe).budget,
        on_progress=on_progress,
        idle_bytes=order.idle_bytes,
    )
    (Path(order.work_folder) / SENSITIVITIES_NAME).write_text(found.model_dump_json())


def _keep_libraries_home(work: Path) -> None:
    """Say where the libraries look for what they fetched, and write."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home")}


def _remove_additions(artifact: Path) -> None:
    """Remove what a supervisor put into an artifact that was killed before it published it."""
    shutil.rmtree(artifact / ANSWERS_NAME, ignore_errors=True)
    (artifact / MANIFEST_NAME).unlink(missing_ok=True)


def is_done(order: Order) -> bool:
    """Tell whether an attempt before this one, killed later on, has done what steps follow."""
    try:
        boot = (Path(order.work_folder) / DONE_NAME).read_text()
    except OSError:
        return False
    # What was written is in the page cache, which a machine that was started anew has lost.
    return order.steps_after > 0 and boot == _BOOT_ID.read_text()


def mark_done(order: Order) -> None:
    """Say that what an order makes is there, for an attempt to come."""
    if order.steps_after > 0:
        (Path(order.work_folder) / DONE_NAME).write_text(_BOOT_ID.read_text())


_TASKS: dict[Task, Callable[[Order, OnProgress], None]] = {
    "calibrate": _calibrate,
    "compress": _compress,
    "finetune": _finetune,
    "verify": _verify,
    "run_original": _run_original,
    "run_artifact": _run_artifact,
    "infer": partial(_answer, act=inferring.infer),
    "recheck": partial(_answer, act=inferring.recheck),
    "measure": _measure,
}


def _named(error: Exception, recipe: dict[str, Any]) -> Problem:
    if is_out_of_memory(error):
        return _out_of_memory(recipe)
    if isinstance(error, OSError):
        return Problem.from_os_error(error)
    return Problem("internal_error", f"The runner raised {type(error).__name__}.")


def _out_of_memory(recipe: dict[str, Any]) -> Problem:
    budget = (recipe.get("budget") or {}).get("host_memory")
    if budget is not None:
        return Problem(
            "out_of_memory",
            f"The runner could not allocate memory; budget.host_memory is {budget}. Raise it, or "
            "have fewer or shorter rows together.",
            extra={"budget_bytes": budget},
        )
    return Problem(
        "out_of_memory",
        "The runner could not allocate memory. Give the worker more, or lower what runs beside it.",
    )


def _send(pipe: int, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode() + b"\n"
    try:
        while data:
            data = data[os.write(pipe, data) :]
    except BrokenPipeError:
        # Nobody listens any more: the supervisor has given this attempt up.
        sys.exit(1)
