"""An infer step: what its two runners do, and what becomes of what they leave.

The first runs the model, or the artifact where steps before made one, over the data set; the second
reads the answers again and runs some rows anew. What they leave is taken as if it were hostile.
"""

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blake3 import blake3

from engine.memory import MemoryMeter
from engine.progress import Progress
from jobs.checkpoint import open_checkpoint
from jobs.durable_files import fsync, remove_tree
from jobs.inference import Inference, Recheck
from jobs.inferring import InferStep
from jobs.problems import Problem
from jobs.program import FORMAT, is_program, open_program
from jobs.program_archive import PROGRAM_NAME
from jobs.recipe import ENGINE_VERSION, Recipe
from jobs.report import ArtifactFacts, HostMemory, Loader, Memory, ModelFacts, Report, Speed
from planning.inferring import predict_inference
from planning.memory_model import DEFAULT_LEVELS
from worker.collect import Check, Row, measure_files, read_left, read_report, require_folder
from worker.work_files import (
    ANSWERS_NAME,
    ARTIFACT_NAME,
    INFERENCE_NAME,
    RECHECK_NAME,
    REPORT_NAME,
)

OnProgress = Callable[[Progress], None]
#: The report of a job, and the files of its artifact.
Made = tuple[Report, list[Row]]
#: How much an infer step may write, unless budget.disk says it.
_MOST_ANSWER_BYTES = 64 * 1024**3
_NOTES = {
    "parquet": "pyarrow.parquet.read_table opens it, and so does pandas.read_parquet.",
    "safetensors": "safetensors.safe_open opens it; tensors have a row for each of the data set.",
}


def infer(model: Path, work: Path, recipe: Recipe, dataset: Path, on_progress: OnProgress) -> None:
    """Run the model over the data set; write its answers, and what was measured.

    Where an attempt before this one was killed, it goes on there.

    Args:
        model: The model's folder.
        work: The job's work folder, with the artifact in it where steps before made one.
        recipe: What to do; it ends with an infer step.
        dataset: The uploaded file.
        on_progress: Told how far it is.
    """
    step, started = _step_of(recipe), time.perf_counter()
    source = model if recipe.compression is None else work / ARTIFACT_NAME
    with MemoryMeter() as meter:
        # torch and transformers take seconds to import, and most jobs never need them.
        from evaluation.inferring import AnswerPlace  # noqa: PLC0415
        from evaluation.inferring import infer as run  # noqa: PLC0415
        from worker.subjects import opener  # noqa: PLC0415

        told = _teller("infer", recipe, on_progress)
        place = AnswerPlace(work / ANSWERS_NAME, work / "inferring", _job(source, recipe, dataset))
        found = run(opener(source, model), dataset, step, place, recipe.budget, told)
        meter.sample()
    (work / INFERENCE_NAME).write_text(found.model_dump_json())
    if recipe.compression is None:
        seconds = time.perf_counter() - started
        report = _report(model, recipe, found, (meter.idle, meter.peak), seconds)
        (work / REPORT_NAME).write_text(report.model_dump_json())


def recheck(
    model: Path, work: Path, recipe: Recipe, dataset: Path, on_progress: OnProgress
) -> None:
    """Compare the answers with what is said of them and with the model, and write it down.

    Args:
        model: As for `infer`.
        work: As for `infer`, with what that left.
        recipe: What was to be done.
        dataset: The uploaded file.
        on_progress: Told how far it is.
    """
    from evaluation.rechecking import recheck as run  # noqa: PLC0415 - as above
    from worker.subjects import opener  # noqa: PLC0415

    claimed = read_left(work / INFERENCE_NAME, Inference)
    source = model if recipe.compression is None else work / ARTIFACT_NAME
    told = _teller("check the answers", recipe, on_progress)
    folder = work / ANSWERS_NAME
    found = run(opener(source, model), dataset, _step_of(recipe), folder, claimed, told)
    (work / RECHECK_NAME).write_text(found.model_dump_json())


