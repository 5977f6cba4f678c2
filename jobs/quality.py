"""What a report says of how a model answers, before its compression and after."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Running(_Value):
    """What running one of the two models gave, in a process that it had for itself."""

    loss: float | None = Field(
        None,
        ge=0,
        description="Mean cross-entropy in nats: of a row's label, or of a token after all before "
        "it. None where there is neither.",
    )
    perplexity: float | None = Field(
        None, ge=1, description="e to the loss, of causal language models."
    )
    accuracy: float | None = Field(
        None, ge=0, le=1, description="Fraction of rows with the right label."
    )
    latency_seconds: dict[str, Seconds] = Field(
        description="Median of one forward, by batch size, 1 and 8 at most; of the first rows. "
        "Empty where the model was run block by block: no forward had all of it."
    )
    rows_per_second: float = Field(
        ge=0,
        description="Over all rows, in batches; where there are blocks, reading them included.",
    )
    tokens_per_second: float | None = Field(
        None, ge=0, description="The same by token, padding apart."
    )
    blocks: Count = Field(
        0,
        description="Parts of the model that were in memory one after the other, as all of it "
        "would pass the budget; 0 where it was in memory as a whole.",
    )
    weight_bytes: Bytes = Field(
        description="What its weights took in memory while it ran, at most at a time."
    )
    resident_peak_bytes: Bytes = Field(description="Of the whole process, libraries included.")
    seconds: Seconds = Field(description="Of the process: libraries, loading, all rows, latency.")


class Agreement(_Value):
    """How far the artifact's outputs are from the original's for the same inputs."""

    outputs: Count = Field(
        description="Pairs compared: of each row, or of 8 places of it; the first 64 MiB of them."
    )
    of: Literal["logits", "hidden_states"] = Field(
        description="`hidden_states`: averaged over a row's tokens or places."
    )
    mean_cosine: float = Field(ge=-1, le=1, description="Mean cosine similarity; 1 is equal.")
    least_cosine: float = Field(ge=-1, le=1, description="The smallest of any pair.")
    kl_divergence: float | None = Field(
        None,
        ge=0,
        description="Mean Kullback-Leibler divergence from the original in nats, of logits.",
    )
    top1_agreement: float | None = Field(
        None, ge=0, le=1, description="Fraction of logits with the same first choice."
    )


class Calibration(_Value):
    """What taking the model through its calibration data gave, block by block."""

    rows: Count
    tokens: Count | None = Field(None, description="Padding apart; None where rows have none.")
    blocks: Count = Field(
        description="Parts of the model that were in memory one after the other; 0 where gradients "
        "needed all of it."
    )
    smoothed_norms: tuple[str, ...] = Field(
        (), description="Norms whose outputs were made smaller, and the weights after them larger."
    )
    error_ratios: dict[str, float] = Field(
        {},
        description="By module that gptq rounded: the squared error of its outputs for these rows, "
        "over that of rounding every weight to its nearest step; never above 1.",
    )
    resident_peak_bytes: Bytes = Field(description="Of the whole process, libraries included.")
    seconds: Seconds = Field(description="Of the process.")


class Ran(_Value):
    """What running one model gave, as the process that ran it writes it down."""

    running: Running
    rows: Count
    tokens: Count | None
    agreement: Agreement | None


class Quality(_Value):
    """What running the model before and after gave."""

    data: Literal["dataset", "synthetic"] = Field(
        description="`synthetic`: seeded random inputs, which say how far outputs moved and "
        "nothing of what the model is good at."
    )
    rows: Count
    tokens: Count | None = None
    before: Running
    after: Running
    agreement: Agreement
