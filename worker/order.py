"""What one runner is told."""

from dataclasses import dataclass
from typing import Any, Literal

Task = Literal[
    "calibrate",
    "compress",
    "finetune",
    "verify",
    "run_original",
    "run_artifact",
    "infer",
    "recheck",
    "measure",
]


@dataclass(frozen=True)
class Order:
    """What a runner is told.

    Attributes:
        model_folder: The model's files; read, never written.
        work_folder: Where the artifact and the report go.
        recipe: The recipe as plain values.
        device: Where to compute.
        idle_bytes: What the plan took an idle runner to hold; None where there was no plan.
        task: `calibrate` takes the model through data and writes what these decide about;
            `compress` makes an artifact and a report, and so does `finetune`; `verify` compares
            both with the model; `run_original` and then `run_artifact` run them and measure how
            they answer; `infer` runs a data set through the result and keeps the answers, `recheck`
            some of it again; `measure` finds out what rounding and shrinking would lose.
        dataset: The uploaded file that models are run on; None for random inputs.
        artifact_folder: The artifact to run; None is the one in the work folder. What is measured
            of another one is written beside it.
        original_folder: The model that came in, where that is not the one to work on.
        requests_folder: Where a file appears that asks for the end of a training; only read.
        rounding: The recipe that rounds what this one trains, where training is to know of it.
        steps_before: How many steps of the job's recipe were done when this one's begin.
        steps_after: How many follow. What is made for those is kept for an attempt to come, which
            then finds it done.
    """

    model_folder: str
    work_folder: str
    recipe: dict[str, Any]
    device: Literal["cpu", "cuda"]
    idle_bytes: int | None = None
    task: Task = "compress"
    dataset: str | None = None
    artifact_folder: str | None = None
    original_folder: str | None = None
    requests_folder: str | None = None
    rounding: dict[str, Any] | None = None
    steps_before: int = 0
    steps_after: int = 0
