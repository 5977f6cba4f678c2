"""What a report says of a model's training."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Decision(_Value):
    """One size of micro-batch that was tried, before the first step or until memory ran out."""

    micro_batch_size: int = Field(ge=1)
    savings: tuple[str, ...] = Field(description="What was turned on.")
    peak_bytes: Bytes | None = Field(
        description="Of the process or the device, in one forward and backward of the longest "
        "rows; None where memory ran out."
    )
    limit_bytes: Bytes = Field(description="What it was to stay below.")
    outcome: Literal["fits", "too_large", "out_of_memory"]


class LossPoint(_Value):
    """The loss of one optimizer step."""

    step: int = Field(ge=1)
    loss: float = Field(description="Mean over the targets of the effective batch.")
    learning_rate: float
    resident_bytes: Bytes = Field(description="Of the process, after the step.")


class Look(_Value):
    """The loss on held-out rows."""

    step: int = Field(ge=0, description="How many steps were done; 0 before the first.")
    loss: float


class QuantizeAware(_Value):
    """For which rounding a model was trained."""

    scheme: Literal["w8a16", "w8a8"] = Field(description="Of the quantize step that follows.")
    tensors: Count = Field(description="Weights that it computed with as they will be rounded.")
    rounds_inputs: bool = Field(description="Whether what these are multiplied with was, too.")


class Training(_Value):
    """What training gave."""

    objective: str
    optimizer: str
    method: str
    rows: Count = Field(description="Rows that are trained on.")
    held_out_rows: Count
    steps: Count = Field(description="Optimizer steps that were done.")
    epochs: float = Field(ge=0, description="How often each row was seen.")
    batch_size: int = Field(ge=1, description="Rows of a step: the effective batch.")
    micro_batch_size: int = Field(ge=1, description="Rows in memory at one time, at last.")
    savings: tuple[str, ...] = Field(description="What saved memory, at last.")
    decisions: tuple[Decision, ...] = Field(description="How that was found.")
    trained_parameters: Count
    weights_held_zero: Count = Field(
        description="Weights that were zero in what is trained when it began, and still are; and "
        "those that adapters would have changed."
    )
    frozen_statistics: Count = Field(
        description="Normalizations whose statistics are those that they came with."
    )
    losses: tuple[LossPoint, ...] = Field(description="Of at most 200 steps, evenly spread.")
    looks: tuple[Look, ...] = ()
    quantize_aware: QuantizeAware | None = Field(
        None, description="None where it was computed with weights as they are."
    )
    bf16: bool | None = Field(
        None,
        description="Whether layers were computed in bfloat16, which not every device has; None "
        "where that was not asked for.",
    )
    best_step: int | None = Field(
        None, description="After how many steps the weights are, where keep_best chose."
    )
    stopped_early: bool = False
    stopped_by: Literal["patience", "request"] | None = Field(
        None,
        description="`patience`: looks became no better; `request`: a cancel asked to keep what "
        "was trained. None where all steps were done.",
    )
    planned_steps: Count | None = Field(None, description="What the recipe asks for.")
    resumed_at: int | None = Field(
        None, description="How many steps attempts before had done; None where one did all."
    )
    rows_per_second: float = Field(ge=0)
    tokens_per_second: float | None = Field(None, ge=0, description="Padding apart.")
    optimizer_bytes: Bytes = Field(description="What the optimizer's states take.")
    resident_peak_bytes: Bytes = Field(description="Of the whole process, libraries included.")
    device_peak_bytes: Bytes | None = Field(None, description="Reserved; None without a device.")
    seconds: Seconds = Field(description="Of the process.")
