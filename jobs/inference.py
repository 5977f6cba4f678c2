"""What a report says of a data set that a model was run over."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.inferring import InferOutput, ResultFormat

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Column(_Value):
    """One kind of answer, in the order of the data set's rows."""

    name: str = Field(max_length=64)
    dtype: Literal["float32", "int64"]
    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        max_length=8, description="Of one row's; empty where it is one number."
    )


class Probe(_Value):
    """What running some rows together took."""

    rows: Count
    cells: Count = Field(description="Rows times the tokens of the longest; rows without tokens.")
    peak_bytes: Bytes = Field(description="Resident peak of the process meanwhile.")


class Recheck(_Value):
    """What another process found that read the file again and ran some rows anew, each alone."""

    rows: Count = Field(description="Rows of the file; all of them were read and are finite.")
    rerun: Count = Field(description="Rows that were run again, drawn by a seed.")
    max_difference: float = Field(
        ge=0, description="The largest, over the largest magnitude of a row's answers, or over 1."
    )
    seconds: Seconds
    resident_peak_bytes: Bytes


class Inference(_Value):
    """What running the model over a data set gave, in a process of its own."""

    file: str = Field(description="Its path in the artifact.", max_length=128)
    output: InferOutput
    format: ResultFormat
    columns: tuple[Column, ...] = Field(max_length=8)
    bytes: Bytes
    rows: Count
    tokens: Count | None = Field(None, description="Padding apart; None where rows have none.")
    resumed_at: int | None = Field(
        None, description="How many rows attempts before had answered; None where one did all."
    )
    batch_size: Count = Field(description="The most rows that were run together.")
    batches: Count
    bytes_per_row: float | None = Field(
        None,
        ge=0,
        description="Of memory, of one row more in a batch, as fitted; of a token where rows have "
        "tokens. None where two sizes told nothing.",
    )
    base_bytes: Bytes | None = Field(None, description="The fit's level without any row.")
    probes: tuple[Probe, ...] = Field(
        max_length=64, description="The batches by which it was found how many rows fit."
    )
    rows_per_second: float = Field(
        ge=0, description="Of this attempt: running, reading and writing."
    )
    tokens_per_second: float | None = Field(None, ge=0)
    resident_peak_bytes: Bytes = Field(
        description="Of the whole process, libraries included; with attempts before."
    )
    budget_bytes: Bytes | None
    headroom_bytes: int | None = Field(description="Budget minus resident peak.")
    seconds: Seconds = Field(description="Of the process: libraries, loading and all rows.")
    recheck: Recheck | None = None
