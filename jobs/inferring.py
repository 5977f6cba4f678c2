"""The infer step of a recipe: over which rows a model is run, and what of its answers is kept."""

from typing import Annotated, Literal

from pydantic import Field

from jobs.strict import DatasetId, Strict

#: What of a model's answers can be kept. `auto` takes what its class is for.
InferOutput = Literal["predictions", "logits", "embeddings"]
ResultFormat = Literal["parquet", "safetensors"]


class InferStep(Strict):
    """Run the model over a data set, in batches that the budget allows, and keep its answers."""

    op: Literal["infer"]
    dataset: DatasetId = Field(
        description="A data set's id, of any kind that `evaluate` takes; labels say nothing here."
    )
    output: InferOutput | Literal["auto"] = Field(
        "auto",
        description="`predictions`: classes with their probabilities, values, or the next token; "
        "`logits`: what the model's head gives; `embeddings`: last hidden states, averaged over a "
        "row's tokens or places. Default: predictions of classifiers and of language models, "
        "logits of programs, embeddings of all others.",
    )
    format: ResultFormat = Field("parquet", description="Of the one file of answers.")
    rows: int | None = Field(
        None, ge=1, le=2**40, description="At most so many rows, the first ones. Default: all."
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = Field(
        "auto",
        description="Rows that are run at a time. `auto`: as many as budget.host_memory allows and "
        "make it faster, which is found out by running few. No row's answer depends on it.",
    )
    max_length: int = Field(512, ge=2, le=131_072, description="Tokens of a row, at most.")

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs the calibrate section; it has a data set of its own."""
        return False
