"""What a runner does where a model is trained."""

from collections.abc import Callable
from pathlib import Path

from engine.memory import MemoryMeter
from engine.progress import Progress
from jobs.blobs import STOP_NAME
from jobs.program import is_program
from jobs.recipe import parse_recipe
from jobs.report import Report
from worker.order import Order
from worker.work_files import ARTIFACT_NAME, REPORT_NAME, VERIFICATION_NAME

OnProgress = Callable[[Progress], None]


def train(order: Order, on_progress: OnProgress) -> None:
    """Train a model, and write the artifact and the report.

    Args:
        order: The model, the data set and where to write.
        on_progress: Told how far it is.
    """
    with MemoryMeter() as meter:
        # They import torch and transformers, which is the job's own memory.
        from training.course import Told, Watcher  # noqa: PLC0415
        from training.program_reporting import build_program_report  # noqa: PLC0415
        from training.reporting import build_folder_report  # noqa: PLC0415
        from training.running import Place, finetune  # noqa: PLC0415

        work = Path(order.work_folder)
        recipe = parse_recipe(order.recipe)

        def is_asked_to_stop() -> bool:
            requests = order.requests_folder
            return requests is not None and (Path(requests) / STOP_NAME).exists()

        def on_step(told: Told) -> None:
            on_progress(
                Progress(
                    "finetune", 1, 1, told.done, told.total, "steps",
                    loss=told.loss, rows_per_second=told.rows_per_second,
                )
            )  # fmt: skip

        place = Place(
            model=Path(order.model_folder),
            original=Path(order.original_folder or order.model_folder),
            dataset=Path(order.dataset or ""),
            output=work / ARTIFACT_NAME,
            scratch=work / "training",
            device=order.device,
        )
        rounding = parse_recipe(order.rounding) if order.rounding else None
        training = finetune(place, recipe, Watcher(on_step, is_asked_to_stop), rounding)
        build = build_program_report if is_program(place.model) else build_folder_report
        report = build(place.model, place.output, recipe, training, meter)
    (work / REPORT_NAME).write_text(report.model_dump_json())


def verify_trained(order: Order, on_progress: OnProgress) -> None:
    """Compare a trained model with the one that it was made from, and write down what was found.

    Args:
        order: As of the training.
        on_progress: Told how far it is.
    """
    # Only such jobs need them.
    from training.program_verification import verify_trained_program  # noqa: PLC0415
    from training.verification import verify_folder  # noqa: PLC0415

    work = Path(order.work_folder)
    report = Report.model_validate_json((work / REPORT_NAME).read_bytes())
    model, recipe = Path(order.model_folder), parse_recipe(order.recipe)
    verify = verify_trained_program if is_program(model) else verify_folder
    found = verify(model, work / ARTIFACT_NAME, recipe, report, on_progress)
    (work / VERIFICATION_NAME).write_text(found.model_dump_json())