def take_answers(
    work: Path,
    made: Made | None,
    dataset: Path,
    most_bytes: int,
    check: Check,
) -> Made:
    """Make the answers part of the artifact, or all of it.

    Args:
        work: The job's work folder.
        made: The report of the steps before, and the files of what they made; None without any.
        dataset: The uploaded file.
        most_bytes: How long the answers may be.
        check: Called between pieces; raises to stop.

    Returns:
        The report of the job, and the files of its artifact.

    Raises:
        Problem: `invalid_artifact`: something was left that is not what it should be.
    """
    answers, artifact = work / ANSWERS_NAME, work / ARTIFACT_NAME
    found = read_left(work / INFERENCE_NAME, Inference)
    again = read_left(work / RECHECK_NAME, Recheck)
    rows = measure_files(answers, most_bytes, check)
    claimed = [(found.file, found.bytes)]
    if [(row["path"], row["bytes"]) for row in rows] != claimed or again.rows != found.rows:
        raise Problem("invalid_artifact", "The answers are not those that were looked at.")
    found = found.model_copy(update={"recheck": again})
    nbytes = dataset.stat().st_size
    if made is None:
        # What an attempt left that was killed behind this very line.
        remove_tree(artifact)
        answers.rename(artifact)
        return read_report(work / REPORT_NAME).inferred(found, nbytes), rows
    report, others = made
    # A folder of its own: what lies at the top of an artifact is the model's.
    require_folder(artifact)
    answers.rename(artifact / ANSWERS_NAME)
    fsync(artifact)
    path = f"{ANSWERS_NAME}/{found.file}"
    found = found.model_copy(update={"file": path})
    return report.inferred(found, nbytes), [*others, {**rows[0], "path": path}]


def most_answer_bytes(members: Mapping[str, Any]) -> int:
    """Give how much the infer step of a recipe, as plain values, may write; 0 without one."""
    if members["steps"][-1]["op"] != "infer":
        return 0
    return (members.get("budget") or {}).get("disk") or _MOST_ANSWER_BYTES


def _step_of(recipe: Recipe) -> InferStep:
    if recipe.infer_step is None:
        raise Problem("internal_error", "The recipe has no infer step.")
    return recipe.infer_step


def _teller(phase: str, recipe: Recipe, on_progress: OnProgress) -> Callable[[int, int], None]:
    steps, told = len(recipe.steps), 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done == total or done - told >= total // 200:
            told = done
            on_progress(Progress(phase, steps, steps, done, total, "rows"))

    return tell


def _job(source: Path, recipe: Recipe, dataset: Path) -> str:
    """Tell an infer step from others by all that decides what it answers."""
    names = ("torch", "transformers", "pyarrow", "numpy")
    parts = [str(ENGINE_VERSION), *map(version, names), recipe.model_dump_json()]
    for path in (dataset, *sorted(path for path in source.rglob("*") if path.is_file())):
        status = path.stat()
        parts.append(f"{path.name} {status.st_size} {status.st_mtime_ns}")
    return blake3("\n".join(parts).encode()).hexdigest()


def _report(
    model: Path,
    recipe: Recipe,
    found: Inference,
    memory: tuple[HostMemory, HostMemory],
    seconds: float,
) -> Report:
    described = open_program(model / PROGRAM_NAME) if is_program(model) else open_checkpoint(model)
    facts, idle, peak = described.facts(), *memory
    budget = recipe.budget.host_memory
    levels = replace(DEFAULT_LEVELS, idle_bytes=idle.resident_peak_bytes)
    prediction = predict_inference(described, _step_of(recipe), recipe.budget, levels, found.rows)
    libraries = ["modelpress", "numpy", "torch"]
    libraries += [] if facts["format"] == FORMAT else ["transformers"]
    nbytes = facts["tensor_bytes"]
    loader = "pyarrow.parquet" if found.format == "parquet" else "safetensors"
    return Report(
        model=ModelFacts(
            format=facts["format"],
            architecture=facts["architecture"],
            bytes=nbytes,
            parameters=facts["parameters"],
            parameters_by_dtype=facts["parameters_by_dtype"],
        ),
        artifact=ArtifactFacts(
            format=found.format, bytes=found.bytes, size_ratio=found.bytes / max(1, nbytes)
        ),
        memory=Memory(
            idle=idle,
            peak=peak,
            device=None,
            predicted_peak_bytes=prediction.host_peak_bytes,
            measured_peak_bytes=found.resident_peak_bytes,
            added_anonymous_bytes=max(0, peak.anonymous_peak_bytes - idle.anonymous_peak_bytes),
            budget_bytes=budget,
            headroom_bytes=None if budget is None else budget - found.resident_peak_bytes,
        ),
        steps=(),
        tensors=(),
        skipped=(),
        loaders={loader: Loader(ok=True, note=_NOTES[found.format])},
        speed=Speed(total_seconds=seconds, input_bytes_per_second=nbytes / max(seconds, 1e-9)),
        versions={
            **{name: version(name) for name in libraries},
            "python": platform.python_version(),
        },
    )
